import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from common.durable import lock_file, read_durable, sync_tree, write_durable
from common.errors import BadFileError, UnsupportedSchemaError

KIND = "consilium example"


def read(path: Path, schema: int = 3, **migrations: Any) -> dict[str, Any]:
    steps = {
        1: lambda content: {"name": content["title"]},
        2: lambda content: {**content, "number": 0},
    }
    return read_durable(path, KIND, schema, migrations.get("steps", steps))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_durable(path, KIND, 3, {"name": "a", "number": 1})
    assert read(path) == {"name": "a", "number": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_everything_under_a_folder_is_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "nowhere")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda one: synced.append(str(Path(f"/proc/self/fd/{one}").readlink())))
    sync_tree(tmp_path / "a")
    assert sorted(synced) == [str(tmp_path / "a"), str(tmp_path / "a/b"), str(tmp_path / "a/b/file")]


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    write_durable(tmp_path / "a", KIND, 1, {}, private=True)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_content_may_not_say_what_it_is_itself(tmp_path: Path) -> None:
    for key in ("kind", "schema"):
        with pytest.raises(ValueError, match="without the keys kind and schema"):
            write_durable(tmp_path / "a", KIND, 1, {key: 1})


@pytest.mark.parametrize("private", [True, False])
def test_an_older_schema_is_brought_up_step_by_step_and_kept_beside(private: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_durable(path, KIND, 1, {"title": "a"}, private=private)
    before, mode = path.read_bytes(), path.stat().st_mode
    assert read(path) == {"name": "a", "number": 0}
    kept = tmp_path / "file.json.v1"
    assert kept.read_bytes() == before
    assert (path.stat().st_mode, kept.stat().st_mode) == (mode, mode)
    assert json.loads(path.read_text())["schema"] == 3
    assert read(path) == {"name": "a", "number": 0}


def test_a_crash_while_a_file_is_brought_up_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    write_durable(path, KIND, 1, {"title": "a"})
    before, replaced = path.read_bytes(), Path.replace

    def crash(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError("the machine stops")
        return replaced(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="stops"):
            read(path)
    assert path.read_bytes() == before
    assert read(path) == {"name": "a", "number": 0}


def test_a_schema_without_a_way_up_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_durable(path, KIND, 1, {"title": "a"})
    with pytest.raises(BadFileError, match=r"file.json: schema 1 is no longer read; expected 3"):
        read(path, steps={2: lambda content: content})


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_durable(path, KIND, 4, {})
    with pytest.raises(
        UnsupportedSchemaError, match=r"file.json: schema 4 is newer than 3.*upgrade"
    ) as caught:
        read(path)
    assert (caught.value.got, caught.value.newest) == (4, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b'{"kind"', "damaged"),
        (b"[]", "damaged"),
        (b"{}", "expected a file of the kind"),
        (b'{"kind": "other", "schema": 1}', "expected a file of the kind"),
        *(
            (f'{{"kind": "{KIND}"{schema}}}'.encode(), "schema: expected a number from 1 to 3")
            for schema in ("", ', "schema": 0', ', "schema": true', ', "schema": "1"', ', "schema": 1.0')
        ),
    ],
)
def test_a_damaged_file_is_refused_with_one_line(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=f"file.json: {reason}") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="No such file"):
        read(tmp_path / "file.json")


def test_a_file_is_held_by_one_alone_or_by_many_together(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one, two = lock_file(path, shared=True), lock_file(path, shared=True)
    assert one is not None and two is not None
    assert lock_file(path) is None
    one.close()
    two.close()
    alone = lock_file(path)
    assert alone is not None
    assert lock_file(path, shared=True) is None
    alone.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_child_does_not_hold_on_to_its_parents_lock(tmp_path: Path) -> None:
    lock = lock_file(tmp_path / "lock")
    assert lock is not None
    assert not os.get_inheritable(lock.fileno())
    lock.close()
