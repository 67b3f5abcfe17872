"""What a type checker, an editor and `help()` know about the public API."""

import ast
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import safejax
import safejax.equinox
import safejax.flax
import safejax.haiku
import safejax.nnx
import safejax.objax
from safejax._src.checkpoint.options import LoadOptions, Options, TreeOptions

PROGRAM = Path(__file__).parent.parent / "typing" / "program.py"
MODULES = ["", "equinox", "flax", "haiku", "nnx", "objax", "recipes", "testing"]


def dotted(node: ast.AST) -> str:
    """The dotted name of an attribute expression, such as `safejax.flax.serialize`, or `""`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


@pytest.mark.parametrize("module", MODULES)
def test_the_program_uses_every_public_name(module: str) -> None:
    nodes = list(ast.walk(ast.parse(PROGRAM.read_text())))
    used = {dotted(node) for node in nodes}
    called = {dotted(node.func) for node in nodes if isinstance(node, ast.Call)}
    name = f"safejax.{module}".rstrip(".")
    public = importlib.import_module(name)
    for each in public.__all__:
        assert f"{name}.{each}" in (called if inspect.isfunction(getattr(public, each)) else used)


# ---- options

WITH_OPTIONS: dict[Callable[..., Any], type[Any]] = {
    safejax.load: LoadOptions,
    safejax.plan: LoadOptions,
    safejax.deserialize: TreeOptions,
    safejax.equinox.deserialize: LoadOptions,
    safejax.flax.deserialize: LoadOptions,
    safejax.haiku.deserialize: LoadOptions,
    safejax.nnx.load_into: LoadOptions,
    safejax.objax.deserialize: LoadOptions,
    safejax.objax.deserialize_with_assignment: LoadOptions,
}
FUNCTIONS = pytest.mark.parametrize(
    "function", WITH_OPTIONS, ids=lambda function: f"{function.__module__}.{function.__name__}"
)


def test_the_two_definitions_of_the_options_agree() -> None:
    """One is for type checkers, and the other holds the values."""
    assert LoadOptions.__annotations__.keys() == Options.__dataclass_fields__.keys()
    known, held = typing.get_type_hints(LoadOptions), typing.get_type_hints(Options)
    assert known.keys() - {"sharding"} == held.keys() - {"sharding"}
    for name in known.keys() - {"sharding"}:
        assert known[name] == held[name]


@FUNCTIONS
def test_help_shows_each_option_with_its_default(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for name in WITH_OPTIONS[function].__annotations__:
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[name].default == getattr(Options(), name)
    assert str(inspect.signature(function)).count("strict: bool = True") == 1
    # Tools that evaluate annotations must find the names in them.
    typing.get_type_hints(function)


def test_the_annotations_of_all_public_functions_and_classes_can_be_evaluated() -> None:
    for name in safejax.__all__:
        public = getattr(safejax, name)
        if inspect.isfunction(public) or inspect.isclass(public):
            typing.get_type_hints(public)


@FUNCTIONS
def test_an_unknown_option_is_refused_before_anything_is_read(
    function: Callable[..., Any],
) -> None:
    given = [object()] * sum(
        each.default is inspect.Parameter.empty and each.kind is not inspect.Parameter.KEYWORD_ONLY
        for each in inspect.signature(function).parameters.values()
    )
    required: dict[str, Any] = {"like": None} if function is safejax.equinox.deserialize else {}
    name = function.__name__
    message = (
        rf"^{name}\(\) got an unexpected keyword argument 'shardings': did you mean 'sharding'"
    )
    with pytest.raises(TypeError, match=message):
        function(*given, **required, shardings=None)
    with pytest.raises(TypeError, match=rf"^{name}\(\) got .*'zzz': expected one of .*strict"):
        function(*given, **required, zzz=None)


def test_an_option_about_reading_files_needs_a_file() -> None:
    with pytest.raises(TypeError, match=r"^deserialize\(\) got .*'access'"):
        safejax.deserialize(b"", access="map")  # pyright: ignore


# ---- steps


def test_a_chain_of_transforms_is_a_transform() -> None:
    chained = safejax.chain(safejax.prefix("a"), safejax.chain(safejax.prefix("b")))
    assert isinstance(chained, safejax.Transform)
    assert isinstance(chained.inverse, safejax.Transform)
    assert repr(chained) == "chain(prefix('a'), prefix('b'))"
    for other in (safejax.flatten, lambda leaves: leaves):
        assert not isinstance(safejax.chain(safejax.prefix("a"), other), safejax.Transform)


def test_a_users_transform_has_no_inverse_by_default() -> None:
    class Same(safejax.Transform):
        def __call__(self, leaves: safejax.Leaves, /) -> safejax.Leaves:
            return leaves

    with pytest.raises(safejax.NotInvertibleError, match="expected a step with an inverse"):
        _ = Same().inverse


def test_the_types_are_shipped() -> None:
    assert (Path(safejax.__file__).parent / "py.typed").exists()
