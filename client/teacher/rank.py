"""A teacher's opinion: every answer of a track, ranked for every patient.

Pairs come from cross-fitting: each training patient is ranked by a teacher that did not train on him, else
his ranking would only repeat his label. The plan's privacy says what kind of teacher. Under ``dp`` who is in
which fold depends on nobody else, and each patient trains the teachers of all folds but his own: these
trainings compose (`TeacherPlan.runs`). Cross-fitting itself protects nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from client.patients.records import PatientRecord
from client.patients.splits import folds, independent_folds
from client.teacher.fit import Teacher, TeacherRecipe, fit_teacher
from client.teacher.public import PublicNames, name_scores
from client.teacher.sight import ALL_EYES, Sight, seen_by
from common.learning_plan import TeacherPlan
from common.tracks import AnswerList, Eye

NO_NAMES: Mapping[str, PublicNames] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Ranking:
    """All answers of a track for one patient, best first.

    Attributes:
        patient_id: Whose.
        answer_ids: Every answer of the plan once.
        scores: Log-probabilities in the same order, float32 (answers,).
        teacher_digest: Of the teacher that ranked.
    """

    patient_id: str
    answer_ids: tuple[str, ...]
    scores: NDArray[np.float32]
    teacher_digest: str = ""

    def __post_init__(self) -> None:
        count = len(self.answer_ids)
        if count == 0 or len(set(self.answer_ids)) < count or self.scores.shape != (count,):
            raise ValueError(f"Expected every answer once with a score, got {count} and {self.scores.shape}")
        if not np.isfinite(self.scores).all() or (np.diff(self.scores) > 0).any():
            raise ValueError("Expected finite scores, best first, got others")


def rank_patients(
    teacher: Teacher, sight: Sight, track: str, *, eyes: Collection[Eye] = ALL_EYES
) -> list[Ranking]:
    """Rank all answers of ``track`` for each patient, in the order of ``sight``, looking with ``eyes`` alone.

    Guarantee: an eye that is not among ``eyes`` has no influence.

    Raises:
        ValueError: The teacher has no such track or other eyes than ``sight``, or a patient brings none of
            ``eyes``.
    """
    if track not in teacher.answers:
        raise ValueError(f"Expected a track among {', '.join(teacher.answers)}, got {track}")
    if set(teacher.trunk.eyes) != set(sight.vectors):
        raise ValueError(
            f"Expected vectors of {', '.join(teacher.trunk.eyes)}, got {', '.join(sorted(sight.vectors))}"
        )
    blind = int((~seen_by(sight, eyes)).sum())
    if blind:
        raise ValueError(
            f"Expected every patient to bring one of {', '.join(sorted(eyes))}, {blind} bring none"
        )
    scores = _log_probabilities(teacher, sight, track, eyes)
    return _ranked(sight.patient_ids, scores, teacher.answers[track], teacher.digest())


def public_rankings(sight: Sight, names: PublicNames) -> list[Ranking]:
    """Rank all answers for each patient who brings a note, by what is public and that note; ε is 0.

    Guarantee: a patient's ranking depends on that patient's note alone.
    """
    brought = sight.bringing({Eye.NOTE})
    return _ranked(brought.patient_ids, name_scores(brought, names), names.answers, names.digest())


def cross_fit(
    records: Sequence[PatientRecord],
    sight: Sight,
    *,
    answers: Mapping[str, AnswerList],
    plan: TeacherPlan,
    seed: int,
    names: Mapping[str, PublicNames] = NO_NAMES,
    recipe: TeacherRecipe | None = None,
) -> dict[str, list[Ranking]]:
    """Rank each patient for each track that he has a label of, in the order of ``records``, by track.

    A public teacher does not rank a patient without a note.

    Guarantee: no patient is ranked by a teacher that trained on him, nor by one that was stopped by him.
    Under ``dp`` the fold of a patient depends on that patient alone, and a fold or what is left beside it
    may be empty.

    Args:
        records: Training patients, as in ``fit_teacher``, each with a label of some track.
        sight: What was seen of them.
        answers: Answer list by track; one teacher learns all tracks.
        plan: Privacy, number of folds, modality dropout.
        seed: Decides folds and, under privacy ``none``, teachers.
        names: What the note eye sees of the answers, by track. A public teacher needs them, a teacher under
            privacy is better with them (`client.teacher.private.PrivateHead.even_out`).
        recipe: Training's sizes and rates, of privacy ``none``.
    """
    if plan.privacy == "public":
        return {
            track: _public_cross_fit(records, sight, track, known, names.get(track))
            for track, known in answers.items()
        }
    fold_by_id = (independent_folds if plan.privacy == "dp" else folds)(records, plan.folds, seed)
    ranked: dict[str, dict[str, Ranking]] = {track: {} for track in answers}
    for fold in range(plan.folds):
        held_out = [record for record in records if fold_by_id[record.patient_id] == fold]
        if not held_out:
            continue
        taught = [record for record in records if fold_by_id[record.patient_id] != fold]
        teacher = site_teacher(
            taught,
            sight,
            answers=answers,
            plan=plan,
            seed=_fold_seed(seed, fold),
            names=names,
            recipe=recipe,
        )
        for track, found in ranked.items():
            labeled = [record for record in held_out if track in record.label]
            found |= {r.patient_id: r for r in rank_held_out(teacher, _rows_of(labeled, sight), track)}
    return {
        track: [found[record.patient_id] for record in records if track in record.label]
        for track, found in ranked.items()
    }


def _fold_seed(seed: int, fold: int) -> int:
    return int(np.random.SeedSequence(entropy=seed, spawn_key=(fold,)).generate_state(1, np.uint64)[0])


def _rows_of(records: Sequence[PatientRecord], sight: Sight) -> Sight:
    row_by_id = {patient_id: row for row, patient_id in enumerate(sight.patient_ids)}
    return sight.rows(np.array([row_by_id[record.patient_id] for record in records], dtype=np.int64))


def site_teacher(
    records: Sequence[PatientRecord],
    sight: Sight,
    *,
    answers: Mapping[str, AnswerList],
    plan: TeacherPlan,
    seed: int,
    names: Mapping[str, PublicNames] = NO_NAMES,
    recipe: TeacherRecipe | None = None,
) -> Teacher:
    """Train the teacher that the plan's privacy asks for on these patients.

    Under ``dp`` each call is a release of its own, to be paid for.

    Raises:
        ValueError: As of `fit_teacher`. The privacy ``public`` knows no training: `public_rankings`.
    """
    if plan.privacy != "dp":
        return fit_teacher(records, sight, answers=answers, plan=plan, seed=seed, recipe=recipe)
    # Opacus takes four seconds to import, which other plans need not wait for.
    from client.teacher.private import fit_private_teacher

    return fit_private_teacher(records, sight, answers=answers, plan=plan, names=names)


def rank_held_out(teacher: Teacher, sight: Sight, track: str) -> list[Ranking]:
    """Rank patients for pairs; ValueError if the teacher had to do with any of them."""
    known = sum(patient_id in teacher.trained_on for patient_id in sight.patient_ids)
    if known:
        raise ValueError(f"Expected patients the teacher did not train on, got {known} on whom it did")
    return rank_patients(teacher, sight, track)


def teachers_digest(rankings: Iterable[Ranking]) -> str:
    """One digest for all teachers of these rankings: SHA-256 of theirs, sorted."""
    digests = sorted({ranking.teacher_digest for ranking in rankings})
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _public_cross_fit(
    records: Sequence[PatientRecord],
    sight: Sight,
    track: str,
    answers: AnswerList,
    names: PublicNames | None,
) -> list[Ranking]:
    if names is None or names.answers.digest() != answers.digest():
        raise ValueError(f"Expected the names of the answers of {track} for a public teacher, got others")
    labeled = [record for record in records if track in record.label]
    return public_rankings(_rows_of(labeled, sight), names)


def _ranked(
    patient_ids: Sequence[str], scores: NDArray[np.float32], answers: AnswerList, digest: str
) -> list[Ranking]:
    """Rankings from log-probabilities, (patients, answers); answers alike come in the list's order."""
    orders = np.argsort(-scores, axis=1, kind="stable")
    return [
        Ranking(
            patient_id=patient_id,
            answer_ids=tuple(answers.ids[index] for index in order),
            scores=row[order],
            teacher_digest=digest,
        )
        for patient_id, row, order in zip(patient_ids, scores, orders, strict=True)
    ]


def _log_probabilities(
    teacher: Teacher, sight: Sight, track: str, eyes: Collection[Eye]
) -> NDArray[np.float32]:
    vectors = {
        eye: teacher.trunk.standardized(eye, torch.from_numpy(each)) for eye, each in sight.vectors.items()
    }
    present = {eye: torch.from_numpy(brought & (eye in eyes)) for eye, brought in sight.present.items()}
    with torch.inference_mode():
        return np.asarray(torch.log_softmax(teacher.trunk(vectors, present)[track], dim=1).numpy())
