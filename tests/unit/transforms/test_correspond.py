"""`correspond`: tables of names and axes, each compared with NumPy by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import safejax
from safejax import Leaves, ShardingError, TransformError, correspond, flatten
from safejax.testing import assert_same_bits
from tests.support.leaves import is_unread, same, stored

LAYERS, HEADS, GROUPS, SIZE, WIDTH, HIDDEN, EXPERTS, WORDS = 4, 4, 2, 2, 8, 6, 2, 16


def drawn(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def checkpoint() -> dict[str, np.ndarray[Any, Any]]:
    """A tiny Mixtral, which is a Llama with experts, as its authors' library writes it."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (WORDS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (WORDS, WIDTH),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (HEADS * SIZE, WIDTH),
            f"{layer}self_attn.q_proj.bias": (HEADS * SIZE,),
            f"{layer}self_attn.k_proj.weight": (GROUPS * SIZE, WIDTH),
            f"{layer}self_attn.o_proj.weight": (WIDTH, HEADS * SIZE),
            f"{layer}input_layernorm.weight": (WIDTH,),
            f"{layer}self_attn.rotary_emb.inv_freq": (SIZE,),
        }
        for j in range(EXPERTS):
            shapes[f"{layer}block_sparse_moe.experts.{j}.w1.weight"] = (HIDDEN, WIDTH)
    return {name: drawn(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


LAYER = "model.layers.{i}."
ROWS: list[Any] = [
    ("model.embed_tokens.weight", "embed.embedding", "v d"),
    (LAYER + "self_attn.q_proj.weight", "layers.q.kernel", "(h k) d -> d h k"),
    (LAYER + "self_attn.q_proj.bias", "layers.q.bias", "(h k) -> h k"),
    (LAYER + "self_attn.k_proj.weight", "layers.k.kernel", "(g k) d -> d g k"),
    (LAYER + "self_attn.o_proj.weight", "layers.o.kernel", "d (h k) -> h k d"),
    (LAYER + "input_layernorm.weight", "layers.norm.scale", "d"),
    (LAYER + "block_sparse_moe.experts.{j}.w1.weight", "layers.up.kernel", "f d -> d f"),
    (LAYER + "self_attn.rotary_emb.inv_freq", None),
    ("model.norm.weight", "norm.scale", "d"),
    ("lm_head.weight?", "head.kernel", "v d -> d v"),
]
TABLE = correspond(ROWS, sizes={"h": HEADS, "g": GROUPS})
WITHOUT_ROTARY = correspond(
    [row for row in ROWS if row[1] is not None], sizes={"h": HEADS, "g": GROUPS}
)


def by_hand(theirs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    def layers(rest: str) -> np.ndarray[Any, Any]:
        return np.stack([theirs[f"model.layers.{i}.{rest}"] for i in range(LAYERS)])

    experts = [layers(f"block_sparse_moe.experts.{j}.w1.weight") for j in range(EXPERTS)]
    q, k = layers("self_attn.q_proj.weight"), layers("self_attn.k_proj.weight")
    o = layers("self_attn.o_proj.weight")
    return {
        "embed.embedding": theirs["model.embed_tokens.weight"],
        "layers.q.kernel": q.transpose(0, 2, 1).reshape(LAYERS, WIDTH, HEADS, SIZE),
        "layers.q.bias": layers("self_attn.q_proj.bias").reshape(LAYERS, HEADS, SIZE),
        "layers.k.kernel": k.transpose(0, 2, 1).reshape(LAYERS, WIDTH, GROUPS, SIZE),
        "layers.o.kernel": o.transpose(0, 2, 1).reshape(LAYERS, HEADS, SIZE, WIDTH),
        "layers.norm.scale": layers("input_layernorm.weight"),
        "layers.up.kernel": np.stack(experts, axis=1).transpose(0, 1, 3, 2),
        "norm.scale": theirs["model.norm.weight"],
        "head.kernel": theirs["lm_head.weight"].T,
    }


# ---- a whole model, there and back


def test_a_model_is_what_numpy_makes_of_it_by_hand() -> None:
    same(TABLE(stored(Leaves(checkpoint()))), by_hand(checkpoint()))


SPECS = {
    "embed.embedding": P("model", "data"),
    "layers.q.kernel": P(None, "data", "model"),
    "layers.q.bias": P(None, "model"),
    "layers.k.kernel": P(None, "data"),
    "layers.o.kernel": P(None, "model", None, "data"),
    "layers.norm.scale": P(None, "data"),
    "layers.up.kernel": P(None, None, "data"),
    "norm.scale": P("data"),
    "head.kernel": P("data", "model"),
}


def fused_checkpoint() -> dict[str, np.ndarray[Any, Any]]:
    """A tiny Phi-3, whose queries, keys and values are one tensor, and whose head is tied."""
    shapes: dict[str, tuple[int, ...]] = {"embed": (WORDS, WIDTH)}
    for i in range(LAYERS):
        shapes[f"layers.{i}.qkv"] = ((HEADS + 2 * GROUPS) * SIZE, WIDTH)
        shapes[f"layers.{i}.gate_up"] = (2 * WORDS, WIDTH)
    return {name: drawn(seed, *s, dtype="float16") for seed, (name, s) in enumerate(shapes.items())}


FUSED = correspond(
    [
        ("embed", "embed.embedding", "v d"),
        ("embed", "head.kernel", "v d -> d v"),
        ("layers.{i}.qkv", ("q", "k", "v"), "(h k + g k + g k) d -> d h k, d g k, d g k"),
        ("layers.{i}.gate_up", ("gate", "up"), "(f + f) d -> d f, d f"),
    ],
    sizes={"h": HEADS, "g": GROUPS},
)


def fused_by_hand(theirs: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    qkv = np.stack([theirs[f"layers.{i}.qkv"].T for i in range(LAYERS)])
    both = np.stack([theirs[f"layers.{i}.gate_up"].T for i in range(LAYERS)])
    q, k = HEADS * SIZE, GROUPS * SIZE
    return {
        "embed.embedding": theirs["embed"],
        "head.kernel": theirs["embed"].T,
        "q": qkv[..., :q].reshape(LAYERS, WIDTH, HEADS, SIZE),
        "k": qkv[..., q : q + k].reshape(LAYERS, WIDTH, GROUPS, SIZE),
        "v": qkv[..., q + k :].reshape(LAYERS, WIDTH, GROUPS, SIZE),
        "gate": both[..., :WORDS],
        "up": both[..., WORDS:],
    }


FUSED_SPECS = {
    "embed.embedding": P("model", "data"),
    "head.kernel": P("data", "model"),
    "q": P(None, "data", "model"),
    "k": P(None, "data"),
    "v": P(None, "data"),
    "gate": P(None, "data", None),
    "up": P(None, "data", None),
}


@pytest.mark.parametrize("kind", ["experts", "fused"])
def test_every_device_has_its_part_and_the_export_is_the_checkpoint(
    kind: str, tmp_path: Path
) -> None:
    if kind == "fused":
        theirs, table, specs = fused_checkpoint(), FUSED, FUSED_SPECS
        expected = fused_by_hand(theirs)
    else:
        theirs = {name: leaf for name, leaf in checkpoint().items() if "rotary" not in name}
        table, specs, expected = WITHOUT_ROTARY, SPECS, by_hand(theirs)
    path, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    safetensors.numpy.save_file(theirs, path)
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    rules = table.sharding_rules(mesh, {"h": "model", "v": "model", "d": "data", "f": None})
    with safejax.observe_reads() as log:
        ours = safejax.load(path, transform=table, sharding=rules)
        leaves = flatten(ours)
        assert all(map(is_unread, leaves.values()))
        assert log.nbytes == 0
    assert leaves.keys() == specs.keys() == expected.keys()
    for name, leaf in leaves.items():
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), leaf.ndim), name
        assert len(leaf.addressable_shards) == 8
        for shard in leaf.addressable_shards:
            assert_same_bits(shard.data, expected[name][shard.index], name)
    safejax.save(ours, back, transform=table.inverse)
    exported = safetensors.numpy.load_file(back)
    assert exported.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert (exported[name].dtype, exported[name].shape) == (leaf.dtype, leaf.shape)
        assert exported[name].tobytes() == leaf.tobytes(), name


def test_a_part_of_a_leaf_reads_its_own_bytes() -> None:
    leaves = TABLE(stored(Leaves(checkpoint())))
    with safejax.observe_reads() as log:
        part = np.asarray(leaves["layers.up.kernel"][1:3, 1, :, 2])
    assert log.nbytes == part.nbytes == 2 * WIDTH * 4
    with safejax.observe_reads() as log:
        part = np.asarray(leaves["layers.o.kernel"][:, 1])
    assert log.nbytes == part.nbytes


def test_what_is_left_out_does_not_come_back() -> None:
    theirs = {name: leaf for name, leaf in checkpoint().items() if "rotary" not in name}
    same(TABLE.inverse(TABLE(Leaves(checkpoint()))), theirs)


def test_what_may_be_missing_is_not_missed() -> None:
    theirs = checkpoint()
    del theirs["lm_head.weight"]
    ours = TABLE(Leaves(theirs))
    assert "head.kernel" not in ours
    assert "lm_head.weight" not in TABLE.inverse(ours)


# ---- one row each

X, QKV = drawn(1, 6, 4), drawn(3, 16, 3)
CASES: dict[str, tuple[list[Any], dict[str, int], dict[str, Any], dict[str, Any]]] = {
    "a name": ([("a", "b")], {}, {"a": 3}, {"b": 3}),
    "axes with names": ([("a", "b", "x y")], {}, {"a": X}, {"b": X}),
    "a segment in both": (
        [("a.{p}.w", "{p}", "x y -> y x")], {}, {"a.q.w": X, "a.k.w": -X}, {"q": X.T, "k": -X.T},
    ),
    "any text": ([("a.*", "b.*")], {}, {"a.x.y": X, "a.z": 1}, {"b.x.y": X, "b.z": 1}),
    "axes of size 1": (
        [("a", "b", "x 1 y -> y x 1")], {}, {"a": X[:, None]}, {"b": X.T[..., None]},
    ),
    "a scalar": ([("a.{i}", "b", "->")], {}, {"a.0": X[0, 0], "a.1": X[0, 1]}, {"b": X[0, :2]}),
    "a convolution": (
        [("c", "k", "o i h w -> h w i o")], {}, {"c": X.reshape(3, 2, 2, 2)},
        {"k": X.reshape(3, 2, 2, 2).transpose(2, 3, 1, 0)},
    ),
    "two that are stacked": (
        [("{i}.{j}", "b")], {}, {f"{i}.{j}": X[i, j:] for i in range(6) for j in range(1)},
        {"b": X[:, None]},
    ),
    "stacked with one that is not": (
        [("{i}.w.{p}", "{p}")], {},
        {"0.w.a": X[0], "1.w.a": X[1], "0.w.b": X[2, :3], "1.w.b": X[3, :3]},
        {"a": X[:2], "b": X[2:4, :3]},
    ),
    "stacked at the end": (
        [("{i}.w", "w", "x -> x i")], {}, {f"{i}.w": X[i] for i in range(6)}, {"w": X.T},
    ),
    "stacked within a product": (
        [("{i}.w", "w", "x y -> (i x) y")], {"i": 3},
        {f"{i}.w": X[2 * i : 2 * i + 2] for i in range(3)}, {"w": X},
    ),
    "unstacked": ([("w", "{i}.w", "x -> x")], {}, {"w": X}, {f"{i}.w": X[i] for i in range(6)}),
    "unstacked along a later axis": (
        [("w", "{i}.w", "x i -> x")], {}, {"w": X}, {f"{i}.w": X[:, i] for i in range(4)},
    ),
    "stacked here and unstacked there": (
        [("a.{i}", "b.{j}", "j y -> i y")], {}, {"a.0": X[:2], "a.1": X[2:4]},
        {"b.0": X[0:4:2], "b.1": X[1:4:2]},
    ),
    "sizes of their own": (
        [("{p}.w", "{p}.k", "_o _i -> _i _o")], {}, {"a.w": X, "b.w": X[:2, :3]},
        {"a.k": X.T, "b.k": X[:2, :3].T},
    ),
    "stacks of their own": (
        [("{p}.{_i}.w", "{p}")], {}, {"a.0.w": X, "b.0.w": X, "b.1.w": -X},
        {"a": X[None], "b": np.stack([X, -X])},
    ),
    "a size from another row": (
        [("a", "b", "(h k) y -> h k y"), ("c", "d", "k")], {}, {"a": X, "c": X[:3, 0]},
        {"b": X.reshape(2, 3, 4), "d": X[:3, 0]},
    ),
    "placeholders in another order": (
        [(("{x}.{y}.q", "{y}.k.{x}"), "{y}-{x}", "n, n -> (n + n)")], {},
        {"0.a.q": X[0], "a.k.0": X[1], "1.a.q": X[2], "a.k.1": X[3]},
        {"a-0": X[:2].reshape(-1), "a-1": X[2:4].reshape(-1)},
    ),
    "a fused leaf": (
        [("qkv.{i}", ("q", "k", "v"), "(h k + g k + g k) d -> d h k, d g k, d g k")],
        {"h": 4, "g": 2}, {"qkv.0": QKV, "qkv.1": -QKV},
        {
            "q": np.stack([S * QKV[:8].T.reshape(3, 4, 2) for S in (1, -1)]),
            "k": np.stack([S * QKV[8:12].T.reshape(3, 2, 2) for S in (1, -1)]),
            "v": np.stack([S * QKV[12:].T.reshape(3, 2, 2) for S in (1, -1)]),
        },
    ),
    "a fused leaf whose parts take turns": (
        [("qkv", ("q", "k", "v"), "(h (k + k + k)) d -> d h k, d h k, d h k")], {"k": 2},
        {"qkv": QKV[:12]},
        {
            part: QKV[:12].reshape(2, 3, 2, 3)[:, at].transpose(2, 0, 1)
            for at, part in enumerate("qkv")
        },
    ),
    "rows that take turns": (
        [("up.{i}", ("gate", "up"), "(f (1 + 1)) d -> d f, d f")], {}, {"up.0": X},
        {"gate": X[0::2].T[None], "up": X[1::2].T[None]},
    ),
    "several that become one": (
        [(("{i}.q", "{i}.k", "{i}.v"), "qkv", "(h k) d, (g k) d, (g k) d -> d (h k + g k + g k)")],
        {"h": 4, "g": 2, "k": 2},
        {"0.q": QKV[:8], "0.k": QKV[8:12], "0.v": QKV[12:], "1.q": -QKV[:8], "1.k": -QKV[8:12],
         "1.v": -QKV[12:]},
        {"qkv": np.stack([QKV.T, -QKV.T])},
    ),
    "several that take turns": (
        [(["gate", "up"], "both", "f d, f d -> d (f (1 + 1))")], {},
        {"gate": X[0::2], "up": X[1::2]}, {"both": X.T},
    ),
    "a fused bias": (
        [("b.{i}", ("q.{i}", "k.{i}"), "(q + k) -> q, k")], {"q": 4},
        {"b.0": X[:, 0], "b.1": X[:, 1]},
        {"q.0": X[:4, 0], "k.0": X[4:, 0], "q.1": X[:4, 1], "k.1": X[4:, 1]},
    ),
    "a fused leaf of numbered ones": (
        [("w", ("a.{i}", "b.{i}"), "i (x + y) -> x, y")], {"x": 1}, {"w": X[:2]},
        {"a.0": X[0, :1], "b.0": X[0, 1:], "a.1": X[1, :1], "b.1": X[1, 1:]},
    ),
    "numbers that begin at 3": (
        [("l.{i}.w", "all"), ("l.{m+3}.e", "moe"), ("l.{d}.f", "dense")], {},
        {**{f"l.{i}.w": X[i] for i in range(5)}, "l.3.e": X[0], "l.4.e": X[1],
         **{f"l.{i}.f": X[:, i] for i in range(3)}},
        {"all": X[:5], "moe": X[:2], "dense": X.T[:3]},
    ),
    "one in three": (
        [("l.{3*i}.w", "a.{i}"), ("l.{3 * i + 1}.w", "b.{i}"), ("l.{3*n+2}.w", "c")], {},
        {f"l.{i}.w": X[i] for i in range(6)},
        {"a.0": X[0], "a.1": X[3], "b.0": X[1], "b.1": X[4], "c": X[[2, 5]]},
    ),
    "two kinds by turns": (
        [(("l.{2*i}", "l.{2*i+1}"), "pairs", "x, x -> i (1 + 1) x")], {},
        {f"l.{i}": X[i] for i in range(6)}, {"pairs": X.reshape(3, 2, 4)},
    ),
    "other numbers in both": (
        [("l.{i+1}.w", "l.{2*i}.w")], {}, {"l.1.w": X, "l.2.w": -X}, {"l.0.w": X, "l.2.w": -X},
    ),
    "a leaf that is restored": ([("a", "b"), ("s", None, 2)], {}, {"a": X, "s": 2}, {"b": X}),
    "leaves that are restored": (
        [("l.{i}.w", "w"), ("l.{i}.s", None, np.float32(2))], {},
        {"l.0.w": X, "l.1.w": X, "l.0.s": np.float32(2), "l.1.s": np.float32(2)},
        {"w": np.stack([X, X])},
    ),
    "tied": ([("e", "a"), ("e", "b", "v d -> d v")], {}, {"e": X}, {"a": X, "b": X.T}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_row_makes_this_and_comes_back(case: str) -> None:
    rows, sizes, theirs, ours = CASES[case]
    table = correspond(rows, sizes=sizes)
    for leaves in (Leaves(theirs), stored(Leaves(theirs))):
        made = table(leaves)
        same(made, ours)
        same(table.inverse(made), theirs)
        same(table.inverse(stored(made)), theirs)
        assert table.inverse.inverse == table
    names = {"correspond": correspond, "np": np}
    assert eval(repr(table), names) == table
    assert eval(repr(table.inverse), names) == table.inverse
    assert hash(table) == hash(correspond(rows, sizes=sizes))


def test_parts_of_a_fused_leaf_read_their_own_bytes() -> None:
    rows = [
        ("a", ("q", "k"), "(h k + g k) d -> d h k, d g k"),
        ("b", ("u", "v"), "(f (1 + 1)) -> f, f"),
    ]
    table = correspond(rows, sizes={"h": 4, "g": 2, "k": 2})
    leaves = table(stored(Leaves({"a": QKV[:12], "b": QKV[:, 0]})))
    for name, expected in (("k", QKV[8:12].T.reshape(3, 2, 2)), ("v", QKV[1::2, 0])):
        with safejax.observe_reads() as log:
            read = np.asarray(leaves[name])
        assert log.nbytes == expected.nbytes
        assert_same_bits(read, expected, name)


def test_a_function_restores_by_name_and_abstract_leaves_stay_abstract() -> None:
    def mask(name: str) -> Any:
        return np.tri(2 + int(name[2]), dtype=bool)

    table = correspond([("l.{i}.w", "w"), ("l.{i}.mask", None, mask)])
    theirs = {f"l.{i}.{name}": leaf for i in range(2) for name, leaf in
              (("w", X), ("mask", np.tri(2 + i, dtype=bool)))}  # fmt: skip
    same(table.inverse(table(stored(Leaves(theirs)))), theirs)
    abstract = table(Leaves(theirs)).map(
        lambda _, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    )
    assert table.inverse(abstract)["l.1.mask"] == jax.ShapeDtypeStruct((3, 3), "bool")
    with pytest.raises(TransformError, match=r"expected 3 for {i}"):
        table(Leaves({**theirs, "l.2.mask": np.tri(2)}))
    assert repr(table).endswith("<locals>.mask)])")


def test_what_is_restored_takes_the_place_of_nothing() -> None:
    table = correspond([("a.{i}", "b.{i}"), ("a.0", None, 1)])
    with pytest.raises(TransformError, match=r"made twice.*'a\.0' for 'b\.0'"):
        table.inverse(Leaves({"b.0": X}))
    table = correspond([("a", "b"), ("s.{i}", None, 0), ("s.0", None, 1)], sizes={"i": 2})
    with pytest.raises(TransformError, match=r"leaf 's\.0'.*by the row 's\.0' -> None"):
        table.inverse(Leaves({"b": X}))


def test_a_list_that_moves_whole_stays_a_list() -> None:
    leaves = flatten({"a": [jnp.ones(2), jnp.zeros(3)]})
    table = correspond([("a.{i}", "b.{i}")])
    assert isinstance(safejax.unflatten(table(leaves))["b"], list)
    assert isinstance(safejax.unflatten(table.inverse(table(leaves)))["a"], list)


def test_typed_keys_keep_the_axes_of_their_data() -> None:
    keys = jax.random.split(jax.random.key(0), (6, 2))
    table = correspond([("k.{i}", "k", "x y -> y x i")])
    leaves = Leaves({"k.0": keys, "k.1": keys[::-1]})
    made = table(leaves)
    assert made["k"].shape == (2, 6, 2)
    same(made, {"k": jnp.stack([keys, keys[::-1]]).transpose(2, 1, 0)})
    same(table.inverse(made), dict(leaves))


def test_tied_leaves_may_be_donated_apart_and_must_be_equal_to_be_one() -> None:
    table = correspond([("e", "a"), ("e", "b")])
    made = table(stored(Leaves({"e": X})))
    assert made["a"] is not made["b"]
    with pytest.raises(TransformError, match="leaf 'b': expected the values of 'a'"):
        table.inverse(Leaves({"a": X, "b": X + 1}))


# ---- what is at fault is in one report

Q = drawn(2, 8, 4)
FAULTS: dict[str, tuple[list[Any], dict[str, int], dict[str, Any], list[str]]] = {
    "no row": ([("a", "b")], {}, {"a": X, "x.0": 1, "x.1": 2, "y": 3},
               [r"names that no row takes \(3\): 'x\.0' and 1 like it; 'y': add a row"]),
    "no name": ([("a", "b"), ("l.{i}.weigth", "w")], {}, {"a": X, "l.0.weight": X},
                [r"rows that take no name \(1\): 'l\.{i}\.weigth' -> 'w' \(is it like "
                 r"'l\.0\.weight'\?\)", r"no row takes \(1\): 'l\.0\.weight'"]),
    "two rows": ([("a.*", "b.*"), ("a.{i}", "c")], {}, {"a.0": X},
                 [r"several rows take \(1\): 'a\.0' by 'a\.\*' -> 'b\.\*' and 'a\.{i}' -> 'c'"]),
    "a gap": ([("a.{i}", "b")], {}, {"a.0": X, "a.2": X, "a.4": X},
              [r"missing next to others of their row \(1\): 'a\.1', 'a\.3' next to 'a\.0'"]),
    "a long gap": ([("a.{i}.{j}", "b")], {}, {"a.999999.0": X, "a.0.999999": X},
                   ["'a.0.0', 'a.0.1', 'a.0.2' and 999999999995 more next to 'a.0.999999'"]),
    "shorter": ([("a.{i}", "a"), ("b.{i}", "b")], {}, {"a.0": X, "b.0": X, "b.1": X},
                [r"leaf 'a\.0' and those that it is stacked with: expected 2 for {i} "
                 r"\(leaf 'b\.0'\), got 1"]),
    "not as many": ([("a.{i}", "a")], {"i": 3}, {"a.0": X},
                    [r"expected 3 for {i} \(sizes\), got 1"]),
    "shapes": ([("a.{i}", "a")], {}, {"a.0": X, "a.1": X.T},
               [r"float32\[6,4\] for 'a\.0' and float32\[4,6\] for 'a\.1'"]),
    "dtypes": ([("a.{i}", "a")], {}, {"a.0": X, "a.1": X.astype("int8")}, ["float32.*and int8"]),
    "no array": ([("a.{i}", "a")], {}, {"a.0": X, "a.1": 1.5}, ["with axes, got float 1.5"]),
    "axes": ([("a", "b", "x -> x")], {}, {"a": X}, ["expected the axes x, got the shape"]),
    "a size": ([("a", "b", "(h k) d -> d h k"), ("c", "d", "d")], {"h": 4},
               {"a": X, "c": X[0]},
               [r"leaf 'a': expected the size \(4 1\) for \(h k\), got 6 \(h = 4 by sizes"]),
    "two sizes": ([("a", "b", "x y"), ("c", "d", "y z")], {}, {"a": X, "c": X},
                  [r"leaf 'c': expected the size 4 for y, got 6 \(y = 4 by leaf 'a'\)"]),
    "size 1": ([("a", "b", "1 x -> x")], {}, {"a": X}, ["expected the size 1 for 1, got 6"]),
    "unknown": ([("a", "b", "(h k) d -> d h k")], {}, {"a": Q},
                [r"leaf 'a' has 8 for \(h k\), which leaves h and k open: give sizes"]),
    "unknown on the way back": ([("a", "b", "h k -> (h k)")], {}, {"a": X},
                                [r"'b' has 24 for \(h k\), from which the inverse could not tell "
                                 r"h and k: sizes={'h': 6, 'k': 4}"]),
    "unknown in each leaf": ([("a", "b", "_h _k -> (_h _k)")], {}, {"a": X},
                             [r"inverse could not tell _h and _k: give sizes, of names without"]),
    "made twice": ([("a.*", "c.*"), ("b.{i}", "c.{i}")], {}, {"a.x": X, "b.x": X},
                   [r"made twice.*'c\.x'"]),
    "not the same back": ([("a.{x}.{y}", "{x}-{y}")], {}, {"a.p-q.r": X},
                          [r"would not come back.*'p-q-r' for 'a\.p-q\.r'"]),
    "another dtype in the file": ([("a.{i}", "a")], {}, {"a.0": X, "a.1": X.astype("float64")},
                                  [r"float64\[6,4\] for 'a\.1' and float32\[6,4\] for 'a\.0'"]),
    "a part too few": ([(("q", "k"), "qk", "x y, z y -> (x + z) y")], {"x": 6}, {"q": X},
                       [r"missing next to others of their row \(1\): 'k' next to 'q'"]),
    "parts that do not add up": ([("qk", ("q", "k"), "(x + x) y -> x y, x y")], {}, {"qk": X[:5]},
                                 [r"expected the size \(2 \+ 2\) for \(x \+ x\), got 5"]),
    "unknown parts": ([("qk", ("q", "k"), "(a + b) y -> a y, b y")], {}, {"qk": X},
                      [r"leaf 'qk' has 6 for \(a \+ b\), which leaves a and b open"]),
    "a number that is padded": ([("l.{i}", "l")], {}, {"l.00": X, "l.01": X},
                                ["no row takes", r"take no name \(1\): 'l\.{i}' -> 'l' \(expected "
                                 r"its numbers from 0 on, without padding, got 'l\.00'\)"]),
    "how many to restore": ([("a", "a"), ("s.{i}", None, 0)], {}, {"a": X, "s.0": 0},
                            [r"'s\.{i}' -> None: {i}: how many there are to restore: "
                             "sizes={'i': n}"]),
    "all at once": (
        [("a.{i}", "a"), ("q", "q", "(h k) d -> d h k"), ("none", "none")], {"h": 3},
        {"a.0": X, "a.2": X, "q": Q, "left": 1},
        ["no row takes", "take no name", "are missing", "do not fit"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_all_that_is_at_fault_is_in_one_report(case: str) -> None:
    rows, sizes, theirs, messages = FAULTS[case]
    table = correspond(rows, sizes=sizes)
    leaves = stored(Leaves(theirs))
    with safejax.observe_reads() as log, pytest.raises(TransformError) as caught:
        table(leaves)
    assert log.nbytes == 0
    for message in messages:
        assert caught.match(message)
    assert str(caught.value).count("\n- ") == (4 if case == "all at once" else len(messages))


def test_the_sizes_that_an_error_asks_for_help() -> None:
    rows = [("a", "b", "h k -> (h k)")]
    with pytest.raises(TransformError) as caught:
        correspond(rows)(Leaves({"a": X}))
    sizes = eval(str(caught.value).partition("sizes=")[2].partition("}")[0] + "}")
    table = correspond(rows, sizes=sizes)
    same(table.inverse(table(Leaves({"a": X}))), {"a": X})


def test_a_prefix_that_all_names_lack_or_have_too_many() -> None:
    theirs = Leaves({"model.a": X, "model.l.0.b": X, "head": X})
    table = correspond([("model.a", "a"), ("model.l.{i}.b", "b"), ("head?", "head")])
    for before, given in (
        (safejax.prefix("model"), Leaves({"a": X, "l.0.b": X})),
        (safejax.prefix("model").inverse, safejax.prefix("model")(theirs)),
    ):
        with pytest.raises(TransformError) as caught:
            table(given)
        remedy = str(caught.value).partition("names: ")[2].partition(", correspond(...)")[0]
        assert eval(
            f"{remedy})", {"chain": safejax.chain, "prefix": safejax.prefix}
        ) == safejax.chain(before)
        assert table(before(given)).keys() >= {"a", "b"}


def test_the_report_of_ten_thousand_faults_is_short() -> None:
    names = {f"{'n' * (i % 400)}.{i}.{i % 7}x": i for i in range(5_000)}
    long = "m" * 400
    rows: list[Any] = [(f"{long}.{n}.{{i}}", f"b{n}", "(h k)") for n in "abcdefg"]
    groups = {f"{long}.{n}.{i}": X[:, i] for n in "abc" for i in (0, 1, 3)}
    with pytest.raises(TransformError) as caught:
        correspond([*rows, (f"{long}.*", "c.*")])(Leaves({**names, **groups}))
    for fault in ("that no row takes (5000)", "rows that take no name (4)", "rows take (9)", "(3)"):
        assert fault in str(caught.value)
    assert len(str(caught.value)) < 4000


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict": (lambda: correspond({"a": "b"}), "expected a list of rows"),  # pyright: ignore
    "no rows": (lambda: correspond([]), "at least one row"),
    "a name alone": (lambda: correspond(["a"]), "row 0, 'a': expected"),  # pyright: ignore
    "a number": (lambda: correspond([cast("Any", ("a", 3))]), "or several, got 3"),
    "no name": (lambda: correspond([("", "a")]), "their name to be a string"),
    "half a brace": (lambda: correspond([("a.{i", "a")]), "placeholder like"),
    "axes of a number": (lambda: correspond([("a", "b", 3)]), "axes to be a string, got 3"),
    "ours twice": (lambda: correspond([("a", "c"), ("b", "c")]), "'c' in 'a' -> 'c' and in"),
    "a star too many": (lambda: correspond([("a.*", "b")]), "as many stars"),
    "an axis too many": (lambda: correspond([("a", "b", "x y -> x")]), "got 'y' on one of them"),
    "an axis twice": (lambda: correspond([("a", "b", "x x -> x")]), "'x' twice"),
    "a number as an axis": (lambda: correspond([("a.{i}", "b", "i x -> x")]), "no axis 'i'"),
    "a size in the axes": (lambda: correspond([("a", "b", "(3 h) -> h 3")]), "size a name"),
    "another sign": (lambda: correspond([("a", "b", "x*y")]), r"got '\*' at character 1"),
    "two arrows": (lambda: correspond([("a", "b", "x -> x -> x")]), "expected the end at"),
    "an open parenthesis": (lambda: correspond([("a", "b", "(x y")]), "closing parenthesis"),
    "sizes of nothing": (lambda: correspond([("a", "b", "x")], sizes={"y": 2}), "got 'y': the"),
    "a size of 0": (lambda: correspond([("a", "b", "x")], sizes={"x": 0}), "1 or more, got 0"),
    "a size of text": (lambda: correspond([("a", "b", "x")], sizes={"x": "2"}),  # pyright: ignore
                       "1 or more, got '2'"),
    "sizes in a list": (lambda: correspond([("a", "b")], sizes=[2]), "a mapping"),  # pyright: ignore
    "two sums": (lambda: correspond([("a", "b", "(x + y) (z + w)")]), "at most one sum"),
    "a sum in a sum": (lambda: correspond([("a", "b", "((x + y) + z)")]), "no sum within a sum"),
    "half a sum": (lambda: correspond([("a", "b", "(x + )")]), "expected an axis at character 5"),
    "a sum of several": (
        lambda: correspond([(("a", "b"), "c", "(x + y), z -> (x + y + z)")]), "with one tensor",
    ),
    "other parts": (
        lambda: correspond([("a", ("b", "c"), "(x + y + z) -> x, y")]), "got 3 of theirs",
    ),
    "axes of others": (lambda: correspond([("a", ("b", "c"), "x -> x")]), "2 of our tensors"),
    "several without axes": (lambda: correspond([("a", ("b", "c"))]), "axes for several names"),
    "one of several names twice": (
        lambda: correspond([("a", ("b", "b"), "(x + y) -> x, y")]), "several different ones",
    ),
    "other placeholders": (
        lambda: correspond([("a.{i}", ("b.{i}", "c"), "(x + y) -> x, y")]), "same placeholders",
    ),
    "half of them optional": (
        lambda: correspond([(("a?", "b"), "c", "x, y -> (x + y)")]), r"a \? at the end of all",
    ),
    "a number in two ways": (lambda: correspond([("{i}.{i+1}", "b")]), "one number for {i}"),
    "a stride of 0": (lambda: correspond([("{0*i}", "b")]), "stride of 1 or more, got '{0"),
    "a text restored": (lambda: correspond([("a", None, "text")]), "a leaf, or a function"),
    "a star restored": (lambda: correspond([("a.*", None, 1)]), "number it with {i}"),
    "several left out": (lambda: correspond([(("a", "b"), None)]), "a row for each name"),
    "axes for nothing": (lambda: correspond([("a", None, "x")]), "a leaf, or a function"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_an_error_when_it_is_built(case: str) -> None:
    build, message = WRONG[case]
    with pytest.raises(TransformError, match=message):
        build()


# ---- sharding


def test_rules_for_axes_that_there_are_not() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    with pytest.raises(ShardingError, match="got 'heads': it has d, f, g, h, i, j, k, v"):
        TABLE.sharding_rules(mesh, {"heads": "model"})
    with pytest.raises(ShardingError, match=r"'embed\.embedding'"):
        TABLE.sharding_rules(mesh, {"v": "model", "d": "model"})


def test_rules_are_for_what_the_table_makes() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    axes = {"h": "model", "k": "data", "i": "data"}
    aval = jax.ShapeDtypeStruct((8, 8), "float32")
    back = TABLE.inverse.sharding_rules(mesh, axes)
    q = back("model.layers.3.self_attn.q_proj.weight", aval)
    assert isinstance(q, NamedSharding)
    assert q.spec == P("model", None)  # A product is partitioned as its first factor is.
    several = correspond([("a.{i}", "b")]).sharding_rules(mesh, {"i": ("data", "model")})
    assert several("b", aval) == NamedSharding(mesh, P(("data", "model")))
