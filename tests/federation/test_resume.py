"""A coordinator that is killed at an instant, and another process that resumes its run.

What burns the fuse is every file that the journal brings to its place, before and after; every exchange
before its sites are asked, behind each answer and at its end; and every charge of the coordinator's ledger,
before and after. ``make soak`` tries every instant, the tests some of them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from common.calibration_plan import CalibrationPlan
from common.plan import RunPlan
from common.privacy.ledger import Ledger
from server.budget import LEDGER_FILE
from server.journal import read_progress
from server.rounds import TrackState
from tests.fakes import PRIVACY, SITES, private_plan, tiny_plan
from tests.federation.runs import Coordinator, Fuse, Killed, two_tracks

ALL = os.environ.get("CONSILIUM_SOAK") == "1"
PLAIN = tiny_plan(rounds=2, optimizer={"momentum": 0.9})
# A crash costs a step at most.
PRIVATE = private_plan(
    privacy=replace(PRIVACY, spare_steps=1),
    track={"training": replace(private_plan().tracks[0].training, rounds=2)},
)


CALIBRATED = tiny_plan(
    rounds=1,
    optimizer={"momentum": 0.9},
    calibration=CalibrationPlan(method="rcft", share=0.2, rounds=1, learning_rate=0.5),
)
TEMPERED = tiny_plan(rounds=2, calibration=CalibrationPlan(method="temperature", share=0.2))


def undisturbed(plan: RunPlan, folder: Path) -> tuple[dict[str, TrackState], int]:
    """Where the run ends, and how many instants it has."""
    fuse = Fuse()
    return Coordinator(plan, folder / "undisturbed").run(fuse), fuse.passed


def require_whole(coordinator: Coordinator, ended: dict[str, TrackState]) -> None:
    """No round is counted twice, no release is unledgered."""
    for track in coordinator.plan.tracks:
        history = ended[track.track].history
        assert [report.round_id for report in history] == [1, 2]
        sums = [report.sum_id for report in history]
        assert sums == sorted(set(sums))
    if coordinator.plan.privacy.mode == "none":
        return
    own = charged(coordinator.out / LEDGER_FILE, "all patients of consilium")
    for site in SITES:
        released = {(track, sum_id) for by, track, sum_id in coordinator.released if by == site}
        counted = {(state.track, report.sum_id) for state in ended.values() for report in state.history}
        at_site = charged(coordinator.folder / "sites" / f"{site}.db", f"patients of {site}")
        assert counted <= released <= set(at_site)
        assert released <= set(own)


def charged(path: Path, cohort: str) -> list[tuple[str, int]]:
    """Track and sum of every charge of a ledger."""
    return [(entry.charge.track, entry.charge.sum_id) for entry in Ledger.open(path, cohort).entries()]


def outcome(ended: dict[str, TrackState]) -> dict[str, object]:
    """What a run leaves behind, by track."""
    return {
        name: (state.adapter.digest(), state.evaluation, state.measured, state.temperature)
        for name, state in ended.items()
    }


def kill_everywhere(plan: RunPlan, folder: Path, stride: int) -> None:
    expected, instants = undisturbed(plan, folder)
    for instant in range(1, instants + 1, 1 if ALL else stride):
        coordinator = Coordinator(plan, folder / f"killed-at-{instant}")
        ended = coordinator.killed_at(instant)
        require_whole(coordinator, ended)
        if plan.privacy.mode == "none":
            assert outcome(ended) == outcome(expected), f"killed at instant {instant}"


def test_after_a_crash_at_any_instant_the_adapter_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    kill_everywhere(PLAIN, tmp_path, stride=5)


@pytest.mark.parametrize("plan", [CALIBRATED, TEMPERED], ids=["rcft", "temperature"])
def test_after_a_crash_at_any_instant_calibration_ends_as_undisturbed(plan: RunPlan, tmp_path: Path) -> None:
    kill_everywhere(plan, tmp_path, stride=7)


def test_after_a_crash_at_any_instant_of_two_tracks_both_end_as_undisturbed(tmp_path: Path) -> None:
    kill_everywhere(two_tracks(PLAIN), tmp_path, stride=13)


def test_after_a_crash_at_any_instant_no_round_is_counted_twice_and_no_release_is_unledgered(
    tmp_path: Path,
) -> None:
    kill_everywhere(PRIVATE, tmp_path, stride=13)


def test_crashes_of_the_resumed_run_cost_nothing_either(tmp_path: Path) -> None:
    expected, instants = undisturbed(PLAIN, tmp_path)
    coordinator = Coordinator(PLAIN, tmp_path / "killed")
    for instant in (instants - 8, 3, 17, 25, 31):
        with pytest.raises(Killed):
            coordinator.run(Fuse(instant))
    ended = coordinator.run(Fuse())
    require_whole(coordinator, ended)
    assert outcome(ended) == outcome(expected)


def instant_of(plan: RunPlan, folder: Path, exchange: int, answers: int) -> int:
    """The instant behind so many answers of an exchange, counted from 1."""
    fuse = Fuse()
    coordinator = Coordinator(plan, folder)
    found: list[int] = []
    burn = fuse.burn

    def watched() -> None:
        burn()
        link = coordinator.link
        if link.exchanges == exchange and not found and seen(link.exchanges, fuse.passed) > answers:
            found.append(fuse.passed)

    first: dict[int, int] = {}

    def seen(number: int, passed: int) -> int:
        return passed - first.setdefault(number, passed) + 1

    fuse.burn = watched  # type: ignore[method-assign]
    coordinator.run(fuse)
    return found[0]


def test_the_same_sum_goes_on_where_no_site_has_closed_it_and_nobody_is_charged_twice(
    tmp_path: Path,
) -> None:
    # Exchange 6 is the second round's work; its keys rode on the first round.
    instant = instant_of(PRIVATE, tmp_path / "watched", exchange=6, answers=3)
    coordinator = Coordinator(PRIVATE, tmp_path / "killed")
    ended = coordinator.killed_at(instant)
    assert [report.sum_id for report in ended[PRIVATE.tracks[0].track].history] == [1, 2]
    expected = [(PRIVATE.tracks[0].track, 1), (PRIVATE.tracks[0].track, 2)]
    assert charged(coordinator.out / LEDGER_FILE, "all patients of consilium") == expected
    for site in SITES:
        path = coordinator.folder / "sites" / f"{site}.db"
        assert charged(path, f"patients of {site}") == expected


def test_a_sum_that_a_site_has_closed_is_begun_anew_with_a_number_above_and_with_every_site(
    tmp_path: Path,
) -> None:
    # Exchange 7 takes the masks off the second round's sum: two sites gave their shares, and closed it.
    instant = instant_of(PLAIN, tmp_path / "watched", exchange=7, answers=2)
    coordinator = Coordinator(PLAIN, tmp_path / "killed")
    (state,) = coordinator.killed_at(instant).values()
    # Number 3 rode on it.
    assert [report.sum_id for report in state.history] == [1, 5]
    assert [report.survivors for report in state.history] == [SITES, SITES]


def test_a_finished_run_is_not_asked_for_again(tmp_path: Path) -> None:
    coordinator = Coordinator(PLAIN, tmp_path / "run")
    ended = coordinator.run(Fuse())
    again = coordinator.run(Fuse())
    assert coordinator.link.exchanges == 0
    assert outcome(again) == outcome(ended)
    assert read_progress(coordinator.out).run.status == "finished"


def test_status_reads_how_far_a_killed_run_came(tmp_path: Path) -> None:
    instant = instant_of(PLAIN, tmp_path / "watched", exchange=6, answers=1)
    coordinator = Coordinator(PLAIN, tmp_path / "killed")
    with pytest.raises(Killed):
        coordinator.run(Fuse(instant))
    progress = read_progress(coordinator.out)
    assert (progress.run.status, progress.held) == ("running", False)
    (track,) = progress.tracks.values()
    assert (track.round_id, track.rounds, track.step, track.sum_id) == (1, 2, "training", 2)
    assert track.survivors == SITES
