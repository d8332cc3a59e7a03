"""Preference pairs at rest."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.preferences import store
from client.preferences.pairs import PreferencePair
from client.preferences.store import (
    StoredPairs,
    TamperedStoreError,
    UnsafeKeyError,
    WrongKeyError,
    create_master_key,
    load_pairs,
    read_master_key,
    save_pairs,
)
from common.errors import BadFileError, DigestMismatchError, UnsupportedSchemaError

KEY = bytes(range(32))
PLAN = "0" * 64
SECRETS = ("canary-patient-7c1f", "The proband had canary-note-92ab.", "canary-chosen", "canary-rejected")
PAIR = PreferencePair(
    patient_id=SECRETS[0], prompt=SECRETS[1], chosen=SECRETS[2], rejected=SECRETS[3], margin=1.25
)
STORED = StoredPairs(pairs=(PAIR,) * 3, teacher_digest="1" * 64, plan_digest=PLAN)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    save_pairs(STORED, path, master_key=KEY)
    return path


def change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=5))
def test_what_is_read_back_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("store") / "pairs.json"
    pairs = tuple(
        PreferencePair(patient_id=text, prompt=text, chosen=text, rejected="r", margin=0.1) for text in texts
    )
    save_pairs(StoredPairs(pairs=pairs, teacher_digest="t", plan_digest=PLAN), path, master_key=KEY)
    loaded = load_pairs(path, master_key=KEY, plan_digest=PLAN)
    assert (loaded.pairs, loaded.teacher_digest, loaded.plan_digest) == (pairs, "t", PLAN)


def test_no_plaintext_reaches_the_disk(path: Path) -> None:
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    assert files == [path]
    data = path.read_bytes()
    # Also not inside the base64 text that the sealed content is written as.
    data += b"".join(base64.b64decode(value) for value in json.loads(data).values() if is_base64(value))
    assert b"teacher_digest" in data
    for secret in SECRETS:
        assert secret.encode() not in data
        assert base64.b64encode(secret.encode()).rstrip(b"=")[:-2] not in data
    assert KEY not in data


def is_base64(value: Any) -> bool:
    return (
        isinstance(value, str)
        and len(value) % 4 == 0
        and not set(value) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")
    )


def test_only_the_owner_can_read_a_store(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_stores_of_the_same_pairs_share_no_bytes_of_content(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    save_pairs(STORED, other, master_key=KEY)
    one, two = json.loads(path.read_text()), json.loads(other.read_text())
    assert one["data_key"] != two["data_key"]
    assert one["content"] != two["content"]


def test_another_master_key_is_refused_as_the_wrong_one(path: Path) -> None:
    with pytest.raises(WrongKeyError, match=r"expected the master key [0-9a-f]{16}, got [0-9a-f]{16}"):
        load_pairs(path, master_key=bytes(32), plan_digest=PLAN)


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher_digest": "2" * 64},
        {"data_key": base64.b64encode(bytes(40)).decode()},
        {"data_key": "AAAA"},
        {"content": base64.b64encode(bytes(200)).decode()},
        {"content": ""},
        {"content": "not base64!"},
        {"content": None},
        {"surplus": "key"},
        {"teacher_digest": 7},
    ],
)
def test_a_changed_store_is_refused_as_tampered(path: Path, changes: dict[str, Any]) -> None:
    change(path, **changes)
    with pytest.raises(TamperedStoreError):
        load_pairs(path, master_key=KEY, plan_digest=PLAN)


@given(place=st.integers(0), bit=st.integers(0, 7))
def test_no_flipped_bit_of_the_content_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "pairs.json"
    save_pairs(STORED, path, master_key=KEY)
    content = bytearray(base64.b64decode(json.loads(path.read_text())["content"]))
    content[place % len(content)] ^= 1 << bit
    change(path, content=base64.b64encode(content).decode())
    with pytest.raises(TamperedStoreError):
        load_pairs(path, master_key=KEY, plan_digest=PLAN)


def test_the_content_of_another_store_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    save_pairs(STORED, other, master_key=KEY)
    change(path, content=json.loads(other.read_text())["content"])
    with pytest.raises(TamperedStoreError):
        load_pairs(path, master_key=KEY, plan_digest=PLAN)


def test_a_newer_schema_is_refused(path: Path) -> None:
    change(path, schema=2)
    with pytest.raises(UnsupportedSchemaError, match="schema 2 is newer than 1"):
        load_pairs(path, master_key=KEY, plan_digest=PLAN)


def test_pairs_of_another_plan_are_refused(path: Path) -> None:
    with pytest.raises(DigestMismatchError):
        load_pairs(path, master_key=KEY, plan_digest="3" * 64)


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff", '{"kind": "else", "schema": 1}'])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadFileError, match="expected a store of preference pairs"):
        load_pairs(path, master_key=KEY, plan_digest=PLAN)
    with pytest.raises(BadFileError, match="missing"):
        load_pairs(tmp_path / "nowhere.json", master_key=KEY, plan_digest=PLAN)


def test_an_error_leaves_the_old_store_untouched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def break_down(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("common.atomic.os.fsync", break_down)
    with pytest.raises(OSError, match="disk full"):
        save_pairs(STORED, path, master_key=KEY)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_master_key_is_random_and_open_to_its_owner_only(tmp_path: Path) -> None:
    one, two = tmp_path / "one.key", tmp_path / "two.key"
    create_master_key(one)
    create_master_key(two)
    assert one.stat().st_mode & 0o777 == 0o600
    assert len(read_master_key(one)) == store.KEY_SIZE
    assert read_master_key(one) != read_master_key(two)
    with pytest.raises(FileExistsError):
        create_master_key(one)


def test_an_open_short_or_missing_master_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    with pytest.raises(UnsafeKeyError, match="cannot be read"):
        read_master_key(path)
    create_master_key(path)
    path.chmod(0o640)
    with pytest.raises(UnsafeKeyError, match="expected mode 600, got 640"):
        read_master_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(UnsafeKeyError, match="expected 32 bytes, got 5"):
        read_master_key(path)
    with pytest.raises(ValueError, match="Expected a master key of 32 bytes"):
        save_pairs(STORED, path, master_key=b"short")


def test_no_error_shows_a_key_or_a_patient(path: Path) -> None:
    for key, plan in ((bytes(32), PLAN), (KEY, "3" * 64)):
        with pytest.raises((WrongKeyError, DigestMismatchError)) as caught:
            load_pairs(path, master_key=key, plan_digest=plan)
        assert not any(secret in str(caught.value) for secret in (*SECRETS, KEY.hex()))
