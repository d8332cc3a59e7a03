"""Attacks on a released student: are the patients it learned from told from others.

Everybody is drawn from one distribution, and everybody is given a wrong answer by lot: nothing but memory can
make a student know it. The notes are those of a simulation's hospital.

*Members* were in the student's training. *The teacher's canaries* were in the teacher's training alone; the
student learned from other patients, whom this teacher ranked. That is made as bad as it gets: every canary,
and every other patient it is told from, has a twin with the same note and photo among the student's patients.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.patients.records import PatientRecord
from client.preferences.answers import write_answers
from client.preferences.pairs import PreferencePair
from client.site_patients import Views, site_prompts
from client.student.batches import micro_batches
from client.student.branches import PatientPairs
from client.student.fit import encode_pairs, fit_alone
from client.student.losses import plan_losses
from client.student.model import Student
from client.student.private import clipped_gradients
from client.student.prompts import StudentPrompt
from client.teacher.fit import Teacher, TeacherRecipe, fit_teacher
from client.teacher.private import fit_private_teacher
from client.teacher.rank import rank_patients
from client.teacher.sight import Sight
from common.adapter import Adapter
from common.learning_plan import ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.privacy.accountant import calibrate
from common.privacy.mechanism import Mechanism
from common.privacy.noise import poisson_sample
from common.privacy_plan import TeacherPrivacy
from common.tracks import RARE_DISEASE, AnswerList
from server.aggregate import OptimizerState, next_adapter
from simulations.auditing.membership import Inference, Vector, membership_inference
from simulations.planning import Models

logger = logging.getLogger(__name__)

TRACK = RARE_DISEASE
# Without anybody to stop by and with no coordinate hidden, a trunk learns its patients by heart.
BY_HEART = TeacherRecipe(most_epochs=60, validation_share=0.0, input_dropout=0.0, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How the attacked students are trained.

    Attributes:
        members: How many patients learn, and how many others they are told from.
        students: How many students share the members: one that learns from fewer remembers them better, and
            all together tell as many patients from as many others.
        passes: Over the patients.
        patients_per_step: Of both trainings; with privacy it is the mean.
        learning_rate: Of AdamW without privacy, of Adam with it.
        epsilon, delta: Of the trainings with privacy.
        clip_norm: Of a patient's gradient.
        max_prompt_tokens: Longer notes are cut.
        seed: Of wrong answers, order and intervals.
    """

    members: int = 1000
    students: int = 5
    passes: int = 20
    patients_per_step: int = 16
    learning_rate: float = 0.012
    epsilon: float = 8.0
    delta: float = 1e-5
    clip_norm: float = 0.3
    max_prompt_tokens: int = 160
    seed: int = 0

    def training(self, patients: int) -> TrainingPlan:
        """Steps over so many patients."""
        return TrainingPlan(
            rounds=max(1, round(self.passes * patients / self.patients_per_step)),
            local_steps=1,
            patients_per_step=self.patients_per_step,
            learning_rate=1.0,
            local_optimizer="sgd",
            max_prompt_tokens=self.max_prompt_tokens,
            weighting="uniform",
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class Lots:
    """Patients with answers by lot; the first half may be learned from.

    Attributes:
        records: Each labeled with the wrong answer that was drawn.
        prompts: What a student reads of them, in the same order.
        entries: Their pairs as tokens, in the same order: the drawn answer chosen, another one rejected.
    """

    records: tuple[PatientRecord, ...]
    prompts: tuple[StudentPrompt, ...]
    entries: tuple[PatientPairs, ...]


def draw_lots(
    records: Sequence[PatientRecord],
    views: Views,
    answers: AnswerList,
    student: Student,
    settings: AttackSettings,
) -> Lots:
    """The first ``2 * settings.members`` patients who have a note, in an order by lot.

    Raises:
        ValueError: There are not so many.
    """
    rng = np.random.default_rng(settings.seed)
    prompts = site_prompts(records, views, TRACK)
    able = [record for record in records if record.patient_id in prompts]
    if len(able) < 2 * settings.members:
        raise ValueError(f"Expected {2 * settings.members} patients with a note, got {len(able)}")
    chosen = [able[place] for place in rng.permutation(len(able))[: 2 * settings.members]]
    labeled, pairs = [], []
    for record in chosen:
        wrong = [answer for answer in answers.ids if answer != record.label[TRACK.name]]
        drawn, other = (wrong[place] for place in rng.permutation(len(wrong))[:2])
        labeled.append(dataclasses.replace(record, label={TRACK.name: drawn}))
        pairs.append(_pair(record.patient_id, prompts[record.patient_id][0].text, drawn, other, answers))
    return Lots(
        records=tuple(labeled),
        prompts=tuple(prompts[record.patient_id][0] for record in chosen),
        entries=tuple(encode_pairs(student, pairs, max_prompt_tokens=settings.max_prompt_tokens)),
    )


def attack_student(models: Models, lots: Lots, settings: AttackSettings) -> Inference:
    """Members told from others by a student trained without privacy, and by one trained with it."""
    rng = np.random.default_rng([settings.seed, 1])
    attacks = []
    for train in (train_plainly, train_privately):
        of_members, of_others = [], []
        for number in range(settings.students):
            # Every student has members and others of its own, all of one distribution.
            members = lots.entries[: settings.members][number :: settings.students]
            others = lots.entries[settings.members :][number :: settings.students]
            adapter = train(models.student, models.initial, members, settings)
            gained = _gains(models, [*members, *others], adapter, settings)
            of_members.append(gained[: len(members)])
            of_others.append(gained[len(members) :])
        attacks.append(membership_inference(np.concatenate(of_members), np.concatenate(of_others), rng))
        logger.info("%s: %s", train.__name__, attacks[-1])
    return Inference(
        name="members of the student's training",
        epsilon=settings.epsilon,
        plain=attacks[0],
        private=attacks[1],
    )


def attack_teacher(
    models: Models, lots: Lots, sight: Sight, answers: AnswerList, settings: AttackSettings
) -> Inference:
    """The teacher's canaries told from others by the student, without and with privacy of the teacher.

    The student's own training has no noise: what hides the canaries is the teacher's alone.

    Args:
        models: Base and student.
        lots: The first half are the canaries.
        sight: What the teacher's eyes saw of all of them; their twins look the same.
        answers: Of the track.
        settings: Of students and teacher.
    """
    canaries = lots.records[: settings.members]
    rng = np.random.default_rng([settings.seed, 2])
    attacks = []
    for teacher in (
        _plain_teacher(canaries, sight, answers, settings),
        _private_teacher(canaries, sight, answers, settings),
    ):
        twins = _taught(teacher, lots, sight, answers, models.student, settings)
        adapter = train_plainly(models.student, models.initial, twins, settings)
        gained = _gains(models, lots.entries, adapter, settings)
        attacks.append(membership_inference(gained[: settings.members], gained[settings.members :], rng))
        logger.info("teacher: %s", attacks[-1])
    return Inference(
        name="canaries of the teacher, on the student",
        epsilon=settings.epsilon,
        plain=attacks[0],
        private=attacks[1],
    )


def train_plainly(
    student: Student, initial: Adapter, patients: Sequence[PatientPairs], settings: AttackSettings
) -> Adapter:
    """The adapter after all passes, without clip and noise."""
    return fit_alone(
        student,
        initial,
        patients,
        settings.training(len(patients)),
        patients_per_step=settings.patients_per_step,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    ).adapter


def train_privately(
    student: Student, initial: Adapter, patients: Sequence[PatientPairs], settings: AttackSettings
) -> Adapter:
    """The adapter after as many steps of a federation's mechanism, all patients in one place."""
    plan = settings.training(len(patients))
    rate = min(1.0, settings.patients_per_step / len(patients))
    noise = calibrate(epsilon=settings.epsilon, delta=settings.delta, sampling_rate=rate, steps=plan.rounds)
    block = initial.spec.active_block(1)
    mechanism = Mechanism.finest(
        clip_norm=settings.clip_norm,
        noise_multiplier=noise,
        dimension=initial.spec.size(block),
        most_patients=len(patients),
        most_shares=1,
        absent=0,
        least_shares=1,
    )
    server = ServerOptimizerPlan(name="adam", learning_rate=settings.learning_rate, epsilon=1e-8)
    adapter = initial
    moments: OptimizerState = {}
    for _ in range(plan.rounds):
        drawn = [patients[place] for place in poisson_sample(len(patients), rate)]
        found = clipped_gradients(student, adapter, block, drawn, plan, clip_norm=settings.clip_norm)
        mean = mechanism.decode(mechanism.noised(-found.total, enough=1)) / (rate * len(patients))
        adapter, moments = next_adapter(adapter, block, mean, plan=server, optimizer=moments)
    return adapter


def _gains(
    models: Models, entries: Sequence[PatientPairs], adapter: Adapter, settings: AttackSettings
) -> Vector:
    """How much better the adapter knows each patient's answer than the base does."""
    plan = settings.training(len(entries))
    before = _losses(models.student, entries, models.initial, plan)
    return before - _losses(models.student, entries, adapter, plan)


@torch.no_grad()
def _losses(
    student: Student, entries: Sequence[PatientPairs], adapter: Adapter, plan: TrainingPlan
) -> Vector:
    """Each entry's own loss, (entries,)."""
    student.load(adapter)
    student.model.eval()
    loss_by_id: dict[str, float] = {}
    for part in micro_batches(entries):
        losses = plan_losses(student, part, plan).loss
        loss_by_id |= zip((entry.patient_id for entry in part), losses.tolist(), strict=True)
    return np.array([loss_by_id[entry.patient_id] for entry in entries])


def _plain_teacher(
    canaries: Sequence[PatientRecord], sight: Sight, answers: AnswerList, settings: AttackSettings
) -> Teacher:
    plan = TeacherPlan(privacy="none", modality_dropout=0.0)
    return fit_teacher(
        canaries, sight, answers={TRACK.name: answers}, plan=plan, seed=settings.seed, recipe=BY_HEART
    )


def _private_teacher(
    canaries: Sequence[PatientRecord], sight: Sight, answers: AnswerList, settings: AttackSettings
) -> Teacher:
    steps = 20
    noise = calibrate(epsilon=settings.epsilon, delta=settings.delta, sampling_rate=1.0, steps=steps)
    dp = TeacherPrivacy(
        noise_multiplier=noise, sampling_rate=1.0, clip_norm=0.5, steps=steps, learning_rate=0.1
    )
    plan = TeacherPlan(privacy="dp", modality_dropout=0.0, dp=dp)
    return fit_private_teacher(canaries, sight, answers={TRACK.name: answers}, plan=plan)


def _taught(
    teacher: Teacher,
    lots: Lots,
    sight: Sight,
    answers: AnswerList,
    student: Student,
    settings: AttackSettings,
) -> list[PatientPairs]:
    """The twins' pairs: the teacher's first answer chosen, one of its middle ranks rejected."""
    rng = np.random.default_rng([settings.seed, 3])
    rankings = {
        ranking.patient_id: ranking.answer_ids for ranking in rank_patients(teacher, sight, TRACK.name)
    }
    pairs = []
    for record, prompt in zip(lots.records, lots.prompts, strict=True):
        ranked = rankings[record.patient_id]
        rejected = ranked[int(rng.integers(1, min(6, len(ranked))))]
        pairs.append(_pair(f"twin of {record.patient_id}", prompt.text, ranked[0], rejected, answers))
    return encode_pairs(student, pairs, max_prompt_tokens=settings.max_prompt_tokens)


def _pair(patient_id: str, prompt: str, chosen: str, rejected: str, answers: AnswerList) -> PreferencePair:
    names = dict(zip(answers.ids, answers.names, strict=True))
    return PreferencePair(
        patient_id=patient_id,
        prompt=prompt,
        chosen=write_answers(TRACK.header, [names[chosen]]),
        rejected=write_answers(TRACK.header, [names[rejected]]),
        margin=0.0,
    )
