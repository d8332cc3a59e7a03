from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.adapter import Block, flatten
from common.calibration import BINS, ReliabilityBins
from common.calibration_plan import CalibrationPlan
from common.ids import SiteId
from common.messages import Bundle, EvaluateTask, Message, TrainTask
from common.privacy.ledger import Ledger
from server.budget import LEDGER_FILE, open_ledger
from server.calibrating import bin_accuracy, measure, measurement_is_due, task_accuracies
from server.journal import Journal, read_progress
from server.listings import say_run
from server.rounds import run_round, run_track
from server.status import run_row
from server.stored_state import load_state, save_state
from server.track_state import TrackState
from simulations.link import MemoryLink
from tests.fakes import (
    COUNTS,
    PRIVACY,
    RUN,
    SITES,
    TRACK,
    FakeWork,
    evaluation_of,
    fake_budgets,
    fake_sites,
    fake_works,
    private_plan,
    private_state,
    private_works,
    pulled,
    tiny_state,
)
from tests.messages import train_task

RCFT = CalibrationPlan(method="rcft", share=0.2, rounds=3, learning_rate=0.25)
CFT = CalibrationPlan(method="cft", share=0.2, rounds=2, learning_rate=0.25)
TEMPERATURE = CalibrationPlan(method="temperature", share=0.2)


def all_parts(message: Message) -> tuple[Message, ...]:
    return message.parts if isinstance(message, Bundle) else (message,)


class Watched:
    """A link that remembers the work that was sent to the first site."""

    def __init__(self, state: TrackState) -> None:
        self.inner, self.work = MemoryLink(fake_sites(state.plan)), list[TrainTask | EvaluateTask]()

    def sites(self) -> tuple[SiteId, ...]:
        return self.inner.sites()

    def exchange(self, tasks: Any, timeout_s: float) -> Any:
        parts = all_parts(tasks[SITES[0]])
        self.work += [part for part in parts if isinstance(part, TrainTask | EvaluateTask)]
        return self.inner.exchange(tasks, timeout_s)

    @property
    def steps(self) -> list[str]:
        return [f"round {task.round_id}" if isinstance(task, TrainTask) else task.part for task in self.work]


def run(rounds: int, calibration: CalibrationPlan | None, **plan: Any) -> tuple[TrackState, Watched]:
    state = tiny_state(rounds=rounds, calibration=calibration, **plan)
    link = Watched(state)
    return run_track(state, link, on_state=lambda _: None), link


@pytest.mark.parametrize(
    ("rounds", "calibration", "steps"),
    [
        (1, None, ["round 1", "test"]),
        (1, RCFT, ["round 1", *(s for n in (2, 3, 4) for s in ("calibration", f"round {n}")), "test"]),
        (
            1,
            replace(RCFT, refresh=2),
            ["round 1", "calibration", "round 2", "round 3", "calibration", "round 4", "test"],
        ),
        (0, replace(RCFT, refresh=9), ["calibration", "round 1", "round 2", "round 3", "test"]),
        (1, CFT, ["round 1", "round 2", "round 3", "test"]),
        (0, TEMPERATURE, ["calibration", "test"]),
        (2, TEMPERATURE, ["round 1", "round 2", "calibration", "test"]),
    ],
)
def test_measurements_come_before_the_first_round_of_calibration_and_as_often_as_the_plan_says(
    rounds: int, calibration: CalibrationPlan | None, steps: list[str]
) -> None:
    ended, link = run(rounds, calibration)
    assert link.steps == steps
    assert ended.round_id == ended.track_plan.all_rounds
    assert ended.metrics == COUNTS + COUNTS + COUNTS + COUNTS


def test_rounds_of_rcft_carry_the_pooled_accuracies_and_no_other_round_does() -> None:
    _, link = run(1, RCFT)
    counted = evaluation_of(COUNTS).bins
    pooled = bin_accuracy(counted + counted + counted + counted)
    sent = [task.bin_accuracy for task in link.work if isinstance(task, TrainTask)]
    assert sent == [None, pooled, pooled, pooled]
    _, other = run(1, CFT)
    assert {task.bin_accuracy for task in other.work if isinstance(task, TrainTask)} == {None}


def test_an_empty_bin_has_no_accuracy() -> None:
    bins = ReliabilityBins.from_cases(np.array([0.05, 0.97, 0.98]), np.array([False, True, False]))
    assert bin_accuracy(bins) == (0.0, *[None] * (BINS - 2), 0.5)


def test_the_evaluation_is_at_the_temperature_that_the_pooled_counts_give() -> None:
    ended, link = run(0, TEMPERATURE)
    counts = evaluation_of(COUNTS)
    expected = (counts + counts + counts + counts).temperatures.best()
    assert expected != 1
    assert ended.temperature == expected
    at = {task.part: task.temperature for task in link.work if isinstance(task, EvaluateTask)}
    assert at == {"calibration": 1.0, "test": expected}
    own = evaluation_of(COUNTS, expected)
    assert ended.evaluation == own + own + own + own


def test_without_a_temperature_confidences_are_as_they_are() -> None:
    for calibration in (None, CFT, RCFT):
        assert run(1, calibration)[0].temperature == 1


