import os
import threading
from pathlib import Path

import pytest

from client.patients.open_files import OpenFiles


class Reader:
    """A file that knows whether it is open."""

    opened: list["Reader"]

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()
        self.is_open = True
        Reader.opened.append(self)

    def close(self) -> None:
        self.is_open = False


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    Reader.opened = []
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def read(files: OpenFiles[Reader], path: Path) -> str:
    with files.reading(path) as file:
        assert file.is_open
        return file.text


def still_open() -> str:
    return "".join(reader.text for reader in Reader.opened if reader.is_open)


def test_at_most_limit_are_open_and_the_ones_read_last_stay(paths: list[Path]) -> None:
    files = OpenFiles(Reader, 2)
    a, b, c = paths
    assert [read(files, path) for path in (a, b, a, c, a)] == ["a", "b", "a", "c", "a"]
    assert [reader.text for reader in Reader.opened] == ["a", "b", "c"]
    assert (still_open(), len(files)) == ("ac", 2)
    files.close()
    assert (still_open(), len(files)) == ("", 0)


def test_a_file_that_was_replaced_is_opened_anew(paths: list[Path]) -> None:
    files = OpenFiles(Reader, 2)
    read(files, paths[0])
    paths[0].write_text("another")
    assert read(files, paths[0]) == "another"


def test_a_file_that_failed_is_closed_and_opened_anew(paths: list[Path]) -> None:
    files = OpenFiles(Reader, 2)
    with pytest.raises(KeyError), files.reading(paths[0]):
        raise KeyError
    assert still_open() == ""
    assert read(files, paths[0]) == "a"


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), OpenFiles(Reader, 1).reading(tmp_path / "missing"):
        pass


def test_one_file_is_read_at_a_time(paths: list[Path]) -> None:
    files = OpenFiles(Reader, 2)
    done = threading.Event()

    def other() -> None:
        read(files, paths[1])
        done.set()

    with files.reading(paths[0]):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.1)
    assert done.wait(5)
    thread.join()


def test_a_process_that_forks_starts_with_none_even_while_another_thread_reads(paths: list[Path]) -> None:
    files = OpenFiles(Reader, 2)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with files.reading(paths[0]):
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(5)
    if (child := os.fork()) == 0:
        os._exit(0 if len(files) == 0 and read(files, paths[0]) == "a" else 1)
    assert os.waitpid(child, 0)[1] == 0
    leave.set()
    thread.join()
    assert still_open() == "a"


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        OpenFiles(Reader, 0)
