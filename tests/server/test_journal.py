import json
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import (
    BadFileError,
    DigestMismatchError,
    FederationError,
    RunExistsError,
    RunHeldError,
    UnsupportedSchemaError,
)
from common.ids import RunId
from server.journal import Journal, read_progress
from server.rounds import TrackState, run_round, run_track
from simulations.link import MemoryLink
from tests.fakes import RUN, SITES, TRACK, fake_sites, tiny_plan, tiny_state

START = tiny_state(rounds=3)
PLAN = START.plan
OTHER_RUN = RunId("run-2")


def created(folder: Path) -> Journal:
    return Journal.create(folder, PLAN, RUN)


def opened(folder: Path) -> Journal:
    return Journal.open(folder, PLAN, RUN)


def closed_rounds(folder: Path, number: int = 1) -> TrackState:
    """A journal in which so many rounds are closed; the last state."""
    state, link = START, MemoryLink(fake_sites(PLAN))
    with created(folder) as journal:
        journal.close(state)
        for _ in range(number):
            journal.begin(state, state.sum_id or 1)
            state = run_round(state, link)
            journal.close(state)
    return state


def journal_of(folder: Path) -> Path:
    return folder / TRACK / "journal"


def test_a_track_goes_on_from_its_newest_state(tmp_path: Path) -> None:
    last = closed_rounds(tmp_path, 2)
    with opened(tmp_path) as journal:
        state = journal.resume(START)
    assert (state.round_id, state.sum_id, state.setup, state.begun) == (2, 3, last.setup, False)
    assert state.adapter == last.adapter


def test_a_track_without_a_state_begins(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "run") as journal:
        assert journal.resume(START) is START


def test_the_last_two_states_are_kept(tmp_path: Path) -> None:
    closed_rounds(tmp_path, 3)
    assert sorted(path.name for path in journal_of(tmp_path).iterdir()) == [
        "begun.json",
        "newest.json",
        "state-000003.safetensors",
        "state-000004.safetensors",
    ]


def test_the_same_sum_goes_on_if_it_was_begun_and_its_keys_are_known(tmp_path: Path) -> None:
    state = closed_rounds(tmp_path)
    with opened(tmp_path) as journal:
        journal.begin(state, 2)
        resumed = journal.resume(START)
    assert (resumed.begun, resumed.sum_id, resumed.setup) == (True, 2, state.setup)


def test_numbers_are_above_every_sum_that_was_begun(tmp_path: Path) -> None:
    state = closed_rounds(tmp_path)
    with opened(tmp_path) as journal:
        # Number 2 failed, number 5 was begun; the keys of 6 were riding on it.
        journal.begin(state.after_failure(), 5)
        resumed = journal.resume(START)
    assert (resumed.begun, resumed.sum_id, resumed.setup) == (False, 6, None)
    assert run_round(resumed, MemoryLink(fake_sites(PLAN))).history[-1].sum_id == 7


def test_a_run_is_held_by_one_process_alone(tmp_path: Path) -> None:
    with created(tmp_path):
        for again in (created, opened):
            with pytest.raises(RunHeldError, match="another process works on this run"):
                again(tmp_path)
        assert read_progress(tmp_path).held
    with opened(tmp_path):
        pass
    assert not read_progress(tmp_path).held


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    closed_rounds(tmp_path)
    halves = [folder / ".x.tmp" for folder in (tmp_path, tmp_path / TRACK, journal_of(tmp_path))]
    for half in halves:
        half.write_text("half")
    with opened(tmp_path) as journal:
        assert journal.resume(START).round_id == 1
    assert not any(half.exists() for half in halves)


def test_a_run_that_asked_sites_is_not_begun_again_in_its_folder(tmp_path: Path) -> None:
    closed_rounds(tmp_path)
    for run in (RUN, OTHER_RUN):
        with pytest.raises(RunExistsError, match="run-1 was begun here; resume it"):
            Journal.create(tmp_path, PLAN, run)


def test_a_run_that_asked_nobody_is_begun_anew(tmp_path: Path) -> None:
    with created(tmp_path) as journal:
        journal.close(START)
    with Journal.create(tmp_path, PLAN, OTHER_RUN) as journal:
        assert journal.resume(replace(START, run_id=OTHER_RUN)).history == ()
    assert read_progress(tmp_path).run.run_id == OTHER_RUN


