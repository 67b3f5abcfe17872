"""Every form of `sharding=` gives one sharding for each leaf."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    Sharding,
    SingleDeviceSharding,
)
from jax.sharding import (
    PartitionSpec as P,
)

import safejax
from safejax._src.leaves.flatten import flatten
from safejax._src.leaves.leaves import Leaves
from safejax._src.leaves.rules import sharding_rules
from safejax._src.leaves.shardings import resolve
from safejax._src.pytrees.choices import any_of
from safejax.errors import ShardingError, TransformError

DEVICES = jax.devices()
MESH = Mesh(np.asarray(DEVICES).reshape(2, 4), ("x", "y"))
A = NamedSharding(MESH, P("x"))
B = NamedSharding(MESH, P(None, "y"))
C = NamedSharding(MESH, P())
D3 = DEVICES[3]
ON_3 = SingleDeviceSharding(D3)

MATRIX = np.zeros((8, 8), np.float32)


def resolved(argument: Any, tree: Any, defaults: dict[str, Sharding] | None = None) -> Any:
    leaves = tree if isinstance(tree, Leaves) else flatten(tree)
    return resolve(argument, defaults or {}, leaves, "m.safetensors")


TREE = {"emb": MATRIX, "layers": [{"w": MATRIX, "b": MATRIX[0]}, {"w": MATRIX, "b": MATRIX[0]}]}
NAMES = ["emb", "layers.0.b", "layers.0.w", "layers.1.b", "layers.1.w"]


def by_shape(name: str, aval: jax.ShapeDtypeStruct) -> Sharding | None:
    assert isinstance(aval, jax.ShapeDtypeStruct)
    return {2: B, 1: A}[aval.ndim] if name.startswith("layers") else None


def by_device(name: str, aval: jax.ShapeDtypeStruct) -> Any:
    return D3


LAYER = {"w": B, "b": A}
SPELLINGS: dict[str, tuple[Any, list[Sharding | None]]] = {
    "nothing": (None, [None] * 5),
    "one sharding": (A, [A] * 5),
    "one device": (D3, [ON_3] * 5),
    "a function": (by_shape, [None, A, B, A, B]),
    "a function that gives devices": (by_device, [ON_3] * 5),
    "rules": (sharding_rules(MESH, [("*.w", P(None, "y")), ("*.b", P("x"))]), [C, A, B, A, B]),
    "the whole tree": ({"emb": A, "layers": [LAYER, LAYER]}, [A, A, B, A, B]),
    "a prefix": ({"emb": A, "layers": B}, None),
    "a prefix with devices": ({"emb": D3, "layers": [A, D3]}, [ON_3, A, A, ON_3, ON_3]),
    "a prefix with None": ({"emb": None, "layers": [None, LAYER]}, [None, None, None, A, B]),
    "None for all": ({"emb": None, "layers": None}, [None] * 5),
    "a tuple for a list": ({"emb": A, "layers": (LAYER, C)}, [A, A, B, C, C]),
    "a dict for a list": ({"emb": A, "layers": {"0": C, "1": LAYER}}, [A, C, C, A, B]),
    "ints for a list": ({"emb": A, "layers": {0: C, 1: LAYER}}, [A, C, C, A, B]),
    "by name": ({"emb": C, "layers.0.b": A, "layers.0.w": B, "layers.1.b": A, "layers.1.w": B},
                [C, A, B, A, B]),
}  # fmt: skip
SPELLINGS["a prefix"] = ({"emb": A, "layers": C}, [A, C, C, C, C])


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_form_gives_each_leaf_its_sharding(spelling: str) -> None:
    argument, expected = SPELLINGS[spelling]
    wanted = {name: item for name, item in zip(NAMES, expected, strict=True) if item is not None}
    assert resolved(argument, TREE) == wanted


def test_none_in_the_argument_means_the_default() -> None:
    defaults = {"emb": B, "layers.0.b": A, "scalar": A}
    assert resolved(None, TREE, defaults) == {"emb": B, "layers.0.b": A}
    tree = {"emb": C, "layers": None}
    assert resolved(tree, TREE, defaults) == {"emb": C, "layers.0.b": A}
    assert resolved(C, TREE, defaults) == dict.fromkeys(NAMES, C)


def test_a_function_sees_every_array_as_it_will_be_placed() -> None:
    seen: dict[str, Any] = {}

    def function(name: str, aval: jax.ShapeDtypeStruct) -> None:
        seen[name] = (aval.shape, str(aval.dtype))

    resolved(
        function,
        {"a": np.zeros((2, 3)), "b": [1, "x", None, {}], "k": jax.random.key(1), "n": np.int8(1)},
    )
    assert seen == {"a": ((2, 3), "float32"), "k": ((), "key<fry>"), "n": ((), "int8")}


# Trees in which names alone would be misleading.
AWKWARD: dict[str, tuple[Any, Any, dict[str, Sharding]]] = {
    "a bare leaf": (MATRIX, A, {"": A}),
    "a bare leaf and a device": (MATRIX, D3, {"": ON_3}),
    "an empty key": ({"": {"w": MATRIX}}, {"": A}, {".w": A}),
    "dots in keys": ({"a.b": MATRIX, "a": {"b": MATRIX}}, {"a.b": A, "a": {"b": B}},
                     {"a.b": B, "a.b~1": A}),
    "dots in keys, a prefix": ({"a.b": MATRIX, "a": {"b": MATRIX}}, {"a.b": A, "a": B},
                               {"a.b": B, "a.b~1": A}),
    "a name that extends another": ({"w": MATRIX, "w.x": MATRIX}, {"w": A, "w.x": B},
                                    {"w": A, "w.x": B}),
    "a flat dict": ({"p": {"m.0.w": MATRIX, "m.1.w": MATRIX}}, {"p": {"m.0.w": A, "m.1.w": B}},
                    {"p.m.0.w": A, "p.m.1.w": B}),
    "a flat dict, a prefix": ({"p": {"m.0.w": MATRIX}}, {"p": A}, {"p.m.0.w": A}),
    "int keys beside strings": ({"1": {1: MATRIX}}, {"1": {1: A}}, {"1.1": A}),
    "tuple keys": ({("a", 1): MATRIX, ("a", 2): MATRIX}, {("a", 1): A, ("a", 2): B},
                   {"('a', 1)": A, "('a', 2)": B}),
    "metadata": ({"__metadata__": MATRIX}, {"__metadata__": A}, {"__metadata__~1": A}),
    "scalars have one too": ({"w": MATRIX, "n": 3, "s": "x"}, {"w": A, "n": A, "s": C}, {"w": A}),
    "scalars have None": ({"w": MATRIX, "n": 3}, {"w": A, "n": None}, {"w": A}),
    "scalars are left out": ({"w": MATRIX, "n": 3, "none": None, "e": {}}, {"w": A}, {"w": A}),
    "scalars stand as they are": ({"w": MATRIX, "n": 3, "s": "x"}, {"w": A, "n": 3, "s": "x"},
                                  {"w": A}),
    "one for scalars alone": ({"w": MATRIX, "h": {"lr": 0.1}}, {"w": A, "h": A}, {"w": A}),
    "empty for empty": ({"w": MATRIX, "e": {}}, {"w": A, "e": {}}, {"w": A}),
    "None for nothing": ({"w": MATRIX}, {"w": A, "gone": None}, {"w": A}),
    "empty for nothing": ({"w": MATRIX}, {"w": A, "gone": {}}, {"w": A}),
    "an empty tree": ({}, {}, {}),
    "an empty tree, all": ({}, A, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", AWKWARD)
def test_a_tree_of_shardings_is_matched_by_keypaths(case: str) -> None:
    tree, argument, expected = AWKWARD[case]
    leaves = flatten(tree)
    assert resolve(argument, {}, leaves, "f") == expected
    # The same for Leaves from a file, which have no treedef.
    stored = Leaves(leaves, type(leaves.structure)(leaves.structure.kinds, leaves.structure.paths))
    assert resolve(argument, {}, stored, "f") == expected


WRONG: dict[str, tuple[Any, Any, list[str]]] = {
    # The argument, the tree, and parts of the message.
    "a spec": (P("x"), {"w": MATRIX}, ["expected a Sharding, got",
                                       "a PartitionSpec needs its mesh, NamedShard"]),
    "a mesh": (MESH, {"w": MATRIX}, ["leaf 'w'", "a mesh needs a spec, NamedSharding(mesh"]),
    "an abstract mesh": (AbstractMesh((2,), ("x",)), {"w": MATRIX}, ["'w'", "got AbstractMesh"]),
    "specs in a tree": ({"w": P("x"), "v": A}, {"w": MATRIX, "v": MATRIX},
                        ["leaf 'w'", "a PartitionSpec needs its mesh"]),
    "a mesh in a tree": ({"w": MESH}, {"w": MATRIX}, ["leaf 'w'", "a mesh needs a spec"]),
    "a string": ("x", {"w": MATRIX}, ["leaf 'w'", "got 'x'"]),
    "a number": (3, {"w": MATRIX}, ["leaf 'w'", "got 3"]),
    "a number in a tree": ({"a": 3}, {"a": {"w": MATRIX}}, ["leaf 'a.w'", "got 3"]),
    "arrays": ({"w": MATRIX}, {"w": MATRIX}, ["leaf 'w'", "expected a Sharding, a Device, None"]),
    "avals": ({"w": jax.ShapeDtypeStruct((8, 8), "float32")}, {"w": MATRIX}, ["leaf 'w'"]),
    "an empty tree": ({}, {"w": MATRIX}, ["leaf 'w': expected the sharding tree to be a prefix"]),
    "an empty container": ({"a": {}}, {"a": {"w": MATRIX}}, ["leaf 'a.w': expected the sharding"]),
    "all that is left out": ({"v": A}, {"w": MATRIX, "v": MATRIX, "u": [MATRIX]},
                             ["2 leaves ('u.0', 'w'):", "None for JAX's default device"]),
    "a flat tree for a deep one": ({"w": A}, {"m": {"w": MATRIX}}, ["leaf 'm.w'", "sharding 'w'"]),
    "deeper than the tree": ({"w": {"x": A}}, {"w": MATRIX}, ["leaf 'w'", "sharding 'w.x'"]),
    "one too many": ({"w": A, "v": A, "u": D3}, {"w": MATRIX},
                     ["sharding 'v'", "sharding 'u'", "none among 1 ('w'): remove it"]),
    "patterns": ({"*.w": P("x"), "b.*": A}, {"a": {"w": MATRIX}},
                 ["leaf 'a.w'", f"'*.w': expected a leaf of that name or below it, got none among "
                  f"1 ('a.w'): for patterns, pass sharding_rules(mesh, [('*.w', {P('x')!r})])",
                  f"sharding_rules(mesh, [('b.*', {A.spec!r})])"]),
    "a prefix by the letter": ({"a": A}, {"a.b": MATRIX, "a": MATRIX}, ["leaf 'a.b'"]),
    "a function that gives a spec": (lambda name, aval: P("x"), {"w": MATRIX},
                                     ["leaf 'w': expected the sharding function to return",
                                      "needs its mesh"]),
    "a function that gives a list": (lambda name, aval: [A], {"w": MATRIX}, ["leaf 'w'", "got ["]),
    "rules that match nothing": (sharding_rules(MESH, [("*.kernel", P())]),
                                 {"w": MATRIX, "v": MATRIX},
                                 ["expected '*.kernel' to match", "2 ('v', 'w')",
                                  "must_match=False"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_sharding_that_does_not_fit_the_tree_is_an_error(case: str) -> None:
    argument, tree, messages = WRONG[case]
    with pytest.raises(ShardingError) as caught:
        resolved(argument, tree)
    assert str(caught.value).startswith("m.safetensors: ")
    for message in messages:
        assert message in str(caught.value)


def test_patterns_in_a_tree_are_rules_as_the_error_says() -> None:
    tree = {"a": {"w": MATRIX}, "b": MATRIX}
    with pytest.raises(ShardingError) as caught:
        resolved({"*.w": A, "b": D3}, tree)
    told = re.search(r"for patterns, pass (sharding_rules\(.*)", str(caught.value))
    assert told is not None
    names = {"sharding_rules": sharding_rules, "mesh": MESH, "P": P, "PartitionSpec": P}
    assert resolved(eval(told[1], names), tree)["a.w"] == A


def test_one_error_names_every_leaf_that_a_sharding_does_not_divide() -> None:
    tree = {"a": np.zeros((7, 8)), "b": np.zeros((8, 7)), "c": np.zeros(5), "d": np.float32(1)}
    with pytest.raises(ShardingError) as caught:
        resolved(A, tree)
    text = str(caught.value)
    assert "does not fit 3 of 4 leaves" in text
    for name, described in (("a", "float64[7,8]"), ("c", "float64[5]"), ("d", "float32[]")):
        assert f"leaf '{name}': expected a sharding that divides {described}, got" in text
    assert "leaf 'b'" not in text


@pytest.mark.parametrize(
    ("shape", "sharding"),
    [((8,), NamedSharding(MESH, P(None, "x"))), ((), NamedSharding(MESH, P("x"))),
     ((8,), NamedSharding(MESH, P(None, None))),
     ((3,), NamedSharding(MESH, P(("x", "y")))), ((0, 3), NamedSharding(MESH, P(None, "x")))],
)  # fmt: skip
def test_a_default_is_checked_as_well(shape: tuple[int, ...], sharding: Sharding) -> None:
    with pytest.raises(ShardingError, match="leaf 'w': expected a sharding that divides"):
        resolved(None, {"w": np.zeros(shape)}, {"w": sharding})


def test_abstract_meshes_become_those_of_the_context() -> None:
    explicit = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    abstract = NamedSharding(explicit.abstract_mesh, P("x"))
    with pytest.raises(ShardingError, match=r"whose mesh is abstract: .*jax\.set_mesh\(mesh\)"):
        resolved(abstract, {"w": MATRIX})
    with jax.set_mesh(explicit):
        assert resolved(abstract, {"w": MATRIX}) == {"w": NamedSharding(explicit, P("x"))}


def test_memory_kinds_are_kept() -> None:
    kind = DEVICES[0].default_memory().kind
    sharding = NamedSharding(MESH, P("x"), memory_kind=kind)
    assert resolved(sharding, {"w": MATRIX})["w"].memory_kind == kind


REMEDIES: dict[str, tuple[Any, Any]] = {
    # What is loaded, and a sharding that does not fit it.
    "rows that do not divide": ({"w": np.zeros((7, 8), "f4")}, A),
    "columns that do not divide": ({"w": {"k": np.zeros((8, 5), "f4")}},
                                   NamedSharding(MESH, P(None, "y"))),
    "by a rule": ({"w": np.zeros((7, 8), "f4")}, sharding_rules(MESH, [("w", P("x"))])),
}  # fmt: skip


@pytest.mark.parametrize("case", REMEDIES)
def test_padding_as_the_error_says_makes_a_sharding_divide(case: str) -> None:
    tree, sharding = REMEDIES[case]
    data = safejax.serialize(tree)
    with pytest.raises(ShardingError, match="does not divide") as caught:
        safejax.deserialize(data, sharding=sharding)
    told = re.search(r"pass transform=(pad\(.*?\)), or", str(caught.value))
    assert told is not None
    step = eval(told[1], {"pad": safejax.pad})
    (leaf,) = jax.tree.leaves(safejax.deserialize(data, transform=step, sharding=sharding))
    assert leaf.committed
    if case == "by a rule":
        assert "leaf 'w': by the rule 'w': expected a sharding" in str(caught.value)


def test_a_spec_for_more_axes_than_there_are_names_the_rule() -> None:
    rules = sharding_rules(MESH, [("*.bias", P("x", "y")), ("*", P())])
    tree = {f"layer{number}": {"bias": np.zeros(8, "f4")} for number in range(50)}
    with pytest.raises(ShardingError) as caught:
        resolved(rules, tree)
    message = str(caught.value)
    assert "50 leaves ('layer0.bias', 'layer1.bias'" in message
    assert "by the rule '*.bias': expected a sharding that divides float32[8]" in message
    assert message.endswith("give a PartitionSpec of at most 1 entry")
    assert len(message.splitlines()) == 2


def test_a_list_of_devices_is_one_line() -> None:
    with pytest.raises(ShardingError, match=r"got 8 devices: make a mesh of them, ") as caught:
        resolved(jax.devices(), {f"w{number}": MATRIX for number in range(30)})
    assert len(str(caught.value).splitlines()) == 1


def test_a_spec_is_over_the_mesh_of_the_context() -> None:
    """(R11)"""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    tree = {"w": MATRIX, "v": MATRIX}
    with jax.set_mesh(mesh):
        assert resolved(P("data"), tree) == {"w": rows, "v": rows}
        assert resolved({"w": P("data"), "v": P()}, tree) == {"w": rows, "v": whole}
        by_name = resolved(lambda name, aval: P("data") if name == "w" else None, tree)
        assert by_name == {"w": rows}
    data = safejax.serialize({"w": np.arange(16.0, dtype="f4")})
    with jax.set_mesh(mesh):
        leaf = safejax.deserialize(data, sharding=P("data"))["w"]
    assert leaf.sharding == rows
    assert leaf.addressable_shards[3].data.tolist() == [6.0, 7.0]


def test_a_mesh_makes_devices_of_the_abstract_meshes_in_like() -> None:
    """(R8)"""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    abstract = mesh.abstract_mesh
    like = {
        "w": jax.ShapeDtypeStruct((8, 8), "float32", sharding=NamedSharding(abstract, P("x"))),
        "b": jax.ShapeDtypeStruct((8,), "float32", sharding=NamedSharding(abstract, P())),
    }
    data = safejax.serialize({"w": np.ones((8, 8), "f4"), "b": np.ones(8, "f4")})
    loaded = safejax.deserialize(data, like=like, sharding=mesh)
    assert loaded["w"].sharding == NamedSharding(mesh, P("x"))
    assert loaded["b"].sharding.mesh == mesh
    with jax.set_mesh(mesh):
        again = safejax.deserialize(data, like=like)
    assert again["w"].sharding == loaded["w"].sharding
    with pytest.raises(ShardingError, match=r"2 of 2 leaves:\n.*or pass sharding=mesh, a mesh of"):
        safejax.deserialize(data, like=like)
    other = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2], axis_types=(AxisType.Auto,))
    with pytest.raises(ShardingError, match="whose mesh is abstract"):
        safejax.deserialize(data, like=like, sharding=other)


def test_a_layout_is_refused_with_what_to_do() -> None:
    """(R15)"""
    sharding = SingleDeviceSharding(jax.devices()[1])
    given = Format(Layout((1, 0)), sharding)
    data = safejax.serialize({"w": np.ones((2, 3), "f4")})
    for argument in (given, {"w": given}, lambda name, aval: given):
        with pytest.raises(ShardingError, match=r"give its sharding, and call jax.device_put"):
            safejax.deserialize(data, sharding=argument)
    like = {"w": jax.ShapeDtypeStruct((2, 3), "float32", sharding=given)}
    with pytest.raises(ShardingError, match=r"leaf 'w': expected a sharding in like, got the lay"):
        safejax.deserialize(data, like=like)
    loaded = safejax.deserialize(data, sharding=given.sharding)["w"]
    layout: Any = jax.device_put(loaded, given).format.layout
    assert layout.major_to_minor == (1, 0)


# ---- rules


def test_the_first_rule_that_matches_wins() -> None:
    rules = sharding_rules(
        MESH,
        [("*.{i}.w", P("x")), (lambda name: name.endswith("w"), P("y")), ("head", None)],
    )
    aval = jax.ShapeDtypeStruct((8, 8), "float32")
    expected = {"l.0.w": P("x"), "w": P("y"), "l.0.b": P(), "head": P(), "HEAD": P()}
    assert {name: rules(name, aval).spec for name in expected} == expected
    assert {rules(name, aval).mesh for name in expected} == {MESH}


def test_a_rule_that_must_match() -> None:
    tree = {"a.w": MATRIX, "n": 3}
    assert resolved(sharding_rules(MESH, [("*.w", P("x"))]), tree) == {"a.w": A}
    # A scalar is not placed.
    with pytest.raises(ShardingError, match="expected 'n' to match an array"):
        resolved(sharding_rules(MESH, [("n", P())]), tree)
    rules = sharding_rules(MESH, [("gone", P("y")), ("*", P("x"))], must_match=False)
    assert resolved(rules, tree) == {"a.w": A}
    # A predicate is called, and may return false.
    assert resolved(sharding_rules(MESH, [(lambda name: False, P("y"))]), tree) == {"a.w": C}


def test_a_rule_that_earlier_ones_shadow_is_told_and_the_remedy_works() -> None:
    """(issue 18, 6)"""
    tree = {"a.w": MATRIX, "b.w": MATRIX}
    rules: list[Any] = [("*.w", P("x")), ("a.w", P("y")), (re.compile("b.*"), P())]
    with pytest.raises(ShardingError) as caught:
        resolved(sharding_rules(MESH, rules), tree)
    message = str(caught.value)
    assert "expected 'a.w' to match an array of its own, but '*.w', before it, matches" in message
    assert "1 ('a.w') and others: put 'a.w' first; expected re.compile('b.*') to match" in message
    first = {"a.w": P("y"), "b.w": P()}
    found = resolved(sharding_rules(MESH, [*rules[1:], ("*", P("x"))], must_match=False), tree)
    assert {name: each.spec for name, each in found.items()} == first
    # Nothing is lost where the specs are the same, where that is said, and by a last rule for all.
    last = sharding_rules(MESH, [("a.w", P("x")), ("b.*", P("x")), ("*", P("y"))])
    assert resolved(last, tree) == {"a.w": A, "b.w": A}
    same = sharding_rules(MESH, [("*.w", P("x")), ("a.w", P("x"))])
    assert resolved(same, tree) == {"a.w": A, "b.w": A}
    assert resolved(sharding_rules(MESH, rules, must_match=False), tree) == {"a.w": A, "b.w": A}


def test_all_rules_that_match_nothing_are_named() -> None:
    with pytest.raises(ShardingError, match=r"expected 'p' to .*, nor does 'q', 'r': correct it"):
        resolved(sharding_rules(MESH, [(each, P()) for each in "pqr"]), {"a.w": MATRIX})


def test_the_first_rule_wins_whatever_kind_it_is_of() -> None:
    """(issue 18: rules are looked up as patterns are, and not tried one by one)"""
    wheres: list[Any] = [
        "a.{i}.w", lambda name: name == "a.1.b", "a.1.b", re.compile(r"b\.[01]\.w"), "b.{i}.w",
        ("*.w", "!c.*"), "c.1.w", "*.b",
    ]  # fmt: skip
    rules = sharding_rules(MESH, [(where, P()) for where in wheres], must_match=False)
    names = [f"{a}.{i}.{w}" for a in "abcd" for i in range(3) for w in "wbx"]
    found = {name: rules.rule(name) for name in names}
    for name in names:
        expected = next((where for where in wheres if any_of(where)(name)), None)
        assert (None if found[name] is None else found[name][0]) is expected, name
    used = [wheres.index(rule[0]) for rule in found.values() if rule is not None]
    assert set(used) == {0, 1, 3, 4, 5, 6, 7}


RULES: dict[str, tuple[Callable[[], Any], str]] = {
    "no mesh": (lambda: sharding_rules(P(), []), "expected a jax.sharding.Mesh"),
    "no spec": (lambda: sharding_rules(MESH, [("*", "x")]), "'*': expected a PartitionSpec or"),
    "a sharding": (lambda: sharding_rules(MESH, [("*", A)]), "expected a PartitionSpec or None"),
    "an axis the mesh lacks": (lambda: sharding_rules(MESH, [("*", P("z"))]), "'*': "),
    "a dict": (lambda: sharding_rules(MESH, {"ab": P()}), "pass list(rules.items())"),
    "a triple": (lambda: sharding_rules(MESH, [("*", P(), 1)]), "expected pairs"),
    "no pattern": (lambda: sharding_rules(MESH, [(3, P())]), "expected a pattern or a function"),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_rules_are_checked_when_they_are_made(case: str) -> None:
    make, message = RULES[case]
    with pytest.raises(ShardingError) as caught:
        make()
    assert str(caught.value).startswith("sharding_rules: ")
    assert message in str(caught.value)


def test_a_wrong_pattern_is_an_error_when_the_rule_is_made() -> None:
    with pytest.raises(TransformError, match="pattern"):
        sharding_rules(MESH, [("{", P())])


def test_rules_are_values() -> None:
    rules = [("*.w", P("x"))]
    assert sharding_rules(MESH, rules) == sharding_rules(MESH, rules)
    assert sharding_rules(MESH, rules) != sharding_rules(MESH, rules, must_match=False)


def test_nothing_is_placed() -> None:
    array = jnp.ones((8, 8))
    resolved(A, {"w": array})
    assert array.sharding == SingleDeviceSharding(DEVICES[0])
