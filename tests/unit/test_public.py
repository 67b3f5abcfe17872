"""What `repr`, `help()`, pickles and look-ups show of a public name."""

import ast
import copy
import doctest
import importlib
import inspect
import pickle
import pydoc
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import safejax
from safejax._src.public import set_module

PACKAGE = Path(safejax.__file__).parent
MODULES = ["", "equinox", "flax", "haiku", "nnx", "objax", "recipes", "testing"]
PUBLIC = [
    (f"safejax.{module}".rstrip("."), name)
    for module in MODULES
    for name in importlib.import_module(f"safejax.{module}".rstrip(".")).__all__
]
NAMED = {
    name: value
    for name, value in ((name, getattr(safejax, name)) for name in safejax.__all__)
    if inspect.isclass(value) or inspect.isfunction(value)
}
FUNCTIONS = [name for name, value in NAMED.items() if inspect.isfunction(value)]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_a_public_name_says_a_public_module(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert "_src" not in value.__module__
        assert getattr(importlib.import_module(value.__module__), name) is value


@pytest.mark.parametrize("name", NAMED)
def test_what_is_exported_at_the_top_says_so(name: str) -> None:
    value = NAMED[name]
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    module = "safejax.errors" if is_error else "safejax"
    assert value.__module__ == module
    assert f"in module {module}" in pydoc.render_doc(value)
    if inspect.isclass(value):
        assert repr(value) == f"<class '{module}.{name}'>"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_source_of_a_function_is_found(name: str) -> None:
    function = NAMED[name]
    assert f"def {name}(" in inspect.getsource(function)
    file = inspect.getsourcefile(inspect.unwrap(function))
    assert file is not None
    assert "_src" in Path(file).parts


def test_the_source_of_a_method_is_found() -> None:
    assert inspect.getsource(safejax.Leaves.map).lstrip().startswith("def map(")


@pytest.mark.parametrize("name", sorted(NAMED.keys() - {*FUNCTIONS, *dir(safejax.errors)}))
def test_no_source_is_better_than_that_of_another_module(name: str) -> None:
    with pytest.raises(OSError, match=r"could not|not available"):
        inspect.getsource(NAMED[name])


# ---- pickles

# Where these were before they said where they are public.
PRIVATE = {
    "LazyArray": "arrays.lazy", "Leaves": "leaves.leaves", "Plan": "planning.plan",
    "ReadLog": "reading.log", "Step": "leaves.steps", "Transform": "leaves.steps",
    "cast": "transforms.cast", "load": "api.loading", "plan": "planning.dry_run",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_pickle_has_the_public_path(name: str) -> None:
    data = pickle.dumps(NAMED[name])
    assert b"_src" not in data
    assert pickle.loads(data) is NAMED[name]


@pytest.mark.parametrize("name", PRIVATE)
def test_a_pickle_with_the_private_path_is_read(name: str) -> None:
    old = f"csafejax._src.{PRIVATE[name]}\n{name}\n.".encode()
    assert pickle.loads(old) is NAMED[name]


VALUES: dict[str, Any] = {
    "a transform": safejax.cast("bfloat16", source="float32"),
    "a chain of transforms": safejax.chain(safejax.prefix("a"), safejax.transpose("*")),
    "a chain": safejax.chain(safejax.flatten, safejax.cast("bfloat16"), safejax.encode),
    "a step": safejax.step(safejax.flatten, safejax.unflatten),
    "a pipeline's end": safejax.unflatten,
    "a plan": safejax.plan({}),
    "a log": safejax.ReadLog(),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_come_back_from_a_pickle(case: str) -> None:
    value = VALUES[case]
    back = pickle.loads(pickle.dumps(value))
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


def test_a_plan_and_a_log_are_pickled_by_their_public_path() -> None:
    for value in (VALUES["a plan"], VALUES["a log"]):
        assert b"_src" not in pickle.dumps(value)


def _error() -> Exception:
    with pytest.raises(safejax.MismatchError) as raised:
        safejax.unflatten(safejax.flatten({"a": np.zeros(2)}), like={"b": np.zeros(2)})
    return raised.value


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What functions of safejax return, apart from trees."""
    path = tmp_path_factory.mktemp("public") / "m.safetensors"
    safejax.save({"w": np.arange(4.0, dtype=np.float32), "n": 3}, path)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    handle = safejax.save_async({"w": np.zeros(2)}, path.with_name("other.safetensors"))
    handle.result()
    return {
        "plan": safejax.plan(path),
        "host": safejax.plan(path, like={"w": np.zeros(4, np.float32), "n": 3}),
        "leaf": safejax.plan(path).leaves[0],
        "rules": safejax.sharding_rules(mesh, [("*", PartitionSpec("x"))]),
        "handle": handle,
        "file": safejax.inspect(path, stats=True),
        "tree": safejax.inspect(safejax.load(path)),
        "difference": safejax.diff(path, path),
        "verification": safejax.verify(path),
        "transform": safejax.chain(safejax.rename({"a": "b"}), safejax.stack("l.{i}.*")),
        "recipe": safejax.recipes.of({"model_type": "gpt2", "n_layer": 2, "n_head": 2}),
        "error": _error(),
    }


NOT_PICKLED = {
    "plan": r"str\(plan\)", "rules": "safejax.sharding_rules there", "handle": r"call result\(\)",
    "leaf": "Device",  # A part of a plan; JAX says it.
}  # fmt: skip


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Exception):  # They are compared by identity.
        return vars(one) == vars(other) and str(one) == str(other)
    return bool(one == other)


@pytest.mark.parametrize(
    "case",
    [
        "plan", "host", "leaf", "rules", "handle", "file", "tree", "difference", "verification",
        "transform", "recipe", "error",
    ],
)  # fmt: skip
def test_what_functions_return_is_copied_and_pickled(found: dict[str, Any], case: str) -> None:
    value = found[case]
    for copied in (copy.copy(value), copy.deepcopy(value), copy.deepcopy([value])[0]):
        assert type(copied) is type(value)
        assert _same(copied, value)
    if case in NOT_PICKLED:
        with pytest.raises(TypeError, match=NOT_PICKLED[case]):
            pickle.dumps(value)
    else:
        assert _same(pickle.loads(pickle.dumps(value)), value)


def test_there_is_one_empty_container() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps([safejax.EMPTY], protocol)
        assert b"_src" not in data
        assert pickle.loads(data)[0] is safejax.EMPTY
    assert copy.copy(safejax.EMPTY) is safejax.EMPTY
    assert copy.deepcopy({"a": safejax.EMPTY})["a"] is safejax.EMPTY


# ---- examples


GONE = {PACKAGE / name for name in ("core.py", "typing.py", "utils.py")}
"""Modules of 0.5, whose import says what takes their place."""


@pytest.mark.parametrize(
    "path", sorted({*PACKAGE.rglob("*.py")} - GONE), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_example_is_collected_where_it_is_written(path: Path) -> None:
    tree = ast.parse(path.read_text())
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documented = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    written = sum(">>>" in (text or "") for text in documented)
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert len([found for found in finder.find(module) if found.examples]) == written


def test_set_module_gives_back_what_it_is_given() -> None:
    def function() -> None: ...

    class Class: ...

    for value in (function, Class):
        assert set_module("somewhere")(value) is value
        assert value.__module__ == "somewhere"
