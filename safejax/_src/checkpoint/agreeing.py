"""The agreement of several processes on what they save: each has the same tree and arguments."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, final

from safejax._src.arguments import is_timeout
from safejax._src.checkpoint.distributed import Joint
from safejax._src.checkpoint.division import (
    NOBODY,
    Runs,
    divided,
    held_alone,
    may_be_divided,
    merged,
    single_holders,
)
from safejax._src.checkpoint.facts import Facts, digest_of, facts_of, raise_difference
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.ours import Ours, ours_of
from safejax._src.checkpoint.shards import Folder
from safejax._src.leaves.leaves import Leaves
from safejax._src.processes.agreement import TIMEOUT, Round
from safejax._src.processes.preparing import agreed
from safejax._src.reading.filesystems import FileSystem
from safejax._src.storage.files import PathLike, checked_path
from safejax._src.storage.location import locate
from safejax._src.storage.store import Store
from safejax.errors import ProcessError

_Result = TypeVar("_Result")


def agree_to_save(
    flattened: Callable[[], Leaves],
    plan_of: Callable[[Leaves, int | None], Layout | Folder],
    options: Mapping[str, Any],
    target: PathLike,
    fs: FileSystem,
    timeout: Any,
    then: Callable[[Joint], _Result],
) -> _Result:
    """Agree with all other processes to save to `target` what `plan_of` makes of the leaves.

    `plan_of(leaves, writers)` deals the files out among `writers` processes, unless it is None.
    `options` are the arguments that must be the same everywhere and are not seen in the plan.
    `then` writes it, and what it returns is returned. Every error, also of `then`, is raised in
    all processes; what was there before is kept.
    """
    # One that is no timeout is found when the leaves are prepared, in the round.
    silence = timeout if is_timeout(timeout) else TIMEOUT
    with Round(f"save to {target!s}", silence) as across:
        across.note = "what was there before is unchanged"

        def prepare() -> tuple[_Prepared, _Divided | None]:
            leaves = flattened()
            store, path = locate(checked_path(target), fs)
            writers = across.processes if _is_dealt(store, path, options) else None
            prepared = _Prepared(leaves, single_holders(leaves), store, path, writers)
            return prepared, divide(prepared, frozenset()) if may_be_divided(leaves) else None

        def divide(prepared: _Prepared, alone: frozenset[str]) -> _Divided:
            leaves, _, _, path, writers = prepared
            plan = plan_of(divided(leaves, alone, across.process), writers)
            ours = ours_of(plan, across.process, across.processes)
            facts = facts_of({"path": path, **options}, leaves, alone, plan, across.alive)
            return _Divided(ours, facts)

        def first(made: tuple[_Prepared, _Divided | None]) -> list[Any]:
            return [made[0].runs, None if made[1] is None else _told(made[1])]

        (prepared, made), (runs, other) = agreed(across, prepare, first, _merged)
        if runs is not None:
            # Some process holds leaves alone, or may do so: now all know which they are.
            alone = held_alone(prepared.leaves, runs, across.process)
            made, other = agreed(across, lambda: divide(prepared, alone), _told, _first_other)
        assert made is not None, "without runs, all have divided their leaves"
        if other is not None:
            raise_difference(across, made.facts, other)
        return then(Joint(made.ours, prepared.store, prepared.path, across))
    raise AssertionError("the block returns or raises")


@final
class _Prepared(NamedTuple):
    """What a process knows before any agreement; `runs` are the leaves that others hold alone."""

    leaves: Leaves
    runs: Runs
    store: Store
    path: str
    writers: int | None


@final
class _Divided(NamedTuple):
    """What a process writes, and what all must have alike."""

    ours: Ours
    facts: Facts


def _told(made: _Divided) -> list[Any]:
    return [digest_of(made.facts), made.ours.bits, made.ours.of_all]


def _merged(values: list[Any]) -> tuple[Runs | None, int | None]:
    """Which leaves one process holds alone or, if there are none, what `_first_other` returns."""
    runs, told = [value[0] for value in values], [value[1] for value in values]
    found: Runs = merged(runs[0], runs[1]) if len(runs) > 1 else runs[0]
    if None in told or any(holder != NOBODY for _, holder in found):
        return found, None
    return None, _first_other(told)


def _is_dealt(store: Store, target: str, options: Mapping[str, Any]) -> bool:
    """Whether each file is written by one process alone."""
    if options["max_shard_bytes"] is not None:
        return not store.shares_files or options["one_writer_per_file"]
    if not store.shares_files:
        raise ValueError(
            f"{target}: expected max_shard_bytes with a save by several processes to {store.kind}, "
            "where they cannot write one file together, got none: pass for example "
            "max_shard_bytes=2 << 30, for a folder of files that are written by one process each, "
            "or save to a local folder that all processes share"
        )
    return False


def _first_other(values: list[Any]) -> int | None:
    """The first process whose facts are not those of process 0; `ProcessError` for bad shares."""
    for process, value in enumerate(values):
        if value[0] != values[0][0]:
            return process
    found, expected = sum(value[1] for value in values), values[0][2]
    if found != expected:
        raise ProcessError(
            f"expected the shares of all processes to have {expected} bits, got {found}: this is "
            "an error of safejax, please report it; nothing was written"
        )
    return None
