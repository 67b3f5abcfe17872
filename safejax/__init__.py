"""safejax: the parameters of JAX models in safetensors files, and back, lazily.

`save(tree, path)` stores a pytree; `load(path, sharding=...)` gives it back with leaves that
are read and placed on their devices when they are first needed.
"""

import importlib
import typing

from safejax.api import abstract, deserialize, load, materialize, metadata, save, serialize
from safejax.codec import decode, encode
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
    ReadError,
    SafejaxError,
    ShardingError,
    TransformError,
    UnsupportedJaxError,
)
from safejax.lazy import LazyArray
from safejax.leaves import Leaves
from safejax.shardings import sharding_rules
from safejax.sources import ReadLog, observe_reads
from safejax.steps import Step, Transform, chain, step
from safejax.structure import EMPTY
from safejax.tree import flatten, unflatten

if typing.TYPE_CHECKING:
    from safejax.planning import Plan, plan
    from safejax.transforms import (
        cast,
        concat,
        drop,
        elementwise,
        prefix,
        rename,
        reshape,
        select,
        split,
        stack,
        transpose,
        unstack,
    )

__version__ = "1.0.0.dev0"

__all__ = [
    "EMPTY",
    "ChecksumError",
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
    "ReadError",
    "ReadLog",
    "SafejaxError",
    "ShardingError",
    "Step",
    "Transform",
    "TransformError",
    "UnsupportedJaxError",
    "abstract",
    "cast",
    "chain",
    "concat",
    "decode",
    "deserialize",
    "drop",
    "elementwise",
    "encode",
    "flatten",
    "load",
    "materialize",
    "metadata",
    "observe_reads",
    "plan",
    "prefix",
    "rename",
    "reshape",
    "save",
    "select",
    "serialize",
    "sharding_rules",
    "split",
    "stack",
    "step",
    "transpose",
    "unflatten",
    "unstack",
]

# What not every program needs is imported when it is first asked for.
_LATER = dict.fromkeys(("Plan", "plan"), "safejax.planning") | dict.fromkeys(
    (
        "cast", "concat", "drop", "elementwise", "prefix", "rename", "reshape", "select", "split",
        "stack", "transpose", "unstack",
    ),
    "safejax.transforms",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'safejax' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
