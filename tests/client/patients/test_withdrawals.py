"""The list of those who took the consent back."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from client.patients import withdrawals
from client.patients.records import pseudonym
from client.patients.withdrawals import (
    add_withdrawn,
    count_withdrawn,
    read_lines_of,
    read_withdrawn,
    to_pseudonym,
)
from common.errors import BadFileError

KEY = bytes(range(32))
A, B = pseudonym(KEY, "a"), pseudonym(KEY, "b")


def test_who_withdrew_once_has_withdrawn(tmp_path: Path) -> None:
    path = tmp_path / "cohorts" / "adults" / "withdrawn.txt"
    assert add_withdrawn(path, [A, A], KEY) == 1
    assert add_withdrawn(path, [A, B], KEY) == 1
    assert add_withdrawn(path, [B], KEY) == 0
    assert read_lines_of(path) == (A, B)
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_of_people_stay_and_their_ids_count(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.txt"
    path.write_text("# by letter\na")
    assert read_withdrawn(path, KEY) == {A}
    assert add_withdrawn(path, [A, B], KEY) == 1
    assert path.read_text() == f"# by letter\na\n{B}\n"


def test_whoever_a_line_may_mean_has_withdrawn_and_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.txt"
    assert (read_withdrawn(path, KEY), count_withdrawn(path, KEY)) == (frozenset(), 0)
    path.write_text(f"\ufeff# since November\n\n  case 17  \r\n{A}\na\n{'x' * 500}\n", encoding="utf-8")
    # A may be a pseudonym, or an id of the hospital's own that looks like one.
    named = {pseudonym(KEY, "case 17"), A, pseudonym(KEY, A), pseudonym(KEY, "x" * 500)}
    assert (read_withdrawn(path, KEY), count_withdrawn(path, KEY)) == (named, 3)


def test_of_two_who_add_at_one_time_neither_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, meeting = tmp_path / "withdrawn.txt", Barrier(2)
    write = withdrawals.write_atomically

    def meet(*args: Any, **named: Any) -> None:
        # Who is between the look and the list waits for another one there, who must not come.
        with suppress(BrokenBarrierError):
            meeting.wait(timeout=0.5)
        write(*args, **named)

    monkeypatch.setattr(withdrawals, "write_atomically", meet)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda one: add_withdrawn(path, [one], KEY), (A, B))) == [1, 1]
    assert read_withdrawn(path, KEY) >= {A, B}


def test_a_list_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "withdrawn.txt"
    path.write_bytes(b"\xff\xfe")
    for read in (lambda: read_withdrawn(path, KEY), lambda: add_withdrawn(path, [A], KEY)):
        with pytest.raises(BadFileError, match="expected a readable list of patients"):
            read()
    assert path.read_bytes() == b"\xff\xfe"


def test_a_crash_leaves_the_list_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "withdrawn.txt"
    add_withdrawn(path, [A], KEY)

    def fail(descriptor: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        add_withdrawn(path, [B], KEY)
    assert read_lines_of(path) == (A,)
    assert not list(tmp_path.glob("*.tmp"))


def test_an_id_becomes_a_pseudonym_and_a_pseudonym_stays() -> None:
    assert to_pseudonym(KEY, "a") == to_pseudonym(KEY, A) == A


@pytest.mark.parametrize("patient", ["", " a", "a\nb", "# a"])
def test_what_is_no_id_is_refused(patient: str) -> None:
    with pytest.raises(ValueError, match="Expected a patient's id as one line"):
        to_pseudonym(KEY, patient)
