"""Mistral, whose layers are those of Llama with a window of attention."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def mistral(config: Config) -> blocks.Table:
    """The table of a Mistral."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention."),
        *blocks.gated_mlp(f"{layer}mlp.", "layers.mlp."),
    ]
    sizes = {**blocks.grouped_heads(config), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes)
