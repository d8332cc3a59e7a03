"""Tests of whole-file writing."""

import stat
from pathlib import Path

import pytest

from common.atomic import write_atomically


def test_text_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    write_atomically(path, "old")
    write_atomically(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert [found.name for found in tmp_path.iterdir()] == ["answers.jsonl"]


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "record", b"\xff\x00")
    assert (tmp_path / "record").read_bytes() == b"\xff\x00"


def test_private_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "private", "x", private=True)
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_after_an_error_the_old_file_is_untouched_and_no_other_file_is_left_behind(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(OSError):
        write_atomically(folder, "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "old", "\ud800")
    assert (folder / "old").read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["taken"]
