"""The programs of all pages run, and say what they are said to say."""

import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.pages import DOCS, PAGES, ROOT, blocks_of, run_page, shown

ELSEWHERE = {
    "docs/files-elsewhere.md": "tests/unit/storage/test_elsewhere_page.py",  # It needs S3.
    "docs/format.md": "tests/unit/format/test_format_page.py",  # Programs and what they write.
    "docs/many-processes.md": "tests/unit/test_many_processes_page.py",  # In several processes.
    "docs/moving-from-0.5.md": "tests/unit/test_moving_page.py",  # Among a program's names of 0.5.
    "docs/with-orbax.md": "tests/system/test_pages.py",  # Twice: below.
}
"""Pages whose programs need more than a folder, and what runs them."""

RUN_HERE = [page for page in PAGES if blocks_of(page) and shown(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", RUN_HERE, ids=shown)
def test_the_programs_run(page: Path, tmp_path: Path) -> None:
    if any("import h5py" in block.text for block in blocks_of(page)):
        pytest.importorskip("h5py")
    run_page(page, tmp_path)


def test_a_program_with_orbax_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    page = DOCS / "with-orbax.md"

    def steps() -> list[int]:
        return sorted(int(path.name) for path in (tmp_path / "runs" / "7").iterdir())

    run_page(page, tmp_path, {"step < 20": "step < 12"}, last=1)
    assert steps() == [1, 5, 10]
    assert run_page(page, tmp_path)["step"] == 20
    assert steps() == [10, 15, 20]


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_the_others_are_run_by_their_own_tests(page: str, test: str) -> None:
    assert blocks_of(ROOT / page)
    assert Path(page).name in (ROOT / test).read_text()


def test_few_programs_are_not_run() -> None:
    left_out = [block for page in PAGES for block in blocks_of(page) if block.not_run]
    assert all(len(block.not_run or "") > 10 for block in left_out)
    assert len(left_out) <= 5, left_out


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_block_is_of_a_known_language(page: Path) -> None:
    """What is indented, or has another mark, would not be run."""
    fences = re.findall(r"^( *)(```+)(.*)$", page.read_text(), re.MULTILINE)
    assert {(indent, ticks) for indent, ticks, _ in fences} <= {("", "```")}
    assert len(fences) % 2 == 0
    languages = [language for _, _, language in fences[::2]]
    plain = languages.count("")
    assert set(languages) <= {"python", "json", "sh", "console", "text", "mermaid", ""}
    assert plain == len(blocks_of(page, ""))
    assert languages.count("python") == len(blocks_of(page))


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_the_extras_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"(?:safejax|/safejax|\.)\[([\w,-]+)\]'", page.read_text()):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "start"], ids=shown)
def test_no_start_installs_what_the_index_has_under_our_name(page: Path) -> None:
    """That is version 0.5, until 1.0 is there."""
    named = re.findall(r"pip install ['\"]?(\S*safejax)", page.read_text())
    assert [each for each in named if each == "safejax"] == (
        ["safejax"] if page.stem == "install" else []
    )


@pytest.mark.parametrize(
    "page", [page for page in PAGES if DOCS in page.parents and page.parent.name != "start"],
    ids=shown,
)  # fmt: skip
def test_an_extra_is_installed_where_safejax_is(page: Path) -> None:
    """The first command says so: until 1.0 is there, the index has 0.5 under our name."""
    text = page.read_text()
    first = re.search(r"pip install ['\"]?safejax", text)
    if first is not None:
        said = re.search(r"\bwhere\s\[safejax is installed\]\((?:\.\./)*start/install\.md\)", text)
        assert said is not None
        assert abs(said.start() - first.start()) < 300


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    assert len(re.findall(r"^```sh$", text, re.MULTILINE)) == 1


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert re.search(rf"[:-] {page.relative_to(DOCS)}$", site, re.MULTILINE), page


# ---- the reference

PUBLIC = ("", "equinox", "flax", "haiku", "nnx", "objax", "orbax", "orbax_v1", "recipes", "testing")
NAMES = [
    f"safejax.{module}.{name}".replace("..", ".")
    for module in PUBLIC
    for name in importlib.import_module(f"safejax.{module}".rstrip(".")).__all__
]
SHOWN = {
    name: page
    for page in (DOCS / "reference").glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)
}


def test_the_reference_has_every_public_name_and_no_other() -> None:
    assert SHOWN.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_a_docstring_and_an_example(name: str) -> None:
    module, _, last = name.rpartition(".")
    text = str(inspect.getdoc(getattr(importlib.import_module(module), last)))
    assert len(text) > 20
    if ">>> " not in text:  # It is in the program of its page.
        (program,) = blocks_of(SHOWN[name])
        assert re.search(rf"\b{last}\b", program.text)
