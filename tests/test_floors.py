"""The shape of the package: import floors, what an import costs, and what is documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import safejax

PACKAGE = Path(safejax.__file__).parent

# A module imports from lower floors only, so there is no cycle.
FLOORS: list[set[str]] = [
    {"errors", "dtypes", "memory", "collector", "windows", "writeback", "jax_registration",
     "warn"},
    {"strict_json"},
    {"files", "names", "header", "sources", "concretely", "readahead"},
    {"structure", "views", "remote", "integrity", "folders", "access"},
    {"contents"},
    {"placing"},
    {"indexing"},
    {"lazy"},
    {"leaves"},
    {"steps", "shardings", "record"},
    {"tree", "layout", "transforms.selection"},
    {"codec", "shards", "transforms.cast", "transforms.elementwise", "transforms.prefix",
     "transforms.rename", "transforms.reshape", "transforms.select", "transforms.split",
     "transforms.stack", "transforms.transpose"},
    {"opening", "options"},
    {"api", "planning", "transforms"},
    {"adapter"},
    {"nnx", "haiku", "objax", "equinox", "testing.strategies"},
    {"flax", "testing.assertions", "testing.frameworks"},
    {"testing"},
    {""},
]  # fmt: skip
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}

# Who may import a framework, and whatever else the package does not need by itself.
EXTRAS = {"flax", "haiku", "objax", "equinox", "chex", "optax", "hypothesis", "fsspec", "xxhash"}
MAY_IMPORT = {
    "flax": {"flax"}, "nnx": {"flax"}, "haiku": {"haiku"}, "objax": {"objax"},
    "equinox": {"equinox"}, "testing.strategies": {"hypothesis"},
    "testing.frameworks": {"hypothesis"},
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Name, without the package's, and file of every module."""
    found: dict[str, Path] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


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


def test_the_table_is_that_of_the_package() -> None:
    assert FLOOR.keys() == MODULES.keys()
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_floors_only(module: str) -> None:
    for name in imports(ast.parse(MODULES[module].read_text())):
        if name.split(".")[0] == "safejax":
            assert FLOOR[name[8:]] < FLOOR[module], f"{module} imports {name}"


# What that one module looks for in JAX may be missing, hook by hook.
@pytest.mark.parametrize("module", [name for name in MODULES if name != "jax_registration"])
def test_imports_stand_at_the_top(module: str) -> None:
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            assert imports(node) == []


@pytest.mark.parametrize("module", MODULES)
def test_only_adapters_import_frameworks(module: str) -> None:
    names = {name.split(".")[0] for name in imports(ast.parse(MODULES[module].read_text()))}
    assert names & EXTRAS == MAY_IMPORT.get(module, set())


def test_importing_safejax_imports_no_framework() -> None:
    program = "import sys, safejax; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True, text=True, check=True, cwd=PACKAGE.parent,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {"safejax", "jax", "numpy"} <= loaded
    assert loaded & EXTRAS == set()
    assert done.stderr == ""


def test_only_one_module_knows_what_jax_hides() -> None:
    knows = {module for module, path in MODULES.items() if "jax._src" in path.read_text()}
    assert knows == {"jax_registration"}


# ---- the public face


def test_what_is_public_is_listed_once() -> None:
    assert len(set(safejax.__all__)) == len(safejax.__all__)
    public = {
        name for name in dir(safejax)
        if not name.startswith("_") and not isinstance(getattr(safejax, name), ModuleType)
    }  # fmt: skip
    # A name may be that of a module as well: `transforms`, say.
    assert public == set(safejax.__all__)


@pytest.mark.parametrize("name", safejax.__all__)
def test_what_is_public_is_documented(name: str) -> None:
    value = getattr(safejax, name)
    documented = value if inspect.isclass(value) or inspect.isfunction(value) else type(value)
    own = vars(documented).get("__doc__") if inspect.isclass(documented) else documented.__doc__
    assert own, f"{name} has no docstring of its own"
    # What a dataclass makes by itself is no docstring.
    assert not own.startswith(f"{documented.__name__}(")
    assert own.strip().splitlines()[0].endswith((".", ":")) or "\n\n" in own


@pytest.mark.parametrize("name", [name for name in safejax.__all__ if name[0].isupper()])
def test_what_a_public_class_offers_is_documented(name: str) -> None:
    cls = getattr(safejax, name)
    if not inspect.isclass(cls) or name == "LazyArray":  # that one has a JAX array's attributes
        return
    for attribute, value in vars(cls).items():
        if not attribute.startswith("_") and (inspect.isfunction(value) or type(value) is property):
            assert inspect.getdoc(value) or inspect.getdoc(getattr(cls, attribute))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree)
    # Small rooms: what grows beyond this is two ideas.
    assert len(MODULES[module].read_text().splitlines()) <= 600
