"""Random saves, loads, uses, donations and deletions, compared with a model in memory.

The model of a file, and of every tree that was loaded from it, is the tree of NumPy arrays that was
saved. Whatever happens later, a tree keeps every bit of its model.
"""

import copy
import os
import pickle
import shutil
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import LazyArray
from safejax._src.leaves.leaf import is_array
from safejax.testing import arrays, assert_same_bits, assert_trees_identical, indices, keys
from tests.support.leaves import is_key

DEVICES = jax.devices()
LINE = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
GRID = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)


def where_it_fits(sharding: NamedSharding) -> Callable[[str, Any], NamedSharding | None]:
    """A function that returns the sharding for the leaves whose shapes it divides."""

    def of_leaf(name: str, aval: Any) -> NamedSharding | None:
        fits = len(sharding.spec) <= aval.ndim and all(
            axis is None or size % sharding.mesh.shape[axis] == 0
            for axis, size in zip(sharding.spec, aval.shape, strict=False)
        )
        return sharding if fits else None

    return of_leaf


SHARDINGS: dict[str, Any] = {
    "default": None,
    "a device": DEVICES[5],
    "replicated": NamedSharding(LINE, P()),
    "rows": where_it_fits(NamedSharding(LINE, P("x"))),
    "columns and rows": where_it_fits(NamedSharding(GRID, P("y", "x"))),
}


def turned(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.swapaxes(x, -1, -2) if np.ndim(x) > 1 else x, tree)


def widened(tree: Any) -> Any:
    def wide(leaf: Any) -> Any:
        narrow = isinstance(leaf, np.ndarray) and leaf.dtype == jnp.bfloat16
        return leaf.astype(np.float32) if narrow else leaf

    return jax.tree.map(wide, tree)


def renamed(tree: Any) -> Any:
    return {"v" if key == "w" else key: value for key, value in tree.items()}


def matrices(name: str) -> bool:
    return name in ("w", "v")


def is_bfloat16(_: str, aval: Any) -> bool:
    return aval is not None and aval.dtype == "bfloat16"


WIDEN = safejax.cast("float32", where=is_bfloat16, must_match=False)

# A transform, and the same change of a model.
TRANSFORMS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "none": (None, lambda tree: tree),
    "rename": (safejax.rename({"w": "v"}), renamed),
    "transpose": (
        safejax.transpose(matrices),
        lambda tree: {**tree, "w": turned(tree["w"])},
    ),
    "cast": (
        WIDEN,
        widened,
    ),
    "all of them": (
        safejax.chain(
            WIDEN,
            safejax.rename({"w": "v"}),
            safejax.transpose(matrices),
        ),
        lambda tree: renamed({**widened(tree), "w": turned(widened(tree["w"]))}),
    ),
}


def random_bits(dtype: Any, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Arrays of random bits, drawn as one seed, whereas `arrays` draws every element."""
    count = np.dtype(dtype).itemsize * int(np.prod(shape))
    return st.integers(0, 255).map(
        lambda seed: np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape)
    )


def strong_arrays(dtype: Any, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Arrays that are not weakly typed: those of the model are NumPy's, which never are."""

    def strong(array: Any) -> Any:
        return array.astype(array.dtype) if getattr(array, "weak_type", False) else array

    return arrays(dtype, shape).map(strong)


# There are few shapes and dtypes, because JAX compiles for each new one.
LEAVES = st.one_of(
    st.none(),
    st.integers(-5, 2**70),
    st.floats(),
    *(strong_arrays(dtype, shape) for dtype in ("float32", "bfloat16") for shape in ((3,), ())),
    random_bits("int8", (16, 8)),
    random_bits(jnp.float8_e5m2, (64,)),
    strong_arrays("bool", (5,)),
    strong_arrays("uint32", (0, 8)),
    strong_arrays("int4", (2, 3)),
    keys((2,)),
)
MATRICES = st.one_of(
    random_bits("float32", (8, 16)),
    random_bits("float32", (8, 16)).map(jnp.asarray),
    random_bits(jnp.bfloat16, (8, 16)),
    random_bits("int8", (16, 8)),
)
OTHERS = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=3),
    st.dictionaries(st.sampled_from(["a.b", "0", ""]), LEAVES, max_size=2),
    st.dictionaries(st.integers(0, 9), LEAVES, max_size=2),
    st.tuples(LEAVES, LEAVES),
    st.just(OrderedDict()),
)
TREES = st.builds(
    lambda matrix, others: {"w": matrix, **others},
    MATRICES,
    st.dictionaries(st.sampled_from(["x", "y", "z"]), OTHERS, max_size=3),
)
PATHS = st.sampled_from(["a", "b", "c"])


def host(tree: Any) -> Any:
    """The tree with a copy of every array in NumPy's memory; typed keys stay as they are."""

    def of_leaf(leaf: Any) -> Any:
        if not is_array(leaf) or is_key(leaf):
            return leaf
        return np.array(leaf)

    return jax.tree.map(of_leaf, tree)


