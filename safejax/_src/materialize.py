"""All lazy leaves of a tree: materialized, also in many processes together, and prefetched."""

from typing import Any, TypeVar

import jax

from safejax._src.arguments import checked_size, refuse_path
from safejax._src.arrays.materialize import lazy_leaves, place_all
from safejax._src.arrays.prefetch import prefetch_all
from safejax._src.arrays.read_once import digest_of, place_reading_once, spreads_of
from safejax._src.processes.agreement import TIMEOUT, Round
from safejax._src.progress import ProgressArgument, check_progress, reported
from safejax._src.public import set_module
from safejax.errors import ProcessError

_Tree = TypeVar("_Tree")


@set_module("safejax")
def materialize(
    tree: _Tree, *, progress: ProgressArgument = None, read_once: bool = False
) -> _Tree:
    """The same tree with every lazy leaf a plain, placed `jax.Array`; leaves are read in parallel.

    Call it before a loop: dispatch then costs what it costs for any array. Leaves that are used
    in place in a mapped file are brought into memory in the background, ahead of their first
    access. Leaves that are not lazy are kept. `progress(done, total)` is called with bytes of
    leaves; `progress=True` shows them, as in `save`.

    In several processes each reads what its own devices hold. With `read_once=True`, values that
    devices of several processes hold are read by one of them, and gathered by XLA: for file systems
    that are slower than the network. It is a collective, so that all processes must call it, with
    the same tree, none of whose leaves is placed in one of them only; no other collective may run
    meanwhile. Leaves that the replicated axes of their mesh do not divide, unless they are
    replicated as a whole, are read by all processes as without it.

    >>> import jax.numpy as jnp, safejax
    >>> tree = safejax.deserialize(safejax.serialize({"w": jnp.ones(3)}))
    >>> isinstance(safejax.materialize(tree)["w"], safejax.LazyArray)
    False

    Raises what reading and placing raise and, with `read_once`, in all processes what is raised
    in one of them while it reads, and `ProcessError` if their trees are not the same.
    """
    check_progress(progress, "materialize")
    refuse_path(tree, "materialize", "pass safejax.load(path)")
    if not read_once or jax.process_count() == 1:
        with reported(progress, "materialize") as report:
            return place_all(tree, report)
    with Round("materialize", TIMEOUT) as across, reported(progress, "materialize") as report:
        spreads = spreads_of(lazy_leaves(tree))
        across.agree(digest_of(spreads), _all_the_same)
        return place_all(tree, report, place_reading_once(spreads, _Together(across)))


@set_module("safejax")
def prefetch(tree: _Tree, *, max_bytes: int | None = None) -> _Tree:
    """The same tree, whose lazy leaves are read and placed in the background from now on.

    Returns at once, so that reading goes on while a function is compiled. Leaves are placed in the
    order of the tree (of a list of subtrees, where another order is wanted), by up to four threads.
    A leaf that is needed before its turn is placed at once; one that is being placed is waited for.
    Errors are raised where a leaf is used, by which time it is read again. A tree that nobody has
    any more is not read further. `materialize` waits for all.

    With `max_bytes`, no more than so many bytes of arrays are placed in advance at a time: the next
    leaf is placed when arrays have been deleted, donated or let go of. So the layers of a model
    that does not fit into memory can be used, and deleted, one after the other.

    >>> import jax.numpy as jnp, safejax
    >>> tree = safejax.prefetch(safejax.deserialize(safejax.serialize({"w": jnp.ones(3)})))
    >>> float(tree["w"].sum())
    3.0

    In several processes each reads what its own devices hold. Raises `ValueError` for a `max_bytes`
    that is no positive int; `PrecisionWarning` is given here for leaves that will be narrowed.
    """
    checked_size(max_bytes, "max_bytes", 1)
    refuse_path(tree, "prefetch", "pass safejax.load(path)")
    prefetch_all(lazy_leaves(tree), max_bytes)
    return tree


class _Together:
    """What reading once asks of a round."""

    def __init__(self, across: Round) -> None:
        self._across = across

    def alive(self) -> None:
        self._across.alive()

    def agree(self, failure: BaseException | None) -> None:
        self._across.agree(None, lambda _: None, failure)


def _all_the_same(digests: list[Any]) -> None:
    for process, digest in enumerate(digests):
        if digest != digests[0]:
            raise ProcessError(
                "materialize: expected the same lazy leaves in all processes, got others in "
                f"process {process} than in process 0: load the tree in the same way in all of "
                "them, and use none of its leaves before"
            )
