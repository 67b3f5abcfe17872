"""docs/command-line.md: its commands run, and it names every command and option."""

import re
import shlex
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

import safejax
from safejax._src.cli import commands
from safejax._src.cli.main import main

PAGE = (Path(__file__).parents[3] / "docs" / "command-line.md").read_text()
LINES = re.findall(r"^safejax (.*?)(?:  # exit status (\d+))?$", PAGE, re.MULTILINE)
(RULES,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    layer = {"kernel": rng.normal(size=(4, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}
    safejax.save({"dense": layer, "head": layer}, "model.safetensors")
    safejax.save({"dense": layer, "head": {}}, "other.safetensors")
    data = bytearray(safejax.serialize(layer, checksum=True))
    data[-1] ^= 1
    Path("damaged.safetensors").write_bytes(data)
    Path("rules.json").write_text(RULES)
    np.savez("arrays.npz", w=np.ones(3))
    with ocp.CheckpointManager(Path("checkpoints").absolute()) as manager:
        for step in (1, 2):
            manager.save(
                step, args=ocp.args.StandardSave({"params": layer, "step": np.int32(step)})
            )
    assert len(LINES) >= 18
    for line, status in LINES:
        assert main(shlex.split(line)) == int(status or 0), line
    assert safejax.inspect("step.safetensors").tensors.keys() == {
        "params.kernel", "params.bias", "step",
    }  # fmt: skip
    assert safejax.load("step.safetensors")["step"] == 2
    assert safejax.load("params.safetensors")["params"]["bias"].dtype == "bfloat16"
    assert "<!doctype html>" in Path("page.html").read_text()
    assert safejax.inspect("renamed.safetensors").tensors.keys() == {
        "model.mlp.kernel", "model.mlp.bias",
    }  # fmt: skip


def test_every_command_and_option_is_on_the_page() -> None:
    for name, command in commands.safejax.commands.items():
        assert f"safejax {name} " in PAGE
        for parameter in command.params:
            for option in parameter.opts:
                if option in ("--select", "--verify", "--atol", "-q", "-w"):
                    continue  # Said in words.
                assert not option.startswith("-") or option in PAGE, f"{name} {option}"
