"""A save by several processes: into one file, of which each writes the bytes that it holds.

Where they cannot do that, each writes files of its own (`checkpoint/dealt.py`), once all have
agreed as here.

The layout follows from names, shapes and dtypes, so every process knows where each byte goes.

1. All agree that they have the same tree and arguments, and thus the same layout. (Where an array
   may be in one of them only, they tell each other before that which those are.)
2. Process 0 makes the temporary file at its full size, and all learn its path.
3. Each writes its own bytes there and flushes them, and all agree that they have.
4. Process 0 renames the file, and all learn that it is there.

If there are digests, each process hashes some blocks after step 3, and puts the digests behind
the end of the file, where process 0 takes them from before it writes the header again.

No device is asked for anything but the values that it holds, so this may run next to a training
step. Whoever gives up removes the temporary file, so that nobody can rename it later.
"""

import contextlib
import os
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final, final

from safejax._src.checkpoint.dealt import Dealt
from safejax._src.checkpoint.digesting import finish_head, full_size, write_digests
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.ours import Ours, write_share
from safejax._src.checkpoint.saving import Wrote, reporting, room_is_told, write_index
from safejax._src.checkpoint.shards import Folder
from safejax._src.checkpoint.snapshot import Holding
from safejax._src.processes.agreement import Round
from safejax._src.progress import Progress
from safejax._src.reading.source import HostArray
from safejax._src.storage.files import errors_name, fill_atomically
from safejax._src.storage.folders import write_folder_atomically
from safejax._src.storage.store import Store
from safejax._src.storage.together import SharedFile, opened_together, remove_together
from safejax._src.system import allocate


@final
class Joint:
    """A save on which all processes have agreed, and which is still to be written.

    `write` has to be called once: in the function that `agree_to_save` is given or, if that has
    left the `round`, in another thread, which has taken it.
    """

    def __init__(self, ours: Ours, store: Store, path: str, across: Round) -> None:
        self._ours = ours
        self.round: Final = across
        self._nbytes = ours.plan.nbytes
        is_dealt = isinstance(ours.plan, Folder) and ours.plan.writers is not None
        self._dealt = Dealt(ours, across) if is_dealt else None
        self.store: Final = store
        self.path: Final = store.absolute(path)

    @property
    def plan(self) -> Layout | Folder:
        """All that is to be written, by all processes together."""
        return self._ours.plan

    def alive(self) -> None:
        """Show the others that this process is at work; raises what failed elsewhere."""
        self.round.alive()

    def copied_bytes(self) -> int:
        """How many bytes of host memory `hold` takes for copies; reads nothing."""
        holding = self._holding if self._dealt is None else self._dealt
        return holding.copied_bytes()

    def agree_to_hold(self, fits: bool) -> bool:
        """Whether this process is to `hold` the values, which may depend on the others."""
        return fits if self._dealt is None else self._dealt.agree_to_hold(fits)

    def hold(self) -> Callable[[], Layout | Folder]:
        """Keep the values as they are now.

        What is returned lets go of the arrays that they come from, in any thread, and returns the
        plan with what is kept. It has to be called before `write`.
        """
        if self._dealt is not None:
            self._ours = Ours(self._dealt.hold(), {})
            return lambda: self.plan
        return partial(self._take, self._holding.held())

    def _take(self, instead: Callable[[HostArray], HostArray]) -> Layout | Folder:
        del self._holding  # It refers to the arrays.
        self._ours = self._ours.with_arrays(instead)
        return self.plan

    @cached_property
    def _holding(self) -> Holding:
        return Holding(self.plan)

    def write(self, progress: Progress | None) -> None:
        """Write what is ours, with all other processes, and put the whole into its place."""
        ours = self._ours
        with room_is_told(self.store, self.path, self._nbytes):
            if self._dealt is None:
                _write(ours, self.store, self.path, self.round, reporting(progress, ours.nbytes))
            else:
                self._dealt.write(self.store, self.path, progress)


def _write(ours: Ours, store: Store, path: str, across: Round, wrote: Wrote) -> None:
    def fill_ours(temporary: str) -> None:
        # All learn of an error before the file is removed, or another one may be that it is not
        # there. So all that is said of it has to be said here.
        with across.telling(), room_is_told(store, path, ours.plan.nbytes), errors_name(path):
            _fill(ours, temporary, across, wrote)

    if across.process != 0:
        temporary = ""
        try:
            # From before the path is known here, so that Ctrl-C at any moment is told first.
            with across.telling():
                temporary = str(across.agree(None, _of_process_0))
                fill_ours(temporary)
                _agree_on_the_end(across)
        except BaseException:
            if temporary:
                remove_together(temporary)
            raise
        return

    def fill(temporary: str) -> None:
        with across.telling():
            across.agree(temporary, _of_process_0)
            fill_ours(temporary)

    def fill_file(descriptor: int, temporary: str) -> None:
        (layout,) = ours.files.values()
        _begin(descriptor, layout)
        fill(temporary)

    def fill_folder(temporary: str) -> None:
        for name, layout in ours.files.items():
            with open(os.path.join(temporary, name), "xb") as file:
                _begin(file.fileno(), layout)
        if isinstance(ours.plan, Folder):
            write_index(ours.plan, temporary)
        fill(temporary)

    if isinstance(ours.plan, Folder):
        write_folder_atomically(path, fill_folder, ours.plan.is_ours)
    else:
        fill_atomically(path, fill_file)
    _agree_on_the_end(across)


def _of_process_0(values: list[Any]) -> Any:
    return values[0]


def _agree_on_the_end(across: Round) -> None:
    across.note = "what was there before may have been replaced"
    across.agree(None, lambda _: None)


def _begin(descriptor: int, layout: Layout) -> None:
    """Give a new file its full size, and its head."""
    allocate(descriptor, full_size(layout))
    file = SharedFile(descriptor)
    file.write(0, memoryview(layout.head))
    file.flush()


def _fill(ours: Ours, temporary: str, across: Round, wrote: Wrote) -> None:
    """Write all that is ours into the file or folder at `temporary`, and wait for the others."""
    with contextlib.ExitStack() as stack:
        files: dict[str, SharedFile] = {}
        for name, layout in ours.files.items():
            if ours.shares[name] or across.process == 0:
                place = os.path.join(temporary, name) if name else temporary
                files[name] = stack.enter_context(opened_together(place, full_size(layout)))
        for name, file in files.items():
            for share in ours.shares[name]:
                for nbytes in write_share(share, file):
                    across.alive()
                    wrote(nbytes)
            file.flush()
            across.alive()
        across.agree(None, lambda _: None)
        if any(layout.block_bytes for layout in ours.files.values()):
            for name, file in files.items():
                write_digests(ours.files[name], ours.shares[name], file, across)
            across.agree(None, lambda _: None)
            if across.process == 0:
                for name, file in files.items():
                    finish_head(ours.files[name], file)
