"""Whatever foreign bytes ask for, a reader takes memory and time in proportion to their size.

Each is read in a process with limits of the operating system, so that one that does not hold them
ends the process, and no clock is asked. docs/limits.md has the limits.
"""

import os
import re
import resource
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safejax._src.format import header, msgpack, npy, strict_json
from safejax._src.pytrees import extent, patterns, structure
from safejax._src.storage import store
from tests.support.children import CHILDREN
from tests.support.hostile_extents import CASES

MEMORY = 8 << 20
"""Bytes of memory that any reader may take, whatever the size of the file."""

ADDRESSES = 4 << 30
"""Bytes of memory that the process may get beside what it has."""

SECONDS = 20
"""Of computing, for one case: most take a tenth of one. What is not bounded would take hours."""

LONGEST = 2000
"""Characters of an error."""


def read_all(pipe: Any, folder: Path) -> None:
    """Reads the cases whose names are received; sends the error and the peak of memory of each."""
    os.chdir(folder)
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + ADDRESSES, has + ADDRESSES))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    while True:
        case = CASES[pipe.recv()]
        data = case.data()
        used = resource.getrusage(resource.RUSAGE_SELF)
        end = int(used.ru_utime + used.ru_stime) + SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (end, hard))
        if case.most is not None:
            tracemalloc.start()
        try:
            case.read(data)
            error = None
        except Exception as found:  # noqa: BLE001 - the test says which one it is
            error = type(found).__name__, str(found)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        pipe.send((error, peak, len(data)))


class Reader:
    """A process that reads what it is told, and another one if it has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begin()

    def begin(self) -> None:
        self.pipe, others = CHILDREN.Pipe()
        self.process = CHILDREN.Process(target=read_all, args=(others, self.folder), daemon=True)
        self.process.start()
        others.close()

    def read(self, name: str) -> Any:
        self.pipe.send(name)
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.begin()
            pytest.fail(f"the process ended with {code}")

    def end(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    found = Reader(tmp_path_factory.mktemp("extents"))
    yield found
    found.end()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold these limits")
@pytest.mark.parametrize("name", CASES)
def test_what_is_taken_is_in_proportion_to_the_file(name: str, reader: Reader) -> None:
    case = CASES[name]
    error, peak, size = reader.read(name)
    assert (None if error is None else error[0]) == case.error, error
    assert peak <= MEMORY + (case.most or 0) * size, peak / size
    if error is not None:
        assert ": " in error[1]
        assert len(error[1]) < LONGEST


def test_the_page_has_the_limits() -> None:
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
    rows = dict(re.findall(r"^\| (.+?) \|.*?([\d,]+)", page, re.M))
    found = {name: int(number.replace(",", "")) for name, number in rows.items()}
    assert found == {
        "a header": header.MAX_HEADER_BYTES,
        "an index, a `config.json`, a table of Orbax's": store.MAX_WHOLE_BYTES,
        "a tree of msgpack, without its arrays": msgpack._MOST,
        "values in it": msgpack._MOST_VALUES,
        "names of a tree of msgpack or Orbax, together": extent.MAX_NAMES,
        "nested containers": structure.MAX_DEPTH,
        "nesting of JSON": strict_json._MAX_DEPTH,
        "digits of a number": strict_json._MAX_DIGITS,
        "a header of NumPy's": npy._MAX_HEADER,
        "steps to match one name": patterns._MOST_STEPS,
    }
