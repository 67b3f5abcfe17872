"""`elementwise` refuses functions that do not work element by element (S7)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import safejax
from safejax import Leaves, TransformError, elementwise

DATA = jnp.asarray([[3.0, -1.0, 2.5], [0.0, 7.0, -4.0]])

NOT_BY_ELEMENT: dict[str, Callable[[Any], Any]] = {
    "less the mean": lambda x: x - x.mean(),
    "less the largest": lambda x: x - x.max(),
    "less the smallest": lambda x: x - x.min(),
    "by the norm": lambda x: x / np.linalg.norm(x),
    "reversed": lambda x: x[..., ::-1],
    "turned": lambda x: x[::-1, ::-1] if x.ndim > 1 else x,
    "the rows reversed": lambda x: x[::-1],
    "less the mean of each column": lambda x: x - x.mean(0),
    "less the mean of each row": lambda x: x - x.mean(-1, keepdims=True),
    "sums of columns": lambda x: np.cumsum(x, axis=0, dtype=x.dtype),
    "by the number of rows": lambda x: x * x.shape[0],
    "sorted": lambda x: np.sort(x, axis=-1),
    "sums": lambda x: np.cumsum(x, axis=-1, dtype=x.dtype),
    "by position": lambda x: (x * np.arange(x.shape[-1])).astype(x.dtype),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(),
    "with noise": lambda x: (x + np.random.default_rng().normal(size=x.shape)).astype(x.dtype),
    "another dtype where it is short": lambda x: x if x.size > 1 else x.astype(np.float64),
}


@pytest.mark.parametrize("name", NOT_BY_ELEMENT)
def test_a_function_of_the_whole_leaf_is_refused(name: str) -> None:
    function = NOT_BY_ELEMENT[name]
    with pytest.raises(TransformError, match=r"leaf 'w': expected the function to work on each"):
        elementwise(function, "w")(Leaves({"w": DATA}))


BY_ELEMENT: dict[str, Callable[[Any], Any]] = {
    "one more": lambda x: x + 1,
    "reciprocal": lambda x: 1 / x,
    "logarithm": np.log,
    "a table of two": lambda x: np.asarray([5, 6], np.int8)[x.astype(np.int8) & 1],
    "to another dtype": lambda x: x.astype(ml_dtypes.float8_e4m3fn),
    "is finite": np.isfinite,
    "not a number": lambda x: x * np.nan,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "bool", "float8_e5m2"])
@pytest.mark.parametrize("name", BY_ELEMENT)
def test_a_function_of_each_element_is_taken(name: str, dtype: str) -> None:
    host = np.asarray([[1, 0, 1], [0, 1, 1]], dtype)
    if dtype == "bool" and name == "not a number":
        host = host.astype(np.float16)
    leaves = elementwise(BY_ELEMENT[name], "w")(Leaves({"w": host}))
    with np.errstate(all="ignore"):
        expected = np.asarray(BY_ELEMENT[name](host))
        actual = np.asarray(leaves["w"])
    np.testing.assert_array_equal(actual, expected)


def test_an_error_of_the_function_names_the_leaf() -> None:
    with pytest.raises(TransformError, match=r"leaf 'names': .* int8.* raised TypeError: .*shift"):
        elementwise(lambda x: x << 1.5, "*")(Leaves({"names": np.ones(3, np.int8)}))

    def later(array: Any) -> Any:
        if array.size > 8:
            raise ValueError("too many")
        return array

    leaf = elementwise(later, "w")(Leaves({"w": jnp.ones((3, 3))}))["w"]
    with pytest.raises(TransformError, match=r"leaf 'w': .*float32\[3, 3\], it raised ValueError"):
        np.asarray(leaf)


def test_one_array_under_two_names_is_two_leaves() -> None:
    def twice(leaves: Leaves) -> Leaves:
        return leaves.replace({**leaves, "again": leaves["w"]})

    tree = safejax.deserialize(safejax.serialize({"w": DATA}), transform=twice)
    assert tree["w"] is not tree["again"]

    def add(one: jax.Array, other: jax.Array) -> jax.Array:
        return one + other

    expected = np.asarray(DATA) * 2
    total = jax.jit(add, donate_argnums=0)(*safejax.materialize([tree["w"], tree["again"]]))
    np.testing.assert_array_equal(np.asarray(total), expected)
