"""Orbax: its CheckpointManager over safetensors files, and what a step of it holds."""

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.orbax import Handler, Restore, Save
from safejax.testing import assert_same_bits, assert_trees_identical
from tests.support.leaves import arrays_of, host_bytes, is_unread
from tests.support.together import Together, devices_together, raised

OPTIMIZER = optax.adamw(1e-3)


def state_at(step: int) -> dict[str, Any]:
    """A training state: parameters, the state of an optimizer, a key, counts."""
    params = {"w": jnp.arange(32, dtype=jnp.float32).reshape(8, 4) * step, "b": jnp.ones(4) + step}
    return {
        "params": params,
        "optimizer": OPTIMIZER.init(params),
        "key": jax.random.key(step),
        "step": step,
    }


@partial(jax.jit, donate_argnums=0)
def train(arrays: Any) -> Any:
    return jax.tree.map(lambda x: x * 2 + 1, arrays)


def managed(folder: Path, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options))


def safetensors_in(folder: Path) -> list[str]:
    """The files in the folder of an item that are not Orbax's."""
    return sorted(name for name in os.listdir(folder) if "safetensors" in name)


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """The folder of a manager, which does not exist yet."""
    return tmp_path / "steps"


# ---- steps


def test_steps_are_saved_in_the_background_next_to_donating_steps(steps: Path) -> None:
    with managed(steps, max_to_keep=2) as manager:
        params = state_at(1)["params"]
        for step in range(5):
            host = {"count": np.full(3, step)}
            manager.save(step, args=Save({"params": params, "host": host}))
            params = train(params)
            host["count"] += 100
        manager.wait_until_finished()
        assert manager.all_steps() == [3, 4]
        loaded = manager.restore(4)
    expected = state_at(1)["params"]
    for _ in range(4):
        expected = jax.tree.map(lambda x: x * 2 + 1, expected)
    assert_trees_identical(loaded["params"], expected)
    assert np.array_equal(np.asarray(loaded["host"]["count"]), np.full(3, 4))


def test_a_step_is_a_plain_safetensors_file(steps: Path) -> None:
    state = state_at(3)
    with managed(steps) as manager:
        manager.save(3, args=Save(state, metadata={"run": "7"}))
    path = steps / "3" / "default"
    assert safetensors_in(path) == ["model.safetensors"]
    found = safetensors.numpy.load_file(path / "model.safetensors")
    assert np.array_equal(found["params.w"], np.asarray(state["params"]["w"]))
    assert safejax.metadata(path) == {"run": "7"}
    assert (path / "model.safetensors").read_bytes() == safejax.serialize(
        state, metadata={"run": "7"}
    )


def test_restore_is_lazy_and_onto_any_sharding(steps: Path) -> None:
    state = state_at(2)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, spec) for spec in (P("x"), P()))
    with managed(steps) as manager:
        manager.save(2, args=Save(state))
        manager.wait_until_finished()

        def sharding(name: str, aval: Any) -> NamedSharding:
            return rows if aval.shape[:1] == (8,) else whole

        with safejax.observe_reads() as log:
            loaded = manager.restore(2, args=Restore(safejax.abstract(state), sharding=sharding))
        again = manager.restore(2, args=Restore(loaded))
    assert log.reads == []
    assert all(map(is_unread, arrays_of(loaded)))
    assert type(loaded["optimizer"][0]) is type(state["optimizer"][0])
    assert loaded["params"]["w"].sharding == rows
    for tree in (loaded, again):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(state), strict=True)
        assert all(host_bytes(found) == host_bytes(right) for found, right in pairs)


def test_like_over_an_abstract_mesh_takes_that_of_the_context(steps: Path) -> None:
    """The meshes of shardings that jax.eval_shape gives are abstract."""
    mesh = jax.make_mesh((8,), ("x",))
    rows = NamedSharding(mesh.abstract_mesh, P("x"))
    with managed(steps) as manager:
        manager.save(0, args=Save({"w": state_at(1)["params"]["w"]}))
        manager.wait_until_finished()
        like = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=rows)}
        with jax.set_mesh(mesh):
            loaded = manager.restore(0, args=Restore(like))
    assert loaded["w"].sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 2)


