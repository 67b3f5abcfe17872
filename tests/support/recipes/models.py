"""Tiny models of transformers with random parameters, one or more for each family of recipes.

It imports torch and transformers: a test that uses it is skipped where they are missing.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

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
SHARDED = {"vocab": "model", "heads": "model", "kv_heads": "model", "mlp": "model", "embed": "data"}
WITH_EXPERTS = {**SHARDED, "expert": "model"}
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

CASES: dict[str, Case] = {
    "llama": Case("LlamaForCausalLM", {**WIDE, "rope_parameters": LLAMA_3}, SHARDED, words),
    "llama, tied": Case(
        "LlamaForCausalLM", {**WIDE, "tie_word_embeddings": True}, SHARDED, words
    ),
    "mistral": Case("MistralForCausalLM", {**WIDE, "sliding_window": 4, "head_dim": 8}, SHARDED, words),
    "qwen2": Case("Qwen2ForCausalLM", {**WIDE, "tie_word_embeddings": True}, SHARDED, words),
    "qwen3": Case("Qwen3ForCausalLM", {**WIDE, "head_dim": 16}, SHARDED, words),
    "gemma3": Case(
        "Gemma3ForCausalLM",
        {
            **WIDE, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 12,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        SHARDED,
        words,
    ),
    "mixtral": Case(
        "MixtralForCausalLM",
        {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
        WITH_EXPERTS | {"heads": "data", "kv_heads": "data", "embed": "data"},
        words,
    ),
}  # fmt: skip


def save(case: Case, folder: Path) -> Any:
    """The model of a case, which is saved to `folder` as transformers saves it."""
    model = case.build()
    model.save_pretrained(folder)
    return model


def logits_of(model: Any, case: Case) -> list[torch.Tensor]:
    """What the model computes for the inputs of the case."""
    with torch.no_grad():
        out = model(**case.inputs())
    kept = ("logits", "last_hidden_state", "pooler_output", "logits_per_image", "text_embeds")
    return [out[key] for key in kept if out.get(key) is not None]
