"""Names: how they are split, and which of them patterns and templates match."""

import time

import pytest

from safejax._src.pytrees.choices import predicate
from safejax._src.pytrees.names import join, split
from safejax._src.pytrees.patterns import Template
from safejax.errors import TransformError


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("a.b.c", ("a", "b", "c")),
        ("a", ("a",)),
        ("", ("",)),
        (".", ("", "")),
        ("a..b.", ("a", "", "b", "")),
        ("0.é\n/x", ("0", "é\n/x")),
    ],
)
def test_a_name_is_split_at_every_dot(name, segments):
    assert split(name) == segments
    assert join(segments) == name


MATCHES = [
    # whole names, case-sensitively
    ("a.b", "a.b", {}),
    ("a.b", "a.bc", None),
    ("a.b", "xa.b", None),
    ("a.b", "a.B", None),
    ("a.b", "axb", None),
    ("a.b", "a.b\n", None),
    ("", "", {}),
    ("", "a", None),
    # stars match dots, and the empty string
    ("*", "", {"*0": ""}),
    ("*", "a.b\nc", {"*0": "a.b\nc"}),
    ("*.kernel", "a.b.kernel", {"*0": "a.b"}),
    ("*.kernel", ".kernel", {"*0": ""}),
    ("*.kernel", "kernel", None),
    ("*.kernel", "a.kernel.bias", None),
    ("a*", "a", {"*0": ""}),
    ("a.*.b.*", "a.x.b.y.b.z", {"*0": "x", "*1": "y.b.z"}),
    ("*a*", "xaya", {"*0": "x", "*1": "ya"}),
    ("*.b", "a.b.b", {"*0": "a.b"}),
    # a placeholder is one segment, not empty
    ("layers.{i}.w", "layers.10.w", {"i": "10"}),
    ("layers.{i}.w", "layers..w", None),
    ("layers.{i}.w", "layers.1.2.w", None),
    ("{i}", "a\nb", {"i": "a\nb"}),
    ("{i}", "a.b", None),
    ("{i}", "", None),
    ("h{i}_{name}", "h0_w_b", {"i": "0", "name": "w_b"}),
    ("{i}_{j}", "a__b", {"i": "a", "j": "_b"}),
    ("{größe}.w", "3.w", {"größe": "3"}),
    ("*a.{i}", "b.a.b.a.c", {"*0": "b.a.b.", "i": "c"}),
    # repeated placeholders must be equal
    ("{i}.{i}", "a.a", {"i": "a"}),
    ("{i}.{i}", "a.b", None),
    ("{i}.{i}", "a.aa", None),
    ("{i}.*.{i}", "a.b.a.c.a", {"i": "a", "*0": "b.a.c"}),
    ("*.{i}.*.{i}.*", "a.b.c.d.c.e", {"*0": "a.b", "i": "c", "*1": "d", "*2": "e"}),
    ("{i}x{j}x{i}", "axbxa", {"i": "a", "j": "b"}),
    ("{i}x{j}x{i}", "axbxcxaxb", {"i": "axb", "j": "c"}),
    # everything else is text
    ("a+b", "a+b", {}),
    ("a+b", "aab", None),
    ("[ab]", "[ab]", {}),
    ("[ab]", "a", None),
    ("a?", "a?", {}),
    ("a?", "a", None),
    (r"a\d^$|()", r"a\d^$|()", {}),
    ("a#b c", "a#b c", {}),
    ("a\nb", "a\nb", {}),
    ("{{i}}", "{i}", {}),
    ("{{i}}", "{{i}}", None),
    ("{{{i}}}", "{7}", {"i": "7"}),
    ("{{{{", "{{", {}),
    ("}}", "}", {}),
]


@pytest.mark.parametrize(("pattern", "name", "values"), MATCHES)
def test_matching(pattern, name, values):
    template = Template.parse(pattern)
    assert template.matcher()(name) == values
    assert predicate(pattern)(name) is (values is not None)
    if values is not None:
        assert template.fill(values) == name


def test_a_function_can_be_a_predicate():
    assert predicate(str.isdigit) is str.isdigit


@pytest.mark.parametrize(
    ("pattern", "parts", "placeholders"),
    [
        ("", ("",), ()),
        ("*", ("", ""), ("*0",)),
        ("a.*.{i}_*", ("a.", ".", "_", ""), ("*0", "i", "*1")),
        ("{{{i}}}{{*", ("{", "}{", ""), ("i", "*0")),
        ("{{{i}", ("{", ""), ("i",)),
        ("{i}.{i}", ("", ".", ""), ("i", "i")),
    ],
)
def test_a_template_alternates_text_and_placeholders(pattern, parts, placeholders):
    assert Template.parse(pattern)[:3] == (pattern, parts, placeholders)


@pytest.mark.parametrize(
    ("pattern", "at", "got"),
    [
        ("a.{", 2, "'{'"),
        ("a.}", 2, "'}'"),
        ("{i}.}b", 4, "'}'"),
        ("{", 0, "'{'"),
        ("a{}", 1, "'{}'"),
        ("{0}", 0, "'{0}'"),
        ("{i j}", 0, "'{i j}'"),
        ("{ i}", 0, "'{ i}'"),
        ("{*}", 0, "'{*}'"),
        ("{i.j}", 0, "'{i.j}'"),
        ("{i:d}", 0, "'{i:d}'"),
        ("x{a{b}}", 1, "'{'"),
        ("**", 1, "none"),
        ("a.**", 3, "none"),
        ("*{i}", 1, "none"),
        ("{i}*", 3, "none"),
        ("{i}{j}", 3, "none"),
    ],
)
def test_the_error_for_a_bad_template_names_the_pattern_and_the_place(pattern, at, got):
    with pytest.raises(TransformError) as refusal:
        Template.parse(pattern)
    message = str(refusal.value)
    assert message.startswith(f"pattern {pattern!r}: expected ")
    assert f"at character {at}" in message
    assert f"got {got}" in message


SLOW = {
    "30 stars": ("*a" * 30 + "*c", "a" * 10_000),
    "30 stars, dots": ("*." * 30 + "b", "a." * 5_000),
    "30 stars, nearly": ("*ab" * 30 + "*c", "ab" * 4_999 + "b"),
    "30 stars of words": ("*.layer" * 30 + "*.x", ".layer" * 1_700),
    "30 placeholders": ("x".join(f"{{p{n}}}" for n in range(30)) + "y", "x" * 10_000),
    "30 placeholders, dots": (".".join(f"{{p{n}}}" for n in range(30)) + ".", "a." * 5_000),
    # Quadratic: a star before a segment is tried at every character.
    "both": ("*x{a}y{b}.*z{c}.q", "xy" * 1_500),
    "both, many": (".".join(f"*x{{p{n}}}" for n in range(15)), "x" * 3_000),
    "segments after a star": ("*a{i}b{j}c{k}d", "abc" * 700),
    "a repeated placeholder": ("{i}.*.{i}.x", "a." * 5_000),
}


@pytest.mark.parametrize("kind", SLOW)
def test_no_pattern_takes_exponential_time(kind):
    pattern, name = SLOW[kind]
    begin = time.process_time()
    assert not predicate(pattern)(name)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("kind", SLOW)
def test_names_that_match_only_after_a_long_search_match(kind):
    template = Template.parse(SLOW[kind][0])
    values = dict.fromkeys(template.placeholders, "q")
    filled = template.fill(values)
    assert template.matcher()(filled) is not None
