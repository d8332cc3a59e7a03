"""A site's worker for one track: holds its student and answers the coordinator's tasks.

A worker outlives the messages that it answers. ``client.worker_link`` is how they reach it; what the site's
teacher taught comes from ``client.lessons``, which the workers of all its tracks share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from client.contribution import site_weight, train_words
from client.lessons import Lessons, NoPairsError, SiteTeaching
from client.patients.records import PatientRecord, eligible
from client.private_words import private_words
from client.site_patients import Excluded, nobody, site_prompts, site_readings, site_seed
from client.student.branches import PatientPairs
from client.student.calibrate import (
    as_confident,
    calibrate_fit,
    encode_cases,
    imitation,
    most_kept,
    own_lengths,
)
from client.student.decode import build_trie
from client.student.dpo import with_reference
from client.student.evaluate import SPARE_BEAMS, RankedCase, count_cases, rank_cases
from client.student.fit import LocalUpdate, encode_pairs, local_fit
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.calibration_plan import CalibrationPlan
from common.errors import FederationError
from common.fixedpoint import Words
from common.ids import SiteId
from common.message_fields import Part
from common.messages import EvaluateTask, SumTask, TrainTask
from common.plan import RunPlan, TrackPlan
from common.train_words import train_fixed_point


class NobodySetAsideError(FederationError):
    """A site has nobody to calibrate a track's student on."""

    def __init__(self, site_id: SiteId, track: str) -> None:
        super().__init__(f"{site_id}: no patient of track {track} is set aside for calibration")


