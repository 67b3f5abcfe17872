"""The command `safejax`: what each command says, and how it ends."""

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import fsspec
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import safejax
from safejax._src.cli.main import main
from tests.support import minilm
from tests.support.files import names_in
from tests.support.hostile_headers import HOSTILE
from tests.support.servers import HttpServer

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "v1"
TREE = {"mlp": {"w": jnp.ones((8, 4)), "b": jnp.zeros(4)}, "steps": [jnp.int32(3), "text"]}

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    target = tmp_path / "m.safetensors"
    safejax.save(TREE, target, metadata={"step": "3"}, checksum=True)
    return str(target)


def run(*arguments: object) -> int:
    return main([str(each) for each in arguments])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "safejax", *map(str, arguments)]


# ---- inspect


def test_inspect_shows_what_the_python_function_shows(path: str, capsys: Capture) -> None:
    assert run("inspect", path) == 0
    assert capsys.readouterr().out == f"{safejax.inspect(path)}\n"
    assert run("inspect", path, "--json", "--where", "mlp.*", "--stats") == 0
    table = json.loads(capsys.readouterr().out)
    assert table["tensors"].keys() == {"mlp.w", "mlp.b"}
    assert table["tensors"]["mlp.w"]["statistics"]["mean"] == 1
    assert table["metadata"] == {"step": "3"}
    assert run("inspect", GOLDEN / "shards") == 0
    folder = capsys.readouterr().out
    assert run("inspect", *sorted((GOLDEN / "shards").glob("*.safetensors")), "--stats") == 0
    assert "histogram" in capsys.readouterr().out
    assert "8 tensors" in folder


def test_a_terminal_gets_a_table_that_fits(path: str) -> None:
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        command("inspect", path, "--stats"), stdout=follower, stderr=follower, cwd=ROOT,
        env={**os.environ, "COLUMNS": "90", "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 4096):
            shown += chunk
    except OSError:  # Linux says so when the other end is closed.
        pass
    os.close(leader)
    assert child.wait() == 0
    assert b"\x1b[1" in shown
    assert "█" in shown.decode()


def test_a_command_imports_what_it_needs(path: str) -> None:
    """Not JAX, unless it is for values of it, and for local files nothing of files elsewhere."""
    program = """if True:
        import sys
        from safejax._src.cli.main import main
        path = sys.argv[1]
        assert main(["--help"]) == main(["inspect", "-h"]) == 0
        assert "numpy" not in sys.modules
        assert main(["inspect", path]) == main(["inspect", path, "--stats"]) == 0
        assert main(["diff", path, path]) == main(["verify", path]) == 0
        assert not {"jax", "jaxlib", "rich"} & sys.modules.keys()
        assert not {"asyncio", "email", "fsspec", "ssl"} & sys.modules.keys()
        assert not [name for name in sys.modules if name.endswith((".remote", ".elsewhere"))]
        assert main(["inspect", f"file://{path}"]) == 0
        assert "safejax._src.storage.elsewhere" in sys.modules and "jax" not in sys.modules
    """
    subprocess.run([sys.executable, "-W", "error", "-c", program, path], check=True, cwd=ROOT)


def test_a_page_is_written_instead_of_a_table(path: str, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "page.html"
    for _ in range(2):  # A page may be replaced.
        assert run("inspect", path, "--where", "mlp.*", "--html", page) == 0
    assert capsys.readouterr().out == ""
    assert page.read_text() == safejax.inspect(path, where="mlp.*").to_html()
    assert run("inspect", path, "--html", "-") == 0
    assert capsys.readouterr().out == f"{safejax.inspect(path).to_html()}\n"
    assert run("inspect", path, "--html", page, "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"] == path


def test_a_page_replaces_no_other_file(path: str, tmp_path: Path, capsys: Capture) -> None:
    before = Path(path).read_bytes()
    assert run("inspect", path, "--html", path) == 2
    assert "or a page, for --html, got another file" in capsys.readouterr().err
    assert Path(path).read_bytes() == before
    assert run("inspect", path, "--html", tmp_path / "none" / "page.html") == 2
    assert names_in(tmp_path) == ["m.safetensors"]


# ---- diff and verify


def test_diff_ends_as_diff_does(path: str, tmp_path: Path, capsys: Capture) -> None:
    assert run("diff", path, path) == 0
    other = tmp_path / "other.safetensors"
    safejax.save(
        {**TREE, "mlp": {"w": jnp.full((8, 4), 1.001, jnp.float32)}}, other, metadata={"step": "3"}
    )
    assert run("diff", path, other) == 1
    assert "only in a: mlp.b float32[4]" in capsys.readouterr().out
    assert run("diff", path, other, "--rtol", "0.01", "--json") == 1
    assert json.loads(capsys.readouterr().out)["tensors"] == []
    assert run("diff", path, tmp_path / "gone.safetensors") == 2
    assert run("diff", path, other, "--rtol", "-1") == 2


def test_verify_says_all_that_is_wrong(path: str, capsys: Capture) -> None:
    assert run("verify", path) == 0
    data = bytearray(Path(path).read_bytes())
    data[-1] ^= 1
    Path(path).write_bytes(data)
    assert run("verify", path, "--headers-only") == 0
    assert run("verify", path) == 1
    assert "fault: " in capsys.readouterr().out
    assert run("verify", path, "--json") == 1
    assert json.loads(capsys.readouterr().out)["is_valid"] is False


@pytest.mark.parametrize("name", list(HOSTILE)[::10])
def test_a_bad_file_ends_in_one_line(name: str, tmp_path: Path, capsys: Capture) -> None:
    source = tmp_path / "bad.safetensors"
    source.write_bytes(HOSTILE[name][0])
    for arguments in (["inspect"], ["diff", GOLDEN / "nested.safetensors"], ["plan"]):
        assert run(*arguments, source) == 2
    assert run("convert", source, tmp_path / "out.safetensors") == 2
    assert run("verify", source) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"safejax: {source}: ") for line in lines)
    assert names_in(tmp_path) == ["bad.safetensors"]