def test_another_run_or_another_plan_is_refused(tmp_path: Path) -> None:
    closed_rounds(tmp_path)
    with pytest.raises(BadFileError, match="expected the run run-2, got run-1"):
        Journal.open(tmp_path, PLAN, OTHER_RUN)
    with pytest.raises(DigestMismatchError, match="plan of run-1"):
        Journal.open(tmp_path, tiny_plan(rounds=4), RUN)
    with opened(tmp_path):
        "the refusals let go of the run"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "finished", ""),
        (FederationError("no\nluck"), "failed", "no luck"),
        (KeyError(), "failed", "KeyError"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (SystemExit(1), "stopped", "interrupted"),
        (GeneratorExit(), "running", ""),
    ],
)
def test_a_run_says_how_it_ended(
    tmp_path: Path, error: BaseException | None, status: str, reason: str
) -> None:
    try:
        with created(tmp_path) as journal:
            journal.add_flower_run(17)
            if error:
                raise error
    except BaseException as raised:
        assert raised is error
    record = read_progress(tmp_path).run
    assert (record.status, record.reason, record.flower_runs) == (status, reason, (17,))
    assert bool(record.ended) == (status != "running")


def test_a_resumed_run_is_running_and_remembers_all_of_flowers_runs(tmp_path: Path) -> None:
    for number in (17, 18):
        with opened(tmp_path) as journal:
            journal.add_flower_run(number)
            assert read_progress(tmp_path).run.status == "running"
    assert read_progress(tmp_path).run.flower_runs == (17, 18)


def test_progress_follows_a_run_to_its_end(tmp_path: Path) -> None:
    seen = []
    with created(tmp_path) as journal:

        def look(state: TrackState) -> None:
            journal.close(state)
            seen.append(read_progress(tmp_path).tracks[TRACK])

        run_track(START, MemoryLink(fake_sites(PLAN)), on_state=look, on_begin=journal.begin)
    assert [(one.step, one.round_id, one.sum_id) for one in seen] == [
        ("prepared", 0, 0),
        ("training", 1, 1),
        ("training", 2, 2),
        ("evaluating", 3, 3),
        ("finished", 3, 4),
    ]
    assert (seen[1].survivors, seen[1].rounds) == (SITES, 3)
    assert 0 < seen[1].waiting_s < seen[1].seconds
    assert seen[-1].metrics is not None
    assert seen[-1].metrics["n"] == 40
    assert json.loads((tmp_path / "plan.json").read_text())["name"] == PLAN.name


def test_progress_of_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"run\.json"):
        read_progress(tmp_path)


@pytest.mark.parametrize("name", ["begun.json", "newest.json", "state-000002.safetensors"])
def test_damaged_files_are_refused_with_one_line(tmp_path: Path, name: str) -> None:
    closed_rounds(tmp_path)
    path = journal_of(tmp_path) / name
    data = bytearray(path.read_bytes())
    # A digit, so that the file can still be read.
    place = data.rindex(b"1") if name != "state-000002.safetensors" else len(data) - 1
    data[place] ^= 2
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="damaged"), opened(tmp_path) as journal:
        journal.resume(START)


def test_a_missing_state_is_refused(tmp_path: Path) -> None:
    closed_rounds(tmp_path)
    (journal_of(tmp_path) / "state-000002.safetensors").unlink()
    with pytest.raises(BadFileError, match="state-000002"), opened(tmp_path) as journal:
        journal.resume(START)
    (journal_of(tmp_path) / "newest.json").unlink()
    with pytest.raises(BadFileError, match="missing, though sums were begun"), opened(tmp_path) as journal:
        journal.resume(START)


@pytest.mark.parametrize("name", ["run.json", "rare_disease/journal/newest.json"])
def test_a_newer_versions_journal_is_refused(tmp_path: Path, name: str) -> None:
    closed_rounds(tmp_path)
    path = tmp_path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
    with pytest.raises(UnsupportedSchemaError, match="schema 2 is newer than 1"), opened(tmp_path) as journal:
        journal.resume(START)
