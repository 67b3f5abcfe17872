"""A training loop with Orbax's CheckpointManager over safetensors files, killed at random.

Whatever the moment, every step that is listed has the state of that step, and is whole unless Orbax
was removing it: it takes its files away one by one. The training goes on from the last step.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.orbax import Restore, Save
from tests.support.children import CHILDREN
from tests.support.effort import LARGE
from tests.support.together import Together, devices_together

STEPS = 200
KILLS = 20 if LARGE else 3
EVERY = 5
ROWS, COLUMNS = 64, 256
FILES = ("default/model.safetensors", "_CHECKPOINT_METADATA", "metrics/metrics")
"""What a whole step has in each version of Orbax."""


def expected(step: int) -> dict[str, Any]:
    """The state after `step` steps of `train`, by NumPy."""
    w = np.arange(ROWS * COLUMNS, dtype=np.uint32).reshape(ROWS, COLUMNS)
    for _ in range(step):
        w = w * np.uint32(1664525) + np.uint32(1013904223)
    return {"w": w, "moments": [w ^ np.uint32(7)], "step": np.uint32(step)}


@partial(jax.jit, donate_argnums=0)
def train(state: Any) -> Any:
    w = state["w"] * jnp.uint32(1664525) + jnp.uint32(1013904223)
    return {"w": w, "moments": [w ^ jnp.uint32(7)], "step": state["step"] + jnp.uint32(1)}


def managed(folder: Path) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=3,
        best_fn=lambda metrics: metrics["score"],
        save_interval_steps=EVERY,
        # A kill leaves its folder behind, which the next manager removes.
        cleanup_tmp_directories=True,
    )
    return ocp.CheckpointManager(folder, options=options)


def sharding() -> NamedSharding:
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P("x"))


def go_on(folder: Path, steps: int, told: Callable[[int], None] = lambda step: None) -> None:
    """Train up to `steps` steps from the last that is saved, and save every few of them.

    `told` is called with the number of each step that is done.
    """
    rows = sharding()
    whole = NamedSharding(rows.mesh, P())

    def placed(name: str, aval: Any) -> NamedSharding:
        return rows if aval.shape else whole

    with managed(folder) as manager:
        last = manager.latest_step()
        if last is None:
            start = expected(0)
            state = jax.tree.map(
                lambda x: jax.make_array_from_callback(
                    x.shape, rows if x.shape else whole, lambda index: x[index]
                ),
                start,
            )
        else:
            state = manager.restore(last, args=Restore(sharding=placed, verify=True))
        for step in range(last or 0, steps):
            state = train(state)
            # Scores that rise, but not always.
            score = float(step + 1 + (step * 7) % 13)
            args = Save(state, checksum=True)
            manager.save(step + 1, args=args, metrics={"score": score})
            told(step + 1)


def lacks_files(step: Path) -> bool:
    return not all((step / each).is_file() for each in FILES)


def wrong_steps(folder: Path) -> tuple[list[int], list[int]]:
    """The steps that are listed, and those of them that are not as they should be."""
    with managed(folder) as manager:
        listed = sorted(manager.all_steps())
        wrong: list[int] = []
        for step in listed:
            if lacks_files(folder / str(step)):
                # The last one is always among the best, and so is never removed.
                file = folder / str(step) / FILES[0]
                found = safejax.load(file, verify=True) if file.exists() else None
                if step == listed[-1] or not (found is None or is_at(found, step)):
                    wrong.append(step)
            elif not is_at(manager.restore(step, args=Restore(verify=True)), step):
                wrong.append(step)
    return listed, wrong


def is_at(found: Any, step: int) -> bool:
    """Whether a state is the one after so many steps."""
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(expected(step)), strict=True)
    return all(np.array_equal(np.asarray(one), other) for one, other in leaves)


def in_a_child(sender: Any, folder: Path) -> None:
    go_on(folder, STEPS, sender.send)


def test_a_training_that_is_killed_at_random_goes_on(tmp_path: Path) -> None:
    folder, chance = tmp_path / "steps", random.Random(7)
    resumed: list[int] = []
    for kill in range(KILLS + 1):
        receiver, sender = CHILDREN.Pipe(duplex=False)
        process = CHILDREN.Process(target=in_a_child, args=(sender, folder))
        process.start()
        sender.close()
        resumed.append(receiver.recv())
        if kill < KILLS:
            # At any moment of a save, or between two of them, and farther each time.
            last = chance.randint(1, EVERY) + kill * STEPS // (KILLS + 1)
            while receiver.recv() < last:
                pass
            time.sleep(chance.uniform(0.0, 0.05))
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        listed, wrong = wrong_steps(folder)
        assert wrong == []
        assert all(step == 1 or step % EVERY == 0 for step in listed)
    assert process.exitcode == 0
    assert len(set(resumed)) > 2
    assert listed[-1] == STEPS
    assert [name for name in os.listdir(folder) if not name.isdigit()] == []


def names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def train_with_others(process: int, folder: Path, steps: int) -> int:
    go_on(folder, steps)
    multihost_utils.sync_global_devices("trained")
    return process


def test_two_processes_that_are_killed_go_on(tmp_path: Path) -> None:
    folder, chance = tmp_path / "steps", random.Random(3)
    for _ in range(5 if LARGE else 1):
        with Together(2) as together:
            together.begin(train_with_others, folder, STEPS)
            deadline = time.monotonic() + 300
            while not any(name.isdigit() for name in names_in(folder)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(chance.uniform(0.0, 0.5))
            for each in together.processes:
                each.kill()
        listed, wrong = wrong_steps(folder)
        assert listed
        assert wrong == []
    with Together(2) as together:
        assert together.run(train_with_others, folder, STEPS) == [0, 1]
    listed, wrong = wrong_steps(folder)
    assert wrong == []
    assert listed[-1] == STEPS
    path = folder / str(STEPS) / "default" / "model.safetensors"
    assert path.read_bytes() == safejax.serialize(expected(STEPS), checksum=True)
