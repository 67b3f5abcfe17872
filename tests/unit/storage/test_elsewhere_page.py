"""docs/files-elsewhere.md: its programs run, and its figures are those of the code."""

import re
import tomllib
from typing import Any

import fsspec
import numpy as np
import pytest

import safejax
from safejax._src.arrays.together import GROUP_BYTES
from safejax._src.reading.flight import MOST_BYTES, MOST_REQUESTS
from safejax._src.reading.patience import PATIENCE
from safejax._src.reading.remote import HEAD
from safejax._src.reading.requests import FAR
from safejax._src.storage.objects import AT_A_TIME, PART
from tests.support.pages import DOCS, ROOT, blocks_of, run
from tests.support.servers import S3Server, needs_s3

MINUTES = PATIENCE.longest // 60
PAGE = (DOCS / "files-elsewhere.md").read_text()
TEXT = " ".join(PAGE.split())


def test_the_programs_save_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_s3("obstore")
    server = S3Server()
    for name, value in {**server.environment, "AWS_ALLOW_HTTP": "true"}.items():
        monkeypatch.setenv(name, value)
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    fsspec.filesystem("s3").mkdir("bucket")
    names: dict[str, Any] = {}
    blocks = [block for block in blocks_of(DOCS / "files-elsewhere.md") if not block.not_run]
    assert len(blocks) == 2
    for block in blocks:
        run(block, names)
    tree = safejax.load("s3://bucket/run/set")
    assert np.array_equal(tree["layers"]["w"], np.ones((64, 64), np.float32))
    kind.clear_instance_cache()
    server.close()


@pytest.mark.parametrize(
    "said",
    [
        f"one request of {HEAD >> 10} KiB",
        f"at most {FAR.gap >> 10} KiB between them",
        f"up to {FAR.dense_gap >> 10} KiB between them",
        f"at most {FAR.factor} times what is needed",
        f"at most {FAR.gap >> 10} KiB for each request that it saves",
        f"leaves of {GROUP_BYTES >> 20} MiB, or of one larger leaf",
        f"at most {FAR.piece >> 20} MiB. A process has at most {MOST_REQUESTS} under way",
        f"at most {MOST_BYTES >> 20} MiB of answers",
        f"up to {PATIENCE.attempts} times",
        f"about {PATIENCE.pause} seconds",
        f"for {PATIENCE.stall} seconds, or that has no answer after {MINUTES} minutes",
        f"parts of {PART >> 20} MiB, {AT_A_TIME // PART} at a time",
    ],
)
def test_the_figures_are_those_of_the_code(said: str) -> None:
    assert said in TEXT


def test_the_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(re.findall(r"safejax\[(\w+)\]", PAGE))
    assert extras == {"s3", "gcs", "http", "hf", "obstore", "remote"}
    assert extras <= project["optional-dependencies"].keys()
