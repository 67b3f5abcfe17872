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
def pair() -> Iterator[Together]:
    """Two processes of `jax.distributed`, which live for all tests of a module."""
    with Together(2) as together:
        yield together


@pytest.fixture
def server() -> Iterator[HttpServer]:
    """A server of files, without any."""
    server = HttpServer()
    yield server
    server.close()
