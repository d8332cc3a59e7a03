import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from client.home import SiteHome
from client.keys import Keyring
from client.settings import SiteSettings
from common.errors import (
    BadFileError,
    KeysInUseError,
    RotationUnfinishedError,
    TamperedStoreError,
    UnsafeKeyError,
    UnsupportedSchemaError,
    WrongKeyError,
)
from common.ids import SiteId


def settings(**changes: Any) -> SiteSettings:
    return SiteSettings(site=SiteId("alpha"), cohort="alpha-2026", data=Path("data"), **changes)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path)
    Keyring.create(home, settings()).close()
    return home


def change(home: SiteHome, **changes: Any) -> None:
    content = json.loads(home.keyring_file.read_text()) | changes
    home.keyring_file.write_text(json.dumps(content))


def test_a_keyring_is_the_same_each_time_it_is_opened(home: SiteHome) -> None:
    with Keyring.open(home, settings()) as one, Keyring.open(home, settings()) as two:
        assert (one.data_key, one.pseudonym_key) == (two.data_key, two.pseudonym_key)
        assert (len(one.data_key), len(one.pseudonym_key)) == (32, 32)
        assert one.data_key != one.pseudonym_key
        assert one.numbers == (1,)


def test_no_key_lies_in_clear_beside_its_lock(home: SiteHome) -> None:
    with Keyring.open(home, settings()) as keyring:
        secrets = (keyring.data_key, keyring.pseudonym_key)
    text = home.keyring_file.read_text()
    for secret in (*secrets, (home.root / "master.key").read_bytes()):
        assert secret.hex() not in text
        assert base64.b64encode(secret).decode().rstrip("=")[:-1] not in text
    assert stat.S_IMODE(home.keyring_file.stat().st_mode) == 0o600


def test_a_second_keyring_is_refused_in_one_home(home: SiteHome) -> None:
    with pytest.raises(BadFileError, match="a keyring is here already"):
        Keyring.create(home, settings())
    Keyring.open(home, settings()).close()


def test_a_keyring_needs_a_home(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match="expected a site's home folder"):
        Keyring.create(SiteHome(tmp_path / "nowhere"), settings())
    with pytest.raises(BadFileError, match="No such file"):
        Keyring.open(SiteHome(tmp_path), settings())


def test_a_master_key_that_others_can_read_is_refused(home: SiteHome) -> None:
    (home.root / "master.key").chmod(0o644)
    with pytest.raises(UnsafeKeyError, match="expected mode 600, got 644"):
        Keyring.open(home, settings())


def test_another_master_key_is_refused(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "ab" * 32)
    with pytest.raises(WrongKeyError, match=r"expected the master key [0-9a-f]{16}, got [0-9a-f]{16}"):
        Keyring.open(home, settings(master_key="env:OTHER_KEY"))
    with pytest.raises(WrongKeyError, match="got command"):
        Keyring.open(home, settings(master_key="command:/bin/false"))


def test_what_is_sealed_opens_under_its_label_only(home: SiteHome) -> None:
    with Keyring.open(home, settings()) as keyring:
        sealed = keyring.seal("one", b"content")
        assert b"content" not in sealed
        assert keyring.open_sealed("one", sealed) == b"content"
        assert keyring.seal("one", b"content") != sealed
        with pytest.raises(TamperedStoreError):
            keyring.open_sealed("two", sealed)


def test_what_is_sealed_opens_only_as_it_was_sealed(home: SiteHome) -> None:
    with Keyring.open(home, settings()) as keyring:
        sealed = keyring.seal("one", b"content")
        for place in range(1, len(sealed)):
            changed = bytearray(sealed)
            changed[place] ^= 1
            with pytest.raises(TamperedStoreError):
                keyring.open_sealed("one", bytes(changed))
        for short in (b"", sealed[:10], sealed[:-1]):
            with pytest.raises(TamperedStoreError):
                keyring.open_sealed("one", short)
        with pytest.raises(UnsupportedSchemaError, match="schema 2 is newer than 1"):
            keyring.open_sealed("one", b"\x02" + sealed[1:])


