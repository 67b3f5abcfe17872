"""What people see of a lazy leaf: its values where they are at hand, and how to see them if not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import treescope
from jax.sharding import NamedSharding, PartitionSpec

import safejax
from safejax import PrecisionError, PrecisionWarning
from safejax._src.reading.log import observe_reads
from tests.support.leaves import lazy

SCALARS: dict[str, Callable[[], Any]] = {
    "float": lambda: jnp.float32(2.718281828),
    "bfloat16": lambda: jnp.bfloat16(2.718281828),
    "int": lambda: jnp.int32(1000),
    "bool": lambda: jnp.bool_(True),
    "complex": lambda: jnp.complex64(1 - 2j),
    "nan": lambda: jnp.float32(jnp.nan),
}
SHARDED = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x"))
SHOWN: list[Callable[[Any], str]] = [str, lambda x: format(x, ""), lambda x: f"{x}"]


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("kind", SCALARS)
def test_a_scalar_is_read_and_shown_as_a_plain_one(kind: str, shown: Callable[[Any], str]) -> None:
    leaf, plain = lazy(SCALARS[kind](), "step"), SCALARS[kind]()
    assert shown(leaf) == shown(plain)
    assert not leaf.is_placed
    assert repr(leaf) == f"LazyArray({leaf.aval.str_short()}, name='step', unread)"
    leaf.placed()
    assert shown(leaf) == shown(plain)
    assert repr(leaf) == f"LazyArray({leaf.aval.str_short()}, name='step', placed)"


@pytest.mark.parametrize("place", [False, True])
@pytest.mark.parametrize(
    ("kind", "spec"), [("float", ".3f"), ("float", "10.2e"), ("int", "08d"), ("int", ",")]
)
def test_a_scalar_takes_the_formats_of_its_value(kind: str, spec: str, place: bool) -> None:
    leaf = lazy(SCALARS[kind]())
    if place:
        leaf.placed()
    assert format(leaf, spec) == format(SCALARS[kind](), spec)


@pytest.mark.parametrize("shown", SHOWN)
def test_a_placed_leaf_is_shown_as_its_array(shown: Callable[[Any], str]) -> None:
    for plain in (jnp.arange(8.0), jax.device_put(jnp.arange(8), SHARDED), jax.random.key(3)):
        leaf = lazy(plain)
        leaf.placed()
        assert shown(leaf) == shown(plain)


@pytest.mark.parametrize("shown", SHOWN)
def test_an_unread_array_says_so_and_how_to_see_it(shown: Callable[[Any], str]) -> None:
    leaf = lazy(jnp.arange(8.0), "w")
    with observe_reads() as log:
        text = shown(leaf)
    assert not log.reads
    assert text == f"{leaf!r}; numpy.asarray(leaf) or safejax.materialize(leaf) reads its values"
    for remedy in ("numpy.asarray(leaf)", "safejax.materialize(leaf)"):
        assert remedy in text
        assert str(eval(remedy, {"numpy": np, "safejax": safejax, "leaf": leaf})) == str(
            np.arange(8, dtype=np.float32)
        )


def test_a_format_for_numbers_is_refused_for_arrays_without_a_read() -> None:
    leaf = lazy(jnp.arange(8.0), "w")
    with pytest.raises(TypeError):
        format(jnp.arange(8.0), ".2f")
    with observe_reads() as log, pytest.raises(TypeError, match="leaf 'w': expected a scalar"):
        format(leaf, ".2f")
    assert not log.reads


def test_a_scalar_of_64_bits_is_shown_as_it_will_be_placed_if_it_can_be() -> None:
    stored = {"third": np.float64(1 / 3), "count": np.int64(7), "big": np.int64(5_000_000_000)}
    tree = safejax.deserialize(safejax.serialize(stored))
    # No warning either, since nothing is placed.
    assert str(tree["third"]) == str(np.float32(1 / 3))
    assert (str(tree["count"]), str(tree["big"])) == ("7", "5000000000")
    with pytest.warns(PrecisionWarning):
        tree["third"].placed()
    assert str(tree["third"]) == str(np.float32(1 / 3))
    with pytest.raises(PrecisionError):
        tree["big"].placed()


def test_an_unread_key_is_not_read() -> None:
    leaf = lazy(jax.random.key(3), "key")
    with observe_reads() as log:
        assert str(leaf).startswith("LazyArray(key<fry>[], name='key', unread); ")
    assert not log.reads


def test_inside_of_a_trace_a_scalar_shows_its_value() -> None:
    leaf, seen = lazy(jnp.int32(7)), list[str]()

    @jax.jit
    def step(x: jax.Array) -> jax.Array:
        seen.append(f"{leaf}")
        return x

    step(jnp.ones(2))
    assert seen == ["7"]


# Treescope asks NumPy and JAX for all that they have, also for what is deprecated.
@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.ArrayRef is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.array_ref is deprecated:DeprecationWarning")
@pytest.mark.parametrize("visualizer", [None, treescope.ArrayAutovisualizer()])
def test_treescope_shows_a_tree_of_leaves_without_a_read(visualizer: Any) -> None:
    tree = {"w": jnp.ones((4, 4)), "layers": [{"b": jnp.arange(3)}], "key": jax.random.key(0)}
    leaves = safejax.deserialize(safejax.serialize(tree))
    with treescope.active_autovisualizer.set_scoped(visualizer):
        with observe_reads() as log:
            text = treescope.render_to_text(leaves)
            assert treescope.render_to_html(leaves)
        assert not log.reads
        assert "'w': LazyArray(float32[4,4], name='w', unread)" in text
        assert not any(leaf.is_placed for leaf in jax.tree.leaves(leaves))
        leaves["w"].placed()
        plain = treescope.render_to_text({"w": tree["w"]})
        assert treescope.render_to_text({"w": leaves["w"]}) == plain


# Treescope asks NumPy and JAX for all that they have, also for what is deprecated.
@pytest.mark.filterwarnings("ignore:The chararray class is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.ArrayRef is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.array_ref is deprecated:DeprecationWarning")
def test_treescope_shows_leaves_as_a_dict_of_them_without_a_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save({"w": jnp.ones((4, 4)), "n": 3, "host": np.ones(2)}, path, checksum=True)
    leaves = safejax.flatten(safejax.load(path))
    with observe_reads() as log:
        text = treescope.render_to_text(leaves)
        assert treescope.render_to_html(leaves)
        assert text.startswith("Leaves({")
        assert "'w': LazyArray(float32[4,4], name='w', unread)" in text
        assert "'n': 3" in text
        for value in (
            leaves, safejax.inspect(path), safejax.plan(path), safejax.verify(path, digests=False),
            safejax.diff({}, {}),
        ):  # fmt: skip
            assert "<table>" in value._repr_html_() or isinstance(
                value, safejax.Verification | safejax.Difference
            )
            assert treescope.render_to_html(value)
    assert not log.reads
    assert not leaves["w"].is_placed


# Of JAX's arrays, too, IPython shows the repr: one of HTML would show no more of a leaf.
def test_ipython_finds_no_method_of_its_own_and_shows_the_repr() -> None:
    leaf = lazy(jnp.ones(3))
    kinds = ("html", "pretty", "markdown", "svg", "png", "latex", "json", "mimebundle")
    with observe_reads() as log:
        for name in (*(f"_repr_{kind}_" for kind in kinds), "_ipython_display_"):
            assert getattr(leaf, name, None) is None
    assert not log.reads
