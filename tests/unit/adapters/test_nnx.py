"""NNX: modules, states and optimizers are saved and loaded, in parts, abstract or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from flax.core.spmd import logical_axis_rules
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax.flax import deserialize, load_into, serialize
from safejax.nnx import values_of
from tests.support.leaves import host_bytes, is_unread

X = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


class Net(nnx.Module):
    """A module with lists, statistics, random numbers, and a layer with two names."""

    def __init__(self, rngs: nnx.Rngs, axes: tuple[str | None, ...] | None = None) -> None:
        initialize = nnx.initializers.lecun_normal()
        if axes is not None:
            initialize = nnx.with_partitioning(initialize, axes)
        self.layers = nnx.List(
            [nnx.Linear(8, 8, rngs=rngs, kernel_init=initialize) for _ in range(2)]
        )
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.tied = self.layers[0]

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in (*self.layers, self.tied):
            x = self.dropout(self.norm(layer(x)))
        return x


def make(seed: int = 0, axes: tuple[str | None, ...] | None = None) -> Net:
    return Net(nnx.Rngs(seed, noise=seed + 1), axes)


@pytest.fixture(scope="module")
def trained() -> Net:
    """A model whose statistics and counters are no longer the initial ones."""
    model = make()
    model(X)
    return model


@pytest.fixture(scope="module")
def data(trained: Net) -> bytes:
    return serialize(trained)


NAMES = {
    *(f"layers.{i}.{name}" for i in range(2) for name in ("bias", "kernel")),
    *(f"norm.{name}" for name in ("bias", "scale", "mean", "var")),
    *(f"dropout.rngs.{name}" for name in ("count", "key")),
}


def values(graph: Any) -> dict[tuple[Any, ...], Any]:
    pure = nnx.to_pure_dict(graph if isinstance(graph, nnx.State) else nnx.state(graph))
    leaves, _ = jax.tree.flatten_with_path(pure)
    return {tuple(key.key for key in path): leaf for path, leaf in leaves}


def bits(graph: Any) -> dict[tuple[Any, ...], tuple[str, bytes]]:
    """The bits of each value, keys included, by path, whose integers are not strings."""
    return {path: (str(leaf.dtype), host_bytes(leaf)) for path, leaf in values(graph).items()}


def kinds(graph: Any) -> dict[tuple[Any, ...], type]:
    return {path: type(variable) for path, variable in nnx.to_flat_state(nnx.state(graph))}


def unread(graph: Any) -> bool:
    return all(map(is_unread, values(graph).values()))


# ---- stored names


def test_variables_are_stored_under_their_paths_and_shared_ones_once(data: bytes) -> None:
    assert set(safejax.decode(data)) == NAMES
    assert set(safetensors.numpy.load(data)) == NAMES


def test_a_state_is_stored_as_its_module_is(trained: Net, data: bytes) -> None:
    assert serialize(nnx.state(trained)) == data


def test_without_like_a_dict_with_integer_keys_comes_back(trained: Net, data: bytes) -> None:
    decoded = deserialize(data)
    assert type(decoded) is dict
    assert list(decoded["layers"]) == [0, 1]
    leaves, _ = jax.tree.flatten_with_path(decoded)
    assert {
        tuple(key.key for key in path): (str(x.dtype), host_bytes(x)) for path, x in leaves
    } == bits(trained)


# ---- back into a state or a module


LIKES: dict[str, Callable[[], Any]] = {
    "module": lambda: make(1),
    "state": lambda: nnx.state(make(1)),
    "abstract module": lambda: nnx.eval_shape(lambda: make(1)),
    "abstract state": lambda: nnx.state(nnx.eval_shape(lambda: make(1))),
}


@pytest.mark.parametrize("like", LIKES)
def test_like(like: str, trained: Net, data: bytes) -> None:
    expected = LIKES[like]()
    own = None if "abstract" in like else bits(expected)
    with safejax.observe_reads() as log:
        decoded = deserialize(data, like=expected)
        assert unread(decoded)
        assert log.nbytes == 0
    assert type(decoded) is type(expected)
    assert bits(decoded) == bits(trained)
    # like keeps its own values.
    if own is None:
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in values(expected).values())
    else:
        assert bits(expected) == own != bits(trained)


@pytest.mark.parametrize("abstract", [False, True])
def test_load_into(abstract: bool, trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    serialize(trained, filename=path)
    model = nnx.eval_shape(lambda: make(1)) if abstract else make(1)
    with safejax.observe_reads() as log:
        load_into(model, path)
        assert unread(model)
        assert log.nbytes == 0
    assert bits(model) == bits(trained)
    assert kinds(model) == kinds(trained)
    assert {kind.__name__ for kind in kinds(model).values()} == {
        "Param", "BatchStat", "RngCount", "RngKey",
    }  # fmt: skip
    assert model.tied is model.layers[0]
    # The random streams continue where they were.
    twin = deserialize(serialize(trained), like=trained)
    first, second = model(X), model(X)
    assert (host_bytes(first), host_bytes(second)) == (host_bytes(twin(X)), host_bytes(twin(X)))
    assert host_bytes(first) != host_bytes(second)
    assert bits(model) == bits(twin) != bits(trained)


def test_under_nnx_jit_and_grad(trained: Net, data: bytes) -> None:
    model, twin = (deserialize(data, like=trained) for _ in range(2))
    nnx.update(twin, jax.tree.map(safejax.materialize, nnx.state(twin)))
    apply = nnx.jit(lambda model, x: model(x))
    loss = nnx.jit(nnx.grad(lambda model, x: (model(x) ** 2).sum()))
    assert host_bytes(apply(model, X)) == host_bytes(apply(twin, X))
    assert bits(loss(model, X)) == bits(loss(twin, X))
    assert bits(model) == bits(twin)


def test_an_abstract_model_is_filled_without_a_second_copy_of_its_parameters(
    tmp_path: Path,
) -> None:
    """Filling reads nothing; running reads each byte once, and on a CPU copies none."""
    path = tmp_path / "model.safetensors"
    serialize(nnx.Linear(256, 1024, rngs=nnx.Rngs(0)), filename=path)
    before = jax.live_arrays()

    def new() -> list[tuple[int, ...]]:
        """The shapes of the large arrays that were made since then."""
        return [
            array.shape
            for array in jax.live_arrays()
            if array.size >= 1024 and not any(array is other for other in before)
        ]

    with safejax.observe_reads() as log:
        model = nnx.eval_shape(lambda: nnx.Linear(256, 1024, rngs=nnx.Rngs(1)))
        load_into(model, path)
        assert log.nbytes == 0
        assert new() == []
        y = model(jnp.ones((1, 256)))
        assert log.nbytes == 4 * (256 * 1024 + 1024)
    assert sorted(new()) == sorted([(256, 1024), (1024,), y.shape])
    # They are the mapped file itself.
    for leaf in values(model).values():
        assert leaf.placed().unsafe_buffer_pointer() == np.asarray(leaf).ctypes.data


# ---- parts


def test_only_parameters(trained: Net, data: bytes) -> None:
    model = make(1)
    own = bits(model)
    with safejax.observe_reads() as log:
        load_into(model, data, only=nnx.Param)
        assert log.nbytes == 0
    after, source = bits(model), bits(trained)
    params = {path for path, kind in kinds(model).items() if kind is nnx.Param}
    assert len(params) == 6
    assert {path: after[path] for path in params} == {path: source[path] for path in params}
    rest = after.keys() - params
    assert {path: after[path] for path in rest} == {path: own[path] for path in rest}
    assert any(own[path] != source[path] for path in rest)


def test_a_file_of_parameters_only(trained: Net) -> None:
    data = serialize(nnx.state(trained, nnx.Param))
    model = make(1)
    with pytest.raises(safejax.MismatchError, match=r"missing 'norm\.mean'"):
        load_into(model, data)
    load_into(model, data, only=nnx.Param)
    assert bits(nnx.state(model, nnx.Param)) == bits(nnx.state(trained, nnx.Param))
    with pytest.warns(safejax.PartialLoadWarning, match=r"missing.*norm\.mean"):
        load_into(make(2), data, strict=False)


def test_only_some_still_reports_unexpected_leaves(trained: Net) -> None:
    stored = safejax.decode(serialize(trained))
    data = safejax.encode(stored.replace({**stored, "layers.2.kernel": X}))
    with pytest.raises(safejax.MismatchError, match=r"unexpected 'layers\.2\.kernel'"):
        load_into(make(1), data, only=nnx.Param)


def test_only_some_of_an_abstract_model(data: bytes, trained: Net) -> None:
    model = nnx.eval_shape(lambda: make(1))
    load_into(model, data, only=(nnx.Param, nnx.BatchStat))
    rest = nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in values(rest).values())
    load_into(model, data, only=nnx.RngState)
    assert bits(model) == bits(trained)


def test_transforms_are_applied_before_only(trained: Net, data: bytes) -> None:
    # For wanted leaves and for others, names are those after the transform.
    renamed = safejax.rename({"layers.{i}.kernel": "layers.{i}.weight", "norm.mean": "norm.mu"})
    data = safejax.encode(renamed(safejax.decode(data)))
    model = make(1)
    load_into(model, data, only=nnx.Param, transform=renamed.inverse)
    assert bits(nnx.state(model, nnx.Param)) == bits(nnx.state(trained, nnx.Param))


def test_a_mismatch_changes_nothing(data: bytes) -> None:
    class Wider(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List([nnx.Linear(8, 9, rngs=rngs)])
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.head = nnx.Linear(8, 2, rngs=rngs)

    model = Wider(nnx.Rngs(1))
    own = bits(model)
    with pytest.raises(safejax.MismatchError) as report:
        load_into(model, data)
    for line in (
        r"mismatched 'layers.0.kernel': expected float32[8,9] from like, got float32[8,8]",
        r"missing 'head.kernel'",
        r"unexpected 'dropout.rngs.key'",
    ):
        assert line in str(report.value)
    assert bits(model) == own


# ---- shardings named on the variables


@pytest.fixture
def mesh() -> Mesh:
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def abstract(*axes: str | None) -> Net:
    """A model with axis names on its kernels, which Flax would shard as soon as there is a mesh."""
    with flax.config.temp_flip_flag("always_shard_variable", False):
        return nnx.eval_shape(lambda: make(1, axes))


def shardings(graph: Any, name: str) -> set[Any]:
    return {leaf.sharding for path, leaf in values(graph).items() if path[-1] == name}


def test_named_shardings_on_the_mesh_of_the_context(trained: Net, data: bytes, mesh: Mesh) -> None:
    outside = abstract(None, "x")
    with jax.set_mesh(mesh):
        load_into(outside, data)
        within = nnx.eval_shape(lambda: make(1, axes=(None, "x")))
        load_into(within, data)
        concrete = make(1, axes=(None, "x"))
        load_into(concrete, data)
        by_like = deserialize(data, like=nnx.state(abstract(None, "x")))
    for graph in (outside, within, concrete, by_like):
        assert unread(graph)
        assert shardings(graph, "kernel") == {NamedSharding(mesh, P(None, "x"))}
        assert bits(graph) == bits(trained)
    # Variables without axis names go to the default device uncommitted, and follow the others.
    assert not values(outside)["norm", "mean"].committed
    assert nnx.jit(lambda model, x: model(x))(outside, X).shape == X.shape


def test_named_shardings_read_only_their_own_columns(data: bytes, mesh: Mesh) -> None:
    model = abstract(None, "x")
    with jax.set_mesh(mesh):
        load_into(model, data)
    kernel = values(model)["layers", 1, "kernel"]
    with safejax.observe_reads() as log:
        kernel.block_until_ready()
    assert [read.nbytes for read in log.reads] == 8 * [32]


def test_named_shardings_on_an_explicit_mesh(trained: Net, data: bytes) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        model = abstract(None, "x")
        load_into(model, data)
        assert shardings(model, "kernel") == {NamedSharding(mesh, P(None, "x"))}
        assert jax.typeof(values(model)["layers", 0, "kernel"]).sharding.spec == P(None, "x")
        assert bits(model) == bits(trained)


def test_logical_axes(trained: Net, data: bytes, mesh: Mesh) -> None:
    with jax.set_mesh(mesh), logical_axis_rules((("features", "x"), ("inputs", None))):
        model = nnx.eval_shape(lambda: make(1, axes=("inputs", "features")))
        load_into(model, data)
    assert shardings(model, "kernel") == {NamedSharding(mesh, P(None, "x"))}
    assert bits(model) == bits(trained)


def test_the_mesh_named_on_the_variable(mesh: Mesh) -> None:
    def build() -> nnx.Linear:
        initialize = nnx.with_partitioning(nnx.initializers.ones, (None, "x"), mesh=mesh)
        return nnx.Linear(8, 8, rngs=nnx.Rngs(0), kernel_init=initialize)

    with flax.config.temp_flip_flag("always_shard_variable", False):
        model = nnx.eval_shape(build)
    load_into(model, serialize(nnx.Linear(8, 8, rngs=nnx.Rngs(0))))
    assert shardings(model, "kernel") == {NamedSharding(mesh, P(None, "x"))}
    # It takes precedence over that of the context.
    with flax.config.temp_flip_flag("always_shard_variable", False):
        model = nnx.eval_shape(build)
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))):
        load_into(model, serialize(nnx.Linear(8, 8, rngs=nnx.Rngs(0))))
    assert shardings(model, "kernel") == {NamedSharding(mesh, P(None, "x"))}


def test_the_argument_takes_precedence_over_the_sharding_of_the_variable(
    data: bytes, mesh: Mesh
) -> None:
    rows = NamedSharding(mesh, P("x"))
    model = abstract(None, "x")
    with jax.set_mesh(mesh):
        load_into(
            model, data, sharding=lambda name, aval: rows if name.endswith("kernel") else None
        )
    assert shardings(model, "kernel") == {rows}


def test_a_model_that_was_placed_stays_where_it_is(data: bytes, mesh: Mesh) -> None:
    rows = NamedSharding(mesh, P("x"))
    with jax.set_mesh(mesh):
        model = make(1, axes=(None, "x"))
        state = nnx.state(model)
        placed = jax.tree.map(lambda w: jax.device_put(w, rows) if w.ndim == 2 else w, state)
        nnx.update(model, placed)
        assert shardings(model, "kernel") == {rows}
        load_into(model, data)
    assert unread(model)
    assert shardings(model, "kernel") == {rows}


def test_a_state_of_shardings(trained: Net, data: bytes, mesh: Mesh) -> None:
    model = abstract(None, "x")
    load_into(model, data, sharding=nnx.get_named_sharding(nnx.state(model), mesh))
    assert shardings(model, "kernel") == {NamedSharding(mesh, P(None, "x"))}
    assert shardings(model, "mean") == {NamedSharding(mesh, P())}
    assert bits(model) == bits(trained)


def test_names_without_a_mesh(trained: Net, data: bytes) -> None:
    model = abstract(None, "x")
    load_into(model, data)
    assert all(len(sharding.device_set) == 1 for sharding in shardings(model, "kernel"))
    assert bits(model) == bits(trained)


def test_a_name_that_the_mesh_lacks(data: bytes, mesh: Mesh) -> None:
    model = abstract(None, "y")
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="y"):
        load_into(model, data)


# ---- parts that are stored


def test_only_some_variables_are_stored(trained: Net, data: bytes) -> None:
    whole = safejax.decode(data)
    for only, names in {
        nnx.Param: {name for name in NAMES if "mean" not in name and "var" not in name} - {
            "dropout.rngs.count", "dropout.rngs.key",
        },
        nnx.BatchStat: {"norm.mean", "norm.var"},
        nnx.RngState: {"dropout.rngs.count", "dropout.rngs.key"},
        (nnx.BatchStat, nnx.RngKey): {"norm.mean", "norm.var", "dropout.rngs.key"},
        ...: NAMES,
    }.items():  # fmt: skip
        stored = safejax.decode(serialize(trained, only=only))
        assert set(stored) == names
        assert serialize(nnx.state(trained), only=only) == serialize(trained, only=only)
        for name, leaf in stored.items():
            assert host_bytes(leaf) == host_bytes(whole[name])


def test_what_only_stores_only_assigns_again(trained: Net, tmp_path: Path) -> None:
    for only in (nnx.Param, nnx.BatchStat, nnx.RngState):
        path = tmp_path / f"{only.__name__}.safetensors"
        assert serialize(trained, filename=path, only=only) is path
    model = make(1)
    for only in (nnx.Param, nnx.BatchStat, nnx.RngState):
        load_into(model, tmp_path / f"{only.__name__}.safetensors", only=only)
    assert bits(model) == bits(trained)


def test_only_of_several_modules() -> None:
    models = {"one": make(0), "two": (make(1), nnx.Linear(2, 2, rngs=nnx.Rngs(0)))}
    stored = safejax.decode(serialize(models, only=nnx.BatchStat))
    assert set(stored) == {"one.norm.mean", "one.norm.var", "two.0.norm.mean", "two.0.norm.var"}


def test_only_that_selects_nothing_or_is_given_for_linen(trained: Net) -> None:
    with pytest.raises(safejax.LeafError, match=r"only: .* selects none: .* of BatchStat, Param"):
        serialize(trained, only=nnx.LoRAParam)
    with pytest.raises(TypeError, match="only: expected variables of NNX with it, got dict"):
        serialize({"params": {"w": X}}, only=nnx.Param)


# ---- files of safejax.save, in which a variable is a container of its value (S11)


class Plain(nnx.Module):
    """A module with no variable of two names."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def optimizer(seed: int) -> nnx.Optimizer[Any]:
    model = Plain(nnx.Rngs(seed))
    made = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    graph, state = nnx.split(made)
    values = np.random.default_rng(seed)

    def drawn(x: Any) -> Any:
        return jnp.asarray(values.integers(0, 9, x.shape), x.dtype)

    return nnx.merge(graph, jax.tree.map(drawn, state))


