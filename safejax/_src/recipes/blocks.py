"""Rows that families share: attention, feed-forward layers, norms, and a decoder around layers."""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias, final

from safejax._src.recipes.config import Config
from safejax._src.transforms.correspond import RowArgument

Rows: TypeAlias = list[RowArgument]


@final
class Table(NamedTuple):
    """The rows of a family's table, and the sizes of axes that its configuration gives.

    `renamed` are patterns of names and what they become before.
    """

    rows: Rows
    sizes: dict[str, int]
    renamed: Mapping[str, str] = MappingProxyType({})


_GROUPED: Final = {"q": "heads", "k": "kv_heads", "v": "kv_heads"}
PATCHES: Final = "embed channel height width -> height width channel embed"
"""The axes of the convolution that embeds patches of images."""
_WORD: Final = re.compile(r"[^\W\d]\w*")


def grouped_attention(their: str, our: str, *, bias: str = "", norms: bool = False) -> Rows:
    """The projections `q_proj`, `k_proj`, `v_proj` and `o_proj`, with fewer heads for the keys.

    `bias` has the letters of those with a bias, as in `"qkv"`. With `norms`, queries and keys are
    normalized head by head.
    """
    rows: Rows = []
    for each, heads in _GROUPED.items():
        name, axes = f"{their}{each}_proj", f"{heads} head_dim"
        rows.append((f"{name}.weight", f"{our}{each}.kernel", f"({axes}) embed -> embed {axes}"))
        if each in bias:
            rows.append((f"{name}.bias", f"{our}{each}.bias", f"({axes}) -> {axes}"))
    for each in "qk" if norms else "":
        rows.append((f"{their}{each}_norm.weight", f"{our}{each}_norm.scale", "head_dim"))
    axes = "embed (heads head_dim) -> heads head_dim embed"
    rows.append((f"{their}o_proj.weight", f"{our}o.kernel", axes))
    if "o" in bias:
        rows.append((f"{their}o_proj.bias", f"{our}o.bias", "embed"))
    return rows


def grouped_heads(
    config: Config, heads: int | None = None, kv_heads: int | None = None
) -> dict[str, int]:
    """The numbers of heads, which may have defaults, and their size if it is given."""
    heads = config.size("num_attention_heads", heads)
    kv_heads = config.size("num_key_value_heads", kv_heads or heads)
    return {"heads": heads, "kv_heads": kv_heads, **config.sizes(head_dim="head_dim")}


def attention(their: str, our: str, names: Mapping[str, str], *, bias: str = "qkvo") -> Rows:
    """The projections of an attention in which all heads are alike.

    `names` are those of `q`, `k`, `v` and `o`; `bias` has the letters of those with a bias.
    """
    rows: Rows = []
    for each, name in names.items():
        axes = (
            "(heads head_dim) embed -> embed heads head_dim",
            "(heads head_dim) -> heads head_dim",
        )
        if each == "o":
            axes = ("embed (heads head_dim) -> heads head_dim embed", "embed")
        rows.append((f"{their}{name}.weight", f"{our}{each}.kernel", axes[0]))
        if each in bias:
            rows.append((f"{their}{name}.bias", f"{our}{each}.bias", axes[1]))
    return rows


def dense(their: str, our: str, axes: str, *, bias: bool = True, scales: bool = False) -> Rows:
    """A linear layer with the axes `"out in"`: its kernel is transposed.

    With `scales`, each block of the kernel has one.
    """
    out, into = axes.split()
    rows: Rows = [(f"{their}.weight", f"{our}.kernel", f"{out} {into} -> {into} {out}")]
    if scales:
        of_blocks = f"{out}_block {into}_block -> {into}_block {out}_block"
        rows.append((f"{their}.weight_scale_inv", f"{our}.scale", of_blocks))
    return [*rows, (f"{their}.bias", f"{our}.bias", out)] if bias else rows


def norm(their: str, our: str, *, bias: bool = True) -> Rows:
    """A norm, with a scale and, if it has one, a bias."""
    rows: Rows = [(f"{their}.weight", f"{our}.scale", "embed")]
    return [*rows, (f"{their}.bias", f"{our}.bias", "embed")] if bias else rows


def gated_mlp(
    their: str, our: str, *, bias: bool = False, mlp: str = "mlp", scales: bool = False
) -> Rows:
    """A gated feed-forward layer: `gate_proj`, `up_proj` and `down_proj`."""
    rows: Rows = []
    for each, axes in {
        "gate": f"{mlp} embed",
        "up": f"{mlp} embed",
        "down": f"embed {mlp}",
    }.items():
        rows += dense(f"{their}{each}_proj", f"{our}{each}", axes, bias=bias, scales=scales)
    return rows


def of_part(rows: Iterable[RowArgument], part: str) -> Rows:
    """The rows of one part of a model, with the part before the names of all their axes."""
    named: Rows = []
    for theirs, ours, *axes in rows:
        theirs = (
            theirs.replace("{layer}", f"{{{part}_layer}}") if isinstance(theirs, str) else theirs
        )
        renamed = [_WORD.sub(lambda word: f"{part}_{word[0]}", each) for each in axes]
        named.append((theirs, ours, *renamed))  # pyright: ignore[reportArgumentType]
    return named


def vision_layers(their: str, our: str) -> Rows:
    """The layers of CLIP and SigLIP."""
    layer, our = f"{their}encoder.layers.{{layer}}.", f"{our}layers."
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    return [
        *norm(f"{layer}layer_norm1", f"{our}attention_norm"),
        *attention(f"{layer}self_attn.", f"{our}attention.", names),
        *norm(f"{layer}layer_norm2", f"{our}mlp_norm"),
        *dense(f"{layer}mlp.fc1", f"{our}mlp.up", "mlp embed"),
        *dense(f"{layer}mlp.fc2", f"{our}mlp.down", "embed mlp"),
    ]


def pre_norms(layer: str) -> Rows:
    """The norms in front of the attention and of the feed-forward layer of a decoder's layers."""
    return [
        *norm(f"{layer}input_layernorm", "layers.attention_norm", bias=False),
        *norm(f"{layer}post_attention_layernorm", "layers.mlp_norm", bias=False),
    ]


def decoder_prefix(config: Config) -> str:
    """What the names of a decoder begin with: nothing if it was saved without a head."""
    return config.prefix("model.", "embed_tokens.weight")


def decoder(
    config: Config,
    layers: Rows,
    sizes: Mapping[str, int],
    *,
    tied: bool = False,
    prefix: str | None = None,
) -> Table:
    """The table of a decoder: its embedding, these rows of its layers, its last norm and its head.

    A head that is tied to the embedding is not there; one that was trained apart is, whatever the
    configuration says. `tied` is what it says by default.
    """
    prefix = decoder_prefix(config) if prefix is None else prefix
    has_head = config.is_for("CausalLM") and not config.flag("tie_word_embeddings", tied)
    rows: Rows = [
        (f"{prefix}embed_tokens.weight", "embed.embedding", "vocab embed"),
        *layers,
        *norm(f"{prefix}norm", "norm", bias=False),
        (f"lm_head.weight{'' if has_head else '?'}", "head.kernel", "vocab embed -> embed vocab"),
        ("score.weight?", "score.kernel", "label embed -> embed label"),
        (f"{prefix}layers.{{_i}}.self_attn.rotary_emb.inv_freq?", None),
    ]
    common = config.sizes(vocab="vocab_size", embed="hidden_size", layer="num_hidden_layers")
    return Table(rows, {**common, **sizes})
