"""What all places elsewhere share: each question is a round trip, and a file is sent once."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from safejax._src.reading.masking import masked
from safejax._src.storage.store import Access, Store


class FarStore(Store):
    """A store of files elsewhere, which are requested, and sent from first byte to last."""

    __slots__ = ()

    is_far = True

    @property
    def replaces_folders(self) -> bool:
        return False

    @property
    def rewrites(self) -> bool:
        return False  # Bytes cannot be changed once they are sent.

    @property
    def shares_files(self) -> bool:
        return False

    @contextmanager
    def watched(self, folder: str) -> Generator[Callable[[], bool]]:
        del folder
        yield lambda: True

    def check_access(self, path: str, access: Access) -> None:
        """`ValueError` for a way of access that only local files have."""
        if access != "auto":
            raise ValueError(
                f"{masked(path)}: access: expected 'auto' for a file that is requested from "
                f"{self.kind}, got {access!r}"
            )
