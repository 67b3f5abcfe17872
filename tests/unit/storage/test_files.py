"""Files are written completely or not at all, whatever happens in between."""

import errno
import fcntl
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safejax._src.storage import files
from safejax._src.storage import litter as storage_litter
from safejax._src.storage.files import checked_path, write_atomically
from tests.support.files import names_in, open_below

OLD, NEW = b"old" * 1000, b"new!" * 100_000


def write(path: Any, data: bytes = NEW, count: int = 8) -> None:
    size = -(-len(data) // count) or 1
    parts = (memoryview(data)[at : at + size] for at in range(0, len(data), size))
    write_atomically(str(path), parts, lambda nbytes: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    path.write_bytes(OLD)
    return path


# ---- what is written

DATA = {"nothing": b"", "a byte": b"x", "much": os.urandom(3_000_001)}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("there", [False, True])
def test_the_file_holds_the_chunks(tmp_path: Path, data: bytes, there: bool) -> None:
    path = tmp_path / "m.safetensors"
    if there:
        path.write_bytes(b"longer than a byte")
    done: list[int] = []
    chunks = (memoryview(data)[at : at + 1000] for at in range(0, len(data), 1000))
    write_atomically(str(path), chunks, done.append)
    assert path.read_bytes() == data
    assert sum(done) == len(data)
    assert names_in(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
@pytest.mark.parametrize("old_mode", [None, 0o600, 0o640, 0o644, 0o400, 0o666])
def test_the_umask_is_for_new_files_and_an_old_one_hands_on_its_mode(
    tmp_path: Path, umask: int, old_mode: int | None
) -> None:
    """What is replaced keeps its mode (S9)."""
    path = tmp_path / "m"
    if old_mode is not None:
        path.touch()
        path.chmod(old_mode)
    before = os.umask(umask)
    try:
        write(path)
    finally:
        os.umask(before)
    expected = 0o666 & ~umask if old_mode is None else old_mode
    assert stat.S_IMODE(path.stat().st_mode) == expected
    assert path.read_bytes() == NEW


def test_a_private_file_is_private_while_it_is_written(target: Path) -> None:
    """Nobody else can read the temporary file of a private one (S9)."""
    target.chmod(0o600)
    seen: list[int] = []

    def told(nbytes: int) -> None:
        seen.extend(stat.S_IMODE(each.stat().st_mode) for each in target.parent.iterdir())

    write_atomically(str(target), iter([memoryview(NEW)]), told)
    assert seen == [0o600, 0o600]


def test_a_link_hands_on_the_mode_of_its_file(target: Path) -> None:
    """The mode is that of the file behind a link (S9)."""
    target.chmod(0o640)
    link = target.parent / "link"
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_the_owner_and_the_group_are_handed_on(target: Path) -> None:
    """Whoever could read the old file can read the new one (S9)."""
    os.chown(target, 65534, 12345)
    target.chmod(0o640)
    write(target)
    found = target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 12345, 0o640)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("mode", "expected"), [(0o640, 0o600), (0o664, 0o644), (0o604, 0o644)])
def test_another_group_does_not_get_the_rights_of_a_group(
    folder_of_nobody: Path, mode: int, expected: int
) -> None:
    """A group that cannot be handed on does not hand on its rights (S9)."""
    path = folder_of_nobody / "m.safetensors"
    path.write_bytes(OLD)
    path.chmod(mode)
    os.chown(path, 65534, 12345)
    folder_of_nobody.chmod(0o777)
    assert write_as_nobody(path).stderr == ""
    assert path.read_bytes() == b"new"
    assert path.stat().st_gid != 12345
    assert stat.S_IMODE(path.stat().st_mode) == expected


LINKS: dict[str, Callable[[Path], str]] = {
    "to a file": lambda folder: str(folder / "m.safetensors"),
    "relative": lambda folder: "m.safetensors",
    "to nothing yet": lambda folder: str(folder / "to be made"),
    "into another folder": lambda folder: "other/to be made",
    "to a link": lambda folder: "first",
}


@pytest.mark.parametrize("link", LINKS)
def test_a_link_is_written_through(target: Path, link: str) -> None:
    folder = target.parent
    (folder / "other").mkdir()
    (folder / "first").symlink_to("m.safetensors")
    path = folder / "link"
    path.symlink_to(LINKS[link](folder))
    write(path)
    assert path.is_symlink()
    assert path.read_bytes() == NEW
    assert path.resolve().read_bytes() == NEW
    assert not any(
        name.startswith(".") for name in (*names_in(folder), *names_in(folder / "other"))
    )


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "🦎" * 63, ".hidden", "a b'\"\n", "%s"])
def test_any_file_name_can_be_written(tmp_path: Path, name: str) -> None:
    for data in (OLD, NEW):
        write(tmp_path / name, data)
        assert (tmp_path / name).read_bytes() == data
    assert names_in(tmp_path) == [name]


def test_a_path_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("m")
    assert names_in(tmp_path) == ["m"]


