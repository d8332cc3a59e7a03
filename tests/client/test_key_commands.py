import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from client.home import SiteHome
from client.key_commands import KEY_COMMANDS, add_rotate_keys, check_rotate_keys, run_rotate_keys
from client.keys import Keyring
from client.preferences.pairs import PreferencePair
from client.preferences.store import StoredPairs, load_pairs, save_pairs
from client.session_store import sealed_sessions
from client.settings import read_settings
from common.daemon_lock import hold
from common.errors import (
    FederationError,
    KeysInUseError,
    TamperedStoreError,
    UnsafeKeyError,
    WrongKeyError,
)
from common.master_key import key_id, read_master_key

PLAN = "0" * 64
PAIR = PreferencePair(patient_id="p", prompt="a note", chosen="a", rejected="b", margin=1.0)
NAMES = ("run-1.1.keys", "run-1.2.masked", "run-1.closed")


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    home = SiteHome(tmp_path / "home")
    home.root.mkdir()
    use_master_key(home, "file:master.key")
    keyring = Keyring.create(home, read_settings(home.settings_file))
    for name in ("north", "south"):
        consortium = home.consortium(name)
        consortium.pairs.mkdir(parents=True)
        stored = StoredPairs(pairs=(PAIR,), teacher_digest="1" * 64, plan_digest=PLAN)
        save_pairs(stored, consortium.pairs / "pairs-rare_disease-0000.json", master_key=keyring.data_key)
        store = sealed_sessions(consortium, "rare_disease", keyring)
        for entry in NAMES:
            store.write(entry, f"{name} {entry}".encode())
    keyring.close()
    return home


def use_master_key(home: SiteHome, place: str) -> None:
    home.settings_file.write_text(f"site: alpha\ncohort: alpha-2026\ndata: data\nmaster_key: {place!r}\n")


