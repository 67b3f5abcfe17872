"""A process that is forked while other threads of its parent place, read or log what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest

# All in one process, since it takes longer to start one than to run this.
PROGRAM = """
import os, signal, sys, threading, traceback, warnings
import fsspec, jax, numpy as np
import safejax
from safejax import chain, elementwise, reshape, transpose
from safejax._src.reading.flight import MOST_REQUESTS

jax.config.update("jax_num_cpu_devices", 2)
path, parent = sys.argv[1], os.getpid()
tree = {str(n): np.arange(24.0, dtype=np.float32).reshape(4, 6) + n for n in range(24)}
safejax.save(tree, path)
armed, inside, go_on = threading.Event(), threading.Event(), threading.Event()

def stop():
    '''Let nobody of the parent go on, until its child has ended.'''
    if os.getpid() == parent and armed.is_set():
        inside.set()
        assert go_on.wait(60)

def stopping(x):
    stop()
    return x + 0

def agree(leaves, names=tree):
    for name in names:
        assert np.asarray(leaves[name]).tobytes() == tree[name].tobytes(), name

def forked(what, before, in_child):
    '''Run `before` in a thread, fork while it is stopped, and run `in_child` in the child.'''
    armed.set(), inside.clear(), go_on.clear()
    errors = []
    def run():
        try:
            before()
        except BaseException as error:
            errors.append(error)
    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(60), errors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX's threads are not used in it.
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            in_child()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    armed.clear(), go_on.set()
    thread.join()
    print(what, os.waitstatus_to_exitcode(status), *map(repr, errors), flush=True)

# ---- the locks of leaves

slow = elementwise(stopping, "*")

lazy = safejax.load(path, transform=slow)
forked("materialize", lambda: safejax.materialize(lazy), lambda: agree(safejax.materialize(lazy)))
agree(safejax.materialize(lazy))

one = safejax.load(path, transform=slow)
forked("one leaf", lambda: one["1"].tolist(), lambda: agree(safejax.materialize(one)))

behind = safejax.load(path, transform=slow)
def prefetch():
    safejax.prefetch(behind)
    go_on.wait(60)
forked("prefetch", prefetch, lambda: agree(safejax.materialize(behind)))

# ---- the lock of what no window shows, which is made once for all devices

mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
halves = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
whole = safejax.load(
    path, sharding=halves,
    transform=chain(slow, transpose("*"), reshape("*", (24,), source=(6, 4))),
)
def halves_agree():
    for name, leaf in safejax.materialize(whole).items():
        # Shard by shard: JAX joins them by threads of its own, which a child does not have.
        flat = np.concatenate([np.asarray(shard.data) for shard in leaf.addressable_shards])
        assert flat.tobytes() == tree[name].T.tobytes(), name
forked("behind a reshape", lambda: safejax.materialize(whole), halves_agree)

# ---- what is remembered of the parts of a mapped file that follow each other

class Streams(dict):
    def pop(self, *args):
        stop()
        return super().pop(*args)

ones = np.ones((64, 2048), np.float32)
safejax.save({"w": ones}, path + "2")
mapped = safejax.load(path + "2")["w"]
mapped.content.view.source._pieces._streams = Streams()
def read_rows():
    assert np.asarray(mapped[2:4]).tobytes() == ones[2:4].tobytes()
forked("pieces", read_rows, read_rows)

# ---- the requests of all threads together, and the look whether a file is the one it was

memory = fsspec.filesystem("memory")

class Slow(type(memory)):
    protocol = "slow"
    cachable = False
    where = "cat_file"
    count = 0

    def cat_file(self, *args, **options):
        if self.where == "cat_file" and os.getpid() == parent and armed.is_set():
            self.count += 1
            # As many as there may be under way at the same time.
            stop() if self.count == MOST_REQUESTS else go_on.wait(60)
        return super().cat_file(*args, **options)

    def info(self, *args, **options):
        if self.where == "info":
            stop()
        return super().info(*args, **options)

big = {str(n): np.full(1 << 18, n, np.float32) for n in range(24)}
for where in ("cat_file", "info"):
    fs = Slow()
    fs.where = where
    safejax.save(big, "m.safetensors", fs=fs)
    far = safejax.load("m.safetensors", fs=fs)
    def read():
        threads = [threading.Thread(target=np.asarray, args=(far[n],)) for n in big]
        for each in threads: each.start()
        for each in threads: each.join()
    def all_are_there():
        for n in big:
            assert np.asarray(far[n]).tobytes() == big[n].tobytes()
    forked(where, read, all_are_there)

# ---- a save to the same file system, which takes one at a time

class SlowWriting(Slow):
    def _open(self, *args, **options):
        stop()
        return super()._open(*args, **options)

fs = SlowWriting()
forked(
    "save", lambda: safejax.save(tree, "n.safetensors", fs=fs),
    lambda: safejax.save(tree, "o.safetensors", fs=fs),
)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, tmp_path / "m.safetensors"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    cases = [
        "materialize",
        "one leaf",
        "prefetch",
        "behind a reshape",
        "pieces",
        "cat_file",
        "info",
        "save",
    ]
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        [f"{case} 0" for case in cases],
    ), done.stderr
