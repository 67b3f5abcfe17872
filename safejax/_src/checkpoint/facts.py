"""Facts: what all processes must have alike before they write one file together.

Each process has a table of them, from labels to short texts. Its digest is compared; if that
differs, two more agreements find the first fact that does. No table is ever sent as a whole.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias, cast

from jax.sharding import Sharding

from safejax._src import dtypes
from safejax._src.checkpoint.division import digest_of_division, is_spanning
from safejax._src.checkpoint.layout import Layout
from safejax._src.checkpoint.shards import Folder
from safejax._src.leaves.leaf import content_at, describe, is_array
from safejax._src.leaves.leaves import Leaves
from safejax._src.processes.agreement import Round
from safejax.errors import ProcessError

Facts: TypeAlias = Mapping[str, str]
"""From labels, in an order in which the first difference says most, to short texts."""

_BUCKETS: Final = 128
"""Into so many parts a table is divided to find a difference."""

_LONGEST: Final = 400
"""Characters of a text in an error."""

_BLOCK_BYTES: Final = 16 << 20


def facts_of(
    options: Mapping[str, Any],
    leaves: Leaves,
    alone: frozenset[str],
    plan: Layout | Folder,
    alive: Callable[[], None],
) -> Facts:
    """The facts of a save: its options, the leaves of the tree, and the files that they give.

    The leaves in `alone` are in this process and in no other one. Reads the values that each
    process has for itself, such as NumPy arrays, and not those of files. Calls `alive` meanwhile.
    """
    facts = {f"the argument {name}": repr(value) for name, value in options.items()}
    for name, leaf in leaves.items():
        facts[f"leaf {name!r}"] = _fact_of(name, leaf, name in alone, alive)
    # Not what a file does not record, such as functions, whose texts have addresses.
    facts["the structure of the tree"] = repr(leaves.structure._replace(flattened=None))
    files = plan.files if isinstance(plan, Folder) else {"": plan}
    for file, layout in files.items():
        for extent in layout.extents:
            shape = ",".join(map(str, extent.stored.shape))
            label = f"the stored tensor {extent.name!r}"
            facts[label] = f"{extent.stored.code}[{shape}] at byte {extent.begin} {file}".rstrip()
    for file, layout in files.items():
        facts[f"the header {file}".rstrip()] = _digest(layout.head)
    return facts


def _fact_of(name: str, leaf: Any, is_alone: bool, alive: Callable[[], None]) -> str:
    alive()
    if not is_array(leaf):
        return describe(leaf)
    if is_alone or is_spanning(leaf):
        division = digest_of_division(leaf.sharding, leaf.shape)
        return f"{describe(leaf)} over {_text_of(leaf.sharding)}, division {division}"
    view = content_at(name, leaf).view
    if view.cost().nbytes:
        return f"{describe(leaf)} of a file, in each process"
    stored = dtypes.stored_as(view.dtype, view.shape)
    digest = hashlib.sha256()
    if stored is not None and view.size:
        packed = dtypes.is_packed(stored.code)
        for block in [view] if packed else view.blocks(_BLOCK_BYTES):
            digest.update(dtypes.to_stored_bytes(block.read(), stored).data)
            alive()
    return f"{describe(leaf)} in each process, with values {digest.hexdigest()[:16]}"


# Most leaves have the sharding of another one, and a mesh has a long text.
@lru_cache(maxsize=1024)
def _text_of(sharding: Sharding) -> str:
    return str(sharding)


def digest_of(facts: Facts) -> str:
    """The digest of all facts."""
    return _digest("\n".join(_lines(facts)).encode())


def raise_difference(across: Round, facts: Facts, other: int) -> None:
    """Raise, in all processes, an error that names a fact that process `other` has otherwise."""
    taking_part = across.process in (0, other)
    buckets = _divided(facts)

    def first(values: list[Any]) -> int:
        pairs = zip(cast("list[str]", values[0]), cast("list[str]", values[other]), strict=True)
        return next(number for number, (mine, its) in enumerate(pairs) if mine != its)

    def named(values: list[Any]) -> None:
        mine, its = cast("list[dict[str, list[str]]]", [values[0], values[other]])
        label = next(each for each in (*mine, *its) if mine.get(each) != its.get(each))
        expected, got = (each.get(label, ["none"])[0] for each in (mine, its))
        raise ProcessError(
            f"{across.title}: {label} is not the same in all processes: expected {expected}, as "
            f"in process 0, got {got} in process {other}: call it with the same tree and the same "
            "arguments in all processes"
        )

    digests = [_digest("\n".join(_lines(each)).encode()) for each in buckets]
    chosen = across.agree(digests if taking_part else None, first)
    bucket = {
        label: [text[:_LONGEST], _digest(text.encode())] for label, text in buckets[chosen].items()
    }
    across.agree(bucket if taking_part else None, named)


def _divided(facts: Facts) -> list[dict[str, str]]:
    """The facts in buckets, each in the same one in all processes, in their order of kinds."""
    buckets: list[dict[str, str]] = [{} for _ in range(2 * _BUCKETS + 2)]
    for label, text in facts.items():
        kind, _, name = label.partition(" ")
        number = int(_digest(name.encode())[:4], 16) % _BUCKETS
        if kind == "leaf":
            buckets[1 + number][label] = text
        elif name.startswith("stored"):
            buckets[1 + _BUCKETS + number][label] = text
        else:
            buckets[0 if name.startswith("argument") else -1][label] = text
    return buckets


def _lines(facts: Facts) -> Iterator[str]:
    for label in sorted(facts):
        yield f"{label}\0{facts[label]}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