class SiteWorker:
    """Answers the tasks of one run's track at one site.

    Guarantee: what it answers holds no count of the site's in the clear: patients, pairs, steps and test
    results travel inside the words of a sum.

    Guarantee: whoever is excluded when a task comes is in no answer to it.

    Attributes:
        teaching: Of the site, shared by its tracks.
    """

    def __init__(
        self,
        *,
        site_id: SiteId,
        plan: RunPlan,
        track: str,
        teaching: SiteTeaching,
        student: Student,
        excluded: Excluded = nobody,
    ) -> None:
        """A worker for ``track`` of ``plan``.

        Args:
            site_id: Whose it is.
            plan: As the site approved it.
            track: Which of its tracks.
            teaching: The site's, for the same plan.
            student: Of the track; its adapter values are overwritten by every task.
            excluded: Who takes no part any more, asked for each task; they are left out of training,
                calibration and test.
        """
        self.teaching = teaching
        self._site, self._plan, self._track = site_id, plan, plan.track(track)
        self._student, self._excluded = student, excluded
        self._encoded: tuple[PatientPairs, ...] | None = None
        self._encoded_aside: tuple[PatientPairs, ...] | None = None

    def words(self, task: SumTask) -> Words:
        """The site's vector for a task of its track, in the clear: ``client.session`` masks it."""
        return self._train(task) if isinstance(task, TrainTask) else self._evaluate(task)

    def prepare(self) -> Lessons:
        """What the site's teacher taught for this track; once, later calls return the same.

        Raises:
            BudgetSpentError, NoPairsError: As of ``SiteTeaching.prepare``.
            NobodySetAsideError: All that is to be done is calibration, and there is nobody for it.
        """
        if not self._track.training.rounds:
            self._set_aside()
        return self.teaching.prepare(self._track.track)

    def encoded(self) -> tuple[PatientPairs, ...]:
        """The lessons as tokens, one entry a prompt: one a reading of a note, one a tile."""
        if self._encoded is None:
            self._encoded = tuple(self._encode(self.prepare()))
        return self._encoded

    def _taking_part(self) -> tuple[PatientPairs, ...]:
        """The entries of those who are not excluded now. NoPairsError if none is left."""
        excluded = self._excluded()
        left = tuple(entry for entry in self.encoded() if entry.patient_id not in excluded)
        if not left and self._plan.privacy.mode in ("none", "site"):
            raise NoPairsError(self._site, self._track.track)
        # Under the other modes a site without patients sends noise, and nobody can tell.
        return left

    def _encode(self, lessons: Lessons) -> Sequence[PatientPairs]:
        track, patients = self._track, self.teaching.patients
        taught = {pair.patient_id for pair in lessons.pairs}
        records = [record for record in patients.train if record.patient_id in taught]
        read = site_readings(records, patients.views, track.definition, track.training, seed=self._plan.seed)
        entries = encode_pairs(
            self._student,
            # Pairs outlive what they were made of: there may be nothing left to read of a patient.
            [pair for pair in lessons.pairs if pair.patient_id in read],
            max_prompt_tokens=track.training.max_prompt_tokens,
            imitate=track.training.orpo_lambda == 0,
            prompts=read,
        )
        return with_reference(self._student, entries) if track.training.loss == "dpo" else entries

    def _set_aside(self) -> tuple[PatientPairs, ...]:
        """The entries of those set aside for calibration, as far as they take part now.

        Raises:
            NobodySetAsideError: As ``_taking_part`` does with its error.
        """
        if self._encoded_aside is None:
            self._encoded_aside = tuple(self._encode_aside())
        excluded = self._excluded()
        left = tuple(entry for entry in self._encoded_aside if entry.patient_id not in excluded)
        if not left and self._plan.privacy.mode in ("none", "site"):
            raise NobodySetAsideError(self._site, self._track.track)
        return left

    def _encode_aside(self) -> Sequence[PatientPairs]:
        track = self._track
        ids = self.teaching.answers(track.track).ids
        place = {answer_id: index for index, answer_id in enumerate(ids)}
        cases = self._cases(self._records("calibration"))
        return encode_cases(
            self._student,
            [(patient_id, prompt, place[truth]) for patient_id, prompt, truth in cases if truth in place],
            self._answer_tokens(),
            max_prompt_tokens=track.training.max_prompt_tokens,
        )

    def _answer_tokens(self) -> list[tuple[int, ...]]:
        track = self._track
        answers, lists = self.teaching.answers(track.track), track.preferences.chosen_length > 1
        return self._student.answer_tokens(track.definition.header, answers, lists=lists)

    def _train(self, task: TrainTask) -> Words:
        calibration, training = self._track.calibration, self._track.training
        if calibration is not None and task.round_id > training.rounds:
            return self._calibrate(task, calibration)
        encoded, block = self._taking_part(), task.adapter.spec.active_block(task.round_id)

        def fit() -> LocalUpdate:
            return local_fit(
                self._student,
                task.adapter,
                block,
                encoded,
                training,
                round_id=task.round_id,
                seed=site_seed(self._plan.seed, self._site, "order"),
            )

        return self._update_words(task, encoded, self._track, fit)

    def _calibrate(self, task: TrainTask, calibration: CalibrationPlan) -> Words:
        track = self._track
        if task.round_id > track.all_rounds:
            raise ValueError(f"Expected a round up to {track.all_rounds} of the plan, got {task.round_id}")
        encoded, block = self._set_aside(), task.adapter.spec.active_block(task.round_id)

        def fit() -> LocalUpdate:
            return calibrate_fit(
                self._student,
                task.adapter,
                block,
                encoded,
                track.training,
                calibration,
                answers=self._answer_tokens(),
                round_id=task.round_id,
                seed=site_seed(self._plan.seed, self._site, "calibration order"),
                bin_accuracy=task.bin_accuracy,
            )

        # Where the plan adds noise it lets no other method train than cft, which this is.
        return self._update_words(task, encoded, replace(track, training=imitation(track.training)), fit)

    def _update_words(
        self,
        task: TrainTask,
        encoded: Sequence[PatientPairs],
        track: TrackPlan,
        fit: Callable[[], LocalUpdate],
    ) -> Words:
        """The words of an update: with the plan's noise on a step of ``track``, or of what ``fit`` gives."""
        block = task.adapter.spec.active_block(task.round_id)
        if self._plan.privacy.mode != "none":
            return private_words(
                self._student,
                task.adapter,
                block,
                encoded,
                self._plan,
                track,
                members=len(task.members),
                fit=fit,
            )
        update = fit()
        patients = len({entry.patient_id for entry in encoded})
        weight = site_weight(patients, self._plan.aggregation, track.training.weighting)
        fixed_point = train_fixed_point(self._plan)
        return train_words(task.adapter, update, block, weight=weight, fixed_point=fixed_point).join()

    def _records(self, part: Part) -> list[PatientRecord]:
        """Who of a part may take part in this track, whoever is excluded now among them."""
        patients = self.teaching.patients
        records = patients.test if part == "test" else patients.calibration
        return [r for r in eligible(records, self._plan.purpose).kept if self._track.track in r.label]

    def _cases(self, records: Sequence[PatientRecord]) -> list[tuple[str, StudentPrompt, str]]:
        """Patient id, prompt and the truth's id, one for each prompt."""
        read = site_prompts(records, self.teaching.patients.views, self._track.definition)
        return [
            (record.patient_id, prompt, record.label[self._track.track])
            for record in records
            for prompt in read.get(record.patient_id, ())
        ]

    def _evaluate(self, task: EvaluateTask) -> Words:
        self._student.load(task.adapter)
        excluded = self._excluded()
        records = [record for record in self._records(task.part) if record.patient_id not in excluded]
        cases = self._cases(records)
        ranked = self._ranked([prompt for _, prompt, _ in cases], task.part)
        tempered = [case.tempered(task.temperature) for case in ranked]
        answers = self.teaching.answers(self._track.track)
        return count_cases(tempered, [truth for _, _, truth in cases], answers).to_words()

    def _ranked(self, prompts: Sequence[StudentPrompt], part: Part) -> list[RankedCase]:
        """The student's answers with the confidences that the plan means."""
        track, calibration = self._track, self._track.calibration
        # What rcft pulls is the confidence among its candidates: its bins have to be of the same.
        pulled = calibration is not None and calibration.method == "rcft" and part == "calibration"
        first = calibration.candidates if calibration is not None and pulled else None
        ranked = rank_cases(
            self._student,
            prompts,
            build_trie(self._answer_tokens()),
            top=most_kept(first or 0) - SPARE_BEAMS,
            max_prompt_tokens=track.training.max_prompt_tokens,
        )
        if calibration is None:
            return ranked
        lengths = own_lengths(self._answer_tokens())
        return [as_confident(case, calibration.score, lengths, first=first) for case in ranked]
