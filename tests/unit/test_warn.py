"""Warnings point at the line of the user's program that they are about."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
from flax import nnx

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
import safejax.testing
from safejax._src.warn import warn_caller, warnings_collected


def warned(action: Callable[[], object], category: type[Warning]) -> warnings.WarningMessage:
    """The only warning of `action`; it is called here, so that its frames are above the test's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    (warning,) = caught
    assert warning.category is category
    return warning


# ---- partial loads

WEIGHTS = {"w": jnp.ones((2, 3)), "other": jnp.zeros(2)}
LIKE = {"w": jnp.zeros((2, 3))}
FILE = safejax.serialize(WEIGHTS)
KERNEL = safejax.serialize({"kernel": np.ones((2, 3), np.float32), **WEIGHTS})


def linear() -> nnx.Linear:
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def mlp(depth: int) -> equinox.nn.MLP:
    return equinox.nn.MLP(2, 2, 2, depth, key=jax.random.key(0))


VARIABLES = objax.VarCollection({"w": objax.TrainVar(jnp.ones(2))})
MORE = objax.VarCollection({"w": objax.TrainVar(jnp.ones(2)), "b": objax.TrainVar(jnp.ones(2))})

PARTIAL: dict[str, Callable[[Any], object]] = {
    "load": lambda path: safejax.load(path, like=LIKE, strict=False),
    "deserialize": lambda _: safejax.deserialize(FILE, like=LIKE, strict=False),
    "a transform": lambda _: safejax.deserialize(
        FILE, like=LIKE, strict=False, transform=safejax.cast("bfloat16", where="other")
    ),
    "flax": lambda _: safejax.flax.deserialize(FILE, like=LIKE, strict=False),
    "flax: NNX": lambda _: safejax.flax.deserialize(KERNEL, like=linear(), strict=False),
    "flax: load_into": lambda _: safejax.flax.load_into(linear(), KERNEL, strict=False),
    "haiku": lambda _: safejax.haiku.deserialize(FILE, like=LIKE, strict=False),
    "haiku: immutable": lambda _: safejax.haiku.deserialize(
        FILE, like=haiku.data_structures.to_immutable_dict(LIKE), strict=False
    ),
    "objax": lambda _: safejax.objax.deserialize(
        safejax.objax.serialize(MORE), like=VARIABLES, strict=False
    ),
    "objax: assignment": lambda _: safejax.objax.deserialize_with_assignment(
        safejax.objax.serialize(MORE), VARIABLES, strict=False
    ),
    "equinox": lambda _: safejax.equinox.deserialize(
        safejax.equinox.serialize(mlp(3)), like=mlp(2), strict=False
    ),
}


@pytest.mark.parametrize("case", PARTIAL)
def test_a_partial_load_is_reported_where_it_was_called(case: str, tmp_path: Any) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(FILE)
    warning = warned(lambda: PARTIAL[case](path), safejax.PartialLoadWarning)
    assert warning.filename == __file__
    first = PARTIAL[case].__code__.co_firstlineno
    assert first <= warning.lineno <= first + 2


# ---- narrowed leaves

WIDE = safejax.serialize({"w": np.ones((4, 2)), "v": np.ones(2)})


def wide() -> Any:
    return safejax.deserialize(WIDE)


NARROWED: dict[str, Callable[[Any], object]] = {
    "materialize": lambda tree: safejax.materialize(tree),
    "jit": lambda tree: jax.jit(lambda w: w + 1)(tree["w"]),
    "closed over by jit": lambda tree: jax.jit(lambda x: x + tree["w"])(1.0),
    "jax.numpy": lambda tree: jnp.sin(tree["w"]),
    "device_put": lambda tree: jax.device_put(tree["w"], jax.devices()[0]),
    "block_until_ready": lambda tree: jax.block_until_ready(tree["w"]),
    "an operator": lambda tree: tree["w"] + 1,
    "a method": lambda tree: tree["w"].sum(),
    "an attribute": lambda tree: tree["w"].addressable_shards,
    "a part": lambda tree: tree["w"][1:].tolist(),
    "numpy": lambda tree: np.float32(2) * tree["w"],
    "format": lambda tree: f"{tree['w']:}" and tree["w"].tolist(),
    "safejax.testing": lambda tree: safejax.testing.assert_reads(tree, 80),
}


@pytest.mark.parametrize("case", NARROWED)
def test_a_narrowed_leaf_is_reported_where_its_values_were_needed(case: str) -> None:
    tree = wide()
    warning = warned(lambda: NARROWED[case](tree), safejax.PrecisionWarning)
    assert warning.filename == __file__
    assert warning.lineno == NARROWED[case].__code__.co_firstlineno


def test_a_narrowing_that_is_an_error_is_raised_where_the_values_were_needed() -> None:
    tree = wide()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(safejax.PrecisionWarning, match=r"leaf '[wv]' is stored as float64"):
            safejax.materialize(tree)
    assert not any(leaf.is_placed for leaf in tree.values())


# ---- the function itself


def test_a_line_that_warns_again_and_again_is_shown_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("default")
        for _ in range(3):
            warn_caller("this line", UserWarning)
        warn_caller("this line", UserWarning)
    lines = [warning.lineno for warning in caught]
    assert len(lines) == 2
    assert {warning.filename for warning in caught} == {__file__}


def test_a_warning_filter_for_the_callers_module_applies() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module=__name__.replace(".", r"\."))
        warn_caller("this module", UserWarning)
    assert len(caught) == 1


def test_a_users_thread_is_a_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=lambda: warn_caller("in a thread", UserWarning))
        thread.start()
        thread.join()
    assert [warning.filename for warning in caught] == [__file__]


def test_what_is_collected_is_not_issued_and_only_in_its_own_thread() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with warnings_collected() as messages:
            warn_caller("here", UserWarning)
            thread = threading.Thread(target=lambda: warn_caller("in a thread", UserWarning))
            thread.start()
            thread.join()
        warn_caller("after", UserWarning)
    assert messages == ["here"]
    assert [str(warning.message) for warning in caught] == ["in a thread", "after"]
