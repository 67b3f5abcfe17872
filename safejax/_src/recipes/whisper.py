"""Whisper: an encoder of spectrograms behind two convolutions, and a decoder with a tied head."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_HEADS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def whisper(config: Config) -> blocks.Table:
    """The table of a Whisper, whose encoder and decoder have the same number of heads."""
    heads = config.size("encoder_attention_heads", 6)
    if config.size("decoder_attention_heads", 6) != heads:
        raise config.refuse("decoder_attention_heads", f"encoder_attention_heads={heads} here, too")
    prefix = config.prefix("model.", "encoder.conv1.weight")
    encoder, decoder = f"{prefix}encoder.", f"{prefix}decoder."
    rows: blocks.Rows = [
        (f"{encoder}conv1.weight", "encoder.conv_1.kernel", "embed mel width -> width mel embed"),
        (f"{encoder}conv1.bias", "encoder.conv_1.bias", "embed"),
        (f"{encoder}conv2.weight", "encoder.conv_2.kernel", "embed _in width -> width _in embed"),
        (f"{encoder}conv2.bias", "encoder.conv_2.bias", "embed"),
        (f"{encoder}embed_positions.weight", "encoder.positions.embedding", "source embed"),
        (f"{decoder}embed_tokens.weight", "embed.embedding", "vocab embed"),
        (f"{decoder}embed_positions.weight", "decoder.positions.embedding", "target embed"),
        *_layers(f"{encoder}layers.{{layer}}.", "encoder.layers.", {"self": "attention"}),
        *_layers(
            f"{decoder}layers.{{decoder_layer}}.",
            "decoder.layers.",
            {"self": "attention", "encoder": "cross"},
        ),
        *blocks.norm(f"{encoder}layer_norm", "encoder.norm"),
        *blocks.norm(f"{decoder}layer_norm", "decoder.norm"),
        ("proj_out.weight?", "head.kernel", "vocab embed -> embed vocab"),
    ]
    sizes = config.sizes(
        vocab="vocab_size", embed="d_model", mel="num_mel_bins", layer="encoder_layers",
        decoder_layer="decoder_layers", source="max_source_positions",
        target="max_target_positions", mlp="encoder_ffn_dim",
    )  # fmt: skip
    return blocks.Table(rows, {"heads": heads, **sizes})


def _layers(layer: str, our: str, kinds: dict[str, str]) -> blocks.Rows:
    rows: blocks.Rows = []
    for theirs, ours in kinds.items():
        # Keys have no bias.
        rows += blocks.attention(f"{layer}{theirs}_attn.", f"{our}{ours}.", _HEADS, bias="qvo")
        rows += blocks.norm(f"{layer}{theirs}_attn_layer_norm", f"{our}{ours}_norm")
    return [
        *rows,
        *blocks.dense(f"{layer}fc1", f"{our}mlp.up", "mlp embed"),
        *blocks.dense(f"{layer}fc2", f"{our}mlp.down", "embed mlp"),
        *blocks.norm(f"{layer}final_layer_norm", f"{our}mlp_norm"),
    ]
