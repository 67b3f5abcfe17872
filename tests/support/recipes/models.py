"""Tiny models of transformers with random parameters, one or more for each family of recipes.

It imports torch and transformers: a test that uses it is skipped where they are missing.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file, save_file

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # What other libraries say when they are imported.
    import torch
    import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

WIDE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": 0,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 8,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 96, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 8, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
}  # fmt: skip
RESNET: dict[str, Any] = {
    "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 1], "num_labels": 12,
}  # fmt: skip
CHANNELS = {"_out": "model", "label": "data"}
HEADS = {"vocab": "model", "heads": "model", "mlp": "model", "embed": "data"}
SHARDED = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model", "embed": "data"}
WITH_EXPERTS = {
    "vocab": "model", "heads": "model", "kv_heads": "model", "expert": "model", "embed": "data",
}  # fmt: skip
WORDS = [[5, 17, 2, 80, 33, 41, 7, 60, 9], [1, 2, 3, 90, 8, 8, 71, 30, 11]]


@final
@dataclass(frozen=True)
class Case:
    """A model, by its class, its configuration, its inputs and the mesh axes of its axes."""

    model: str
    config: dict[str, Any]
    axes: dict[str, str]
    inputs: Callable[[], dict[str, torch.Tensor]]
    dtype: torch.dtype = torch.float32
    rewrite: Callable[[Path], None] | None = None
    """What is done to the checkpoint that transformers has written."""
    loading: Callable[[], dict[str, Any]] = dict
    """What it takes to load it."""

    def build(self) -> Any:
        """The model, in whose parameters and buffers no two numbers are the same."""
        torch.manual_seed(0)
        cls = getattr(transformers, self.model)
        model = cls(cls.config_class(**self.config)).eval().to(self.dtype)
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value += 0.1 * torch.randn(value.shape).to(value.dtype)
                else:
                    value += 7
        return model


def words() -> dict[str, torch.Tensor]:
    """Two sentences."""
    return {"input_ids": torch.tensor(WORDS)}


def pairs() -> dict[str, torch.Tensor]:
    """Two sentences, and what a decoder is given of two others."""
    return {**words(), "decoder_input_ids": torch.tensor(WORDS)[:, ::2]}


def images(size: int = 16) -> dict[str, torch.Tensor]:
    """Two images."""
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn((2, 3, size, size), generator=generator)}


def spectrograms() -> dict[str, torch.Tensor]:
    """Two spectrograms, and what a decoder is given of two texts."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn((2, 16, 24), generator=generator)
    return {"input_features": features, "decoder_input_ids": torch.tensor(WORDS)[:, ::2]}


LLAMA_3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


def to_mxfp4(folder: Path) -> None:
    """Replace the kernels of gpt-oss's experts by random blocks of MXFP4, as it is published."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        if name.endswith(("gate_up_proj", "down_proj")):
            count, into, out = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (count, out, into // 32, 16), dtype=torch.uint8)
            tensors[f"{name}_blocks"] = blocks
            tensors[f"{name}_scales"] = torch.randint(
                118, 124, blocks.shape[:-1], dtype=torch.uint8
            )
    save_file(tensors, path, {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}))


def to_fp8(folder: Path) -> None:
    """Replace the kernels of a DeepSeek by those in FP8, with a scale for each block of 4×4."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, kernel in list(tensors.items()):
        if name.endswith(("_proj.weight", "_proj_with_mqa.weight")):
            out, into = kernel.shape
            blocks = kernel.float().reshape(out // 4, 4, into // 4, 4)
            scales = blocks.abs().amax((1, 3), keepdim=True) / 448
            tensors[name] = (blocks / scales).reshape(out, into).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = scales[:, 0, :, 0].contiguous()
    # What predicts a further token, and is none of the layers: transformers leaves it out.
    config = json.loads((folder / "config.json").read_text())
    after = f"model.layers.{config['num_hidden_layers']}."
    tensors |= {
        f"{after}enorm.weight": torch.ones(32),
        f"{after}eh_proj.weight": torch.ones(32, 64),
    }
    first = "model.layers.0."
    copied = {after + name.removeprefix(first) for name in tensors if name.startswith(first)}
    tensors |= {name: tensors[name.replace(after, first)].clone() for name in copied}
    save_file(tensors, path, {"format": "pt"})
    path = folder / "config.json"
    own = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [4, 4]}
    path.write_text(json.dumps({**config, "quantization_config": own}))


