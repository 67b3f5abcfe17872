"""Every public reader refuses hostile files with an error that names the file.

It takes little memory and time for that. The cases are those of the tests of headers and records.
"""

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors

import safejax
import safejax.flax
import safejax.objax
from safejax import InvalidFileError, SafejaxError, TransformError
from tests.support.forged_records import CONFLICTS, FORGED, forged
from tests.support.hostile_headers import HOSTILE

MEMORY = 64 << 20
"""The memory in bytes that a reader may use beyond the size of the file."""

FILES: dict[str, bytes] = {
    **{f"header: {case}": data for case, (data, _) in HOSTILE.items()},
    **{f"record: {case}": forged(record) for case, record in FORGED.items()},
}
FAULTS = {f"header: {case}": fault for case, (_, fault) in HOSTILE.items()}

Reader = Callable[[Any], Any]
READERS: dict[str, Reader] = {
    "load": safejax.load,
    "deserialize": safejax.deserialize,
    "metadata of a file": safejax.metadata,
    "metadata of bytes": safejax.metadata,
}
ADAPTERS: dict[str, Reader] = {
    "flax": safejax.flax.deserialize,
    "objax": safejax.objax.deserialize,
    "objax, assigned": lambda source: safejax.objax.deserialize_with_assignment(source, {}),
}


def refusal(read: Reader, source: Path | bytes, size: int) -> SafejaxError:
    """The error with which a reader refuses a file of `size` bytes; it begins with its name."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(SafejaxError) as caught:
            read(source)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The process shares its cores. A reader that is wrong here would take hours.
    assert time.process_time() - begin < 10
    assert taken < MEMORY + size
    file = "<bytes>" if isinstance(source, bytes) else str(source)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value)) < 2000 + len(file)
    return caught.value


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def test_there_are_hostile_files_enough() -> None:
    assert len(FILES) >= 250


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_file_is_refused_by_every_reader(case: str, path: Path) -> None:
    data = FILES[case]
    path.write_bytes(data)
    said = set()
    for reader, read in READERS.items():
        source = data if reader in ("deserialize", "metadata of bytes") else path
        error = refusal(read, source, len(data))
        assert type(error) is InvalidFileError, reader
        assert isinstance(error, safetensors.SafetensorError), reader
        assert isinstance(error, ValueError), reader
        said.add(str(error).partition(": ")[2])
    # All readers give the same message, and it names the fault.
    (message,) = said
    assert any(part in message for part in FAULTS.get(case, "record|tensor 'k'").split("|"))


# One case of each kind suffices, since the adapters use the same reader.
SAMPLE = [
    "header: no bytes",
    "header: overlap",
    "header: 1,000,000 objects deep",
    "header: lone surrogate in metadata",
    "record: NaN",
    "record: kind's alias of an alias",
    "record: path of a million",
    "record: dtype that is Python's",
]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("case", SAMPLE)
def test_a_hostile_file_is_refused_by_the_adapters(case: str, adapter: str, path: Path) -> None:
    data = FILES[case]
    path.write_bytes(data)
    for source in (path, data):
        assert type(refusal(ADAPTERS[adapter], source, len(data))) is InvalidFileError


@pytest.mark.parametrize("case", CONFLICTS)
def test_names_that_contradict_each_other_are_refused_when_a_tree_is_built(
    case: str, path: Path
) -> None:
    data = forged(*CONFLICTS[case])
    path.write_bytes(data)
    for read, source in (
        (safejax.load, path),
        (safejax.deserialize, data),
        (safejax.flax.deserialize, data),
    ):
        # The file is well-formed, and a transform can repair the names.
        error = refusal(read, source, len(data))
        assert type(error) is TransformError
        assert "transform=rename(...)" in str(error)
    assert safejax.metadata(path) == {}
    assert len(safejax.decode(data)) == len(safetensors.deserialize(data))


def test_every_cut_of_a_file_is_refused(path: Path) -> None:
    tree = {"w": np.ones((2, 3)), "l": [np.int8(1), None, "text", jax.random.key(0)]}
    safejax.save(tree, path, metadata={"é": "ü"})
    data = path.read_bytes()
    for end in range(len(data)):
        with pytest.raises(InvalidFileError, match=r"^<bytes>: "):
            safejax.deserialize(data[:end])
    for end in range(len(data) - 1, 0, -7):
        path.write_bytes(data[:end])
        with pytest.raises(InvalidFileError, match=f"^{path}: "):
            safejax.load(path)
