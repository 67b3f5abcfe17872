"""Every public callable that can be given an array, as the modules themselves list them."""

import contextlib
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy
import numpy as np


class Subject(NamedTuple):
    """A callable and its whole name."""

    name: str
    call: Callable[..., Any]


class Family(NamedTuple):
    """Modules whose callables are compared together."""

    modules: tuple[str, ...]
    sample: int
    """How many callables a run with the large effort compares; the usual one compares half."""
    least: float
    """The share of the callables, apart from those that are skipped, for which a row is found."""


def _below(package: str) -> tuple[str, ...]:
    """The public modules of a package, with the package itself."""
    folder = importlib.import_module(package)
    found = pkgutil.walk_packages(folder.__path__, f"{package}.")
    return (package, *(module.name for module in found if "._" not in module.name))


ARRAY: Final = "Array"
FAMILIES: Final[Mapping[str, Family]] = {
    ARRAY: Family((ARRAY,), 16, 0.8),
    "jax": Family(("jax",), 8, 0.8),
    "jax.numpy": Family(("jax.numpy",), 20, 0.8),
    "jax.numpy.*": Family(("jax.numpy.fft", "jax.numpy.linalg"), 4, 0.8),
    "jax.lax": Family(("jax.lax", "jax.lax.linalg"), 16, 0.8),
    "jax.random": Family(("jax.random",), 3, 0.8),
    "jax.nn": Family(("jax.nn", "jax.nn.initializers", "jax.image", "jax.ops"), 4, 0.8),
    "jax.scipy": Family(_below("jax.scipy"), 8, 0.8),
    "jax.*": Family(
        ("jax.debug", "jax.dlpack", "jax.dtypes", "jax.experimental.multihost_utils",
         "jax.flatten_util", "jax.tree", "jax.tree_util"), 8, 0.7,
    ),
    "numpy": Family(("numpy",), 30, 0.8),
    "numpy.*": Family(
        ("numpy.char", "numpy.fft", "numpy.lib.stride_tricks", "numpy.linalg", "numpy.ma",
         "numpy.polynomial.polynomial", "numpy.strings", "numpy.testing"),
        20, 0.7,
    ),
    "scipy": Family(
        ("scipy.cluster.hierarchy", "scipy.cluster.vq", "scipy.fft", "scipy.integrate",
         "scipy.interpolate", "scipy.linalg", "scipy.ndimage", "scipy.optimize", "scipy.signal",
         "scipy.sparse", "scipy.sparse.csgraph", "scipy.sparse.linalg", "scipy.spatial",
         "scipy.spatial.distance", "scipy.special", "scipy.stats"),
        40, 0.6,
    ),
    "python": Family(
        ("builtins", "cmath", "copy", "functools", "itertools", "math", "operator", "pickle",
         "statistics"),
        20, 0.8,
    ),
}  # fmt: skip

