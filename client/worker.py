"""A site's worker for one track: holds its student and answers the coordinator's tasks.

A worker outlives the messages that it answers. ``client.worker_link`` is how they reach it; what the site's
teacher taught comes from ``client.lessons``, which the workers of all its tracks share.
"""

from __future__ import annotations

from collections.abc import Sequence

from client.contribution import site_weight, train_words
from client.lessons import Lessons, NoPairsError, SiteTeaching
from client.patients.records import eligible
from client.private_words import private_words
from client.site_patients import Excluded, nobody, site_prompts, site_readings, site_seed
from client.student.branches import PatientPairs
from client.student.dpo import with_reference
from client.student.evaluate import count_cases, rank_cases
from client.student.fit import LocalUpdate, encode_pairs, local_fit
from client.student.model import Student
from common.fixedpoint import Words
from common.ids import SiteId
from common.messages import EvaluateTask, SumTask, TrainTask
from common.plan import RunPlan
from common.train_words import train_fixed_point

TOP = 10


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
            excluded: Who takes no part any more, asked for each task; they are left out of training and
                test.
        """
        self.teaching = teaching
        self._site, self._plan, self._track = site_id, plan, plan.track(track)
        self._student, self._excluded = student, excluded
        self._encoded: tuple[PatientPairs, ...] | None = None

    def words(self, task: SumTask) -> Words:
        """The site's vector for a task of its track, in the clear: ``client.session`` masks it."""
        return self._train(task) if isinstance(task, TrainTask) else self._evaluate(task)

    def prepare(self) -> Lessons:
        """What the site's teacher taught for this track; once, later calls return the same.

        Raises:
            BudgetSpentError, NoPairsError: As of ``SiteTeaching.prepare``.
        """
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
        entries = encode_pairs(
            self._student,
            lessons.pairs,
            max_prompt_tokens=track.training.max_prompt_tokens,
            imitate=track.training.orpo_lambda == 0,
            prompts=site_readings(
                records, patients.views, track.definition, track.training, seed=self._plan.seed
            ),
        )
        return with_reference(self._student, entries) if track.training.loss == "dpo" else entries

    def _train(self, task: TrainTask) -> Words:
        training, encoded = self._track.training, self._taking_part()
        block = task.adapter.spec.active_block(task.round_id)

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

        if self._plan.privacy.mode != "none":
            return private_words(
                self._student,
                task.adapter,
                block,
                encoded,
                self._plan,
                self._track,
                members=len(task.members),
                fit=fit,
            )
        update = fit()
        patients = len({entry.patient_id for entry in encoded})
        weight = site_weight(patients, self._plan.aggregation, training.weighting)
        fixed_point = train_fixed_point(self._plan)
        return train_words(task.adapter, update, block, weight=weight, fixed_point=fixed_point).join()

    def _evaluate(self, task: EvaluateTask) -> Words:
        track, definition = self._track, self._track.definition
        self._student.load(task.adapter)
        answers, patients = self.teaching.answers(track.track), self.teaching.patients
        excluded = self._excluded()
        allowed = [r for r in eligible(patients.test, self._plan.purpose).kept if track.track in r.label]
        kept = [record for record in allowed if record.patient_id not in excluded]
        read = site_prompts(kept, patients.views, definition)
        cases = [
            (prompt, record.label[track.track])
            for record in kept
            for prompt in read.get(record.patient_id, ())
        ]
        ranked = rank_cases(
            self._student,
            [prompt for prompt, _ in cases],
            self._student.answer_trie(definition.header, answers, lists=track.preferences.chosen_length > 1),
            top=TOP,
            max_prompt_tokens=track.training.max_prompt_tokens,
        )
        return count_cases(ranked, [truth for _, truth in cases], answers).to_words()
