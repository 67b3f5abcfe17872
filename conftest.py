"""Settings for all tests: eight virtual CPU devices, the effort of hypothesis, what is quick.

The environment is set here, before any other module of the tests, since JAX reads it on import.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# XLA optimizes little, which halves the time of large compilations. A test that compares lazy
# leaves with plain arrays compiles the same program for both.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
# The number of XLA's threads. One per core is too few for JAX 0.8: devices that wait for each
# other hold threads that a large matrix product needs, which is a deadlock.
os.environ["NPROC"] = "32"
# Programs do not record which lines of which functions made them, which takes time for each.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# What XLA has compiled is kept, so that the tests take two thirds of the time when they run again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(os.path.abspath(__file__)), ".pytest_cache", "compiled"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

_COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
}
hypothesis.settings.register_profile("quick", max_examples=20, **_COMMON)
hypothesis.settings.register_profile("large", max_examples=400, **_COMMON)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

_says_that_it_is_of: Any = doctest.DocTestFinder._from_module  # noqa: SLF001


def _is_written_in(finder: doctest.DocTestFinder, module: ModuleType, value: Any) -> bool:
    """Whether the examples of a function, a class or a property are those of the module.

    A function that is public says that it is of the module that exports it; its examples are
    collected where it is written.
    """
    if inspect.isfunction(value):
        return inspect.unwrap(value).__globals__ is module.__dict__
    return _says_that_it_is_of(finder, module, value)


doctest.DocTestFinder._from_module = _is_written_in  # type: ignore[attr-defined]  # noqa: SLF001

# The import of these modules of safejax 0.5 fails, as it should.
collect_ignore = ["safejax/core.py", "safejax/typing.py", "safejax/utils.py"]
# These modules import torch, which few environments have; there are no examples in them.
collect_ignore += ["tests/support/recipes"]

QUICK = (
    "tests/test_floors.py", "tests/unit/format", "tests/unit/leaves", "tests/unit/planning",
    "tests/unit/pytrees", "tests/unit/reading", "tests/unit/test_dtypes.py",
    "tests/unit/transforms",
)  # fmt: skip
"""The tests that serve while working: about half a minute of computing together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in `QUICK`, for `pytest -m quick`."""
    root = Path(__file__).parent
    quick = {root / name for name in QUICK}
    assert all(path.exists() for path in quick)
    chosen = {
        path: not quick.isdisjoint((path, *path.parents)) for path in {item.path for item in items}
    }
    for item in items:
        if chosen[item.path]:
            item.add_marker(pytest.mark.quick)


LONGEST = 4000
"""Characters of a message that a person reads; whatever has more of it is an error's attribute."""


@pytest.fixture(autouse=True, scope="session")
def _no_message_is_longer_than_anyone_reads() -> Iterator[None]:
    from safejax.errors import SafejaxError  # It imports JAX.

    def checked(self: SafejaxError, *args: object, **attributes: object) -> None:
        super(SafejaxError, self).__init__(*args, **attributes)
        assert len(str(self)) <= LONGEST, f"a message of {len(str(self))} characters: {self!s:.400}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SafejaxError, "__init__", checked)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One more than there are cores, since many tests wait for other processes.

    One if paths are given: workers take longer to start than most files to run.
    """
    if config.args_source is not config.ArgsSource.TESTPATHS:
        return 0
    own = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS")
    return (os.cpu_count() or 1) + 1 if own is None else int(own)
