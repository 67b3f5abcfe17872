"""The pause of the garbage collector, which is disabled while any thread is inside (S8)."""

import gc
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import fsspec
import jax
import numpy as np
import pytest

import safejax
from safejax._src import collector
from safejax._src.collector import collector_paused, collector_resumed


@pytest.fixture(autouse=True, params=[True, False], ids=["enabled", "disabled"])
def before(request):
    """Whether the collector is enabled before the test, and restored after it."""
    was = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if was else gc.disable)()


def in_thread(function):
    """The future of a call in a new thread."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(function)
    executor.shutdown(wait=False)
    return future


def test_the_collector_is_disabled_inside_and_restored_afterwards(before):
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled() is before


def test_the_collector_is_restored_after_an_error(before):
    def inner():
        with collector_paused():
            raise ValueError("inner")

    def outer():
        with collector_paused():
            with pytest.raises(ValueError, match="inner"):
                inner()
            assert not gc.isenabled()
            raise KeyError

    with pytest.raises(KeyError):
        outer()
    assert gc.isenabled() is before


def test_the_pause_can_decorate_a_function(before):
    seen = []

    @collector_paused()
    def recursive(depth):
        seen.append(gc.isenabled())
        if depth:
            recursive(depth - 1)

    recursive(2)
    recursive(0)
    assert seen == [False] * 4
    assert gc.isenabled() is before


def test_the_collector_stays_disabled_until_the_last_thread_leaves(before):
    both_inside, first_left = threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    def second():
        with collector_paused():
            both_inside.wait()
            first_left.wait()
            assert not gc.isenabled()

    with collector_paused():
        done = in_thread(second)
        both_inside.wait()
    assert not gc.isenabled()
    first_left.wait()
    done.result(30)
    assert gc.isenabled() is before


def test_a_thread_that_enters_while_another_leaves_does_not_leave_it_disabled(before, monkeypatch):
    # If the second thread asked for the state while the first is inside, and acted on the answer
    # once the first has left, the collector would be disabled for good.
    first_inside, first_left = threading.Event(), threading.Event()
    entering = threading.Event()

    def isenabled():
        answer = gc.isenabled()
        if threading.current_thread() is not threading.main_thread():
            entering.set()
            assert first_left.wait(30)
        return answer

    patched = types.SimpleNamespace(isenabled=isenabled, enable=gc.enable, disable=gc.disable)
    # Python switches threads between the two only by chance.
    monkeypatch.setattr(collector, "gc", patched)

    def second():
        first_inside.wait(30)
        with collector_paused():
            entering.set()
            assert not gc.isenabled()
            first_left.wait(30)

    done = in_thread(second)
    with collector_paused():
        first_inside.set()
        assert entering.wait(30)
    first_left.set()
    done.result(30)
    assert gc.isenabled() is before


def test_many_threads_that_enter_and_leave(before):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:

        def work():
            for _ in range(300):
                with collector_paused():
                    assert not gc.isenabled()

        for done in [in_thread(work) for _ in range(8)]:
            done.result(30)
    finally:
        sys.setswitchinterval(interval)
    assert gc.isenabled() is before


def test_a_finalizer_can_enter_while_its_thread_enters_or_leaves(before, monkeypatch):
    entered = []

    def finalizing(function):
        def call():
            for step in (lambda: None, function):
                step()
                with collector_paused():
                    entered.append(function.__name__)

        return call

    patched = types.SimpleNamespace(
        isenabled=gc.isenabled, enable=finalizing(gc.enable), disable=finalizing(gc.disable)
    )
    # Python runs finalizers during these calls only by chance.
    monkeypatch.setattr(collector, "gc", patched)
    for _ in range(2):
        with collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is before
    assert entered == (["disable"] * 2 + ["enable"] * 2 * before) * 2


def test_a_program_can_enable_the_collector_inside():
    with collector_paused():
        gc.enable()
        with collector_paused():
            assert gc.isenabled()
        assert gc.isenabled()
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()


def test_disabling_the_collector_inside_changes_nothing(before):
    with collector_paused():
        gc.disable()
    assert gc.isenabled() is before


def test_a_pause_can_be_interrupted(before):
    def fail():
        with collector_resumed():
            raise ValueError("inside")

    with collector_paused():
        with collector_resumed():
            assert gc.isenabled() is before
            with collector_paused():
                assert not gc.isenabled()
            assert gc.isenabled() is before
        assert not gc.isenabled()
        with pytest.raises(ValueError, match="inside"):
            fail()
        assert not gc.isenabled()
    assert gc.isenabled() is before


def test_interrupting_a_pause_does_not_affect_that_of_another_thread(before):
    both_inside, seen = threading.Barrier(2, timeout=30), threading.Barrier(2, timeout=30)

    def second():
        with collector_paused():
            both_inside.wait()
            seen.wait()

    done = in_thread(second)
    with collector_paused():
        both_inside.wait()
        with collector_resumed():
            assert not gc.isenabled()
            seen.wait()
            done.result(30)
            assert gc.isenabled() is before
        assert not gc.isenabled()
    assert gc.isenabled() is before


FORK = """
import gc, os, sys, threading, warnings
from safejax._src.collector import collector_paused
(gc.enable if {before} else gc.disable)()
inside, done = threading.Event(), threading.Event()
def other():
    with collector_paused():
        inside.set()
        done.wait()
