"""The examples run unchanged, each in its own process, as a reader would run them.

The quickstart runs with a small model: it is the README's first command, which CI runs in whole.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.minilm import fetched

EXAMPLES = sorted((Path(__file__).parent.parent.parent / "examples").glob("*.py"))
EXPECTED = {
    "across_frameworks.py": "and back, with every byte of the file equal: True",
    "chat.py": "on one device the tokens are the same: True",
    "equinox_mlp.py": "MLP: outputs equal: True",
    "flax_linen.py": "dict of ['batch_stats', 'params']: outputs equal: True",
    "flax_nnx.py": "outputs equal: True\nkernel loaded: True",
    "haiku_resnet.py": "outputs equal: True",
    "minilm.py": (
        "subject: True\n"
        "exported   to 4 files; names, dtypes and bytes of all tensors the same: True"
    ),
    "objax_convnet.py": "outputs equal: True",
    "quickstart.py": "equal bit for bit to those before saving: True",
}
SMALL = """\
import sys
sys.path.insert(0, sys.argv[1])
import quickstart
quickstart.main(quickstart.ResNet(blocks=(1, 1), width=8, classes=16), size=32)
"""


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    arguments = [str(example)]
    if example.name == "minilm.py":
        arguments += [str(fetched())]
    if example.name == "quickstart.py":
        arguments = ["-c", SMALL, str(example.parent)]
    done = subprocess.run(
        [sys.executable, "-W", "error:::safejax", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert EXPECTED[example.name] in done.stdout
