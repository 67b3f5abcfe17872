"""The switch: whether leaves go to the devices of a kind through page-locked memory of our own.

Whether that is faster than to give JAX the mapped pages, which XLA copies to page-locked memory as
well, depends on the machine, so it is measured: with the first leaves that are placed at once on
devices of a kind, which are read and placed either way in turns, once in a process. Devices of the
CPU use the pages in place. The environment variable `SAFEJAX_STAGING` is `auto`, for this; or
`off`, or `on`, which is for all devices, without measuring.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias, TypeVar, final

import jax
from jax.sharding import Sharding

VARIABLE: Final = "SAFEJAX_STAGING"

Kind: TypeAlias = tuple[str, str]
"""The platform of a device, and what it is."""

_MEASURED_BYTES: Final = range(2 << 20, 256 << 20)
"""Bytes of a leaf that is measured with: of a smaller one, parts may be too small to be staged."""

_WAYS: Final = (False, True, False, True, True, False)
"""The ways of the rounds: first one round each that brings up the device, then those that count."""

_FASTER: Final = 0.9
"""The part of the time of the plain way that staging must not exceed, to be chosen."""


class Measurable(Protocol):
    """What is asked here of a lazy leaf."""

    @property
    def nbytes(self) -> int: ...

    @property
    def sharding(self) -> Sharding: ...

    @property
    def placed_now(self) -> jax.Array | None: ...


_Leaf = TypeVar("_Leaf", bound=Measurable)


@final
class Switch:
    """What is known of the kinds of devices of this process.

    Those of the platforms `in_place` are never measured, since they use mapped pages as they are.
    A round has `round_bytes` of leaves, of which each has a number of bytes in `sizes`.
    """

    def __init__(
        self,
        in_place: Sequence[str] = ("cpu",),
        round_bytes: int = 64 << 20,
        sizes: range = _MEASURED_BYTES,
    ) -> None:
        self._in_place = frozenset(in_place)
        self._round_bytes = round_bytes
        self._sizes = sizes
        self._forced: bool | None = None
        self._in_turn: bool | None = None
        self._rounds: dict[Kind, list[float]] = {}
        self._chosen: dict[Kind, bool] = {}
        self._measuring = threading.Lock()

    def is_on(self, sharding: Sharding) -> bool:
        """Whether leaves of this sharding are staged now."""
        forced = self.forced()
        if forced is not None:
            return forced and is_in_default_memory(sharding)
        kind = self._kind_of(sharding)
        if kind is None:
            return False
        return self._chosen.get(kind, False) if self._in_turn is None else self._in_turn

    def is_possible(self) -> bool:
        """Whether any leaves may be staged in this process, or measured."""
        forced = self.forced()
        return not _platforms() <= self._in_place if forced is None else forced

    def concerns(self, sharding: Sharding) -> bool:
        """Whether leaves of this sharding are copied to devices, whichever way they go."""
        return self._kind_of(sharding) is not None or self.forced() is True

    def forced(self) -> bool | None:
        """What was said; None if it is to be measured. Raises `ValueError` for another word."""
        if self._forced is not None:
            return self._forced
        word = os.environ.get(VARIABLE) or "auto"  # As a variable that is not set, an empty one.
        if word not in ("auto", "on", "off"):
            raise ValueError(f"{VARIABLE}: expected 'auto', 'on' or 'off', got {word!r}")
        return None if word == "auto" else word == "on"

    @contextlib.contextmanager
    def force(self, way: bool | None) -> Generator[None]:
        """A block in which all leaves go this way, in all threads; None for what is measured."""
        before, self._forced = self._forced, way
        try:
            yield
        finally:
            self._forced = before

    def seconds(self, kind: Kind) -> dict[bool, float] | None:
        """The least seconds for a byte that was measured for each way; None if it is not yet."""
        rounds = self._rounds.get(kind, [])
        if len(rounds) < len(_WAYS):
            return None
        counted = list(zip(_WAYS, rounds, strict=True))[2:]
        return {way: min(each for of, each in counted if of == way) for way in (False, True)}

    def measured(
        self, leaves: Iterable[_Leaf], place: Callable[[list[_Leaf]], object]
    ) -> list[_Leaf]:
        """Place some of the leaves either way in turns, if it is to be measured; the others.

        `place` places leaves in threads, and raises the first failure. One thread at a time
        measures; meanwhile the leaves of others go plainly, or as the one that measures does.
        """
        left = list(leaves)
        if self.forced() is not None or not self._measuring.acquire(blocking=False):
            return left
        try:
            for kind in {self._kind_of(leaf.sharding) for leaf in left}:
                if kind is not None and kind not in self._chosen:
                    left = self._measured(kind, left, place)
        finally:
            self._in_turn = None
            self._measuring.release()
        return left

    def _measured(
        self, kind: Kind, leaves: list[_Leaf], place: Callable[[list[_Leaf]], object]
    ) -> list[_Leaf]:
        rounds = self._rounds.setdefault(kind, [])
        usable = [
            leaf
            for leaf in leaves
            if leaf.nbytes in self._sizes and self._kind_of(leaf.sharding) == kind
        ]
        used: set[int] = set()
        while len(rounds) < len(_WAYS):
            chosen: list[_Leaf] = []
            while usable and sum(leaf.nbytes for leaf in chosen) < self._round_bytes:
                chosen.append(usable.pop(0))
            nbytes = sum(leaf.nbytes for leaf in chosen)
            if nbytes < self._round_bytes:
                break  # The next leaves that are placed go on with this.
            self._in_turn = _WAYS[len(rounds)]
            begin = time.perf_counter()
            place(chosen)
            for leaf in chosen:
                _wait_for(leaf)
            rounds.append((time.perf_counter() - begin) / nbytes)
            used |= {id(leaf) for leaf in chosen}
        seconds = self.seconds(kind)
        if seconds is not None:
            self._chosen[kind] = seconds[True] < seconds[False] * _FASTER
        return [leaf for leaf in leaves if id(leaf) not in used]

    def _kind_of(self, sharding: Sharding) -> Kind | None:
        kind = _kind_of(sharding)
        return None if kind is None or kind[0] in self._in_place else kind


SWITCH: Final = Switch()
"""That of the process."""


@lru_cache(maxsize=1)
def _platforms() -> frozenset[str]:
    return frozenset(device.platform for device in jax.local_devices())


@lru_cache(maxsize=64)
def is_in_default_memory(sharding: Sharding) -> bool:
    """Whether arrays of the sharding are in the memory that their devices compute in."""
    kind = sharding.memory_kind
    device: Any = next(iter(sharding.device_set))
    return kind is None or kind == device.default_memory().kind


@lru_cache(maxsize=256)
def _kind_of(sharding: Sharding) -> Kind | None:
    """The kind of the devices that this process has of a sharding; None if there is no one kind.

    None, too, where arrays are not in the memory that the devices compute in.
    """
    devices: Any = sharding.addressable_devices
    if not devices or not is_in_default_memory(sharding):
        return None
    kinds = {(device.platform, device.device_kind) for device in devices}
    return kinds.pop() if len(kinds) == 1 else None


def _wait_for(leaf: Measurable) -> None:
    array = leaf.placed_now
    if array is not None:
        array.block_until_ready()
