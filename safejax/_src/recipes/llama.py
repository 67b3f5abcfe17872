"""Llama, from the first to Llama 3, with a tied head or one of its own."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def llama(config: Config) -> blocks.Table:
    """The table of a Llama."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    bias = "qkvo" if config.flag("attention_bias", False) else ""
    rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention.", bias=bias),
        *blocks.gated_mlp(f"{layer}mlp.", "layers.mlp.", bias=config.flag("mlp_bias", False)),
    ]
    sizes = {**blocks.grouped_heads(config), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes)
