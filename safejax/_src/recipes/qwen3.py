"""Qwen3, whose queries and keys are normalized head by head; and Qwen3-MoE, with experts."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def qwen3(config: Config) -> blocks.Table:
    """The table of a Qwen3."""
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    rows = [*_attention(config, layer), *blocks.gated_mlp(f"{layer}mlp.", "layers.mlp.")]
    sizes = {**blocks.grouped_heads(config), **config.sizes(mlp="intermediate_size")}
    return blocks.decoder(config, rows, sizes)


def qwen3_moe(config: Config) -> blocks.Table:
    """The table of a Qwen3-MoE, all of whose layers have experts."""
    if config.items("mlp_only_layers"):
        raise config.refuse("mlp_only_layers", "experts in all layers")
    if config.size("decoder_sparse_step", 1) != 1:
        raise config.refuse("decoder_sparse_step", "experts in all layers")
    layer = blocks.decoder_prefix(config) + "layers.{layer}."
    expert = f"{layer}mlp.experts.{{expert}}."
    rows = [
        *_attention(config, layer),
        *blocks.dense(f"{layer}mlp.gate", "layers.router", "expert embed", bias=False),
        *blocks.gated_mlp(expert, "layers.experts.", mlp="expert_mlp"),
    ]
    sizes = config.sizes(expert="num_experts", expert_mlp="moe_intermediate_size")
    sizes |= config.sizes(expert="num_local_experts")  # Newer versions call it so.
    return blocks.decoder(config, rows, {**blocks.grouped_heads(config), **sizes})


def _attention(config: Config, layer: str) -> blocks.Rows:
    bias = "qkvo" if config.flag("attention_bias", False) else ""
    their, our = f"{layer}self_attn.", "layers.attention."
    return [
        *blocks.pre_norms(layer),
        *blocks.grouped_attention(their, our, bias=bias, norms=True),
    ]
