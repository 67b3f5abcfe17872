"""docs/recipes.md: its table has all families, with the lines of their modules."""

import importlib
import re
from pathlib import Path

from safejax._src.recipes.families import FAMILIES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/recipes.md").read_text()
ROWS = re.findall(r"^\| ([\w., -]+) \| `(\w+)` \| (\d+) \| equal \| equal \| equal \|", PAGE, re.M)


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
