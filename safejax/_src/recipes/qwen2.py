"""Qwen2 and Qwen2.5: Llama's layers with biases for queries, keys and values."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def qwen2(config: Config) -> blocks.Table:
    """The table of a Qwen2."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention.", bias="qkv"),
        *blocks.gated_mlp(f"{layer}mlp.", "layers.mlp."),
    ]
    sizes = {**blocks.grouped_heads(config), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes)
