"""What a few rounds say about a ratio: its interval, and whether it meets a target.

The two sides of a ratio take turns, so a round gives one ratio of times that were taken one after
the other. What the machine does to both, a slow hour or a full disk, is not in it. The result is
the median of these ratios.

**The interval** is between two of the ratios themselves: with n rounds in order, the median of all
possible rounds lies between the k-th smallest and the k-th largest, unless fewer than k of n are
on one side of it, which has the probability of as few heads in n throws of a coin. The k is the
largest for which that happens, on both sides together, at most once in twenty times. It holds for
any distribution, and times have odd ones: a normal interval or a bootstrap of six rounds, of which
one was interrupted, would promise more than it knows. Fewer than six rounds have no interval.

**Looking again** after more rounds gives chance more than one try. Rounds are looked at after 6,
10, 15 and 21; the ratio that is exactly at its target is then called met, although it might as
well be missed, at most 6 times in a hundred, all looks together, and as often missed.

**The null run** is safejax against itself, as two sides. Its ratio is 1, so what is measured
instead is due to the machine and to this instrument. No other ratio of such times is taken to be
known better than that: its interval is at least as wide.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, final

LOOKS: Final = (6, 10, 15, 21)
"""The numbers of rounds after which outcomes are looked at, and more rounds may follow."""

_BOTH_SIDES: Final = 0.05


def rank(rounds: int) -> int:
    """The k of the interval between the k-th smallest and the k-th largest; 0 if there is none."""
    k = 0
    while 2 * fewer_heads(rounds, k) <= _BOTH_SIDES:
        k += 1
    return k


def fewer_heads(throws: int, heads: int) -> float:
    """The probability of at most that many heads in throws of a coin."""
    return sum(math.comb(throws, number) for number in range(heads + 1)) / 2**throws


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The interval of the median of what the values are a sample of; None for fewer than six."""
    k = rank(len(values))
    ordered = sorted(values)
    return (ordered[k - 1], ordered[-k]) if k else None


@final
@dataclass(frozen=True, slots=True)
class Noise:
    """What a null run measured of a ratio that is 1.

    `factor`, at least 1, says how far the interval of its median reaches from 1: from 1 / factor
    to factor at most. `of_a_round` does so for a single round, of nine in ten rounds.
    """

    rounds: int
    ratio: float
    factor: float
    of_a_round: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Noise | None":
        """The noise of the rounds of a null run; None if they are too few for an interval."""
        found = interval(ratios)
        if found is None:
            return None
        away = sorted(max(ratio, 1 / ratio) for ratio in ratios)
        return cls(
            len(ratios), median(ratios), max(1.0, found[1], 1 / found[0]),
            away[math.ceil(0.9 * len(away)) - 1],
        )  # fmt: skip


def widened(values: Sequence[float], noise: Noise | None) -> tuple[float, float] | None:
    """The interval of the values' median, at least as wide as the noise; None for fewer than six.

    Without a null run, the interval is that of the values alone.
    """
    found = interval(values)
    if found is None or noise is None:
        return found
    middle = median(values)
    return min(found[0], middle / noise.factor), max(found[1], middle * noise.factor)


def verdict(low: float, high: float, target: float, *, least: bool) -> str:
    """The outcome: "met" or "missed" if the whole interval says so, else "undecided"."""
    if least:
        return "met" if low >= target else "missed" if high < target else "undecided"
    return "met" if high <= target else "missed" if low > target else "undecided"
