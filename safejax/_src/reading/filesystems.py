"""File systems: the type of what users give as `fs`; what uses one is imported with the first."""

from typing import Any, TypeAlias

FileSystem: TypeAlias = Any
"""An `fsspec.AbstractFileSystem`. `Any`, since fsspec is an extra and has no types."""
