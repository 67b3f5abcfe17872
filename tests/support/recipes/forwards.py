"""Small models in JAX, written for the trees that the recipes give, and for no speed."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Params = Any
Config = dict[str, Any]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * scale


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, scale: float,
    sinks: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Attention of q [b, t, h, k] on k and v [b, s, g, k], whose heads are shared by several."""
    groups = k.shape[2]
    q = q.reshape(*q.shape[:2], groups, q.shape[2] // groups, q.shape[3])
    scores = jnp.einsum("btghk,bsgk->bghts", q, k) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    if sinks is None:
        weights = jax.nn.softmax(scores)
    else:
        sink = jnp.broadcast_to(sinks.reshape(groups, -1, 1, 1), (*scores.shape[:-1], 1))
        weights = jax.nn.softmax(jnp.concatenate([scores, sink], -1))[..., :-1]
    out = jnp.einsum("bghts,bsgk->btghk", weights, v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def inverse_frequencies(rope: Config, size: int) -> tuple[jax.Array, float]:
    """The angular velocities of rotary embeddings, and the factor of their amplitudes."""
    exponents = jnp.arange(0, size, 2) / size
    plain = rope.get("rope_theta", 10000.0) ** -exponents
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain, 1.0
    factor, original = rope["factor"], rope["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = original * plain / (2 * math.pi)
        smooth = jnp.clip((turns - low) / (high - low), 0, 1)
        return plain * (smooth + (1 - smooth) / factor), 1.0
    assert kind == "yarn"

    def dimension(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope["beta_fast"]), dimension(rope["beta_slow"])
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = jnp.clip((jnp.arange(size // 2) - low) / (high - low), 0, 1)
    return plain * (1 - ramp) + plain / factor * ramp, 0.1 * math.log(factor) + 1


def rotate(x: jax.Array, velocities: jax.Array, amplitude: float = 1.0) -> jax.Array:
    """Rotary embeddings of x [b, t, h, k], whose halves are the two coordinates."""
    angles = jnp.arange(x.shape[1])[:, None, None] * velocities
    sin, cos = jnp.sin(angles) * amplitude, jnp.cos(angles) * amplitude
    one, two = jnp.split(x, 2, -1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def project(x: jax.Array, params: Params, axes: str) -> jax.Array:
    """x times a kernel, and plus a bias, if there is one."""
    out = jnp.einsum(axes, x, params["kernel"])
    return out + params["bias"] if "bias" in params else out


def causal(length: int, window: int | None = None) -> jax.Array:
    """Who sees whom, [t, s]: what is before it, and no more than a window of that."""
    back = jnp.arange(length)[:, None] - jnp.arange(length)
    return (back >= 0) if window is None else (back >= 0) & (back < window)


def gated(x: jax.Array, params: Params, activation: Any = jax.nn.silu) -> jax.Array:
    gate, up = (project(x, params[each], "...d,df->...f") for each in ("gate", "up"))
    return project(activation(gate) * up, params["down"], "...f,fd->...d")


def choose(scores: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The largest scores, and a mask of where they are."""
    chosen, at = jax.lax.top_k(scores, count)
    return chosen, jax.nn.one_hot(at, scores.shape[-1]).sum(-2)


def mixture(x: jax.Array, layer: Params, config: Config, *, normed: bool) -> jax.Array:
    """Experts by a softmax over all of them; each is computed, and most are not used."""
    scores = jax.nn.softmax(project(x, layer["router"], "...d,de->...e"))
    _, mask = choose(scores, config["num_experts_per_tok"])
    weights = scores * mask
    if normed:
        weights /= weights.sum(-1, keepdims=True)
    out = jax.vmap(gated, (None, 0))(x, layer["experts"])
    return jnp.einsum("ebtd,bte->btd", out, weights)


def decoder(params: Params, config: Config, tokens: jax.Array) -> jax.Array:
    """The logits of Llama and its relatives."""
    kind, eps = config["model_type"], config["rms_norm_eps"]
    plus = 1.0 if kind == "gemma3_text" else 0.0
    size = params["layers"]["attention"]["q"]["kernel"].shape[-1]
    x = params["embed"]["embedding"][tokens]
    if plus:
        x = x * config["hidden_size"] ** 0.5

    def norm(x: jax.Array, name: str, within: Params) -> jax.Array:
        return rms_norm(x, within[name]["scale"] + plus, eps)

    types = config.get("layer_types") or [None] * config["num_hidden_layers"]
    for number, layer_type in enumerate(types):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"])
        rope = config["rope_parameters"]
        velocities, amplitude = inverse_frequencies(rope.get(layer_type) or rope, size)
        own, y = layer["attention"], norm(x, "attention_norm", layer)
        q, k, v = (project(y, own[each], "btd,dhk->bthk") for each in "qkv")
        if "q_norm" in own:
            q, k = norm(q, "q_norm", own), norm(k, "k_norm", own)
        q, k = (rotate(each, velocities, amplitude) for each in (q, k))
        slides = kind == "mistral" or layer_type == "sliding_attention"
        mask = causal(x.shape[1], config.get("sliding_window") if slides else None)
        scale = config.get("query_pre_attn_scalar", size) ** -0.5
        y = attend(q, k, v, mask, scale, own.get("sinks"))
        y = project(y, own["o"], "bthk,hkd->btd")
        x = x + (norm(y, "attention_post_norm", layer) if plus else y)
        y = norm(x, "mlp_norm", layer)
        if kind == "gemma3_text":
            y = gated(y, layer["mlp"], partial(jax.nn.gelu, approximate=True))
            y = norm(y, "mlp_post_norm", layer)
        elif "experts" in layer:
            y = mixture(y, layer, config, normed=config.get("norm_topk_prob", True))
        else:
            y = gated(y, layer["mlp"])
        x = x + y
    x = norm(x, "norm", params)
    head = params["head"]["kernel"] if "head" in params else params["embed"]["embedding"].T
    return x @ head
