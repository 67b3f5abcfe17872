"""Objax: programs of safejax 0.5, kinds, shared variables, references, and assignment."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import objax
import pytest
import safetensors.numpy

import safejax
from safejax.objax import deserialize, deserialize_with_assignment, serialize

HAS_CHECKED_ASSIGN = hasattr(jax.sharding, "PmapSharding")
"""The `assign(x)` and the `Jit` of objax need functions that JAX 0.10 removed."""
needs_checked_assign = pytest.mark.skipif(
    not HAS_CHECKED_ASSIGN, reason="objax's own assign and Jit fail on JAX 0.10"
)

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


class Net(objax.Module):
    """A model with a layer that has two names, statistics, and random state."""

    def __init__(self) -> None:
        self.layers = objax.ModuleList([objax.nn.Linear(3, 3), objax.nn.BatchNorm0D(3)])
        self.tied = self.layers[0]
        self.noise = objax.random.Generator(3)

    def __call__(self, x: Any, training: bool = False) -> Any:
        x = self.layers[1](self.layers[0](x), training=training)
        return self.tied(x) + objax.random.normal(x.shape, generator=self.noise)


def make(k: float = 1.0) -> Net:
    """A model whose values are `k` times those of another one."""
    model = Net()
    model.noise()  # Its random state exists once the first number has been drawn.
    rng = np.random.default_rng(0)
    for name, variable in model.vars().items():
        if isinstance(variable, objax.RandomState):
            variable.assign(jax.random.PRNGKey(int(k)), check=False)
        elif "tied" not in name:
            value = k * rng.uniform(0.5, 1.5, variable.shape).astype(np.float32)
            variable.assign(jnp.asarray(value), check=False)
    return model


def bits(variables: Any) -> dict[str, bytes]:
    return {name: np.asarray(variables[name].value).tobytes() for name in variables.keys()}  # noqa: SIM118


def kinds(variables: Any) -> dict[str, type]:
    return {name: type(variables[name]) for name in variables.keys()}  # noqa: SIM118


def written_by_safejax_0_5(variables: Any, *, with_kinds: bool = True) -> bytes:
    """The file that safejax 0.5 wrote: each name has its own tensor, with its kind as a suffix."""
    return safetensors.numpy.save(
        {
            f"{name}::{type(variable).__name__}" if with_kinds else name: np.asarray(variable.value)
            for name, variable in variables.items()
        }
    )


# ---- the programs in the README of safejax 0.5


@needs_checked_assign
@pytest.mark.parametrize("in_memory", [True, False])
def test_program_with_objax_own_assign(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = make().vars()
    model = make(2.0)

    if in_memory:
        encoded_bytes = serialize(params=params)
        decoded_params = deserialize(encoded_bytes)
    else:
        encoded_bytes = serialize(params=params, filename="./params.safetensors")
        decoded_params = deserialize("./params.safetensors")

    for key, value in decoded_params.items():
        if key in model.vars():
            model.vars()[key].assign(value.value)

    assert bits(model.vars()) == bits(params)
    assert model(X).tobytes() == make()(X).tobytes()


def test_program_with_assignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source, model = make(), make(2.0)

    params = source.vars()

    encoded_bytes = serialize(params=params, filename="./params.safetensors")
    with safejax.observe_reads() as log:
        deserialize_with_assignment(filename="./params.safetensors", model_vars=model.vars())
        assert log.nbytes == 0

    assert encoded_bytes == "./params.safetensors"
    assert all(isinstance(value, safejax.LazyArray) for value in model.vars().tensors())
    assert bits(model.vars()) == bits(params)
    # Random numbers as well.
    assert model(X).tobytes() == source(X).tobytes()
    assert bits(model.vars()) == bits(source.vars())


def test_files_of_safejax_0_5() -> None:
    source = make()
    data = written_by_safejax_0_5(source.vars())
    assert b"(Net).layers(ModuleList)[0](Linear).w::TrainVar" in data
    decoded = deserialize(data)
    assert type(decoded) is objax.VarCollection
    assert bits(decoded) == bits(source.vars())
    assert kinds(decoded) == kinds(source.vars())
    model = make(2.0)
    deserialize_with_assignment(data, model.vars())
    assert bits(model.vars()) == bits(source.vars())


def test_files_without_kinds() -> None:
    """The core of safejax 0.5 wrote such files, and other frameworks do."""
    source, model = make(), make(2.0)
    data = written_by_safejax_0_5(source.vars(), with_kinds=False)
    deserialize_with_assignment(data, model.vars())
    assert bits(model.vars()) == bits(source.vars())
    assert kinds(deserialize(data, like=model.vars())) == kinds(source.vars())
    with pytest.raises(safejax.LeafError, match=r"expected a name that ends in a kind"):
        deserialize(data)


# ---- the collection


def test_names_kinds_and_order_are_kept() -> None:
    variables = make().vars()
    data = serialize(variables)
    stored = set(safejax.decode(data))
    assert "(Net).layers(ModuleList)[0](Linear).w::TrainVar" in stored
    assert set(safetensors.numpy.load(data)) == stored
    decoded = deserialize(data)
    assert type(decoded) is objax.VarCollection
    assert list(decoded.keys()) == list(variables.keys())
    assert kinds(decoded) == kinds(variables)
    assert {kind.__name__ for kind in kinds(decoded).values()} == {
        "TrainVar",
        "StateVar",
        "RandomState",
    }
    assert bits(decoded) == bits(variables)


def test_load_without_the_adapter_returns_the_collection_too() -> None:
    variables = make().vars()
    decoded = safejax.deserialize(serialize(variables))
    assert type(decoded) is objax.VarCollection
    assert (bits(decoded), kinds(decoded)) == (bits(variables), kinds(variables))
    assert len(list(decoded)) == len(list(variables))


def test_the_same_variables_give_the_same_bytes() -> None:
    assert serialize(make().vars()) == serialize(make().vars())


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"a.b": objax.TrainVar(jnp.ones(2)), "a": objax.StateVar(jnp.zeros(3))},
        {"": objax.TrainVar(jnp.ones(2))},
        {"a::b": objax.TrainVar(jnp.ones(2)), "a": objax.TrainVar(jnp.zeros(2))},
        {
            "n": objax.StateVar(3),
            "m": objax.StateVar(3),
            "e": objax.StateVar(jnp.zeros((0, 2))),
            "f": objax.StateVar(jnp.zeros((0, 2))),
        },
        {"z": objax.StateVar(jnp.arange(3)), "a": objax.StateVar(jnp.array(2, jnp.bfloat16))},
    ],
)
def test_odd_collections(variables: dict[str, Any]) -> None:
    collection = objax.VarCollection(variables)
    decoded = deserialize(serialize(collection))
    assert list(decoded.keys()) == list(variables)
    assert (bits(decoded), kinds(decoded)) == (bits(collection), kinds(collection))
    assert len({id(variable) for variable in decoded.values()}) == len(variables)


# ---- shared variables, references, random state


def test_shared_variables_are_stored_once_and_shared_again() -> None:
    model = make()
    variables = model.vars()
    data = serialize(variables)
    shared = "(Net).layers(ModuleList)[0](Linear).w", "(Net).tied(Linear).w"
    assert variables[shared[0]] is variables[shared[1]]
    assert len(safejax.decode(data)) == len(list(variables)) == len(variables) - 2
    decoded = deserialize(data)
    assert decoded[shared[0]] is decoded[shared[1]]
    decoded[shared[0]].assign(jnp.zeros((3, 3)), check=False)
    assert not np.asarray(decoded[shared[1]].value).any()
    # The iterator therefore visits each once, which the optimizers of objax need.
    assert [type(v) for v in decoded] == [type(v) for v in variables]


def test_references_refer_to_their_variables() -> None:
    model = make()
    both = model.vars() + objax.optimizer.Momentum(model.vars()).vars("optimizer")
    data = serialize(both)
    assert not any(name.endswith("TrainRef") for name in safejax.decode(data))
    decoded = deserialize(data)
    assert (bits(decoded), kinds(decoded)) == (bits(both), kinds(both))
    references = {
        name: variable for name, variable in both.items() if isinstance(variable, objax.TrainRef)
    }
    assert len(references) == 4
    for name, reference in references.items():
        (target,) = {other for other, variable in both.items() if variable is reference.ref} - {
            "(Net).tied(Linear).w",
            "(Net).tied(Linear).b",
        }
        assert decoded[name].ref is decoded[target]
    # An update through the reference updates the variable.
    decoded[name].ref.assign(jnp.full(references[name].shape, 7.0), check=False)
    assert (np.asarray(decoded[target].value) == 7).all()


def test_references_without_their_variables() -> None:
    optimizer = objax.optimizer.Momentum(make().vars())
    decoded = deserialize(serialize(optimizer.vars()))
    assert (bits(decoded), kinds(decoded)) == (bits(optimizer.vars()), kinds(optimizer.vars()))
    other = make(2.0)
    deserialize_with_assignment(
        serialize(optimizer.vars()), objax.optimizer.Momentum(other.vars()).vars()
    )
    trained = [name for name, kind in kinds(other.vars()).items() if kind is objax.TrainVar]
    assert [bits(other.vars())[name] for name in trained] == [
        bits(make().vars())[name] for name in trained
    ]


def test_random_state_continues() -> None:
    generator = objax.random.Generator(5)
    objax.random.normal((2,), generator=generator)
    decoded = deserialize(serialize(generator.vars()))
    (state,) = decoded.values()
    assert type(state) is objax.RandomState
    # objax.Vectorize reduces variables; the mean of keys is no key.
    key = np.asarray(state.value).tobytes()
    state.reduce(jnp.stack([state.value, state.value + 2]))
    assert np.asarray(state.value).tobytes() == key
    expected = objax.random.normal((2,), generator=generator)
    state.split(1)
    assert np.asarray(state.value).tobytes() == np.asarray(generator.key.value).tobytes()
    fresh = objax.random.Generator(6)
    fresh()
    generator = objax.random.Generator(5)
    objax.random.normal((2,), generator=generator)
    deserialize_with_assignment(serialize(generator.vars()), fresh.vars())
    assert objax.random.normal((2,), generator=fresh).tobytes() == expected.tobytes()


def test_a_transform_sees_every_name_and_keeps_sharing() -> None:
    variables = make().vars()
    both = variables + objax.optimizer.Momentum(variables).vars("optimizer")
    transform = safejax.chain(safejax.rename({"(Net)*": "(Model)*"}), safejax.cast("bfloat16"))
    decoded = deserialize(serialize(both), transform=transform)
    names = {name.replace("(Net)", "(Model)") for name in both.keys()}  # noqa: SIM118
    assert set(decoded.keys()) == names
    first = decoded["(Model).layers(ModuleList)[0](Linear).w"]
    assert first is decoded["(Model).tied(Linear).w"]
    assert first.dtype == jnp.bfloat16
    references = [variable for variable in decoded.values() if isinstance(variable, objax.TrainRef)]
    assert len(references) == 4
    trained = {id(v) for v in decoded.values() if isinstance(v, objax.TrainVar)}
    assert {id(reference.ref) for reference in references} == trained


# ---- assignment: all or nothing


def test_one_report_and_nothing_is_assigned() -> None:
    model = make(2.0)
    before = {name: variable.value for name, variable in model.vars().items()}
    stored = dict(safejax.decode(serialize(make().vars())))
    prefix = "(Net).layers(ModuleList)"
    stored[f"{prefix}[0](Linear).b::TrainVar"] = np.ones(4, np.float32)
    stored[f"{prefix}[1](BatchNorm0D).beta::StateVar"] = stored.pop(
        f"{prefix}[1](BatchNorm0D).beta::TrainVar"
    )
    stored[f"{prefix}[1](BatchNorm0D).gamma::TrainVar"] = np.ones((1, 3), np.int32)
    del stored[f"{prefix}[1](BatchNorm0D).running_mean::StateVar"]
    stored["foreign::TrainVar"] = np.ones(2, np.float32)
    with pytest.raises(safejax.MismatchError) as report:
        deserialize_with_assignment(safejax.encode(safejax.Leaves(stored)), model.vars())
    lines = str(report.value).splitlines()
    for part in (
        f"mismatched '{prefix}[0](Linear).b::TrainVar': expected float32[3]",
        f"missing '{prefix}[1](BatchNorm0D).beta::TrainVar'",
        f"unexpected '{prefix}[1](BatchNorm0D).beta::StateVar'",
        f"mismatched '{prefix}[1](BatchNorm0D).gamma::TrainVar': expected float32[1,3] from like, "
        "got int32[1,3]",
        f"missing '{prefix}[1](BatchNorm0D).running_mean::StateVar'",
        "unexpected 'foreign::TrainVar'",
    ):
        assert any(part in line for line in lines), part
    for name, variable in model.vars().items():
        assert variable.value is before[name]


def test_strict_false() -> None:
    model = make(2.0)
    own = bits(model.vars())
    stored = safejax.decode(serialize(make().vars()))
    name = "(Net).layers(ModuleList)[1](BatchNorm0D).beta::TrainVar"
    data = safejax.encode(safejax.Leaves({name: stored[name], "foreign::TrainVar": X}))
    with pytest.warns(safejax.PartialLoadWarning, match="foreign::TrainVar"):
        deserialize_with_assignment(data, model.vars(), strict=False)
    after = bits(model.vars())
    changed = {name for name in own if own[name] != after[name]}
    assert changed == {"(Net).layers(ModuleList)[1](BatchNorm0D).beta"}
    assert after[changed.pop()] == np.asarray(stored[name]).tobytes()


def test_two_values_for_one_variable() -> None:
    """Files of safejax 0.5 have a shared variable under each of its names, with one value."""
    model = make(2.0)
    own = bits(model.vars())
    stored = safetensors.numpy.load(written_by_safejax_0_5(make().vars()))
    names = "(Net).layers(ModuleList)[0](Linear).w::TrainVar", "(Net).tied(Linear).w::TrainVar"
    stored[names[1]] = stored[names[1]] + 1
    with pytest.raises(safejax.MismatchError, match="one value for names that share") as said:
        deserialize_with_assignment(safetensors.numpy.save(stored), model.vars())
    assert all(repr(name) in str(said.value) for name in names)
    assert bits(model.vars()) == own
    # One of its names is enough.
    del stored[names[1]]
    deserialize_with_assignment(safetensors.numpy.save(stored), model.vars())
    assert bits(model.vars()) == bits(make().vars())


def test_two_values_that_a_transform_made_for_one_variable() -> None:
    variable = objax.TrainVar(jnp.zeros(2))
    model = objax.VarCollection(a=variable, b=variable)
    two = serialize(
        objax.VarCollection(a=objax.TrainVar(jnp.ones(2)), b=objax.TrainVar(-jnp.ones(2)))
    )
    double = safejax.step(lambda leaves: leaves.map(lambda name, leaf: leaf * 2))
    with pytest.raises(safejax.MismatchError, match="one value for names that share a variable"):
        deserialize_with_assignment(two, model, transform=double)
    absolute = safejax.step(lambda leaves: leaves.map(lambda name, leaf: abs(leaf)))
    deserialize_with_assignment(two, model, transform=absolute)
    assert variable.value.tolist() == [1, 1]


@pytest.mark.parametrize("new", ["b", "c"])
def test_other_names_of_a_renamed_variable_are_not_written(new: str) -> None:
    variable = objax.TrainVar(jnp.ones(2))
    leaves = safejax.decode(serialize(objax.VarCollection(a=variable, b=variable)))
    renamed = safejax.rename({"a::TrainVar": f"{new}::TrainVar"})(leaves)
    assert list(deserialize(safejax.encode(renamed)).keys()) == [new]


def test_like_decides_which_variables_are_shared() -> None:
    plain = objax.VarCollection(a=objax.TrainVar(jnp.ones(2)), b=objax.TrainVar(jnp.ones(2)))
    variable = objax.TrainVar(jnp.ones(2))
    shared = objax.VarCollection(a=variable, b=variable)
    decoded = deserialize(serialize(shared), like=plain)
    assert decoded["a"] is not decoded["b"]
    decoded = deserialize(serialize(plain), like=shared)
    assert decoded["a"] is decoded["b"]


# ---- errors


def test_a_name_of_two_kinds() -> None:
    data = safetensors.numpy.save({"w::TrainVar": X, "w::StateVar": X})
    with pytest.raises(safejax.LeafError, match="expected one variable for a name"):
        deserialize(data)


def test_a_kind_of_its_own() -> None:
    class Frozen(objax.TrainVar):
        pass

    with pytest.raises(safejax.LeafError, match=r"leaf 'w'.*got .*Frozen"):
        serialize(objax.VarCollection(w=Frozen(jnp.ones(2))))


@pytest.mark.parametrize("wrong", [{"w": X}, X, None, objax.nn.Linear])
def test_anything_but_a_collection_is_refused(wrong: Any) -> None:
    with pytest.raises(safejax.LeafError, match=r"expected an objax.VarCollection, for example"):
        serialize(wrong)


# ---- objax.Jit, which works only on old versions of JAX


@needs_checked_assign
def test_objax_jit_on_loaded_variables() -> None:
    source, model = make(), make(2.0)
    deserialize_with_assignment(serialize(source.vars()), model.vars())
    jitted = [objax.Jit(lambda x, m=m: m(x, training=True), m.vars()) for m in (source, model)]
    for _ in range(2):
        assert jitted[0](X).tobytes() == jitted[1](X).tobytes()
    assert bits(source.vars()) == bits(model.vars()) != bits(make().vars())
