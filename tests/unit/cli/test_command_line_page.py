"""docs/command-line.md: its commands run, and it names every command and option."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

import safejax
from safejax._src.cli import commands
from safejax._src.cli.main import main
from safejax.testing import assert_trees_identical
from tests.support.pages import DOCS, blocks_of, run, run_page

PAGE = (DOCS / "command-line.md").read_text()
LINES = re.findall(r"^safejax (.*?)(?:  # exit status (\d+))?$", PAGE, re.MULTILINE)
(RULES,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def test_the_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks_of(DOCS / "command-line.md"):
        run(block, names)
    assert json.loads(Path("rules.json").read_text()) == json.loads(RULES)
    layer = names["layer"]
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


def test_the_command_for_parameters_alone_runs_after_its_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS / "how-to" / "params-only.md"
    run_page(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^\$ safejax (.*)$", page.read_text(), re.MULTILINE)
    assert main(shlex.split(line)) == 0
    assert_trees_identical(safejax.load("half.safetensors"), safejax.load("model.safetensors"))


def test_every_command_and_option_is_on_the_page() -> None:
    for name, command in commands.safejax.commands.items():
        assert f"safejax {name} " in PAGE
        for parameter in command.params:
            for option in parameter.opts:
                if option in ("--select", "--verify", "--atol", "-q", "-w"):
                    continue  # Said in words.
                assert not option.startswith("-") or option in PAGE, f"{name} {option}"
