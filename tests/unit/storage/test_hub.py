"""Repositories of the Hugging Face Hub, by huggingface_hub, a server and a cache of the tests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfFileSystem

import safejax
from safejax._src.reading.file import MappedSource
from safejax._src.reading.patience import Patience
from safejax._src.reading.remote import RemoteSource
from tests.support.servers import HttpServer

W = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
TREE = {"w": W, "v": W + 1}
COMMIT, OLDER = "1" * 40, "2" * 40
INDEX = "model.safetensors.index.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    # A private name, since what fails for good would take seconds.
    monkeypatch.setattr("safejax._src.reading.patience.PATIENCE", Patience(pause=0.01))
    return tmp_path / "hub"


def snapshot(cache: Path, commit: str, tree: Any, revision: str = "main") -> Path:
    """A snapshot in the layout of huggingface_hub's cache: links to blobs, and a reference."""
    repository = cache / "models--me--model"
    folder = repository / "snapshots" / commit
    blobs = repository / "blobs"
    for each in (folder, blobs, repository / "refs"):
        each.mkdir(parents=True, exist_ok=True)
    safejax.save(tree, blobs / "new", max_shard_bytes=W.nbytes)
    for file in (blobs / "new").iterdir():
        blob = blobs / f"{commit[:4]}{file.name}"
        file.rename(blob)
        (folder / file.name).symlink_to(os.path.relpath(blob, folder))
    (repository / "refs" / revision).write_text(commit)
    return folder


def publish(server: HttpServer, files: dict[str, bytes], commit: str = COMMIT) -> None:
    """Answer as the Hub does for a repository that has these files."""
    listed = {"id": "me/model", "sha": commit, "siblings": [{"rfilename": each} for each in files]}
    for revision in ("main", commit):
        server.files[f"/api/models/me/model/revision/{revision}"] = json.dumps(listed).encode()
    infos = {
        name: {"type": "file", "path": name, "size": len(data), "oid": f"{hash(data):x}"}
        for name, data in files.items()
    }

    def paths_info(asked: dict[str, Any]) -> bytes:
        return json.dumps([infos[each] for each in asked["paths"] if each in infos]).encode()

    server.posted[f"/api/models/me/model/paths-info/{commit}"] = paths_info
    server.files[f"/api/models/me/model/tree/{commit}"] = json.dumps([*infos.values()]).encode()
    for name, data in files.items():
        server.files[f"/me/model/resolve/{commit}/{name}"] = data


def hub(server: HttpServer) -> HfFileSystem:
    return HfFileSystem(endpoint=server.url, token=False, skip_instance_cache=True)


def sources(tree: Any) -> set[type]:
    return {type(source) for leaf in tree.values() for source in leaf.content.view.sources}


def same(tree: Any, expected: Any = TREE) -> bool:
    return all(np.asarray(tree[name]).tobytes() == expected[name].tobytes() for name in expected)


def asked(server: HttpServer) -> list[str]:
    return [request.path.partition("?")[0] for request in server.requests]


OFFLINE = """
import numpy as np, safejax
from safejax._src.reading.file import MappedSource

for path in ("me/model", "me/model@main", "me/model@{commit}", "me/model@main/{index}"):
    tree = safejax.load(f"hf://{{path}}")
    kinds = {{type(s) for leaf in tree.values() for s in leaf.content.view.sources}}
    assert kinds == {{MappedSource}}
    assert np.asarray(tree["v"])[3, 2] == 51, path
    print(safejax.plan(f"hf://{{path}}").reads.nbytes)
try:
    safejax.load("hf://me/model@other")
except FileNotFoundError as error:
    assert "HF_HUB_OFFLINE is set" in str(error), error
else:
    raise AssertionError
"""


def test_a_snapshot_is_mapped_without_a_network(tmp_path: Path) -> None:
    snapshot(tmp_path / "hub", COMMIT, TREE)
    program = OFFLINE.format(commit=COMMIT, index=INDEX)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    # Nobody answers there, if anybody is asked.
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(2 * W.nbytes)] * 4


def test_the_hub_is_asked_for_the_commit_and_the_cache_for_the_files(
    server: HttpServer, cache: Path
) -> None:
    folder = snapshot(cache, COMMIT, TREE)
    publish(server, {path.name: path.read_bytes() for path in folder.iterdir()})
    tree = safejax.load("hf://me/model", fs=hub(server))
    assert same(tree)
    assert sources(tree) == {MappedSource}
    assert asked(server) == ["/api/models/me/model/revision/main"]
    # The name of a commit and of its file says all.
    server.clear()
    one = safejax.load(f"me/model@{COMMIT}/model-00001-of-00002.safetensors", fs=hub(server))
    assert sources(one) == {MappedSource}
    assert server.requests == []


def test_a_commit_that_is_newer_than_the_cache_is_requested(
    server: HttpServer, cache: Path
) -> None:
    snapshot(cache, OLDER, {"w": W - 1, "v": W - 2})
    publish(server, {"model.safetensors": safejax.serialize(TREE), "README.md": b"text"})
    tree = safejax.load("hf://me/model@main", fs=hub(server))
    assert sources(tree) == {RemoteSource}
    server.clear()
    assert same(tree)
    spans = [each.span for each in server.requests if each.span is not None]
    assert all(each is not None and each[1] - each[0] <= 2 * W.nbytes + 4096 for each in spans)


def test_files_that_the_cache_lacks_are_requested(server: HttpServer, cache: Path) -> None:
    folder = snapshot(cache, COMMIT, TREE)
    publish(server, {path.name: path.read_bytes() for path in folder.iterdir()})
    (folder / "model-00002-of-00002.safetensors").unlink()
    tree = safejax.load("hf://me/model", fs=hub(server))
    assert sources(tree) == {MappedSource, RemoteSource}
    assert same(tree)


def test_a_hub_that_cannot_be_reached_leaves_the_cache(server: HttpServer, cache: Path) -> None:
    snapshot(cache, COMMIT, TREE)
    fs = hub(server)
    server.close()
    tree = safejax.load("hf://me/model", fs=fs)
    assert same(tree)
    assert sources(tree) == {MappedSource}


def test_a_repository_that_is_not_there(server: HttpServer, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hf://me/model@main: there is no such file"):
        safejax.load("hf://me/model", fs=hub(server))
    publish(server, {"README.md": b"text"})
    with pytest.raises(FileNotFoundError, match=r"there is nothing"):
        safejax.load("hf://me/model/weights", fs=hub(server))


def test_nothing_is_saved_there(server: HttpServer, cache: Path) -> None:
    folder = snapshot(cache, COMMIT, TREE)
    publish(server, {path.name: path.read_bytes() for path in folder.iterdir()})
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match=r"saving to HfFileSystem failed: .*save to a local path"):
        safejax.save(TREE, "hf://me/model/model.safetensors", fs=hub(server))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
