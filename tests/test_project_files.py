"""The files about the project are correct: the version, the packed files, the hooks, the links."""

import re
import tomllib
from pathlib import Path

import pytest

import safejax

ROOT = Path(safejax.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NOT_OF_USERS = ("test", "test-s3", "test-recipes", "fuzz", "bench", "dev")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


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


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_existing_files(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_a_message_that_nobody_reads_fails_the_test_that_causes_it() -> None:
    assert str(safejax.SafejaxError("x" * 4000))
    with pytest.raises(AssertionError, match="a message of 4001 characters"):
        safejax.SafejaxError("x" * 4001)
