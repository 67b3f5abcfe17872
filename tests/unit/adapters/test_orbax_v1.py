"""Orbax's experimental interface: our handler in a registry of it. Its names change."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp
import pytest

import safejax
from safejax.orbax import Restore, Save
from safejax.orbax_v1 import context
from safejax.testing import assert_trees_identical
from tests.support.leaves import is_unread


def state_at(step: int) -> dict[str, Any]:
    params = {"w": jnp.arange(12.0).reshape(3, 4) * step}
    return {"params": params, "moments": optax.adam(1e-3).init(params), "step": step}


def test_checkpointables_by_name(tmp_path: Path) -> None:
    state, path = state_at(3), tmp_path / "it"
    with context("state"):
        ocp.save_checkpointables(path, {"state": state, "config": {"width": 4}})
        like = jax.tree.map(jnp.zeros_like, state)
        found = ocp.load_checkpointables(path, {"state": like, "config": None})
        again = ocp.load_checkpointables(path)
    assert is_unread(found["state"]["params"]["w"])
    assert_trees_identical(found["state"], {**state, "step": jnp.asarray(3)})
    assert found["config"] == {"width": 4}
    assert np.array_equal(np.asarray(again["state"]["params"]["w"]), state["params"]["w"])
    assert (path / "state" / "model.safetensors").read_bytes() == safejax.serialize(state)


def test_how_it_is_saved_and_loaded(tmp_path: Path) -> None:
    state = state_at(2)["params"]
    half = safejax.cast("bfloat16")
    with context():
        ocp.save_checkpointables(tmp_path / "it", {"p": Save(state, transform=half, checksum=True)})
        args = Restore(transform=safejax.cast("float32"), verify=True)
        found = ocp.load_checkpointables(tmp_path / "it", {"p": args})
    assert_trees_identical(found["p"], jax.tree.map(lambda x: jnp.asarray(x), state))


def test_steps_of_its_checkpointer(tmp_path: Path) -> None:
    with context("state"), ocp.training.Checkpointer(tmp_path / "steps") as checkpointer:
        for step in range(3):
            params = {"w": jnp.full(4, step, jnp.int32)}
            saved = checkpointer.save_checkpointables_async(step, {"state": params})
            params["w"].delete()
            saved.result()
        found = checkpointer.load_checkpointables(2)
        described = checkpointer.checkpointables_metadata(2).metadata
    assert np.array_equal(np.asarray(found["state"]["w"]), np.full(4, 2))
    assert described["state"]["w"] == jax.ShapeDtypeStruct((4,), jnp.int32)


def test_errors_are_those_of_safejax(tmp_path: Path) -> None:
    with context("state"):
        ocp.save_checkpointables(tmp_path / "it", {"state": {"w": jnp.ones(2)}})
        with pytest.raises(safejax.MismatchError, match=r"float32\[3\]"):
            ocp.load_checkpointables(tmp_path / "it", {"state": {"w": jnp.ones(3)}})
