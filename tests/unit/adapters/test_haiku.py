"""Haiku: unchanged programs of safejax 0.5, names with slashes, state, old files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haiku.data_structures import to_immutable_dict

import safejax
from safejax.haiku import deserialize, serialize
from safejax.testing import assert_trees_identical
from tests.support.files import written_by_safejax_0_5
from tests.support.leaves import bits

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


MODEL = hk.transform_with_state(
    lambda x, training=False: hk.nets.MLP([6, 2])(
        hk.BatchNorm(True, True, 0.9)(hk.Linear(8)(x), training)
    )
)
STATELESS = hk.transform(lambda x: hk.nets.MLP([6, 2])(x))


@pytest.fixture(scope="module")
def params_and_state() -> tuple[Any, Any]:
    return jax.jit(MODEL.init, static_argnums=2)(jax.random.key(0), X, True)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(STATELESS.init)(jax.random.key(0), X)


# ---- the programs in the README of safejax 0.5


def test_program_with_parameters_only(params: Any) -> None:
    model = STATELESS

    encoded_bytes = serialize(params)
    decoded_params = deserialize(encoded_bytes)

    assert bits(model.apply(decoded_params, None, X)) == bits(model.apply(params, None, X))


def test_program_with_parameters_and_state_in_one_file(
    params_and_state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = MODEL

    params, state = params_and_state
    params_state = {"params": params, "state": state}

    encoded_bytes = serialize(params_state)
    decoded_params_state = deserialize(encoded_bytes)

    assert decoded_params_state.keys() == {"params", "state"}
    expected = bits(model.apply(params, state, None, X))
    after = model.apply(decoded_params_state["params"], decoded_params_state["state"], None, X)
    assert bits(after) == expected

    serialize(params_state, filename="./params.safetensors")
    from_file = deserialize("./params.safetensors")
    assert bits(model.apply(from_file["params"], from_file["state"], None, X)) == expected


def test_program_with_parameters_and_state_stored_separately(params_and_state: Any) -> None:
    model = MODEL

    params, state = params_and_state

    encoded_bytes = serialize(params)
    decoded_params = deserialize(encoded_bytes)

    encoded_bytes = serialize(state)
    decoded_state = deserialize(encoded_bytes)

    after = model.apply(decoded_params, decoded_state, None, X)
    assert bits(after) == bits(model.apply(params, state, None, X))


def test_file_of_safejax_0_5(params_and_state: Any) -> None:
    params, state = params_and_state
    for tree in (params, state, {"params": params, "state": state}):
        decoded = deserialize(written_by_safejax_0_5(tree))
        assert type(decoded) is dict
        assert jax.tree.structure(decoded) == jax.tree.structure(tree)
        assert bits(decoded) == bits(tree)


# ---- containers and names


def test_module_names_keep_their_slashes_and_tildes(params_and_state: Any) -> None:
    params, state = params_and_state
    names = {"batch_norm/~/mean_ema.hidden", "batch_norm/~/var_ema.counter"}
    assert names < set(safejax.decode(serialize(state)))
    assert "mlp/~/linear_0.w" in safejax.decode(serialize(params))
    decoded = deserialize(serialize({"params": params, "state": state}))
    assert set(decoded["params"]) == set(params)
    assert set(decoded["state"]) == set(state) > {"batch_norm/~/mean_ema"}
    assert jax.tree.structure(decoded["params"]) == jax.tree.structure(params)
    counter = decoded["state"]["batch_norm/~/mean_ema"]["counter"]
    assert counter.dtype == np.int32


@pytest.mark.parametrize(
    "tree",
    [
        hk.data_structures.to_immutable_dict({"a/~/b": {"w": X}}),
        {"params": hk.data_structures.to_immutable_dict({"a": {"w": X}}), "state": {}},
        {"params": {"a": {"w": X}}, "state": {}},
        {"a.b": {"w.c": X}, "a": {"b.w": X}},
        {},
    ],
)
def test_the_container_that_was_saved_comes_back(tree: Any) -> None:
    decoded = deserialize(serialize(tree))
    assert type(decoded) is type(tree)
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)
    assert bits(decoded) == bits(tree)


def test_immutable_dicts_keep_their_names(params: Any) -> None:
    """JAX knows their leaves only by their positions."""
    immutable = hk.data_structures.to_immutable_dict(params)
    assert set(safejax.decode(serialize(immutable))) == set(safejax.decode(serialize(params)))
    assert serialize({"params": immutable}) != serialize({"params": params})
    for like in (immutable, jax.eval_shape(lambda: immutable)):
        decoded = deserialize(serialize(params), like=like)
        assert type(decoded) is type(immutable)
        assert jax.tree.structure(decoded) == jax.tree.structure(immutable)
        assert bits(decoded) == bits(params)
        pair = deserialize(serialize((params, None)), like=(like, None))
        assert (type(pair[0]), pair[1]) == (type(immutable), None)
    assert type(deserialize(serialize(immutable), like=params)) is dict


def test_under_jit_nothing_is_read_before_it_runs(params_and_state: Any) -> None:
    params, state = params_and_state
    both = deserialize(serialize({"params": params, "state": state}))
    run = jax.jit(lambda params, state, x: MODEL.apply(params, state, None, x))
    with safejax.observe_reads() as log:
        lowered = run.lower(both["params"], both["state"], X)
        assert log.nbytes == 0
        after = run(both["params"], both["state"], X)
        assert log.nbytes == sum(leaf.nbytes for leaf in jax.tree.leaves((params, state)))
    assert lowered.as_text() == run.lower(params, state, X).as_text()
    assert bits(after) == bits(run(params, state, X))


def test_partition_and_merge_accept_loaded_parameters(params: Any) -> None:
    """Users of Haiku do this to fine-tune; its functions look at modules and names."""
    decoded = deserialize(serialize(params))
    head, body = hk.data_structures.partition(
        lambda module, name, value: module == "mlp/~/linear_1", decoded
    )
    assert set(head) == {"mlp/~/linear_1"}
    merged = hk.data_structures.merge(head, body)
    assert not any(leaf.is_placed for leaf in jax.tree.leaves(merged))
    assert bits(merged) == bits(params)
    assert hk.data_structures.tree_size(decoded) == hk.data_structures.tree_size(params)


def test_like_from_eval_shape(params_and_state: Any) -> None:
    like = jax.eval_shape(lambda key: MODEL.init(key, X, True), jax.random.key(0))
    decoded = deserialize(serialize(params_and_state), like=like)
    assert type(decoded) is tuple
    assert bits(decoded) == bits(params_and_state)
    wider = jax.eval_shape(lambda key: MODEL.init(key, np.ones((3, 5)), True), jax.random.key(0))
    with pytest.raises(safejax.MismatchError, match=r"'0\.linear\.w': expected float32\[5,8\]"):
        deserialize(serialize(params_and_state), like=wider)


def test_an_immutable_map_is_stored_by_its_keys_by_safejax_too() -> None:
    """JAX sees no keys of it; it comes back the same by either way, with like and without (S10)."""
    params = to_immutable_dict(
        {"b/~/x": {"w": jnp.ones(1), "v": jnp.zeros(2)}, "a": {"w": jnp.ones(3)},
         "c.d": {"q.r": jnp.ones(1)}}
    )  # fmt: skip
    assert list(safejax.flatten(params)) == ["a.w", "b/~/x.v", "b/~/x.w", "c.d.q.r"]
    assert safejax.unflatten(safejax.flatten(params)) == params
    like = jax.tree.map(jnp.zeros_like, params)
    for data in (safejax.serialize(params), serialize(params)):
        for load in (safejax.deserialize, deserialize):
            for options in ({}, {"like": like}):
                assert_trees_identical(load(data, **options), params)
    inner = safejax.deserialize(safejax.serialize({"params": [params]}))
    assert_trees_identical(inner, {"params": [params]})
    moved = safejax.serialize(params, transform=safejax.prefix("net"))
    assert_trees_identical(safejax.deserialize(moved), {"net": params})


def test_a_mapping_that_has_other_leaves_than_jax_sees_is_named_by_position() -> None:
    @jax.tree_util.register_pytree_node_class
    class Doubled(Mapping[str, Any]):
        def __init__(self, w: Any) -> None:
            self.w = w

        def __getitem__(self, key: str) -> Any:
            return {"w": self.w * 2}[key]

        def __iter__(self) -> Iterator[str]:
            return iter(["w"])

        def __len__(self) -> int:
            return 1

        def tree_flatten(self) -> tuple[tuple[Any], None]:
            return (self.w,), None

        @classmethod
        def tree_unflatten(cls, aux: None, children: tuple[Any]) -> "Doubled":
            return cls(*children)

    tree = Doubled(jnp.ones(3))
    assert list(safejax.flatten(tree)) == ["0"]
    loaded = safejax.deserialize(safejax.serialize(tree), like=tree)
    assert loaded.w.tolist() == [1, 1, 1]
