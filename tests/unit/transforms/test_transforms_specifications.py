"""Wrong specifications of transforms are errors when they are built, each with its reason."""

from typing import Any

import numpy as np
import pytest

from safejax import (
    TransformError,
    cast,
    chain,
    concat,
    drop,
    elementwise,
    prefix,
    rename,
    reshape,
    select,
    split,
    stack,
    step,
    transpose,
    unstack,
)

WRONG: dict[str, tuple[Any, str]] = {
    "cast to no dtype": (lambda: cast("float33"), "dtype that JAX has, got 'float33'"),
    "cast to None": (lambda: cast(None), "dtype that JAX has, got None"),
    "cast to text": (lambda: cast("U5"), "dtype that JAX has"),
    "cast from no dtype": (lambda: cast("float32", source="x"), "source"),
    "cast floats to ints": (lambda: cast("int8"), "source="),
    "cast where a number": (lambda: cast("float32", where=3), "where: expected a pattern"),
    "cast where half a brace": (lambda: cast("float32", where="a.{i"), "placeholder like"),
    "rename a list": (lambda: rename(["a"]), "expected a mapping"),
    "rename nothing": (lambda: rename({}), "at least one"),
    "rename to a number": (lambda: rename({"a": 1}), "strings, got 1"),
    "rename other placeholders": (lambda: rename({"a.{i}": "b.{j}"}), "same placeholders"),
    "rename a star too many": (lambda: rename({"a.*": "b"}), "same placeholders"),
    "rename two to one": (lambda: rename({"a": "c", "b": "c"}), "'c' twice"),
    "rename side by side": (lambda: rename({"{a}{b}": "{b}.{a}"}), "text between"),
    "rename no identifier": (lambda: rename({"{0}": "{0}"}), "placeholder like"),
    "transpose all": (lambda: transpose(None), "pattern or a function"),
    "transpose no permutation": (lambda: transpose("w", axes=(0, 2)), "permutation"),
    "transpose negative": (lambda: transpose("w", axes=(-1, 0)), "permutation"),
    "reshape all": (lambda: reshape(None, (1,)), "pattern or a function"),
    "reshape two unknown": (lambda: reshape("w", (-1, -1)), "one of which may be -1"),
    "reshape a negative size": (lambda: reshape("w", (-2, 3)), "expected shape to be sizes"),
    "reshape a fraction": (lambda: reshape("w", (1.5,)), "expected shape to be sizes"),
    "reshape a number": (lambda: reshape("w", 3), "expected shape to be sizes"),
    "reshape unknown beside nothing": (lambda: reshape("w", (0, -1)), "a 0 next to it"),
    "reshape from a text": (lambda: reshape("w", (1,), source="ab"), "expected source"),
    "stack without a number": (lambda: stack("layers.*"), "one segment for the number"),
    "stack two numbers": (lambda: stack("{a}.{b}"), "into="),
    "stack within a segment": (lambda: stack("layer_{i}.*"), "into="),
    "stack only a number": (lambda: stack("{i}"), "into="),
    "stack into all placeholders": (lambda: stack("a.{i}", "b.{i}"), "one placeholder of 'a.{i}'"),
    "stack into fewer": (lambda: stack("{a}.{b}.{c}", "{a}"), r"got \['b', 'c'\]"),
    "stack into others": (lambda: stack("{a}.{i}", "{b}"), "that '{b}' lacks"),
    "stack the star": (lambda: stack("a.*", "a"), r"for the number, got \['\*0'\]"),
    "stack a number": (lambda: stack(3), "templates to be strings"),
    "stack a fraction of an axis": (lambda: stack("a.{i}", axis=0.5), "axis to be an int"),
    "unstack without a number": (lambda: unstack("a", "b"), "got none"),
    "unstack no axis": (lambda: unstack("a", "a.{i}", axis=None), "axis to be an int, got None"),
    "split into text": (lambda: split("a", "bc"), "a sequence of templates, got 'bc'"),
    "split into nothing": (lambda: split("a", []), "a sequence of templates"),
    "split into the same": (lambda: split("a", ["b", "b"]), "one twice"),
    "split into others": (lambda: split("a.{i}", ["b.{i}", "c"]), "same placeholders"),
    "split by too few sizes": (lambda: split("a", ["b", "c"], sizes=(1,)), "2 sizes of 1 or more"),
    "split by nothing": (lambda: split("a", ["b", "c"], sizes=(0, 1)), "2 sizes of 1 or more"),
    "split by a number": (lambda: split("a", ["b", "c"], sizes=2), "2 sizes of 1 or more"),
    "split an axis by name": (lambda: split("a", ["b", "c"], axis="x"), "axis to be an int"),
    "concat a text": (lambda: concat("ab", "c"), "a sequence of templates, got 'ab'"),
    "concat numbers": (lambda: concat([1, 2], "c"), "templates to be strings, got 1"),
    "concat others": (lambda: concat(["a.{i}", "b.{j}"], "c.{i}"), "same placeholders"),
    "select nothing": (lambda: select(), "got none"),
    "select None": (lambda: select(None), "got none"),
    "select a number": (lambda: select("a", 3), "expected a pattern or a function"),
    "drop nothing": (lambda: drop(), "got none"),
    "drop half a brace": (lambda: drop("a.}"), "placeholder like"),
    "prefix nothing": (lambda: prefix(""), "a string to put before names, got ''"),
    "prefix a number": (lambda: prefix(3), "got 3"),
    "prefix half a character": (lambda: prefix("\ud800"), "surrogate"),
    "elementwise no function": (lambda: elementwise(3, "w"), "a function of an array, got 3"),
    "elementwise no inverse": (lambda: elementwise(np.exp, "w", inverse="log"), "got 'log'"),
    "elementwise all": (lambda: elementwise(np.exp, None), "pattern or a function"),
    "step no function": (lambda: step(None), "expected a function"),
    "chain a number": (lambda: chain(3), "expected a function"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_specification_is_an_error_when_it_is_built(case: str) -> None:
    build, message = WRONG[case]
    with pytest.raises(TransformError, match=message):
        build()


def test_there_are_wrong_specifications_enough() -> None:
    assert len(WRONG) >= 40
