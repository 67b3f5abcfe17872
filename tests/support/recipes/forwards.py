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
        return (
            size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))
        )

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
    """What a kernel gives for x, with its bias if it has one."""
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


def clamped_mixture(x: jax.Array, layer: Params, config: Config) -> jax.Array:
    """The experts of gpt-oss, by a softmax over those that are chosen."""
    scores = project(x, layer["router"], "...d,de->...e")
    chosen, mask = choose(scores, config["num_experts_per_tok"])
    weights = jnp.exp(scores - jax.nn.logsumexp(chosen, -1, keepdims=True)) * mask
    own, limit = layer["experts"], config.get("swiglu_limit", 7.0)

    def each(params: Params, axes: str, x: jax.Array) -> jax.Array:
        return jnp.einsum(axes, x, params["kernel"]) + params["bias"][:, None, None]

    gate = jnp.minimum(each(own["gate"], "btd,edf->ebtf", x), limit)
    up = jnp.clip(each(own["up"], "btd,edf->ebtf", x), -limit, limit)
    hidden = (up + 1) * gate * jax.nn.sigmoid(1.702 * gate)
    return jnp.einsum("ebtd,bte->btd", each(own["down"], "ebtf,efd->ebtd", hidden), weights)


def unpacked(experts: Params) -> Params:
    """The experts of gpt-oss with kernels [..., in, out] in place of blocks and scales of MXFP4."""
    values = jnp.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    numbers = jnp.concatenate([values, -values])

    def kernel(blocks: jax.Array, scales: jax.Array) -> jax.Array:
        pairs = jnp.stack([blocks & 15, blocks >> 4], -1)
        scaled = numbers[pairs] * jnp.exp2(scales.astype(jnp.float32) - 127)[..., None, None]
        return scaled.reshape(*blocks.shape[:-2], -1).swapaxes(-1, -2)

    return {
        name: {"kernel": kernel(own["blocks"], own["scales"]), "bias": own["bias"]}
        for name, own in experts.items()
    }


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
        elif kind == "gpt_oss":
            y = clamped_mixture(y, layer, config)
        elif "experts" in layer:
            y = mixture(y, layer, config, normed=config.get("norm_topk_prob", True))
        else:
            y = gated(y, layer["mlp"])
        x = x + y
    x = norm(x, "norm", params)
    head = params["head"]["kernel"] if "head" in params else params["embed"]["embedding"].T
    return x @ head


def layers_of(stack: Params) -> list[Params]:
    """The layers of a stack."""
    count = len(jax.tree.leaves(stack)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(count)]