def lazy_leaves(tree: Any, model: Any) -> list[tuple[Any, Any]]:
    """Each lazy leaf of a tree, with the leaf of the model."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(model), strict=True)
    return [(leaf, expected) for leaf, expected in pairs if type(leaf) is LazyArray]


@dataclass(eq=False)
class Live:
    """A tree in use, its model, and the file that it reads; `seen` if it has been read."""

    tree: Any
    model: Any
    file: str | None = None
    seen: bool = False

    def check(self) -> None:
        assert_trees_identical(self.tree, self.model)
        for leaf, expected in lazy_leaves(self.tree, self.model):
            if leaf.is_placed:
                assert_same_bits(leaf.placed(), expected)


@jax.jit
def kept(x: jax.Array) -> jax.Array:
    return x


def flipped(x: Any) -> Any:
    """The array, of NumPy or JAX and of any dtype, with every bit flipped."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return (~x).astype(x.dtype)  # NumPy widens int4.
    return (~x.view(f"uint{8 * x.dtype.itemsize}")).view(x.dtype)


donating = jax.jit(flipped, donate_argnums=0)

# How often each rule ran, and what has to happen for the test to show anything.
HAPPENED = Counter(
    {
        "overwritten under an unread tree": 0,
        "overwritten under a placed tree": 0,
        "saved into the file that it looks at": 0,
        "deleted under an unread tree": 0,
        "donated from eight devices": 0,
        "read without being placed": 0,
        "a part of a part": 0,
    }
)


def counted(action: Callable[..., Any]) -> Callable[..., Any]:
    HAPPENED[action.__name__] = 0

    @wraps(action)
    def run(*args: Any, **kwargs: Any) -> Any:
        happened(action.__name__)
        return action(*args, **kwargs)

    return run


def happened(what: str) -> None:
    assert what in HAPPENED
    HAPPENED[what] += 1
    event(what)


