"""The files about the project are correct: the version, the packed files, the hooks, the links."""

import os
import re
import subprocess
import sys
import tomllib
import urllib.parse
from pathlib import Path

import pytest

import safejax
from tests.support.pages import headings, shown

ROOT = Path(safejax.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_OF_USERS = ("test", "test-s3", "test-gcs", "test-recipes", "fuzz", "bench", "dev", "docs")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[\w-]+\]: (\S+)$", re.MULTILINE)


def test_the_version_is_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    path = PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'\n__version__ = "{safejax.__version__}"\n' in (ROOT / path).read_text()


def test_the_changelog_begins_with_this_version() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert safejax.__version__ in sections[0]


def test_packed_files_exist() -> None:
    for name in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / name).exists(), name


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no hooks")
def test_the_hooks_are_what_ci_runs() -> None:
    entries = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    checks = (ROOT / ".ci" / "run").read_text()
    assert len(entries) == len(re.findall(r"\.venv/bin/(?:ruff|pyright)\b", checks)) == 4
    for entry in entries:
        assert re.search(rf"{re.escape(entry)}( \|\||$)", checks, re.M), entry


FAILING = """
import os, pytest

def helper():
    raise ValueError("the reason")

def test_deep():
    helper()

@pytest.mark.parametrize("n", range(int(os.environ["COUNT"])))
def test_many(n):
    assert list(range(100)) == [n]

def test_fine():
    pass
"""


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no CI")
def test_ci_ends_with_what_failed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(FAILING)

    def tested(count: int) -> str:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
        environment = {**os.environ, "COUNT": str(count)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        ).stdout

    def shown(rows: list[str], *logs: str) -> list[str]:
        parts = [f"part{number}" for number in range(len(logs))]
        for part, log in zip(parts, logs, strict=True):
            (tmp_path / part).write_text(log.replace("PART", part))
        (tmp_path / "table").write_text("\n".join(rows))
        command = [ROOT / ".ci" / "failures", tmp_path, *parts]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    before, after = "\n-- PART: install\nCollecting\n\n-- PART: tests\n", "\n-- PART: style\nfine\n"
    rows = ["part0|install|1|passed", "part0|tests|2|FAILED", "part0|style|1|passed"]
    lines = shown(rows, before + tested(1) + after)
    assert lines[1:7] == [
        "== what failed", "-- part0: tests", "test_deep",
        "    E       ValueError: the reason", "    test_it.py:5: ValueError", "test_many[0]",
    ]  # fmt: skip
    assert lines[7].startswith("    E       assert [0, 1, 2, 3, 4, 5, ...] == [0]")
    assert lines[-1] == "    test_it.py:12: AssertionError"
    assert len(lines) <= 2 + 1 + 3 + 12
    # Of many tests there is a line or two each.
    lines = shown(rows, before + tested(20) + after)
    assert lines[3:6] == ["test_deep", "    E       ValueError: the reason", "test_many[0]"]
    assert "test_many[19]" in lines
    assert len(lines) <= 2 + 60
    lines = shown(rows, before + tested(200) + after)
    assert len(lines) == 2 + 60 + 1
    assert lines[-1].startswith("and ")
    # Of what is no test, the last lines.
    style = "\n-- PART: style\n" + "\n".join(map(str, range(20)))
    style += "\n\n-- PART: tests\n... it hangs"
    assert shown(["part0|style|3|FAILED"], style, "there is no path\n", "") == [
        "", "== what failed", "-- part0: style", *(f"    {n}" for n in range(12, 20)),
        "-- part0: tests", "    ... it hangs",
        "-- part1", "    there is no path", "-- part2", "    no output",
    ]  # fmt: skip


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no CI")
def test_the_pythons_that_are_claimed_are_those_of_ci() -> None:
    run = set(re.findall(r"^(3\.\d+)\(\) \{", (ROOT / ".ci" / "run").read_text(), re.MULTILINE))
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    assert set(re.findall(r":: (3\.\d+)$", classifiers, re.MULTILINE)) == run
    supported = (ROOT / "README.md").read_text().partition("## Supported versions")[2]
    assert run <= set(re.findall(r"\b3\.\d+", supported))
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert oldest == min(run, key=lambda version: int(version[2:]))


@pytest.mark.skipif(not (ROOT / ".ci").exists(), reason="an sdist has no CI")
def test_ci_runs_with_every_lower_bound() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    users = [extras[name] for name in extras if name not in NOT_OF_USERS]
    bounds: dict[str, str] = {}
    for requirement in [
        *PROJECT["project"]["dependencies"],
        *(each for row in users for each in row),
    ]:
        name, _, version = requirement.partition(">=")
        if version:
            bounds[name] = version
    pins = dict(re.findall(r"^([\w-]+)==(.*)$", (ROOT / ".ci" / "oldest.txt").read_text(), re.M))
    # What these bounds come with, which pip would have to search for.
    assert pins.keys() - bounds.keys() == {"jaxlib", "aiobotocore", "boto3"}
    for name, version in bounds.items():
        # `>=0.8` begins at 0.8.0.
        assert (pins[name] + ".0").startswith(version + "."), name


def links_of(page: Path) -> list[str]:
    prose = re.sub(r"^```.*?^```$|`[^`\n]+`", "", page.read_text(), flags=re.M | re.S)
    return [inline or reference for inline, reference in LINK.findall(prose)]


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for link in links_of(page):
        if "://" in link:
            parts = urllib.parse.urlsplit(link)
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), link
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert list(headings(target.read_text())).count(anchor) == 1, link


def test_there_are_links_of_every_kind() -> None:
    links = {link for page in PAGES for link in links_of(page)}
    assert {"docs/how-to/mesh.md", "docs/explanation/file.md", "benchmarks/speed.png"} <= links
    assert "../how-to/bfloat16.md#64-bits" in links


def test_a_message_that_nobody_reads_fails_the_test_that_causes_it() -> None:
    assert str(safejax.SafejaxError("x" * 4000))
    with pytest.raises(AssertionError, match="a message of 4001 characters"):
        safejax.SafejaxError("x" * 4001)
