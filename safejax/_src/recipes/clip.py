"""CLIP: an encoder of texts and one of images, whose axes have names of their own."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def clip(config: Config) -> blocks.Table:
    """The table of a CLIP."""
    text, vision = "text_model.embeddings.", "vision_model.embeddings."
    of_text: blocks.Rows = [
        (f"{text}token_embedding.weight", "text.embed.embedding", "vocab embed"),
        (f"{text}position_embedding.weight", "text.positions.embedding", "position embed"),
        *blocks.vision_layers("text_model.", "text."),
        *blocks.norm("text_model.final_layer_norm", "text.norm"),
    ]
    of_vision: blocks.Rows = [
        (f"{vision}patch_embedding.weight", "vision.patches.kernel", blocks.PATCHES),
        (f"{vision}class_embedding", "vision.class_token", "embed"),
        (f"{vision}position_embedding.weight", "vision.positions.embedding", "position embed"),
        *blocks.norm("vision_model.pre_layrnorm", "vision.pre_norm"),  # It is called so.
        *blocks.vision_layers("vision_model.", "vision."),
        *blocks.norm("vision_model.post_layernorm", "vision.norm"),
    ]
    rows = [
        *blocks.of_part(of_text, "text"),
        *blocks.of_part(of_vision, "vision"),
        *blocks.dense("text_projection", "text.projection", "projection text_embed", bias=False),
        *blocks.dense(
            "visual_projection", "vision.projection", "projection vision_embed", bias=False
        ),
        ("logit_scale", "logit_scale", ""),
        (f"{text}position_ids?", None),
        (f"{vision}position_ids?", None),
    ]
    sizes = config.sizes(projection="projection_dim")
    for part, heads in {"text": 8, "vision": 12}.items():
        own = config.part(f"{part}_config")
        sizes[f"{part}_heads"] = own.size("num_attention_heads", heads)
        sizes |= own.sizes(**{f"{part}_embed": "hidden_size", f"{part}_layer": "num_hidden_layers"})
    return blocks.Table(rows, sizes)