BOXED: dict[str, Callable[[int], Any]] = {
    "linear": lambda seed: nnx.Linear(8, 2, rngs=nnx.Rngs(seed)),
    "batch norm": lambda seed: nnx.BatchNorm(8, rngs=nnx.Rngs(seed)),
    "rngs": lambda seed: nnx.Rngs(seed, noise=seed + 1),
    "dropout": lambda seed: nnx.Dropout(0.5, rngs=nnx.Rngs(seed)),
    "list": lambda seed: nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(seed)) for _ in range(2)]),
    "module": lambda seed: Plain(nnx.Rngs(seed)),
    "tied": make,
    "optimizer": optimizer,
    "dict": lambda seed: {"model": Plain(nnx.Rngs(seed)), "optimizer": optimizer(seed)},
    "state": lambda seed: nnx.state(make(seed)),
}


@pytest.fixture(params=BOXED)
def boxed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Callable[[int], Any], Any, Path]:
    """A function that makes what holds variables, one of these, and its file by safejax.save."""
    build = BOXED[request.param]
    source, path = build(0), tmp_path / "saved.safetensors"
    safejax.save(source, path)
    assert any(name.endswith(".value") for name in safejax.decode(path.read_bytes()))
    return build, source, path


def test_load_into_a_file_of_save(boxed: Any) -> None:
    build, source, path = boxed
    for target in (build(1), nnx.eval_shape(lambda: build(1))):
        if isinstance(target, nnx.State):
            continue
        with safejax.observe_reads() as log:
            load_into(target, path)
        # The values of a variable with two names are compared.
        assert log.nbytes == (2 * 4 * (8 * 8 + 8) if type(target) is Net else 0)
        assert bits(target) == bits(source)


