"""The pages on Orbax: their programs run, and go on where they were stopped."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def run(page: str, folder: Path, changes: Mapping[str, str]) -> dict[str, Any]:
    """The names of the programs of a page, with its paths in `folder`."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        for old, new in {'"/runs': f'"{folder}', **changes}.items():
            block = block.replace(old, new)
        assert '"/' not in block.replace(f'"{folder}', "")
        exec(compile(block, f"docs/{page}", "exec"), names)
    return names


def test_with_orbax(tmp_path: Path) -> None:
    assert len(blocks("with-orbax.md")) == 4
    only_first = blocks("with-orbax.md")[0].replace("step < 20", "step < 12")
    exec(compile(only_first.replace('"/runs', f'"{tmp_path}'), "a part", "exec"), {})
    assert sorted(int(path.name) for path in (tmp_path / "7").iterdir()) == [1, 5, 10]
    names = run("with-orbax.md", tmp_path, {})
    assert names["step"] == 20
    assert sorted(int(path.name) for path in (tmp_path / "7").iterdir()) == [10, 15, 20]


def test_from_orbax(tmp_path: Path) -> None:
    assert len(blocks("from-orbax.md")) == 4
    names = run("from-orbax.md", tmp_path, {})
    assert (tmp_path / "new").is_dir()
    assert names["params"]["w"].dtype == "bfloat16"
