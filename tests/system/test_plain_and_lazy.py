"""JAX, NumPy and SciPy treat a lazy leaf exactly as a plain array.

Every public callable that the modules list is called with each row of a table of arguments that
it accepts, once with plain arrays and once with lazy leaves. Values to the last bit, dtype, weak
type, sharding, commitment, warnings, or the class of the error must be the same.

Comparing everything takes an hour; the usual run compares a sample of callables and placements:

- with `HYPOTHESIS_PROFILE=large` the sample has four times as many callables, as in one part of CI,
  which takes a seed of its own and prints it;
- `SAFEJAX_SEED=7 pytest tests/system/test_plain_and_lazy.py` compares another sample;
- `SAFEJAX_ALL=1 pytest tests/system/test_plain_and_lazy.py -k jax.lax` compares a whole family;
- `python -m tests.support` compares everything and reports what was compared.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import argument_table, callables, plain_and_lazy
from tests.support.argument_table import HOSTS, PLACEMENTS, STATES, lazy, plain
from tests.support.callables import FAMILIES, SKIPPED, Subject
from tests.support.outcomes import difference, form, outcome

SEED = int(os.environ.get("SAFEJAX_SEED", "0"))
EVERYTHING = os.environ.get("SAFEJAX_ALL", "") not in {"", "0"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lazy_leaf_behaves_as_a_plain_array(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # functions that open files do it here
    tally = plain_and_lazy.check(FAMILIES[family], SEED, everything=EVERYTHING)
    found = "\n".join(map(str, tally.differences))
    assert not found, f"with SAFEJAX_SEED={SEED}:\n{found}"
    seen = len(tally.compared) + len(tally.without_row)
    # In a sample, the share of callables that no row can call may be larger than in the whole.
    least = FAMILIES[family].least - (0 if EVERYTHING else 0.4)
    assert len(tally.compared) >= least * seen, sorted(tally.without_row)


# ---- the comparison itself notices each kind of difference


def differences(call: Any, row: str, placement: str = "default") -> set[str]:
    tally = plain_and_lazy.Tally()
    subject = Subject("a call", call)
    return {found.kind for found in plain_and_lazy.compare(subject, row, placement, tally)}


def is_lazy(array: Any) -> bool:
    return type(array).__name__ == "LazyArray"


FAULTS: dict[str, tuple[Any, str]] = {
    "values": (lambda x: x + 1e-7 * is_lazy(x), "values"),
    "dtype": (lambda x: x.astype("int8") if is_lazy(x) else x + 0, "dtype, aval"),
    "shape": (lambda x: x[None] if is_lazy(x) else x + 0, "shape, aval"),
    "weak type": (lambda x: jnp.asarray(1.0 if is_lazy(x) else np.float32(1)), "weak type, aval"),
    "commitment": (
        lambda x: jax.device_put(np.ones(3), jax.devices()[0] if is_lazy(x) else None),
        "commitment",
    ),
    "sharding": (
        lambda x: jax.device_put(np.ones(3), jax.devices()[2 if is_lazy(x) else 1]),
        "sharding",
    ),
    "in a tree": (lambda x: {"a": [x + is_lazy(x)]}, "values"),
    "a scalar": (lambda x: float(is_lazy(x)), "values"),
    "an error": (lambda x: 1 // (not is_lazy(x)), "an error, plain gives a value"),
    "a value": (lambda x: 1 // is_lazy(x), "a value, plain is refused"),
    "another error": (
        lambda x: {}[0] if is_lazy(x) else [][0],
        "KeyError, plain raises IndexError",
    ),
    "a warning": (lambda x: np.float32(x.sum()) / np.float32(not is_lazy(x)), "values"),
    "bits": (lambda x: jnp.float32(-0.0 if is_lazy(x) else 0.0), "values"),
    "another class": (
        lambda x: np.asarray(x) if is_lazy(x) else x + 0,
        "numpy, plain gives array",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_notices_a_difference_in(fault: str) -> None:
    call, kind = FAULTS[fault]
    found = differences(call, "F")
    assert found, fault
    assert all(kind in each for each in found), found


def test_the_comparison_finds_no_difference_where_there_is_none() -> None:
    for call, row in ((jnp.sin, "F"), (jnp.add, "F, V"), (lambda x: [x, {"a": x}], "K")):
        for placement in PLACEMENTS:
            assert differences(call, row, placement) == set()


def test_a_callable_whose_plain_results_differ_is_reported_apart() -> None:
    count = iter(range(100))
    assert differences(lambda x: next(count), "F") == {plain_and_lazy.UNSTEADY}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", HOSTS)
def test_the_arrays_of_the_table_are_on_their_devices(name: str, placement: str) -> None:
    array = plain(name, placement)
    leaf = lazy(name, placement, placed=False)
    assert form(leaf) == form(array)
    assert array.committed == (placement != "default")
    if name == "F":
        expected = {"default": 1, "committed": 1}.get(placement, 2)
        assert len(array.devices()) == expected
        assert array.is_fully_replicated == (expected == 1 or placement == "replicated")


def test_states_are_what_their_names_say() -> None:
    placed: dict[str, list[Any]] = {}
    for state in ("plain", *STATES):
        pair = argument_table.calling(lambda *x: x, "F, F", "default", state)()
        placed[state] = [is_lazy(x) and (x.is_placed or "unread") for x in pair]
    assert placed == {
        "plain": [False, False], "unread": ["unread", "unread"], "placed": [True, True],
        "mixed": [False, "unread"],
    }  # fmt: skip


def test_every_special_row_belongs_to_an_existing_callable() -> None:
    names = {subject.name for family in FAMILIES.values() for subject in callables.subjects(family)}
    # Names that not every supported version of JAX has.
    newer = {
        "jax.copy_to_host_async", "jax.fwd_and_bwd", "jax.lax.index_take", "jax.lax.linalg.ormqr",
        "jax.lax.pcast", "jax.reshard",
    }  # fmt: skip
    assert set(argument_table.SPECIAL) - names <= newer
    for name, rows in argument_table.SPECIAL.items():
        assert any(argument_table.arrays_in(row) for row in rows), name


def test_skipped_callables_exist_and_have_a_reason() -> None:
    assert all(SKIPPED)
    assert callables.why_skipped("jax.numpy.add") is None
    assert callables.why_skipped("builtins.print") is not None


def test_refusals_are_compared_by_their_classes() -> None:
    def refuse() -> None:
        raise ValueError("no")

    assert outcome(refuse)[:2] == ("raised", ValueError)
    assert difference(outcome(refuse), outcome(lambda: 1)) == "a value, plain is refused"
