"""What a class hands on to the placed array, tried on a class of a few lines."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from safejax._src.arrays.forwarding import NOT_HANDED_ON, hand_on, with_placed

ARRAY_TYPE = type(jnp.zeros(()))


class Later:
    """A value that is made when it is asked for, and counts how often."""

    shape = "its own"

    def __init__(self, *values: float) -> None:
        self.values = values
        self.asked = 0

    def placed(self) -> Any:
        self.asked += 1
        return jnp.array(self.values, jnp.float32)

    def __array__(self) -> Any:
        return np.array("its own")


hand_on(Later, ARRAY_TYPE)


def test_what_the_class_defines_is_its_own() -> None:
    later = Later(1, 2)
    assert later.shape == "its own"
    assert np.asarray(later) == "its own"
    assert later.asked == 0


def test_everything_else_is_the_placed_arrays() -> None:
    later: Any = Later(1, 2)
    assert later.dtype == jnp.float32
    assert later.mean() == 1.5
    assert [float(value) for value in later + 1] == [2, 3]
    assert [bool(value) for value in later > 1] == [False, True]
    with pytest.raises(AttributeError):
        _ = later.no_such_name


def test_special_names_that_are_not_listed_are_not_handed_on() -> None:
    for name in NOT_HANDED_ON:
        assert vars(Later).get(name) is None or "placed array" not in str(vars(Later)[name].__doc__)
    assert "__jax_array__" not in vars(Later)


def test_operands_are_placed_too() -> None:
    one: Any = Later(1)
    other: Any = Later(2)
    assert [float(value) for value in one - other] == [-1]
    assert one.asked == other.asked == 1


def test_placing_looks_one_level_into_tuples() -> None:
    later = Later(1)
    (placed, five), as_it_is = with_placed(((later, 5), [later]), Later)
    assert isinstance(placed, ARRAY_TYPE)
    assert five == 5
    assert as_it_is == [later]


def test_methods_are_named_as_those_of_the_class() -> None:
    method = vars(Later)["__add__"]
    assert (method.__qualname__, method.__module__) == ("Later.__add__", __name__)
    assert method.__doc__ == "`__add__` of the placed array."
    assert vars(Later)["mean"].__doc__ == "`mean` of the placed array."
