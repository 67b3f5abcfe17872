"""Saves in the background by several processes, next to training steps with collectives."""

import hashlib
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from tests.support.effort import LARGE
from tests.support.together import LONG, Together, devices_together, keys_in_the_service, raised

ROWS, COLUMNS = P("x"), P(None, "x")


def sharding(spec: P) -> NamedSharding:
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, spec)


def state_at(step: int) -> dict[str, Any]:
    """The state after some steps, in NumPy, with a leaf for each kind."""
    w = np.arange(64 * 8, dtype=np.float32).reshape(64, 8) + step
    return {"columns": w * 2, "count": step, "host": np.full(5, step, np.int64), "rows": w}


def on_devices(state: dict[str, Any]) -> dict[str, Any]:
    arrays = {"columns": sharding(COLUMNS), "rows": sharding(ROWS)}
    placed = {
        name: jax.make_array_from_callback(
            state[name].shape, of, lambda index, values=state[name]: values[index]
        )
        for name, of in arrays.items()
    }
    return {**state, **placed}


@partial(jax.jit, donate_argnums=0)
def train(arrays: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], jax.Array]:
    """A step with a collective, which donates the state before."""
    loss = sum(jnp.sum(x) for x in arrays.values())
    return {"columns": arrays["columns"] + 2, "rows": arrays["rows"] + 1}, loss


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train_and_save(process: int, folder: Path, steps: int) -> list[str]:
    """Save at each step, to one path and to others, and go on; what is wrong afterwards."""
    del process
    state, handles = on_devices(state_at(0)), list[safejax.SaveHandle]()
    for step in range(steps):
        for path in (folder / f"{step % 3}.safetensors", folder / "latest.safetensors"):
            handles.append(safejax.save_async(state, path, checksum=bool(step % 2)))
        arrays, loss = train({name: state[name] for name in ("columns", "rows")})
        state["host"] += 1  # In place: what was saved does not change.
        state = {**state, **arrays, "count": step + 1}
        if step % 10 == 0:
            safejax.save(state, folder / "between.safetensors")
    float(loss)
    for handle in handles:
        handle.result(LONG)
    multihost_utils.sync_global_devices("saved")
    wrong: list[str] = []
    for path in [folder / f"{number}.safetensors" for number in range(3)]:
        found = int(safejax.load(path)["count"])
        expected = safejax.serialize(state_at(found), checksum=bool(found % 2))
        if found < steps - 3 or path.read_bytes() != expected:
            wrong.append(f"{path.name}: {found}")
    last = safejax.serialize(state_at(steps - 1), checksum=bool((steps - 1) % 2))
    if (folder / "latest.safetensors").read_bytes() != last:
        wrong.append("latest")
    return wrong


def test_saves_go_on_next_to_steps_with_collectives(pair: Together, tmp_path: Path) -> None:
    assert pair.run(train_and_save, tmp_path, 250 if LARGE else 30) == [[], []]
    assert len(os.listdir(tmp_path)) == 5


def wait_for_another(process: int, folder: Path) -> list[Any]:
    """Both save where process 0 saves something of its own, until the others can see it waiting."""
    path, state = folder / "state.safetensors", on_devices(state_at(1))
    multihost_utils.sync_global_devices("before")
    before = set(keys_in_the_service())

    def progress(done: int, total: int) -> None:
        del done, total
        end = time.monotonic() + LONG
        while not any("/alive/0" in key for key in {*keys_in_the_service()} - before):
            assert time.monotonic() < end
            time.sleep(0.01)

    if process == 0:
        safejax.save_async({"own": np.ones(3)}, path, progress=progress)
    handle = safejax.save_async(state, path)
    errors = [
        raised(lambda: safejax.save({**state, "count": 2}, path)),
        raised(lambda: handle.result(LONG)),
    ]
    multihost_utils.sync_global_devices("saved")
    return [*errors, safejax.load(path).get("count")]


def test_a_process_that_waits_for_its_turn_is_alive(pair: Together, tmp_path: Path) -> None:
    assert pair.run(wait_for_another, tmp_path) == [[("", ""), ("", ""), 2]] * 2


def fail_in_one(process: int, folder: Path) -> list[tuple[str, str]]:
    """What the calls raise, and what the handles do, if one process has an error."""
    state = on_devices(state_at(1))
    path = folder / "state.safetensors"
    safejax.save_async(state, path).result()
    before = digest(path)
    other = {**state, "count": process}
    deleted = on_devices(state_at(1))
    if process == 1:
        deleted["rows"].delete()
    errors = [
        raised(lambda: safejax.save_async(other, path)),
        raised(lambda: safejax.save_async(deleted, path)),
        raised(lambda: safejax.save_async(state, path, timeout=-1)),
        raised(lambda: safejax.save_async(state, path, max_host_bytes=-1)),
    ]

    def stop(done: int, total: int) -> None:
        del done, total
        raise ValueError("stopped by progress")

    handle = safejax.save_async(state, path, progress=stop if process == 1 else None)
    error = handle.exception(LONG)
    errors.append((type(error).__name__, str(error)))
    multihost_utils.sync_global_devices("failed")
    assert digest(path) == before
    assert os.listdir(folder) == [path.name]
    # All of them go on.
    with safejax.save_async({**state, "count": 7}, path, max_host_bytes=0):
        pass
    multihost_utils.sync_global_devices("saved")
    assert int(safejax.load(path)["count"]) == 7
    assert process or len({key.split("/")[1] for key in keys_in_the_service()}) == 1
    return errors


def test_an_error_in_one_process_is_raised_in_both(pair: Together, tmp_path: Path) -> None:
    first, second = pair.run(fail_in_one, tmp_path)
    other, deleted, timeout, host, progress = first
    assert other == second[0]
    assert other[0] == "ProcessError"
    assert "leaf 'count'" in other[1]
    assert "process 1" in deleted[1]
    assert "deleted, or donated" in second[1][1]
    assert timeout == second[2]
    assert timeout[1].startswith("timeout: expected seconds")
    assert host == second[3]
    assert host[1].startswith("max_host_bytes: expected")
    assert "stopped by progress" in progress[1]
    assert "stopped by progress" in second[4][1]
