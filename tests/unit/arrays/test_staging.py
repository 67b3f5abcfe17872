"""Staging: what goes through page-locked memory arrives bit for bit, and the ring comes back.

CPU devices have the memory kind `pinned_host`, too, so that all of it runs here, in small pieces.
"""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import safejax
from safejax._src.arrays import at_once, staging
from safejax._src.arrays.device_casts import cast_on_device
from safejax._src.arrays.pinned import RING, Ring, can_stage, has_pinned_memory
from safejax._src.arrays.staging import Sizes, forced
from safejax._src.arrays.switch import VARIABLE, Switch
from safejax._src.leaves.leaf import content_of
from safejax._src.reading.pointwise import cast_view
from safejax.errors import ReadError
from tests.support.leaves import host_bytes

P = PartitionSpec
DEVICE = jax.devices()[0]
SQUARE = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
SMALL = Sizes(least=64, piece=512, part=128, ring=2048)
"""So small that leaves of some kilobytes are larger than the ring."""

SHAPES = ((8, 16), (32, 48), (1, 3, 4000), (7000,))
DTYPES = (
    "bool", "int8", "uint16", "int32", "float16", "float32", "complex64", "bfloat16",
    "float8_e4m3fn", "float8_e8m0fnu",
)  # fmt: skip
WIDE = ("int64", "float64", "complex128")


def random_bits(name: str, shape: tuple[int, ...]) -> Any:
    """Values of which any bits may be set: NaNs with payloads among them."""
    rng, dtype = np.random.default_rng(len(name)), np.dtype(getattr(ml_dtypes, name, None) or name)
    if name == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    raw = rng.bytes(dtype.itemsize * int(np.prod(shape)))
    return np.frombuffer(raw, dtype).reshape(shape)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("staging") / "m.safetensors"
    cases = itertools.product(DTYPES + WIDE, enumerate(SHAPES))
    tree = {f"{name}.{number}": random_bits(name, shape) for name, (number, shape) in cases}
    safejax.save(
        {"tree": tree, "key": jax.random.key(3), "int4": np.zeros(900, ml_dtypes.int4)}, path
    )
    return path


