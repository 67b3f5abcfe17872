"""Fixtures that tests of several rooms take."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of fsspec that is in memory, which is one for the whole process."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
