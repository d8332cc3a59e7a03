"""Every student of a comparison, judged on the same patients.

A ``Bench`` holds the test patients and answers once; students and teachers are put on it one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from client.patients.records import PatientRecord
from client.site_patients import SitePatients, site_prompts, site_seed
from client.student.decode import TrieNode
from client.student.evaluate import RankedCase, free_answers, rank_cases
from client.student.model import Student
from client.student.predictions import Prediction, RankedAnswer
from client.student.prompts import StudentPrompt
from client.teacher.fit import TeacherRecipe
from client.teacher.public import names_for
from client.teacher.rank import Ranking, public_rankings, rank_patients, site_teacher
from client.teacher.sight import Memory, Sight
from common.adapter import Adapter
from common.ids import SiteId
from common.metrics import FreeAnswer, count_case
from common.plan import RunPlan, TrackPlan
from common.tracks import AnswerList, Eye
from simulations.claims import Claim
from simulations.kept import Trained
from simulations.method_settings import EvaluationSettings
from simulations.populations import Population, Populations, everyone
from simulations.scores import Outcomes


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a method answered to each case of a list, and how right it was.

    Attributes:
        predictions: One a case.
        outcomes: One a case.
        units: Of each case, whose it is: cases of one patient are no independent draws.
    """

    predictions: tuple[Prediction, ...]
    outcomes: Outcomes
    units: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherLists:
    """A teacher's first and last answers for each test patient, for coverage and avoidance."""

    top: Mapping[str, tuple[str, ...]]
    bottom: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, repr=False)
class TestCase:
    """One case to answer: a patient's note, or one of a patient's tiles.

    Attributes:
        case_id: As in predictions; a patient's tiles are numbered.
        record: Whose it is.
        prompt: What a student reads.
    """

    __test__ = False  # no test of pytest's

    case_id: str
    record: PatientRecord
    prompt: StudentPrompt


def test_cases(records: Sequence[PatientRecord], population: Population) -> list[TestCase]:
    """The cases of these patients, in their order; a patient whom the student cannot read has none."""
    prompts = site_prompts(records, population.views, population.track)
    found = []
    for record in records:
        own = prompts.get(record.patient_id, ())
        ids = [record.case_id] if len(own) == 1 else [f"{record.case_id}#{i}" for i in range(1, len(own) + 1)]
        found += [
            TestCase(case_id=name, record=record, prompt=prompt)
            for name, prompt in zip(ids, own, strict=True)
        ]
    return found


class Bench:
    """The test cases of a track, and all that it takes to judge a student on them."""

    def __init__(
        self,
        population: Population,
        student: Student,
        track: TrackPlan,
        settings: EvaluationSettings,
        on_progress: Callable[[int], None],
    ) -> None:
        """Gather the union of the sites' test cases, then those of new publications.

        ``on_progress`` is called with the number of cases just judged.
        """
        self._student, self._track, self._settings, self._progress = student, track, settings, on_progress
        self.answers: AnswerList = population.answers
        self.top = settings.top
        self._judged_before: dict[str, tuple[list[RankedCase], list[FreeAnswer]]] = {}
        self.lists = track.preferences.chosen_length > 1
        self.union = test_cases(population.test, population)
        self.new = test_cases(population.new_publications, population)
        self._header = population.track.header
        # Spread over all sites: neighbors in the list are of one.
        count = min(settings.free_cases, len(self.union))
        self._free = [round(place) for place in np.linspace(0, len(self.union) - 1, count)]
        self._trie: TrieNode = student.answer_trie(self._header, population.answers, lists=self.lists)

    def truths(self, cases: Sequence[TestCase]) -> list[str]:
        """The right answer of each case."""
        return [case.record.label[self._track.track] for case in cases]

    def judge(self, trained: Trained, lists: TeacherLists | None = None) -> tuple[Judged, Judged]:
        """A student's answers on the union, and on new publications, its confidences tempered.

        A temperature changes no answer: students of one adapter are asked once.
        """
        key = trained.adapter.digest()
        if key not in self._judged_before:
            self._judged_before[key] = self._asked(trained.adapter)
        else:
            self._progress(len(self.union) + len(self.new))
        found, free = self._judged_before[key]
        ranked = [case.tempered(trained.temperature) for case in found]
        count = len(self.union)
        return (
            self._judged(self.union, ranked[:count], lists, dict(zip(self._free, free, strict=True))),
            self._judged(self.new, ranked[count:], None, {}),
        )

    def _asked(self, adapter: Adapter) -> tuple[list[RankedCase], list[FreeAnswer]]:
        """A student's answers to all cases, and what it writes freely to some of the union."""
        self._student.load(adapter)
        longest = self._track.training.max_prompt_tokens
        found = rank_cases(
            self._student,
            [case.prompt for case in (*self.union, *self.new)],
            self._trie,
            top=self._settings.top,
            max_prompt_tokens=longest,
            on_progress=self._progress,
        )
        free = free_answers(
            self._student,
            [self.union[row].prompt for row in self._free],
            self._header,
            self.answers,
            max_prompt_tokens=longest,
            max_answer_tokens=self._settings.max_answer_tokens,
        )
        return found, free

    def judge_rankings(self, rankings: Mapping[str, Ranking]) -> tuple[Judged, Judged]:
        """Rankings by patient id, on the union and on new publications; who is not ranked has no answer.

        New publications of which nobody is ranked are left out: they belong to no teacher's hospital.
        """
        new = self.new if any(case.record.patient_id in rankings for case in self.new) else []
        return (
            self._judged(self.union, self._ranked(self.union, rankings), None, {}),
            self._judged(new, self._ranked(new, rankings), None, {}),
        )

    def _ranked(self, cases: Sequence[TestCase], rankings: Mapping[str, Ranking]) -> list[RankedCase]:
        top = self._settings.top
        index = {answer.id: place for place, answer in enumerate(self.answers.answers)}
        ranked = []
        for case in cases:
            ranking = rankings.get(case.record.patient_id)
            if ranking is None:
                ranked.append(RankedCase(answers=(), confidence=(), scores=()))
                continue
            kept, scores = [index[i] for i in ranking.answer_ids], [float(score) for score in ranking.scores]
            ranked.append(RankedCase.of(kept, scores, top))
        return ranked

    def _judged(
        self,
        cases: Sequence[TestCase],
        ranked: Sequence[RankedCase],
        lists: TeacherLists | None,
        free: Mapping[int, FreeAnswer],
    ) -> Judged:
        truths = self.truths(cases)
        counts = [
            count_case(
                [self.answers.answers[i].id for i in one.answers],
                truth,
                teacher_top=None if lists is None else lists.top.get(case.record.patient_id),
                teacher_bottom=None if lists is None else lists.bottom.get(case.record.patient_id),
                free=free.get(row),
            )
            for row, (case, one, truth) in enumerate(zip(cases, ranked, truths, strict=True))
        ]
        claims = [self._claim(one, truth) for one, truth in zip(ranked, truths, strict=True)]
        return Judged(
            predictions=tuple(
                self._prediction(case, one, truth)
                for case, one, truth in zip(cases, ranked, truths, strict=True)
            ),
            outcomes=Outcomes.claimed(counts, claims, len(self.answers)),
            units=tuple(case.record.patient_id for case in cases),
        )

    def _claim(self, ranked: RankedCase, truth: str) -> Claim:
        return Claim(
            answers=tuple(self.answers.ids[index] for index in ranked.everything),
            confidence=tuple(float(value) for value in ranked.all_confidences()),
            truth=truth,
        )

    def _prediction(self, case: TestCase, ranked: RankedCase, truth: str) -> Prediction:
        answers = (self.answers.answers[index] for index in ranked.answers)
        return Prediction(
            case_id=case.case_id,
            answers=tuple(
                RankedAnswer(id=answer.id, name=answer.name, confidence=min(1.0, confidence))
                for answer, confidence in zip(answers, ranked.confidence, strict=True)
            ),
            truth=truth,
        )