@pytest.fixture(autouse=True)
def _the_ring_comes_back() -> Iterator[None]:
    yield
    assert not RING.is_open
    assert RING.held == 0


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each block that was asked for was staged."""
    taken: list[bool] = []

    def counted(view: Any, device: Any) -> Any:
        array = stage(view, device)
        taken.append(array is not None)
        return array

    stage = staging.stage
    # What comes out is the same either way, so that it must be seen here which way it went.
    monkeypatch.setattr(staging, "stage", counted)
    return taken


def check_same(ours: Any, plain: Any) -> None:
    """Check dtypes, shardings, commitment, and every bit on every device."""
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert type(mine) is type(theirs)
        assert (mine.dtype, mine.shape, mine.sharding, mine.committed) == (
            theirs.dtype, theirs.shape, theirs.sharding, theirs.committed,
        )  # fmt: skip
        assert jax.typeof(mine) == jax.typeof(theirs)
        for one, other in zip(mine.addressable_shards, theirs.addressable_shards, strict=True):
            assert (one.device, one.index) == (other.device, other.index)
            assert host_bytes(one.data) == host_bytes(other.data)


def load_both_ways(path: Path, sizes: Sizes = SMALL, **options: Any) -> None:
    with forced(False):
        plain = safejax.materialize(safejax.load(path, **options))
    with forced(True, sizes):
        check_same(safejax.materialize(safejax.load(path, **options)), plain)


# ---- every bit


@pytest.mark.filterwarnings("ignore::safejax.PrecisionWarning")
@pytest.mark.parametrize("x64", [False, True])
def test_every_dtype_and_shape_in_pieces(x64: bool, path: Path, staged: list[bool]) -> None:
    # Random bits do not fit into an int32; what does not need x64 is the same with it.
    wide = [f"*{name}*" for name in WIDE]
    transform = safejax.select(wide) if x64 else safejax.select(["*", "!*int64*"])
    with jax.enable_x64(x64):
        load_both_ways(path, transform=transform)
        load_both_ways(path, Sizes(least=64), transform=transform)
    # int4, keys, and what is narrowed are not staged, nor is a row that is larger than the ring.
    assert staged.count(True) == (2 * len(SHAPES) - 1) * len(WIDE if x64 else DTYPES)


@pytest.mark.filterwarnings("ignore::safejax.PrecisionWarning")
@pytest.mark.parametrize("spec", [P(), P("x"), P(None, "x"), P("y", "x"), P(("x", "y"))], ids=str)
def test_every_part_of_a_sharding(spec: P, path: Path, staged: list[bool]) -> None:
    shard: dict[str, Any] = {"sharding": NamedSharding(SQUARE, spec)}
    load_both_ways(path, transform=safejax.select(["tree.float32.1", "tree.bfloat16.1"]), **shard)
    parts = len(set(map(str, shard["sharding"].devices_indices_map((32, 48)).values())))
    assert staged == [True] * 2 * parts


def test_the_device_that_is_asked_for(path: Path) -> None:
    chosen = safejax.select("tree.*.1", must_match=True)
    chosen = safejax.chain(chosen, safejax.drop(["*64*", "*complex128*"]))
    there = SingleDeviceSharding(jax.devices()[5])
    load_both_ways(path, transform=chosen, sharding=there)
    kind = SingleDeviceSharding(jax.devices()[5], memory_kind="pinned_host")
    load_both_ways(path, transform=chosen, sharding=kind)


@pytest.mark.parametrize(
    "transform",
    [
        safejax.cast("bfloat16"),
        safejax.cast("float32"),
        safejax.cast("float16"),
        safejax.chain(safejax.cast("float32"), safejax.cast("bfloat16")),
        safejax.chain(safejax.transpose("*"), safejax.cast("float32")),
        safejax.reshape("*", (48, 32)),
        safejax.split("tree.{n}.1", into=["{n}.a", "{n}.b"], axis=0),
        safejax.elementwise(np.negative, "*"),
    ],
    ids=repr,
)
def test_transforms(transform: Any, path: Path, staged: list[bool]) -> None:
    chosen = safejax.select(["tree.float32.1", "tree.bfloat16.1"])
    load_both_ways(path, transform=safejax.chain(chosen, transform))
    assert staged


def test_rows_that_int32_cannot_count_are_placed_plainly(tmp_path: Path) -> None:
    path, rows = tmp_path / "m.safetensors", 2**31 + 64
    header = f'{{"a":{{"dtype":"U8","shape":[{rows}],"data_offsets":[0,{rows}]}}}}'.encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + rows)  # It has no blocks on the disk.
    content = content_of(safejax.load(path)["a"])
    assert content is not None
    assert staging.stage(content.view, DEVICE) is None


def test_only_the_bytes_that_are_needed_are_read(path: Path) -> None:
    chosen = safejax.select("tree.float32.1")
    sharding = NamedSharding(SQUARE, P("x"))
    with forced(True, SMALL), safejax.observe_reads() as log:
        safejax.materialize(safejax.load(path, transform=chosen, sharding=sharding))
    assert sum(read.nbytes for read in log.reads) == 32 * 48 * 4


def test_prefetched(path: Path, staged: list[bool]) -> None:
    chosen = safejax.select("tree.float32.*")
    with forced(False):
        plain = safejax.materialize(safejax.load(path, transform=chosen))
    with forced(True, SMALL):
        tree = safejax.prefetch(safejax.load(path, transform=chosen))
        check_same(safejax.materialize(tree), plain)
        for thread in threading.enumerate():
            if thread.name.startswith("safejax-prefetch"):
                thread.join()
    assert sorted(staged) == [False] + [True] * (len(SHAPES) - 1)


# ---- casts


@pytest.mark.parametrize(("source", "target"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_casts_on_the_device_have_the_bits_of_numpy(source: str, target: str) -> None:
    values = random_bits(source, (1 << 18,))
    content = content_of(values)
    assert content is not None
    view = cast_view(content.view, np.dtype(getattr(ml_dtypes, target, None) or target))
    found = cast_on_device(view, DEVICE)
    assert found is not None  # NumPy's bits were found for all kinds of values.
    operand, function = found
    assert operand is content.view
    assert host_bytes(function(jax.device_put(values))) == view.read().tobytes()
    assert cast_on_device(operand, DEVICE) is None
    assert cast_on_device(cast_view(content.view, np.dtype(np.float16)), DEVICE) is None


# ---- the ring


def test_a_device_of_the_cpu_can_be_staged_to() -> None:
    assert has_pinned_memory(DEVICE)
    assert can_stage(DEVICE)


def test_the_ring_is_bounded_and_buffers_are_used_again() -> None:
    ring = Ring(3000)
    dtype = np.dtype(np.uint8)
    with ring.open():
        one, two = (ring.take((1000,), dtype, DEVICE) for _ in range(2))
        assert ring.held == 2000
        one.memory[:], two.memory[:] = 1, 2
        ring.give(one, one.begin_copy())
        ring.give(two, None)
        assert ring.take((1000,), dtype, DEVICE) is two  # It is free at once.
        larger = ring.take((2000,), dtype, DEVICE)  # What was copied makes room for it.
        assert ring.held == 3000
        waiting = threading.Thread(
            target=lambda: ring.give(ring.take((3000,), dtype, DEVICE), None)
        )
        waiting.start()
        ring.give(two, None)
        ring.give(larger, None)
        waiting.join()
        assert ring.held == 3000
    assert ring.held == 0


def test_a_function_may_place_another_leaf_while_the_ring_is_full(path: Path) -> None:
    other = safejax.load(path)["tree"]["uint16.1"]
    is_loaded = threading.Event()

    def add(array: Any) -> Any:
        return array + int(other.sum()) if is_loaded.is_set() else array

    chosen = safejax.chain(
        safejax.select(["tree.int32.0", "tree.int32.1"]), safejax.elementwise(add, "*")
    )
    tree = safejax.load(path, transform=chosen)
    plain = jax.tree.map(np.asarray, tree)
    is_loaded.set()
    with forced(True, Sizes(least=64, piece=2048, part=2048, ring=2048)):
        found = safejax.materialize(tree)
    jax.tree.map(
        lambda one, two: np.testing.assert_array_equal(one, two + int(other.sum())), found, plain
    )


def test_a_copy_that_was_deleted_is_not_waited_for() -> None:
    ring = Ring(1000)
    with ring.open():
        buffer = ring.take((1000,), np.dtype(np.uint8), DEVICE)
        copy = buffer.begin_copy()
        ring.give(buffer, copy)
        copy.delete()
        other = ring.take((1000,), np.dtype(np.uint8), DEVICE)
        assert other is not buffer
        assert ring.held == 1000
        ring.give(other, None)


def test_a_file_that_is_cut_short_is_an_error_and_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tree = {f"w{number}": np.full((64, 64), number, np.float32) for number in range(8)}
    safejax.save(tree, path)
    with forced(True, SMALL):
        lazy = safejax.load(path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(ReadError, match="cut short"):
            safejax.materialize(lazy)
        assert RING.held == 0
        safejax.save(tree, path)
        check_same(safejax.materialize(safejax.load(path)), jax.tree.map(jnp.asarray, tree))


@pytest.fixture
def interruptible() -> Iterator[None]:
    # Whoever started the tests may have had it ignored, as a shell does in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_nothing_behind(path: Path, interruptible: None) -> None:
    is_loaded, reached, go = threading.Event(), threading.Event(), threading.Event()

    def wait(array: Any) -> Any:
        if is_loaded.is_set():
            reached.set()
            assert go.wait(300)
        return array

    def interrupt() -> None:
        assert reached.wait(300)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A row of the other one is larger than the ring, so that it has no buffer while it is read.
    chosen = safejax.select(["tree.float32.*", "!tree.float32.2"])
    waits = safejax.chain(chosen, safejax.elementwise(wait, "*"))
    tree = safejax.load(path, transform=waits)
    is_loaded.set()
    thread = threading.Thread(target=interrupt)
    with forced(True, SMALL):
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            safejax.materialize(tree)
        assert RING.held > 0  # A thread has not yet read what it reads.
        go.set()
        thread.join()
        for _ in range(6000):  # The threads that place go on by themselves.
            if not RING.held:
                break
            threading.Event().wait(0.01)
        assert RING.held == 0
        safejax.materialize(tree)


def test_several_threads_load_at_once(path: Path) -> None:
    chosen = safejax.select(["tree.float32.*", "tree.uint16.*"])
    with forced(False):
        plain = safejax.materialize(safejax.load(path, transform=chosen))
    loaded: list[Any] = []

    def load() -> None:
        loaded.append(safejax.materialize(safejax.load(path, transform=chosen)))

    with forced(True, SMALL):
        threads = [threading.Thread(target=load) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(loaded) == 6
    for each in loaded:
        check_same(each, plain)


FORKED = """
import os, sys, numpy as np, jax, safejax
from safejax._src.arrays.pinned import RING
from safejax._src.arrays.staging import Sizes, forced
safejax.save({"w": np.arange(4096, dtype=np.float32)}, sys.argv[1])
with forced(True, Sizes(64, 512, 128, 2048)), RING.open():
    safejax.materialize(safejax.load(sys.argv[1]))
    held = RING.held
    assert held
    with RING._changed:  # As another thread of the parent may have it just then.
        child = os.fork()
        if child == 0:
            assert not RING.is_open and not RING.held
            with RING.open():
                pass
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert RING.held == held
assert not RING.held
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_leaves_the_ring_to_its_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "m.safetensors")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---- the switch