def test_calibration_has_a_rate_of_its_own_and_moments_that_begin_anew() -> None:
    optimizer = {"momentum": 0.9, "learning_rate": 1.0, "schedule": "cosine"}
    state = tiny_state(rounds=2, calibration=CFT, optimizer=optimizer)
    link = MemoryLink(fake_sites(state.plan))
    trained = run_round(run_round(state, link), link)
    assert trained.optimizer
    first = run_round(trained, link)
    weights = np.array([10, 20, 30, 40])
    deltas = [work.delta(3, state.adapter.spec.size(Block.B)) for work in fake_works(state.plan).values()]
    mean = (weights[:, None] * np.array(deltas)).sum(0) / weights.sum()
    moved = flatten(first.adapter, Block.B) - flatten(trained.adapter, Block.B)
    np.testing.assert_allclose(moved, 0.25 * mean, atol=1e-6)
    assert set(first.optimizer) == {Block.B}
    second = run_round(first, link)
    assert set(second.optimizer) == {Block.A, Block.B}


def test_the_bins_that_a_round_is_asked_with_decide_on_its_update() -> None:
    state = tiny_state(rounds=0, calibration=RCFT)
    measured = replace(measure(state, MemoryLink(fake_sites(state.plan))), setup=None)
    other = replace(measured, measured=evaluation_of(replace(COUNTS, top1=5, top5=5)))
    assert pulled_of(measured) != pulled_of(other)
    ended = [run_round(one, MemoryLink(fake_sites(state.plan))) for one in (measured, other)]
    assert ended[0].adapter != ended[1].adapter


def pulled_of(state: TrackState) -> float:
    return pulled(replace(train_task_of(state), bin_accuracy=task_accuracies(state)))


def train_task_of(state: TrackState) -> TrainTask:
    return train_task(round_id=state.round_id + 1)


def test_a_round_of_rcft_without_a_measurement_is_not_begun() -> None:
    state = tiny_state(rounds=0, calibration=RCFT)
    with pytest.raises(ValueError, match="Expected a measurement before round 1"):
        run_round(state, MemoryLink(fake_sites(state.plan)))


def test_a_state_in_the_middle_of_calibration_comes_back_as_it_was_and_goes_on_alike(tmp_path: Path) -> None:
    start, seen = tiny_state(rounds=1, calibration=replace(RCFT, refresh=2)), list[TrackState]()
    ended = run_track(start, MemoryLink(fake_sites(start.plan)), on_state=seen.append)
    for state in seen:
        save_state(state, tmp_path / "state.safetensors")
        back = load_state(tmp_path / "state.safetensors", start)
        assert (back.measured, back.evaluation) == (state.measured, state.evaluation)
        assert measurement_is_due(back) == measurement_is_due(state)
        # Other sites, and other keys: what is learned hangs on neither.
        again = run_track(
            replace(back, setup=None, sum_id=back.sum_id + 2),
            MemoryLink(fake_sites(start.plan)),
            on_state=lambda _: None,
        )
        assert again.adapter == ended.adapter
        assert again.evaluation == ended.evaluation


def test_status_shows_where_calibration_stands_and_how_far_confidences_may_be_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start, steps = tiny_state(rounds=1, calibration=RCFT), list[tuple[int, int, str]]()
    folder = tmp_path / "run-1"
    with Journal.open(folder, start.plan, RUN) as journal:

        def keep(state: TrackState) -> None:
            journal.close(state)
            track = read_progress(folder).tracks[TRACK]
            steps.append((track.round_id, track.rounds, track.step))

        run_track(start, MemoryLink(fake_sites(start.plan)), on_state=keep, on_begin=journal.begin)
    assert [step for step, _ in groupby(steps)] == [
        (0, 4, "prepared"),
        (1, 4, "calibrating"),
        (2, 4, "calibrating"),
        (3, 4, "calibrating"),
        (4, 4, "evaluating"),
        (4, 4, "finished"),
    ]
    say_run(run_row(folder))
    shown = capsys.readouterr().out
    for name in ("ece ", "ece_noise_floor ", "nll ", "brier "):
        assert name in shown


def test_every_round_of_calibration_under_privacy_is_paid_for(tmp_path: Path) -> None:
    plan = private_plan(
        privacy=replace(PRIVACY, epsilon=None),
        track={"training": replace(private_plan().tracks[0].training, rounds=1), "calibration": CFT},
    )
    assert plan.steps(plan.tracks[0]) == 3
    ledger = open_ledger(tmp_path, plan)
    sites = fake_sites(plan, private_works(plan), budgets=fake_budgets(plan, tmp_path / "sites"))
    run_track(private_state(plan), MemoryLink(sites), on_state=lambda _: None, ledger=ledger)
    for path, cohort in (
        (tmp_path / LEDGER_FILE, f"all patients of {plan.consortium}"),
        (tmp_path / "sites" / f"{SITES[0]}.db", f"patients of {SITES[0]}"),
    ):
        charges = [entry.charge for entry in Ledger.open(path, cohort).entries()]
        assert [charge.round_id for charge in charges] == [1, 2, 3]
        assert sum(charge.steps for charge in charges) == plan.steps(plan.tracks[0])


def test_a_site_whose_counts_are_of_no_cases_gives_none(tmp_path: Path) -> None:
    state = tiny_state(rounds=0, calibration=TEMPERATURE)
    empty = replace(COUNTS, n=0, top1=0, top5=0, top10=0)
    works = {site: FakeWork(site=site, plan=state.plan, counts=empty) for site in SITES}
    ended = run_track(state, MemoryLink(fake_sites(state.plan, works)), on_state=lambda _: None)
    assert ended.temperature == 1
    assert ended.evaluation is not None
    assert ended.evaluation.bins.ece() is None
