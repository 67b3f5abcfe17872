"""The wheel and the sdist, where they have been built: what is in them, and what they say.

`.ci/release` builds them, and names their folder in SAFEJAX_DIST.
"""

import email
import os
import subprocess
import tarfile
import tomllib
import zipfile
from email.message import Message
from pathlib import Path

import pytest

import safejax

ROOT = Path(safejax.__file__).parents[1]
FOLDER = os.environ.get("SAFEJAX_DIST")

pytestmark = pytest.mark.skipif(FOLDER is None, reason="SAFEJAX_DIST names no folder")

MOST_BYTES = 2_000_000
"""The most bytes of the sdist."""

TOP = {
    ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "PKG-INFO", "README.md",
    "SECURITY.md", "benchmarks", "conftest.py", "docs", "examples", "mkdocs.yml", "property_tests",
    "pyproject.toml", "safejax", "tests",
}  # fmt: skip
"""What the sdist has: all that its tests need, and nothing of CI."""


def built(kind: str) -> Path:
    (path,) = Path(FOLDER or "").glob(kind)
    return path


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of the checkout."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.splitlines())


@pytest.fixture(scope="module")
def sdist() -> set[str]:
    """The files of the sdist, below its one folder."""
    with tarfile.open(built("*.tar.gz")) as archive:
        names = [member.name for member in archive if member.isfile()]
    assert {name.partition("/")[0] for name in names} == {f"safejax-{safejax.__version__}"}
    return {name.partition("/")[2] for name in names}


@pytest.fixture(scope="module")
def wheel() -> dict[str, bytes]:
    with zipfile.ZipFile(built("*.whl")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel: dict[str, bytes]) -> Message:
    (data,) = (data for name, data in wheel.items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(data)


def test_the_sdist_has_what_its_tests_need(sdist: set[str], tracked: set[str]) -> None:
    assert {name.partition("/")[0] for name in sdist} == TOP
    folders = {name for name in TOP if (ROOT / name).is_dir()}
    expected = {name for name in tracked if name.partition("/")[0] in folders}
    assert {name for name in sdist if name.partition("/")[0] in folders} == expected


def test_the_sdist_is_small() -> None:
    assert built("*.tar.gz").stat().st_size < MOST_BYTES


def test_the_wheel_has_the_package_alone(wheel: dict[str, bytes], tracked: set[str]) -> None:
    info = f"safejax-{safejax.__version__}.dist-info"
    package = {name for name in tracked if name.startswith("safejax/")}
    assert {"safejax/py.typed", "safejax/_src/inspection/web/page.html"} < package
    assert wheel.keys() == package | {
        f"{info}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }
    assert b"Root-Is-Purelib: true" in wheel[f"{info}/WHEEL"]


def test_the_metadata_are_those_of_the_project(metadata: Message) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Name"] == "safejax"
    assert metadata["Version"] == safejax.__version__
    assert metadata["Summary"] == project["description"]
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == project["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_all("Classifier") == project["classifiers"]
    assert len(metadata.get_all("Project-URL", [])) == len(project["urls"]) > 0
    assert set(metadata.get_all("Provides-Extra", [])) == project["optional-dependencies"].keys()
    needed = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert [each.partition(">")[0] for each in needed] == [
        "jax",
        "ml-dtypes",
        "numpy",
        "safetensors",
    ]
    assert metadata.get_payload(decode=True) == (ROOT / "README.md").read_bytes()