SKIPPED: Final[Mapping[str, tuple[str, ...]]] = {
    "is the class's own": (
        r"Array\.__(annotations|class|delattr|dict|dir|doc|getattr|getattribute|getstate)__",
        r"Array\.__(init|init_subclass|module|new|setattr|sizeof|slots|subclasshook|weakref)__",
        r"Array\.__(firstlineno|slotnames|static_attributes)__",
        r"builtins\.(classmethod|delattr|dir|getattr|setattr|staticmethod|super|type|vars)",
        r"functools\.(cached_property|update_wrapper|wraps)",
    ),
    "is private, and changes the array in place": (
        r"Array\.(_check_and_rearrange|_multi_slice|_replace_with)",
        r"Array\._rewrap_with_aval_and_sharding",
        "Array.__del__",
    ),
    "tells where an array is, or when it was made": (
        r"Array\.(_?traceback|unsafe_\w+|_copy_single_device_array_to_host_async)",
        r"builtins\.id", r"numpy\.(may_share|shares)_memory", r"numpy\.ma\.ids",
    ),
    "changes a class": (r"numpy\.testing\.decorate_methods",),
    "tells the leaf's state": (
        r"Array\.__(format|repr|str)__", r"builtins\.(ascii|format|repr|str)",
        r"jax\.tree_util\.keystr", r"numpy\.str_",
    ),
    "is compiled to a program at which XLA ends the process, for lists": (r"jax\.numpy\.u?int2",),
    "is compiled to a program at which XLA ends the process, for plain arrays over devices": (
        r"jax\.scipy\.linalg\.convolution_matrix",
    ),
    "gives what was in memory before": (r"numpy(\.ma)?\.(empty|empty_like|ndarray)",),
    "is another object for every call, with no equality": (r"scipy\.integrate\.(complex_)?ode",),
    "makes an exception": (
        r"builtins\.[A-Z]\w*", r"[\w.]+\.\w*(Error|Warning|Exception|Failure|NoConvergence)",
    ),
    "talks to a terminal, or prints": (
        r"builtins\.(breakpoint|copyright|credits|exit|help|input|license|print|quit)",
        r"jax\.debug\.(breakpoint|inspect\w*|print|visualize\w*)",
        r"numpy\.(info|show_\w+)", "jax.print_environment_info",
    ),
    "opens files, or runs code": (
        r"builtins\.(__\w+__|aiter|anext|compile|eval|exec|globals|locals|open)",
        r"pickle\.(Pickler|Unpickler|dump|load)",
        r"(jax\.)?numpy\.(fromfile|load\w*|save\w*|tofile)",
        r"numpy\.(DataSource|fromregex|genfromtxt|memmap|open_memmap)",
        r"numpy\.testing\.(check_\w+|clear_and_\w+|jiffies|memusage|suppress_warnings|temp\w+)",
        r"numpy\.testing\.(IgnoreException|measure|print\w+|run\w*|SkipTest|TestCase)",
        r"(numpy|scipy)(\.\w+)*\.test", r"numpy\.ma\.(mvoid|test)",
    ),
    "changes the process or a setting": (
        r"jax\.(array_garbage_collection_guard|check_tracer_leaks|checking_leaks|clear_\w+)",
        r"jax\.(config|debug_\w+|default_\w+|distributed|enable_\w+|ensure_compile_time_eval)",
        r"jax\.(explain_cache_misses|log_compiles|make_user_context|named_scope|no_\w+)",
        r"jax\.(numpy_\w+|random_seed_offset|remove_size_one_mesh_axis\w*|set_mesh)",
        r"jax\.(softmax_custom_jvp|thread_guard|threefry_\w+|transfer_guard\w*)",
        r"jax\.tree_util\.register_\w+", r"functools\.singledispatch(method)?",
        r"(jax\.)?numpy\.(get_?print\w+|printoptions|set_?print\w+)",
        r"numpy\.(errstate|get(bufsize|err|errcall|_include)|set(bufsize|err|errcall))",
    ),
    "takes no array": (
        r"jax\.(Array|Device|NamedSharding|P|PartitionSpec|Ref|Shard|effects_barrier|make_mesh)",
        r"jax\.(device_count|devices|host_\w+|legacy_prng_key|live_arrays|local_device\w+)",
        r"jax\.process_\w+",
    ),
    "ends the process where JAX's C++ is given any array": (r"jax\.numpy\.float6_\w+",),
}  # fmt: skip
"""Why a callable is not compared, with regular expressions for whole names."""


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    for name in sorted(set(getattr(module, "__all__", None) or dir(module))):
        with warnings.catch_warnings():
            # Asking for a deprecated name warns; what its call gives is compared.
            warnings.simplefilter("ignore")
            value = getattr(module, name, None)
        if not name.startswith("_") and callable(value) and not inspect.ismodule(value):
            yield name, value


def subjects(family: Family) -> Iterator[Subject]:
    """The callables of the family's modules, those that are skipped too."""
    for module_name in family.modules:
        if module_name == ARRAY:
            yield from _of_arrays()
            continue
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # another version has it
            continue
        for name, value in _public(module):
            yield Subject(f"{module_name}.{name}", value)
            if isinstance(value, np.ufunc | jnp.ufunc) and not module_name.startswith("scipy"):
                for method in ("accumulate", "at", "outer", "reduce", "reduceat"):
                    yield Subject(f"{module_name}.{name}.{method}", getattr(value, method))


def _of_arrays() -> Iterator[Subject]:
    """The methods, properties and updates of arrays."""
    array, key = jnp.zeros(3), jax.random.key(0)
    for name in sorted({*dir(type(array)), *dir(type(key))}):
        yield Subject(f"Array.{name}", _member(name))
    for name in dir(type(array.at[0])):
        if not name.startswith("_"):
            yield Subject(f"Array.at[].{name}", _update(name))


def _member(name: str) -> Callable[..., Any]:
    def call(array: Any, /, *args: Any, **kwargs: Any) -> Any:
        value = getattr(array, name)
        return value(*args, **kwargs) if callable(value) else value

    member = getattr(type(jnp.zeros(())), name, None)
    if callable(member):
        with contextlib.suppress(TypeError, ValueError):
            call.__signature__ = inspect.signature(member)  # pyright: ignore
    return call


def _update(name: str) -> Callable[..., Any]:
    def call(array: Any, index: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(array.at[index], name)(*args, **kwargs)

    return call


_SKIPPED: Final = {re.compile("|".join(patterns)): reason for reason, patterns in SKIPPED.items()}


def why_skipped(name: str) -> str | None:
    """The reason for which a callable is not compared, or None."""
    return next((reason for rule, reason in _SKIPPED.items() if rule.fullmatch(name)), None)