# ---- convert


def test_convert_transforms_and_keeps_the_rest(path: str, tmp_path: Path) -> None:
    target = tmp_path / "new.safetensors"
    assert run(
        "convert", path, target, "--drop", "*.b", "--rename", "mlp.{x}", "dense.{x}",
        "--prefix", "model", "--dtype", "bf16", "--where", "*.w", "--metadata", "by=me",
        "--checksum", "--verify",
    ) == 0  # fmt: skip
    tree = safejax.load(target, verify=True)
    assert tree["model"]["dense"]["w"].dtype == jnp.bfloat16
    assert tree["model"]["steps"][0].item() == 3
    assert tree["model"]["steps"][1] == "text"
    assert safejax.metadata(target) == {"step": "3", "by": "me"}
    assert safejax.inspect(target).tensors.keys() == {"model.dense.w", "model.steps.0"}


def test_convert_into_a_folder_and_back(path: str, tmp_path: Path) -> None:
    assert run("convert", path, tmp_path / "folder", "--max-shard-size", "0.1kB") == 0
    assert len(safejax.inspect(tmp_path / "folder").files) == 3
    back = tmp_path / "back.safetensors"
    assert run("convert", tmp_path / "folder", back) == 0
    assert run("diff", path, back) == 0


def test_convert_replaces_nothing_unasked(path: str, tmp_path: Path, capsys: Capture) -> None:
    before = Path(path).read_bytes()
    assert run("convert", GOLDEN / "nested.safetensors", path) == 2
    assert "or --overwrite" in capsys.readouterr().err
    assert Path(path).read_bytes() == before
    assert run("convert", GOLDEN / "nested.safetensors", path, "--overwrite", "--select", "x") == 2
    assert Path(path).read_bytes() == before
    assert run("convert", GOLDEN / "nested.safetensors", path, "--overwrite") == 0
    assert run("diff", GOLDEN / "nested.safetensors", path) == 0


