"""The examples and tables of the page that specifies the file are true."""

import collections
import json
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors

import safejax
from safejax.testing import assert_trees_identical
from tests.support.files import data_begin, header_of

PAGE = (Path(__file__).parent.parent.parents[1] / "docs" / "format.md").read_text()
FENCE = re.compile(r"^```(python|json)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"`([^`]*)`")


def examples() -> list[tuple[str, str]]:
    """Each program of the page, with the JSON that follows it."""
    found: list[tuple[str, str]] = []
    program = ""
    for language, text in FENCE.findall(PAGE):
        if language == "json":
            assert program, "an example of JSON follows the program that writes it"
            found.append((program, text))
            program = ""
        elif "safejax.save" in text:
            assert not program, "an example of a program is followed by its JSON"
            program = text
    return found


def header_text(path: Path) -> str:
    data = path.read_bytes()
    return data[8 : data_begin(data)].decode()


def compact(value: Any, *, ascii_only: bool = False) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=ascii_only)


def test_the_page_has_an_example_of_every_field() -> None:
    shown = " ".join(text for _, text in examples())
    for field in ("kinds", "paths", "values", "dtypes", "keys", "weak", "digests", "weight_map"):
        assert f'"{field}":' in shown
    assert len(examples()) == PAGE.count("```json")


@pytest.mark.parametrize(("program", "text"), examples())
def test_an_example_shows_what_is_written_and_can_be_read(
    program: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {
        "collections": collections, "jax": jax, "ml_dtypes": ml_dtypes, "np": np,
        "safejax": safejax,
    }  # fmt: skip
    exec(program, scope)
    value = json.loads(text)
    if "weight_map" in value:
        assert (tmp_path / "model" / "model.safetensors.index.json").read_text() == text
        path = tmp_path / "model"
    else:
        path = tmp_path / "model.safetensors"
        header = header_text(path)
        if "version" in value:
            with safetensors.safe_open(path, "numpy") as file:
                assert file.metadata()["safejax"] == compact(value, ascii_only=True)
        else:
            assert header.rstrip(" ") == compact(value)
        assert (8 + len(header.encode())) % 64 == 0
    assert_trees_identical(safejax.load(path), scope["tree"])


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under the row of this heading."""
    lines = PAGE[PAGE.index(heading) :].splitlines()[2:]
    table = lines[: next(n for n, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, name))


def stored(dtype: Any, count: int) -> tuple[str, str | None]:
    """The code that an array of `dtype` is stored under, and the dtype that is recorded."""
    data = safejax.serialize({"x": np.zeros(count, dtype)})
    header = header_of(data)
    record = json.loads(header.get("__metadata__", {}).get("safejax", "{}"))
    return header["x"]["dtype"], record.get("dtypes", {}).get("x")


def test_the_table_of_codes_is_true() -> None:
    pairs = [
        (code, name)
        for codes, names, _ in rows("| code | dtype in NumPy and JAX |")
        for code, name in zip(CELL.findall(codes), CELL.findall(names), strict=True)
    ]
    assert len(pairs) == 20
    for code, name in pairs:
        assert stored(dtype_of(name), 2) == (code, None)


def test_the_table_of_recorded_dtypes_is_true() -> None:
    pairs = [
        (code, name)
        for names, codes, _ in rows("| dtype | code |")
        for code in CELL.findall(codes)
        for name in CELL.findall(names)
    ]
    assert len(pairs) == 13
    for code, name in pairs:
        if name == "complex128" or hasattr(ml_dtypes, name):  # An older ml_dtypes lacks int1.
            assert stored(dtype_of(name), 3) == (code, name)


def test_the_table_of_key_implementations_is_true() -> None:
    for implementation, shape in rows("| implementation |"):
        key = jax.random.key(0, impl=implementation.strip("`"))
        assert list(jax.random.key_data(key).shape) == json.loads(shape.strip("`"))
