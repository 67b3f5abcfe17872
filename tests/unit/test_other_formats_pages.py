"""The pages on files of other programs: their programs run."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = {"from-msgpack.md": 4, "from-pickle.md": 1}


@pytest.mark.parametrize("page", BLOCKS)
def test_the_programs_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(blocks) == BLOCKS[page]
    names: dict[str, Any] = {}
    for block in blocks:
        if "import h5py" in block:
            pytest.importorskip("h5py")
        exec(compile(block, f"docs/{page}", "exec"), names)


@pytest.mark.parametrize("page", [*BLOCKS, "with-orbax.md", "from-orbax.md"])
def test_the_page_is_linked(page: str) -> None:
    assert f"(docs/{page})" in (ROOT / "README.md").read_text()