def scaled(tree: Params) -> Params:
    """The tree with each kernel times its scales, in bfloat16, as transformers has it."""
    if not isinstance(tree, dict):
        return tree
    if "kernel" in tree and "scale" in tree:
        kernel, scales = (tree[each].astype("float32") for each in ("kernel", "scale"))
        for axis in (-2, -1):
            scales = scales.repeat(kernel.shape[axis] // scales.shape[axis], axis)
        return {"kernel": (kernel * scales).astype("bfloat16")}
    return {name: scaled(child) for name, child in tree.items()}


def divided(tree: Params, config: Config) -> Params:
    """The tree of DeepSeek with its projections divided, as that of a checkpoint in bfloat16 is."""
    own, heads = tree["layers"]["attention"], config["num_attention_heads"]
    nope, rank = config["qk_nope_head_dim"], config["kv_lora_rank"]
    q, kv = (
        kernel.reshape(*kernel.shape[:-1], heads, -1)
        for kernel in (own["q_b"]["kernel"], own["kv_b"]["kernel"])
    )
    latent, out = own["kv_a"]["kernel"], own["o"]["kernel"]
    kernels = {
        "q_nope": q[..., :nope], "q_rope": q[..., nope:], "kv_a": latent[..., :rank],
        "k_rope": latent[..., rank:], "k_nope": kv[..., :nope], "v": kv[..., nope:],
        "o": out.reshape(len(out), heads, -1, out.shape[-1]),
    }  # fmt: skip
    attention = own | {name: {"kernel": kernel} for name, kernel in kernels.items()}
    return tree | {"layers": tree["layers"] | {"attention": attention}}


def deepseek(params: Params, config: Config, tokens: jax.Array) -> jax.Array:
    """The logits of DeepSeek-V3."""
    eps, nope = config["rms_norm_eps"], config["qk_nope_head_dim"]
    size = config["qk_rope_head_dim"]
    first, moe = config["first_k_dense_replace"], layers_of(params["moe"])
    velocities, _ = inverse_frequencies(config["rope_parameters"], size)

    def norm(x: jax.Array, within: Params) -> jax.Array:
        return rms_norm(x, within["scale"], eps)

    def rotated(x: jax.Array) -> jax.Array:  # Its coordinates are pairs.
        return rotate(jnp.concatenate([x[..., 0::2], x[..., 1::2]], -1), velocities)

    x = params["embed"]["embedding"][tokens]
    for number, layer in enumerate(layers_of(params["layers"])):
        own, y = layer["attention"], norm(x, layer["attention_norm"])
        q = norm(project(y, own["q_a"], "btd,dr->btr"), own["q_a_norm"])
        latent = norm(project(y, own["kv_a"], "btd,dr->btr"), own["kv_a_norm"])
        k_rope = rotated(project(y, own["k_rope"], "btd,dk->btk")[:, :, None])
        k = project(latent, own["k_nope"], "btr,rhk->bthk")
        shared = jnp.broadcast_to(k_rope, (*k.shape[:3], size))
        q_rope = rotated(project(q, own["q_rope"], "btr,rhk->bthk"))
        q = jnp.concatenate([project(q, own["q_nope"], "btr,rhk->bthk"), q_rope], -1)
        v = project(latent, own["v"], "btr,rhk->bthk")
        mask, scale = causal(x.shape[1]), (nope + size) ** -0.5
        y = attend(q, jnp.concatenate([k, shared], -1), v, mask, scale)
        x = x + project(y, own["o"], "bthk,hkd->btd")
        y = norm(x, layer["mlp_norm"])
        if number < first:
            y = gated(y, layers_of(params["dense"])[number]["mlp"])
        else:
            y = grouped_mixture(y, moe[number - first], config)
        x = x + y
    return norm(x, params["norm"]) @ params["head"]["kernel"]


def grouped_mixture(x: jax.Array, layer: Params, config: Config) -> jax.Array:
    """The experts of DeepSeek: of some of their groups, by sigmoids, and those for all tokens."""
    scores = jax.nn.sigmoid(x @ layer["router"]["kernel"])
    biased = scores + layer["router"]["bias"]
    groups = biased.reshape(*biased.shape[:-1], config["n_group"], -1)
    _, mask = choose(jax.lax.top_k(groups, 2)[0].sum(-1), config["topk_group"])
    allowed = jnp.where(mask[..., None] > 0, groups, -jnp.inf).reshape(biased.shape)
    _, mask = choose(allowed, config["num_experts_per_tok"])
    weights = scores * mask
    if config["norm_topk_prob"]:
        weights /= weights.sum(-1, keepdims=True)
    out = jax.vmap(gated, (None, 0))(x, layer["experts"])
    routed = jnp.einsum("ebtd,bte->btd", out, weights * config["routed_scaling_factor"])
    return routed + gated(x, layer["shared"])


# ---- models with layer norms

Activation = Any
gelu = partial(jax.nn.gelu, approximate=False)
gelu_tanh = partial(jax.nn.gelu, approximate=True)


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def layer_norm(x: jax.Array, params: Params, eps: float) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return (
        x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * params["scale"]
        + params["bias"]
    )


def self_attend(
    x: jax.Array, params: Params, mask: jax.Array | None = None, to: jax.Array | None = None
) -> jax.Array:
    """Attention of x on itself, or on `to`."""
    q = project(x, params["q"], "btd,dhk->bthk")
    k, v = (project(x if to is None else to, params[each], "btd,dhk->bthk") for each in "kv")
    out = attend(q, k, v, mask, q.shape[-1] ** -0.5)
    return project(out, params["o"], "bthk,hkd->btd")


def feed_forward(x: jax.Array, params: Params, activation: Activation) -> jax.Array:
    hidden = activation(project(x, params["up"], "...d,df->...f"))
    return project(hidden, params["down"], "...f,fd->...d")


def blocks(
    x: jax.Array, stack: Params, eps: float, activation: Activation, *,
    mask: jax.Array | None = None, to: jax.Array | None = None,
) -> jax.Array:  # fmt: skip
    """Layers whose norms come first."""
    for layer in layers_of(stack):
        x = x + self_attend(layer_norm(x, layer["attention_norm"], eps), layer["attention"], mask)
        if to is not None:
            x = x + self_attend(layer_norm(x, layer["cross_norm"], eps), layer["cross"], None, to)
        x = x + feed_forward(layer_norm(x, layer["mlp_norm"], eps), layer["mlp"], activation)
    return x


def gpt2(params: Params, config: Config, tokens: jax.Array) -> jax.Array:
    x = params["embed"]["embedding"][tokens] + params["positions"]["embedding"][: tokens.shape[1]]
    eps = config["layer_norm_epsilon"]
    x = blocks(x, params["layers"], eps, gelu_tanh, mask=causal(tokens.shape[1]))
    return layer_norm(x, params["norm"], eps) @ params["embed"]["embedding"].T


def bert(params: Params, config: Config, tokens: jax.Array) -> jax.Array:
    """The logits of the words that are masked."""
    eps, embedding = config["layer_norm_eps"], params["embed"]["embedding"]
    x = embedding[tokens] + params["positions"]["embedding"][: tokens.shape[1]]
    x = layer_norm(x + params["types"]["embedding"][0], params["embed_norm"], eps)
    for layer in layers_of(params["layers"]):
        x = layer_norm(x + self_attend(x, layer["attention"]), layer["attention_norm"], eps)
        x = layer_norm(x + feed_forward(x, layer["mlp"], gelu), layer["mlp_norm"], eps)
    own = params["masked"]
    x = layer_norm(gelu(project(x, own["dense"], "btd,de->bte")), own["norm"], eps)
    return x @ embedding.T + own["bias"]


def patches(images: jax.Array, params: Params) -> jax.Array:
    """The embeddings of the patches of images [b, c, y, x]."""
    kernel = params["kernel"]
    out = jax.lax.conv_general_dilated(
        images, kernel, kernel.shape[:2], "VALID", dimension_numbers=("NCHW", "HWIO", "NHWC")
    )
    out = out.reshape(len(out), -1, out.shape[-1])
    return out + params["bias"] if "bias" in params else out


def with_class(x: jax.Array, token: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, len(token))), x], 1)


