"""Tools for round-trip tests: hypothesis strategies, and assertions that compare every bit.

It needs `pip install 'safejax[testing]'`. A test of your own transform takes ten lines:

    from hypothesis import given
    from safejax import chain, encode, flatten
    from safejax.testing import assert_round_trip, pytrees_matching

    @given(tree=pytrees_matching("*.kernel"))
    def test_my_transform(tree):
        assert_round_trip(tree, pipeline=chain(flatten, my_transform, encode))

`pytrees_matching` draws trees in which the patterns of a transform match; one that applies to
whatever there is can be tested with `pytrees()`, which draws trees of every kind.
"""

try:
    from safejax.testing.assertions import (
        assert_reads,
        assert_round_trip,
        assert_same_bits,
        assert_trees_identical,
    )
    from safejax.testing.frameworks import (
        equinox_models,
        flax_params,
        haiku_params,
        nnx_states,
        objax_variables,
        optax_states,
    )
    from safejax.testing.matching import pytrees_matching
    from safejax.testing.strategies import (
        ALL_DTYPES,
        arrays,
        dict_keys,
        indices,
        keys,
        pytrees,
        scalars,
        shardings,
        transforms,
    )
except ModuleNotFoundError as error:
    if error.name not in ("chex", "hypothesis"):
        raise  # The extra would not mend that.
    raise ModuleNotFoundError(
        f"safejax.testing needs {error.name}, which is not installed ({error}): "
        "pip install 'safejax[testing]'",
        name=error.name,
    ) from error

__all__ = [
    "ALL_DTYPES",
    "arrays",
    "assert_reads",
    "assert_round_trip",
    "assert_same_bits",
    "assert_trees_identical",
    "dict_keys",
    "equinox_models",
    "flax_params",
    "haiku_params",
    "indices",
    "keys",
    "nnx_states",
    "objax_variables",
    "optax_states",
    "pytrees",
    "pytrees_matching",
    "scalars",
    "shardings",
    "transforms",
]