class Machine(RuleBasedStateMachine):
    trees: Bundle[Live] = Bundle("trees")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.files: dict[str, Any] = {}
        self.live: list[Live] = []

    def teardown(self) -> None:
        try:
            for live in self.live:
                live.check()
            for name, model in self.files.items():
                assert_trees_identical(safejax.load(self.folder / name), model)
        finally:
            shutil.rmtree(self.folder)

    def add(self, tree: Any, model: Any, file: str | None = None) -> Live:
        live = Live(tree, model, file)
        self.live.append(live)
        return live

    def lost(self, name: str, how: str) -> None:
        """Trees that read the file of that name read a file without a name from now on."""
        for live in self.live:
            if live.file == name:
                placed = [leaf.is_placed for leaf, _ in lazy_leaves(live.tree, live.model)]
                if not live.seen and not any(placed):
                    happened(f"{how} under an unread tree")
                elif any(placed) and how == "overwritten":
                    happened("overwritten under a placed tree")
                live.file = None

    @invariant()
    def there_is_no_litter(self) -> None:
        assert set(os.listdir(self.folder)) == set(self.files)

    @invariant()
    def trees_keep_their_values(self) -> None:
        # Trees that nobody has read are left unread: a file must also serve those who read late.
        for live in self.live:
            if live.seen:
                live.check()

    # ---- files

    @initialize(target=trees, tree=TREES, sharding=st.sampled_from(sorted(SHARDINGS)))
    def begin(self, tree: Any, sharding: str) -> Live:
        self.save("a", tree)
        loaded = safejax.load(self.folder / "a", sharding=SHARDINGS[sharding])
        return self.add(loaded, self.files["a"], "a")

    @precondition(lambda self: len(self.files) < 3 or any(live.file for live in self.live))
    @rule(name=PATHS, tree=TREES)
    @counted
    def save(self, name: str, tree: Any) -> None:
        model = host(tree)
        safejax.save(tree, self.folder / name)
        self.files[name] = model
        self.lost(name, "overwritten")

    @rule(live=trees, name=PATHS, part=st.floats(0, 0.99))
    @counted
    def save_that_fails(self, live: Live, name: str, part: float) -> None:
        """Everything stays as it was, which the invariants check."""

        def stop(done: int, total: int) -> None:
            if done > part * total:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            safejax.save(live.tree, self.folder / name, progress=stop)

    @precondition(lambda self: self.files)
    @rule(target=trees, data=st.data())
    @counted
    def load(self, data: st.DataObject) -> Live:
        name = data.draw(st.sampled_from(sorted(self.files)))
        transform, of_model = TRANSFORMS[data.draw(st.sampled_from(sorted(TRANSFORMS)))]
        sharding = SHARDINGS[data.draw(st.sampled_from(sorted(SHARDINGS)))]
        model = self.files[name]
        if "w" not in model:
            transform, of_model = TRANSFORMS["none"]
        model = of_model(model)
        like = data.draw(st.sampled_from([None, model, safejax.abstract(model)]))
        tree = safejax.load(self.folder / name, like=like, sharding=sharding, transform=transform)
        assert not any(leaf.is_placed for leaf, _ in lazy_leaves(tree, model))
        return self.add(tree, model, name)

    @rule(live=trees, into_its_own=st.booleans(), name=PATHS)
    @counted
    def save_again(self, live: Live, into_its_own: bool, name: str) -> None:
        if into_its_own and live.file is not None:
            name = live.file
        if live.file == name:
            happened("saved into the file that it looks at")
        safejax.save(live.tree, self.folder / name)
        self.files[name] = live.model
        self.lost(name, "overwritten")

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    @counted
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.folder / name).unlink()
        del self.files[name]
        self.lost(name, "deleted")

    # ---- in memory

    @rule(target=trees, live=trees)
    @counted
    def serialize(self, live: Live) -> Live:
        data = safejax.serialize(live.tree)
        assert data == safejax.serialize(live.model)
        return self.add(safejax.deserialize(data), live.model)

    # ---- leaves

    @rule(target=trees, live=trees, data=st.data())
    @counted
    def part(self, live: Live, data: st.DataObject) -> Live:
        leaf, expected = self.leaf(live, data)
        index = data.draw(indices(expected.shape))
        # With an Ellipsis at the end, NumPy too returns an array where no axis is left.
        model = expected[index if ... in index else (*index, ...)]
        if "part" in live.model:
            happened("a part of a part")
        part = leaf[index]
        if not isinstance(leaf, jax.Array):
            part = part.copy()  # NumPy's, since `like` had NumPy's.
        elif type(part) is not LazyArray:
            # JAX's own index of a sharded array may quiet a signalling NaN, as that of a plain one.
            if not is_key(expected):
                model = jax.device_put(expected, leaf.sharding)[index]
            # JAX may return the array itself, which can be donated later.
            part = jnp.copy(part)
        return self.add({"part": part}, {"part": host(model)}, live.file)

    @rule(live=trees, data=st.data())
    @counted
    def read(self, live: Live, data: st.DataObject) -> None:
        leaf, expected = self.leaf(live, data)
        if is_key(expected):
            return
        placed = getattr(leaf, "is_placed", True)
        assert_same_bits(np.asarray(leaf), expected)
        assert getattr(leaf, "is_placed", True) == placed
        if not placed:
            happened("read without being placed")
        live.seen = True

    @rule(live=trees, data=st.data())
    @counted
    def place(self, live: Live, data: st.DataObject) -> None:
        leaf, expected = self.leaf(live, data)
        assert_same_bits(kept(leaf), expected)
        if type(leaf) is LazyArray:
            assert leaf.is_placed
            assert leaf.placed().sharding.is_equivalent_to(leaf.sharding, leaf.ndim)

    @rule(live=trees)
    @counted
    def look(self, live: Live) -> None:
        live.check()
        live.seen = True

    @rule(target=trees, live=trees)
    @counted
    def materialize(self, live: Live) -> Live:
        tree = safejax.materialize(live.tree)
        assert not lazy_leaves(tree, live.model)
        assert all(leaf.is_placed for leaf, _ in lazy_leaves(live.tree, live.model))
        # Both trees share arrays, so that those that are donated from one are deleted in the other.
        copied = jax.tree.map(lambda x: jnp.copy(x) if isinstance(x, jax.Array) else x, tree)
        return self.add(copied, live.model)

    @rule(live=trees, placed_first=st.booleans(), data=st.data())
    @counted
    def donate(self, live: Live, placed_first: bool, data: st.DataObject) -> None:
        pairs = lazy_leaves(live.tree, live.model)
        if not pairs:
            return
        leaf, expected = data.draw(st.sampled_from(pairs))
        if is_key(expected):
            return
        if placed_first:
            leaf.placed()
        if len(leaf.sharding.device_set) == 8:
            happened("donated from eight devices")
        given = donating(leaf)
        assert_same_bits(given, flipped(expected))
        assert not leaf.is_placed
        assert_same_bits(leaf.placed(), expected)

    @rule(target=trees, live=trees, how=st.sampled_from([copy.copy, copy.deepcopy, "pickle"]))
    @counted
    def duplicate(self, live: Live, how: Any) -> Live:
        if how == "pickle":
            tree = pickle.loads(pickle.dumps(live.tree))
        else:
            tree = jax.tree.map(how, live.tree)
        return self.add(tree, live.model)

    @rule(live=consumes(trees))
    @counted
    def let_go(self, live: Live) -> None:
        self.live.remove(live)
        live.check()

    def leaf(self, live: Live, data: st.DataObject) -> tuple[Any, Any]:
        pairs = list(zip(jax.tree.leaves(live.tree), jax.tree.leaves(live.model), strict=True))
        return data.draw(st.sampled_from([pair for pair in pairs if is_array(pair[1])]))


def test_every_tree_keeps_every_bit_under_any_sequence_of_actions() -> None:
    HAPPENED.update({what: -count for what, count in HAPPENED.items()})
    # Everything shall happen in few examples, too.
    few = {"max_examples": 40, "stateful_step_count": 30}
    many = {"stateful_step_count": 20}
    chosen = settings(**(few if settings().max_examples < 100 else many))
    run_state_machine_as_test(Machine, settings=chosen)
    if hypothesis.__version_info__ >= (6, 150):  # An older one chooses rules less evenly.
        assert [what for what, count in HAPPENED.items() if count == 0] == []
