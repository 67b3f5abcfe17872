"""The architecture: rooms and floors, imports, documentation, and how tests share code."""

import ast
import functools
import graphlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import safejax

PACKAGE = Path(safejax.__file__).parent

# A room is a folder, or a module next to the folders. It imports from lower floors only, so rooms
# of one floor do not import each other.
FLOORS: list[set[str]] = [
    {"arguments", "dtypes", "collector", "system", "errors", "moved", "progress", "public", "warn"},
    {"reading", "pytrees"},
    {"storage", "format", "arrays"},
    {"leaves", "processes"},
    {"checkpoint", "transforms"},
    {"api", "planning", "inspection", "recipes", "testing"},
    {"adapters", "face", "cli"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}

# Modules that form a room together without having a folder.
ROOM_OF_MODULE = {
    "adapter": "api",
    "materialize": "api",
    **dict.fromkeys(("flax", "nnx", "haiku", "objax", "equinox"), "adapters"),
    "__main__": "cli",
    **dict.fromkeys(("orbax", "orbax_v1", "tensorstores"), "adapters"),
    # The last three are modules of safejax 0.5, whose import fails and says where to go.
    **dict.fromkeys(("", "core", "utils", "typing"), "face"),
}

NAME_NO_JAX = {"reading", "storage", "format"}

# The rooms that may import a framework, or another package that is not a dependency of safejax.
EXTRAS = {
    "flax", "haiku", "objax", "equinox", "orbax", "tensorstore", "chex", "optax", "hypothesis",
    "fsspec", "xxhash", "click", "rich",
}  # fmt: skip
MAY_IMPORT = {
    "flax": {"flax"}, "nnx": {"flax"}, "haiku": {"haiku"}, "objax": {"objax"},
    "equinox": {"equinox"}, "orbax": {"orbax"}, "orbax_v1": {"orbax"},
    "_src.tensorstores": {"tensorstore"}, "testing": {"chex", "hypothesis"},
    "cli": {"click"},
}  # fmt: skip

# A module with more lines has two ideas in it, unless there is a reason here.
MOST_LINES = 300
LONG = {
    "_src.arrays.lazy": "one class, which has all that a JAX array has",
}


def modules() -> dict[str, Path]:
    """The name of every module, without that of the package, and its file."""
    found: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, which is parsed when a test first needs it."""
    return ast.parse(path.read_text())


MODULES = modules()


def room_of(module: str) -> str:
    """The room of a module, by the first part of its name below `_src`."""
    room = module.removeprefix("_src.").partition(".")[0]
    return ROOM_OF_MODULE.get(room, room)


def imports(tree: ast.AST) -> list[str]:
    """What a module imports: the modules, and names that may be modules."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name[8:] in MODULES else node.module for name in names]
    return found


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports, without the package's name."""
    return {
        name[8:] for name in imports(parsed(MODULES[module])) if name.split(".")[0] == "safejax"
    }


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in MODULES if module != "_src"} == FLOOR.keys()
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_from_lower_floors_only(module: str) -> None:
    room = room_of(module)
    for name in own_imports(module):
        other = room_of(name)
        assert other == room or FLOOR[other] < FLOOR[room], f"{module} imports {name}"


def test_the_plan_in_contributing_shows_every_room_on_its_floor() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    rows = dict(re.findall(r"^\| ([1-7]) \| (.*) \|$", text, re.M))
    for number, floor in enumerate(FLOORS, 1):
        assert [room for room in floor if not re.search(rf"\b{room}\b", rows[str(number)])] == []


def test_the_plan_in_contributing_has_everything_in_it() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    plan = text[text.index("safejax/\n") : text.index("A path says")]
    for folder in (PACKAGE, PACKAGE / "_src"):
        for path in folder.iterdir():
            if path.name[0] != "_" and (path.is_dir() or path.suffix == ".py"):
                assert re.search(rf"\b{path.stem}({path.suffix}|/)", plan), path.name
    for name in re.findall(r"`([a-z_]+/[a-z_/]*\w+\.py)`", text):
        places = (PACKAGE.parent, PACKAGE, PACKAGE / "_src")
        assert any((place / name).exists() for place in places), name


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_private_names_stay_in_their_module(module: str) -> None:
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "safejax":
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


@pytest.mark.parametrize("module", MODULES)
def test_reading_storage_and_format_do_not_import_jax(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(parsed(MODULES[module]))}
    assert room_of(module) not in NAME_NO_JAX or not roots & {"jax", "jaxlib"}


# Each name that these look for in JAX may be missing.
KNOW_JAX = {"_src.arrays.jax_private", "_src.arrays.jax_hooks"}


