"""Generated records and damaged files give a tree or an error of safejax, and nothing else."""

import json
from collections.abc import Iterable
from typing import Any

import hypothesis
from hypothesis import event, given
from hypothesis import strategies as st

import safejax
import safejax.flax
import safejax.haiku
import safejax.objax
from safejax import LazyArray
from safejax.errors import InvalidFileError, SafejaxError
from safejax.testing import arrays, pytrees, scalars
from tests.support.files import header_of, with_header

TREES = pytrees(arrays("int8", (2,)) | scalars())
"""Leaves are small, because it is the structure that is forged."""

WORDS = st.sampled_from(
    ["", "a", "a.b", "0", "1", "list", "tuple", "dict", "int", "builtins.dict", "os.system",
     "flax.core.frozen_dict.FrozenDict", "objax.variable.VarCollection", "collections.OrderedDict",
     "[]", '["a"]', "__metadata__", "~1", "type", "keys", "order", "flat", "aliases", "empty",
     "0x1", "-0x10", "xxh3_64", "int4", "threefry2x32", "\ud800"]
)  # fmt: skip
READERS = (
    safejax.deserialize,
    safejax.flax.deserialize,
    safejax.haiku.deserialize,
    safejax.objax.deserialize,
)
NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.just({}) | st.just([]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


NAMES = st.dictionaries(WORDS, NODES, max_size=3)
RECORDS = st.fixed_dictionaries(
    {"version": st.just(1)},
    optional=dict.fromkeys(("kinds", "paths", "values", "dtypes", "keys", "digests"), NAMES)
    | {"format": st.just("default")},
)


@st.composite
def forged(draw: st.DrawFn, table: Any) -> Any:
    """The JSON value with one node replaced, removed, added or doubled, at any depth."""
    if isinstance(table, dict) and table and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(table)))
        return {**table, key: draw(forged(table[key]))}
    if isinstance(table, list) and table and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(table) - 1))
        return [*table[:at], draw(forged(table[at])), *table[at + 1 :]]
    if isinstance(table, dict):
        kept = {key: item for key, item in table.items() if draw(st.integers(0, 5))}
        return {**kept, **draw(st.dictionaries(WORDS, NODES, max_size=2))}
    if isinstance(table, list):
        return [*table, *table[:1], *draw(st.lists(NODES, max_size=2))]
    return draw(NODES)


def open_in_every_way(data: bytes) -> None:
    """Check that every reader returns a tree that can be stored, or raises an error of safejax."""
    try:
        leaves = safejax.decode(data)
    except InvalidFileError:
        event("refused")
        return
    event("read")
    safejax.encode(leaves)
    for read in READERS:
        try:
            tree = read(data)
        except SafejaxError:
            continue
        # No array is lost, whatever the record says about containers.
        if read is safejax.deserialize:
            assert arrays_in(safejax.flatten(tree).values()) == arrays_in(leaves.values())
            safejax.serialize(tree)


def arrays_in(leaves: Iterable[Any]) -> set[str]:
    return {leaf.name for leaf in leaves if isinstance(leaf, LazyArray)}


@given(data=st.data())
def test_a_forged_record_is_refused_or_harmless(data: st.DataObject) -> None:
    file = safejax.serialize(data.draw(TREES), metadata={"by": "us"})
    header = header_of(file)
    metadata = header["__metadata__"]
    record = data.draw(forged(json.loads(metadata.get("safejax", "{}"))))
    open_in_every_way(
        with_header(file, {**header, "__metadata__": {**metadata, "safejax": json.dumps(record)}})
    )


@given(record=RECORDS | NODES | st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_record_is_refused_or_harmless(record: Any) -> None:
    file = safejax.serialize({"a": {"b": safejax.EMPTY}})
    header = header_of(file)
    text = record if isinstance(record, str) else json.dumps(record)
    open_in_every_way(with_header(file, {**header, "__metadata__": {"safejax": text}}))


@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(data: st.DataObject) -> None:
    whole = bytearray(safejax.serialize(data.draw(TREES)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        hypothesis.assume(whole)
    open_in_every_way(bytes(whole))
