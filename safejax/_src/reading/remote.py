"""Remote files as sources: byte ranges of a file on any fsspec file system."""

import threading
from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np

from safejax._src.reading import patience as patience_of
from safejax._src.reading.arriving import NoRangesError
from safejax._src.reading.askers import asker_of
from safejax._src.reading.asking import Asker, Reply, in_thread
from safejax._src.reading.filesystems import FileSystem
from safejax._src.reading.flight import Flight, Piece, PieceError
from safejax._src.reading.identity import difference, identity_of
from safejax._src.reading.landing import Landing
from safejax._src.reading.masking import masked
from safejax._src.reading.patience import is_unreachable, patiently, status_of, wait_of
from safejax._src.reading.requested import RequestedFile
from safejax._src.reading.requests import FAR, Requests
from safejax._src.system import AtWork
from safejax.errors import ReadError

HEAD: Final = 256 << 10
"""Bytes that are requested when a file is opened: they usually hold its header."""

_LENGTH: Final = 8
"""Bytes of the length of the header, which a safetensors file begins with."""

_LONGEST: Final = 100_000_000
"""Bytes of the longest header."""

_RECOGNIZED: Final = 512
"""Bytes by which a file of another kind is recognized."""


@final
class RemoteSource(RequestedFile):
    """A file that answers ranged requests.

    All bytes are those of the file that was opened, as far as the file system tells: by a version
    or a digest, or else by the time of modification, and by the size. With HTTP, S3, Google's store
    and obstore each answer says so; another file system is asked after each read. Reads that end at
    the same time share that question. `ReadError` is raised for another file.

    A request that fails for the moment is made again, as `Patience` says.

    Raises `FileNotFoundError` if there is no such file, `ReadError` if it cannot be opened.
    """

    reach = FAR

    def __init__(self, fs: FileSystem, path: str, asker: Asker | None = None) -> None:
        self.name = masked(path)
        self._fs = fs
        self._path = path
        self._asker = asker_of(fs, path) if asker is None else asker
        self._lock = threading.Lock()
        self._checks = 0
        self._changed: str | None = None
        self._head = b""
        self._identity: Mapping[str, Any] = {}
        self.nbytes = 0
        if self._asker.tells:
            self._open_by_answer()
        else:
            self._open_by_question()
        self._read_long_header()

    def __repr__(self) -> str:
        return f"RemoteSource({self.name!r})"

    def prefix(self, begin: int, end: int) -> bytes:
        if end > len(self._head):
            self._head += self._bytes(len(self._head), end)
        data = self._head[begin:end]
        if begin >= _LENGTH:
            # The header is read once; what is left tells files of other kinds.
            self._head = self._head[:_RECOGNIZED]
        return data

    def inside(self, begin: int, end: int) -> bytes:
        return self._bytes(begin, end) if begin < end else b""

    def _fetch(self, requests: Requests, landing: Landing) -> None:
        def land(piece: Piece, data: Any) -> None:
            if piece.memory is None:
                landing.land(piece.begin, data)
            elif data is not piece.memory:
                piece.memory[:] = data

        self._fly(
            [
                Piece(begin, end, landing.memory(begin, end))
                for begin, end in zip(requests.begins.tolist(), requests.ends.tolist(), strict=True)
            ],
            land,
        )
        if not self._asker.tells:
            self._check()

    def _bytes(self, begin: int, end: int) -> bytes:
        memory = np.empty(end - begin, np.uint8)

        def land(_: Piece, data: Any) -> None:
            if data is not memory:
                memory[:] = data

        self._fly([Piece(begin, end, memory)], land)
        return memory.tobytes()

    def _fly(self, pieces: list[Piece], land: Any) -> None:
        """Do requests; `land(piece, data)` is called with the bytes of each."""

        def landed(piece: Piece, reply: Reply) -> None:
            if reply.told is not None:
                self._compare(reply.told)
            if reply.data.nbytes != piece.end - piece.begin:
                raise ReadError(
                    f"{self.name}: expected the bytes [{piece.begin}, {piece.end}) of the "
                    f"{self.nbytes} that the file had when it was opened, got "
                    f"{reply.data.nbytes} bytes: it was cut short since, or its file system "
                    "cannot read ranges; load it again, or download it"
                )
            land(piece, reply.data)

        self._run(pieces, landed)

    def _run(self, pieces: list[Piece], landed: Any) -> None:
        patience = patience_of.PATIENCE
        pinned = self._asker.pinned
        flight = Flight(
            lambda piece: self._asker.ask(piece.begin, piece.end, piece.memory, patience),
            landed,
            lambda piece: 0 if self._arrives(piece) else piece.end - piece.begin,
            patience,
        )
        try:
            flight.run(pieces)
            return
        except PieceError as failed:
            cause = failed.__cause__
            piece = failed.piece
            assert cause is not None
            if pinned is None or status_of(cause) != 412:
                what = f"reading bytes [{piece.begin}, {piece.end})"
                raise self._error(what, cause, piece.tries) from shown_cause(cause)
        self._ask_what_is_there()
        self._run(pieces, landed)

    def _arrives(self, piece: Piece) -> bool:
        """Whether the answer needs no memory of its own."""
        return self._asker.tells and piece.memory is not None

    def _error(self, what: str, cause: BaseException, tries: int) -> Exception:
        said = said_by(cause)
        if isinstance(cause, FileNotFoundError) or status_of(cause) in (404, 410):
            return FileNotFoundError(f"{self.name}: {what}: there is no such file; got {said}")
        again = f" after {tries} attempts" if tries > 1 else ""
        return ReadError(f"{self.name}: {what} failed{again}: {said}{remedy(cause)}")

    # ---- opening

    def _open_by_answer(self) -> None:
        """One request tells all: the first bytes, the size and the version."""
        replies: list[Reply] = []
        self._run([Piece(0, HEAD, None)], lambda _, reply: replies.append(reply))
        (reply,) = replies
        assert reply.told is not None
        self._identity = self._asker.pinned = reply.told
        self.nbytes = reply.told["size"]
        self._head = reply.data.tobytes()

    def _open_by_question(self) -> None:
        try:
            self._identity = self._told()
        except Exception as error:  # noqa: BLE001 - a file system may raise anything
            raise self._error("opening", error, 1) from shown_cause(error)
        size = self._identity["size"]
        if not isinstance(size, int):
            raise ReadError(
                f"{self.name}: expected a file system that reports the size of the file, "
                f"{type(self._fs).__name__} reports none: download the file first"
            )
        self.nbytes = size
        if size:
            self._head = self._bytes(0, min(size, HEAD))

    def _read_long_header(self) -> None:
        """Request the rest of a header that is longer than the first bytes."""
        end = _LENGTH + int.from_bytes(self._head[:_LENGTH], "little")
        if len(self._head) < end <= min(self.nbytes, _LENGTH + _LONGEST):
            self._head += self._bytes(len(self._head), end)

    # ---- the file that was opened

    def _compare(self, told: Mapping[str, Any]) -> None:
        """Raise `ReadError` if an answer is of another file than was opened."""
        if self._changed is None:
            self._changed = difference(self._identity, told)
        self._raise_if_changed(self._changed)

    def _ask_what_is_there(self) -> None:
        """Raise `ReadError` if a server that refuses to send the file that was opened has another.

        There are servers that refuse although they have it, so it is asked no more for only that.
        """
        self._asker.pinned = None
        self._bytes(0, 1)

    def _raise_if_changed(self, changed: str | None) -> None:
        if changed is not None:
            raise ReadError(
                f"{self.name}: expected the file that was opened, but it was replaced since: "
                f"{changed}; load it again"
            )

    def _check(self) -> None:
        """Raise `ReadError` if the file system now reports another file than was opened."""
        before = self._checks
        with AtWork(self), self._lock:
            # A check that began meanwhile, after the read for which this one is, serves both.
            if self._checks <= before and self._changed is None:
                self._checks += 1
                try:
                    self._changed = self._difference()
                except ReadError:
                    self._checks -= 1  # It served nobody.
                    raise
            changed = self._changed
        self._raise_if_changed(changed)

    def forget_threads(self) -> None:
        """Be asked for by nobody, in a forked process whose parent had a thread that asked."""
        self._lock = threading.Lock()

    def _difference(self) -> str | None:
        # Listings that the file system keeps are as old as the file that was opened.
        self._fs.invalidate_cache(self._path)
        try:
            found = self._told()
        except Exception as error:  # noqa: BLE001 - a file system may raise anything
            raise ReadError(
                f"{self.name}: asking whether the file is still the one that was opened failed: "
                f"{masked(f'{type(error).__name__}: {error}')}"
            ) from shown_cause(error)
        return difference(self._identity, found)

    def _told(self) -> Mapping[str, Any]:
        """What the file system answers to the question what the file is."""
        patience = patience_of.PATIENCE
        asked = in_thread(lambda: patiently(lambda: identity_of(self._fs, self._path), patience))
        return asked.result(patience.longest)


def shown_cause(error: BaseException) -> BaseException | None:
    """The error, as the cause of another one; None if it, or what it is due to, has credentials."""
    each: BaseException | None = error
    seen: set[int] = set()
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        if masked(str(each)) != str(each):
            return None
        each = each.__cause__ or each.__context__
    return error


def said_by(error: BaseException) -> str:
    """What an error of a file system says, with its status, and without credentials."""
    said = masked(f"{type(error).__name__}: {error}")[:1000]
    status = status_of(error)
    return said if status is None or str(status) in said else f"status {status}: {said}"


def remedy(error: BaseException) -> str:
    """What to do about an error of a file system; empty if that is not known."""
    status = status_of(error)
    if status in (401, 403) or isinstance(error, PermissionError):
        return (
            "; pass a file system that may read it, with fs=, or a URL whose signature is not "
            "expired"
        )
    if isinstance(error, NoRangesError) or status == 416:
        return "; its server cannot read ranges: download the file, and load that"
    wait = wait_of(error)
    if wait:
        return f"; load it again in {wait:.0f} s, as its server asks"
    if status == 429 or (status is not None and status >= 500):
        return "; load it again later"
    if is_unreachable(error):
        return "; see whether its server can be reached, and load it again"
    return ""
