"""Each command on each kind of path: a model, folders, an index, a URL, what is hostile, Orbax."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import safejax
from safejax._src.cli.main import main
from tests.support import minilm
from tests.support.files import names_in
from tests.support.hostile_headers import HOSTILE
from tests.support.servers import HttpServer

TREE = {"mlp": {"w": jnp.ones((8, 4)), "b": jnp.zeros(4)}, "steps": [np.int32(3), "text"]}
COMMANDS = ("inspect", "inspect --stats", "inspect --html -", "diff", "verify", "convert", "plan")
KINDS = ("file", "folder", "index", "URL", "URL of a folder", "MiniLM")

Capture = pytest.CaptureFixture[str]


def path_of(kind: str, folder: Path, server: HttpServer) -> str:
    """The path, or the URL, of a checkpoint of this kind."""
    if kind == "MiniLM":
        return str(minilm.fetched())
    safejax.save(TREE, folder / "set", max_shard_bytes=100, checksum=True)
    if kind == "file":
        safejax.save(TREE, folder / "m.safetensors")
        return str(folder / "m.safetensors")
    if kind == "URL":
        server.files["/m.safetensors"] = safejax.serialize(TREE)
        return f"{server.url}/m.safetensors"
    index = "set/model.safetensors.index.json"
    if kind == "URL of a folder":
        for file in (folder / "set").iterdir():
            server.files[f"/set/{file.name}"] = file.read_bytes()
        return f"{server.url}/{index}"
    return str(folder / ("set" if kind == "folder" else index))


def run(command: str, path: str, target: Path) -> int:
    """The exit status of a command on a path; `diff` is with itself, `convert` to a target."""
    name, *options = command.split()
    more = {"diff": [path], "convert": [str(target)]}.get(name, [])
    return main([name, path, *more, *options])


@pytest.mark.parametrize("kind", KINDS)
def test_each_command_takes(kind: str, server: HttpServer, tmp_path: Path, capsys: Capture) -> None:
    path, target = path_of(kind, tmp_path, server), tmp_path / "converted.safetensors"
    for command in COMMANDS:
        assert (command, run(command, path, target)) == (command, 0)
        shown = capsys.readouterr()
        assert shown.err == ""
        assert bool(shown.out) == (command != "convert")
    assert safejax.diff(path, target).is_same
    assert main(["inspect", path, "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["tensors"].keys()
    assert names == safejax.inspect(target).tensors.keys()


@pytest.mark.parametrize("name", [next(iter(HOSTILE))])
def test_a_hostile_file_at_a_url_is_one_line(
    name: str, server: HttpServer, tmp_path: Path, capsys: Capture
) -> None:
    server.files["/bad.safetensors"] = HOSTILE[name][0]
    path = f"{server.url}/bad.safetensors"
    for command in COMMANDS:
        assert run(command, path, tmp_path / "out.safetensors") == (1 if command == "verify" else 2)
        shown = capsys.readouterr()
        if command == "verify":
            assert path in shown.out
        else:
            assert shown.err.startswith(f"safejax: {path}: ")
            assert len(shown.err.splitlines()) == 1
    assert names_in(tmp_path) == []


def test_commands_take_a_checkpoint_of_orbax_or_say_what_does(
    tmp_path: Path, capsys: Capture
) -> None:
    """A checkpoint of a manager, of a step of it, and of an item of that."""
    with ocp.CheckpointManager(tmp_path / "steps") as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": np.arange(6.0)}))
    target = tmp_path / "m.safetensors"
    for path in (
        tmp_path / "steps",
        tmp_path / "steps" / "3",
        tmp_path / "steps" / "3" / "default",
    ):
        for command in COMMANDS:
            if command.startswith(("inspect", "diff")):
                assert run(command, str(path), target) == 0
                shown = capsys.readouterr()
                assert str(path) in shown.out
                assert shown.err == ""
        for command in ("verify", "plan"):
            assert run(command, str(path), target) == (1 if command == "verify" else 2)
            shown = capsys.readouterr()
            said = shown.out if command == "verify" else shown.err
            assert "a checkpoint of Orbax" in said
            assert "`safejax convert FOLDER FILE`" in said
            assert command == "verify" or len(said.splitlines()) == 1
        assert run("convert --overwrite", str(path), target) == 0
        assert safejax.diff(target, {"w": np.arange(6.0)}).is_same
