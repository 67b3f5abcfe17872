"""gpt-oss: experts with biases, gate and up row by row, and sinks of attention."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_BY_TURNS = "(expert_mlp (1 + 1))"


def gpt_oss(config: Config) -> blocks.Table:
    """The table of a gpt-oss, whose experts are in bfloat16 or, as blocks and scales, in MXFP4."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    moe, our = f"{layer}mlp.experts.", "layers.experts."
    bias = "qkvo" if config.flag("attention_bias", True) else ""
    rows: blocks.Rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention.", bias=bias),
        (f"{layer}self_attn.sinks", "layers.attention.sinks", "heads"),
        *blocks.dense(f"{layer}mlp.router", "layers.router", "expert embed"),
        *(_packed if config.names_end_in("gate_up_proj_blocks") else _kernels)(moe, our),
        (
            f"{moe}gate_up_proj_bias",
            (f"{our}gate.bias", f"{our}up.bias"),
            f"expert {_BY_TURNS} -> expert expert_mlp, expert expert_mlp",
        ),
        (f"{moe}down_proj_bias", f"{our}down.bias", "expert embed"),
    ]
    sizes = config.sizes(expert="num_local_experts", expert_mlp="intermediate_size")
    return blocks.decoder(config, rows, {**blocks.grouped_heads(config), **sizes})


def _kernels(moe: str, our: str) -> blocks.Rows:
    return [
        (
            f"{moe}gate_up_proj",
            (f"{our}gate.kernel", f"{our}up.kernel"),
            f"expert embed {_BY_TURNS} -> expert embed expert_mlp, expert embed expert_mlp",
        ),
        (f"{moe}down_proj", f"{our}down.kernel", "expert expert_mlp embed"),
    ]


def _packed(moe: str, our: str) -> blocks.Rows:
    """Kernels that are not transposed: 16 bytes, two numbers in each, have a scale."""
    rows: blocks.Rows = []
    for each, last in {"blocks": " block byte", "scales": " block"}.items():
        gate_up = f"expert expert_mlp{last}"
        rows += [
            (
                f"{moe}gate_up_proj_{each}",
                (f"{our}gate.{each}", f"{our}up.{each}"),
                f"expert {_BY_TURNS}{last} -> {gate_up}, {gate_up}",
            ),
            (f"{moe}down_proj_{each}", f"{our}down.{each}", f"expert embed mlp_{last.strip()}"),
        ]
    return rows
