"""Power cuts in saves of many sectors, of whose states some are made, chosen at random."""

import os

import pytest

from tests.support.crashes.kinds import LARGE_KINDS, SAMPLE
from tests.support.crashes.recording import can_record
from tests.support.crashes.trying import histories, try_states
from tests.support.together import Together


@pytest.mark.skipif(not can_record(), reason="needs strace, as Debian has it")
def test_states_of_large_saves_are_the_old_version_or_the_new_one() -> None:
    with Together() as together:
        saves = histories(together, LARGE_KINDS.values())
    for name, kind in LARGE_KINDS.items():
        seed = int(os.environ.get("SAFEJAX_SEED", "0"))
        tried = try_states(kind, saves[name], limit=SAMPLE, seed=seed)
        assert tried.faults == [], name
        assert tried.sampled > 0
        assert min(tried.states["old"], tried.states["new"]) > 0
