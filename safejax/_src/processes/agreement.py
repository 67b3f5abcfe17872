"""Agreements: processes that do the same work in step, and fail together.

The processes share a store of strings (JAX's coordination service) and nothing else; no device is
asked. A `Round` is a series of agreements. In each of them every process gives a value, the last
one to come decides from all values, and what it decided is written under a key that is written
once: so all see the same outcome, also if one of them gave up meanwhile. A process that fails
writes its error there in place of the outcome, and all raise it, at once.

Values stay small, as the service is one server for all: digests, and not what they are of.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Final, final

import jax

from safejax._src.arrays.jax_private import Service, coordination_service
from safejax._src.processes.entries import Entry, forget_finished
from safejax._src.processes.failures import described, error_of, is_because_of, is_shared
from safejax.errors import ProcessError

TIMEOUT: Final = 300.0
"""Seconds without a sign of life after which a process is given up, if nobody says otherwise."""

_SLICE: Final = 0.5
"""Seconds of one request that waits; between two of them, Ctrl-C is heard."""

_PROGRESS: Final = 1.0
"""Seconds between two signs of life of a process that is at work."""


@final
class Round:
    """A series of agreements of all processes, as a context.

    Every process must enter its rounds in the same order; whatever can raise belongs inside, so
    that none of them misses one. An error that leaves the block is raised in all processes, with
    the same class and text, if it is one of safejax's or a common one of Python's; other
    processes raise any other one as a `ProcessError`. `title` names the work in errors.

    A process that neither comes to an agreement nor shows that it is `alive` for `timeout`
    seconds is given up: the others raise `ProcessError`, which names it. `note` ends that error,
    and says what has been done by then.
    """

    def __init__(self, title: str, timeout: float) -> None:
        self._entry = Entry()
        self._is_left = False
        self.process = jax.process_index()
        self.processes = jax.process_count()
        self.title = title
        self.note = ""
        self._timeout = timeout
        self._phase = 0
        self._signs = 0
        self._next_sign = 0.0
        self._raised: BaseException | None = None
        self._client: Service | None = None

    @property
    def _service(self) -> Service:
        if self._client is None:
            self._client = coordination_service()
        if self._client is None:
            raise ProcessError(
                f"{self.title}: expected the service through which JAX's processes find each "
                f"other, got none that this JAX, {jax.__version__}, lets safejax use: call "
                "jax.distributed.initialize() first, or gather the arrays with "
                "multihost_utils.process_allgather(x, tiled=True) and save in process 0"
            )
        return self._client

    @property
    def has_failed(self) -> bool:
        """Whether all processes raise an error of one of them, which this one has raised."""
        return self._raised is not None

    def agree(
        self,
        value: Any,
        decide: Callable[[list[Any]], Any],
        error: BaseException | None = None,
    ) -> Any:
        """What `decide` makes of the values of all processes, in their order.

        Values and decisions are what JSON holds. If some processes have an error instead, all
        raise the first one; its text names the process, unless all have the same.
        """
        mine = {"value": value, "open": self._entry.others()}
        if error is not None:
            mine["error"] = described(error)
        self._service.key_value_set(f"{self._at}/of/{self.process}", json.dumps(mine))
        if self._service.key_value_increment(f"{self._at}/came", 1) == self.processes:
            self._offer(self._decision(decide))
        decided = self._decided()
        if "failed" in decided:
            if error is not None and not is_shared(error):
                self._raised = error
                raise error
            self._fail_as(decided, error)
        if self._phase == 0:
            self._clean(decided["open"])
        self._phase += 1
        return decided["value"]

    def alive(self) -> None:
        """Show that this process is at work, and raise what failed elsewhere meanwhile.

        To be called often; most calls do nothing.
        """
        if time.monotonic() < self._next_sign:
            return
        self._next_sign = time.monotonic() + min(_PROGRESS, self._timeout / 4)
        self._signs += 1
        key = f"{self._at}/alive/{self.process}"
        self._service.key_value_set(key, str(self._signs), allow_overwrite=True)
        for _, text in self._service.key_value_dir_get(f"{self._at}/decided"):
            self._fail_as(json.loads(text), None)

    def leave(self) -> None:
        """Leave the end of the round to a thread that has `taken` it, or will do so.

        The block of the round does not end it, then, unless an error leaves it before.
        """
        self._is_left = True

    @contextlib.contextmanager
    def taken(self) -> Generator[None]:
        """A block of another thread that ends the round; raises `ProcessError` if it has ended."""
        if not self._entry.take():
            raise ProcessError(f"{self.title}: was interrupted in the thread that called it")
        try:
            yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    @contextlib.contextmanager
    def telling(self) -> Generator[None]:
        """A block whose errors are raised in all processes before this one undoes anything."""
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise

    def __enter__(self) -> "Round":
        try:
            self._entry.begin()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if (error is not None or not self._is_left) and self._entry.take():
            self._end(error)

    # ---- inside

    def _end(self, error: BaseException | None) -> None:
        try:
            if error is not None:
                self._tell(error)
        finally:
            self._entry.end()

    @property
    def _at(self) -> str:
        return f"safejax/{self._entry.number}/{self._phase}"

    def _decision(self, decide: Callable[[list[Any]], Any]) -> dict[str, Any]:
        """The outcome, from the values of all."""
        prefix = f"{self._at}/of/"
        found = {
            int(key.rpartition("/")[2]): json.loads(text)
            for key, text in self._service.key_value_dir_get(prefix)
        }
        given = [found[process] for process in range(self.processes)]
        failed = {process: each["error"] for process, each in found.items() if "error" in each}
        if failed:
            process = min(failed)
            same = all(each.get("error") == failed[process] for each in given)
            return {"failed": failed[process], "process": None if same else process}
        try:
            value = decide([each["value"] for each in given])
        except Exception as error:  # noqa: BLE001 - raised in all processes
            return {"failed": described(error), "process": None}
        return {"value": value, "open": sorted({n for each in given for n in each["open"]})}

    def _offer(self, decision: dict[str, Any]) -> None:
        """Make this the outcome, unless there is one."""
        try:
            self._service.key_value_set(f"{self._at}/decided/it", json.dumps(decision))
        except RuntimeError as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def _decided(self) -> dict[str, Any]:
        """The outcome, once there is one."""
        signs: dict[int, str] | None = None
        seen = dict.fromkeys(range(self.processes), time.monotonic())
        between = self._timeout / 16
        look = 0.0
        while True:
            try:
                key, wait = f"{self._at}/decided/it", min(_SLICE, between)
                return json.loads(self._service.blocking_key_value_get(key, int(wait * 1000)))
            except RuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            now = time.monotonic()
            if now < look:
                continue
            look = now + between
            before, signs = signs, self._numbered("alive")
            if before is not None:
                seen.update({p: now for p, sign in signs.items() if before.get(p) != sign})
            came = self._numbered("of")
            missing = [process for process in seen if process not in came]
            late = [p for p in missing or seen if look - seen[p] >= self._timeout]
            if late:
                self._offer(self._gave_up(late if missing else []))

    def _numbered(self, what: str) -> dict[int, str]:
        found = self._service.key_value_dir_get(f"{self._at}/{what}")
        return {int(key.rpartition("/")[2]): text for key, text in found}

    def _gave_up(self, silent: list[int]) -> dict[str, Any]:
        """The outcome if processes are silent; without any, all came, and the last said nothing."""
        who = ", ".join(map(str, silent[:10]))
        who += f" and {len(silent) - 10} more" if len(silent) > 10 else ""
        all_, step = f"all {self.processes} processes", f"step {self._phase} of it"
        if silent:
            text = f"expected {all_} to come to {step}, got no sign of process {who}"
            remedy = "call it in every process, with the same tree and in the same order"
        else:
            text = f"expected the last of {all_} that came to {step} to decide, got nothing of it"
            remedy = "see whether a process has died"
        text = (
            f"{self.title}: {text} for {self._timeout:g} s: {remedy}; if one is only slow, pass a "
            f"longer timeout={self.note and '; '}{self.note}"
        )
        return {"failed": described(ProcessError(text)), "process": None}

    def _tell(self, error: BaseException) -> None:
        """Make all processes raise `error`, unless they know it; raise what they raise, if so."""
        if error is self._raised:
            return
        if isinstance(error, Exception) and self._raised and is_because_of(error, self._raised):
            raise self._raised  # All have the same text, whatever was added to it here.
        self._fail(error)
        self._raised = error

    def _fail_as(self, decided: dict[str, Any], cause: BaseException | None) -> None:
        """Raise what was decided to have failed."""
        self._raised = error_of(decided["failed"], decided["process"])
        raise self._raised from cause

    def _fail(self, error: BaseException) -> None:
        """Make the others raise `error`, and raise what they raise, if they can."""
        failure = {"failed": described(error), "process": self.process}
        try:
            self._offer(failure)
            decided = self._decided()
            if "failed" not in decided:  # The others have gone on to the next agreement.
                self._phase += 1
                self._offer(failure)
                decided = self._decided()
        except KeyboardInterrupt:
            return  # The user wants an end now; `error` goes on.
        except RuntimeError as ended:
            if not isinstance(error, RuntimeError) or isinstance(error, ProcessError):
                return
            raise ProcessError(
                f"{self.title}: expected an answer of JAX's coordination service, got none "
                f"({str(ended).partition(chr(10))[0]}): process 0, which runs it, may have ended"
            ) from error
        if isinstance(error, Exception) and (decided != failure or is_shared(error)):
            self._fail_as(decided, error)

    def _clean(self, still_open: list[int]) -> None:
        """Delete the keys of rounds that no process is in any more: all have come to this one."""
        for number in forget_finished(still_open):
            if self.process == 0:
                self._service.key_value_delete(f"safejax/{number}")