def test_deserialize_a_file_of_save(boxed: Any) -> None:
    build, source, path = boxed
    for like in (build(1), nnx.eval_shape(lambda: build(1))):
        decoded = deserialize(path, like=like)
        assert type(decoded) is type(source)
        assert bits(decoded) == bits(source)


@pytest.mark.parametrize("only", [nnx.Param, nnx.BatchStat, nnx.RngState])
def test_only_some_of_a_file_of_save(only: Any, trained: Net, tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    safejax.save(trained, path)
    model = make(1)
    own, source = bits(model), bits(trained)
    load_into(model, path, only=only)
    chosen = values(nnx.state(model, only)).keys()
    assert bits(model) == {name: (source if name in chosen else own)[name] for name in own}
    assert chosen
    # A file of the parameters alone.
    safejax.save(nnx.state(trained, only), path)
    model = make(1)
    load_into(model, path, only=only)
    assert bits(model) == {name: (source if name in chosen else own)[name] for name in own}


def test_a_file_of_save_with_two_values_for_a_variable_of_two_names(tmp_path: Path) -> None:
    path, untied = tmp_path / "saved.safetensors", make(0)
    untied.tied = nnx.Linear(8, 8, rngs=nnx.Rngs(5))
    safejax.save(untied, path)
    with pytest.raises(safejax.MismatchError, match=r"unexpected 'tied\.kernel\.value'"):
        load_into(make(1), path)


def test_a_mismatch_with_a_file_of_save(tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    safejax.save(nnx.Linear(8, 2, rngs=nnx.Rngs(0)), path)
    with pytest.raises(safejax.MismatchError, match=r"mismatched 'kernel'.*float32\[8,2\]"):
        load_into(nnx.Linear(8, 3, rngs=nnx.Rngs(0)), path)


def test_variables_that_hold_trees_and_numbers_in_a_file_of_save(tmp_path: Path) -> None:
    """The box is within the name, `tree.value.x`, and the plain array has none."""
    path, target = tmp_path / "saved.safetensors", Odd(2)
    safejax.save(Odd(1), path)
    assert {"tree.value.x", "array"} <= set(safejax.decode(path.read_bytes()))
    load_into(target, path)
    pure = nnx.to_pure_dict(nnx.state(target))
    assert (pure["count"], pure["rate"], pure["nothing"]) == (3, 0.5, None)
    assert [float(leaf.sum()) for leaf in jax.tree.leaves(pure["tree"])] == [2.0, 0.0]
    assert float(target.array.sum()) == 3.0


@pytest.mark.parametrize(
    "name", [name for name in BOXED if name not in ("tied", "optimizer", "dict")]
)
def test_load_gives_a_module_from_a_file_of_serialize(name: str, tmp_path: Path) -> None:
    """And the reverse: `safejax.load` takes a module as a pytree, and `rename` boxes the values."""
    build, path = BOXED[name], tmp_path / "model.safetensors"
    source, like = build(0), build(1)
    serialize(source, filename=path)
    with pytest.raises(safejax.MismatchError, match=r"\.value'"):
        safejax.load(path, like=like)
    loaded = safejax.load(path, like=like, transform=safejax.rename({"*": "*.value"}))
    assert type(loaded) is type(source)
    assert bits(loaded) == bits(source)


# ---- more than a module


def test_a_model_and_its_optimizer_in_one_file(trained: Net) -> None:
    def both(seed: int) -> dict[str, Any]:
        model = make(seed)
        return {"model": model, "optimizer": nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param)}

    source, target = both(0), both(1)
    gradients = nnx.grad(lambda model: (model(X) ** 2).sum())(source["model"])
    source["optimizer"].update(source["model"], gradients)
    data = serialize(source)
    load_into(target, data)
    assert bits(target["model"]) == bits(source["model"])
    assert bits(target["optimizer"]) == bits(source["optimizer"])
    assert int(target["optimizer"].step[...]) == 1
    decoded = deserialize(data, like=both(2))
    assert type(decoded["optimizer"]) is nnx.Optimizer
    assert bits(decoded["optimizer"]) == bits(source["optimizer"])
    alone = both(3)["optimizer"]
    load_into(alone, serialize(source["optimizer"]))
    assert bits(alone) == bits(source["optimizer"])


def test_only_random_streams() -> None:
    """There is neither a module nor a state: NNX objects with variables are recognized by type."""
    source, target = nnx.Rngs(0, noise=3), nnx.Rngs(1, noise=4)
    source.noise()
    data = serialize(source)
    assert set(safejax.decode(data)) == {
        f"{stream}.{part}" for stream in ("default", "noise") for part in ("count", "key")
    }
    load_into(target, data)
    assert bits(target) == bits(source)
    assert host_bytes(target.noise()) == host_bytes(source.noise())


def test_several_states_in_one_tree(trained: Net) -> None:
    graph, params, rest = nnx.split(trained, nnx.Param, ...)
    decoded = deserialize(
        serialize({"params": params, "rest": rest}), like={"params": params, "rest": rest}
    )
    assert type(decoded["params"]) is nnx.State
    assert bits(nnx.merge(graph, decoded["params"], decoded["rest"])) == bits(trained)


class Odd(nnx.Module):
    """A module whose variables hold trees, numbers and None, with an array that is no variable."""

    def __init__(self, k: int) -> None:
        self.tree = nnx.Param({"x": k * jnp.ones(2), "y": [jnp.zeros(3), None]})
        self.count = nnx.Variable(3 * k)
        self.rate = nnx.Variable(0.5 * k)
        self.nothing = nnx.Variable(None)
        self.array = k * jnp.ones(3)
        self.metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))


