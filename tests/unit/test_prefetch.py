"""`prefetch`: leaves are read in the background, in order, while the caller goes on."""

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.testing import assert_trees_identical
from tests.support.servers import HttpServer

LONG = 300.0
"""Seconds after which something that does not happen is a failure of the test."""

MIB = 1 << 20


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name.startswith("safejax-prefetch")]


def no_threads() -> bool:
    return not threads()


def placed(tree: Any) -> list[str]:
    return [leaf.name for leaf in jax.tree.leaves(tree) if leaf.is_placed]


@pytest.fixture(autouse=True)
def _all_end() -> Iterator[None]:
    yield
    gc.collect()
    assert eventually(no_threads)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tree = {
        "a": jnp.arange(MIB, dtype=jnp.float32),
        "b": [jnp.ones(3, jnp.bfloat16), jnp.arange(5)],
        "c": jnp.arange(MIB, dtype=jnp.int32).reshape(1024, -1),
        "key": jax.random.key(7),
    }
    safejax.save(tree, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("access", ["map", "read"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_all_leaves_arrive_bit_for_bit(path: Path, access: Any, is_sharded: bool) -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    options: dict[str, Any] = {"access": access}
    if is_sharded:
        options["sharding"] = {
            "a": NamedSharding(mesh, P("x")),
            "b": [NamedSharding(mesh, P())] * 2,
            "c": NamedSharding(mesh, P(None, "x")),
            "key": NamedSharding(mesh, P()),
        }
    tree = safejax.load(path, **options)
    assert safejax.prefetch(tree) is tree
    assert eventually(lambda: len(placed(tree)) == 5)
    expected = safejax.materialize(safejax.load(path, **options))
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding
        assert_trees_identical(one, other)


def test_values_are_right_whenever_a_leaf_is_needed(path: Path) -> None:
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree))
    plain = safejax.materialize({k: v for k, v in safejax.load(path).items() if k != "key"})
    expected = double(plain)
    for _ in range(20):
        tree = safejax.load(path)
        del tree["key"]
        got = double(safejax.prefetch(tree))
        assert_trees_identical(got, expected)


def test_nothing_is_printed_and_no_lazy_leaf_is_no_error(capfd: Any) -> None:
    assert safejax.prefetch({}) == {}
    tree = {"a": jnp.ones(3), "b": 4}
    assert safejax.prefetch(tree) is tree
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, True, "1"])
def test_bounds_that_are_none_are_refused(max_bytes: Any) -> None:
    with pytest.raises(ValueError, match=r"max_bytes: expected a number of bytes, 1 or more"):
        safejax.prefetch({}, max_bytes=max_bytes)


def test_a_path_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match=r"prefetch: .*pass safejax.load\(path\)"):
        safejax.prefetch(str(path))


def test_leaves_that_will_be_narrowed_are_told_at_once(tmp_path: Path) -> None:
    safejax.save({"w": np.ones(3)}, tmp_path / "m")
    tree = safejax.load(tmp_path / "m")
    with pytest.warns(safejax.PrecisionWarning, match=r"'w'"):
        safejax.prefetch(tree)
    assert eventually(lambda: tree["w"].is_placed)


# ---- order, and who is first


def rows(server: HttpServer, count: int = 6) -> dict[str, Any]:
    """A remote tree, each leaf of which is requested alone: it is as large as a group may be."""
    tree = {f"{number}": np.full(1 << 24, number, np.float32) for number in range(count)}
    server.files["/m.safetensors"] = safejax.serialize(tree)
    return safejax.load(f"{server.url}/m.safetensors")


def first_bytes(server: HttpServer) -> list[int]:
    return [each.span[0] >> 26 for each in server.requests if each.span is not None]


def test_leaves_are_read_in_order_and_one_that_is_needed_overtakes(server: HttpServer) -> None:
    tree = rows(server)
    server.clear()
    held, reached = threading.Event(), threading.Event()

    def fault(request: Any) -> None:
        if request.span is not None and request.span[0] < 1 << 26:  # Of leaf 0.
            reached.set()
            assert held.wait(LONG)

    server.fault = fault
    safejax.prefetch(tree, max_bytes=1)
    assert reached.wait(LONG)
    assert float(tree["4"][0]) == 4
    assert float(np.asarray(tree["5"])[0]) == 5
    tree["4"].sum()
    assert placed(tree) == ["4"]
    held.set()
    assert eventually(lambda: "0" in placed(tree))


