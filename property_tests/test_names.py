"""Patterns: the compiled matcher is compared with a plain search through all ways to match."""

import string

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from safejax._src.pytrees.choices import predicate
from safejax._src.pytrees.lookup import Lookup
from safejax._src.pytrees.names import join, split
from safejax._src.pytrees.patterns import Template, exactly
from safejax.errors import TransformError


def matches(tokens, name, values):
    """Every way in which tokens match a name, first those in which earlier tokens match less."""
    if not tokens:
        if not name:
            yield values
        return
    token, rest = tokens[0], tokens[1:]
    if isinstance(token, str):
        if name.startswith(token):
            yield from matches(rest, name[len(token) :], values)
        return
    (placeholder,) = token
    for length in range(len(name) + 1):
        text = name[:length]
        allowed = placeholder.startswith("*") or (text != "" and "." not in text)
        if allowed and values.get(placeholder, text) == text:
            yield from matches(rest, name[length:], {**values, placeholder: text})


# There are few characters, so that names match in many ways.
letters = st.sampled_from("ab.") | st.sampled_from("a.b*+[]{}()\\^$|?\n\u2028é")
literals = st.text(letters, min_size=1, max_size=3)
few_letters = st.text(st.sampled_from("ab."), min_size=1, max_size=2)


@st.composite
def patterns(draw):
    """The text of a pattern and its tokens, which are text or a placeholder in a tuple."""
    literal = draw(st.sampled_from([few_letters, literals]))
    text, tokens = "", []
    stars = 0
    for n in range(draw(st.integers(0, 5))):
        if n or draw(st.booleans()):
            between = draw(literal)
            text += between.replace("{", "{{").replace("}", "}}").replace("*", "a")
            tokens.append(between.replace("*", "a"))
        if draw(st.integers(0, 2)) == 0:
            text += "*"
            tokens.append((f"*{stars}",))
            stars += 1
        else:
            placeholder = draw(st.sampled_from("ijkl"))
            text += f"{{{placeholder}}}"
            tokens.append((placeholder,))
    if draw(st.booleans()):
        after = draw(literal)
        text += after.replace("{", "{{").replace("}", "}}").replace("*", "a")
        tokens.append(after.replace("*", "a"))
    return text, tokens


@st.composite
def cases(draw):
    """A pattern, and a name that it matches or nearly matches."""
    text, tokens = draw(patterns())
    values = {}
    name = ""
    for token in tokens:
        if isinstance(token, str):
            name += token
        elif token[0].startswith("*"):
            name += draw(st.text(st.sampled_from("ab."), max_size=4))
        else:
            segment = st.text(st.sampled_from("abx"), min_size=1, max_size=3)
            name += values.setdefault(token[0], draw(segment))
    change = draw(st.sampled_from(["none", "none", "drop", "insert", "swap"]))
    if change != "none" and name:
        at = draw(st.integers(0, len(name) - 1))
        put = "" if change == "drop" else draw(st.sampled_from("ab."))
        name = name[:at] + put + name[at + (change != "insert") :]
    return text, tokens, name


@given(cases())
@example(("*a.{i}", [("*0",), "a.", ("i",)], "b.a.b.a.c"))
@example(("{i}.*.{i}", [("i",), ".", ("*0",), ".", ("i",)], "a.b.a.c.a"))
@example(("*a{i}.{i}", [("*0",), "a", ("i",), ".", ("i",)], "aab.b"))
@example(("{i}a{j}a{i}", [("i",), "a", ("j",), "a", ("i",)], "aaaaaa"))
@example(("{i}x{j}x{i}", [("i",), "x", ("j",), "x", ("i",)], "axbxcxaxb"))
@example(("{i}ab*b", [("i",), "ab", ("*0",), "b"], "aabab.b"))
def test_a_pattern_matches_what_the_plain_search_matches(case):
    text, tokens, name = case
    found = Template.parse(text).matcher()(name)
    assert found == next(matches(tokens, name, {}), None)
    assert predicate(text)(name) is (found is not None)
    event("a match" if found is not None else "no match")


@given(cases())
def test_filling_in_what_was_matched_gives_the_name(case):
    text, _, name = case
    template = Template.parse(text)
    found = template.matcher()(name)
    if found is not None:
        assert template.fill(found) == name


@given(st.lists(cases(), min_size=1, max_size=6), st.booleans())
@example([("a.{i}", [], "a.x"), ("a.x", [], "a.y"), ("*.x", [], "b.x"), ("{i}.x", [], "x")], False)
@example([("{i}.a", [], "x.a"), ("b.*", [], "b.a"), ("b.a", [], "y.a")], False)
def test_a_lookup_finds_what_trying_each_template_finds_in_the_same_order(drawn, with_names):
    names = [name for *_, name in drawn]
    texts = [text for text, *_ in drawn] + (list(map(exactly, names)) if with_names else [])
    templates = list(map(Template.parse, texts))
    lookup = Lookup(templates)
    for name in names:
        tried = [(number, each.matcher()(name)) for number, each in enumerate(templates)]
        expected = [(number, values) for number, values in tried if values is not None]
        assert lookup.hits(name) == expected
        assert lookup.first(name) == next(iter(expected), (-1, None))
        event(f"{min(len(expected), 2)} hits or more")


@given(st.text(), st.text())
def test_a_pattern_without_placeholders_matches_only_its_own_text(text, other):
    for name in (text, other, text + other, text.swapcase(), text + "\n"):
        escaped = text.replace("{", "{{").replace("}", "}}")
        if "*" not in text:
            assert predicate(escaped)(name) is (name == text)


@given(st.text(st.sampled_from("{}*ij. 1" + string.ascii_letters), max_size=12))
def test_any_text_is_a_pattern_or_a_transform_error(text):
    try:
        template = Template.parse(text)
    except TransformError:
        event("an error")
        with pytest.raises(
            TransformError, match=r"^pattern .*: expected .* at character "
        ) as error:
            Template.parse(text)
        assert repr(text) in str(error.value)
        return
    event("a pattern")
    assert len(template.parts) == len(template.placeholders) + 1
    assert all(part for part in template.parts[1:-1])
    values = dict.fromkeys(template.placeholders, "x")
    assert template.matcher()(template.fill(values)) is not None


@given(st.lists(st.text(), min_size=1))
def test_split_and_join_are_inverse_on_segments_without_dots(segments):
    plain = tuple(segment.replace(".", "") for segment in segments)
    assert split(join(plain)) == plain
    assert join(split(join(segments))) == join(segments)


def test_the_plain_search_finds_every_way():
    tokens = [("*0",), "a", ("*1",)]
    ways = list(matches(tokens, "xaya", {}))
    assert ways == [{"*0": "x", "*1": "ya"}, {"*0": "xay", "*1": ""}]
    with pytest.raises(StopIteration):
        next(matches([("i",)], "a.b", {}))
