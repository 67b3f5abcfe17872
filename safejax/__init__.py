"""safejax: the parameters of JAX models in safetensors files, and back, lazily.

`save(tree, path)` stores a pytree; `load(path, sharding=...)` gives it back with leaves that
are read and placed on their devices when they are first needed.
"""

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
from safejax.planning import Plan, plan
from safejax.shardings import sharding_rules
from safejax.sources import ReadLog, observe_reads
from safejax.steps import Step, Transform, chain, step
from safejax.structure import EMPTY
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
from safejax.tree import flatten, unflatten

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