@pytest.mark.parametrize("path", [b"bytes", 3, None, ["a"]])
def test_a_path_is_a_string_or_pathlike(path: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a path.*safejax\.deserialize"):
        checked_path(path)


def test_data_and_mode_are_flushed_before_the_rename_and_the_folder_after_it(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.chmod(0o640)
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        whole = stat.S_ISREG(mode) and os.fstat(descriptor).st_size == len(NEW)
        file = f"{'whole' if whole else 'torn'}, {stat.S_IMODE(mode):o}"
        calls.append("folder" if stat.S_ISDIR(mode) else file)

    def replace(source: str, destination: str) -> None:
        calls.append("rename")
        os.rename(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write(target)
    assert calls == ["whole, 640", "rename", "folder"]


def test_an_error_after_the_rename_says_that_the_new_file_is_there(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="is in its place, but after a power cut") as raised:
        write(target)
    assert raised.value.filename == str(target)
    assert target.read_bytes() == NEW


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_folders_suffices(
    target: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def of_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_only)
    write(target)
    assert target.read_bytes() == NEW


# ---- what fails


class Stop(BaseException):
    pass


FAILURES: list[type[BaseException]] = [ValueError, OSError, KeyboardInterrupt, Stop, MemoryError]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("where", ["before", "in the middle", "while it is told"])
def test_a_failure_keeps_the_old_file_and_leaves_no_litter(
    target: Path, error: type[BaseException], where: str
) -> None:
    def chunks() -> Iterator[memoryview]:
        if where == "before":
            raise error("no")
        for _ in range(100):
            yield memoryview(b"x" * 10_000)
        if where == "in the middle":
            raise error("no")

    def told(nbytes: int) -> None:
        if where == "while it is told":
            raise error("no")

    for path in (target, target.parent / "new"):
        with pytest.raises(error, match="no"):
            write_atomically(str(path), chunks(), told)
    assert target.read_bytes() == OLD
    assert names_in(target.parent) == ["m.safetensors"]


def test_a_file_size_limit_keeps_the_old_file(target: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert target.read_bytes() == OLD
    assert names_in(target.parent) == ["m.safetensors"]


@contextmanager
def small_disk(folder: Path, nbytes: int) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    with small_disk(tmp_path, 256 * 1024) as disk:
        path = disk / "m"
        write(path, OLD)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left") as caught:
                write(path)
            assert caught.value.errno == errno.ENOSPC
            assert path.read_bytes() == OLD
            assert names_in(disk) == ["m"]
        write(path, OLD[:-1])
        assert path.read_bytes() == OLD[:-1]


def test_a_missing_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "no" / "m.safetensors"
    with pytest.raises(FileNotFoundError, match="make the folder first") as caught:
        write(path)
    assert str(path) in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_home_folder_is_not_expanded_and_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/m.safetensors", "~nobody/m.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"pass os\.path\.expanduser\(path\)"):
            write(path)
    write(os.path.expanduser("~/m.safetensors"))
    monkeypatch.chdir(tmp_path)
    write("~name")
    Path("~").mkdir()
    write("~/m")
    assert names_in(tmp_path) == ["m.safetensors", "~", "~name"]


def test_a_folder_that_is_a_file_is_an_error_that_names_it(target: Path) -> None:
    with pytest.raises(NotADirectoryError, match=str(target)):
        write(target / "m")
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("..")])
def test_a_target_that_is_a_folder_is_an_error(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "m"
    make(path)
    with pytest.raises(IsADirectoryError, match=f"a folder.*{path}"):
        write(path)
    assert names_in(tmp_path) == ["m"]


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket], ids=["pipe", "socket"])
def test_only_regular_files_are_replaced(make: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        path = Path(folder) / "m"
        make(path)
        before = path.lstat()
        with pytest.raises(OSError, match="expected a regular file") as caught:
            write(path)
        assert str(path) in str(caught.value)
        assert path.lstat().st_mode == before.st_mode
        assert names_in(Path(folder)) == ["m"]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match="expected a regular file"):
        write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_link_to_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to("m")
    with pytest.raises(OSError, match=r"symbolic links|Too many levels"):
        write(tmp_path / "m")
    assert names_in(tmp_path) == ["m"]
    assert (tmp_path / "m").is_symlink()


# ---- in a separate process

# Only the module is loaded: it needs nothing but Python, and a process with JAX starts in seconds.
CHILD = f"""
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("files", {files.__file__!r})
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
path, uid = sys.argv[1], int(sys.argv[2])
if os.getuid() == 0:
    os.setuid(uid)
files.write_atomically(path, iter([memoryview(b"new")]), lambda nbytes: None)
"""


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    yield folder
    folder.chmod(0o700)
    shutil.rmtree(folder)


