"""Division: what two processes say of arrays that one process holds alone."""

import jax.numpy as jnp
import numpy as np

from safejax import Leaves
from safejax._src.checkpoint.division import (
    divided,
    held_alone,
    may_be_divided,
    merged,
    single_holders,
    spans_processes,
)

LEAVES = Leaves({"a": jnp.ones(2), "b": jnp.ones(3), "c": np.ones(2), "d": 4})


def test_what_others_see_is_put_together() -> None:
    # Process 0 sees that 1 has the first leaf and 2 the last; process 1 that 0 has the second.
    from_0 = [[1, 1], [2, -1], [1, 2]]
    from_1 = [[1, -1], [1, 0], [1, -1], [1, 2]]
    assert merged(from_0, from_1) == [[1, 1], [1, 0], [1, -1], [1, 2]]
    assert merged([[4, -1]], [[4, -1]]) == [[4, -1]]
    assert merged([[4, -1]], [[5, 0]]) == [[4, -1]]


def test_only_an_array_can_be_held_alone() -> None:
    assert single_holders(LEAVES) == [[4, -1]]
    assert held_alone(LEAVES, [[1, 0], [1, 1], [2, 0]], 0) == {"a"}
    assert held_alone(LEAVES, [[1, 0], [3, 1]], 1) == {"b"}
    assert not held_alone(LEAVES, [[4, -1]], 0)


def test_large_local_arrays_are_not_read_before_it_is_known_who_has_them() -> None:
    assert may_be_divided(LEAVES)
    large = np.ones(1 << 20, np.float32)
    assert may_be_divided(LEAVES.replace({"c": large})), "one of NumPy is in every process"
    assert not may_be_divided(LEAVES.replace({"c": jnp.asarray(large)}))


def test_a_leaf_that_is_held_alone_knows_its_holder() -> None:
    found = divided(LEAVES, frozenset({"a"}), 5)
    (source,) = found["a"].content.view.sources
    assert source.holders == (5,)
    assert found["a"].sharding == LEAVES["a"].sharding
    assert found["b"] is LEAVES["b"]
    assert found["c"] is LEAVES["c"]


def test_no_tree_of_one_process_spans_processes() -> None:
    assert not spans_processes(LEAVES)
    assert not spans_processes({"a": jnp.ones(2), "b": object()})
    assert not spans_processes({1: 2, "a": 3})  # JAX cannot sort the keys; flatten says so.
