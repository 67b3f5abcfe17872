"""Files that several processes write: each its own bytes, in the file that one of them made."""

import errno
from pathlib import Path

import pytest

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