def write_as_nobody(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(path), "65534"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


def test_a_folder_without_permission_to_write_is_an_error(folder_of_nobody: Path) -> None:
    path = folder_of_nobody / "m.safetensors"
    path.write_bytes(OLD)
    folder_of_nobody.chmod(0o555)
    done = write_as_nobody(path)
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("PermissionError: [Errno 13] Permission denied; a save makes a new")
    assert message.endswith(f"save to another folder: '{path}'")
    assert path.read_bytes() == OLD
    assert names_in(folder_of_nobody) == ["m.safetensors"]


def test_a_folder_that_can_be_written_to_but_not_read_suffices(folder_of_nobody: Path) -> None:
    path = folder_of_nobody / "m.safetensors"
    folder_of_nobody.chmod(0o333)
    done = write_as_nobody(path)
    assert done.stderr == ""
    assert path.read_bytes() == b"new"


# ---- litter


def litter(target: Path, number: int = 0) -> Path:
    """The path of a temporary file that a killed save of `target` leaves behind."""
    return target.parent / f".{target.name}.{number:016x}.safejax-tmp"


def test_litter_in_the_folder_is_removed(target: Path) -> None:
    """The litter of killed saves goes, whichever names they were for (R18)."""
    for number in range(5):
        litter(target, number).write_bytes(b"torn")
        litter(target.parent / f"step_{number}").write_bytes(b"torn")
        folder = litter(target.parent / f"folder_{number}")
        folder.mkdir()
        (folder / "model-00001-of-00002.safetensors").write_bytes(b"torn")
    write(target)
    assert names_in(target.parent) == ["m.safetensors"]


def test_files_that_only_look_like_litter_stay(target: Path) -> None:
    folder = target.parent
    others = [
        ".m.safetensors.txt", "m.safetensors.0.safejax-tmp", ".n.safetensors.0.safejax-tmp",
        f"m.{0:016x}.safejax-tmp", f".m.{0:016x}.safejax-tmp.txt", f".m.{0:016x}.tmp",
    ]  # fmt: skip
    for name in others:
        (folder / name).write_bytes(b"x")
    (folder / "kept").write_bytes(b"x")
    litter(target, 2).symlink_to("kept")
    (folder / "kept too").mkdir()
    litter(target, 3).symlink_to("kept too")
    os.mkfifo(litter(target, 4))
    before = names_in(folder)
    write(target)
    assert names_in(folder) == before


def test_on_a_network_the_litter_of_other_names_must_be_old(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine may be writing what is not locked here (R18)."""
    # A real mount needs root and a server.
    monkeypatch.setattr(storage_litter, "is_on_network", lambda path: True)
    other, folder = litter(target.parent / "step_1"), litter(target.parent / "step_2")
    other.write_bytes(b"torn")
    folder.mkdir()
    (folder / "m").write_bytes(b"torn")
    litter(target).write_bytes(b"torn")
    days = time.time() - 2 * 24 * 60 * 60
    os.utime(folder, (days, days))
    write(target)
    assert names_in(target.parent) == sorted([other.name, folder.name, "m.safetensors"])
    for path in (other, folder / "m"):
        os.utime(path, (days, days))
    write(target)
    assert names_in(target.parent) == ["m.safetensors"]


def test_the_temporary_file_of_a_running_save_stays(target: Path) -> None:
    started, finish = threading.Event(), threading.Event()

    def slowly() -> Iterator[memoryview]:
        yield memoryview(b"slow")
        started.set()
        assert finish.wait(60)
        yield memoryview(b"ly")

    thread = threading.Thread(target=write_atomically, args=(str(target), slowly(), lambda n: None))
    thread.start()
    assert started.wait(60)
    write(target)
    assert target.read_bytes() == NEW
    assert len(names_in(target.parent)) == 2
    finish.set()
    thread.join()
    assert target.read_bytes() == b"slowly"
    assert names_in(target.parent) == ["m.safetensors"]


def test_a_file_system_without_locks_suffices(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    litter(target).write_bytes(b"torn")
    write(target)
    assert target.read_bytes() == NEW
    # Without locks nobody knows whether its writer is alive.
    assert names_in(target.parent) == [litter(target).name, "m.safetensors"]


def test_simultaneous_saves_of_one_target_do_not_mix(target: Path) -> None:
    contents = [bytes([65 + number]) * (200_000 + number) for number in range(8)]
    failures: list[BaseException] = []
    seen: set[bytes] = set()

    def save(data: bytes) -> None:
        try:
            for _ in range(10):
                write(target, data)
                seen.add(target.read_bytes())
        except BaseException as error:  # noqa: BLE001 - a thread's own is lost
            failures.append(error)

    threads = [threading.Thread(target=save, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen <= set(contents)
    assert len(seen) > 1
    assert target.read_bytes() in contents
    assert names_in(target.parent) == ["m.safetensors"]


def test_no_descriptor_is_left_open(target: Path) -> None:
    def boom(nbytes: int) -> None:
        raise ValueError("no")

    for _ in range(50):
        write(target)
        with pytest.raises(ValueError, match="no"):
            write_atomically(str(target), iter([memoryview(b"x")]), boom)
    assert not open_below(target.parent)
