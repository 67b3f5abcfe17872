"""Askers: the ways to request ranges of a file of a file system of fsspec.

With HTTP, with S3 and with Google's store, an answer says which version of the file it is of, and
its bytes arrive where they belong. Of other file systems `cat_file` is asked, in the loop of an
asynchronous one, or else in threads; whether the file is still the same is another question then.
fsspec itself is not imported: whoever has a file system has imported it.
"""

import asyncio
import json
import sys
from abc import abstractmethod
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, Final, final

import numpy as np
from numpy.typing import NDArray

from safejax._src.reading.arriving import Held, Stall, answered, body, held_by, held_by_answer
from safejax._src.reading.asking import Asker, Reply, in_loop, in_thread
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.patience import Patience, StatusError

_DECOMPRESSES: Final = False
"""What is compressed although it was not asked for stays so.

No range of it is one of the file, and a kilobyte may become a gigabyte.
"""


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
        if _is_google(fs, own, path):
            return _Google(fs, path)
    return _Any(fs, path)


def _is_google(fs: FileSystem, own: object, path: str) -> bool:
    """Whether a file system is gcsfs, and asks the JSON API for the bucket of a path."""
    if not hasattr(fs, "_get_params"):
        return False
    if own is _method("gcsfs.core", "GCSFileSystem"):
        return True
    if own is not _method("gcsfs.extended_gcsfs", "ExtendedGcsFileSystem"):
        return False
    # Buckets of a zone have a protocol of their own, which gcsfs speaks.
    bucket, _, _ = fs.split_path(path)
    is_zonal: bool = asyncio.run_coroutine_threadsafe(
        fs._is_zonal_bucket(bucket),  # noqa: SLF001
        fs.loop,
    ).result()
    return not is_zonal


def _method(module: str, name: str) -> object:
    return getattr(getattr(sys.modules.get(module), name, None), "_cat_file", None)


def _loop_of(fs: FileSystem) -> Any:
    """The loop that an asynchronous file system runs in; None if it has none of its own."""
    kind = getattr(sys.modules.get("fsspec.asyn"), "AsyncFileSystem", None)
    if kind is None or not issubclass(type(fs), kind) or fs.asynchronous:
        return None
    return fs.loop


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


class _Web(Asker):
    """A file that is answered with its bytes, whose headers say which version it is of."""

    names: ClassVar[Mapping[str, str]]
    """The headers, by the names in `identity.py`."""

    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        def get(at: int, memory: NDArray[np.uint8] | None) -> Coroutine[Any, Any, Reply]:
            return self._get(at, end, memory, patience)

        return in_loop(answered(get, begin, end, memory), self.fs.loop)

    @abstractmethod
    async def _request(self, span: Mapping[str, str]) -> Any:
        """A request of aiohttp with the headers of `span` among its own."""

    async def _held(self, answer: Any, begin: int, end: int) -> Held:
        """What the answer has; raises the error that it is."""
        return held_by_answer(answer, begin, end)

    async def _get(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> Reply:
        span = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        async with Stall(patience) as stall, await self._request(span) as answer:
            stall.moved()
            held = await self._held(answer, begin, end)
            told = {
                name: answer.headers[key]
                for name, key in self.names.items()
                if answer.headers.get(key)
            }
            count = max(0, min(end, *held) - begin)
            data = await body(answer.content.readany, count, memory, stall)
        return Reply(data, {**told, "size": held.size})


@final
class _Http(_Web):
    names: ClassVar = {"etag": "ETag", "contentmd5": "Content-MD5", "lastmodified": "Last-Modified"}

    async def _request(self, span: Mapping[str, str]) -> Any:
        fs = self.fs
        options = dict(fs.kwargs)
        headers = {**options.pop("headers", {}), **span, **self._condition()}
        session = await fs.set_session()
        options["auto_decompress"] = _DECOMPRESSES
        return session.get(fs.encode_url(self.path), headers=headers, **options)

    def _condition(self) -> dict[str, str]:
        etag, time = self.strong_etag, (self.pinned or {}).get("lastmodified")
        if etag is not None:
            return {"If-Match": etag}
        return {} if time is None else {"If-Unmodified-Since": time}


@final
class _Google(_Web):
    """Google's JSON API, whose objects have a generation, a new one each time that one is written.

    Cloud Storage, JSON API, Objects: get.
    """

    names: ClassVar = {"generation": "X-Goog-Generation", "etag": "ETag"}

    async def _request(self, span: Mapping[str, str]) -> Any:
        fs = self.fs
        await fs._set_session()  # noqa: SLF001
        url = fs.url(self.path)
        generation = (self.pinned or {}).get("generation")
        if generation is not None:
            url += f"&ifGenerationMatch={generation}"
        timeout = {} if fs.requests_timeout is None else {"timeout": fs.requests_timeout}
        return fs.session.get(
            url,
            headers=fs._get_headers(dict(span)),  # noqa: SLF001
            params=fs._get_params({}),  # noqa: SLF001
            auto_decompress=_DECOMPRESSES,
            **timeout,
        )

    async def _held(self, answer: Any, begin: int, end: int) -> Held:
        if answer.status == 416 and not begin:
            return Held(0, 0)  # Of an empty object there is no range.
        if answer.status < 400:
            return held_by_answer(answer, begin, end)
        raise StatusError(answer.status, _reason(answer, await answer.text()), answer.headers)


def _reason(answer: Any, said: str) -> str:
    """Why Google refuses: the message of its error, where it has one."""
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return said[:300] or answer.reason or ""


@final
class _S3(Asker):
    def ask(
        self, begin: int, end: int, memory: NDArray[np.uint8] | None, patience: Patience
    ) -> "Future[Reply]":
        def get(at: int, memory: NDArray[np.uint8] | None) -> Coroutine[Any, Any, Reply]:
            return self._get(at, end, memory, patience)

        return in_loop(answered(get, begin, end, memory), self.fs.loop)

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
                held = held_by(answer.get("ContentRange"), begin)
                count = max(0, min(end, *held) - begin)
                data = await body(lambda: stream.read(_CHUNK), count, memory, stall)
            finally:
                stream.close()
        named = {"versionid": "VersionId", "etag": "ETag", "lastmodified": "LastModified"}
        told = {name: answer[key] for name, key in named.items() if answer.get(key)}
        return Reply(data, {**told, "size": held.size})

    async def _is_empty(self) -> bool:
        """Whether there is a file without a byte, of which S3 has no range."""
        try:
            info = await self.fs._info(self.path, refresh=True)  # noqa: SLF001
        except Exception:  # noqa: BLE001 - the first error is the one to raise
            return False
        return info["type"] == "file" and info["size"] == 0


_CHUNK: Final = 1 << 20
