"""DeepSeek-V3: attention through latent vectors, dense layers first, then layers with experts."""

from safejax._src.recipes import blocks
from safejax._src.recipes.config import Config


def deepseek_v3(config: Config) -> blocks.Table:
    """The table of a DeepSeek-V3 in bfloat16, or in FP8 with a scale for each block of a kernel.

    What all layers have is stacked over all of them; the feed-forward layers are stacked apart,
    those of the first, dense layers, and those with experts.
    """
    scales = config.names_end_in("weight_scale_inv")
    layers = blocks.decoder_prefix(config) + "layers."
    first = config.size("first_k_dense_replace") if config.has("first_k_dense_replace") else 0
    count = config.size("num_hidden_layers")
    rows = blocks.pre_norms(f"{layers}{{layer}}.")
    sizes = config.sizes(q_rank="q_lora_rank", kv_rank="kv_lora_rank")
    if scales:
        rows += _scaled_attention(f"{layers}{{layer}}.self_attn.")
    else:
        rows += _attention(config, f"{layers}{{layer}}.self_attn.")
        sizes |= {"heads": config.size("num_attention_heads")} | config.sizes(
            nope_dim="qk_nope_head_dim", rope_dim="qk_rope_head_dim", v_dim="v_head_dim"
        )
    if first:
        rows += blocks.gated_mlp(f"{layers}{{dense}}.mlp.", "dense.mlp.", scales=scales)
        sizes |= {"dense": min(first, count), **config.sizes(mlp="intermediate_size")}
    if count > first:
        rows += _experts(f"{layers}{{moe+{first}}}.mlp.", scales)
        sizes |= {
            "moe": count - first,
            **config.sizes(expert="n_routed_experts", expert_mlp="moe_intermediate_size"),
        }
    # Layers that predict further tokens come after the last, and are none of them.
    renamed: dict[str, str] = {}
    while config.names_begin_with(f"{layers}{count + len(renamed)}."):
        ours = f"mtp.{len(renamed)}.*"
        rows.append((ours, ours))
        renamed[f"{layers}{count + len(renamed)}.*"] = ours
    return blocks.decoder(config, rows, sizes)._replace(renamed=renamed)


def _attention(config: Config, their: str) -> blocks.Rows:
    our = "layers.attention."
    bias = config.flag("attention_bias", False)
    q, into = ("q_b", "q_rank") if config.has("q_lora_rank") else ("q", "embed")
    rows: blocks.Rows = [
        (
            f"{their}{q}_proj.weight",
            (f"{our}q_nope.kernel", f"{our}q_rope.kernel"),
            f"(heads (nope_dim + rope_dim)) {into} -> {into} heads nope_dim, {into} heads rope_dim",
        ),
        (
            f"{their}kv_a_proj_with_mqa.weight",
            (f"{our}kv_a.kernel", f"{our}k_rope.kernel"),
            "(kv_rank + rope_dim) embed -> embed kv_rank, embed rope_dim",
        ),
        (f"{their}kv_a_layernorm.weight", f"{our}kv_a_norm.scale", "kv_rank"),
        (
            f"{their}kv_b_proj.weight",
            (f"{our}k_nope.kernel", f"{our}v.kernel"),
            "(heads (nope_dim + v_dim)) kv_rank -> kv_rank heads nope_dim, kv_rank heads v_dim",
        ),
        (f"{their}o_proj.weight", f"{our}o.kernel", "embed (heads v_dim) -> heads v_dim embed"),
    ]
    if config.has("q_lora_rank"):
        rows += blocks.dense(f"{their}q_a_proj", f"{our}q_a", "q_rank embed", bias=bias)
        rows.append((f"{their}q_a_layernorm.weight", f"{our}q_a_norm.scale", "q_rank"))
    if bias:
        names = (f"{our}kv_a.bias", f"{our}k_rope.bias")
        rows += [
            (f"{their}kv_a_proj_with_mqa.bias", names, "(kv_rank + rope_dim) -> kv_rank, rope_dim"),
            (f"{their}o_proj.bias", f"{our}o.bias", "embed"),
        ]
    return rows


def _scaled_attention(their: str) -> blocks.Rows:
    """Kernels that are not divided, since their blocks would be."""
    our = "layers.attention."
    rows: blocks.Rows = [
        (f"{their}q_a_layernorm.weight", f"{our}q_a_norm.scale", "q_rank"),
        (f"{their}kv_a_layernorm.weight", f"{our}kv_a_norm.scale", "kv_rank"),
    ]
    for theirs, ours, axes in (
        ("q_a_proj", "q_a", "q_rank embed"),
        ("q_b_proj", "q_b", "heads_qk q_rank"),
        ("kv_a_proj_with_mqa", "kv_a", "latent embed"),
        ("kv_b_proj", "kv_b", "heads_kv kv_rank"),
        ("o_proj", "o", "embed heads_v"),
    ):
        rows += blocks.dense(f"{their}{theirs}", f"{our}{ours}", axes, bias=False, scales=True)
    return rows


def _experts(their: str, scales: bool) -> blocks.Rows:
    experts, shared = f"{their}experts.{{expert}}.", f"{their}shared_experts."
    return [
        *blocks.dense(f"{their}gate", "moe.router", "expert embed", bias=False),
        (f"{their}gate.e_score_correction_bias", "moe.router.bias", "expert"),
        *blocks.gated_mlp(experts, "moe.experts.", mlp="expert_mlp", scales=scales),
        *blocks.gated_mlp(shared, "moe.shared.", mlp="shared_mlp", scales=scales),
    ]
