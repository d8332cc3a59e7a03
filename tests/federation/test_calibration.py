"""Calibration by a federation of real, tiny students: its sums are what one machine would have counted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.lessons
from client.patients.records import PatientRecord
from client.site_patients import SitePatients, site_prompts
from client.student.evaluate import RankedCase, count_cases, rank_cases
from client.teacher.rank import cross_fit as teach
from client.worker import SiteWorker
from common.calibration import TEMPERATURES, fit_temperature
from common.calibration_plan import CalibrationPlan
from common.evaluation_counts import EvaluationCounts
from common.ids import RunId, SiteId
from common.messages import TrainTask
from common.plan import RunPlan
from server.calibrating import evaluate
from server.rounds import run_track
from server.track_state import TrackState
from simulations.federation import make_sessions, make_workers
from simulations.link import MemoryLink
from simulations.planning import Models, make_plan
from simulations.populations import Population
from tests.simulations.small import small_models, small_population, small_settings

FEW, SHARE = 4, 0.5
TEMPERATURE = CalibrationPlan(method="temperature", share=SHARE)
RCFT = CalibrationPlan(method="rcft", share=SHARE, rounds=2, weight=8.0, candidates=16)
CFT = CalibrationPlan(method="cft", share=SHARE, rounds=2)
SMOOTHING = CalibrationPlan(method="label_smoothing", share=SHARE, rounds=2)
States = list[TrackState]
Ran = tuple[States, list[TrainTask]]


def parted(patients: SitePatients) -> SitePatients:
    """A few to calibrate on, a few to test, a few to train."""
    everyone = (*patients.train, *patients.test)
    return replace(
        patients,
        calibration=everyone[:FEW],
        test=everyone[FEW : 2 * FEW],
        train=everyone[2 * FEW : 4 * FEW],
    )


@dataclass(frozen=True)
class Stand:
    """A federation over tiny models, whose student was trained before and is far too sure."""

    population: Population
    models: Models
    home: Path

    @property
    def track(self) -> str:
        return self.population.track.name

    def plan(self, calibration: CalibrationPlan | None, **training: Any) -> RunPlan:
        settings = small_settings().plans
        made = make_plan("test", settings, {self.track: self.population}, {self.track: self.models}, 0)
        (track,) = made.tracks
        changed = {"rounds": 0, "local_steps": 3, "learning_rate": 0.01, **training}
        calibrated = replace(
            track,
            training=replace(track.training, **changed),
            preferences=replace(track.preferences, chosen_length=1),
            calibration=calibration,
        )
        return replace(made, tracks=(calibrated,))

    def workers(self, plan: RunPlan) -> Mapping[SiteId, SiteWorker]:
        populations, models = {self.track: self.population}, {self.track: self.models}
        return make_workers(plan, populations, models, self.home, small_settings().recipe)[self.track]

    def begin(self, plan: RunPlan) -> tuple[TrackState, MemoryLink, list[TrainTask]]:
        """The state before the first step, a link to fresh sites, and the rounds that one of them sees."""
        workers, seen = self.workers(plan), list[TrainTask]()
        sessions, identities = make_sessions(plan, {self.track: workers})
        first = workers[plan.sites[0]]
        words = first.words

        def watched(task: Any) -> Any:
            if isinstance(task, TrainTask):
                seen.append(task)
            return words(task)

        first.words = watched  # type: ignore[method-assign]
        start = TrackState(
            plan=plan,
            run_id=RunId("run-1"),
            track=self.track,
            adapter=self.models.initial,
            identities=identities,
        )
        return start, MemoryLink(sessions), seen

    def run(self, calibration: CalibrationPlan, **training: Any) -> Ran:
        """Every state on the way, the evaluated one last, and the rounds as one site saw them."""
        start, link, seen = self.begin(self.plan(calibration, **training))
        states: list[TrackState] = []
        run_track(start, link, on_state=states.append)
        return states, seen

    def pooled(self, part: str) -> list[PatientRecord]:
        sites = self.population.sites
        return [record for site in sorted(sites) for record in getattr(sites[site], part)]

    def ranked(self, records: Sequence[PatientRecord]) -> list[RankedCase]:
        """The answers of the student to begin with, to all patients in one place."""
        population, student = self.population, self.models.student
        student.load(self.models.initial)
        read = site_prompts(records, population.views, population.track)
        return rank_cases(
            student,
            [read[record.patient_id][0] for record in records],
            student.answer_trie(population.track.header, population.answers),
            top=10,
            max_prompt_tokens=self.plan(TEMPERATURE).tracks[0].training.max_prompt_tokens,
        )

    def firsts(self, records: Sequence[PatientRecord]) -> list[int]:
        return [case.answers[0] for case in self.ranked(records)]


def sure(models: Models) -> Models:
    """A student that nobody trained, and that is sure of what it says."""
    rng = np.random.default_rng(0)
    tensors = {
        name: (values + rng.normal(scale=0.1, size=values.shape)).astype(np.float32)
        for name, values in models.initial.tensors.items()
    }
    return replace(models, initial=replace(models.initial, tensors=tensors))


@pytest.fixture(scope="module")
def always_wrong(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    whole = small_population()
    few = replace(whole, sites={site: parted(patients) for site, patients in whole.sites.items()})
    models = sure(small_models(tmp_path_factory.mktemp("cache"), few))
    return Stand(few, models, tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def stand(always_wrong: Stand) -> Stand:
    return replace(always_wrong, population=half_right(always_wrong))


def half_right(stand: Stand) -> Population:
    """The same patients, every other of whom has what the student answers, and the others something else."""
    population = stand.population
    records = [*stand.pooled("calibration"), *stand.pooled("test")]
    firsts = stand.firsts(records)
    labels = {
        record.patient_id: population.answers.ids[(first + number % 2) % len(population.answers)]
        for number, (record, first) in enumerate(zip(records, firsts, strict=True))
    }

    def relabeled(own: Sequence[PatientRecord]) -> tuple[PatientRecord, ...]:
        return tuple(replace(r, label={stand.track: labels[r.patient_id]}) for r in own)

    sites = {
        site: replace(p, calibration=relabeled(p.calibration), test=relabeled(p.test))
        for site, p in population.sites.items()
    }
    return replace(population, sites=sites)


@pytest.fixture(scope="module")
def tempered(stand: Stand) -> States:
    return stand.run(TEMPERATURE)[0]


@pytest.fixture(scope="module")
def pulled(always_wrong: Stand) -> Ran:
    return always_wrong.run(RCFT)


def before(stand: Stand) -> EvaluationCounts:
    """The evaluation of the student to begin with."""
    start, link, _ = stand.begin(stand.plan(TEMPERATURE))
    found = evaluate(start, link).evaluation
    assert found is not None
    return found


def test_what_the_sites_sum_is_what_all_cases_in_one_place_give(stand: Stand, tempered: States) -> None:
    records = stand.pooled("calibration")
    truths = [record.label[stand.track] for record in records]
    counts = count_cases(stand.ranked(records), truths, stand.population.answers)
    measured, error = tempered[-1].measured, counts.bins.ece()
    assert measured is not None
    assert error is not None
    assert error > 0.2
    assert abs((measured.bins.ece() or 0.0) - error) < 1e-12
    assert measured == counts


def test_the_federated_temperature_is_the_pooled_fit_within_the_grid(stand: Stand, tempered: States) -> None:
    records, ids = stand.pooled("calibration"), stand.population.answers.ids
    ranked = stand.ranked(records)
    right = [ids[c.answers[0]] == r.label[stand.track] for c, r in zip(ranked, records, strict=True)]
    fitted = fit_temperature([np.array(case.scores) for case in ranked], np.array(right))
    assert 1 < fitted < TEMPERATURES[-1]
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    assert abs(math.log(tempered[-1].temperature / fitted)) < step / 2


def test_at_its_temperature_the_same_answers_are_claimed_with_less_error(
    stand: Stand, tempered: States
) -> None:
    first, after = before(stand), tempered[-1].evaluation
    assert after is not None
    assert after.metrics == first.metrics
    assert error_of(after) < error_of(first)
    assert tempered[-1].adapter == stand.models.initial


def error_of(counts: EvaluationCounts) -> float:
    found = counts.bins.ece()
    assert found is not None
    return found


def test_rcft_makes_a_student_that_is_too_sure_less_so(always_wrong: Stand, pulled: Ran) -> None:
    first, after = error_of(before(always_wrong)), pulled[0][-1].evaluation
    assert after is not None
    # The likelihood alone leaves it where it was: 0.85 of 0.86 after as many steps.
    assert error_of(after) < 0.8 * first


def test_the_bins_of_each_round_are_those_of_its_own_measurement(always_wrong: Stand, pulled: Ran) -> None:
    assert [task.round_id for task in pulled[1]] == [1, 2]
    assert len({task.bin_accuracy for task in pulled[1]}) == 2
    _, rounds = always_wrong.run(replace(RCFT, refresh=2))
    assert rounds[0].bin_accuracy == rounds[1].bin_accuracy == pulled[1][0].bin_accuracy


def test_a_run_that_goes_on_in_the_middle_of_calibration_with_restarted_sites_ends_alike(
    always_wrong: Stand, pulled: Ran
) -> None:
    states, ended = pulled[0], pulled[0][-1]
    (between,) = (state for state in states if state.round_id == 1 and state.measured is not None)
    start, link, _ = always_wrong.begin(between.plan)
    back = replace(between, identities=start.identities, setup=None)
    again = run_track(back, link, on_state=lambda _: None)
    assert again.adapter == ended.adapter
    assert again.evaluation == ended.evaluation


@pytest.mark.parametrize(
    "method", [CFT, replace(CFT, method="label_smoothing"), RCFT], ids=lambda m: m.method
)
def test_without_rounds_of_training_no_teacher_learns_and_no_pair_is_made(
    stand: Stand, method: CalibrationPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a teacher was trained")

    monkeypatch.setattr(client.lessons, "cross_fit", never)
    plan = stand.plan(replace(method, rounds=1))
    start, link, _ = stand.begin(plan)
    ended = run_track(start, link, on_state=lambda _: None)
    assert [report.round_id for report in ended.history] == [1]
    assert ended.history[0].patients == 4 * 3 * plan.tracks[0].training.patients_per_step
    assert ended.adapter != stand.models.initial
    assert not list(stand.home.glob(f"*/pairs-*-{plan.digest()[:16]}.json"))


def test_training_goes_before_and_learns_from_nobody_who_is_set_aside(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: set[str] = set()
    cross_fit: Callable[..., Any] = teach

    def watched(kept: Sequence[PatientRecord], *rest: Any, **named: Any) -> Any:
        looked.update(record.patient_id for record in kept)
        return cross_fit(kept, *rest, **named)

    monkeypatch.setattr(client.lessons, "cross_fit", watched)
    states, rounds = stand.run(replace(RCFT, rounds=1), rounds=1, local_steps=1)
    assert [task.bin_accuracy is None for task in rounds] == [True, False]
    assert looked == {record.patient_id for record in stand.pooled("train")}
    assert states[-1].round_id == 2