@pytest.mark.parametrize("module", [name for name in MODULES if name not in KNOW_JAX])
def test_imports_are_at_the_top_of_a_module(module: str) -> None:
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            assert imports(node) == []


@pytest.mark.parametrize("module", MODULES)
def test_only_adapters_import_frameworks(module: str) -> None:
    found = {name.split(".")[0] for name in imports(parsed(MODULES[module]))} & EXTRAS
    if room_of(module) == "adapters":
        assert found == MAY_IMPORT[module]
    else:
        assert found <= MAY_IMPORT.get(room_of(module), set())


def test_importing_safejax_imports_neither_jax_nor_a_framework() -> None:
    """Nor is JAX imported to look into files, and its import brings no framework."""
    program = """if True:
        import io, sys, safejax
        safejax.inspect, safejax.diff, safejax.verify, safejax.Inspection, safejax.EMPTY
        assert not {"jax", "jaxlib"} & sys.modules.keys()
        safejax.load, safejax.LazyArray
        print(*{name.split(".")[0] for name in sys.modules})
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=True, cwd=PACKAGE.parent,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {"safejax", "jax", "numpy"} <= loaded
    assert loaded & EXTRAS == set()
    assert done.stderr == ""


def test_only_two_modules_use_private_names_of_jax() -> None:
    name = re.compile(r"\bjax\._src\b")
    knows = {module for module, path in MODULES.items() if name.search(path.read_text())}
    assert knows == KNOW_JAX


# ---- the tests

ROOT = PACKAGE.parent
TESTS = {
    str(path.relative_to(ROOT)): path
    for folder in ("tests", "property_tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}

# The benchmarks have a test of their own.
MAY_BE_IMPORTED = {"benchmarks": {"tests/system/test_benchmarks.py"}}


@pytest.mark.parametrize("test", TESTS)
def test_tests_import_no_other_tests_and_no_benchmarks(test: str) -> None:
    for name in imports(parsed(TESTS[test])):
        root = name.partition(".")[0]
        if root in ("tests", "property_tests"):
            assert f"{name}.".startswith("tests.support."), name
        elif root in MAY_BE_IMPORTED:
            assert test in MAY_BE_IMPORTED[root], name


def test_a_helper_of_several_tests_is_in_their_support_folder() -> None:
    found: dict[tuple[str, str, str], list[str]] = {}
    for test, path in TESTS.items():
        tree = parsed(path)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                # Two helpers are the same whatever their docstrings say.
                body = node.body[1:] if ast.get_docstring(node) else node.body
                arguments = ast.dump(node.args) if isinstance(node, ast.FunctionDef) else ""
                code = "".join(map(ast.dump, body))
                found.setdefault((node.name, arguments, code), []).append(test)
    assert [tests for tests in found.values() if len(tests) > 1] == []


# ---- the public face


def test_public_names_are_listed_once() -> None:
    assert len(set(safejax.__all__)) == len(safejax.__all__)
    public = {
        name for name in dir(safejax)
        if not name.startswith("_") and not isinstance(getattr(safejax, name), ModuleType)
    }  # fmt: skip
    # A public name may also be that of a module, for example `transforms`.
    assert public == set(safejax.__all__)


@pytest.mark.parametrize("name", safejax.__all__)
def test_public_names_are_documented(name: str) -> None:
    value = getattr(safejax, name)
    documented = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    own = vars(documented).get("__doc__") if inspect.isclass(documented) else documented.__doc__
    assert own, f"{name} has no docstring of its own"
    # The signature that a dataclass generates is not a docstring.
    assert not own.startswith(f"{documented.__name__}(")
    assert own.strip().splitlines()[0].endswith((".", ":")) or "\n\n" in own


@pytest.mark.parametrize("name", [name for name in safejax.__all__ if name[0].isupper()])
def test_attributes_of_public_classes_are_documented(name: str) -> None:
    cls = getattr(safejax, name)
    if not inspect.isclass(cls) or name == "LazyArray":  # it has the attributes of a JAX array
        return
    for attribute, value in vars(cls).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or type(value) is property):
            assert inspect.getdoc(value) or inspect.getdoc(getattr(cls, attribute))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_docstring_and_is_not_too_long(module: str) -> None:
    assert ast.get_docstring(parsed(MODULES[module]))
    lines = len(MODULES[module].read_text().splitlines())
    # A reason that is no longer needed must be removed.
    assert (lines > MOST_LINES) == (module in LONG)


@pytest.mark.parametrize(
    "package",
    [name for name, path in MODULES.items() if "_src" in name and path.name == "__init__.py"],
)
def test_the_init_of_a_room_has_only_a_docstring(package: str) -> None:
    assert len(parsed(MODULES[package]).body) == 1
