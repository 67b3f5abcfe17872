"""diff: what is said of two files or trees that are the same, and of those that differ."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import safejax
from safejax._src.inspection.statistics import WINDOW_ELEMENTS
from tests.support.files import golden

GOLDEN = Path(__file__).parents[2] / "golden" / "v1"


SOME = {"dtypes", "keys", "scalars", "containers", "rare_dtypes"}


@pytest.mark.parametrize(
    "path", [path for path in golden(GOLDEN) if path.stem in SOME], ids=lambda path: path.stem
)
def test_a_file_is_the_same_as_itself_and_as_its_tree(path: Path) -> None:
    data = path.read_bytes()
    difference = safejax.diff(path, data)
    assert difference.is_same
    assert difference.same == len(safejax.inspect(path).tensors)
    if path.stem != "rare_dtypes":  # JAX has not all of them.
        assert safejax.diff(safejax.decode(data), path).is_same


def test_all_that_differs_is_said() -> None:
    a = {"same": jnp.ones(3), "shape": jnp.ones((2, 3)), "gone": jnp.ones(1), "n": 1, "l": [1, 2]}
    b = {"same": jnp.ones(3), "shape": jnp.ones((3, 2)), "new": jnp.ones(1), "n": 2, "l": (1, 2)}
    one = safejax.serialize(a, metadata={"step": "1", "only": "a"})
    other = safejax.serialize(b, metadata={"step": "2"})
    found = safejax.diff(one, other)
    assert not found.is_same
    assert [(each.name, each.a, each.b) for each in found.tensors] == [
        ("shape", "float32[2,3]", "float32[3,2]")
    ]
    assert found.tensors[0].differing is None
    assert (found.only_a, found.only_b) == ({"gone": "float32[1]"}, {"new": "float32[1]"})
    assert found.values == {"n": ("1", "2")}
    assert found.structure == {"l": ("list", "tuple")}
    assert found.metadata == {"only": ("a", None), "step": ("1", "2")}
    assert found.same == 1
    assert json.loads(found.to_json())["values"] == {"n": ["1", "2"]}
    for line in ("only in a: gone float32[1]", "metadata 'only': a and none"):
        assert line in str(found).splitlines()
    assert "only in a: gone" in found._repr_html_()  # pyright: ignore[reportPrivateUsage]


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.5], (1, 0.5, 0.2, 0)),
        ([NAN, 1.0], [NAN, 1.0], None),
        ([NAN, 1.0], [1.0, 1.0], (1, 0.0, 0.0, 1)),
        ([INF, -INF], [INF, -INF], None),
        ([INF], [1.0], (1, INF, INF, 0)),
        ([INF], [-INF], (1, INF, 0.0, 0)),
        ([0.0, 1.0], [-0.0, 1.0], None),
        ([1.0], [0.0], (1, 1.0, INF, 0)),
        (np.array([2**53, 1]), np.array([2**53 + 1, 1]), (1, 1.0, 2.0**-53, 0)),
        (np.array([200], np.uint8), np.array([100], np.uint8), (1, 100.0, 1.0, 0)),
        ([True, False], [True, True], (1, 1.0, 1.0, 0)),
        ([1 + 1j], [1 - 1j], (1, 2.0, 2**0.5, 0)),
    ],
    ids=repr,
)
def test_values(a: Any, b: Any, expected: tuple[Any, ...] | None) -> None:
    found = safejax.diff({"w": np.asarray(a)}, {"w": np.asarray(b)})
    assert found.is_same == (expected is None)
    if expected is not None:
        (tensor,) = found.tensors
        numbers: Any = tensor.differing, tensor.max_absolute, tensor.max_relative, tensor.nans
        np.testing.assert_allclose(numbers, expected, rtol=1e-12)


def test_tolerances_are_those_of_allclose() -> None:
    rng = np.random.default_rng(0)
    b = rng.normal(size=1000)
    a = b * (1 + 1e-3 * rng.normal(size=1000))
    for rtol, atol in ((0, 0), (1e-3, 0), (0, 1e-3), (1e-3, 1e-4), (1, 0)):
        found = safejax.diff({"w": a}, {"w": b}, rtol=rtol, atol=atol)
        expected = int((~np.isclose(a, b, rtol=rtol, atol=atol)).sum())
        assert (found.tensors[0].differing if found.tensors else 0) == expected
    with pytest.raises(ValueError, match="rtol: expected a number, 0 or more, got -1"):
        safejax.diff({}, {}, rtol=-1)


def test_dtypes_that_differ_are_compared_and_never_the_same() -> None:
    w = np.linspace(0, 1, WINDOW_ELEMENTS + 7, dtype=np.float32)
    found = safejax.diff({"w": w}, {"w": w.astype(ml_dtypes.bfloat16)}, rtol=1e-2)
    (tensor,) = found.tensors
    assert (tensor.a, tensor.b, tensor.differing) == (
        f"float32[{w.size}]", f"bfloat16[{w.size}]", 0
    )  # fmt: skip
    assert tensor.max_relative is not None
    assert 0 < tensor.max_relative <= 2**-8
    assert not found.is_same


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"text": "x" * 500 + "a"}, {"text": "x" * 500 + "b"}),
        ({"text": "x" * 500}, {"text": "x" * 501}),
        ({"n": 10**200}, {"n": 10**200 + 1}),
        ({"n": 1 << 20_000}, {"n": (1 << 20_000) + 1}),
        ({"n": 1}, {"n": True}),
        ({"n": 0.0}, {"n": -0.0}),
    ],
    ids=["end", "length", "int", "long", "type", "sign"],
)
def test_values_that_begin_alike_differ(a: Any, b: Any) -> None:
    found = safejax.diff(safejax.serialize(a), safejax.serialize(b))
    assert not found.is_same
    ((one, other),) = found.values.values()
    assert one != other
    assert f"{one} and {other}" in str(found)
    assert safejax.diff(safejax.serialize(a), safejax.serialize(a)).is_same


def test_metadata_that_begins_alike_is_shown_where_it_differs() -> None:
    one, other = (safejax.serialize({}, metadata={"m": "x" * 500 + end}) for end in "ab")
    assert "xa and …x" in str(safejax.diff(one, other))


def test_containers_of_one_class_differ_in_keys_and_order() -> None:
    pairs: list[tuple[Any, Any]] = [
        (OrderedDict({1: 1.0, 2: 2.0}), OrderedDict({1: 1.0, "2": 2.0})),
        (OrderedDict(b=1.0, a=2.0), OrderedDict(a=2.0, b=1.0)),
    ]
    for a, b in pairs:
        found = safejax.diff(safejax.serialize(a), safejax.serialize(b))
        assert found.structure.keys() == {""}
        one, other = found.structure[""]
        assert one != other
        assert safejax.diff(safejax.serialize(a), a).is_same


def test_integers_of_two_dtypes_are_compared_exactly() -> None:
    a, b = np.array([2**53 + 1, -1]), np.array([2**53, 2**64 - 1], np.uint64)
    (tensor,) = safejax.diff({"w": a}, {"w": b}).tensors
    assert tensor.differing == 2
    assert tensor.max_absolute == 2.0**64
