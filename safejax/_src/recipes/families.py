"""The families that have a recipe, by the `model_type` of their `config.json`."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from safejax._src.recipes.bert import bert
from safejax._src.recipes.blocks import Table
from safejax._src.recipes.clip import clip
from safejax._src.recipes.config import Config
from safejax._src.recipes.deepseek_v3 import deepseek_v3
from safejax._src.recipes.gemma3 import gemma3, gemma3_text
from safejax._src.recipes.gpt2 import gpt2
from safejax._src.recipes.gpt_oss import gpt_oss
from safejax._src.recipes.llama import llama
from safejax._src.recipes.mistral import mistral
from safejax._src.recipes.mixtral import mixtral
from safejax._src.recipes.qwen2 import qwen2
from safejax._src.recipes.qwen3 import qwen3, qwen3_moe
from safejax._src.recipes.resnet import resnet
from safejax._src.recipes.t5 import t5
from safejax._src.recipes.vit import vit
from safejax._src.recipes.whisper import whisper

FAMILIES: Final[Mapping[str, Callable[[Config], Table]]] = MappingProxyType(
    {
        "bert": bert,
        "clip": clip,
        "deepseek_v3": deepseek_v3,
        "gemma3": gemma3,
        "gemma3_text": gemma3_text,
        "gpt2": gpt2,
        "gpt_oss": gpt_oss,
        "llama": llama,
        "mistral": mistral,
        "mixtral": mixtral,
        "qwen2": qwen2,
        "qwen3": qwen3,
        "qwen3_moe": qwen3_moe,
        "resnet": resnet,
        "t5": t5,
        "vit": vit,
        "whisper": whisper,
    }
)
