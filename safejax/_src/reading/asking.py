"""Asking: how ranges of a file are requested of a file system of fsspec.

With HTTP and with S3, an answer says which version of the file it is of, and its bytes arrive
where they belong. Of other file systems `cat_file` is asked, in the loop of an asynchronous one, or
else in threads; whether the file is still the same is another question then. fsspec itself is not
imported: whoever has a file system has imported it.
"""

import asyncio
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.arriving import Stall, body, size_of, total_of
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.patience import Patience


@final
class Reply(NamedTuple):
    """The bytes of an answer, and what it says of the file; None if it says nothing."""

    data: NDArray[np.uint8]
    told: Mapping[str, Any] | None


class Asker(ABC):
    """How one file is asked for; `tells` is true if answers say which file they are of.

    If something is `pinned`, as an answer has told it, only bytes of that version are asked for,
    where that is known to the place. It refuses with status 412 if it has another one.
    """

    tells: bool = True
    pinned: Mapping[str, Any] | None = None

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = fs
        self.path = path

    @abstractmethod
    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        """Request the bytes `[begin, end)`, or those of them that there are.

        If there is `memory`, they arrive there if they can.
        """

    @property
    def strong_etag(self) -> str | None:
        """The ETag that is pinned, if it says that every byte is the same (RFC 9110)."""
        etag = (self.pinned or {}).get("etag")
        return etag if isinstance(etag, str) and etag.startswith('"') else None


def asker_of(fs: FileSystem, path: str) -> Asker:
    """The best way to ask a file system for a file."""
    kind: Any = type(fs)
    own = getattr(kind, "_cat_file", None)
    if _loop_of(fs) is not None and own is not None:
        # A class that reads in a way of its own is asked in that way.
        if own is _method("fsspec.implementations.http", "HTTPFileSystem"):
            return _Http(fs, path)
        if own is _method("s3fs.core", "S3FileSystem") and hasattr(kind, "_call_s3"):
            return _S3(fs, path)
    return _Any(fs, path)


def _method(module: str, name: str) -> object:
    return getattr(getattr(sys.modules.get(module), name, None), "_cat_file", None)


def _loop_of(fs: FileSystem) -> Any:
    """The loop that an asynchronous file system runs in; None if it has none of its own."""
    kind = getattr(sys.modules.get("fsspec.asyn"), "AsyncFileSystem", None)
    if kind is None or not issubclass(type(fs), kind) or fs.asynchronous:
        return None
    return fs.loop


def in_thread(task: Callable[[], Any]) -> "Future[Any]":
    """What `task` returns, or raises, in a thread that the end of the process does not wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(task())
            except BaseException as error:  # noqa: BLE001 - raised by who asks the future
                future.set_exception(error)

    threading.Thread(target=run, name="safejax-request", daemon=True).start()
    return future


@final
class _Any(Asker):
    tells = False

    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        del memory, patience
        loop = _loop_of(self.fs)
        if loop is not None:
            return asyncio.run_coroutine_threadsafe(self._in_loop(begin, end), loop)
        options = _options_of(self.fs)
        return in_thread(lambda: self._reply(self.fs.cat_file(self.path, begin, end, **options)))

    async def _in_loop(self, begin: int, end: int) -> Reply:
        return self._reply(await self.fs._cat_file(self.path, start=begin, end=end))  # noqa: SLF001

    def _reply(self, data: Any) -> Reply:
        return Reply(np.frombuffer(data, np.uint8), None)


def _options_of(fs: FileSystem) -> dict[str, Any]:
    """Options of `cat_file`, by which the Hub is asked for a range and no more."""
    kind = getattr(sys.modules.get("huggingface_hub.hf_file_system"), "HfFileSystem", None)
    return {"cache_type": "none"} if kind is not None and isinstance(fs, kind) else {}


@final
class _Http(Asker):
    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        return _soon(self._get(begin, end, memory, patience), self.fs.loop)

    async def _get(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> Reply:
        fs = self.fs
        options = dict(fs.kwargs)
        headers = {
            **options.pop("headers", {}),
            "Range": f"bytes={begin}-{end - 1}",
            "Accept-Encoding": "identity",
            **self._condition(),
        }
        async with Stall(patience) as stall:
            session = await fs.set_session()
            url = fs.encode_url(self.path)
            async with session.get(url, headers=headers, **options) as answer:
                stall.moved()
                size = size_of(answer, begin, end)
                told = {
                    key.lower().replace("-", ""): answer.headers[key]
                    for key in ("ETag", "Content-MD5", "Last-Modified")
                    if answer.headers.get(key)
                }
                count = max(0, min(end, size) - begin)
                data = await body(answer.content.readany, count, memory, stall)
        return Reply(data, {**told, "size": size})

    def _condition(self) -> dict[str, str]:
        etag, time = self.strong_etag, (self.pinned or {}).get("lastmodified")
        if etag is not None:
            return {"If-Match": etag}
        return {} if time is None else {"If-Unmodified-Since": time}


@final
class _S3(Asker):
    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        return _soon(self._get(begin, end, memory, patience), self.fs.loop)

    async def _get(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> Reply:
        bucket, key, version = self.fs.split_path(self.path)
        of_version = {} if version is None else {"VersionId": version}
        etag = self.strong_etag
        if etag is not None:
            of_version["IfMatch"] = etag
        async with Stall(patience) as stall:
            try:
                answer = await self.fs._call_s3(  # noqa: SLF001
                    "get_object",
                    Bucket=bucket,
                    Key=key,
                    Range=f"bytes={begin}-{end - 1}",
                    **of_version,
                )
            except OSError:
                if begin or not await self._is_empty():
                    raise
                return Reply(np.empty(0, np.uint8), {"size": 0})
            stall.moved()
            stream = answer["Body"]
            try:
                size = total_of(answer.get("ContentRange"), begin)
                count = max(0, min(end, size) - begin)
                data = await body(lambda: stream.read(_CHUNK), count, memory, stall)
            finally:
                stream.close()
        named = {"versionid": "VersionId", "etag": "ETag", "lastmodified": "LastModified"}
        told = {name: answer[key] for name, key in named.items() if answer.get(key)}
        return Reply(data, {**told, "size": size})

    async def _is_empty(self) -> bool:
        """Whether there is a file without a byte, of which S3 has no range."""
        try:
            info = await self.fs._info(self.path, refresh=True)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - the first error is the one to raise
            return False
        return info["type"] == "file" and info["size"] == 0


_CHUNK: Final = 1 << 20


def _soon(task: Coroutine[Any, Any, Reply], loop: Any) -> "Future[Reply]":
    try:
        return asyncio.run_coroutine_threadsafe(task, loop)
    except BaseException:
        task.close()
        raise