def test_a_new_manager_restores_without_args(steps: Path) -> None:
    """The checkpoint records its handler, under a name that never changes."""
    with managed(steps) as manager:
        manager.save(1, args=Save(state_at(1)))
    with managed(steps) as manager:
        assert_same_bits(manager.restore(1)["params"]["w"], state_at(1)["params"]["w"])
        found = manager.item_metadata(1)
    with ocp.CheckpointManager(steps, item_handlers=Handler()) as manager:
        found = manager.item_metadata(1)
    assert found["params"]["w"] == jax.ShapeDtypeStruct((8, 4), jnp.float32)
    assert Handler.typestr() in (steps / "1" / "_CHECKPOINT_METADATA").read_text()
    assert Handler.typestr() == "safejax.orbax.Handler"


def test_items_of_a_composite_step(steps: Path) -> None:
    state = state_at(5)
    with managed(steps) as manager:
        args = ocp.args.Composite(
            model=Save(state["params"], transform=safejax.cast("bfloat16")),
            optimizer=Save(state["optimizer"], checksum=True),
            config=ocp.args.JsonSave({"width": 4}),
        )
        manager.save(5, args=args)
        manager.wait_until_finished()
        like = jax.tree.map(jnp.zeros_like, state["optimizer"])
        found = manager.restore(
            5,
            args=ocp.args.Composite(
                model=Restore(transform=safejax.cast("float32")),
                optimizer=Restore(like, verify=True),
                config=ocp.args.JsonRestore(),
            ),
        )
        everything = manager.restore(5)
    assert found.config == everything.config == {"width": 4}
    assert_trees_identical(found.optimizer, state["optimizer"])
    assert everything.model["w"].dtype == jnp.bfloat16
    expected = state["params"]["w"].astype(jnp.bfloat16).astype(jnp.float32)
    assert_same_bits(found.model["w"], expected)


def test_a_set_of_files(steps: Path) -> None:
    params = state_at(1)["params"]
    with managed(steps) as manager:
        manager.save(0, args=Save(params, max_shard_bytes=100))
        manager.wait_until_finished()
        assert_trees_identical(manager.restore(0), params)
    assert safetensors_in(steps / "0" / "default") == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert os.listdir(steps) == ["0"]


def test_without_a_manager_and_in_the_foreground(tmp_path: Path) -> None:
    state = state_at(1)
    with ocp.AsyncCheckpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "a", args=Save(state))
        checkpointer.wait_until_finished()
        assert_trees_identical(checkpointer.restore(tmp_path / "a")["params"], state["params"])
    with ocp.Checkpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "b", state)
        assert_trees_identical(checkpointer.restore(tmp_path / "b", args=Restore(state)), state)
        assert checkpointer.metadata(tmp_path / "b") is not None


def test_the_best_steps_are_kept(steps: Path) -> None:
    options = {"best_fn": lambda metrics: metrics["loss"], "best_mode": "min", "max_to_keep": 2}
    with managed(steps, save_interval_steps=2, **options) as manager:
        for step in range(8):
            manager.save(step, args=Save({"step": step}), metrics={"loss": float(step * 7 % 8)})
        manager.wait_until_finished()
        assert manager.best_step() == 0
        assert manager.all_steps() == [0, 6]


def test_steps_of_orbax_are_restored_too(steps: Path) -> None:
    """A program that changes from Orbax's files to ours goes on from its last step."""
    state = state_at(4)
    with managed(steps) as manager:
        manager.save(4, args=ocp.args.StandardSave(state))
    with managed(steps) as manager:
        loaded = manager.restore(4, args=Restore(state))
        manager.save(5, args=Save(loaded))
        manager.wait_until_finished()
        again = manager.restore(5, args=Restore(state))
    assert is_unread(loaded["params"]["w"])
    for tree in (loaded, again):
        assert_trees_identical(tree, state)


