"""From file to file in a bounded window of memory, however large the files are."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
import safejax.orbax
from tests.support.children import CHILDREN

MIB = 1 << 20


def private_bytes() -> int:
    """Memory of this process that no file stands behind."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError


def peak_of(task: Callable[[], Any]) -> int:
    """The most private memory that the task took beyond what there was, sampled."""
    before = peak = private_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    task()
    done.set()
    watcher.join()
    return peak - before


CONVERSIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "as it is": ("whole", "copy", {}),
    "cast": ("whole", "copy", {"transform": safejax.cast("bfloat16")}),
    "transposed": ("whole", "copy", {"transform": safejax.transpose("*")}),
    "stacked": ("whole", "copy", {"transform": safejax.stack("layer.{i}", "layers")}),
    "with digests": ("whole", "copy", {"checksum": True}),
    "into shards": ("whole", "set", {"max_shard_bytes": 100 * MIB}),
    "out of shards": ("shards", "copy", {}),
}


def convert(folder: Path, case: str, peak: Any) -> None:
    source, target, options = CONVERSIONS[case]
    # What the first of all conversions needs once: threads, and JAX's backend.
    safejax.save(safejax.deserialize(safejax.serialize({"w": jnp.ones(3)})), folder / "warm")
    seen: list[int] = []
    peak.value = peak_of(
        lambda: safejax.save(
            safejax.load(folder / source),
            folder / target,
            progress=lambda done, total: seen.append(done * 100 // total),
            **options,
        )
    )
    assert seen == sorted(seen)
    assert seen[-1] == 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 256 MiB, one leaf of which is 160, and the same in shards."""
    folder = tmp_path_factory.mktemp("large")
    row = np.arange(1024, dtype=np.float32)
    tree = {
        "big": np.broadcast_to(row, (40 * 1024, 1024)),
        "layer": [np.broadcast_to(row + i, (3 * 1024, 1024)) for i in range(8)],
    }
    safejax.save(tree, folder / "whole")
    safejax.save(tree, folder / "shards", max_shard_bytes=64 * MIB)
    return folder


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is told by Linux")
@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_conversion_holds_a_bounded_window(folder: Path, case: str) -> None:
    peak = CHILDREN.Value("q", -1)
    child = CHILDREN.Process(target=convert, args=(folder, case, peak))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    assert 0 <= peak.value <= 64 * MIB
    _, target, options = CONVERSIONS[case]
    expected = safejax.load(folder / "whole", transform=options.get("transform"))
    found = safejax.load(folder / target)
    assert safejax.flatten(found).keys() == safejax.flatten(expected).keys()
    for name, leaf in safejax.flatten(expected).items():
        last = np.asarray(leaf[-1])
        assert np.array_equal(np.asarray(safejax.flatten(found)[name][-1]), last)


# ---- a checkpoint of Orbax, in chunks of rows or of columns


def write_with_orbax(folder: Path) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    values = np.random.default_rng(0).integers(0, 1 << 32, (1024, 4096), dtype=np.uint32)
    for name, spec in (("rows", P("x")), ("columns", P(None, "x"))):
        leaves = {f"w{i}": jax.device_put(values + i, NamedSharding(mesh, spec)) for i in range(12)}
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        checkpointer.save(folder / name, args=ocp.args.PyTreeSave(leaves))


def convert_from_orbax(folder: Path, name: str, peak: Any) -> None:
    safejax.save(safejax.deserialize(safejax.serialize({"w": jnp.ones(3)})), folder / "warm")
    safejax.orbax.load(folder / name)
    with safejax.observe_reads() as log:
        peak.value = peak_of(
            lambda: safejax.save(
                safejax.orbax.load(folder / name, cache_bytes=24 * MIB), folder / "copy"
            )
        )
    assert (log.nbytes, len(log.reads)) == (192 * MIB, 96)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is told by Linux")
def test_a_conversion_from_orbax_holds_a_bounded_window(tmp_path: Path) -> None:
    """192 MiB, of leaves of 16 each; the threads of tensorstore keep some memory of their own."""
    writer = CHILDREN.Process(target=write_with_orbax, args=(tmp_path,))
    writer.start()
    writer.join()
    for name in ("rows", "columns"):
        peak = CHILDREN.Value("q", -1)
        process = CHILDREN.Process(target=convert_from_orbax, args=(tmp_path, name, peak))
        process.start()
        process.join()
        assert process.exitcode == 0
        assert 0 < peak.value < 112 * MIB