def test_a_newer_keyring_is_refused(home: SiteHome) -> None:
    change(home, schema=2)
    with pytest.raises(UnsupportedSchemaError, match=r"keyring.json: schema 2 is newer than 1"):
        Keyring.open(home, settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"surplus": 1},
        {"current": "1"},
        {"data_keys": {"a": {"id": "", "wrapped": ""}}},
        {"pseudonym_key": None},
    ],
)
def test_a_damaged_keyring_is_refused(changes: dict[str, Any], home: SiteHome) -> None:
    change(home, **changes)
    with pytest.raises(BadFileError, match="damaged: expected a keyring"):
        Keyring.open(home, settings())


@pytest.mark.parametrize(
    "changes",
    [
        {"current": 2},
        {"data_keys": {}},
        {"data_keys": {"1": {"id": "0" * 16, "wrapped": "AAAA"}}},
        {"data_keys": {"1": {"id": "0" * 16, "wrapped": "no base64!"}}},
        {"pseudonym_key": "AAAA"},
        {"pseudonym_key": base64.b64encode(bytes(80)).decode()},
    ],
)
def test_a_changed_keyring_is_refused(changes: dict[str, Any], home: SiteHome) -> None:
    change(home, **changes)
    with pytest.raises((TamperedStoreError, UnsupportedSchemaError)):
        Keyring.open(home, settings())


def test_keys_of_two_homes_cannot_be_mixed(home: SiteHome, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = SiteHome(tmp_path_factory.mktemp("other"))
    Keyring.create(other, settings()).close()
    foreign = json.loads(other.keyring_file.read_text())
    change(home, data_keys=foreign["data_keys"])
    with pytest.raises(TamperedStoreError):
        Keyring.open(home, settings())


def test_keys_in_use_are_not_changed_and_keys_that_change_are_not_used(home: SiteHome) -> None:
    with (
        Keyring.open(home, settings()),
        pytest.raises(KeysInUseError, match="stop this site's daemon first"),
    ):
        Keyring.open(home, settings(), alone=True)
    with (
        Keyring.open(home, settings(), alone=True),
        pytest.raises(KeysInUseError, match="the keys are being changed"),
    ):
        Keyring.open(home, settings())
    Keyring.open(home, settings()).close()


def test_a_failed_opening_leaves_nothing_locked(home: SiteHome) -> None:
    key = home.root / "master.key"
    key.chmod(0o644)
    for _ in range(2):
        with pytest.raises(UnsafeKeyError):
            Keyring.open(home, settings())
    key.chmod(0o600)
    Keyring.open(home, settings(), alone=True).close()


def test_an_interrupted_change_of_the_data_key_is_named_and_not_worked_with(home: SiteHome) -> None:
    with Keyring.open(home, settings(), alone=True) as keyring:
        sealed = keyring.seal("one", b"content")
        keyring.add_key()
        assert keyring.open_sealed("one", sealed) == b"content"
    with pytest.raises(RotationUnfinishedError, match="rotate-keys --data"):
        Keyring.open(home, settings())
    with Keyring.open(home, settings(), alone=True) as keyring:
        keyring.drop_old_keys()
    with (
        Keyring.open(home, settings()) as keyring,
        pytest.raises(TamperedStoreError),
    ):
        keyring.open_sealed("one", sealed)


def test_the_pseudonym_key_is_the_same_for_the_life_of_the_home(home: SiteHome) -> None:
    with Keyring.open(home, settings(), alone=True) as keyring:
        before = keyring.pseudonym_key
        keyring.add_key()
        keyring.drop_old_keys()
    with Keyring.open(home, settings()) as keyring:
        assert keyring.pseudonym_key == before
        assert keyring.current == 2
