"""T5: an encoder and a decoder, whose first layers have the biases of relative positions."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_HEADS = {"q": "q", "k": "k", "v": "v", "o": "o"}


def t5(config: Config) -> blocks.Table:
    """The table of a T5, with or without a gate in its feed-forward layers."""
    rows: blocks.Rows = [
        ("shared.weight", "embed.embedding", "vocab embed"),
        *_side(config, "encoder", "layer"),
        *_side(config, "decoder", "decoder_layer"),
        ("lm_head.weight?", "head.kernel", "vocab embed -> embed vocab"),
        # The same as the shared embedding, which older versions have stored as well.
        ("encoder.embed_tokens.weight?", None),
        ("decoder.embed_tokens.weight?", None),
        # What the first checkpoints have, and no model uses.
        ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight?", None),
    ]
    sizes = config.sizes(
        vocab="vocab_size", embed="d_model", head_dim="d_kv", mlp="d_ff",
        bucket="relative_attention_num_buckets",
    )  # fmt: skip
    layers = config.size("num_layers", 6)
    sizes |= {"layer": layers, "decoder_layer": config.size("num_decoder_layers", layers)}
    return blocks.Table(rows, {"heads": config.size("num_heads", 8), **sizes})


def _side(config: Config, side: str, layer: str) -> blocks.Rows:
    block, our = f"{side}.block.{{{layer}}}.layer.", f"{side}.layers."
    relative = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows: blocks.Rows = [
        (relative, f"{side}.relative_bias.embedding", "bucket heads"),
        *blocks.attention(f"{block}0.SelfAttention.", f"{our}attention.", _HEADS, bias=""),
        *blocks.norm(f"{block}0.layer_norm", f"{our}attention_norm", bias=False),
    ]
    last = 1
    if side == "decoder":
        last = 2
        rows += blocks.attention(f"{block}1.EncDecAttention.", f"{our}cross.", _HEADS, bias="")
        rows += blocks.norm(f"{block}1.layer_norm", f"{our}cross_norm", bias=False)
    mlp = f"{block}{last}.DenseReluDense."
    is_gated = config.has("feed_forward_proj") and "gated" in config.text("feed_forward_proj")
    for theirs, ours in {"wi_0": "gate", "wi_1": "up"}.items() if is_gated else [("wi", "up")]:
        rows += blocks.dense(f"{mlp}{theirs}", f"{our}mlp.{ours}", "mlp embed", bias=False)
    return [
        *rows,
        *blocks.dense(f"{mlp}wo", f"{our}mlp.down", "embed mlp", bias=False),
        *blocks.norm(f"{block}{last}.layer_norm", f"{our}mlp_norm", bias=False),
        *blocks.norm(f"{side}.final_layer_norm", f"{side}.norm", bias=False),
    ]
