"""progress=True: a bar on stderr, and nothing elsewhere; what is asked for without rich."""

import importlib
import os
import pty
import queue
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def shown_by(client: Any, program: str) -> list[dict[str, Any]]:
    """The messages by which a kernel shows what a program outputs."""
    asked, found = client.execute(program), list[dict[str, Any]]()
    while True:
        try:
            message = client.get_iopub_msg(timeout=300)
        except queue.Empty:
            raise AssertionError("the kernel does not answer") from None
        if message["parent_header"].get("msg_id") != asked:
            continue
        if message["header"]["msg_type"] == "status":
            if message["content"]["execution_state"] == "idle":
                return found
        elif message["header"]["msg_type"] != "execute_input":
            found.append(message)


def test_a_notebook_has_one_output_that_is_updated(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="needs pip install -e '.[test]', as CI has it")
    path = tmp_path / "m.safetensors"
    safejax.save(TREE, path, checksum=True)
    jupyter: Any = importlib.import_module("jupyter_client.manager")
    kernel, client = jupyter.start_new_kernel(kernel_name="python3")
    try:
        begin = f"import safejax, threading\nverify = lambda: safejax.verify({str(path)!r}, "
        for call in ("verify()", "t = threading.Thread(target=verify); t.start(); t.join()"):
            assert shown_by(client, f"{begin}progress=False)\n{call};") == []
            first, *updates = shown_by(client, f"{begin}progress=True)\n{call};")
            assert first["header"]["msg_type"] == "display_data"
            assert {each["header"]["msg_type"] for each in updates} == {"update_display_data"}
            identities = [each["content"]["transient"]["display_id"] for each in (first, *updates)]
            assert len(set(identities)) == 1
            page = updates[-1]["content"]["data"]["text/html"]
            assert "verify" in page
            assert re.search(r"(25[67]\.\d)/\1 KiB", page), page
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
