"""The text that a plan prints."""

from safejax._src.planning.table import listed, table, with_commas


def test_a_table_aligns_titles_left_and_counts_right() -> None:
    rows = [("device cpu:0", (12672, 65)), ("process 0", (7, 1234567, 89)), ("nothing", ())]
    assert table(("bytes", "spans", "copied"), rows) == [
        "               bytes      spans  copied",
        "device cpu:0  12,672         65",
        "process 0          7  1,234,567      89",
        "nothing",
    ]


def test_a_table_without_rows_has_its_columns() -> None:
    assert table(("bytes", "spans"), []) == ["  bytes  spans"]


def test_digits_are_grouped() -> None:
    assert [with_commas(count) for count in (0, 999, 1000, 1234567)] == [
        "0", "999", "1,000", "1,234,567",
    ]  # fmt: skip


def test_a_list_spells_out_five_names() -> None:
    names = ["a", "b", "c", "d", "e", "f", "g"]
    assert listed(names[:1]) == "'a'"
    assert listed(names[:5]) == "'a', 'b', 'c', 'd', 'e'"
    assert listed(names) == "'a', 'b', 'c', 'd', 'e', … 2 more"
