import errno

import pytest

from manylora.errors import ManyloraError, UsageError
from manylora.place import placed


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_is_whole_or_not_at_all(tmp_path):
    with placed(tmp_path / "a" / "out") as work:
        (work / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"
    with pytest.raises(ZeroDivisionError), placed(tmp_path / "b") as work:
        (work / "x").write_bytes(bytes(1 // 0))
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path):
    with pytest.raises(ManyloraError, match="no space left") as error, placed(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.error_code == "cannot_write"
    assert names(tmp_path) == []


def test_a_folder_with_files_is_filled_with_the_last_one_last_or_refused(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UsageError, match="not empty"), placed(tmp_path, fresh=True):
        pass
    with pytest.raises(UsageError, match="is a file"), placed(tmp_path / "mine"):
        pass
    with placed(tmp_path, last="a") as work:
        (work / "a").write_text("a")
        (work / "b").mkdir()
    assert names(tmp_path) == ["a", "b", "mine"]
    (tmp_path / "empty").mkdir()
    with placed(tmp_path / "empty", fresh=True) as work:
        (work / "x").write_text("1")
    assert names(tmp_path / "empty") == ["x"]