def test_variables_that_hold_no_array() -> None:
    source, target = Odd(1), Odd(2)
    load_into(target, serialize(source))
    pure = nnx.to_pure_dict(nnx.state(target))
    assert jax.tree.structure(pure) == jax.tree.structure(nnx.to_pure_dict(nnx.state(source)))
    assert (pure["count"], pure["rate"], pure["nothing"]) == (3, 0.5, None)
    assert [float(leaf.sum()) for leaf in jax.tree.leaves(pure["tree"])] == [2.0, 0.0]
    assert float(target.array.sum()) == 3.0


def test_hooks_are_not_applied_twice() -> None:
    """The value of a variable is stored, not what its hook returns."""

    class Doubled(nnx.Param):
        def get_value(self, **options: Any) -> Any:
            return 2 * super().get_value(**options)

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w = Doubled(jnp.ones(2))

    data = serialize(Model())
    assert safejax.decode(data)["w"].tolist() == [1.0, 1.0]
    model = deserialize(data, like=Model())
    assert values_of(model)["w"].tolist() == [1.0, 1.0]
    load_into(model, data)
    assert values_of(model)["w"].tolist() == [1.0, 1.0]


# ---- without the adapter


def test_save_and_load_with_a_state_as_like(trained: Net, tmp_path: Path, mesh: Mesh) -> None:
    path = tmp_path / "state.safetensors"
    safejax.save(nnx.state(trained), path)
    loaded = safejax.load(path, like=nnx.state(make(1)))
    assert type(loaded) is nnx.State
    assert unread(loaded)
    assert bits(loaded) == bits(trained)
    graph, _ = nnx.split(trained)
    assert bits(nnx.merge(graph, loaded)) == bits(trained)
    abstract = nnx.state(nnx.eval_shape(lambda: make(1)))
    assert bits(safejax.load(path, like=abstract)) == bits(trained)
