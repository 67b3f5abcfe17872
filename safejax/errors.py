"""Every error and warning that safejax raises.

A bad file and a bad call are different classes: `InvalidFileError` is the first, the others
are the second. Each message says where (file, leaf), what was expected, what was found and
what to do about it.
"""

from safetensors import SafetensorError


class SafejaxError(Exception):
    """Base of every error that safejax raises on purpose."""


class InvalidFileError(SafejaxError, SafetensorError, ValueError):
    """The bytes are not a safetensors file, or hold a safejax record that cannot be true.

    It is also a `safetensors.SafetensorError`, so code that catches the reference reader's
    error goes on working.
    """


class ChecksumError(InvalidFileError):
    """The bytes of a leaf are not those that were saved, or there is no digest to tell it by."""


class ReadError(SafejaxError, OSError):
    """The file held the leaf when it was opened and no longer does (cut short, say)."""


class MismatchError(SafejaxError, ValueError):
    """What is stored is not what `like` asks for; the message reports every leaf at once."""


class ShardingError(SafejaxError, ValueError):
    """A `sharding` argument does not fit the tree, or does not divide a leaf's shape."""


class LeafError(SafejaxError, TypeError):
    """A leaf, or a key on the way to it, is of a kind that no safetensors file can hold."""


class TransformError(SafejaxError, ValueError):
    """A transform is wrong in itself, or cannot be applied to these leaves."""


class NotInvertibleError(TransformError):
    """The inverse of a step that has none was asked for."""


class PrecisionError(SafejaxError, OverflowError):
    """A 64-bit integer leaf holds a value that JAX, with x64 off, would change."""


class PlacementError(SafejaxError, RuntimeError):
    """Reading a leaf, or putting it on its devices, failed; the cause is chained."""


class UnsupportedJaxError(SafejaxError, RuntimeError):
    """JAX, in this version, lacks a hook of lazy leaves; `safejax.materialize` does without."""


class PartialLoadWarning(UserWarning):
    """`strict=False` took leaves from `like`, or left stored leaves unread; it says which."""


class PrecisionWarning(UserWarning):
    """A 64-bit floating or complex leaf was narrowed, since JAX's x64 mode is off."""
