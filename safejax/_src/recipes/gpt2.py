"""GPT-2, whose kernels are not transposed, and whose query, key and value are one tensor."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config

_HEADS = "(heads head_dim + heads head_dim + heads head_dim)"


def gpt2(config: Config) -> blocks.Table:
    """The table of a GPT-2."""
    prefix = config.prefix("transformer.", "wte.weight")
    layer, our = f"{prefix}h.{{layer}}.", "layers."
    rows: blocks.Rows = [
        (f"{prefix}wte.weight", "embed.embedding", "vocab embed"),
        (f"{prefix}wpe.weight", "positions.embedding", "position embed"),
        *blocks.norm(f"{layer}ln_1", f"{our}attention_norm"),
        (
            f"{layer}attn.c_attn.weight",
            tuple(f"{our}attention.{each}.kernel" for each in "qkv"),
            f"embed {_HEADS} -> {', '.join(['embed heads head_dim'] * 3)}",
        ),
        (
            f"{layer}attn.c_attn.bias",
            tuple(f"{our}attention.{each}.bias" for each in "qkv"),
            f"{_HEADS} -> {', '.join(['heads head_dim'] * 3)}",
        ),
        (
            f"{layer}attn.c_proj.weight",
            f"{our}attention.o.kernel",
            "(heads head_dim) embed -> heads head_dim embed",
        ),
        (f"{layer}attn.c_proj.bias", f"{our}attention.o.bias", "embed"),
        *blocks.norm(f"{layer}ln_2", f"{our}mlp_norm"),
        (f"{layer}mlp.c_fc.weight", f"{our}mlp.up.kernel", "embed mlp"),
        (f"{layer}mlp.c_fc.bias", f"{our}mlp.up.bias", "mlp"),
        (f"{layer}mlp.c_proj.weight", f"{our}mlp.down.kernel", "mlp embed"),
        (f"{layer}mlp.c_proj.bias", f"{our}mlp.down.bias", "embed"),
        *blocks.norm(f"{prefix}ln_f", "norm"),
        ("lm_head.weight?", "head.kernel", "vocab embed -> embed vocab"),
        # Causal masks, which older versions have stored.
        (f"{prefix}h.{{_i}}.attn.bias?", None),
        (f"{prefix}h.{{_i}}.attn.masked_bias?", None),
    ]
    sizes = config.sizes(
        vocab="vocab_size", embed="n_embd", layer="n_layer", mlp="n_inner", position="n_positions"
    )
    return blocks.Table(rows, {"heads": config.size("n_head", 12), **sizes})
