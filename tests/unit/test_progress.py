"""progress=True: a bar on stderr, and nothing elsewhere; what is asked for without rich."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

import safejax

TREE = {"w": jnp.ones((64, 1024)), "b": jnp.ones(3)}


def test_each_function_shows_its_bytes_and_no_other_says_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    calls = {
        "save": lambda progress: safejax.save(TREE, path, checksum=True, progress=progress),
        "save_async": lambda progress: safejax.save_async(TREE, path, progress=progress).result(),
        "materialize": lambda progress: safejax.materialize(safejax.load(path), progress=progress),
        "inspect": lambda progress: safejax.inspect(path, stats=True, progress=progress),
        "diff": lambda progress: safejax.diff(path, path, progress=progress),
        "verify": lambda progress: safejax.verify(path, progress=progress),
    }
    for name, call in calls.items():
        for progress in (None, False):
            call(progress)
        assert capsys.readouterr() == ("", "")
        safejax.save(TREE, path, checksum=True)
        call(True)
        out, err = capsys.readouterr()
        assert out == ""
        assert name.removesuffix("_async") in err
        # The tensors, or the file with its header.
        assert re.search(r"(25[67]\.\d)/\1 KiB", err), (name, err)


def test_a_bar_ends_with_the_error_of_what_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path)
    tree = safejax.load(path)
    path.write_bytes(b"")
    with pytest.raises(safejax.SafejaxError):
        safejax.save(tree, tmp_path / "n.safetensors", progress=True)
    assert capsys.readouterr().out == ""
    safejax.save(TREE, path, progress=True)
    assert "save" in capsys.readouterr().err


def test_without_rich_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    for call in (safejax.save, safejax.save_async):
        with pytest.raises(ImportError, match=r"pip install 'safejax\[progress\]'"):
            call(TREE, tmp_path / "m.safetensors", progress=True)
    assert list(tmp_path.iterdir()) == []


PRINTS = """
from safejax._src.progress import reported
with reported(True, "save") as bar:
    bar(1, 2)
    print("a result", flush=True)
    bar(2, 2)
"""


def test_what_is_printed_meanwhile_goes_where_it_is_to_go() -> None:
    leader, follower = pty.openpty()
    child = subprocess.run(
        [sys.executable, "-c", PRINTS], check=True, stdout=subprocess.PIPE, stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "90"},
    )  # fmt: skip
    os.close(follower)
    shown = os.read(leader, 1 << 16)
    os.close(leader)
    assert child.stdout == b"a result\n"
    assert b"save" in shown
    assert b"a result" not in shown
