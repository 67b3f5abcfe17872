"""A chat model on a mesh: a checkpoint of Llama's kind, decoded greedily on 2×4 devices.

    python examples/chat.py [a folder with config.json and the weights, and tokens of a prompt]

The recipe for the family of the checkpoint gives the tree and the shardings; the model below is
written for that tree, and decodes what Llama, Qwen2 and Qwen3 are. Without an argument, a random
checkpoint is made, with the architecture of Llama 3.2 1B at an eighth of its width: the inverse of
the recipe's transform writes what transformers loads.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import safejax

AXES = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model", "embed": "data"}
"""The axes of the mesh for those of the leaves; the others are on all devices."""

# ---- the model, for one token after the other


def normalized(x, scale, eps):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps) * scale


def velocities(config, size):
    """The angular velocities of rotary embeddings."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    plain = rope.get("rope_theta", config.get("rope_theta", 1e4)) ** -(np.arange(0, size, 2) / size)
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return plain
    if kind != "llama3":
        raise ValueError(f"expected the rotary embeddings of Llama, got {kind}")
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (smooth + (1 - smooth) / rope["factor"])


def rotated(x, angles):
    one, two = jnp.split(x, 2, -1)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def attention(x, params, cache, position, config):
    """What a token sees of those before it, whose keys and values are in the cache [s, g, k]."""

    def project(name):
        out = jnp.einsum("d,dhk->hk", x, params[name]["kernel"])
        return out + params[name]["bias"] if "bias" in params[name] else out

    q, k, v = map(project, "qkv")
    if "q_norm" in params:
        eps = config["rms_norm_eps"]
        q = normalized(q, params["q_norm"]["scale"], eps)
        k = normalized(k, params["k_norm"]["scale"], eps)
    angles = position * velocities(config, k.shape[-1])
    keys, values = (
        each.at[position].set(new) for each, new in zip(cache, (rotated(k, angles), v), strict=True)
    )
    q = rotated(q, angles).reshape(k.shape[0], -1, k.shape[1])  # Several share a key.
    scores = jnp.einsum("ghk,sgk->ghs", q, keys) / np.sqrt(k.shape[-1])
    seen = jnp.where(jnp.arange(len(keys)) <= position, scores, -jnp.inf)
    out = jnp.einsum("ghs,sgk->ghk", jax.nn.softmax(seen), values)
    return jnp.einsum("hk,hkd->d", out.reshape(-1, k.shape[1]), params["o"]["kernel"]), (
        keys,
        values,
    )


def layer(x, scanned, position, config):
    params, cache = scanned
    eps = config["rms_norm_eps"]
    y = normalized(x, params["attention_norm"]["scale"], eps)
    y, cache = attention(y, params["attention"], cache, position, config)
    x = x + y
    y, mlp = normalized(x, params["mlp_norm"]["scale"], eps), params["mlp"]
    y = jax.nn.silu(y @ mlp["gate"]["kernel"]) * (y @ mlp["up"]["kernel"])
    return x + y @ mlp["down"]["kernel"], cache


def decode(params, prompt, config, count):
    """The prompt's tokens, and the `count` that the model finds the most likely after them."""
    stack, embedding = params["layers"], params["embed"]["embedding"]
    head = params["head"]["kernel"] if "head" in params else embedding.T
    layers, _, heads, size = stack["attention"]["k"]["kernel"].shape
    total = len(prompt) + count
    empty = jnp.zeros((layers, total, heads, size), embedding.dtype)

    def step(state, position):
        tokens, cache = state
        body = partial(layer, position=position, config=config)
        x, cache = jax.lax.scan(body, embedding[tokens[position]], (stack, cache))
        best = jnp.argmax(normalized(x, params["norm"]["scale"], config["rms_norm_eps"]) @ head)
        is_given = position + 1 < len(prompt)
        tokens = tokens.at[position + 1].set(jnp.where(is_given, tokens[position + 1], best))
        return (tokens, cache), None

    start = jnp.pad(prompt, (0, count)), (empty, empty)
    (tokens, _), _ = jax.lax.scan(step, start, jnp.arange(total - 1))
    return tokens


# ---- a checkpoint, if none is given

NARROW = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 8, "vocab_size": 2048, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "max_position_embeddings": 131072, "tie_word_embeddings": True,
    "rope_theta": 5e5, "dtype": "float32",
    "rope_scaling": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 5e5,
    },
}  # fmt: skip
"""The configuration of Llama 3.2 1B, with small widths."""


def write(folder):
    """Write a checkpoint with random weights to `folder`: our tree, by the recipe's inverse."""
    draw = np.random.default_rng(0).standard_normal
    count, width, mlp = (
        NARROW[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size")
    )
    heads, shared, size, vocab = (
        NARROW[key]
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    )

    def kernel(*shape, fan_in=width):
        return {"kernel": draw(shape, np.float32) / np.float32(fan_in**0.5)}

    def norm(*shape):
        return {"scale": 1 + draw(shape, np.float32) / 10}

    params = {
        "embed": {"embedding": draw((vocab, width), np.float32)},
        "layers": {
            "attention_norm": norm(count, width),
            "attention": {
                "q": kernel(count, width, heads, size),
                "k": kernel(count, width, shared, size),
                "v": kernel(count, width, shared, size),
                "o": kernel(count, heads, size, width),
            },
            "mlp_norm": norm(count, width),
            "mlp": {
                "gate": kernel(count, width, mlp),
                "up": kernel(count, width, mlp),
                "down": kernel(count, mlp, width, fan_in=mlp),
            },
        },
        "norm": norm(width),
    }
    inverse = safejax.recipes.of(NARROW).transform.inverse
    safejax.save(
        params, folder, transform=inverse, metadata={"format": "pt"}, max_shard_bytes=32 << 20
    )
    (folder / "config.json").write_text(json.dumps(NARROW))
    return folder


def main(folder=None, *prompt, count=16):
    """Load, decode, and decode again on one device."""
    folder = write(Path(tempfile.mkdtemp()) / "model") if folder is None else Path(folder)
    prompt = np.array([int(token) for token in prompt] or [1, 306, 505, 263, 1139], np.int32)
    config = json.loads((folder / "config.json").read_text())
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    recipe = safejax.recipes.of(folder)
    rules = recipe.rules(mesh, AXES)
    print(recipe)
    params = safejax.load(folder, transform=recipe.transform, sharding=rules)
    print(safejax.plan(params))
    program = jax.jit(partial(decode, config=config, count=count))
    tokens = np.asarray(program(safejax.materialize(params), prompt)).tolist()
    print(f"decoded    {tokens[len(prompt) :]}")

    again = safejax.materialize(safejax.load(folder, transform=recipe.transform))
    same = np.asarray(program(again, prompt)).tolist() == tokens
    print(f"on one device the tokens are the same: {same}")
    return tokens


if __name__ == "__main__":
    main(*sys.argv[1:])
