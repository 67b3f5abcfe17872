"""Gemma 3, the text model: norms before and after each part of a layer, and a tied head."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def gemma3(config: Config) -> blocks.Table:
    """The table of a Gemma 3."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    bias = "qkvo" if config.flag("attention_bias", False) else ""
    rows: blocks.Rows = []
    for theirs, ours in _NORMS.items():
        rows += blocks.norm(f"{layer}{theirs}", f"layers.{ours}", bias=False)
    rows += blocks.grouped_attention(
        f"{layer}self_attn.", "layers.attention.", bias=bias, norms=True
    )
    rows += blocks.gated_mlp(f"{layer}mlp.", "layers.mlp.")
    sizes = {**blocks.grouped_heads(config), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes, tied=True)
