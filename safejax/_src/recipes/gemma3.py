"""Gemma 3, with norms before and after each part of a layer, a tied head, and images or not."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def gemma3_text(config: Config) -> blocks.Table:
    """The table of a Gemma 3 for texts alone."""
    return _text(config, blocks.decoder_prefix(config))


def gemma3(config: Config) -> blocks.Table:
    """The table of a Gemma 3 that sees images, too; the tree has that for texts, and more."""
    text = _text(config.part("text_config"), "language_model.model.")
    # Newer versions of transformers write the names of the encoder without a part.
    tower = "vision_tower.embeddings.patch_embedding.weight"
    vision = "vision_tower." + config.prefix("vision_model.", tower)
    embeddings, projector = f"{vision}embeddings.", "multi_modal_projector."
    of_vision: blocks.Rows = [
        (f"{embeddings}patch_embedding.weight", "vision.patches.kernel", blocks.PATCHES),
        (f"{embeddings}patch_embedding.bias", "vision.patches.bias", "embed"),
        (f"{embeddings}position_embedding.weight", "vision.positions.embedding", "position embed"),
        *blocks.vision_layers(vision, "vision."),
        *blocks.norm(f"{vision}post_layernorm", "vision.norm"),
    ]
    rows = [
        *text.rows,
        *blocks.of_part(of_vision, "vision"),
        (f"{vision}head.*?", "vision.head.*"),
        (f"{projector}mm_input_projection_weight", "projector.kernel", "vision_embed embed"),
        (f"{projector}mm_soft_emb_norm.weight", "projector.norm.scale", "vision_embed"),
    ]
    own = config.part("vision_config")
    sizes = {"vision_heads": own.size("num_attention_heads", 12)}
    sizes |= own.sizes(vision_embed="hidden_size", vision_layer="num_hidden_layers")
    return blocks.Table(rows, text.sizes | sizes)


def _text(config: Config, prefix: str) -> blocks.Table:
    layer = f"{prefix}layers.{{layer}}."
    their, our = f"{layer}self_attn.", "layers.attention."
    bias = "qkvo" if config.flag("attention_bias", False) else ""
    rows: blocks.Rows = []
    for theirs, ours in _NORMS.items():
        rows += blocks.norm(f"{layer}{theirs}", f"layers.{ours}", bias=False)
    rows += blocks.grouped_attention(their, our, bias=bias, norms=True)
    rows += blocks.gated_mlp(f"{layer}mlp.", "layers.mlp.")
    # A part of a configuration omits what is a default.
    sizes = {**blocks.grouped_heads(config, 8, 4), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes, tied=True, prefix=prefix)
