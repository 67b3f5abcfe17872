"""Encode and decode: Leaves to the bytes of a safetensors file and back, lazily."""

from dataclasses import dataclass
from typing import Final, TypeAlias, final, overload

from safejax._src.checkpoint.decoding import open_leaves
from safejax._src.checkpoint.layout import layout
from safejax._src.checkpoint.stream import to_bytes
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.steps import Step
from safejax._src.reading.buffer import BufferSource

Buffer: TypeAlias = bytes | bytearray | memoryview

IN_MEMORY: Final = "<bytes>"
"""The name in errors of a file that is only bytes in memory."""


@final
@dataclass(frozen=True, slots=True)
class Encode(Step[Leaves, bytes]):
    """Encodes Leaves as the bytes of a safetensors file, which every safetensors reader reads.

    The same Leaves always give the same bytes. `encode(checksum=True)` is a step that also
    records digests. The inverse is `decode`, with `verify` if there are digests.

    Raises `LeafError` for a leaf that no file can hold.
    """

    checksum: bool = False

    @overload
    def __call__(self, leaves: Leaves, /, *, checksum: bool | None = None) -> bytes: ...
    @overload
    def __call__(self, /, *, checksum: bool) -> "Encode": ...
    def __call__(
        self, leaves: Leaves | None = None, /, *, checksum: bool | None = None
    ) -> "bytes | Encode":
        if leaves is None and checksum is not None:
            return Encode(checksum)
        if not isinstance(leaves, Leaves):
            raise TypeError(f"encode: expected Leaves, got {type(leaves).__name__}: flatten first")
        checksum = self.checksum if checksum is None else checksum
        return to_bytes(layout(leaves, IN_MEMORY, checksum=checksum))

    @property
    def inverse(self) -> "Decode":
        return Decode(self.checksum)

    def __repr__(self) -> str:
        return "encode(checksum=True)" if self.checksum else "encode"


@final
@dataclass(frozen=True, slots=True)
class Decode(Step[bytes, Leaves]):
    """Decodes the bytes of a safetensors file to Leaves, whose arrays are not read yet.

    `decode(verify=True)` is a step whose arrays are checked against the recorded digests when
    they are read. A buffer that may change is copied. The inverse is `encode`.

    Raises `InvalidFileError` for bytes that are not a safetensors file.
    """

    verify: bool = False

    @overload
    def __call__(self, data: Buffer, /, *, verify: bool | None = None) -> Leaves: ...
    @overload
    def __call__(self, /, *, verify: bool) -> "Decode": ...
    def __call__(
        self, data: Buffer | None = None, /, *, verify: bool | None = None
    ) -> "Leaves | Decode":
        if data is None and verify is not None:
            return Decode(verify)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(
                f"expected the bytes of a safetensors file, got {type(data).__name__}: for a "
                "file on disk call safejax.load(path)"
            )
        file = BufferSource(bytes(data), IN_MEMORY)
        return open_leaves(file, verify=self.verify if verify is None else verify)

    @property
    def inverse(self) -> Encode:
        return Encode(self.verify)

    def __repr__(self) -> str:
        return "decode(verify=True)" if self.verify else "decode"


encode: Final = Encode()
decode: Final = Decode()
