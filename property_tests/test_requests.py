"""Requests: whatever is needed, it is read once, in bounded pieces, and lands where it belongs."""

from itertools import pairwise

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from safejax._src.reading.landing import Landing, Target
from safejax._src.reading.requests import Reach, byte_spans, planned
from safejax._src.reading.source import Part
from safejax._src.reading.windows import Window

SIZE = 6000
DATA = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
DTYPES = [np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.float64)]

small = st.integers(0, 40)
reaches = st.builds(
    lambda gap, more, factor, piece: Reach(gap, gap + more, factor, piece),
    small, small, st.integers(1, 6), st.sampled_from([1, 2, 7, 64, 1000, SIZE]),
)  # fmt: skip


@st.composite
def parts(draw):
    """A part of a tensor that begins anywhere in the data; it may be empty."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 7), max_size=3)))
    window = Window.whole(shape).transpose(tuple(draw(st.permutations(range(len(shape))))))
    steps = st.sampled_from([1, 1, 2, 3, -1, -2])
    index = []
    for size in window.shape:
        low, high = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        step = draw(steps)
        index.append(slice(low, high, step) if step > 0 else slice(None, None, step))
    window = window.index(tuple(index))
    if draw(st.booleans()):
        window = window.expand(0, draw(st.integers(1, 3)))
    return Part(draw(st.integers(0, SIZE - 8 * 343)), dtype, window)


several = st.lists(parts(), max_size=5)


def shown(part):
    """What a part shows, found by NumPy."""
    begin, dtype, window = part
    strides = [stride * dtype.itemsize for stride in window.strides]
    at = begin + window.offset * dtype.itemsize
    return np.ndarray(window.shape, dtype, DATA, at, strides)


def needed_by(wanted):
    """The positions of the bytes that parts show, by the bytes of each of their elements."""
    found = np.zeros(SIZE, bool)
    for begin, dtype, window in wanted:
        strides = [stride * dtype.itemsize for stride in window.strides]
        at = begin + window.offset * dtype.itemsize
        np.ndarray((*window.shape, dtype.itemsize), bool, found, at, (*strides, 1))[...] = True
    return found


@given(several, reaches)
def test_every_needed_byte_is_in_exactly_one_request(wanted, reach):
    requests = planned([byte_spans(*part) for part in wanted if part.window.size], reach)
    needed = needed_by(wanted)
    times = np.zeros(SIZE, int)
    for begin, end in zip(requests.begins, requests.ends, strict=True):
        times[begin:end] += 1
    assert times.max() <= 1
    assert (times[needed] == 1).all()
    assert requests.needed == needed.sum()
    assert (requests.cost.nbytes, requests.cost.needed) == (times.sum(), needed.sum())
    assert requests.cost.excess == times.sum() - needed.sum() >= 0


@given(several, reaches)
def test_requests_are_in_order_bounded_and_read_little_for_nothing(wanted, reach):
    requests = planned([byte_spans(*part) for part in wanted if part.window.size], reach)
    begins, ends = requests.begins.tolist(), requests.ends.tolist()
    assert all(0 < end - begin <= reach.piece for begin, end in zip(begins, ends, strict=True))
    assert all(end <= begin for end, begin in zip(ends[:-1], begins[1:], strict=True))
    needed = needed_by(wanted)
    # What has been cut, as one again: it begins and ends with what is needed.
    whole: list[list[int]] = []
    for begin, end in zip(begins, ends, strict=True):
        if whole and begin == whole[-1][1] and whole[-1][2] == reach.piece:
            whole[-1][1:] = [end, end - begin]
        else:
            whole.append([begin, end, end - begin])
    for begin, end, _ in whole:
        inside = needed[begin:end]
        runs = int(np.count_nonzero(np.diff(inside.astype(int)) > 0)) + 1
        # What is read for nothing costs at most what the requests would that it saves.
        excess = end - begin - int(inside.sum())
        assert excess <= reach.gap * (runs - 1) or end - begin <= reach.factor * int(inside.sum())
        assert inside[0]
        assert inside[-1]
        at = np.flatnonzero(inside)
        widest = int(np.diff(at).max(initial=1)) - 1
        assert widest <= reach.dense_gap
        assert widest <= reach.gap or end - begin <= reach.factor * int(inside.sum())
    # No two that are near each other are apart.
    for (_, end, _), (begin, _, _) in pairwise(whole):
        assert begin - end > reach.gap or begin == end
    event("several reads" if len(whole) > 1 else "one read or none")


@given(several, reaches, st.randoms(use_true_random=False), st.booleans())
def test_what_arrives_in_any_order_lands_where_it_is_needed(wanted, reach, chance, own):
    held = [part for part in wanted if part.window.size]
    outs = [np.empty(part.window.shape, part.dtype) for part in held]
    targets = [Target(part, None if own else out) for part, out in zip(held, outs, strict=True)]
    requests = planned([target.spans for target in targets], reach)
    landing = Landing(targets)
    pieces = list(zip(requests.begins.tolist(), requests.ends.tolist(), strict=True))
    chance.shuffle(pieces)
    for begin, end in pieces:
        memory = landing.memory(begin, end)
        places = landing.places(begin, end, 8) if chance.random() < 0.5 else None
        if places is not None:
            event("arrives in several places")
            sizes = [place.nbytes for place in places]
            assert sum(sizes) == end - begin
            for place, at in zip(places, np.cumsum([begin, *sizes]).tolist(), strict=False):
                place[:] = DATA[at : at + place.nbytes]
        elif memory is None:
            landing.land(begin, DATA[begin:end].copy())
        else:
            event("arrives in place")
            memory[:] = DATA[begin:end]
    for part, target, out in zip(held, targets, outs, strict=True):
        target.finish()
        found = target.array if own else out
        assert found.tobytes() == shown(part).tobytes()
