"""Messages of transforms: the fault first, all leaves that have it, and the step last and short."""

import re
from typing import Any

import numpy as np
import pytest

import safejax as sj
from safejax import Leaves, NotInvertibleError, TransformError

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
ROW = MATRIX[0]
LONG = {f"layers.{{i}}.a_name_that_is_long_{k}": f"{{i}}.{k}" for k in range(9)}


def other(a: Any, b: Any) -> Any:
    return a


def raises(a: Any) -> Any:
    raise ValueError("no")


def pairs(wrong: Any) -> dict[str, Any]:
    return {"a.0": MATRIX, "a.1": wrong, "b.0": MATRIX, "b.1": wrong, "c.0": ROW, "c.1": ROW}


# The step, the leaves, what the message begins with, and all the names that it has to say.
FAULTS: dict[str, tuple[Any, dict[str, Any], str, tuple[str, ...]]] = {
    "cast": (
        sj.cast("bfloat16", source="float32"),
        {"a": MATRIX.astype("bfloat16"), "b": ROW},
        "leaf 'a'",
        ("a",),
    ),
    "transpose": (sj.transpose("*"), {"a": ROW, "b": ROW}, "leaf 'a'", ("a", "b")),
    "reshape": (sj.reshape("*", (5,)), {"a": ROW, "b": MATRIX}, "leaf 'a'", ("a", "b")),
    "permute": (sj.permute("*", 0, (1, 0, 2, 3)), {"a": ROW, "b": ROW}, "leaf 'a'", ("a", "b")),
    "pad": (sj.pad("*", axis=0, to=2), {"a": ROW, "b": ROW}, "leaf 'a'", ("a", "b")),
    "offset": (sj.offset("*", 1), {"a": ROW > 0, "b": ROW > 1}, "leaf 'a'", ("a", "b")),
    "keys": (sj.keys("*"), {"a": ROW, "b": ROW}, "leaf 'a'", ("a", "b")),
    "elementwise": (sj.elementwise(raises, "*"), {"a": ROW, "b": ROW}, "leaf 'a'", ("a", "b")),
    "prefix": (sj.prefix("m").inverse, {"a": ROW, "b": ROW}, "", ("a", "b")),
    "select, several": (
        sj.select("x", "y"),
        {"a": ROW},
        "expected 'x' to match a leaf",
        ("x", "y"),
    ),
    "rename, unused": (
        sj.rename({"x": "z", "y": "w"}),
        {"a": ROW},
        "expected 'x' to match",
        ("x", "y"),
    ),
    "rename, shadowed": (
        sj.rename({"*": "*", "a": "b", "c": "d"}),
        {"a": ROW, "c": ROW},
        "expected 'a' to match a leaf of its own, but '*', which comes before it",
        ("a", "c"),
    ),
    "rename, taken": (
        sj.rename({"{i}.x": "{i}"}),
        {"a.x": ROW, "a": ROW, "b": ROW, "b.x": ROW},
        "expected a name",
        ("a.x", "a", "b.x"),
    ),
    "rename, long": (
        sj.rename(LONG, strict=True),
        {"a": ROW, "b": ROW},
        "expected a template",
        ("a", "b"),
    ),
    "stack, shapes": (
        sj.stack("{p}.{i}", "{p}"),
        pairs(ROW),
        "expected arrays of one shape",
        ("a.0", "a.1", "b"),
    ),
    "stack, padded": (
        sj.stack("{p}.{i}", "{p}"),
        {"a.00": ROW, "a.01": ROW},
        "leaf 'a.00'",
        ("a.00", "a.01"),
    ),
    "stack of names": (
        sj.stack(["{p}.0", "{p}.1"], "{p}"),
        pairs(ROW),
        "'a': expected arrays",
        ("a", "b"),
    ),
    "unstack": (
        sj.unstack("{p}", "{p}.{i}", count=3),
        {"a": MATRIX, "b": MATRIX, "c": ROW},
        "leaf 'a'",
        ("a", "b"),
    ),
    "split": (
        sj.split("{p}", ["{p}.0", "{p}.1"]),
        {"a": ROW, "b": ROW, "c": MATRIX},
        "leaf 'a'",
        ("a", "b"),
    ),
    "split, left alone": (
        sj.split("{p}.f", ["{p}.0", "{p}.1"]),
        {"a.f": MATRIX, "b.0": ROW, "b.1": ROW},
        "leaf 'b.0'",
        ("b.0", "b.1"),
    ),
    "concat, one missing": (
        sj.concat(["{p}.0", "{p}.1"], "{p}"),
        {"a.0": ROW, "b.1": ROW},
        "'a': expected 2",
        ("a", "b"),
    ),
    "concat, sizes": (
        sj.concat(["{p}.0", "{p}.1"], "{p}"),
        pairs(MATRIX[:1]),
        "'a': expected the sizes",
        ("a", "b"),
    ),
    "merge, shapes": (
        sj.merge({"{p}": ["{p}.0", "{p}.1"]}, other, axes="i j, i j -> i j"),
        pairs(ROW),
        "leaf 'a.0' and 'a.1'",
        ("b", "c"),
    ),
    "merge, raises": (
        sj.merge({"{p}.w": ["{p}.0"]}, raises, axes="... -> ..."),
        {"a.0": ROW, "b.0": ROW},
        "leaf 'a.w'",
        ("a.w", "b.w"),
    ),
    "merge, missing": (
        sj.merge({"{p}.w": ["{p}.0", "{p}.1"]}, other),
        {"a.0": ROW, "b.1": ROW},
        "expected a leaf for each",
        ("a.w", "b.w"),
    ),
    "merge, unused": (
        sj.merge({"x": ["x.0"], "y": ["y.0"]}, raises),
        {"a": ROW},
        "expected 'x.0' to match",
        ("x.0", "y.0"),
    ),
    "merge, shadowed": (
        sj.merge({"{p}.w": ["{p}.0"], "x": ["a.0"]}, raises, axes="... -> ..."),
        {"a.0": ROW},
        "expected 'a.0' to match a leaf of its own, but '{p}.0', which comes before it",
        (),
    ),
    "unmerge": (
        sj.merge(
            {"{p}": ["{p}.0"]}, lambda a: a, axes="i j -> i j", inverse=lambda w: (w,)
        ).inverse,
        {"a": ROW, "b": ROW},
        "leaf 'a'",
        ("a", "b"),
    ),
    "tie": (
        sj.tie({"{p}.b": "{p}.a"}),
        {"x.a": ROW, "x.b": ROW, "y.a": ROW, "y.b": ROW},
        "expected 'x.b'",
        ("x.b", "y.b"),
    ),
    "tie, trained apart": (
        sj.tie({"{p}.b": "{p}.a"}).inverse,
        {"x.a": ROW, "x.b": ROW + 1, "y.a": ROW, "y.b": MATRIX},
        "leaf 'x.b'",
        ("x.b", "y.b"),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_message_begins_with_the_fault_and_ends_with_the_step(case: str) -> None:
    step, entries, beginning, names = FAULTS[case]
    with pytest.raises(TransformError) as raised:
        step(Leaves(entries))
    message = str(raised.value)
    assert re.match(r"(leaf )?'|expected ", message), message
    assert message.startswith(beginning)
    assert all(repr(name) in message for name in names), message
    shown = repr(step)
    assert message.endswith(f"; in {shown if len(shown) <= 160 else f'{shown[:159]}…'}")
    assert message.count("; in ") == 1


@pytest.mark.parametrize(
    "step",
    [
        sj.cast("bfloat16"),
        sj.reshape("*", (-1,)),
        sj.pad("*", axis=0, to=4),
        sj.scale("*", 3, exact=False),
        sj.elementwise(raises, "*"),
        sj.merge({"x": ["y"]}, raises),
        sj.select("*"),
        sj.step(raises),
    ],
    ids=repr,
)
def test_so_does_that_of_a_step_without_an_inverse(step: Any) -> None:
    with pytest.raises(NotInvertibleError, match=r"^expected .*: .*; in ") as raised:
        step.inverse  # noqa: B018 - it raises
    assert str(raised.value).endswith(repr(step))
