"""Objects: how ranges of a file are requested of an object store of obstore."""

from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.arriving import NoRangesError
from safejax._src.reading.asking import Asker, Reply, in_thread
from safejax._src.reading.patience import CutShortError, Patience

_CHUNK: Final = 1 << 20
"""Bytes of an answer that are in memory of its own before they are where they belong."""


@final
class ObjectAsker(Asker):
    """Each answer says which version it is of; obstore makes requests again that fail."""

    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> Any:
        del patience  # The store has its own timeouts.
        return in_thread(lambda: self._get(begin, end, memory))

    def _get(self, begin: int, end: int, memory: NDArray[np.uint8] | None) -> Reply:
        try:
            options: dict[str, Any] = {"range": (begin, end)}
            if self.strong_etag is not None:
                options["if_match"] = self.strong_etag
            answer = self.fs.get(self.path, options=options)
        except FileNotFoundError:
            raise
        except Exception:
            # Of an empty file there is no range.
            if begin or not self._is_empty():
                raise
            return Reply(np.empty(0, np.uint8), {"size": 0})
        first, last = answer.range
        if first != begin:
            raise NoRangesError(f"expected the bytes from {begin} on, got those from {first} on")
        count = last - first
        data = (
            memory if memory is not None and memory.nbytes == count else np.empty(count, np.uint8)
        )
        _fill(data, answer)
        named = {"etag": "e_tag", "versionid": "version", "lastmodified": "last_modified"}
        meta = answer.meta
        told = {name: meta[key] for name, key in named.items() if meta.get(key) is not None}
        return Reply(data, {**told, "size": meta["size"]})

    def _is_empty(self) -> bool:
        try:
            return self.fs.head(self.path)["size"] == 0
        except Exception:  # noqa: BLE001 - the first error is the one to raise
            return False


def _fill(data: NDArray[np.uint8], answer: Any) -> None:
    """Put the bytes of an answer into memory while they arrive."""
    done = 0
    try:
        for chunk in answer.stream(min_chunk_size=_CHUNK):
            part = np.frombuffer(chunk, np.uint8)[: data.nbytes - done]
            data[done : done + part.nbytes] = part
            done += part.nbytes
    except Exception as error:
        raise CutShortError(f"expected {data.nbytes} bytes, got {done}: {error}") from error
    if done < data.nbytes:
        raise CutShortError(f"expected {data.nbytes} bytes, got {done}")
