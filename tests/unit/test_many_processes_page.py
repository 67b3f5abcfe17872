"""docs/many-processes.md: its program runs, in processes of this machine."""

from pathlib import Path

import jax
import numpy as np

import safejax
from tests.support.pages import DOCS, blocks_of
from tests.support.together import Together

BLOCKS = blocks_of(DOCS / "many-processes.md")


def run_the_program(process: int, folder: Path) -> int:
    """Run the page's program but for the first block, which the processes have done already."""
    assert "jax.distributed.initialize" in BLOCKS[0].text
    path = str(folder / "state.safetensors")
    program = "".join(block.text for block in BLOCKS[1:]).replace(
        '"/shared/run-7/state.safetensors"', repr(path)
    )
    assert path in program
    names: dict[str, object] = {}
    exec(compile(program, "docs/many-processes.md", "exec"), names)
    state = names["state"]
    assert isinstance(state, dict)
    assert not state["w"].is_fully_addressable
    return int(np.asarray(state["step"].addressable_data(0)))


def test_the_program_trains_saves_and_resumes(tmp_path: Path) -> None:
    with Together(2) as together:
        assert together.run(run_the_program, tmp_path) == [22, 22]
    tree = safejax.load(tmp_path / "state.safetensors", verify=True)
    expected = np.float32(2) - np.float32(0.5) ** 21
    assert np.array_equal(np.asarray(tree["w"]), np.full((256, 64), expected, np.float32))
    assert jax.random.key_data(tree["key"]).tolist() == [0, 0]