def others(folder: Path) -> Any:
    """A tree, and files of other programs in the folder that have it."""
    tree = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "b": np.array([True])}
    np.savez(folder / "m.npz", **{"a.w": tree["a"]["w"], "b": tree["b"]})
    (folder / "m.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    # The first bytes say what a file is.
    (folder / "m").write_bytes((folder / "m.msgpack").read_bytes())
    np.save(folder / "m.npy", tree["b"])
    return tree


def test_convert_reads_files_of_numpy_and_flax(tmp_path: Path) -> None:
    tree = others(tmp_path)
    for name in ("m.npz", "m.msgpack", "m"):
        target = tmp_path / f"{name}.safetensors"
        assert run("convert", tmp_path / name, target) == 0
        assert safejax.diff(target, tree).is_same
    target = tmp_path / "m.npy.safetensors"
    assert run("convert", tmp_path / "m.npy", target, "--prefix", "b") == 0
    assert safejax.inspect(target).tensors["b"].shape == (1,)


def test_convert_reads_checkpoints_of_orbax(tmp_path: Path, capsys: Capture) -> None:
    folder, target = tmp_path / "steps", tmp_path / "m.safetensors"
    tree = {"a": {"w": np.arange(6.0).reshape(2, 3)}, "n": np.int32([20])}
    with ocp.CheckpointManager(folder) as manager:
        for step in (3, 20):
            items = {"state": ocp.args.PyTreeSave({**tree, "n": np.int32([step])})}
            items["other"] = ocp.args.PyTreeSave({"x": np.ones(2)})
            manager.save(step, args=ocp.args.Composite(**items))
    arguments: list[list[object]] = [
        [folder, "--item", "state", "--step", "20"],
        [folder, "--item", "state"],
        [folder / "20", "--item", "state"],
        [folder / "20" / "state"],
    ]
    for each in arguments:
        assert run("convert", *each, target, "--checksum", "--overwrite") == 0
        assert safejax.diff(target, tree).is_same
        assert safejax.verify(target).nbytes == 52
    assert run("convert", folder, target, "--step", "3", "--item", "state", "--overwrite") == 0
    assert safejax.load(target)["n"].item() == 3
    before = target.read_bytes()
    for each, said in (
        ([folder], "expected one item"),
        ([folder, "--step", "4"], "expected step 4"),
        ([folder, "--item", "none"], "expected the item 'none'"),
        ([folder, "--item", "state", "--verify"], "leave out --verify"),
    ):
        assert run("convert", *each, target, "--overwrite") == 2
        assert said in capsys.readouterr().err
    assert target.read_bytes() == before
    (tmp_path / "none").mkdir()
    assert run("convert", tmp_path / "none", target, "--overwrite") == 2
    assert "since it is empty" in capsys.readouterr().err


def test_orbax_is_needed_for_its_checkpoints_only(tmp_path: Path) -> None:
    tree = others(tmp_path)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", tree)
    program = f"""if True:
        import os, sys
        sys.modules["orbax"] = sys.modules["flax"] = sys.modules["tensorstore"] = None
        from safejax._src.cli.main import main
        os.chdir({str(tmp_path)!r})
        assert main(["convert", "m.msgpack", "m.safetensors"]) == 0
        assert main(["convert", "m.npz", "m.safetensors", "--overwrite"]) == 0
        assert main(["inspect", "step"]) == 2
        sys.exit(main(["convert", "step", "new.safetensors"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert done.stderr.count("pip install 'safejax[orbax]'") == 2
    assert not (tmp_path / "new.safetensors").exists()
    assert safejax.diff(tmp_path / "m.safetensors", tree).is_same


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "a", "b", "--where", "x"],
        ["convert", "a", "b", "--metadata", "x"],
        ["convert", "a", "b", "--max-shard-size", "big"],
        ["plan", "a", "--mesh", "data"],
        ["plan", "a", "--mesh", f"data={'9' * 5000}"],
        ["plan", "a", "--rules", __file__],
        ["inspect"],
        ["look"],
    ],
    ids=lambda arguments: " ".join(arguments)[:60],
)
def test_a_bad_call_ends_with_2(arguments: list[str], capsys: Capture) -> None:
    assert run(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_what_is_left_out_leaves_nothing_in_the_record(tmp_path: Path) -> None:
    whole, part, alone = (str(tmp_path / f"{name}.safetensors") for name in "abc")
    kept = {"b": (np.ones(2, np.float32), [np.zeros(1, np.float32)]), "e.f": {1: np.ones(1)}}
    tree = {"a": [np.ones(2), {"k": (np.ones(1),)}], **kept, "c": {1: np.ones(2), 2: []}, "d": []}
    safejax.save(tree, whole)
    safejax.save(kept, alone)
    for left in ("--select b.* --select e.f.*", "--drop a.* --drop c.* --drop d"):
        assert run("convert", whole, part, "-q", "--overwrite", *left.split()) == 0
        assert Path(part).read_bytes() == Path(alone).read_bytes()


# ---- plan


def test_plan_onto_a_mesh(path: str, tmp_path: Path, capsys: Capture) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('{"mlp.w": [["data", "model"], null], "*.b": ["model"]}')
    assert run("plan", path, "--mesh", "data=4,model=2", "--rules", rules) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("device ")]) == 8
    assert run("plan", path, "--mesh", "data=4,model=2", "--rules", rules, "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert len(table["devices"]) == 8
    assert sum(each["places"] for each in table["devices"].values()) == 128 + 4 * 16 + 8 * 4
    assert table["leaves"]["mlp.w"]["spec"].startswith(("PartitionSpec(", "P("))
    rules.write_text('{"mlp.b": [["data", "model"]]}')
    assert run("plan", path, "--mesh", "data=4,model=2", "--rules", rules) == 1
    assert "problem: " in capsys.readouterr().out
    for text, part in (("[", "expected JSON"), ("[1]", "an object"), ('{"*": ["x"]}', "got 'x'")):
        rules.write_text(text)
        assert run("plan", path, "--mesh", "data=4,model=2", "--rules", rules) == 2
        assert part in capsys.readouterr().err


def test_plan_draws_a_page(path: str, tmp_path: Path, capsys: Capture) -> None:
    rules, page = tmp_path / "rules.json", tmp_path / "page.html"
    rules.write_text('{"mlp.w": ["data", "model"]}')
    mesh = ("--mesh", "data=4,model=2", "--rules", rules)
    assert run("plan", path, *mesh, "--html", page) == 0
    assert capsys.readouterr().out == ""
    data = re.search('id="data">(.*?)</script>', page.read_text())
    assert data is not None
    table = json.loads(data[1])
    assert len(table["devices"]) == 8
    assert max(len(parts) for _, _, parts in table["layouts"]) == 8
    rules.write_text('{"mlp.b": [["data", "model"]]}')  # Of four elements, over eight devices.
    assert run("plan", path, *mesh, "--html", page) == 1
    assert "mlp.b" in page.read_text().partition("<main")[0]


@pytest.mark.parametrize("mesh", ["x=10001", "data=100000,model=100000", "a=999999999,b=999999999"])
def test_plan_refuses_a_mesh_that_takes_all_memory(path: str, mesh: str, capsys: Capture) -> None:
    assert run("plan", path, "--mesh", mesh) == 2
    said = capsys.readouterr().err
    assert mesh in said
    assert "more than 10,000 devices" in said


def test_plan_needs_no_devices_of_the_mesh(path: str) -> None:
    done = subprocess.run(
        command("plan", path, "--mesh", "x=32"),
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout.count("\ndevice ") == 32


# ---- ends


@pytest.mark.parametrize(
    "arguments", [["inspect", "PATH"], ["--help"], ["--version"], ["plan", "--help"]], ids=" ".join
)
def test_an_output_that_nobody_reads(path: str, arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [path if each == "PATH" else each for each in arguments]
    with subprocess.Popen(
        command(*arguments), stdout=writer, stderr=subprocess.PIPE, cwd=ROOT
    ) as child:
        os.close(writer)
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == 141


def test_a_connection_that_breaks_is_not_the_output(path: str, capsys: Capture) -> None:
    class Lost(MemoryFileSystem):
        """A server that is gone when something is sent to it."""

        protocol = "lost"

        def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
            if mode != "rb":
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return super()._open(path, mode, *args, **options)

    fsspec.register_implementation("lost", Lost)
    assert run("convert", path, "lost://m.safetensors", "-q") == 2
    said = capsys.readouterr().err
    assert said.startswith("safejax: ")
    assert "lost://m.safetensors" in said
    assert "Broken pipe" in said


def test_the_status_is_the_same_without_stdout_and_stderr(path: str, tmp_path: Path) -> None:
    for closed, arguments, status in (
        (">&-", ("inspect", path), 0),
        (">&-", ("diff", path, path, "--json"), 0),
        ("2>&-", ("verify", path), 0),
        (">&- 2>&-", ("diff", path, tmp_path / "gone"), 2),
        (">/dev/full", ("inspect", path), 2),
    ):
        child = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*arguments)], cwd=ROOT, check=False
        )
        assert child.returncode == status, (closed, arguments)


def test_json_is_json_in_any_encoding(tmp_path: Path) -> None:
    name = "caf\u00e9.\U0001f600"
    file = tmp_path / "m.safetensors"
    safejax.save({name: np.ones(2)}, file)
    child = subprocess.run(
        command("inspect", file, "--json"), cwd=ROOT, check=True, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert json.loads(child.stdout.decode("ascii"))["tensors"].keys() == {name}


def test_ctrl_c_leaves_no_half_written_target(tmp_path: Path) -> None:
    target = tmp_path / "new.safetensors"
    server = HttpServer()
    children: list[subprocess.Popen[str]] = []

    def interrupted(request: object) -> str | None:
        span = getattr(request, "span", None)
        if span is None or span[1] < 4 << 20:
            return None
        children[0].send_signal(signal.SIGINT)
        return "stall"

    server.files["/m.safetensors"] = safejax.serialize({"w": np.zeros(8 << 20, np.uint8)})
    server.fault = interrupted
    # Whoever started the tests may have had it ignored, as a shell does in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        children.append(
            subprocess.Popen(
                command("convert", f"{server.url}/m.safetensors", target),
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
            )
        )
        _, errors = children[0].communicate(timeout=300)
    finally:
        signal.signal(signal.SIGINT, before)
        server.released.set()
        server.close()
    assert children[0].returncode == 130
    assert errors.split("\n") == ["", "safejax: interrupted", ""]
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("package", ["click", "rich"])
def test_without_the_extra_one_line_names_it(package: str, path: str) -> None:
    program = f"""if True:
        import sys
        sys.modules[{package!r}] = None
        sys.stdout.isatty = lambda: True
        from safejax._src.cli.main import main
        sys.exit(main(["inspect", {path!r}]))
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'safejax[cli]'" in done.stderr


# ---- a real model


def test_minilm(tmp_path: Path, capsys: Capture) -> None:
    source = minilm.fetched()
    assert run("inspect", source) == 0
    assert "in 1 file of 86.7 MiB" in capsys.readouterr().out.splitlines()[0]
    assert run("verify", source) == 0
    assert run("convert", source, tmp_path / "bf16", "--dtype", "bf16", "--checksum") == 0
    assert run("diff", source, tmp_path / "bf16", "--rtol", "0.01") == 1
    assert run("verify", tmp_path / "bf16") == 0
