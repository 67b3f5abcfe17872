"""What must hold for a recipe, tried with a checkpoint of transformers'."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import jax
import ml_dtypes
import numpy as np
import torch
from jax.sharding import AxisType
from safetensors.torch import load_file

import safejax
from safejax import recipes
from tests.support.recipes import by_hand, forwards
from tests.support.recipes.models import CASES, Case, load, logits_of, save

BY_HAND: dict[str, Callable[[by_hand.Tensors, by_hand.Config], by_hand.Tensors]] = {
    "llama": by_hand.llama,
    "llama, tied": by_hand.llama,
    "mistral": by_hand.llama,
    "qwen2": by_hand.qwen2,
    "qwen3": by_hand.qwen3,
    "gemma3": by_hand.gemma3,
    "gemma3, images": by_hand.gemma3_with_images,
    "mixtral": by_hand.mixtral,
    "qwen3-moe": by_hand.qwen3_moe,
    "deepseek-v3": by_hand.deepseek_v3,
    "deepseek-v3, FP8": by_hand.deepseek_v3_in_fp8,
    "gpt-oss": by_hand.gpt_oss,
    "gpt-oss, MXFP4": by_hand.gpt_oss,
    "gpt2": by_hand.gpt2,
    "bert": by_hand.bert,
    "t5": by_hand.t5,
    "t5, gated": by_hand.t5,
    "vit": by_hand.vit,
    "clip": by_hand.clip,
    "whisper": by_hand.whisper,
    "resnet": by_hand.resnet,
    "resnet, basic": by_hand.resnet,
}
"""The names, shapes and values that a recipe must give, by case."""


def _decoder(params: Any, config: Any, inputs: Any) -> list[jax.Array]:
    return [forwards.decoder(params, config, inputs["input_ids"])]


FORWARDS: dict[str, Callable[[Any, Any, Any], list[jax.Array]]] = {
    **dict.fromkeys(("llama", "llama, tied", "mistral", "qwen2", "qwen3", "gemma3"), _decoder),
    **dict.fromkeys(("mixtral", "qwen3-moe", "gpt-oss", "gpt-oss, MXFP4"), _decoder),
    "gemma3, images": lambda p, c, i: _decoder(p, c["text_config"], i),
    "deepseek-v3": lambda p, c, i: [forwards.deepseek(p, c, i["input_ids"])],
    "deepseek-v3, FP8": lambda p, c, i: [forwards.deepseek(p, c, i["input_ids"])],
    "gpt2": lambda p, c, i: [forwards.gpt2(p, c, i["input_ids"])],
    "bert": lambda p, c, i: [forwards.bert(p, c, i["input_ids"])],
    "t5": lambda p, c, i: [forwards.t5(p, c, i["input_ids"], i["decoder_input_ids"])],
    "t5, gated": lambda p, c, i: [forwards.t5(p, c, i["input_ids"], i["decoder_input_ids"])],
    "vit": lambda p, c, i: [forwards.vit(p, c, i["pixel_values"])],
    "clip": lambda p, c, i: forwards.clip(p, c, i["input_ids"], i["pixel_values"]),
    "whisper": lambda p, c, i: [
        forwards.whisper(p, c, i["input_features"], i["decoder_input_ids"])
    ],
    "resnet": lambda p, c, i: [forwards.resnet(p, c, i["pixel_values"])],
    "resnet, basic": lambda p, c, i: [forwards.resnet(p, c, i["pixel_values"])],
}
"""The outputs in JAX, by case, in the order of those of transformers."""


OF_NUMPY = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.int8, ml_dtypes.float8_e4m3fn),
}
"""For dtypes that NumPy lacks: one of the same size that both have, and that of ml_dtypes."""


@final
@dataclass(frozen=True)
class Checkpoint:
    """A model of transformers and the folder that it was saved to."""

    name: str
    case: Case
    model: Any
    folder: Path
    config: dict[str, Any]
    theirs: by_hand.Tensors
    recipe: recipes.Recipe

    @classmethod
    def made(cls, name: str, folder: Path) -> "Checkpoint":
        """The checkpoint of a case, new in this folder."""
        case = CASES[name]
        model = save(case, folder)
        config = json.loads((folder / "config.json").read_text())
        return cls(name, case, model, folder, config, tensors_in(folder), recipes.of(folder))

    def load(self, **options: Any) -> Any:
        """The tree that the recipe makes of it."""
        return safejax.load(self.folder, transform=self.recipe.transform, **options)

    def expected(self) -> by_hand.Tensors:
        """The leaves that the recipe must make of it."""
        return BY_HAND[self.name](self.theirs, self.config)


def tensors_in(folder: Path) -> by_hand.Tensors:
    """The tensors of a folder as the safetensors package reads them."""
    found: by_hand.Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            plain, dtype = OF_NUMPY.get(tensor.dtype, (tensor.dtype, None))
            array = tensor.view(plain).numpy()
            found[name] = array if dtype is None else array.view(dtype)
    return found


def same(name: str, actual: Any, expected: by_hand.Array) -> None:
    """Assert that an array has this dtype, this shape and these bits."""
    array = np.asarray(actual)
    assert (array.dtype, array.shape) == (expected.dtype, expected.shape), name
    assert array.tobytes() == expected.tobytes(), name


def imported(checkpoint: Checkpoint) -> None:
    """The import has the names and the bits of a conversion by hand."""
    leaves, expected = safejax.flatten(checkpoint.load()), checkpoint.expected()
    assert sorted(leaves) == sorted(expected)
    for name, leaf in leaves.items():
        same(name, leaf, expected[name])


def parts(checkpoint: Checkpoint) -> None:
    """What each of eight devices has is its part of it, and no leaf has all on each for nothing."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rules = checkpoint.recipe.rules(mesh, checkpoint.case.axes)
    leaves = safejax.flatten(safejax.materialize(checkpoint.load(sharding=rules)))
    expected = checkpoint.expected()
    used: set[str] = set()
    for name, leaf in leaves.items():
        used.update(axis for axis in leaf.sharding.spec if axis is not None)
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            part = np.asarray(expected[name][shard.index])
            same(name, shard.data, part.astype(jax.dtypes.canonicalize_dtype(part.dtype)))
    assert used == set(checkpoint.case.axes.values())


