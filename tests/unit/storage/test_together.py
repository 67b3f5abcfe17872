"""Files that several processes write: each its own bytes, in the file that one of them made."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from safejax._src.storage.files import errors_name
from safejax._src.storage.litter import is_temporary, temporary_name
from safejax._src.storage.together import opened_together, remove_together


def test_runs_are_written_where_they_belong(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"-" * 12)
    with opened_together(str(path), 12) as one, opened_together(str(path), 12) as other:
        one.write_runs([0, 6], memoryview(b"abcd"), 2)
        other.write(2, memoryview(b"efg"))
        one.flush()
        other.flush()
        assert one.read(0, 8) == b"abefg-cd"
        with pytest.raises(OSError, match="expected more bytes"):
            one.read(10, 3)
        one.cut(8)
    assert path.read_bytes() == b"abefg-cd"


def test_the_error_about_a_folder_that_is_not_shared_keeps_its_remedy(tmp_path: Path) -> None:
    temporary, path = temporary_name(str(tmp_path / "m")), str(tmp_path / "m")
    with (
        pytest.raises(FileNotFoundError, match="save to a folder that all processes share") as it,
        errors_name(path),
        opened_together(temporary, 3),
    ):
        pass
    assert it.value.filename == path


def test_a_folder_is_taken_away_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"")
    there: list[bool] = []
    remove = shutil.rmtree

    def watched(path: str) -> None:
        # What another process renames to its place now must be whole, or not be there.
        there.append(folder.exists())
        assert is_temporary(str(path))
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", watched)
    remove_together(str(folder))
    assert there == [False]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("there", [None, b"another size"])
def test_a_folder_that_is_not_shared_is_an_error(tmp_path: Path, there: bytes | None) -> None:
    path = tmp_path / "m"
    if there is not None:
        path.write_bytes(there)
    with pytest.raises(FileNotFoundError) as caught, opened_together(str(path), 3):
        pass
    assert caught.value.errno == errno.ENOENT
    assert "save to a folder that all processes share" in str(caught.value)


def test_what_is_removed_may_be_gone_already(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"")
    for _ in range(2):
        for name in ("file", "folder", "folder/file"):
            remove_together(str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
