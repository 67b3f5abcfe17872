"""gpt-oss: experts with biases, gate and up row by row, and sinks of attention."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_BY_TURNS = "(expert_mlp (1 + 1))"


def gpt_oss(config: Config) -> blocks.Table:
    """The table of a gpt-oss in bfloat16."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    moe, our = f"{layer}mlp.experts.", "layers.experts."
    bias = "qkvo" if config.flag("attention_bias", True) else ""
    rows: blocks.Rows = [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(f"{layer}self_attn.", "layers.attention.", bias=bias),
        (f"{layer}self_attn.sinks", "layers.attention.sinks", "heads"),
        *blocks.dense(f"{layer}mlp.router", "layers.router", "expert embed"),
        (
            f"{moe}gate_up_proj",
            (f"{our}gate.kernel", f"{our}up.kernel"),
            f"expert embed {_BY_TURNS} -> expert embed expert_mlp, expert embed expert_mlp",
        ),
        (
            f"{moe}gate_up_proj_bias",
            (f"{our}gate.bias", f"{our}up.bias"),
            f"expert {_BY_TURNS} -> expert expert_mlp, expert expert_mlp",
        ),
        (f"{moe}down_proj", f"{our}down.kernel", "expert expert_mlp embed"),
        (f"{moe}down_proj_bias", f"{our}down.bias", "expert embed"),
    ]
    sizes = config.sizes(expert="num_local_experts", expert_mlp="intermediate_size")
    return blocks.decoder(config, rows, {**blocks.grouped_heads(config), **sizes})
