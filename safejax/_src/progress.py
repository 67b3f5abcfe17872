"""Progress: what `progress=` of a function is, and the bar that `progress=True` shows."""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias, final

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of bytes done so far and the total number of bytes."""

ProgressArgument: TypeAlias = Progress | bool | None
"""A function, or True for a bar; nothing is shown for None and for False."""

_EVERY: Final = 0.1
"""Seconds between two pictures of a bar."""


def check_progress(progress: object, function: str) -> None:
    """Raise `TypeError` unless `progress` can be called, or is True, False or None.

    Raises `ImportError` for True if rich is not installed.
    """
    if progress is True:
        _imported("rich.progress")
    if progress is not None and type(progress) is not bool and not callable(progress):
        raise TypeError(
            f"{function}: progress: expected True, or a function of the bytes done and of all "
            f"bytes, got {progress!r}: pass progress=lambda done, total: print(done, total)"
        )


@contextmanager
def reported(progress: ProgressArgument, title: str) -> Generator[Progress | None]:
    """The function to call with bytes: that of the caller, or one that shows a bar in the block.

    The bar shows the bytes, the rate and the time left; rich draws it on stderr, or IPython in a
    notebook.
    """
    if progress is not True:
        yield progress if callable(progress) else None
        return
    bar = Bar(title)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def shown_progress(
    progress: ProgressArgument, function: str, total: int
) -> Generator[Callable[[int], None]]:
    """A function to call with numbers of bytes as they are done, of `total` in all."""
    check_progress(progress, function)
    done = 0
    with reported(progress, function) as report:

        def add(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if report is not None:
                report(done, total)

        yield add


def _imported(module: str) -> Any:  # Any: rich is an extra.
    try:
        # Imported by name: only who asks for a bar needs it.
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"progress=True needs rich, which cannot be imported ({error}): "
            "pip install 'safejax[progress]'",
            name=error.name,
        ) from error


def _is_terminal(stream: Any) -> bool:
    return stream is not None and bool(stream.isatty())


@final
class Bar:
    """A bar that shows the bytes done; it appears with the first of them.

    It may be called by any thread, and has none of its own: what saves in the background may still
    call it while the interpreter exits.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._shown: Any = None
        self._task: Any = None
        self._in_notebook: Any = None
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:
        with self._lock:
            if self._shown is None:
                self._shown = self._begun(total)
            self._shown.update(self._task, completed=done)
            now = time.monotonic()
            if done >= total or now - self._drawn >= _EVERY:
                self._drawn = now
                self._draw()

    def close(self) -> None:
        """Leave the bar as it is, and give the terminal back."""
        with self._lock:
            if self._shown is not None:
                self._draw()
                if self._in_notebook is None:  # Some versions of rich print a line there, too.
                    self._shown.stop()
                self._shown = self._in_notebook = None

    def _draw(self) -> None:
        if self._in_notebook is None:
            self._shown.refresh()
        else:
            self._in_notebook.update(self._shown)

    def _begun(self, total: int) -> Any:
        rich = _imported("rich.progress")
        console = _imported("rich.console").Console(stderr=True)
        shown = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.DownloadColumn(binary_units=True),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            auto_refresh=False,
            # Else rich would write to stderr what others print meanwhile for a file or a pipe.
            redirect_stdout=_is_terminal(sys.stdout),
        )
        self._task = shown.add_task(self._title, total=total)
        if console.is_jupyter:
            # By itself, rich needs ipywidgets there, whose outputs are of the main thread only.
            display = importlib.import_module("IPython.display").display
            self._in_notebook = display(shown, display_id=True)
        else:
            shown.start()
        return shown
