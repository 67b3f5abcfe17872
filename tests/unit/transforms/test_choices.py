"""What `where=` takes, what templates match, and how many leaves are stacked: tables of cases."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import safejax
from safejax import (
    LazyArray,
    Leaves,
    ShardingError,
    TransformError,
    chain,
    drop,
    flatten,
    permute,
    prefix,
    rename,
    reshape,
    select,
    sharding_rules,
    split,
    stack,
    transpose,
    unstack,
)
from safejax._src.pytrees.patterns import Template

ANY = cast("Any", lambda value: value)  # What type checkers would refuse.
MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
LEAVES = Leaves({"a.w": MATRIX, "a.b": MATRIX[0], "b.w": MATRIX, "head.w": MATRIX, "n": 3})

# ---- where

WHERES: dict[str, tuple[Any, set[str]]] = {
    "several": (("a.w", "b.w"), {"a.w", "b.w"}),
    "a list": (["a.w", "n"], {"a.w", "n"}),
    "all but": (("*.w", "!head.*"), {"a.w", "b.w"}),
    "only all but": (("!*.w",), {"a.b", "n"}),
    "a regular expression": (re.compile(r"[ab]\.(w|x)"), {"a.w", "b.w"}),
    "one that has to match the whole name": (re.compile("(?:a|n)"), {"n"}),
    "a function of the name": (str.isalpha, {"n"}),
    "one of the aval": (lambda name, aval: aval is not None and aval.ndim == 1, {"a.b"}),
    "one with a default": (lambda name, least=2: len(name) < least, {"n"}),
    "mixed": ((re.compile("a.*"), lambda name, aval: aval is None, "!*.w"), {"a.b", "n"}),
}


@pytest.mark.parametrize("case", WHERES)
def test_where_chooses(case: str) -> None:
    where, names = WHERES[case]
    assert set(select(where)(LEAVES)) == names
    assert set(drop(where)(LEAVES)) == set(LEAVES) - names
    changed = reshape(where, (-1,))(LEAVES)
    arrays = {name for name in names if name != "n"}
    assert {name for name in LEAVES if changed[name] is not LEAVES[name]} == arrays - {"a.b"}


def test_where_is_printed_as_it_was_written_and_what_matches_nothing_is_named() -> None:
    t = reshape(["a.w", "!a.b"], (-1,))
    assert repr(t) == "reshape(('a.w', '!a.b'), (-1,))"
    assert eval(repr(t)) == t
    assert repr(select(re.compile("a"), "!b")) == "select(re.compile('a'), '!b')"
    assert repr(reshape(("a",), (1,))) == "reshape(('a',), (1,))"
    for missing in ("x.w", "!x.w", re.compile("x")):
        where = ("a.w", missing)
        with pytest.raises(TransformError, match=r"x.* to match a leaf, it matches none of the 5"):
            reshape(where, (-1,))(LEAVES)
        assert set(select(where, must_match=False)(LEAVES)) == {"a.w"}
    with pytest.raises(TransformError, match="expected a pattern or a function"):
        reshape(ANY([]), (1,))
    with pytest.raises(TransformError, match="expected a pattern or a function"):
        reshape(ANY(["a", 3]), (1,))
    with pytest.raises(TransformError, match="a regular expression for strings"):
        reshape(ANY(re.compile(b"a")), (1,))
    with pytest.raises(TransformError, match=r"pattern 'a\{'"):
        reshape(("b", "!a{"), (1,))


def test_sharding_rules_take_the_same() -> None:
    mesh = jax.make_mesh((2,), ("x",))
    rules = sharding_rules(
        mesh, [(("*.w", "!head.*"), P("x")), (re.compile("hea.*"), P(None, "x"))]
    )
    aval = jax.ShapeDtypeStruct((4, 2), "float32")
    specs = {name: ANY(rules(name, aval)).spec for name in ("a.w", "head.w", "n")}
    assert specs == {"a.w": P("x"), "head.w": P(None, "x"), "n": P()}
    tree = {"a.w": jnp.ones((4, 2))}
    data = safejax.serialize(tree)
    with pytest.raises(ShardingError, match=r"expected re.compile\('hea.*'\) to match an array"):
        safejax.deserialize(data, sharding=rules)
    with pytest.raises(ShardingError, match="asks for the abstract value, too"):
        sharding_rules(mesh, [(lambda name, aval: True, P())])


# ---- templates

TEMPLATES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    # The templates, and names with what they become.
    "alternatives": ({"attn.{p:q|k|v}.w": "{p}.kernel"},
                     {"attn.q.w": "q.kernel", "attn.v.w": "v.kernel", "attn.o.w": "attn.o.w",
                      "o.kernel": "o.kernel"}),
    "numbers": ({"h{i:int}.w": "layers.{i}"},
                {"h0.w": "layers.0", "h12.w": "layers.12", "hx.w": "hx.w", "layers.x": "layers.x"}),
    "with dots": ({"{p:a|a.b}.{i}": "x.{i}.{p}"}, {"a.b.c": "x.c.a.b", "a.c": "x.c.a"}),
    "one that begins another": ({"{p:q|qkv}_w": "{p}.w"}, {"qkv_w": "qkv.w", "q_w": "q.w"}),
    "with a star": ({"*.{p:w|b}": "{p} of *"}, {"a.c.w": "w of a.c", "a.x": "a.x"}),
    "one twice": ({"{p:a|b}.{p}": "{p}"}, {"a.a": "a", "a.b": "a.b"}),
    "said in the new name": ({"x.{p}": "{p:a|b}.x"}, {"x.a": "a.x", "x.c": "x.c"}),
}  # fmt: skip


@pytest.mark.parametrize("case", TEMPLATES)
def test_placeholders_match_what_they_say(case: str) -> None:
    templates, names = TEMPLATES[case]
    step = rename(templates)
    leaves = Leaves({name: number for number, name in enumerate(names)})
    renamed = step(leaves)
    assert list(renamed) == list(names.values())
    assert list(step.inverse(renamed)) == list(names)
    assert step.inverse.inverse == step
    assert eval(repr(step)) == step


def test_they_do_so_in_other_steps() -> None:
    fused = {"0": {"qkv": MATRIX, "gate": MATRIX}, "x": {"qkv": MATRIX}}
    parts = split("{i:int}.{p:qkv|x}", ["{i}.{p}.a", "{i}.{p}.b"])(flatten(fused))
    assert sorted(parts) == ["0.gate", "0.qkv.a", "0.qkv.b", "x.qkv"]
    t = stack("l.{i:int}.w")
    stacked = t(Leaves({"l.0.w": MATRIX, "l.1.w": MATRIX, "l.x.w": MATRIX}))
    assert stacked["l.w"].shape == (2, 4, 3)
    assert list(t.inverse(stacked)) == ["l.0.w", "l.1.w", "l.x.w"]


@pytest.mark.parametrize(
    "text", ["{i:}", "{i:d}", "{i:a|}", "{i:a|a}", "{:int}", "{p:a|b}.{p:a|c}"]
)
def test_placeholders_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(TransformError, match=re.escape(f"pattern {text!r}: expected")):
        select(text)


# ---- stack and unstack

LAYERS = {f"l.{i}.{part}": MATRIX + i for i in range(3) for part in ("w", "b")}


def test_numbers_from_another_one_on() -> None:
    leaves = Leaves({f"l.{i + 5}.w": MATRIX + i for i in range(3)})
    t = stack("l.{i}.w", start=5, count=3)
    np.testing.assert_array_equal(np.asarray(t(leaves)["l.w"]), np.stack(list(leaves.values())))
    assert list(t.inverse(t(leaves))) == list(leaves)
    assert t.inverse.inverse == t
    for step in (t, t.inverse):
        assert eval(repr(step)) == step


def test_some_layers_are_stacked_and_others_left_alone() -> None:
    leaves = Leaves({f"l.{i}.w": MATRIX + i for i in range(6)} | {"l.4.moe": MATRIX})
    dense, sparse = stack("l.{i}.*", "a.*", count=2), stack("l.{i}.*", "b.*", start=2, count=4)
    with pytest.raises(
        TransformError, match=r"'b\.moe': expected the numbers 2 to 4, 2 is missing"
    ):
        sparse(leaves)
    both = chain(drop("*.moe", inverse={}), dense, sparse)
    stacked = both(leaves)
    assert {name: leaf.shape[0] for name, leaf in stacked.items()} == {"a.w": 2, "b.w": 4}
    np.testing.assert_array_equal(np.asarray(stacked["b.w"][1]), MATRIX + 3)
    back = both.inverse(stacked)
    assert list(back) == [f"l.{i}.w" for i in range(6)]
    assert all(np.array_equal(back[name], leaves[name]) for name in back)
    # One that is left alone must not be taken for one of these.
    with pytest.raises(TransformError, match=r"leaf 'l.3.w': expected leaves that are left alone"):
        sparse.inverse(Leaves({"l.3.w": MATRIX, "b.w": np.ones((4, 2))}))


def test_leaves_with_names_are_stacked_and_taken_apart() -> None:
    leaves = Leaves({"q": MATRIX, "k": MATRIX + 1})
    t = stack(["q", "k"], "qk", axis=1)
    assert t(leaves)["qk"].shape == (4, 2, 3)
    np.testing.assert_array_equal(np.asarray(t(leaves)["qk"][:, 1]), MATRIX + 1)
    assert list(t.inverse(t(leaves))) == ["q", "k"]
    for step in (t, t.inverse):
        assert eval(repr(step)) == step


STACKS: dict[str, tuple[Any, Any, str]] = {
    "fewer than next to it": (
        stack("l.{i}.*"), {**LAYERS, "l.0.c": MATRIX}, "'l.c': expected 3 leaves, as others have"
    ),
    "another count": (stack("l.{i}.*", count=4), LAYERS, "'l.w': expected 4 leaves, got 3"),
    "all that are at fault": (
        stack("l.{i}.*"),
        {**LAYERS, "l.1.c": MATRIX, "l.0.d": MATRIX},
        "'l.c': expected the numbers 0 to 1, 0 is missing, got 1; 'l.d': expected 3 leaves",
    ),
    "below the first": (stack("l.{i}.*", start=1), LAYERS, "numbers from 1 on, got 0, 1, 2"),
    "a name too few": (unstack("l.0.w", ["a", "b"]), LAYERS, "the size 2 of axis 0, one for each"),
    "another size": (unstack("l.0.w", "w.{i}", count=3), LAYERS, "the size 3 of axis 0, got the"),
}  # fmt: skip


@pytest.mark.parametrize("case", STACKS)
def test_another_number_of_leaves_is_an_error(case: str) -> None:
    step, entries, message = STACKS[case]
    with pytest.raises(TransformError, match=re.escape(message)):
        step(Leaves(entries))


def test_leaves_of_another_container_may_be_fewer() -> None:
    more = {f"dec.{i}.w": MATRIX for i in range(2)}
    t = stack("{m}.{i}.*", "{m}.*")
    assert {name: leaf.shape[0] for name, leaf in t(Leaves({**LAYERS, **more})).items()} == {
        "l.w": 3, "l.b": 3, "dec.w": 2,
    }  # fmt: skip


WRONG: list[tuple[Any, str]] = [
    (lambda: stack("l.{i}", start=-1), "start to be an int of 0 or more, got -1"),
    (lambda: stack("l.{i}", "l", count=0), "count to be an int of 1 or more, got 0"),
    (lambda: stack(["a", "b"], "c", start=1), "with a number in the names"),
    (lambda: stack(["a", "b"]), "the template of the new name"),
    (lambda: stack(["a", "b.{i}"], "c"), "the same placeholders"),
    (lambda: unstack("a", ["b", "b"]), "one twice"),
    (lambda: unstack("a", ANY(3)), "templates to be strings, got 3"),
    (lambda: reshape("w", (), axis=0), "one size or more with axis"),
    (lambda: reshape("w", (2, 2), axis=2)(Leaves({"w": MATRIX})), "1 axes from axis 2 on"),
    (lambda: reshape("w", (2,), source=(3, 1), axis=0)(Leaves({"w": MATRIX})), r"\[3, 1\] from ax"),
]


@pytest.mark.parametrize(("build", "message"), WRONG)
def test_numbers_names_and_axes_that_do_not_fit_are_errors(build: Any, message: str) -> None:
    with pytest.raises(TransformError, match=message):
        build()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_axis_gets_a_shape_and_the_others_stay(axis: int) -> None:
    cube = np.arange(6 * 8 * 6).reshape(6, 8, 6)
    t = reshape("w", (2, -1), axis=axis)
    shape = (*cube.shape[: axis % 3], 2, cube.shape[axis] // 2, *cube.shape[axis % 3 + 1 :])
    made = t(Leaves({"w": cube}))
    np.testing.assert_array_equal(np.asarray(made["w"]), cube.reshape(shape))
    assert t.inverse(made)["w"].shape == cube.shape
    assert eval(repr(t)) == t
    assert eval(repr(t.inverse)) == t.inverse


# ---- messages


def test_all_names_at_fault_are_in_the_message_and_the_step_is_last_and_short() -> None:
    leaves = Leaves({f"x{i}": i for i in range(20)})
    for step in (rename({"a": "b"}, strict=True), prefix("m").inverse):
        with pytest.raises(TransformError) as caught:
            step(leaves)
        message = str(caught.value)
        assert message.startswith("expected ")
        assert "'x0', 'x1', 'x2', 'x3', 'x4', 'x5', 'x6', 'x7' and 12 more" in message
        assert message.endswith(f"; in {step!r}")
    long = rename({f"name.{i}": f"another.{i}" for i in range(200)}, strict=True)
    with pytest.raises(TransformError) as caught:
        long(leaves)
    assert len(str(caught.value)) < 500


def test_a_leaf_prints_the_name_that_it_has_now_and_is_placed_once() -> None:
    t = chain(rename({"w": "v"}), prefix("m"))
    (leaf,) = t(safejax.decode(safejax.serialize({"w": MATRIX}))).values()
    assert isinstance(leaf, LazyArray)
    assert repr(leaf) == "LazyArray(float32[4,3], name='m.v', unread)"
    placed = leaf.placed()
    (again,) = t.inverse(Leaves({"m.v": leaf})).values()
    assert (again.name, again.placed() is placed) == ("w", True)
    table = safejax.correspond([("w", "v")])
    (leaf,) = table(safejax.decode(safejax.serialize({"w": MATRIX}))).values()
    assert leaf.name == "v"


def test_permute_takes_a_regular_expression_too() -> None:
    leaf = permute(re.compile(".*"), 0, [3, 2, 1, 0])(Leaves({"w": MATRIX}))["w"]
    np.testing.assert_array_equal(np.asarray(leaf), MATRIX[::-1])


def test_a_choice_by_the_aval_restores_what_it_drops_and_has_to_choose_the_same_again() -> None:
    vectors = drop(lambda _, aval: aval.ndim == 1, inverse={"b": MATRIX[0]})
    assert list(vectors.inverse(vectors(Leaves({"a": MATRIX, "b": MATRIX[0]})))) == ["a", "b"]
    shapes = Leaves({"a": MATRIX, "b": MATRIX.T, "c": MATRIX[:3]})
    tall = transpose(lambda _, aval: aval.shape[0] >= aval.shape[1])
    with pytest.raises(TransformError, match=r"same leaves before and after .* of 'a' it does not"):
        tall(shapes)
    assert transpose(lambda _, aval: aval.ndim == 2)(shapes)["a"].shape == (3, 4)
    with pytest.raises(TransformError, match=r"write \('!\*.w',\), a tuple"):
        transpose("!*.w")(LEAVES)


def test_all_leaves_that_a_step_does_not_fit_are_named_in_their_order() -> None:
    found = r"leaf 'a.b': expected 2 axes.*; 'l.0', 'l.1' are at fault, too"
    many = Leaves({"a.w": MATRIX, "a.b": MATRIX[0], "l.0": MATRIX[0], "l.1": MATRIX[0]})
    with pytest.raises(TransformError, match=found):
        transpose("*.*")(many)


def brute_force(template: Template, name: str) -> dict[str, str] | None:
    """The match of the regular expression in which nothing is final."""
    text, names = re.escape(template.parts[0]), list(dict.fromkeys(template.placeholders))
    kinds = {None: r"[^.]+?", "int": "[0-9]+?"}
    seen: set[str] = set()
    for placeholder, among, literal in zip(
        template.placeholders, template.among, template.parts[1:], strict=True
    ):
        group = f"g{names.index(placeholder)}"
        if isinstance(among, tuple):
            kind = "|".join(map(re.escape, sorted(among, key=len)))
        else:
            kind = ".*?" if placeholder.startswith("*") else kinds[among]
        text += f"(?P={group})" if placeholder in seen else f"(?P<{group}>{kind})"
        text += re.escape(literal)
        seen.add(placeholder)
    found = re.fullmatch(text, name)
    return None if found is None else {each: found[f"g{n}"] for n, each in enumerate(names)}


PLACEHOLDERS = ["*", "{%}", "{%:int}", "{%:a|b}", "{%:a|ab}", "{%:abb|b}", "{%:1|a1}", "{p}"]
PIECES = st.tuples(st.sampled_from(["a", "1", ".", "b1", "a."]), st.sampled_from(PLACEHOLDERS))


@given(
    pieces=st.lists(PIECES, min_size=1, max_size=6),
    end=st.sampled_from(["", "a", "1", "."]),
    name=st.text("ab1.", max_size=12),
)
def test_templates_match_as_if_all_was_tried(
    pieces: list[tuple[str, str]], end: str, name: str
) -> None:
    text = "".join(before + each.replace("%", f"q{n}") for n, (before, each) in enumerate(pieces))
    template = Template.parse(text + end)
    match = template.matcher()
    for each in (name, f"{text.replace('*', '1')}{end}", *NAMES):
        assert match(each) == brute_force(template, each)


NAMES = ("a1", "a1.a1", "aab1.1", "b1b1a.a", "aaabb1", "1111", ".a.b1", "a.1a.1")
LONG = {
    "stars": ("*" + "".join(f".{{p{n}:a|b}}.*" for n in range(9)) + ".z", "a." * 60 + "x"),
    "stars and texts of several lengths": (
        "*" + "".join(f".{{p{n}:attn|b}}.*" for n in range(9)) + ".z", "b." * 60 + "x",
    ),
    "numbers": ("".join(f"{{p{n}:int}}1" for n in range(12)) + "z", "1" * 60),
    "segments and numbers": ("".join(f"{{p{n}}}1{{q{n}:int}}1" for n in range(9)) + "z", "1" * 60),
    "texts that begin alike": ("".join(f"{{p{n}:a|aa|aaa}}a" for n in range(20)) + "z", "a" * 90),
}  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_templates_that_match_nothing_say_so_before_the_end_of_time(case: str) -> None:
    text, name = LONG[case]
    assert Template.parse(text).matcher()(name) is None
