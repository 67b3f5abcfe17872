"""What the recipes give, computed with NumPy alone: from their tensors and their configuration."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Config = dict[str, Any]


def stacked(theirs: Tensors, count: int, name: Callable[[int], str], turn: str = "") -> Array:
    """The tensors of all layers; `turn` is T for those that are transposed."""
    return np.stack([theirs[name(i)].T if turn else theirs[name(i)] for i in range(count)])


def heads(kernels: Array, count: int) -> Array:
    """Their last axis as heads and what each of them has."""
    return kernels.reshape(*kernels.shape[:-1], count, kernels.shape[-1] // count)


def decoder(theirs: Tensors, config: Config, *, bias: str = "", norms: bool = False) -> Tensors:
    """What all decoders of Llama's kind have, without their feed-forward layers."""
    n, q = config["num_hidden_layers"], config["num_attention_heads"]
    counts = {"q": q, "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    ours = {
        "embed.embedding": theirs["model.embed_tokens.weight"],
        "norm.scale": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        ours["head.kernel"] = theirs["lm_head.weight"].T

    def layer(rest: str, turn: str = "") -> Array:
        return stacked(theirs, n, lambda i: f"model.layers.{i}.{rest}", turn)

    for each, count in counts.items():
        kernels = layer(f"self_attn.{each}_proj.weight", "T")
        ours[f"layers.attention.{each}.kernel"] = heads(kernels, count)
        if each in bias:
            biases = layer(f"self_attn.{each}_proj.bias")
            ours[f"layers.attention.{each}.bias"] = heads(biases, count)
    out = layer("self_attn.o_proj.weight", "T")
    ours["layers.attention.o.kernel"] = out.reshape(n, q, out.shape[1] // q, out.shape[2])
    if "o" in bias:
        ours["layers.attention.o.bias"] = layer("self_attn.o_proj.bias")
    if norms:
        ours["layers.attention.q_norm.scale"] = layer("self_attn.q_norm.weight")
        ours["layers.attention.k_norm.scale"] = layer("self_attn.k_norm.weight")
    ours["layers.attention_norm.scale"] = layer("input_layernorm.weight")
    ours["layers.mlp_norm.scale"] = layer("post_attention_layernorm.weight")
    return ours


def mlp(theirs: Tensors, count: int, prefix: Callable[[int], str], our: str) -> Tensors:
    """Gated feed-forward layers."""
    return {
        f"{our}{each}.kernel": np.stack(
            [theirs[f"{prefix(i)}{each}_proj.weight"].T for i in range(count)]
        )
        for each in ("gate", "up", "down")
    }


def llama(theirs: Tensors, config: Config, bias: str = "", *, norms: bool = False) -> Tensors:
    n = config["num_hidden_layers"]
    dense = mlp(theirs, n, lambda i: f"model.layers.{i}.mlp.", "layers.mlp.")
    return decoder(theirs, config, bias=bias, norms=norms) | dense


def qwen2(theirs: Tensors, config: Config) -> Tensors:
    return llama(theirs, config, "qkv")


def qwen3(theirs: Tensors, config: Config) -> Tensors:
    return llama(theirs, config, norms=True)


def gemma3(theirs: Tensors, config: Config) -> Tensors:
    n = config["num_hidden_layers"]
    norms = {
        ours: stacked(theirs, n, lambda i, name=name: f"model.layers.{i}.{name}.weight")
        for name, ours in {
            "post_attention_layernorm": "layers.attention_post_norm.scale",
            "pre_feedforward_layernorm": "layers.mlp_norm.scale",
            "post_feedforward_layernorm": "layers.mlp_post_norm.scale",
        }.items()
    }
    return llama(theirs, config, norms=True) | norms


def experts(
    theirs: Tensors, layers: range, count: int, prefix: str, names: dict[str, str]
) -> Tensors:
    """The kernels of experts, [layer, expert, in, out]; `prefix` has both numbers."""
    return {
        ours: np.array([
            [theirs[f"{prefix.format(i, j)}{name}.weight"].T for j in range(count)] for i in layers
        ])
        for name, ours in names.items()
    }


def mixtral(theirs: Tensors, config: Config) -> Tensors:
    n, moe = config["num_hidden_layers"], "block_sparse_moe."
    names = {each: f"layers.experts.{ours}.kernel"
             for each, ours in {"w1": "gate", "w3": "up", "w2": "down"}.items()}  # fmt: skip
    prefix = f"model.layers.{{}}.{moe}experts.{{}}."
    router = stacked(theirs, n, lambda i: f"model.layers.{i}.{moe}gate.weight", "T")
    return {
        **decoder(theirs, config),
        **experts(theirs, range(n), config["num_local_experts"], prefix, names),
        "layers.router.kernel": router,
    }
