"""safejax: the parameters of JAX models in safetensors files, and back, lazily.

`save(tree, path)` stores a pytree; `load(path, sharding=...)` returns it with leaves that are
read and placed on their devices when they are first needed.
"""

import importlib
import typing as _typing  # `safejax.typing` is gone, and not that of Python

from safejax._src.moved import attribute_error as _attribute_error
from safejax.errors import (
    ChecksumError,
    InvalidFileError,
    LeafError,
    MismatchError,
    NotInvertibleError,
    PartialLoadWarning,
    PlacementError,
    PrecisionError,
    PrecisionWarning,
    ProcessError,
    ReadError,
    SafejaxError,
    ShardingError,
    TransformError,
    UnsupportedJaxError,
)

if _typing.TYPE_CHECKING:
    from safejax import recipes as recipes
    from safejax._src.api.loading import deserialize, load, metadata
    from safejax._src.api.saving import save, save_async, serialize
    from safejax._src.arrays.lazy import LazyArray
    from safejax._src.checkpoint.codec import decode, encode
    from safejax._src.checkpoint.handle import SaveHandle
    from safejax._src.inspection.diff import Difference, diff
    from safejax._src.inspection.inspect import Inspection, inspect
    from safejax._src.inspection.verify import Verification, verify
    from safejax._src.leaves.abstract import abstract
    from safejax._src.leaves.flatten import flatten, unflatten
    from safejax._src.leaves.leaves import Leaves
    from safejax._src.leaves.rules import sharding_rules
    from safejax._src.leaves.steps import Step, Transform, chain, step
    from safejax._src.materialize import materialize, prefetch
    from safejax._src.planning.dry_run import plan
    from safejax._src.planning.plan import Plan
    from safejax._src.pytrees.structure import EMPTY
    from safejax._src.reading.log import ReadLog, observe_reads
    from safejax._src.transforms.arithmetic import offset, scale
    from safejax._src.transforms.cast import cast
    from safejax._src.transforms.correspond import correspond
    from safejax._src.transforms.elementwise import elementwise
    from safejax._src.transforms.keys import keys
    from safejax._src.transforms.merge import merge
    from safejax._src.transforms.pad import crop, pad
    from safejax._src.transforms.permute import permute
    from safejax._src.transforms.prefix import prefix
    from safejax._src.transforms.rename import rename
    from safejax._src.transforms.reshape import reshape
    from safejax._src.transforms.select import drop, select
    from safejax._src.transforms.split import concat, split
    from safejax._src.transforms.stack import stack, unstack
    from safejax._src.transforms.tie import tie
    from safejax._src.transforms.transpose import transpose

__version__ = "1.0.0.dev0"

__all__ = [
    "EMPTY",
    "ChecksumError",
    "Difference",
    "Inspection",
    "InvalidFileError",
    "LazyArray",
    "LeafError",
    "Leaves",
    "MismatchError",
    "NotInvertibleError",
    "PartialLoadWarning",
    "PlacementError",
    "Plan",
    "PrecisionError",
    "PrecisionWarning",
    "ProcessError",
    "ReadError",
    "ReadLog",
    "SafejaxError",
    "SaveHandle",
    "ShardingError",
    "Step",
    "Transform",
    "TransformError",
    "UnsupportedJaxError",
    "Verification",
    "abstract",
    "cast",
    "chain",
    "concat",
    "correspond",
    "crop",
    "decode",
    "deserialize",
    "diff",
    "drop",
    "elementwise",
    "encode",
    "flatten",
    "inspect",
    "keys",
    "load",
    "materialize",
    "merge",
    "metadata",
    "observe_reads",
    "offset",
    "pad",
    "permute",
    "plan",
    "prefetch",
    "prefix",
    "rename",
    "reshape",
    "save",
    "save_async",
    "scale",
    "select",
    "serialize",
    "sharding_rules",
    "split",
    "stack",
    "step",
    "tie",
    "transpose",
    "unflatten",
    "unstack",
    "verify",
]

# The module of each name is imported when the name is first used, so that the command line, and
# programs that only look into files, start without importing JAX.
_LATER = {
    "Difference": "safejax._src.inspection.diff",
    "EMPTY": "safejax._src.pytrees.structure",
    "Inspection": "safejax._src.inspection.inspect",
    "LazyArray": "safejax._src.arrays.lazy",
    "Leaves": "safejax._src.leaves.leaves",
    "Plan": "safejax._src.planning.plan",
    "ReadLog": "safejax._src.reading.log",
    "SaveHandle": "safejax._src.checkpoint.handle",
    "Step": "safejax._src.leaves.steps",
    "Transform": "safejax._src.leaves.steps",
    "Verification": "safejax._src.inspection.verify",
    "abstract": "safejax._src.leaves.abstract",
    "cast": "safejax._src.transforms.cast",
    "chain": "safejax._src.leaves.steps",
    "concat": "safejax._src.transforms.split",
    "correspond": "safejax._src.transforms.correspond",
    "crop": "safejax._src.transforms.pad",
    "decode": "safejax._src.checkpoint.codec",
    "deserialize": "safejax._src.api.loading",
    "diff": "safejax._src.inspection.diff",
    "drop": "safejax._src.transforms.select",
    "elementwise": "safejax._src.transforms.elementwise",
    "encode": "safejax._src.checkpoint.codec",
    "flatten": "safejax._src.leaves.flatten",
    "inspect": "safejax._src.inspection.inspect",
    "keys": "safejax._src.transforms.keys",
    "load": "safejax._src.api.loading",
    "materialize": "safejax._src.materialize",
    "metadata": "safejax._src.api.loading",
    "observe_reads": "safejax._src.reading.log",
    "merge": "safejax._src.transforms.merge",
    "offset": "safejax._src.transforms.arithmetic",
    "pad": "safejax._src.transforms.pad",
    "permute": "safejax._src.transforms.permute",
    "plan": "safejax._src.planning.dry_run",
    "prefetch": "safejax._src.materialize",
    "prefix": "safejax._src.transforms.prefix",
    "rename": "safejax._src.transforms.rename",
    "reshape": "safejax._src.transforms.reshape",
    "save": "safejax._src.api.saving",
    "save_async": "safejax._src.api.saving",
    "scale": "safejax._src.transforms.arithmetic",
    "select": "safejax._src.transforms.select",
    "serialize": "safejax._src.api.saving",
    "sharding_rules": "safejax._src.leaves.rules",
    "split": "safejax._src.transforms.split",
    "stack": "safejax._src.transforms.stack",
    "step": "safejax._src.leaves.steps",
    "tie": "safejax._src.transforms.tie",
    "transpose": "safejax._src.transforms.transpose",
    "unflatten": "safejax._src.leaves.flatten",
    "unstack": "safejax._src.transforms.stack",
    "verify": "safejax._src.inspection.verify",
}


def __getattr__(name: str) -> object:
    if name == "recipes":
        return importlib.import_module("safejax.recipes")
    if name not in _LATER:
        raise _attribute_error(name)
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, "recipes"})
