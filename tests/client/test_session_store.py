import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.home import SiteHome
from client.keys import Keyring
from client.session_store import FolderStore, MemoryStore, SealedStore, SessionStore, sealed_sessions
from client.settings import SiteSettings
from common.errors import TamperedStoreError, UnsupportedSchemaError
from common.ids import SiteId

OLD, NEW, OTHER = b"old" * 100, b"new" * 200, b"other"
NAME, UNTOUCHED = "run-1.3.keys", "run-1.2.unmask"


@pytest.fixture
def keyring(tmp_path: Path) -> Iterator[Keyring]:
    (tmp_path / "home").mkdir()
    settings = SiteSettings(site=SiteId("alpha"), cohort="alpha-2026", data=Path("data"))
    with Keyring.create(SiteHome(tmp_path / "home"), settings) as keyring:
        yield keyring


@pytest.fixture(params=["memory", "folder", "sealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SessionStore:
    if request.param == "memory":
        return MemoryStore()
    folder = FolderStore(tmp_path / "store")
    if request.param == "folder":
        return folder
    return SealedStore(folder, request.getfixturevalue("keyring"), place="north/rare_disease")


def test_what_is_written_is_read_until_it_is_erased(store: SessionStore) -> None:
    assert store.read(NAME) is None
    store.write(NAME, OLD)
    store.write(NAME, NEW)
    assert store.read(NAME) == NEW
    store.erase(NAME)
    assert store.read(NAME) is None
    assert store.names() == ()


def test_nothing_and_any_byte_can_be_stored(store: SessionStore) -> None:
    for content in (b"", bytes(range(256)), b"\r\n\x00" * 1000):
        store.write(NAME, content)
        assert store.read(NAME) == content
    store.write(NAME, b"")
    store.erase(NAME)
    assert store.read(NAME) is None


def test_erasing_what_is_not_there_changes_nothing(store: SessionStore) -> None:
    store.write(UNTOUCHED, OTHER)
    store.erase(NAME)
    assert store.names() == (UNTOUCHED,)


def test_names_come_in_order(store: SessionStore) -> None:
    for name in ("b", "run-1.closed", "a", "run-1.10.keys", "run-1.2.keys"):
        store.write(name, OTHER)
    assert store.names() == ("a", "b", "run-1.10.keys", "run-1.2.keys", "run-1.closed")


def test_names_may_be_erased_while_they_are_gone_through(store: SessionStore) -> None:
    for name in ("a", "b", "c"):
        store.write(name, OTHER)
    for name in store.names():
        store.erase(name)
    assert store.names() == ()


def test_a_folder_store_outlives_its_process(tmp_path: Path) -> None:
    FolderStore(tmp_path).write(NAME, OLD)
    assert FolderStore(tmp_path).read(NAME) == OLD


def test_files_and_folder_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "store"
    umask = os.umask(0)
    try:
        FolderStore(folder).write(NAME, OLD)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-a", "a/b", "../a", "A", "a b", "a\n", "a\x00", "a_b", "é", "a" * 101]
)
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.write("a" * 100, OLD)
    for use in (store.read, store.erase, lambda bad: store.write(bad, OLD)):
        with pytest.raises(ValueError, match="Expected a name of lower-case letters, digits, dots"):
            use(name)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a" * 100]


def test_leftovers_of_a_crash_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    for name in (f".{NAME}.0123abcd.tmp", f".{NAME}.erased"):
        (tmp_path / name).write_bytes(OLD)
    for name in (NAME, "Notes.txt"):
        (tmp_path / name).write_bytes(OTHER)
    store = FolderStore(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "Notes.txt"}
    assert store.names() == (NAME,)


class Crash(BaseException):
    """The machine stops here: no handler of the program runs on."""


class Disk:
    """Counts the steps of the file system, and stops before or after one of them.

    What a file got since it was last flushed is half there after a crash.
    """

    def __init__(self, crash_at: int = -1, *, after: bool = False) -> None:
        self.steps: list[str] = []
        self._crash_at, self._after = crash_at, after

    @contextmanager
    def running(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (os, "mkdir"),
                (os, "open"),
                (os, "fsync"),
                (os, "replace"),
                (os, "unlink"),
                (io, "open"),
            ):
                patch.setattr(owner, name, self._step(name, getattr(owner, name)))
            yield

    def _step(self, name: str, take: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            here = len(self.steps) == self._crash_at
            self.steps.append(f"{name} {_what(args[0])}".strip())
            if here and not self._after:
                if name == "fsync" and not stat.S_ISDIR(os.fstat(args[0]).st_mode):
                    os.truncate(args[0], os.fstat(args[0]).st_size // 2)
                raise Crash
            result = take(*args, **kwargs)
            if here:
                raise Crash
            return result

        return step


def _what(place: object) -> str:
    """What a step is taken on: a file descriptor by its kind, a path by the end of its name."""
    if isinstance(place, int):
        return "folder" if stat.S_ISDIR(os.fstat(place).st_mode) else "file"
    path = Path(str(place))
    return path.suffix if path.name.startswith(".") else ("folder" if path.is_dir() else path.name)


CHANGES: dict[str, tuple[Callable[[FolderStore], None], set[bytes | None], bytes | None]] = {
    # What is done, what may be there after a crash in it, and what is there once it is done.
    "write": (lambda store: store.write(NAME, NEW), {OLD, NEW}, NEW),
    "erase": (lambda store: store.erase(NAME), {OLD, None}, None),
    "write a first time": (lambda store: store.write("first", NEW), {OLD}, OLD),
}


def crashed(folder: Path, change: str, crash_at: int, *, after: bool) -> bool:
    """Whether a change to a new store crashed at this step; False if it has no such step."""
    store = FolderStore(folder)
    store.write(NAME, OLD)
    store.write(UNTOUCHED, OTHER)
    with Disk(crash_at, after=after).running():
        try:
            CHANGES[change][0](store)
        except Crash:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_crash_at_any_step_every_names_content_is_whole(
    change: str, after: bool, tmp_path: Path
) -> None:
    _, possible, done = CHANGES[change]
    for step in range(20):
        folder = tmp_path / str(step)
        has_crashed = crashed(folder, change, step, after=after)
        store = FolderStore(folder)
        assert store.read(NAME) in (possible if has_crashed else {done})
        assert store.read("first") in {None, NEW}
        assert store.read(UNTOUCHED) == OTHER
        # The new store knows nothing but these, and what was half-done is gone.
        assert {path.name for path in folder.iterdir()} == set(store.names())
        if not has_crashed:
            assert step > 4
            return
    raise AssertionError("a change that does not end")


def test_a_crash_while_leftovers_are_removed_leaves_them_to_the_next_start(tmp_path: Path) -> None:
    for step in range(20):
        folder = tmp_path / str(step)
        FolderStore(folder).write(NAME, OLD)
        for number in range(2):
            (folder / f".{NAME}.{number}.tmp").write_bytes(NEW)
        try:
            with Disk(step).running():
                FolderStore(folder)
        except Crash:
            store = FolderStore(folder)
            assert store.read(NAME) == OLD
            assert [path.name for path in folder.iterdir()] == [NAME]
        else:
            assert step > 4
            return
    raise AssertionError("a change that does not end")


def steps_of(change: Callable[[], object]) -> list[str]:
    disk = Disk()
    with disk.running():
        change()
    return [step for step in disk.steps if not step.startswith("open")]


def test_what_a_write_left_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert steps_of(lambda: store.write(NAME, OLD)) == ["fsync file", "replace .tmp", "fsync folder"]


def test_zeros_are_written_only_after_the_name_is_gone_from_the_disk(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write(NAME, OLD)
    assert steps_of(lambda: store.erase(NAME)) == [
        f"replace {NAME}",
        "fsync folder",
        "fsync file",
        "unlink .erased",
        "fsync folder",
    ]


def test_the_folders_that_are_made_are_on_the_disk_too(tmp_path: Path) -> None:
    made = steps_of(lambda: FolderStore(tmp_path / "new" / "store"))
    assert made[-2:] == ["fsync folder"] * 2
    assert "fsync folder" not in steps_of(lambda: FolderStore(tmp_path / "new" / "store"))


def test_what_is_erased_is_overwritten_with_zeros(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write(NAME, OLD)
    with (tmp_path / NAME).open("rb") as kept:
        store.erase(NAME)
        assert kept.read() == bytes(len(OLD))


def test_a_disk_that_is_full_is_an_error_and_the_old_content_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.write(NAME, OLD)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.write(NAME, NEW)
    assert store.read(NAME) == OLD
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_in_a_sealed_store_nothing_lies_in_clear(tmp_path: Path, keyring: Keyring) -> None:
    secret, folder = b"share-0123456789abcdef", tmp_path / "store"
    store = SealedStore(FolderStore(folder), keyring, place="north/rare_disease")
    store.write(NAME, secret)
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert kept
    for clear in (secret, secret.hex().encode(), keyring.data_key, keyring.pseudonym_key):
        assert clear not in kept
    assert SealedStore(FolderStore(folder), keyring, place="north/rare_disease").read(NAME) == secret


def test_what_is_read_is_what_was_written_under_this_name_and_for_this_place_or_an_error(
    keyring: Keyring,
) -> None:
    inner = MemoryStore()
    store = SealedStore(inner, keyring, place="north/rare_disease")
    store.write(NAME, OLD)
    sealed = inner.read(NAME)
    assert sealed is not None
    inner.write(UNTOUCHED, sealed)
    with pytest.raises(TamperedStoreError, match=f"north/rare_disease/{UNTOUCHED}"):
        store.read(UNTOUCHED)
    with pytest.raises(TamperedStoreError):
        SealedStore(inner, keyring, place="north/tissue_type").read(NAME)
    for damaged in (sealed[:-1], b"", sealed[:-1] + bytes([sealed[-1] ^ 1]), OLD):
        inner.write(NAME, damaged)
        with pytest.raises((TamperedStoreError, UnsupportedSchemaError)):
            store.read(NAME)


def test_under_a_new_data_key_only_what_is_old_is_sealed_anew(keyring: Keyring) -> None:
    inner = MemoryStore()
    store = SealedStore(inner, keyring, place="north/rare_disease")
    store.write(NAME, OLD)
    keyring.add_key()
    store.write(UNTOUCHED, OTHER)
    before = inner.read(UNTOUCHED)
    assert store.reseal() == 1
    assert store.reseal() == 0
    assert inner.read(UNTOUCHED) == before
    keyring.drop_old_keys()
    assert (store.read(NAME), store.read(UNTOUCHED)) == (OLD, OTHER)


def test_a_consortium_keeps_the_sums_of_each_track_apart(tmp_path: Path, keyring: Keyring) -> None:
    consortium = SiteHome(tmp_path / "home").consortium("north")
    one, two = (sealed_sessions(consortium, track, keyring) for track in ("rare_disease", "tissue_type"))
    one.write(NAME, OLD)
    assert two.read(NAME) is None
    two.write(NAME, NEW)
    (consortium.sessions / "rare_disease" / NAME).replace(consortium.sessions / "tissue_type" / NAME)
    with pytest.raises(TamperedStoreError):
        two.read(NAME)