thread = threading.Thread(target=other)
thread.start()
inside.wait()
warnings.simplefilter("ignore")
child = os.fork()
if child == 0:
    states = [gc.isenabled()]
    with collector_paused():
        states.append(gc.isenabled())
    states.append(gc.isenabled())
    os._exit(0 if states == [{before}, False, {before}] else 1)
done.set()
thread.join()
_, status = os.waitpid(child, 0)
sys.exit(status != 0 or gc.isenabled() != {before})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_does_not_wait_for_the_threads_of_its_parent(before):
    program = FORK.format(before=before)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


# ---- users' code does not run inside a pause


class Node:
    """A container that JAX flattens and unflattens by the user's code."""

    def __init__(self, w):
        self.w = w


STATES = []


def flatten_node(node):
    STATES.append(gc.isenabled())
    return [(jax.tree_util.GetAttrKey("w"), node.w)], None


def unflatten_node(_, children):
    STATES.append(gc.isenabled())
    return Node(*children)


jax.tree_util.register_pytree_with_keys(Node, flatten_node, unflatten_node)


def observing(result):
    def observe(*_):
        STATES.append(gc.isenabled())
        return result(*_)

    return observe


USES = {
    "save a transform": lambda path: safejax.save(
        {"w": np.ones(3, np.float32)}, path, transform=observing(lambda leaves: leaves)
    ),
    "save a node": lambda path: safejax.save(Node(np.ones(3, np.float32)), path),
    "load a transform": lambda path: safejax.load(path, transform=observing(lambda leaves: leaves)),
    "load a sharding": lambda path: safejax.load(path, sharding=observing(lambda name, aval: None)),
    "load like a node": lambda path: safejax.load(path, like=Node(np.ones(3, np.float32))),
    "plan a transform": lambda path: safejax.plan(path, transform=observing(lambda leaves: leaves)),
    "deserialize a transform": lambda path: safejax.deserialize(
        path.read_bytes(), transform=observing(lambda leaves: leaves)
    ),
    "materialize a node": lambda path: safejax.materialize(Node(safejax.load(path)["w"])),
}


@pytest.mark.parametrize("use", USES)
def test_users_code_runs_outside_of_the_pause(use, before, tmp_path):
    path = tmp_path / "params.safetensors"
    safejax.save({"w": np.ones(3, np.float32)}, path)
    STATES.clear()
    USES[use](path)
    assert STATES
    assert set(STATES) == {before}
    assert gc.isenabled() is before


def test_file_systems_are_called_outside_of_the_pause(before, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/collector.safetensors", safejax.serialize({"w": np.ones(3, np.float32)}))
    STATES.clear()
    for name in ("info", "cat_file"):
        monkeypatch.setattr(memory, name, observing(getattr(memory, name)), raising=True)
    tree = safejax.load("/collector.safetensors", fs=memory)
    np.asarray(tree["w"])
    assert STATES
    assert set(STATES) == {before}


def test_the_functions_that_transforms_are_given_run_outside_of_the_pause(before):
    seen = []

    def looked_at(value):
        seen.append(gc.isenabled())
        return value

    leaves = safejax.flatten({"a": np.ones(3, np.float32), "b": np.ones(2, np.int8)})
    safejax.elementwise(looked_at, "a")(leaves)
    safejax.transpose(lambda name: bool(looked_at("")), must_match=False)(leaves)
    table = safejax.correspond(
        [("a", "c"), ("b", None, lambda name: looked_at(np.ones(2, np.int8)))]
    )
    table.inverse(table(leaves))
    assert len(seen) > 3
    assert set(seen) == {before}


def test_an_error_of_a_transform_ends_the_pause(before):
    leaves = safejax.flatten({"a": np.ones(3, np.float32)})
    for step in (safejax.transpose("a"), safejax.correspond([("b", "c")])):
        with pytest.raises(safejax.TransformError):
            step(leaves)
        assert gc.isenabled() is before