GPT_OSS: dict[str, Any] = {
    **WIDE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    **WIDE, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
DEEPSEEK: dict[str, Any] = {
    **WIDE, "num_key_value_heads": 8, "num_hidden_layers": 4, "first_k_dense_replace": 1,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 24, "q_lora_rank": 20, "kv_lora_rank": 12,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10,
}  # fmt: skip
CASES: dict[str, Case] = {
    "llama": Case("LlamaForCausalLM", {**WIDE, "rope_parameters": LLAMA_3}, SHARDED, words),
    "llama, tied": Case(
        "LlamaForCausalLM", {**WIDE, "tie_word_embeddings": True}, SHARDED, words
    ),
    "mistral": Case(
        "MistralForCausalLM", {**WIDE, "sliding_window": 4, "head_dim": 8}, SHARDED, words
    ),
    "qwen2": Case("Qwen2ForCausalLM", {**WIDE, "tie_word_embeddings": True}, SHARDED, words),
    "qwen3": Case("Qwen3ForCausalLM", {**WIDE, "head_dim": 16}, SHARDED, words),
    "gemma3": Case("Gemma3ForCausalLM", GEMMA, SHARDED, words),
    "gemma3, images": Case(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": GEMMA, "mm_tokens_per_image": 4,
            "vision_config": {
                **PLAIN, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4,
                "vision_use_head": False,
            },
        },
        {**SHARDED, "vision_heads": "model", "vision_mlp": "model"},
        words,
    ),
    "mixtral": Case(
        "MixtralForCausalLM",
        {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
        WITH_EXPERTS,
        words,
    ),
    "qwen3-moe": Case(
        "Qwen3MoeForCausalLM",
        {
            **WIDE, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 24, "norm_topk_prob": True,
        },
        WITH_EXPERTS,
        words,
    ),
    "deepseek-v3": Case(
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        {**HEADS, "expert": "model"},
        words,
        torch.bfloat16,
    ),
    "deepseek-v3, FP8": Case(
        "DeepseekV3ForCausalLM",
        DEEPSEEK,
        {"vocab": "model", "heads_qk": "model", "expert": "model", "embed": "data"},
        words,
        torch.bfloat16,
        to_fp8,
        lambda: {
            "quantization_config": transformers.FineGrainedFP8Config(
                dequantize=True, weight_block_size=(4, 4)
            )
        },
    ),
    "gpt-oss": Case(
        "GptOssForCausalLM",
        GPT_OSS,
        WITH_EXPERTS,
        words,
        torch.bfloat16,
    ),
    "gpt-oss, MXFP4": Case(
        "GptOssForCausalLM",
        {**GPT_OSS, "hidden_size": 64, "intermediate_size": 96},
        WITH_EXPERTS,
        words,
        torch.bfloat16,
        to_mxfp4,
        lambda: {"quantization_config": transformers.Mxfp4Config(dequantize=True)},
    ),
    "gpt2": Case(
        "GPT2LMHeadModel",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 8, "n_positions": 16},
        HEADS,
        words,
    ),
    "bert": Case(
        "BertForMaskedLM",
        {**PLAIN, "vocab_size": 96, "max_position_embeddings": 16},
        HEADS,
        words,
    ),
    "t5": Case("T5ForConditionalGeneration", T5, HEADS, pairs),
    "t5, gated": Case(
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        HEADS,
        pairs,
    ),
    "vit": Case(
        "ViTForImageClassification",
        {**PLAIN, "image_size": 16, "patch_size": 4, "num_labels": 12},
        {"heads": "model", "mlp": "model", "embed": "data", "label": "model"},
        images,
    ),
    "clip": Case(
        "CLIPModel",
        {
            "projection_dim": 20,
            "text_config": {
                **PLAIN, "vocab_size": 96, "max_position_embeddings": 12, "eos_token_id": 8,
                "pad_token_id": 0,
            },
            "vision_config": {
                **PLAIN, "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
                "image_size": 16, "patch_size": 4,
            },
        },
        {
            "text_vocab": "model", "text_heads": "model", "text_mlp": "model",
            "vision_heads": "model", "vision_embed": "data", "text_embed": "data",
        },
        lambda: {"input_ids": torch.tensor(WORDS)[1:], **images()},
    ),
    "whisper": Case(
        "WhisperForConditionalGeneration",
        {
            "vocab_size": 96, "d_model": 32, "num_mel_bins": 16, "encoder_layers": 3,
            "decoder_layers": 2, "encoder_attention_heads": 8, "decoder_attention_heads": 8,
            "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 12,
            "max_target_positions": 10, "pad_token_id": 0, "decoder_start_token_id": 1,
        },
        HEADS,
        spectrograms,
    ),
    "resnet": Case("ResNetForImageClassification", RESNET, CHANNELS, lambda: images(32)),
    "resnet, basic": Case(
        "ResNetForImageClassification",
        {**RESNET, "layer_type": "basic"},
        CHANNELS,
        lambda: images(32),
    ),
}  # fmt: skip


def save(case: Case, folder: Path) -> Any:
    """The model of a case, which is saved to `folder` as transformers saves it."""
    model = case.build()
    model.save_pretrained(folder)
    if case.rewrite is not None:
        case.rewrite(folder)
        model, _ = load(case, folder)
    return model


def load(case: Case, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a case as transformers loads it, and what was missing or too much."""
    cls = getattr(transformers, case.model)
    model, report = cls.from_pretrained(
        folder, output_loading_info=True, dtype="auto", **case.loading()
    )
    return model.eval(), report


def logits_of(model: Any, case: Case) -> list[torch.Tensor]:
    """What the model computes for the inputs of the case."""
    with torch.no_grad():
        out = model(**case.inputs())
    kept = ("logits", "last_hidden_state", "pooler_output", "logits_per_image", "text_embeds")
    return [out[key] for key in kept if out.get(key) is not None]
