"""Every error and warning that safejax raises.

A bad file and a bad call raise different classes: `InvalidFileError` reports a bad file, the
others a bad call. Each message says where (file, leaf), what was expected, what was found and
what to do about it.
"""

from collections.abc import Iterable

from safetensors import SafetensorError


class SafejaxError(Exception):
    """The base class of all errors that safejax raises on purpose."""


class InvalidFileError(SafejaxError, SafetensorError, ValueError):
    """The bytes are not a safetensors file, or hold a safejax record that cannot be true.

    It is also a `safetensors.SafetensorError`, so code that catches the reference reader's
    error keeps working.
    """


class ChecksumError(InvalidFileError):
    """The bytes of a leaf are not those that were saved, or there is no digest to check them."""


class ReadError(SafejaxError, OSError):
    """The file no longer holds a leaf that it held when opened, for example after truncation."""


class MismatchError(SafejaxError, ValueError):
    """What is stored does not match `like`; the message reports all such leaves at once.

    `missing` has the names of leaves that `like` has and the file has not, `unexpected` those of
    the reverse, and `mismatched` those of leaves with another shape, dtype or type. The message
    shows about twenty of them; these attributes have all.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        mismatched: Iterable[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)


class ShardingError(SafejaxError, ValueError):
    """A `sharding` argument does not fit the tree, or does not divide a leaf's shape."""


class LeafError(SafejaxError, TypeError):
    """A leaf, or a key on the path to it, is of a kind that no safetensors file can hold."""


class TransformError(SafejaxError, ValueError):
    """A transform is invalid in itself, or cannot be applied to these leaves."""


class NotInvertibleError(TransformError):
    """The inverse was requested of a step that has none."""


class PrecisionError(SafejaxError, OverflowError):
    """A 64-bit integer leaf holds a value that JAX would change, since its x64 mode is off."""


class PlacementError(SafejaxError, RuntimeError):
    """Reading a leaf, or putting it on its devices, failed; the cause is chained."""


class ProcessError(SafejaxError, RuntimeError):
    """Another process failed, did not come or has another tree, where several save or load."""


class UnsupportedJaxError(SafejaxError, RuntimeError):
    """The installed JAX lacks a hook for lazy leaves; `safejax.materialize` does not need it."""


class PartialLoadWarning(UserWarning):
    """`strict=False` took leaves from `like`, or left stored leaves unread; it names them."""


class PrecisionWarning(UserWarning):
    """A 64-bit floating-point or complex leaf was narrowed, since JAX's x64 mode is off."""