def vit(params: Params, config: Config, images: jax.Array) -> jax.Array:
    eps = config["layer_norm_eps"]
    x = with_class(patches(images, params["patches"]), params["class_token"]) + params["positions"]
    x = layer_norm(blocks(x, params["layers"], eps, gelu), params["norm"], eps)
    return project(x[:, 0], params["head"], "bd,dl->bl")


def clip(params: Params, config: Config, tokens: jax.Array, images: jax.Array) -> list[jax.Array]:
    """The logits of texts for each image, and the embeddings of the texts."""
    text, vision, eps = params["text"], params["vision"], 1e-5
    x = text["embed"]["embedding"][tokens] + text["positions"]["embedding"][: tokens.shape[1]]
    x = blocks(x, text["layers"], eps, quick_gelu, mask=causal(tokens.shape[1]))
    x = layer_norm(x, text["norm"], eps)
    ends = jnp.argmax(tokens == config["text_config"]["eos_token_id"], -1)
    of_texts = x[jnp.arange(len(x)), ends] @ text["projection"]["kernel"]
    y = with_class(patches(images, vision["patches"]), vision["class_token"])
    y = layer_norm(y + vision["positions"]["embedding"], vision["pre_norm"], eps)
    y = blocks(y, vision["layers"], eps, quick_gelu)[:, 0]
    of_images = layer_norm(y, vision["norm"], eps) @ vision["projection"]["kernel"]
    of_texts, of_images = (
        each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (of_texts, of_images)
    )
    return [of_images @ of_texts.T * jnp.exp(params["logit_scale"]), of_texts]


def whisper(params: Params, config: Config, sound: jax.Array, tokens: jax.Array) -> jax.Array:
    encoder, decoder = params["encoder"], params["decoder"]
    x = sound
    for number, name in enumerate(("conv_1", "conv_2"), 1):
        own = encoder[name]
        x = jax.lax.conv_general_dilated(
            x, own["kernel"], (number,), [(1, 1)], dimension_numbers=("NCH", "HIO", "NCH")
        )
        x = gelu(x + own["bias"][:, None])
    x = x.transpose(0, 2, 1) + encoder["positions"]["embedding"]
    x = layer_norm(blocks(x, encoder["layers"], 1e-5, gelu), encoder["norm"], 1e-5)
    embedding = params["embed"]["embedding"]
    y = embedding[tokens] + decoder["positions"]["embedding"][: tokens.shape[1]]
    y = blocks(y, decoder["layers"], 1e-5, gelu, mask=causal(tokens.shape[1]), to=x)
    return layer_norm(y, decoder["norm"], 1e-5) @ embedding.T


