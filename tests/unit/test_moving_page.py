"""What safejax 0.5 had works, or its error names the new way; the page about it is true."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
import safetensors.numpy

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.objax
from tests.support.leaves import bits
from tests.support.pages import blocks_of, run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "moving-from-0.5.md").read_text()
PROGRAMS = blocks_of(ROOT / "docs" / "moving-from-0.5.md")
ROWS = re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE)
CALLS = [row for row in ROWS if not row[0].startswith("from ")]
IMPORTS = [row for row in ROWS if row[0].startswith("from ")]

X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any) -> dict[str, Any]:
    """What the programs and the tables of the page take for granted."""
    monkeypatch.chdir(tmp_path)
    params = {"dense": {"kernel": jnp.asarray(X), "bias": jnp.ones(3)}}
    variables = objax.VarCollection({"(Net).w": objax.TrainVar(jnp.asarray(X))})
    data = safetensors.numpy.save({"dense.kernel": X, "dense.bias": np.ones(3, np.float32)})
    for name in ("old.safetensors", "model.safetensors"):
        Path(name).write_bytes(data)
    memory.pipe("model.safetensors", data)
    return {
        "flax": flax, "safejax": safejax, "hk": hk, "params": params, "variables": variables,
        "state": {"ema": {"counter": jnp.int32(3)}}, "path": "model.safetensors", "data": data,
        "objax_data": safetensors.numpy.save({"(Net).w::TrainVar": X}), "fs": memory,
    }  # fmt: skip


def test_the_page_lists_every_argument_and_module() -> None:
    old = " ".join(row[0] for row in ROWS)
    for gone in (
        "freeze_dict", "requires_unflattening", "include_objax_variables", "to_var_collection",
        "path_or_buf", "filename", "safejax.core.save", "safejax.core.load", "safejax.utils",
        "safejax.typing",
    ):  # fmt: skip
        assert gone in old
    assert len(PROGRAMS) == PAGE.count("```python") == 5
    assert len(CALLS) == 14
    assert len(IMPORTS) == 7


def test_the_programs_run(scope: dict[str, Any]) -> None:
    own = bits(scope["params"])
    for program in PROGRAMS:
        run(program, scope)
        if "haiku" in program.text:
            assert bits(scope["decoded"]["params"]) == own
    with safetensors.safe_open("new.safetensors", "numpy") as file:
        assert set(file.keys()) == {"dense.kernel", "dense.bias"}
    assert type(safejax.load("new.safetensors")) is flax.core.FrozenDict
    assert np.asarray(scope["variables"]["(Net).w"].value).tobytes() == X.tobytes()


@pytest.mark.parametrize(("old", "new"), CALLS)
def test_a_call_of_0_5_names_the_new_way(old: str, new: str, scope: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as said:
        eval(old, scope)
    # The error names a function of the new way, or what to leave out.
    function = new.partition("(")[0]
    assert any(each in str(said.value) for each in (function, "give it first", "leave it out"))
    result = eval(new, scope)
    if result is None:
        result = safejax.load(scope["path"], fs=scope["fs"] if "fs" in new else None)
    if isinstance(result, bytes):
        result = safejax.decode(result)
    arrays = (
        result.tensors()
        if isinstance(result, objax.VarCollection)
        else jax.tree.leaves(dict(result))
    )
    assert X.tobytes() in [np.asarray(array).tobytes() for array in arrays]


@pytest.mark.parametrize(("old", "new"), IMPORTS)
def test_an_import_of_0_5_names_the_new_way(old: str, new: str) -> None:
    module = old.split()[1]
    with pytest.raises(ImportError, match=r"was a module of safejax 0\.5 and is gone") as said:
        exec(old, {})
    assert type(said.value) is ImportError
    exec(new, {})
    for program in (f"import {module}", f"from safejax import {module.split('.')[1]}"):
        with pytest.raises(ImportError, match=r"was a module of safejax 0\.5 and is gone"):
            exec(program, {})
    for function in old.split(" import ")[1].split(", "):
        if function.endswith(("_dict", "_variables")):
            assert function in str(said.value)


@pytest.mark.parametrize("name", ["core", "utils", "typing"])
def test_a_module_of_0_5_as_an_attribute(name: str) -> None:
    assert not hasattr(safejax, name)
    with pytest.raises(AttributeError, match=rf"safejax\.{name} was a module of safejax 0\.5"):
        getattr(safejax, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'$"):
        getattr(safejax, "nothing")  # noqa: B009


OPTIONS: list[tuple[Callable[..., Any], str, Any]] = [
    *(
        (module.serialize, "include_objax_variables", value)
        for module in (safejax, safejax.flax, safejax.haiku, safejax.objax)
        for value in (False, True)
    ),
    *(
        (function, option, value)
        for function in (
            safejax.deserialize, safejax.load, safejax.flax.deserialize, safejax.haiku.deserialize,
            safejax.objax.deserialize,
        )
        for option in ("freeze_dict", "requires_unflattening", "to_var_collection")
        for value in (False, True)
    ),
]  # fmt: skip


@pytest.mark.parametrize(("function", "option", "value"), OPTIONS)
def test_an_option_of_0_5(function: Callable[..., Any], option: str, value: bool) -> None:
    message = rf"{function.__qualname__}\(\) got the argument '{option}' of safejax 0\.5"
    with pytest.raises(TypeError, match=message):
        function(b"", **{option: value})
    if function.__name__ == "deserialize":
        with pytest.raises(TypeError, match=r"'path_or_buf' of safejax 0\.5.*give it first"):
            function(path_or_buf=b"")


def test_options_of_0_5_by_position(scope: dict[str, Any]) -> None:
    """The bool that 0.5 had second was taken for a filename."""
    params, fs = scope["params"], scope["fs"]
    for module in (safejax, safejax.flax, safejax.haiku, safejax.objax):
        for rest in ((False,), (True,), (False, "x.safetensors"), (False, "x.safetensors", fs)):
            with pytest.raises(TypeError, match=r"'include_objax_variables' of safejax 0\.5"):
                module.serialize(params, *rest)
    with pytest.raises(TypeError, match=r"'filename' of safejax 0\.5.*call safejax\.save"):
        safejax.serialize(params, "x.safetensors")
    assert not Path("x.safetensors").exists()
    with pytest.raises(TypeError, match=r"'freeze_dict' of safejax 0\.5"):
        safejax.flax.deserialize("model.safetensors", None, True)
    with pytest.raises(TypeError, match=r"'fs' of safejax 0\.5.*call safejax\.load"):
        safejax.deserialize("model.safetensors", fs)


def test_other_mistakes_are_told_as_ever() -> None:
    with pytest.raises(TypeError, match="did you mean 'strict'"):
        safejax.flax.deserialize(b"", stric=True)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        safejax.flax.deserialize()
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        safejax.serialize({}, colour=3)


def test_signatures_are_those_of_the_functions() -> None:
    assert list(inspect.signature(safejax.flax.serialize).parameters)[:4] == [
        "params", "filename", "metadata", "fs",
    ]  # fmt: skip
    assert "strict" in inspect.signature(safejax.deserialize).parameters
    assert safejax.load.__module__ == "safejax"


@pytest.mark.parametrize("framework", ["flax", "haiku", "objax"])
def test_the_golden_files_of_0_5_are_read_by_the_new_way(framework: str) -> None:
    path = ROOT / "tests" / "golden" / "foreign" / f"safejax-0.5-{framework}.safetensors"
    stored = safetensors.numpy.load(path.read_bytes())
    adapter = {"flax": safejax.flax, "haiku": safejax.haiku, "objax": safejax.objax}[framework]
    leaves = jax.tree.leaves(adapter.deserialize(path))
    if framework == "objax":
        leaves = adapter.deserialize(path).tensors()
    assert sorted(np.asarray(leaf).tobytes() for leaf in leaves) == sorted(
        array.tobytes() for array in stored.values()
    )
