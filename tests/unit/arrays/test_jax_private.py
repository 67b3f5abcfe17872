"""The private names of JAX that safejax uses; a JAX without one fails the test of that name.

Users of such a JAX get a slower way, or an error with a remedy.
"""

import ast
import importlib
import itertools
import operator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Layout

from safejax._src.arrays import jax_hooks, jax_private

MODULES = (Path(jax_private.__file__), Path(jax_hooks.__file__))

# The module, the names that it must have, and whether one of several is enough.
PRIVATE: list[tuple[str, str]] = [
    ("jax._src.ad_util", "raw_jaxval_adders"),
    ("jax._src.api", "block_until_ready"),
    ("jax._src.array", "ArrayImpl"),
    ("jax._src.core", "pytype_aval_mappings"),
    ("jax._src.dispatch", "_batched_device_put_impl"),
    ("jax._src.distributed", "global_state.client"),
    ("jax._src.interpreters.pxla", "shard_arg_handlers"),
    ("jax._src.interpreters.pxla", "shard_args"),
    ("jax._src.tree_util", "dispatch_registry.register_dataclass_node"),
]
EITHER: list[list[tuple[str, str]]] = [
    [
        ("jax._src.dtypes", "register_canonicalize_value_handler"),
        ("jax._src.dtypes", "canonicalize_value_handlers"),
    ],
    [("jax._src.lib", "xla_client"), ("jax._src.interpreters.pxla", "batched_device_put")],
    [("jax.sharding", "get_mesh"), ("jax._src.mesh", "get_concrete_mesh")],
]


def is_there(module: str, name: str) -> bool:
    try:
        operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize(("module", "name"), PRIVATE)
def test_jax_has_every_private_name_that_is_used(module: str, name: str) -> None:
    assert is_there(module, name), f"JAX {jax.__version__} has no {module}.{name}"


@pytest.mark.parametrize("ways", EITHER)
def test_jax_has_one_of_the_private_names_that_serve_the_same_purpose(
    ways: list[tuple[str, str]],
) -> None:
    assert any(is_there(*way) for way in ways), f"JAX {jax.__version__} has none of {ways}"


@pytest.mark.parametrize("method", [name for name in vars(jax_private.Service) if name[0] != "_"])
def test_the_client_of_the_coordination_service_has(method: str) -> None:
    assert is_there("jax._src.lib", f"_jax.DistributedRuntimeClient.{method}"), (
        f"the DistributedRuntimeClient of JAX {jax.__version__} has no {method}"
    )


def test_every_hook_is_found() -> None:
    never: Any = lambda *_: pytest.fail("is not called")  # noqa: E731

    class Leaf:
        has_keys = False
        traced_aval = placed = at_dispatch = never

    assert jax_hooks.register(Leaf, never) == ()


def test_arrays_are_assembled_from_blocks_by_the_fast_private_function() -> None:
    native = importlib.import_module("jax._src.lib").xla_client.batched_device_put
    assert jax_private._batched_device_put is native


def test_layouts_are_known_without_an_array() -> None:
    array = jnp.ones((2, 3))
    layout = jax_private.default_layout(array.shape, array.dtype, array.sharding)
    assert isinstance(layout, Layout)
    assert layout == array.format.layout


def test_the_functions_that_check_for_the_real_class_are_found() -> None:
    codes = jax_hooks.LOOK_AT_REAL_TYPES
    assert jax.block_until_ready.__code__ in codes
    # JAX 0.12 has a second one.
    copy = getattr(jax, "copy_to_host_async", None)
    assert copy is None or copy.__code__ in codes
    assert {code.co_name for code in codes} >= {"block_until_ready", "batched_device_put"}


def test_every_private_module_that_is_imported_is_in_the_list() -> None:
    nodes = [node for module in MODULES for node in ast.walk(ast.parse(module.read_text()))]
    asked: set[tuple[str, str]] = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax._src"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                asked.add((name, "") if alias.name.islower() else (node.module, alias.name))
    known = {module for module, _ in (*PRIVATE, *itertools.chain(*EITHER))}
    known |= {f"{module}.{name}" for module, name in (*PRIVATE, *itertools.chain(*EITHER))}
    known.add("jax._src.interpreters.mlir")  # JAX 0.8 only, next to the canonicalizer
    missing = {
        f"{module}.{name}".rstrip(".")
        for module, name in asked
        if f"{module}.{name}".rstrip(".") not in known
    }
    assert missing == set()