def exported(checkpoint: Checkpoint, folder: Path) -> None:
    """The inverse gives their checkpoint, byte for byte, and transformers loads it in whole."""
    stored = checkpoint.load()
    # What JAX has no dtype for, as the int64 of a batch norm's count, is exact in a lazy leaf only.
    tree = jax.tree.map(
        lambda placed, leaf: placed if placed.dtype == np.asarray(leaf).dtype else leaf,
        safejax.materialize(stored),
        stored,
    )
    inverse, metadata = checkpoint.recipe.transform.inverse, safejax.metadata(checkpoint.folder)
    safejax.save(tree, folder, transform=inverse, metadata=metadata, max_shard_bytes=1 << 16)
    shutil.copy(checkpoint.folder / "config.json", folder)
    found = tensors_in(folder)
    assert sorted(found) == sorted(checkpoint.theirs)
    for name, array in found.items():
        same(name, array, checkpoint.theirs[name])
    model, report = load(checkpoint.case, folder)
    # transformers ignores what comes after DeepSeek's layers by its number there, 61.
    further = f"model.layers.{checkpoint.config.get('num_hidden_layers')}."
    report["unexpected_keys"] = [
        name for name in report["unexpected_keys"] if not name.startswith(further)
    ]
    assert not any(report.values()), report
    before = logits_of(checkpoint.model, checkpoint.case)
    for one, other in zip(before, logits_of(model, checkpoint.case), strict=True):
        assert torch.equal(one, other)


def difference(checkpoint: Checkpoint) -> float:
    """How far our outputs are from theirs, in units of the largest of theirs."""
    forward = FORWARDS[checkpoint.name]
    inputs = {name: each.numpy() for name, each in checkpoint.case.inputs().items()}
    tree = safejax.materialize(checkpoint.load())
    if checkpoint.name == "gpt-oss, MXFP4":
        tree["layers"]["experts"] = forwards.unpacked(tree["layers"]["experts"])
    if checkpoint.name == "deepseek-v3, FP8":
        tree = forwards.divided(forwards.scaled(tree), checkpoint.config)
    tree = jax.tree.map(jax.jit(lambda leaf: leaf.astype("float32")), tree)
    ours = jax.jit(lambda tree, inputs: forward(tree, checkpoint.config, inputs))(tree, inputs)
    theirs = logits_of(copy.deepcopy(checkpoint.model).float(), checkpoint.case)
    assert len(ours) == len(theirs)
    far = 0.0
    for one, other in zip(ours, theirs, strict=True):
        wanted = other.numpy()
        assert one.shape == wanted.shape
        far = max(far, float(np.abs(np.asarray(one) - wanted).max() / np.abs(wanted).max()))
    return far