def rotate(home: SiteHome, *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_rotate_keys(parser)
    arguments = parser.parse_args(["--home", str(home.root), *words])
    check_rotate_keys(parser, arguments)
    return run_rotate_keys(arguments)


def require_whole(home: SiteHome) -> Keyring:
    """Everything that was stored opens under the keyring as it is now, which is returned closed."""
    with Keyring.open(home, read_settings(home.settings_file)) as keyring:
        for name in ("north", "south"):
            consortium = home.consortium(name)
            path = consortium.pairs / "pairs-rare_disease-0000.json"
            assert load_pairs(path, master_key=keyring.data_key, plan_digest=PLAN).pairs == (PAIR,)
            store = sealed_sessions(consortium, "rare_disease", keyring)
            assert store.names() == NAMES
            assert [store.read(entry) for entry in NAMES] == [f"{name} {entry}".encode() for entry in NAMES]
    return keyring


def contents(home: SiteHome) -> dict[str, bytes]:
    files = (path for path in home.root.rglob("*") if path.is_file())
    return {str(path.relative_to(home.root)): path.read_bytes() for path in files}


def test_a_new_data_key_encrypts_all_pairs_and_sums_anew(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    before, old = contents(home), require_whole(home)
    assert rotate(home, "--data") == 0
    after, new = contents(home), require_whole(home)
    assert new.data_key != old.data_key
    assert (new.current, new.pseudonym_key) == (2, old.pseudonym_key)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(before) - {"master.key", ".keyring.lock", "site.yaml"}
    assert before.keys() == after.keys()
    assert "number 2; encrypted anew: 2 files of pairs, 6 of secure sums" in capsys.readouterr().out


def test_a_new_master_key_changes_the_keyring_only(home: SiteHome) -> None:
    before, old = contents(home), require_whole(home)
    assert rotate(home, "--master") == 0
    after, new = contents(home), require_whole(home)
    assert new.data_key == old.data_key
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"master.key", "keyring.json"}
    assert new.master.name == key_id(read_master_key(home.root / "master.key")) != old.master.name


def test_both_keys_can_be_changed_at_once(home: SiteHome) -> None:
    old = require_whole(home)
    assert rotate(home, "--master", "--data") == 0
    new = require_whole(home)
    assert new.data_key != old.data_key
    assert new.master.name != old.master.name


def test_the_master_key_moves_to_the_environment_and_to_a_command_and_back(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = require_whole(home)
    hsm = tmp_path / "hsm.py"
    hsm.write_text("import sys\nprint(bytes(255 - each for each in bytes.fromhex(sys.stdin.read())).hex())\n")
    monkeypatch.setenv("ONE_KEY", "ab" * 32)
    monkeypatch.setenv("TWO_KEY", "cd" * 32)
    places = [
        "file:master.key",
        "env:ONE_KEY",
        "env:TWO_KEY",
        f"command:{sys.executable} {hsm}",
        "file:new.key",
    ]
    for before, after in pairwise(places):
        use_master_key(home, after)
        with pytest.raises((WrongKeyError, UnsafeKeyError)):
            require_whole(home)
        assert rotate(home, "--master", "--from", before) == 0
        assert require_whole(home).data_key == old.data_key


def test_a_command_wraps_anew_and_the_same_variable_is_refused(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONE_KEY", "ab" * 32)
    use_master_key(home, "env:ONE_KEY")
    assert rotate(home, "--master", "--from", "file:master.key") == 0
    with pytest.raises(UnsafeKeyError, match="env:ONE_KEY: expected --from"):
        rotate(home, "--master")
    hsm = tmp_path / "hsm.py"
    hsm.write_text("import sys\nprint(bytes(255 - each for each in bytes.fromhex(sys.stdin.read())).hex())\n")
    use_master_key(home, f"command:{sys.executable} {hsm}")
    assert rotate(home, "--master", "--from", "env:ONE_KEY") == 0
    assert rotate(home, "--master") == 0
    require_whole(home)


def test_a_wrong_old_place_changes_nothing(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_KEY", "ab" * 32)
    monkeypatch.setenv("TWO_KEY", "cd" * 32)
    use_master_key(home, "env:ONE_KEY")
    before = contents(home)
    with pytest.raises(WrongKeyError):
        rotate(home, "--master", "--from", "env:TWO_KEY")
    assert contents(home) == before


def test_keys_are_not_changed_while_somebody_uses_them(home: SiteHome) -> None:
    before = contents(home)
    with Keyring.open(home, read_settings(home.settings_file)):
        for words in (["--data"], ["--master"]):
            with pytest.raises(KeysInUseError, match="stop this site's daemon first"):
                rotate(home, *words)
    assert contents(home) == before


def test_keys_are_not_changed_while_a_daemon_runs(home: SiteHome) -> None:
    before = contents(home)
    with hold(home.consortium("south").daemon_lock):
        for words in (["--data"], ["--master"]):
            with pytest.raises(KeysInUseError, match=f"daemon of south first, process {os.getpid()}"):
                rotate(home, *words)
    home.consortium("south").daemon_lock.unlink()
    assert contents(home) == before


def test_a_damaged_file_stops_the_change_and_the_old_key_is_kept(home: SiteHome) -> None:
    path = home.consortium("south").sessions / "rare_disease" / NAMES[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TamperedStoreError, match=r"south/rare_disease/run-1.2.masked"):
        rotate(home, "--data")
    path.write_bytes(whole)
    assert rotate(home, "--data") == 0
    assert require_whole(home).numbers == (2,)


@pytest.mark.parametrize("words", [[], ["--data", "--from", "file:a"]])
def test_a_command_that_makes_no_sense_is_refused(
    words: list[str], home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        rotate(home, *words)
    assert caught.value.code == 2
    assert "expected --" in capsys.readouterr().err


def test_the_command_is_offered_with_its_help() -> None:
    (command,) = KEY_COMMANDS
    assert (command.name, command.run, command.check) == ("rotate-keys", run_rotate_keys, check_rotate_keys)
    assert "run again" in command.description


class Crash(BaseException):
    """The machine stops here."""


@contextmanager
def stopping_at(number: int) -> Iterator[list[str]]:
    """Stop before the step of the file system with this number."""
    steps: list[str] = []

    def step(name: str, take: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            if len(steps) == number:
                raise Crash
            steps.append(name)
            return take(*args, **kwargs)

        return stepping

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((os, "replace"), (os, "unlink"), (os, "fsync"), (io, "open"), (os, "open")):
            patch.setattr(owner, name, step(name, getattr(owner, name)))
        yield steps


@pytest.mark.parametrize("words", [["--data"], ["--master"]])
def test_after_a_crash_at_any_step_a_second_run_finishes_the_first(words: list[str], home: SiteHome) -> None:
    for number in range(1000):
        before = require_whole(home)
        with stopping_at(number) as steps:
            try:
                rotate(home, *words)
            except Crash:
                pass
            else:
                break
        assert len(steps) == number
        assert rotate(home, *words) == 0
        after = require_whole(home)
        assert after.pseudonym_key == before.pseudonym_key
        assert not list(home.root.glob("*.next"))
    else:
        raise AssertionError("a change that does not end")
    assert number > 10


def test_after_a_crash_the_keys_open_or_say_what_to_do(home: SiteHome) -> None:
    for number in range(0, 1000, 3):
        try:
            with stopping_at(number):
                rotate(home, "--master", "--data")
        except Crash:
            try:
                require_whole(home)
            except FederationError as error:
                assert "rotate-keys --data" in str(error)
                assert rotate(home, "--data") == 0
                require_whole(home)
        else:
            return
    raise AssertionError("a change that does not end")
