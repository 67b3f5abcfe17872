"""Hypothesis strategies for the frameworks' parameters, states and models.

Structures, shapes and dtypes are those of real models, which are made abstractly, so that
nothing is compiled; the values are drawn as raw bits.
"""

import importlib
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.vendor import pretty

from safejax.testing.strategies import arrays

_WIDTHS: Final = st.lists(st.integers(1, 5), min_size=1, max_size=3)


def _framework(module: str, extra: str) -> Any:
    # Imported by name, since only callers of the strategy need the framework.
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise  # The framework is there, and it lacks something else.
        raise ModuleNotFoundError(
            f"this strategy needs {package}, which is not installed: pip install "
            f"'safejax[{extra}]'",
            name=package,
        ) from error


def _filled(draw: st.DrawFn, abstract: Any) -> Any:
    """The abstract tree with its arrays replaced by drawn JAX arrays."""

    def fill(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                jnp.asarray(draw(arrays(np.uint32, (*leaf.shape, 2)))), impl="threefry2x32"
            )
        return jnp.asarray(draw(arrays(leaf.dtype, leaf.shape)))

    return jax.tree.map(fill, abstract)


def flax_params() -> st.SearchStrategy[Any]:
    """Variables of a linen model, in a dict or a `FrozenDict`, some with batch statistics."""
    linen = _framework("flax.linen", "flax")
    core = _framework("flax.core", "flax")

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        layers: list[Any] = []
        for width in draw(_WIDTHS):
            layers.append(linen.Dense(width))
            if draw(st.booleans()):
                layers.append(linen.BatchNorm(use_running_average=True))
        model = linen.Sequential(layers)
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 3)))
        filled = _filled(draw, variables)
        return core.freeze(filled) if draw(st.booleans()) else filled

    return drawn()


def nnx_states() -> st.SearchStrategy[Any]:
    """States of NNX modules with `Param`, `BatchStat`, RNG counts, typed keys and integer keys."""
    nnx = _framework("flax.nnx", "flax")

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        widths = draw(_WIDTHS)

        def make() -> Any:
            rngs = nnx.Rngs(0)
            layers: list[Any] = []
            size = 3
            for width in widths:
                layers += [nnx.Linear(size, width, rngs=rngs), nnx.BatchNorm(width, rngs=rngs)]
                size = width
            return nnx.Sequential(*layers, nnx.Dropout(0.5, rngs=rngs))

        return _filled(draw, nnx.state(nnx.eval_shape(make)))

    return drawn()


def haiku_params() -> st.SearchStrategy[Any]:
    """Parameters of a Haiku model, or a dict of its parameters and its state."""
    hk = _framework("haiku", "haiku")

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        widths = draw(_WIDTHS)
        normalized = draw(st.booleans())

        def forward(x: Any) -> Any:
            if normalized:
                x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
            return hk.nets.MLP(widths)(x)

        model = hk.transform_with_state(forward)
        params, state = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 3)))
        tree = {"params": params, "state": state} if draw(st.booleans()) else params
        return _filled(draw, tree)

    return drawn()


def objax_variables() -> st.SearchStrategy[Any]:
    """A `VarCollection` with variables of every kind, some of which have two names."""
    objax = _framework("objax", "objax")
    # A VarCollection iterates over its values, which hypothesis would print as keys.
    pretty.for_type_by_name(
        objax.VarCollection.__module__,
        objax.VarCollection.__qualname__,
        lambda value, printer, _: printer.text(repr(value)),
    )

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        kinds = st.sampled_from(("TrainVar", "StateVar", "RandomState", "TrainRef", "shared"))
        variables: dict[str, Any] = {}
        for number, kind in enumerate(draw(st.lists(kinds, min_size=1, max_size=6))):
            name = f"(Net).layers(ModuleList)[{number}](Layer).{draw(st.sampled_from('wb'))}"
            value = jnp.asarray(draw(arrays(np.float32)))
            trained = [var for var in variables.values() if isinstance(var, objax.TrainVar)]
            if kind == "shared" and variables:
                variables[name] = draw(st.sampled_from(list(variables.values())))
            elif kind == "TrainRef" and trained:
                variables[name] = objax.TrainRef(draw(st.sampled_from(trained)))
            elif kind == "RandomState":
                variables[name] = objax.RandomState(draw(st.integers(0, 2**31 - 1)))
            elif kind == "StateVar":
                variables[name] = objax.StateVar(value)
            else:
                variables[name] = objax.TrainVar(value)
        return objax.VarCollection(variables.items())

    return drawn()


def equinox_models() -> st.SearchStrategy[Any]:
    """Equinox modules with arrays, static fields and functions."""
    eqx = _framework("equinox", "equinox")

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        sizes = draw(st.tuples(*[st.integers(1, 4)] * 3))
        depth = draw(st.integers(0, 2))
        bias = draw(st.booleans())

        def make() -> Any:
            return eqx.nn.MLP(*sizes, depth, use_bias=bias, key=jax.random.key(0))

        return _filled(draw, eqx.filter_eval_shape(make))

    return drawn()


def optax_states() -> st.SearchStrategy[Any]:
    """States of optax optimizers, for drawn parameters."""
    optax = _framework("optax", "test")

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        optimizer = draw(
            st.sampled_from(
                (
                    optax.adam(1e-3),
                    optax.sgd(1e-2, momentum=0.9),
                    optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
                    optax.adafactor(1e-3),
                )
            )
        )
        shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        params = {
            "w": jax.ShapeDtypeStruct(shape, "float32"),
            "b": jax.ShapeDtypeStruct((), "float32"),
        }
        return _filled(draw, jax.eval_shape(optimizer.init, params))

    return drawn()