def test_the_variable_says_the_way(
    path: Path, staged: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> list[bool]:
        staged.clear()
        chosen = safejax.select("tree.float32.1")
        with forced(None, SMALL):
            safejax.materialize(safejax.load(path, transform=chosen))
        return staged

    assert load() == []  # A CPU uses the pages of the file in place.
    monkeypatch.setenv(VARIABLE, "on")
    assert load() == [True]
    monkeypatch.setenv(VARIABLE, "off")
    assert load() == []
    monkeypatch.setenv(VARIABLE, "")
    assert load() == []
    monkeypatch.setenv(VARIABLE, "yes")
    with pytest.raises(ValueError, match="SAFEJAX_STAGING: expected 'auto', 'on' or 'off'"):
        load()


@pytest.mark.parametrize("faster", [False, True])
def test_the_first_leaves_are_measured_either_way_in_turns(faster: bool) -> None:
    class Leaf:
        nbytes = 600
        sharding = SingleDeviceSharding(DEVICE)
        placed_now = None

    switch = Switch(in_place=(), round_bytes=1000, sizes=range(500, 1000))
    ways: list[bool] = []

    def place(leaves: list[Leaf]) -> None:
        assert len(leaves) == 2
        ways.append(switch.is_on(Leaf.sharding))
        if ways[-1] != faster:
            threading.Event().wait(0.05)

    small = Leaf()
    small.nbytes = 400
    left = switch.measured([small, *(Leaf() for _ in range(5))], place)
    assert len(left) == 2
    assert left[0] is small
    assert ways == [False, True]
    assert not switch.is_on(Leaf.sharding)  # It is not known yet.
    assert switch.seconds((DEVICE.platform, DEVICE.device_kind)) is None
    assert len(switch.measured([Leaf() for _ in range(20)], place)) == 12
    assert ways == [False, True, False, True, True, False]
    assert switch.is_on(Leaf.sharding) == faster
    assert len(switch.measured([Leaf() for _ in range(20)], place)) == 20
    with switch.force(not faster):
        assert switch.is_on(Leaf.sharding) != faster
    assert switch.is_on(Leaf.sharding) == faster


def test_what_is_measured_is_placed_like_everything_else(
    tmp_path: Path, staged: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    tree = {f"w{number}": np.full((256, 256), number, np.float32) for number in range(5)}
    safejax.save(tree, path)
    switch = Switch(in_place=(), round_bytes=1, sizes=range(1 << 20))
    # That of the process measures no CPU.
    monkeypatch.setattr(at_once, "SWITCH", switch)
    monkeypatch.setattr(staging, "SWITCH", switch)
    kind = (DEVICE.platform, DEVICE.device_kind)
    for number in range(2):
        with forced(None, SMALL):
            check_same(safejax.materialize(safejax.load(path)), jax.tree.map(jnp.asarray, tree))
        assert (switch.seconds(kind) is None) == (number == 0)  # The leaves of one are too few.
    assert len(staged) >= 3
    assert all(staged)
