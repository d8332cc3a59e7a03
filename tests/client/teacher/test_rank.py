"""A teacher's opinion, and cross-fitting."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import client.teacher
from client.patients.records import PatientRecord
from client.patients.splits import folds, independent_folds
from client.teacher import rank
from client.teacher.fit import Teacher, TeacherRecipe, fit_teacher
from client.teacher.public import PublicNames
from client.teacher.rank import (
    Ranking,
    cross_fit,
    public_rankings,
    rank_held_out,
    rank_patients,
    site_teacher,
    teachers_digest,
)
from client.teacher.sight import PERSON_WIDTH, Sight
from common.learning_plan import TeacherPlan
from common.privacy_plan import TeacherPrivacy
from common.tracks import RARE_DISEASE, TISSUE_TYPE, Answer, AnswerList, Eye

TRACK, OTHER = RARE_DISEASE.name, TISSUE_TYPE.name
PLAN = TeacherPlan(folds=3, modality_dropout=0.2)
DP_PLAN = TeacherPlan(
    privacy="dp",
    folds=3,
    modality_dropout=0.2,
    dp=TeacherPrivacy(noise_multiplier=2.0, sampling_rate=0.5, clip_norm=0.5, steps=5, learning_rate=0.5),
)
PUBLIC_PLAN = TeacherPlan(privacy="public", modality_dropout=0.2)
RECIPE = TeacherRecipe(hidden=32, most_epochs=12)
ANSWERS = AnswerList(answers=tuple(Answer(id=f"D:{index}", name=f"Disease {index}") for index in range(6)))


def ranked_by_others(
    records: Sequence[PatientRecord], sight: Sight, *, names: PublicNames | None = None, **arguments: Any
) -> list[Ranking]:
    """The rankings of TRACK by cross-fitting."""
    public = {} if names is None else {TRACK: names}
    return cross_fit(records, sight, names=public, **arguments)[TRACK]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def site(
    count: int, classes: int = 6, width: int = 10, seed: int = 0, noise: float = 0.6
) -> tuple[list[PatientRecord], Sight]:
    centers = np.random.default_rng(7).normal(size=(2, classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    ids = tuple(f"patient-{index}" for index in range(count))
    vectors = {
        eye: (center[labels] + noise * rng.normal(size=(count, width))).astype(np.float32)
        for eye, center in zip((Eye.PHOTO, Eye.NOTE), centers, strict=True)
    }
    present = {eye: np.ones(count, dtype=np.bool_) for eye in vectors}
    records = [
        PatientRecord(patient_id=name, case_id=name, note="note", label={TRACK: f"D:{label}"})
        for name, label in zip(ids, labels, strict=True)
    ]
    return records, Sight(patient_ids=ids, vectors=vectors, present=present)


@pytest.fixture(scope="module")
def taught() -> tuple[Teacher, Sight]:
    records, sight = site(60)
    return fit_teacher(records, sight, answers={TRACK: ANSWERS}, plan=PLAN, seed=0, recipe=RECIPE), sight


def test_a_ranking_holds_every_answer_best_first_with_log_probabilities(
    taught: tuple[Teacher, Sight],
) -> None:
    teacher, sight = taught
    rankings = rank_patients(teacher, sight, TRACK)
    assert tuple(each.patient_id for each in rankings) == sight.patient_ids
    for each in rankings:
        assert sorted(each.answer_ids) == sorted(ANSWERS.ids)
        assert each.scores.dtype == np.float32
        assert (np.diff(each.scores) <= 0).all()
        assert np.exp(each.scores).sum() == pytest.approx(1, abs=1e-5)
        assert each.teacher_digest == teacher.digest()


def test_an_eye_that_is_not_among_eyes_has_no_influence(taught: tuple[Teacher, Sight]) -> None:
    teacher, sight = taught
    other = replace(sight, vectors={**sight.vectors, Eye.PHOTO: -sight.vectors[Eye.PHOTO]})
    for eyes, is_same in (({Eye.NOTE}, True), ({Eye.PHOTO}, False)):
        pairs = zip(
            rank_patients(teacher, sight, TRACK, eyes=eyes),
            rank_patients(teacher, other, TRACK, eyes=eyes),
            strict=True,
        )
        assert all(np.array_equal(one.scores, two.scores) for one, two in pairs) is is_same


def test_what_a_teacher_cannot_rank_is_refused(taught: tuple[Teacher, Sight]) -> None:
    teacher, sight = taught
    with pytest.raises(ValueError, match="Expected a track among rare_disease, got tissue_type"):
        rank_patients(teacher, sight, OTHER)
    with pytest.raises(ValueError, match="Expected every patient to bring one of slide, 60 bring none"):
        rank_patients(teacher, sight, TRACK, eyes={Eye.SLIDE})
    photo = Sight(
        patient_ids=sight.patient_ids,
        vectors={Eye.PHOTO: sight.vectors[Eye.PHOTO]},
        present={Eye.PHOTO: sight.present[Eye.PHOTO]},
    )
    with pytest.raises(ValueError, match="Expected vectors of note, photo, got photo"):
        rank_patients(teacher, photo, TRACK)


def test_no_patient_is_ranked_by_a_teacher_that_trained_on_him(monkeypatch: pytest.MonkeyPatch) -> None:
    records, sight = site(45)
    taught: list[frozenset[str]] = []
    ranked: list[tuple[str, ...]] = []

    def rank_held_out_and_note(teacher: Teacher, rows: Sight, track: str) -> list[Ranking]:
        taught.append(teacher.trained_on)
        ranked.append(rows.patient_ids)
        return rank_held_out(teacher, rows, track)

    monkeypatch.setattr(rank, "rank_held_out", rank_held_out_and_note)
    rankings = ranked_by_others(records, sight, answers={TRACK: ANSWERS}, plan=PLAN, seed=4, recipe=RECIPE)
    assert [each.patient_id for each in rankings] == [record.patient_id for record in records]
    assert len(taught) == PLAN.folds
    assert all(not known & set(ids) for known, ids in zip(taught, ranked, strict=True))
    assert all(len(known) + len(ids) == 45 for known, ids in zip(taught, ranked, strict=True))
    by_fold = folds(records, PLAN.folds, 4)
    assert all(len({by_fold[name] for name in ids}) == 1 for ids in ranked)
    assert len({each.teacher_digest for each in rankings}) == PLAN.folds


def test_ranking_a_patient_the_teacher_trained_on_for_pairs_is_refused(taught: tuple[Teacher, Sight]) -> None:
    teacher, sight = taught
    with pytest.raises(ValueError, match="did not train on, got 60 on whom it did"):
        rank_held_out(teacher, sight, TRACK)


def test_held_out_rankings_are_not_better_than_the_vectors_allow() -> None:
    # Vectors without any information: a teacher that saw its own patients would know their labels.
    records, sight = site(120, noise=1e4)
    arguments: dict[str, Any] = {"answers": {TRACK: ANSWERS}, "plan": PLAN, "seed": 0}
    recipe = replace(RECIPE, validation_share=0.0, most_epochs=40, input_dropout=0.0)
    held_out = ranked_by_others(records, sight, recipe=recipe, **arguments)
    own = rank_patients(fit_teacher(records, sight, recipe=recipe, **arguments), sight, TRACK)
    right = {
        name: np.mean(
            [each.answer_ids[0] == record.label[TRACK] for each, record in zip(ranked, records, strict=True)]
        )
        for name, ranked in (("held out", held_out), ("own", own))
    }
    assert right["own"] > 0.8
    assert right["held out"] < 0.35


def test_cross_fit_is_deterministic_in_the_seed() -> None:
    records, sight = site(40)
    arguments: dict[str, Any] = {"answers": {TRACK: ANSWERS}, "plan": PLAN, "recipe": RECIPE}
    one, same, other = (ranked_by_others(records, sight, seed=seed, **arguments) for seed in (1, 1, 2))
    assert teachers_digest(one) == teachers_digest(same) != teachers_digest(other)
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(one, same, strict=True))


def test_one_teacher_ranks_each_patient_for_the_tracks_he_has_a_label_of() -> None:
    records, sight = site(40)
    tissues = AnswerList(answers=(Answer(id="T:0", name="Bone"), Answer(id="T:1", name="Skin")))
    mixed = [
        replace(record, label={OTHER: "T:0"}) if index % 4 == 0 else record
        for index, record in enumerate(records)
    ]
    answers = {TRACK: ANSWERS, OTHER: tissues}
    rankings = ranked_by_others(mixed, sight, answers=answers, plan=PLAN, seed=0, recipe=RECIPE)
    assert [each.patient_id for each in rankings] == [
        each.patient_id for each in mixed if TRACK in each.label
    ]
    both = cross_fit(mixed, sight, answers=answers, plan=PLAN, seed=0, recipe=RECIPE)
    assert [each.patient_id for each in both[OTHER]] == [
        each.patient_id for each in mixed if OTHER in each.label
    ]
    # One teacher a fold, for both tracks.
    digests = {each.teacher_digest for found in both.values() for each in found}
    assert len(digests) == PLAN.folds


def test_a_large_site_is_ranked_well_by_teachers_who_never_saw_the_patient() -> None:
    answers = AnswerList(
        answers=tuple(Answer(id=f"D:{index}", name=f"Disease {index}") for index in range(217))
    )
    records, sight = site(1000, classes=217, width=300, noise=1.5)
    plan = TeacherPlan(folds=2, modality_dropout=0.2)
    rankings = ranked_by_others(records, sight, answers={TRACK: answers}, plan=plan, seed=0)
    right = [
        each.answer_ids[0] == record.label[TRACK] for each, record in zip(rankings, records, strict=True)
    ]
    assert np.mean(right) > 0.8


def private_teachers(
    records: list[PatientRecord], sight: Sight, monkeypatch: pytest.MonkeyPatch, plan: TeacherPlan = DP_PLAN
) -> list[tuple[frozenset[str], tuple[str, ...]]]:
    """Whom each teacher of a cross-fitting learned from, and whom it ranked."""
    taught: list[tuple[frozenset[str], tuple[str, ...]]] = []

    def rank_held_out_and_note(teacher: Teacher, rows: Sight, track: str) -> list[Ranking]:
        taught.append((teacher.trained_on, rows.patient_ids))
        return rank_held_out(teacher, rows, track)

    monkeypatch.setattr(rank, "rank_held_out", rank_held_out_and_note)
    rankings = ranked_by_others(records, sight, answers={TRACK: ANSWERS}, plan=plan, seed=4)
    assert [each.patient_id for each in rankings] == [record.patient_id for record in records]
    return taught


def test_under_privacy_a_patient_trains_as_many_teachers_as_are_paid_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, sight = site(30)
    taught = private_teachers(records, sight, monkeypatch)
    for name in sight.patient_ids:
        assert sum(name in known for known, _ in taught) == DP_PLAN.runs == 2
    assert all(not known & set(ranked) for known, ranked in taught)


def test_under_privacy_the_fold_of_a_patient_depends_on_that_patient_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, sight = site(30)
    fold_by_id = independent_folds(records, DP_PLAN.folds, 4)
    everyone = private_teachers(records, sight, monkeypatch)
    assert [set(ranked) for _, ranked in everyone] == [
        {name for name in sight.patient_ids if fold_by_id[name] == fold} for fold in range(DP_PLAN.folds)
    ]
    fewer = private_teachers(records[1:], sight, monkeypatch)
    gone = records[0].patient_id
    assert [set(ranked) for _, ranked in fewer] == [set(ranked) - {gone} for _, ranked in everyone]
    assert [known for known, _ in fewer] == [known - {gone} for known, _ in everyone]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_under_privacy_folds_and_what_is_left_beside_them_may_be_empty(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, sight = site(count)
    taught = private_teachers(records, sight, monkeypatch, replace(DP_PLAN, folds=7))
    assert sum(len(ranked) for _, ranked in taught) == count
    assert ranked_by_others([], sight, answers={TRACK: ANSWERS}, plan=DP_PLAN, seed=0) == []


def names_and_notes() -> tuple[PublicNames, list[PatientRecord], Sight]:
    """Names that point to six sides, and patients whose notes point near the one of their label."""
    texts = np.concatenate([np.eye(6), -np.eye(6), np.eye(6) + 0.1], axis=0)[:, :6]
    vectors = np.concatenate([texts, np.zeros((18, PERSON_WIDTH))], axis=1).astype(np.float32)
    names = PublicNames(answers=ANSWERS, owners=np.arange(18) % 6, vectors=vectors)
    records, _ = site(30)
    rng = np.random.default_rng(1)
    labels = [int(record.label[TRACK][2:]) for record in records]
    notes = np.concatenate(
        [5 * np.eye(6)[labels] + rng.normal(size=(30, 6)), 9 * rng.random((30, PERSON_WIDTH))], axis=1
    )
    sight = Sight(
        patient_ids=tuple(record.patient_id for record in records),
        vectors={Eye.NOTE: notes.astype(np.float32)},
        present={Eye.NOTE: np.arange(30) != 7},
    )
    return names, records, sight


def test_a_public_teacher_ranks_those_who_bring_a_note_and_learned_from_nobody() -> None:
    names, records, sight = names_and_notes()
    arguments: dict[str, Any] = {"answers": {TRACK: ANSWERS}, "plan": PUBLIC_PLAN}
    rankings = ranked_by_others(records, sight, **arguments, seed=0, names=names)
    kept = [record for index, record in enumerate(records) if index != 7]
    assert [each.patient_id for each in rankings] == [record.patient_id for record in kept]
    right = [each.answer_ids[0] == record.label[TRACK] for each, record in zip(rankings, kept, strict=True)]
    assert np.mean(right) > 0.9
    # Neither labels, nor the seed, nor who else is there make a difference.
    others = [replace(record, label={TRACK: "D:0"}) for record in records[:5]]
    again = ranked_by_others(others, sight, **arguments, seed=1, names=names)
    assert [each.answer_ids for each in again] == [each.answer_ids for each in rankings[:5]]
    assert teachers_digest(again) == teachers_digest(rankings)
    assert {each.teacher_digest for each in rankings} == {names.digest()}


def test_a_public_teacher_without_the_names_of_its_answers_is_refused() -> None:
    names, records, sight = names_and_notes()
    arguments: dict[str, Any] = {"plan": PUBLIC_PLAN, "seed": 0}
    fewer = AnswerList(answers=ANSWERS.answers[:5])
    for given, answers in ((None, ANSWERS), (names, fewer)):
        with pytest.raises(ValueError, match="Expected the names of the answers of rare_disease"):
            ranked_by_others(records, sight, answers={TRACK: answers}, names=given, **arguments)
    with pytest.raises(ValueError, match="Expected privacy none, got public"):
        site_teacher(records, sight, answers={TRACK: ANSWERS}, plan=PUBLIC_PLAN, seed=0)
    assert len(public_rankings(sight, names)) == 29


def test_each_privacy_trains_its_own_kind_of_teacher() -> None:
    records, sight = site(20)
    arguments: dict[str, Any] = {"answers": {TRACK: ANSWERS}, "seed": 0, "recipe": RECIPE}
    plain = site_teacher(records, sight, plan=PLAN, **arguments)
    assert plain.digest() == fit_teacher(records, sight, plan=PLAN, **arguments).digest()
    private = [site_teacher(records, sight, plan=DP_PLAN, **arguments) for _ in range(2)]
    assert private[0].digest() != private[1].digest()


@pytest.mark.parametrize(
    ("ids", "scores"),
    [
        (("a", "a"), [-1.0, -2.0]),
        (("a", "b"), [-2.0, -1.0]),
        (("a", "b"), [-1.0]),
        (("a", "b"), [-1.0, -np.inf]),
        ((), []),
    ],
)
def test_a_ranking_out_of_order_is_refused(ids: tuple[str, ...], scores: list[float]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Ranking(patient_id="p", answer_ids=ids, scores=np.array(scores, dtype=np.float32))


def test_the_package_says_that_weights_stay() -> None:
    assert client.teacher.__doc__ is not None
    assert "no function of this package hands its weights" in client.teacher.__doc__
