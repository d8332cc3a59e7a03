"""The search engine, and the finished student with documents, on the test cases of a text track.

The search answers every case. The methods that let the student write and search answer the run's
``retrieval.cases``, evenly spread over the union test: a note costs them many passes of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from client.patients.records import PatientRecord
from client.retrieval.judging import Answerer, JudgedNote, MethodReport, evaluate_method
from client.retrieval.methods import METHODS, Answered, Routed, learn_threshold, note_length, search_alone
from client.retrieval.questions import Task, student_task
from client.retrieval.readers import StudentReader
from client.retrieval.retrievers import Bm25Retriever, Retriever
from client.student.model import Student
from client.student.predictions import Prediction, RankedAnswer
from common.metrics import count_case
from common.tracks import AnswerList
from simulations.claims import Claim
from simulations.comparisons import Bench, Judged, TestCase, test_cases
from simulations.documents import simulation_index
from simulations.kept import Trained
from simulations.method_settings import RETRIEVALS, RetrievalSettings
from simulations.populations import Population
from simulations.scores import Outcomes
from simulations.settings import SimulationSettings
from simulations.stages import Stages

SEARCH, ROUTER = "search", "router"


@dataclass(frozen=True, kw_only=True)
class Retrieved:
    """A method of retrieval, judged.

    Attributes:
        union: Its answers to cases of the union; of some of them, where it does not answer all.
        new: To those of new publications; of the search alone.
        costs: What it found and what it took, by name, as ``results.json`` holds it.
    """

    union: Judged
    new: Judged
    costs: Mapping[str, float | None]


def judge_retrieval(
    settings: SimulationSettings,
    population: Population,
    bench: Bench,
    student: Student,
    finished: Trained,
    stages: Stages,
) -> dict[str, Retrieved]:
    """Every method of retrieval of the settings, by method; none of an image track.

    Raises:
        BadFileError, FileNotFoundError: The ontology's files cannot be read.
    """
    wanted = [name for name in RETRIEVALS if f"rag_{name}" in settings.methods]
    if population.text is None or not (wanted or SEARCH in settings.methods):
        return {}
    with stages.stage("ontology_index"):
        retriever = Bm25Retriever(simulation_index(settings, population))
    judge = _Judge(population=population, bench=bench)
    found = {}
    if SEARCH in settings.methods:
        answer = partial(_searched, retriever, population.answers, settings.evaluation.top)
        with stages.stage(SEARCH, len(bench.union) + len(bench.new)) as advance:
            found[SEARCH] = judge.judged(answer, bench.union, bench.new, advance)
    if wanted:
        student.load(finished.adapter)
        reader = StudentReader(student, constrained=settings.retrieval.constrained, lists=bench.lists)
        task = task_of(settings.retrieval, population.answers, settings.evaluation.top)
        found |= _with_reader(settings.retrieval, judge, wanted, reader, retriever, task, stages)
    return found


def task_of(settings: RetrievalSettings, answers: AnswerList, wanted: int) -> Task:
    """What the student is asked, in the words that it was taught."""
    return replace(
        student_task(answers),
        wanted=wanted,
        documents=settings.documents,
        step_tokens=settings.longest_step if settings.constrained else settings.longest_answer,
        chain_tokens=settings.longest_answer,
    )


def _with_reader(
    settings: RetrievalSettings,
    judge: _Judge,
    wanted: Sequence[str],
    reader: StudentReader,
    retriever: Retriever,
    task: Task,
    stages: Stages,
) -> dict[str, Retrieved]:
    cases = spread(judge.bench.union, settings.cases)
    found = {}
    for name in wanted:
        with stages.stage(f"rag_{name}") as advance:
            method = (
                METHODS[name]
                if name != ROUTER
                else Routed(judge.threshold(settings, reader, retriever, task))
            )
            answer = partial(method, reader=reader, retriever=retriever, task=task)
            found[f"rag_{name}"] = judge.judged(answer, cases, [], advance)
    return found


def spread(cases: Sequence[TestCase], most: int) -> list[TestCase]:
    """At most so many of the cases, evenly over the list: neighbors in it are of one site."""
    places = np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int)
    return [cases[place] for place in dict.fromkeys(places.tolist())]


def _searched(retriever: Retriever, answers: AnswerList, top: int, note: str) -> Answered:
    found = search_alone(retriever, note, answers)
    return replace(found, ranked=found.ranked[:top])


@dataclass(frozen=True, kw_only=True)
class _Judge:
    """Judges answers to the test cases of a track."""

    population: Population
    bench: Bench

    def judged(
        self,
        answer: Answerer,
        union: Sequence[TestCase],
        new: Sequence[TestCase],
        advance: Callable[[int], None],
    ) -> Retrieved:
        """A method's answers, and what they cost."""
        report = self._report(answer, [*union, *new], advance)
        count = len(union)
        return Retrieved(
            union=self._outcomes(union, report.notes[:count]),
            new=self._outcomes(new, report.notes[count:]),
            costs={
                "hit_rate": report.hit_rate,
                "compliance": report.compliance,
                "abstained": report.abstained,
                "tokens": report.tokens,
                "tokens_cut": report.tokens_cut,
                "seconds": report.seconds,
            },
        )

    def threshold(
        self, settings: RetrievalSettings, reader: StudentReader, retriever: Retriever, task: Task
    ) -> int:
        """From how many words on a note is long: learnt on patients set aside, else on training ones."""
        sites = [patients for _, patients in sorted(self.population.sites.items())]
        aside = [record for patients in sites for record in patients.calibration]
        records = aside or [record for patients in sites for record in patients.train]
        cases = spread(test_cases(records, self.population), max(2, settings.cases // 2))
        short, long = (
            self._report(partial(METHODS[name], reader=reader, retriever=retriever, task=task), cases)
            for name in ("rag_cot", "cot_rag")
        )
        return learn_threshold(
            [note_length(self._note(case.record)) for case in cases],
            [note.rank is not None for note in short.notes],
            [note.rank is not None for note in long.notes],
        )

    def _report(
        self, answer: Answerer, cases: Sequence[TestCase], advance: Callable[[int], None] | None = None
    ) -> MethodReport:
        notes = [self._note(case.record) for case in cases]
        return evaluate_method(answer, notes, self.bench.truths(cases), on_progress=advance)

    def _note(self, record: PatientRecord) -> str:
        return self.population.views.view(record).note or ""

    def _outcomes(self, cases: Sequence[TestCase], notes: Sequence[JudgedNote]) -> Judged:
        answers, top = self.bench.answers, self.bench.top
        shown = [_shown(note.answered, top) for note in notes]
        counts = [
            count_case([one for one, _ in own], note.truth) for own, note in zip(shown, notes, strict=True)
        ]
        return Judged(
            predictions=tuple(
                Prediction(case_id=case.case_id, answers=_named(own, answers), truth=note.truth)
                for case, own, note in zip(cases, shown, notes, strict=True)
            ),
            outcomes=Outcomes.claimed(
                counts,
                [_claim(own, note.truth) for own, note in zip(shown, notes, strict=True)],
                len(answers),
            ),
            units=tuple(case.record.patient_id for case in cases),
        )


Shown = Sequence[tuple[str, float | None]]
"""Answer ids, best first, each with a confidence where one is claimed."""


def _shown(answered: Answered, top: int) -> Shown:
    confidence = answered.confidence or [None] * len(answered.ranked)
    pairs = zip(answered.ranked, confidence, strict=True)
    return [(one, claimed) for one, claimed in pairs if one is not None][:top]


def _named(shown: Shown, answers: AnswerList) -> tuple[RankedAnswer, ...]:
    names = dict(zip(answers.ids, answers.names, strict=True))
    return tuple(RankedAnswer(id=one, name=names[one], confidence=claimed) for one, claimed in shown)


def _claim(shown: Shown, truth: str) -> Claim | None:
    """The confidences of a list; None where the method claims none."""
    claimed = [(one, value) for one, value in shown if value is not None]
    if not claimed:
        return None
    ids, confidence = zip(*claimed, strict=True)
    return Claim(answers=ids, confidence=confidence, truth=truth)