def test_no_more_is_placed_than_may_be_and_more_when_arrays_are_let_go(path: Path) -> None:
    del path
    data = safejax.serialize({f"{n}": np.full(MIB, n, np.uint8) for n in range(8)})
    tree: dict[str, Any] = safejax.deserialize(data)
    safejax.prefetch(tree, max_bytes=2 * MIB)
    assert eventually(lambda: len(placed(tree)) == 2)
    time.sleep(0.05)
    assert placed(tree) == ["0", "1"]
    assert int(tree["0"].sum()) == 0
    tree["0"].delete()
    assert eventually(lambda: placed(tree) == ["1", "2"])
    del tree["1"]
    assert eventually(lambda: placed(tree) == ["2", "3"])
    jax.jit(lambda x: x + 1, donate_argnums=0)(tree["2"])
    assert eventually(lambda: placed(tree) == ["3", "4"])
    assert [int(tree[f"{n}"][-1]) for n in range(3, 8)] == [3, 4, 5, 6, 7]
    tree.clear()


def test_what_nobody_has_any_more_is_not_read(server: HttpServer) -> None:
    tree = rows(server, 4)
    server.clear()
    held, reached = threading.Event(), threading.Event()

    def fault(_: Any) -> None:
        reached.set()
        assert held.wait(LONG)

    server.fault = fault
    safejax.prefetch(tree, max_bytes=1)
    assert reached.wait(LONG)
    del tree
    gc.collect()
    held.set()
    assert eventually(no_threads)
    assert set(first_bytes(server)) == {0}


def test_threads_end_when_nobody_has_what_is_left_though_there_is_no_room() -> None:
    data = safejax.serialize({f"{n}": np.full(MIB, n, np.uint8) for n in range(3)})
    tree: dict[str, Any] = safejax.prefetch(safejax.deserialize(data), max_bytes=MIB)
    first = safejax.materialize(tree["0"])
    tree.clear()
    gc.collect()
    assert eventually(no_threads)
    assert int(first[-1]) == 0


def test_what_is_placed_meanwhile_needs_no_room() -> None:
    sizes = {"0": MIB, "1": 2 * MIB, "2": MIB}
    data = safejax.serialize({name: np.zeros(size, np.uint8) for name, size in sizes.items()})
    tree: dict[str, Any] = safejax.prefetch(safejax.deserialize(data), max_bytes=2 * MIB)
    assert eventually(lambda: placed(tree) == ["0"])
    tree["1"].block_until_ready()
    assert eventually(lambda: placed(tree) == ["0", "1", "2"])


def test_a_small_leaf_that_fails_does_not_keep_its_neighbours_from_being_placed() -> None:
    with jax.enable_x64(True):
        data = safejax.serialize({"a": np.array([1 << 40]), "b": np.arange(3), "c": np.arange(4)})
    tree = safejax.prefetch(safejax.deserialize(data))
    assert eventually(no_threads)
    assert placed(tree) == ["b", "c"]
    with pytest.raises(safejax.PrecisionError, match="'a'"):
        tree["a"].sum()


def test_an_error_is_raised_where_the_leaf_is_used(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safejax._src.reading.patience import Patience

    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.001))
    tree = rows(server, 3)
    server.fault = lambda request: (
        "404" if request.span is not None and request.span[0] >> 26 == 1 else None
    )
    safejax.prefetch(tree)
    assert eventually(no_threads)
    assert placed(tree) == ["0", "2"]
    with pytest.raises(FileNotFoundError, match=r"404"):
        tree["1"].sum()
    server.fault = lambda _: None
    assert float((tree["1"] + 1)[0]) == 2


def test_many_threads_may_use_what_is_prefetched(path: Path) -> None:
    tree = safejax.load(path)
    expected = float(jnp.arange(MIB, dtype=jnp.float32).sum())
    found: list[float] = []
    users = [
        threading.Thread(target=lambda: found.append(float(tree["a"].sum()))) for _ in range(16)
    ]
    safejax.prefetch(tree)
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert found == [expected] * 16


PROGRAM = """if True:
    import os, sys
    os.environ["JAX_PLATFORMS"] = "cpu"
    import numpy as np, safejax
    tree = safejax.load(sys.argv[1])
    safejax.prefetch(tree)  # The interpreter ends while threads read.
"""


def test_the_interpreter_ends_meanwhile(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path],
        capture_output=True, text=True, timeout=LONG, env=os.environ | {"PYTHONWARNINGS": "ignore"},
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
