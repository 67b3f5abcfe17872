"""safejax: the parameters of JAX models in safetensors files, and back, lazily.

`save(tree, path)` stores a pytree; `load(path, sharding=...)` returns it with leaves that are
read and placed on their devices when they are first needed.
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
    from safejax.transforms.cast import cast
    from safejax.transforms.elementwise import elementwise
    from safejax.transforms.prefix import prefix
    from safejax.transforms.rename import rename
    from safejax.transforms.reshape import reshape
    from safejax.transforms.select import drop, select
    from safejax.transforms.split import concat, split
    from safejax.transforms.stack import stack, unstack
    from safejax.transforms.transpose import transpose

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

# Not every program needs these; the module of each is imported when its name is first used.
_LATER = {
    "Plan": "safejax.planning",
    "cast": "safejax.transforms.cast",
    "concat": "safejax.transforms.split",
    "drop": "safejax.transforms.select",
    "elementwise": "safejax.transforms.elementwise",
    "plan": "safejax.planning",
    "prefix": "safejax.transforms.prefix",
    "rename": "safejax.transforms.rename",
    "reshape": "safejax.transforms.reshape",
    "select": "safejax.transforms.select",
    "split": "safejax.transforms.split",
    "stack": "safejax.transforms.stack",
    "transpose": "safejax.transforms.transpose",
    "unstack": "safejax.transforms.stack",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module 'safejax' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
