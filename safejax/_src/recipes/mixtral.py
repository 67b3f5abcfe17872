"""Mixtral: Mistral's layers with experts, whose weights are `w1`, `w2` and `w3`."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def mixtral(config: Config) -> blocks.Table:
    """The table of a Mixtral."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    moe, our = f"{layer}block_sparse_moe.", "layers.experts."
    expert = f"{moe}experts.{{expert}}."
    rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention."),
        *blocks.dense(f"{moe}gate", "layers.router", "expert embed", bias=False),
        *blocks.dense(f"{expert}w1", f"{our}gate", "expert_mlp embed", bias=False),
        *blocks.dense(f"{expert}w3", f"{our}up", "expert_mlp embed", bias=False),
        *blocks.dense(f"{expert}w2", f"{our}down", "embed expert_mlp", bias=False),
    ]
    sizes = config.sizes(expert="num_local_experts", expert_mlp="intermediate_size")
    return blocks.decoder(config, rows, {**blocks.grouped_heads(config), **sizes})
