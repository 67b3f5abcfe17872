"""Abstract trees: shapes, dtypes and shardings in place of arrays."""

from typing import Any

import jax

from safejax._src.arguments import refuse_path
from safejax._src.leaves.leaf import aval_of, is_array
from safejax._src.leaves.like import committed_sharding
from safejax._src.public import set_module


@set_module("safejax")
def abstract(tree: Any) -> Any:
    """The same tree with each array as a `jax.ShapeDtypeStruct`, sharding included; reads nothing.

    The result can be passed as `like`. Leaves that are not arrays are kept.

    >>> import jax.numpy as jnp, safejax
    >>> safejax.abstract({"w": jnp.ones(3), "step": 1})["step"]
    1
    """
    refuse_path(tree, "abstract", "pass safejax.load(path), which reads no leaf")

    def of_leaf(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        # JAX may move an uncommitted array to others; a sharding in like would commit it.
        aval = aval_of(leaf)
        return jax.ShapeDtypeStruct(
            aval.shape,
            aval.dtype,
            sharding=committed_sharding(leaf),
            weak_type=aval.weak_type,
        )

    return jax.tree.map(of_leaf, tree)
