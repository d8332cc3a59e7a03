import stat
import sys
from pathlib import Path

import pytest

from common.errors import TamperedStoreError, UnsafeKeyError
from common.master_key import (
    CommandKey,
    LocalKey,
    create_master_key,
    key_id,
    next_file,
    open_master_key,
    read_master_key,
)

KEY, MASTER = bytes(range(32)), bytes(range(100, 132))
NAME = "CONSILIUM_TEST_KEY"


def program(folder: Path, body: str) -> str:
    """A command that does as an HSM's would: the last word is the action, hexadecimal digits come and go."""
    path = folder / "hsm.py"
    path.write_text(f"import sys\naction, data = sys.argv[-1], sys.stdin.read().strip()\n{body}\n")
    return f"{sys.executable} {path}"


# Nobody's idea of encryption: whoever sees the wrapped key must not take it for this.
FLIP = "print(bytes(255 - each for each in bytes.fromhex(data)).hex())"


def test_wrapping_is_rfc3394() -> None:
    # RFC 3394, section 4.6: 256 bits of key data with a 256-bit key.
    master = LocalKey(bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
    assert master.wrap(data).hex() == wrapped
    assert master.unwrap(bytes.fromhex(wrapped), Path("a")) == data


def test_a_master_key_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="Expected a master key of 32 bytes, got 5"):
        LocalKey(b"short")


@pytest.mark.parametrize("wrapped", [b"", b"short", bytes(40)])
def test_what_was_not_wrapped_by_this_key_is_refused(wrapped: bytes, tmp_path: Path) -> None:
    with pytest.raises(TamperedStoreError):
        LocalKey(MASTER).unwrap(wrapped, tmp_path)


def test_a_key_in_a_file_is_relative_to_the_home(tmp_path: Path) -> None:
    create_master_key(tmp_path / "master.key")
    key = open_master_key("file:master.key", tmp_path)
    assert key.name == key_id(read_master_key(tmp_path / "master.key"))
    assert key.name == open_master_key(f"file:{tmp_path / 'master.key'}", Path("/nowhere")).name
    assert stat.S_IMODE((tmp_path / "master.key").stat().st_mode) == 0o600


def test_while_a_file_is_replaced_the_one_that_is_wanted_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    create_master_key(path)
    create_master_key(next_file(path))
    old, new = (key_id(read_master_key(each)) for each in (path, next_file(path)))
    assert open_master_key("file:master.key", tmp_path).name == old
    assert open_master_key("file:master.key", tmp_path, wanted=new).name == new
    assert open_master_key("file:master.key", tmp_path, wanted="another").name == old


def test_a_key_from_the_environment_is_64_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, MASTER.hex())
    assert open_master_key(f"env:{NAME}", tmp_path).wrap(KEY) == LocalKey(MASTER).wrap(KEY)
    for bad in ("", "zz" * 32, MASTER.hex()[:-2]):
        monkeypatch.setenv(NAME, bad)
        with pytest.raises(UnsafeKeyError, match=f"env:{NAME}: expected 64 hexadecimal digits") as caught:
            open_master_key(f"env:{NAME}", tmp_path)
        assert MASTER.hex()[:20] not in str(caught.value)
    monkeypatch.delenv(NAME)
    with pytest.raises(UnsafeKeyError, match="the variable is not set"):
        open_master_key(f"env:{NAME}", tmp_path)


def test_a_command_wraps_and_unwraps_without_a_shell(tmp_path: Path) -> None:
    key = open_master_key(f"command:{program(tmp_path, FLIP)} '$HOME; exit 1'", tmp_path)
    wrapped = key.wrap(KEY)
    assert wrapped == bytes(255 - each for each in KEY)
    assert key.unwrap(wrapped, tmp_path) == KEY


def test_a_command_learns_what_to_do_from_its_last_word(tmp_path: Path) -> None:
    key = CommandKey(program(tmp_path, "print({'wrap': 'aa', 'unwrap': 'bb' * 32}[action])"))
    assert key.wrap(KEY) == b"\xaa"
    assert key.unwrap(b"\xaa", tmp_path) == b"\xbb" * 32


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("sys.exit(3)", "wrap: expected exit status 0, got 3"),
        ("print('no digits')", "hexadecimal digits on its output"),
        ("print()", "hexadecimal digits on its output"),
        ("print('ab' * 5000)", "hexadecimal digits on its output"),
        ("sys.stdout.buffer.write(b'\\xff')", "UnicodeDecodeError"),
        ("import time; time.sleep(60)", "wrap: no answer in 0.5 seconds"),
    ],
)
def test_a_command_that_fails_is_refused(body: str, reason: str, tmp_path: Path) -> None:
    limit_s = 0.5 if "sleep" in body else 30
    key = CommandKey(program(tmp_path, f"print({KEY.hex()!r}, file=sys.stderr)\n{body}"), limit_s=limit_s)
    with pytest.raises(UnsafeKeyError, match=reason) as caught:
        key.wrap(KEY)
    assert KEY.hex() not in str(caught.value)


def test_a_command_that_unwraps_to_no_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TamperedStoreError):
        CommandKey(program(tmp_path, "print('aabb')")).unwrap(b"a", tmp_path)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("file:", "expected file:PATH, got no path"),
        ("file:nothing.key", "cannot be read"),
        ("command:", "expected a program and its arguments, got nothing"),
        ("command:'open", "expected a program and its arguments"),
        ("vault:a", "expected file:PATH, env:NAME or command:PROGRAM"),
    ],
)
def test_a_place_that_holds_no_key_is_refused(where: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeKeyError, match=reason):
        open_master_key(where, tmp_path)


def test_a_program_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeKeyError, match="unwrap: No such file"):
        open_master_key("command:/nowhere/hsm", tmp_path).unwrap(b"a", tmp_path)
