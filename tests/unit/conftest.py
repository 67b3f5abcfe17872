"""Fixtures that tests of several rooms take."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from tests.support.servers import HttpServer
from tests.support.together import Together


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of fsspec that is in memory, which is one for the whole process."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Together]]:
    """The last of them lives until a test is over in which it gave no answer."""
    made: list[Together] = []
    yield made
    for together in made:
        together.__exit__()


@pytest.fixture
def pair(pairs: list[Together]) -> Together:
    """Two processes of `jax.distributed`, which live for all tests of a module."""
    if not pairs or pairs[-1].is_silent:
        pairs.append(Together(2))
    return pairs[-1]


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server of files, without any."""
    server = HttpServer()
    yield server
    server.close()