# ---- T5 and ResNet


def t5(params: Params, config: Config, words: jax.Array, tokens: jax.Array) -> jax.Array:
    embedding = params["embed"]["embedding"]
    memory = t5_side(params["encoder"], config, embedding[words], None)
    x = t5_side(params["decoder"], config, embedding[tokens], memory)
    scale = config["d_model"] ** -0.5 if config.get("scale_decoder_outputs", True) else 1.0
    return x * scale @ embedding.T


def t5_side(params: Params, config: Config, x: jax.Array, memory: jax.Array | None) -> jax.Array:
    """The encoder, or with a memory of it the decoder."""
    eps, length = config["layer_norm_epsilon"], x.shape[1]
    back = jnp.arange(length) - jnp.arange(length)[:, None]
    count = config["relative_attention_num_buckets"]
    if memory is None:
        half, count = jnp.where(back > 0, count // 2, 0), count // 2
        back = jnp.abs(back)
    else:
        half, back = 0, -jnp.minimum(back, 0)
    exact = count // 2
    far = jnp.log(jnp.maximum(back, 1) / exact) / math.log(
        config["relative_attention_max_distance"] / exact
    )
    large = jnp.minimum(exact + (far * (count - exact)).astype(int), count - 1)
    bias = params["relative_bias"]["embedding"][half + jnp.where(back < exact, back, large)]
    bias = bias.transpose(2, 0, 1)
    if memory is not None:
        bias = jnp.where(causal(length), bias, -jnp.inf)

    def attended(x: jax.Array, own: Params, to: jax.Array, bias: jax.Array | float) -> jax.Array:
        q = project(x, own["q"], "btd,dhk->bthk")
        k, v = (project(to, own[each], "btd,dhk->bthk") for each in "kv")
        weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k) + bias)
        return project(jnp.einsum("bhts,bshk->bthk", weights, v), own["o"], "bthk,hkd->btd")

    for layer in layers_of(params["layers"]):
        y = rms_norm(x, layer["attention_norm"]["scale"], eps)
        x = x + attended(y, layer["attention"], y, bias)
        if memory is not None:
            y = rms_norm(x, layer["cross_norm"]["scale"], eps)
            x = x + attended(y, layer["cross"], memory, 0.0)
        y = rms_norm(x, layer["mlp_norm"]["scale"], eps)
        is_gated = "gate" in layer["mlp"]
        x = x + (
            gated(y, layer["mlp"], gelu_tanh) if is_gated
            else feed_forward(y, layer["mlp"], jax.nn.relu)
        )  # fmt: skip
    return rms_norm(x, params["norm"]["scale"], eps)


def convolved(x: jax.Array, params: Params, stride: int = 1) -> jax.Array:
    """A convolution and its batch norm, for x [b, y, x, c]."""
    kernel, norm = params["kernel"], params["norm"]
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    x = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (x - norm["mean"]) * jax.lax.rsqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]


def resnet(params: Params, config: Config, images: jax.Array) -> jax.Array:
    x = jax.nn.relu(convolved(images.transpose(0, 2, 3, 1), params["stem"], 2))
    padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    for stage in range(len(config["depths"])):
        for block in range(config["depths"][stage]):
            own = params[f"stage_{stage}"][f"block_{block}"]
            stride, y = 2 if stage > 0 and block == 0 else 1, x
            convolutions = sorted(name for name in own if name != "shortcut")
            for number, name in enumerate(convolutions):
                at = 1 if len(convolutions) == 3 else 0
                y = convolved(y, own[name], stride if number == at else 1)
                y = y if name == convolutions[-1] else jax.nn.relu(y)
            x = jax.nn.relu(y + (convolved(x, own["shortcut"], stride) if "shortcut" in own else x))
    return project(x.mean((1, 2)), params["head"], "bd,dl->bl")
