"""BERT, with its pooler and the heads of its tasks, where they are there."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_HEADS = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}


def bert(config: Config) -> blocks.Table:
    """The table of a BERT."""
    prefix = config.prefix("bert.", "embeddings.word_embeddings.weight")
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer.{{layer}}."
    words = f"{embeddings}word_embeddings.weight"
    rows: blocks.Rows = [
        (words, "embed.embedding", "vocab embed"),
        (f"{embeddings}position_embeddings.weight", "positions.embedding", "position embed"),
        (f"{embeddings}token_type_embeddings.weight", "types.embedding", "type embed"),
        *_norm(config, f"{embeddings}LayerNorm", "embed_norm"),
        *blocks.attention(f"{layer}attention.", "layers.attention.", _HEADS),
        *_norm(config, f"{layer}attention.output.LayerNorm", "layers.attention_norm"),
        *blocks.dense(f"{layer}intermediate.dense", "layers.mlp.up", "mlp embed"),
        *blocks.dense(f"{layer}output.dense", "layers.mlp.down", "embed mlp"),
        *_norm(config, f"{layer}output.LayerNorm", "layers.mlp_norm"),
        *_optional(blocks.dense(f"{prefix}pooler.dense", "pooler", "_out _in")),
        *_optional(blocks.dense("cls.predictions.transform.dense", "masked.dense", "_out _in")),
        *_optional(_norm(config, "cls.predictions.transform.LayerNorm", "masked.norm")),
        ("cls.predictions.bias?", "masked.bias", "vocab"),
        # The head is tied to the embedding. Older versions have stored it as well.
        ("cls.predictions.decoder.weight?", "masked.kernel", "vocab embed -> embed vocab"),
        ("cls.predictions.decoder.bias?", "masked.decoder_bias", "vocab"),
        *_optional(blocks.dense("cls.seq_relationship", "next_sentence", "_out embed")),
        *_optional(blocks.dense("classifier", "classifier", "_out embed")),
        *_optional(blocks.dense("qa_outputs", "answer", "_out embed")),
        (f"{embeddings}position_ids?", None),
    ]
    sizes = config.sizes(
        vocab="vocab_size", embed="hidden_size", layer="num_hidden_layers",
        mlp="intermediate_size", position="max_position_embeddings", type="type_vocab_size",
    )  # fmt: skip
    return blocks.Table(rows, {"heads": config.size("num_attention_heads", 12), **sizes})


def _norm(config: Config, their: str, our: str) -> blocks.Rows:
    """A norm, whose parameters the first checkpoints call gamma and beta."""
    if not config.names_end_in("LayerNorm.gamma"):
        return blocks.norm(their, our)
    return [(f"{their}.gamma", f"{our}.scale", "embed"), (f"{their}.beta", f"{our}.bias", "embed")]


def _optional(rows: blocks.Rows) -> blocks.Rows:
    return [(f"{theirs}?", *rest) for theirs, *rest in rows]  # pyright: ignore[reportReturnType]
