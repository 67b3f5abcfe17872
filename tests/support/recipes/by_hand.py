"""What the recipes give, computed with NumPy alone: from their tensors and their configuration."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Config = dict[str, Any]


def stacked(theirs: Tensors, count: int, name: Callable[[int], str], turn: str = "") -> Array:
    """The tensors of all layers; `turn` is T for those that are transposed."""
    return np.stack([theirs[name(i)].T if turn else theirs[name(i)] for i in range(count)])


def heads(kernels: Array, count: int) -> Array:
    """Their last axis as heads and what each of them has."""
    return kernels.reshape(*kernels.shape[:-1], count, kernels.shape[-1] // count)


def decoder(theirs: Tensors, config: Config, *, bias: str = "", norms: bool = False) -> Tensors:
    """What all decoders of Llama's kind have, without their feed-forward layers."""
    n, q = config["num_hidden_layers"], config["num_attention_heads"]
    counts = {"q": q, "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    ours = {
        "embed.embedding": theirs["model.embed_tokens.weight"],
        "norm.scale": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        ours["head.kernel"] = theirs["lm_head.weight"].T

    def layer(rest: str, turn: str = "") -> Array:
        return stacked(theirs, n, lambda i: f"model.layers.{i}.{rest}", turn)

    for each, count in counts.items():
        kernels = layer(f"self_attn.{each}_proj.weight", "T")
        ours[f"layers.attention.{each}.kernel"] = heads(kernels, count)
        if each in bias:
            biases = layer(f"self_attn.{each}_proj.bias")
            ours[f"layers.attention.{each}.bias"] = heads(biases, count)
    out = layer("self_attn.o_proj.weight", "T")
    ours["layers.attention.o.kernel"] = out.reshape(n, q, out.shape[1] // q, out.shape[2])
    if "o" in bias:
        ours["layers.attention.o.bias"] = layer("self_attn.o_proj.bias")
    if norms:
        ours["layers.attention.q_norm.scale"] = layer("self_attn.q_norm.weight")
        ours["layers.attention.k_norm.scale"] = layer("self_attn.k_norm.weight")
    ours["layers.attention_norm.scale"] = layer("input_layernorm.weight")
    ours["layers.mlp_norm.scale"] = layer("post_attention_layernorm.weight")
    return ours


def mlp(theirs: Tensors, count: int, prefix: Callable[[int], str], our: str) -> Tensors:
    """Gated feed-forward layers."""
    return {
        f"{our}{each}.kernel": np.stack(
            [theirs[f"{prefix(i)}{each}_proj.weight"].T for i in range(count)]
        )
        for each in ("gate", "up", "down")
    }


def llama(theirs: Tensors, config: Config, bias: str = "", *, norms: bool = False) -> Tensors:
    n = config["num_hidden_layers"]
    dense = mlp(theirs, n, lambda i: f"model.layers.{i}.mlp.", "layers.mlp.")
    return decoder(theirs, config, bias=bias, norms=norms) | dense


def qwen2(theirs: Tensors, config: Config) -> Tensors:
    return llama(theirs, config, "qkv")


def qwen3(theirs: Tensors, config: Config) -> Tensors:
    return llama(theirs, config, norms=True)


def gemma3(theirs: Tensors, config: Config) -> Tensors:
    n = config["num_hidden_layers"]
    norms = {
        ours: stacked(theirs, n, lambda i, name=name: f"model.layers.{i}.{name}.weight")
        for name, ours in {
            "post_attention_layernorm": "layers.attention_post_norm.scale",
            "pre_feedforward_layernorm": "layers.mlp_norm.scale",
            "post_feedforward_layernorm": "layers.mlp_post_norm.scale",
        }.items()
    }
    return llama(theirs, config, norms=True) | norms


def experts(
    theirs: Tensors, layers: range, count: int, prefix: str, names: dict[str, str]
) -> Tensors:
    """The kernels of experts, [layer, expert, in, out]; `prefix` has both numbers."""
    return {
        ours: np.array(
            [
                [theirs[f"{prefix.format(i, j)}{name}.weight"].T for j in range(count)]
                for i in layers
            ]
        )
        for name, ours in names.items()
    }


def mixtral(theirs: Tensors, config: Config) -> Tensors:
    n, moe = config["num_hidden_layers"], "block_sparse_moe."
    names = {each: f"layers.experts.{ours}.kernel"
             for each, ours in {"w1": "gate", "w3": "up", "w2": "down"}.items()}  # fmt: skip
    prefix = f"model.layers.{{}}.{moe}experts.{{}}."
    router = stacked(theirs, n, lambda i: f"model.layers.{i}.{moe}gate.weight", "T")
    return {
        **decoder(theirs, config),
        **experts(theirs, range(n), config["num_local_experts"], prefix, names),
        "layers.router.kernel": router,
    }


def qwen3_moe(theirs: Tensors, config: Config) -> Tensors:
    n = config["num_hidden_layers"]
    names = {f"{each}_proj": f"layers.experts.{each}.kernel" for each in ("gate", "up", "down")}
    prefix, count = "model.layers.{}.mlp.experts.{}.", config["num_local_experts"]
    router = stacked(theirs, n, lambda i: f"model.layers.{i}.mlp.gate.weight", "T")
    return {
        **decoder(theirs, config, norms=True),
        **experts(theirs, range(n), count, prefix, names),
        "layers.router.kernel": router,
    }


def gpt_oss(theirs: Tensors, config: Config) -> Tensors:
    def layer(rest: str) -> Array:
        n = config["num_hidden_layers"]
        return stacked(theirs, n, lambda i: f"model.layers.{i}.{rest}")

    bias = layer("mlp.experts.gate_up_proj_bias")
    if "model.layers.0.mlp.experts.down_proj" in theirs:
        gate_up = layer("mlp.experts.gate_up_proj")
        kernels = {
            "layers.experts.gate.kernel": gate_up[..., 0::2],
            "layers.experts.up.kernel": gate_up[..., 1::2],
            "layers.experts.down.kernel": layer("mlp.experts.down_proj"),
        }
    else:
        kernels = {}
        for each in ("blocks", "scales"):
            gate_up = layer(f"mlp.experts.gate_up_proj_{each}")
            kernels[f"layers.experts.gate.{each}"] = gate_up[:, :, 0::2]
            kernels[f"layers.experts.up.{each}"] = gate_up[:, :, 1::2]
            kernels[f"layers.experts.down.{each}"] = layer(f"mlp.experts.down_proj_{each}")
    return {
        **decoder(theirs, config, bias="qkvo"),
        "layers.attention.sinks": layer("self_attn.sinks"),
        "layers.router.kernel": layer("mlp.router.weight").transpose(0, 2, 1),
        "layers.router.bias": layer("mlp.router.bias"),
        **kernels,
        "layers.experts.gate.bias": bias[..., 0::2],
        "layers.experts.up.bias": bias[..., 1::2],
        "layers.experts.down.bias": layer("mlp.experts.down_proj_bias"),
    }


def of_deepseek(theirs: Tensors, config: Config) -> Tensors:
    """What is not in FP8, if others are."""
    n, first = config["num_hidden_layers"], config["first_k_dense_replace"]

    def layer(rest: str) -> Array:
        return stacked(theirs, n, lambda i: f"model.layers.{i}.{rest}.weight")

    gates = [f"model.layers.{i}.mlp.gate." for i in range(first, n)]
    return {
        "embed.embedding": theirs["model.embed_tokens.weight"],
        "norm.scale": theirs["model.norm.weight"],
        "head.kernel": theirs["lm_head.weight"].T,
        "layers.attention_norm.scale": layer("input_layernorm"),
        "layers.mlp_norm.scale": layer("post_attention_layernorm"),
        "layers.attention.q_a_norm.scale": layer("self_attn.q_a_layernorm"),
        "layers.attention.kv_a_norm.scale": layer("self_attn.kv_a_layernorm"),
        "moe.router.kernel": np.stack([theirs[f"{at}weight"].T for at in gates]),
        "moe.router.bias": np.stack([theirs[f"{at}e_score_correction_bias"] for at in gates]),
    }


def deepseek_v3(theirs: Tensors, config: Config) -> Tensors:
    n, first, q = (
        config[key] for key in ("num_hidden_layers", "first_k_dense_replace", "num_attention_heads")
    )
    nope, rank = config["qk_nope_head_dim"], config["kv_lora_rank"]

    def kernels(name: str) -> Array:
        return stacked(theirs, n, lambda i: f"model.layers.{i}.self_attn.{name}.weight", "T")

    queries, both = heads(kernels("q_b_proj"), q), heads(kernels("kv_b_proj"), q)
    latent, out = kernels("kv_a_proj_with_mqa"), kernels("o_proj")
    names = {f"{each}_proj": f"moe.experts.{each}.kernel" for each in ("gate", "up", "down")}
    prefix, count = "model.layers.{}.mlp.experts.{}.", config["n_routed_experts"]

    def shared(i: int) -> str:
        return f"model.layers.{i + first}.mlp.shared_experts."

    return {
        **of_deepseek(theirs, config),
        "layers.attention.q_a.kernel": kernels("q_a_proj"),
        "layers.attention.q_nope.kernel": queries[..., :nope],
        "layers.attention.q_rope.kernel": queries[..., nope:],
        "layers.attention.kv_a.kernel": latent[..., :rank],
        "layers.attention.k_rope.kernel": latent[..., rank:],
        "layers.attention.k_nope.kernel": both[..., :nope],
        "layers.attention.v.kernel": both[..., nope:],
        "layers.attention.o.kernel": out.reshape(n, q, -1, out.shape[-1]),
        **mlp(theirs, first, lambda i: f"model.layers.{i}.mlp.", "dense.mlp."),
        **mlp(theirs, n - first, shared, "moe.shared."),
        **experts(theirs, range(first, n), count, prefix, names),
    }


def deepseek_v3_in_fp8(theirs: Tensors, config: Config) -> Tensors:
    n, first = config["num_hidden_layers"], config["first_k_dense_replace"]
    own = {"q_a": "q_a_proj", "q_b": "q_b_proj", "kv_a": "kv_a_proj_with_mqa", "kv_b": "kv_b_proj",
           "o": "o_proj"}  # fmt: skip
    after = f"model.layers.{n}."
    further = {
        f"mtp.0.{name.removeprefix(after)}": array
        for name, array in theirs.items()
        if name.startswith(after)
    }
    ours = of_deepseek(theirs, config) | further
    kinds = {"kernel": "weight", "scale": "weight_scale_inv"}
    for each, rest in kinds.items():
        for mine, name in own.items():
            ours[f"layers.attention.{mine}.{each}"] = stacked(
                theirs, n, lambda i, at=f"{name}.{rest}": f"model.layers.{i}.self_attn.{at}", "T"
            )
        for name in ("gate", "up", "down"):
            at = f"{name}_proj.{rest}"
            ours[f"dense.mlp.{name}.{each}"] = stacked(
                theirs, first, lambda i, at=at: f"model.layers.{i}.mlp.{at}", "T"
            )
            moe = [f"model.layers.{i}.mlp." for i in range(first, n)]
            ours[f"moe.shared.{name}.{each}"] = np.stack(
                [theirs[f"{prefix}shared_experts.{at}"].T for prefix in moe]
            )
            ours[f"moe.experts.{name}.{each}"] = np.array(
                [
                    [
                        theirs[f"{prefix}experts.{j}.{at}"].T
                        for j in range(config["n_routed_experts"])
                    ]
                    for prefix in moe
                ]
            )
    return ours


def gpt2(theirs: Tensors, config: Config) -> Tensors:
    def layer(rest: str) -> Array:
        return stacked(theirs, config["n_layer"], lambda i: f"transformer.h.{i}.{rest}")

    kernels = np.split(layer("attn.c_attn.weight"), 3, -1)
    biases = np.split(layer("attn.c_attn.bias"), 3, -1)
    out = layer("attn.c_proj.weight")
    ours = {
        "embed.embedding": theirs["transformer.wte.weight"],
        "positions.embedding": theirs["transformer.wpe.weight"],
        "norm.scale": theirs["transformer.ln_f.weight"],
        "norm.bias": theirs["transformer.ln_f.bias"],
        "layers.attention.o.kernel": out.reshape(len(out), config["n_head"], -1, out.shape[-1]),
        "layers.attention.o.bias": layer("attn.c_proj.bias"),
        "layers.mlp.up.kernel": layer("mlp.c_fc.weight"),
        "layers.mlp.up.bias": layer("mlp.c_fc.bias"),
        "layers.mlp.down.kernel": layer("mlp.c_proj.weight"),
        "layers.mlp.down.bias": layer("mlp.c_proj.bias"),
    }
    for each, kernel, bias in zip("qkv", kernels, biases, strict=True):
        ours[f"layers.attention.{each}.kernel"] = heads(kernel, config["n_head"])
        ours[f"layers.attention.{each}.bias"] = heads(bias, config["n_head"])
    for name, our in {"ln_1": "attention_norm", "ln_2": "mlp_norm"}.items():
        ours[f"layers.{our}.scale"] = layer(f"{name}.weight")
        ours[f"layers.{our}.bias"] = layer(f"{name}.bias")
    return ours


def alike(
    theirs: Tensors, n: int, prefix: str, our: str, count: int, names: dict[str, str]
) -> Tensors:
    """Attention, dense layers and norms of n layers: `names` are theirs by ours.

    q, k and v are heads on the last axis, o on the first; `norm` in our name is a norm.
    """
    ours: Tensors = {}
    for mine, name in names.items():
        at = prefix + name
        weights = stacked(theirs, n, lambda i, at=at: f"{at.format(i)}.weight")
        has_bias = f"{at.format(0)}.bias" in theirs
        biases = stacked(theirs, n, lambda i, at=at: f"{at.format(i)}.bias") if has_bias else None
        if mine.endswith("norm"):
            ours[f"{our}{mine}.scale"] = weights
        else:
            kernels = weights.transpose(0, 2, 1)
            last = mine[-1]
            if last in "qkv":
                kernels = heads(kernels, count)
                biases = None if biases is None else heads(biases, count)
            elif last == "o":
                kernels = kernels.reshape(n, count, -1, kernels.shape[-1])
            ours[f"{our}{mine}.kernel"] = kernels
        if biases is not None:
            ours[f"{our}{mine}.bias"] = biases
    return ours


def plain(theirs: Tensors, names: dict[str, str]) -> Tensors:
    """Tensors by our names: kernels are transposed, others are as they are."""
    return {
        ours: theirs[name].T if ours.endswith("kernel") else theirs[name]
        for ours, name in names.items()
    }


def both(ours: str, name: str, weight: str = "kernel") -> dict[str, str]:
    """The names of a weight and a bias."""
    return {f"{ours}.{weight}": f"{name}.weight", f"{ours}.bias": f"{name}.bias"}


def bert(theirs: Tensors, config: Config) -> Tensors:
    names = {
        "attention.q": "attention.self.query", "attention.k": "attention.self.key",
        "attention.v": "attention.self.value", "attention.o": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm", "mlp.up": "intermediate.dense",
        "mlp.down": "output.dense", "mlp_norm": "output.LayerNorm",
    }  # fmt: skip
    n, at = config["num_hidden_layers"], "bert.encoder.layer.{}."
    masked = "cls.predictions."
    return {
        **alike(theirs, n, at, "layers.", config["num_attention_heads"], names),
        **plain(theirs, {
            "embed.embedding": "bert.embeddings.word_embeddings.weight",
            "positions.embedding": "bert.embeddings.position_embeddings.weight",
            "types.embedding": "bert.embeddings.token_type_embeddings.weight",
            **both("embed_norm", "bert.embeddings.LayerNorm", "scale"),
            **both("masked.dense", f"{masked}transform.dense"),
            **both("masked.norm", f"{masked}transform.LayerNorm", "scale"),
            "masked.bias": f"{masked}bias",
        }),
    }  # fmt: skip


def t5(theirs: Tensors, config: Config) -> Tensors:
    ours = {"embed.embedding": theirs["shared.weight"]}
    gated = "gated" in config["feed_forward_proj"]
    for side, count in {"encoder": "num_layers", "decoder": "num_decoder_layers"}.items():
        last = 2 if side == "decoder" else 1
        kinds = {"attention": "0.SelfAttention", "cross": "1.EncDecAttention"}
        names = {f"{mine}.{each}": f"layer.{name}.{each}"
                 for mine, name in list(kinds.items())[:last] for each in "qkvo"}  # fmt: skip
        names |= {"attention_norm": "layer.0.layer_norm", "mlp_norm": f"layer.{last}.layer_norm"}
        names |= {"cross_norm": "layer.1.layer_norm"} if last == 2 else {}
        dense = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
        for mine, name in {**dense, "down": "wo"}.items():
            names[f"mlp.{mine}"] = f"layer.{last}.DenseReluDense.{name}"
        at, our = f"{side}.block.{{}}.", f"{side}.layers."
        ours |= alike(theirs, config[count], at, our, config["num_heads"], names)
        relative = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ours[f"{side}.relative_bias.embedding"] = theirs[f"{side}.{relative}"]
        ours[f"{side}.norm.scale"] = theirs[f"{side}.final_layer_norm.weight"]
    if "lm_head.weight" in theirs:
        ours["head.kernel"] = theirs["lm_head.weight"].T
    return ours


def vit(theirs: Tensors, config: Config) -> Tensors:
    names = {
        "attention.q": "attention.attention.query", "attention.k": "attention.attention.key",
        "attention.v": "attention.attention.value", "attention.o": "attention.output.dense",
        "attention_norm": "layernorm_before", "mlp_norm": "layernorm_after",
        "mlp.up": "intermediate.dense", "mlp.down": "output.dense",
    }  # fmt: skip
    n, at = config["num_hidden_layers"], "vit.encoder.layer.{}."
    patches = "vit.embeddings.patch_embeddings.projection"
    return {
        **alike(theirs, n, at, "layers.", config["num_attention_heads"], names),
        **plain(theirs, {**both("norm", "vit.layernorm", "scale"), **both("head", "classifier")}),
        "patches.kernel": theirs[f"{patches}.weight"].transpose(2, 3, 1, 0),
        "patches.bias": theirs[f"{patches}.bias"],
        "class_token": theirs["vit.embeddings.cls_token"][0, 0],
        "positions": theirs["vit.embeddings.position_embeddings"][0],
    }


VISION = {
    **{f"attention.{each}": f"self_attn.{each}_proj" for each in "qkv"},
    "attention.o": "self_attn.out_proj", "attention_norm": "layer_norm1",
    "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2", "mlp_norm": "layer_norm2",
}  # fmt: skip


def gemma3_with_images(theirs: Tensors, config: Config) -> Tensors:
    text = {name.removeprefix("language_model."): array for name, array in theirs.items()}
    own, tower = config["vision_config"], "vision_tower."
    n, count = own["num_hidden_layers"], own["num_attention_heads"]
    kernel = theirs[f"{tower}embeddings.patch_embedding.weight"]
    projector = "multi_modal_projector."
    return {
        **gemma3(text, config["text_config"]),
        **alike(theirs, n, f"{tower}encoder.layers.{{}}.", "vision.layers.", count, VISION),
        "vision.patches.kernel": kernel.transpose(2, 3, 1, 0),
        "vision.patches.bias": theirs[f"{tower}embeddings.patch_embedding.bias"],
        "vision.positions.embedding": theirs[f"{tower}embeddings.position_embedding.weight"],
        "vision.norm.scale": theirs[f"{tower}post_layernorm.weight"],
        "vision.norm.bias": theirs[f"{tower}post_layernorm.bias"],
        "projector.kernel": theirs[f"{projector}mm_input_projection_weight"],
        "projector.norm.scale": theirs[f"{projector}mm_soft_emb_norm.weight"],
    }


def clip(theirs: Tensors, config: Config) -> Tensors:
    ours = plain(theirs, {
        "text.embed.embedding": "text_model.embeddings.token_embedding.weight",
        "text.positions.embedding": "text_model.embeddings.position_embedding.weight",
        "vision.positions.embedding": "vision_model.embeddings.position_embedding.weight",
        "vision.class_token": "vision_model.embeddings.class_embedding",
        "logit_scale": "logit_scale",
        "text.projection.kernel": "text_projection.weight",
        "vision.projection.kernel": "visual_projection.weight",
        **both("text.norm", "text_model.final_layer_norm", "scale"),
        **both("vision.pre_norm", "vision_model.pre_layrnorm", "scale"),
        **both("vision.norm", "vision_model.post_layernorm", "scale"),
    })  # fmt: skip
    patches = theirs["vision_model.embeddings.patch_embedding.weight"]
    ours["vision.patches.kernel"] = patches.transpose(2, 3, 1, 0)
    for part in ("text", "vision"):
        own, at = config[f"{part}_config"], f"{part}_model.encoder.layers.{{}}."
        n, count = own["num_hidden_layers"], own["num_attention_heads"]
        ours |= alike(theirs, n, at, f"{part}.layers.", count, VISION)
    return ours


def whisper(theirs: Tensors, config: Config) -> Tensors:
    ours = plain(theirs, {
        "embed.embedding": "model.decoder.embed_tokens.weight",
        "encoder.positions.embedding": "model.encoder.embed_positions.weight",
        "decoder.positions.embedding": "model.decoder.embed_positions.weight",
        **both("encoder.norm", "model.encoder.layer_norm", "scale"),
        **both("decoder.norm", "model.decoder.layer_norm", "scale"),
    })  # fmt: skip
    for number in (1, 2):
        conv = theirs[f"model.encoder.conv{number}.weight"]
        ours[f"encoder.conv_{number}.kernel"] = conv.transpose(2, 1, 0)
        ours[f"encoder.conv_{number}.bias"] = theirs[f"model.encoder.conv{number}.bias"]
    for side, kinds in {"encoder": ["self"], "decoder": ["self", "encoder"]}.items():
        names = {"mlp.up": "fc1", "mlp.down": "fc2", "mlp_norm": "final_layer_norm"}
        for kind in kinds:
            mine = "attention" if kind == "self" else "cross"
            names |= {f"{mine}.{each}": f"{kind}_attn.{each}_proj" for each in "qkv"}
            names |= {
                f"{mine}.o": f"{kind}_attn.out_proj",
                f"{mine}_norm": f"{kind}_attn_layer_norm",
            }
        n, count = config[f"{side}_layers"], config[f"{side}_attention_heads"]
        at = f"model.{side}.layers.{{}}."
        ours |= alike(theirs, n, at, f"{side}.layers.", count, names)
    return ours


def resnet(theirs: Tensors, config: Config) -> Tensors:
    del config
    parts = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var",
             "num_batches_tracked": "count"}  # fmt: skip
    ours = {
        "head.kernel": theirs["classifier.1.weight"].T,
        "head.bias": theirs["classifier.1.bias"],
    }
    for name, array in theirs.items():
        segments = name.split(".")
        if segments[0] == "classifier":
            continue
        place = "stem"
        if segments[1] == "encoder":
            place = f"stage_{segments[3]}.block_{segments[5]}."
            place += "shortcut" if segments[6] == "shortcut" else f"conv_{segments[7]}"
        if segments[-2] == "convolution":
            ours[f"{place}.kernel"] = array.transpose(2, 3, 1, 0)
        else:
            ours[f"{place}.norm.{parts[segments[-1]]}"] = array
    return ours