# ---- errors


def test_what_does_not_match_is_one_report(steps: Path) -> None:
    state = state_at(1)
    with managed(steps) as manager:
        manager.save(1, args=Save(state["params"]))
        manager.wait_until_finished()
        like = {"w": jnp.zeros((8, 5)), "head": jnp.zeros(3)}
        with pytest.raises(
            safejax.MismatchError, match=r"(?s)head.*float32\[8,5\]|float32\[8,5\].*head"
        ):
            manager.restore(1, args=Restore(like))
        like = {"w": state["params"]["w"], "head": jnp.zeros(3)}
        with pytest.warns(safejax.PartialLoadWarning, match="head"):
            loaded = manager.restore(1, args=Restore(like, strict=False))
    assert_trees_identical(loaded, like)


def test_errors_of_the_call_are_raised_by_it(steps: Path) -> None:
    with managed(steps) as manager:
        with pytest.raises(safejax.LeafError, match="'f'"):
            manager.save(1, args=Save({"f": object()}))
        # Orbax goes on with the folder meanwhile; closed at once, it would wait for it for minutes.
        manager.save(2, args=Save(state_at(2)))
        manager.wait_until_finished()
        assert manager.all_steps() == [2]


def test_a_save_that_fails_leaves_no_step(steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, at the first flush of the file in the background."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with managed(steps) as manager:
        manager.save(1, args=Save(state_at(1)))
        manager.wait_until_finished()
        with monkeypatch.context() as patch:
            # A file system that is full cannot be made without the rights of root.
            patch.setattr(os, "fsync", full)
            manager.save(2, args=Save(state_at(2)))
            with pytest.raises(OSError, match=r"model\.safetensors"):
                manager.wait_until_finished()
        assert manager.all_steps() == [1]
    with managed(steps) as manager:
        assert manager.latest_step() == 1


# ---- processes


def sharding_of_all(spec: P) -> NamedSharding:
    mesh = Mesh(np.array(devices_together()), ("x",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, spec)


def save_steps(process: int, folder: Path) -> list[Any]:
    """Save steps of an array over both processes; what is there, and errors of one of them."""
    values = np.arange(64, dtype=np.float32).reshape(16, 4)
    rows = sharding_of_all(P("x"))
    with managed(folder, max_to_keep=2) as manager:
        for step in range(3):
            array = jax.make_array_from_callback(
                values.shape, rows, lambda index, now=values + step: now[index]
            )
            args = ocp.args.Composite(
                state=Save({"w": array, "step": step}, checksum=True),
                host=Save({"same": np.full(3, step)}),
            )
            manager.save(step, args=args)
            array.delete()
        manager.wait_until_finished()
        columns = sharding_of_all(P(None, "x"))
        loaded = manager.restore(2).state
        again = manager.restore(
            2, args=ocp.args.Composite(state=Restore(sharding=columns, verify=True))
        ).state
        whole = multihost_utils.process_allgather(again["w"], tiled=True)
        other = {
            "w": jax.device_put(np.zeros(process + 3), jax.local_devices()[0]),
            "v": again["w"],
        }
        error = raised(lambda: manager.save(3, args=ocp.args.Composite(state=Save(other))))
        multihost_utils.sync_global_devices("after")
        steps = list(manager.all_steps())
    same = np.array_equal(whole, values + 2) and int(loaded["step"]) == 2
    return [steps, bool(same), error[0]]


def test_two_processes_write_one_file_each_its_part(pair: Together, tmp_path: Path) -> None:
    assert pair.run(save_steps, tmp_path / "steps") == [[[1, 2], True, "ProcessError"]] * 2
    path = tmp_path / "steps" / "2"
    expected = np.arange(64, dtype=np.float32).reshape(16, 4) + 2
    assert (path / "state" / "model.safetensors").read_bytes() == safejax.serialize(
        {"w": expected, "step": 2}, checksum=True
    )
    assert np.array_equal(np.asarray(safejax.load(path / "host")["same"]), np.full(3, 2))