EyeSets = Mapping[str, frozenset[Eye]]
"""By method: what a teacher may look with."""
Rankings = Mapping[str, Mapping[str, Ranking]]
"""By method, then by patient id."""


def rank_test_patients(
    populations: Populations,
    memory: Memory,
    plan: RunPlan,
    *,
    recipe: TeacherRecipe,
    eye_sets: Mapping[str, EyeSets],
) -> dict[str, dict[str, dict[str, Ranking]]]:
    """Each test patient ranked by his own hospital's teacher, by track and method of ``eye_sets``.

    The teacher trained on all of the hospital's training patients, under privacy if the plan says so; a
    public one reads notes alone. A patient who brings none of a set's eyes is not in that set's rankings.
    Nothing of it leaves the simulation: it is not charged to anybody.
    """
    found: dict[str, dict[str, dict[str, Ranking]]] = {
        track: {method: {} for method in sets} for track, sets in eye_sets.items()
    }
    for site, patients in everyone(populations).items():
        views = {r.patient_id: patients.views.view(r) for r in (*patients.train, *patients.test)}
        sight = memory.look(views)
        test = sight.rows(np.arange(len(patients.train), len(views)))
        own = {track: p.answers for track, p in populations.items() if site in p.sites}
        labeled = {track: {r.patient_id for r in patients.test if track in r.label} for track in own}
        rank = _test_teacher(patients, sight, own, memory, plan, site, recipe)
        for track in own:
            asked = test.rows(np.flatnonzero([p in labeled[track] for p in test.patient_ids]))
            for method, eyes in eye_sets[track].items():
                found[track][method] |= {r.patient_id: r for r in rank(asked.bringing(eyes), track, eyes)}
    return found


def _test_teacher(
    patients: SitePatients,
    sight: Sight,
    answers: Mapping[str, AnswerList],
    memory: Memory,
    plan: RunPlan,
    site: SiteId,
    recipe: TeacherRecipe,
) -> Callable[[Sight, str, frozenset[Eye]], list[Ranking]]:
    """What ranks a site's test patients for a track, looking with some eyes alone."""
    privacy = plan.teacher.privacy
    found = {track: names_for(known, memory, privacy) for track, known in answers.items()}
    names = {track: one for track, one in found.items() if one is not None}
    if privacy == "public":
        return lambda test, track, eyes: public_rankings(test, names[track]) if Eye.NOTE in eyes else []
    teacher = site_teacher(
        patients.train,
        sight,
        answers=answers,
        plan=plan.teacher,
        seed=site_seed(plan.seed, site, "test teacher"),
        names=names,
        recipe=recipe,
    )
    return lambda test, track, eyes: rank_patients(teacher, test, track, eyes=eyes)


def teacher_lists(rankings: Mapping[str, Ranking], length: int) -> TeacherLists:
    """The first and last ``length`` answers of each ranking."""
    return TeacherLists(
        top={patient: ranking.answer_ids[:length] for patient, ranking in rankings.items()},
        bottom={patient: ranking.answer_ids[-length:] for patient, ranking in rankings.items()},
    )
