"""Handles: the state of a save in the background, for its own thread and for its caller."""

import threading
import traceback
import weakref
from types import TracebackType
from typing import Final, Literal, NoReturn, TypeAlias, final

from safejax._src.public import set_module

State: TypeAlias = Literal["waiting", "writing", "saved", "failed"]


@final
class Save:
    """A save in the background, as its thread sees it: it ends once, and may have failed.

    An error that nobody asks for is reported when nobody can any more: when the handle is
    collected or, at the latest, when the interpreter exits.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = path
        self.state: State = "waiting"
        self.error: BaseException | None = None
        self.over = threading.Event()
        self.thread: threading.Thread | None = None
        self.earlier: tuple[Save, ...] = ()
        """The saves that this one waits for, as long as it is not over."""
        # The error, until somebody has seen it. To take it from the list is one step, also for a
        # finalizer, which may run at any point of any thread and so must not wait for a lock.
        self._unseen: list[BaseException] = []
        self._is_abandoned = False

    def end(self, error: BaseException | None) -> None:
        """End as saved or, with an error, as failed."""
        if error is not None:
            _forget_values(error)
            self._unseen.append(error)
        self.error = error
        self.earlier = ()
        self.state = "saved" if error is None else "failed"
        self.over.set()
        if self._is_abandoned:
            self._report()

    def see(self) -> BaseException | None:
        """The error, once the save is over; it is not reported any more."""
        self._unseen.clear()
        return self.error

    def waits_for(self, thread: threading.Thread) -> bool:
        """Whether it will not be over before a thread goes on that waits for it now."""
        if self.over.is_set():
            return False
        return self.thread is thread or any(each.waits_for(thread) for each in self.earlier)

    def abandon(self) -> None:
        """Report the error, if there is or will be one that nobody has seen."""
        self._is_abandoned = True
        self._report()

    def leave_to_parent(self) -> None:
        """End in a forked process, which does not have the thread that saves."""
        self.over = threading.Event()  # The thread may have had the lock of the other one.
        self.end(
            RuntimeError(
                f"{self.path}: expected the process that began the save, got one that was forked "
                "from it meanwhile: the save goes on there; ask the handle there"
            )
        )
        self.see()

    def _report(self) -> None:
        try:
            error = self._unseen.pop()
        except IndexError:
            return
        error.add_note(
            f"The save to {self.path!r} by safejax.save_async failed, and nobody asked its handle: "
            "call handle.result(), which raises this error."
        )
        threading.excepthook(
            threading.ExceptHookArgs((type(error), error, error.__traceback__, self.thread))
        )


def _forget_values(error: BaseException) -> None:
    """Let go of what the frames of an error refer to: the arrays that were to be saved."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            left += [each.__cause__, each.__context__]


@set_module("safejax")
@final
class SaveHandle:
    """A save in the background, which `save_async` has begun.

    `result()` waits for it and raises its error. In a `with` statement, that happens at the end;
    if the block itself raises, the error of the save is added to that exception as a note. The
    handle need not be kept: the save goes on without it. An error that nobody asks for is
    reported on stderr (by `threading.excepthook`) when the handle is collected or the interpreter
    exits.
    """

    __slots__ = ("__weakref__", "_save")

    def __init__(self, save: Save) -> None:
        self._save = save
        weakref.finalize(self, save.abandon)  # Also when the interpreter exits.

    @property
    def path(self) -> str:
        """The path or URL, as `save_async` was given it."""
        return self._save.path

    def done(self) -> bool:
        """Whether the save is over: the file is complete and on disk, or there is an error."""
        return self._save.over.is_set()

    def result(self, timeout: float | None = None) -> None:
        """Wait until the file is complete and on disk; raise the error of the save if it failed.

        `timeout` is in seconds; `TimeoutError` is raised if the save is not over by then. The save
        goes on after that, and after Ctrl-C. Raises `RuntimeError` if the save itself calls it,
        for example by its `progress`.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait like `result`, and return the error of the save, or None."""
        if self._save.waits_for(threading.current_thread()):
            raise RuntimeError(
                f"{self.path}: expected another thread to wait for the save than the one that "
                "writes, or writes an earlier one to the same place, got a call from within it, "
                "for example from its `progress`, which would wait for ever: ask the handle where "
                "the save was begun; done() does not wait"
            )
        if not self._save.over.wait(timeout):
            raise TimeoutError(
                f"{self.path}: expected the save to be over in {timeout} s, it goes on "
                f"({self._save.state}): call result() again"
            )
        return self._save.see()

    def __enter__(self) -> "SaveHandle":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        error = self.exception()
        if error is None:
            return
        if raised is None:
            raise error
        raised.add_note(
            f"{self.path}: the save in the background failed, too: {type(error).__name__}: {error}"
        )

    def __copy__(self) -> "SaveHandle":
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "SaveHandle":
        """Itself: there is one save, which reports its error once."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled: the save is by a thread of this process; call result() "
            "here, and pass on the path"
        )

    def __repr__(self) -> str:
        state, error = self._save.state, self._save.error
        told = state if error is None else f"{state}: {type(error).__name__}"
        return f"SaveHandle({self.path!r}, {told})"
