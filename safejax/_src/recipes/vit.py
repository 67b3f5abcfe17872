"""ViT, whose patches are embedded by a convolution."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_HEADS = {
    "q": "attention.query", "k": "attention.key", "v": "attention.value", "o": "output.dense",
}  # fmt: skip


def vit(config: Config) -> blocks.Table:
    """The table of a ViT."""
    prefix = config.prefix("vit.", "embeddings.cls_token")
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{layer}}."
    patches = f"{embeddings}patch_embeddings.projection"
    bias = "qkvo" if config.flag("qkv_bias", True) else "o"
    rows: blocks.Rows = [
        (f"{patches}.weight", "patches.kernel", blocks.PATCHES),
        (f"{patches}.bias", "patches.bias", "embed"),
        (f"{embeddings}cls_token", "class_token", "1 1 embed -> embed"),
        (f"{embeddings}mask_token?", "mask_token", "1 1 embed -> embed"),
        (f"{embeddings}position_embeddings", "positions", "1 position embed -> position embed"),
        *blocks.norm(f"{layer}layernorm_before", "layers.attention_norm"),
        *blocks.attention(f"{layer}attention.", "layers.attention.", _HEADS, bias=bias),
        *blocks.norm(f"{layer}layernorm_after", "layers.mlp_norm"),
        *blocks.dense(f"{layer}intermediate.dense", "layers.mlp.up", "mlp embed"),
        *blocks.dense(f"{layer}output.dense", "layers.mlp.down", "embed mlp"),
        *blocks.norm(f"{prefix}layernorm", "norm"),
        (f"{prefix}pooler.dense.weight?", "pooler.kernel", "pooled embed -> embed pooled"),
        (f"{prefix}pooler.dense.bias?", "pooler.bias", "pooled"),
        ("classifier.weight?", "head.kernel", "label embed -> embed label"),
        ("classifier.bias?", "head.bias", "label"),
    ]
    sizes = config.sizes(
        embed="hidden_size", layer="num_hidden_layers", mlp="intermediate_size",
        channel="num_channels",
    )  # fmt: skip
    return blocks.Table(rows, {"heads": config.size("num_attention_heads", 12), **sizes})
