"""docs/recipes.md: its programs run, and its table has all families, with their lines."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from safejax._src.recipes.families import FAMILIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/recipes.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
ROWS = re.findall(r"^\| ([\w., -]+) \| `(\w+)` \| (\d+) \| equal \| equal \| equal \|", PAGE, re.M)


def test_the_programs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/recipes.md", "exec"), names)
    assert len(BLOCKS) == 2
    assert "layers.attention.q.kernel" in capsys.readouterr().out


def test_the_table_has_all_families_and_the_lines_of_their_modules() -> None:
    modules = {family.__module__ for family in FAMILIES.values()}
    lines = {
        name.rpartition(".")[2]: len(
            Path(str(importlib.import_module(name).__file__)).read_text().splitlines()
        )
        for name in modules
    }
    found = {name.partition(",")[0].replace("-", "_"): int(count) for name, _, count in ROWS}
    found["qwen3"] = found.pop("qwen3_moe")  # They are in one module.
    assert found == lines


def test_the_page_is_linked() -> None:
    assert "(docs/recipes.md)" in (ROOT / "README.md").read_text()
