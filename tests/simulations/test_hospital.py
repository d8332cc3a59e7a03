import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from client.patients.records import PatientRecord
from common.tracks import RARE_DISEASE
from simulations.faces import DISTINCT_FINDINGS, FACIAL_TERMS, contradict, render_face
from simulations.hospital import (
    Hospital,
    Presentation,
    Purpose,
    draw_caseloads,
    draw_patient,
    load_casebook,
    make_hospitals,
    public_faces,
    stream,
)

BOOK = load_casebook()
WILLIAMS = next(syndrome for syndrome in BOOK.syndromes if syndrome.name.startswith("Williams"))
TURNED_OFF = Presentation(faint=0, family=0, missed=0, generalized=0, background=0, excluded=0)
SIZES = {"north": 90, "south": 45, "coast": 25}


def draw(seed: int, **changes: object) -> PatientRecord:
    return draw_patient(WILLIAMS, np.random.default_rng(seed), **changes)  # type: ignore[arg-type]


def test_a_patient_has_a_label_a_note_a_photo_and_consent() -> None:
    patient = draw(1)
    assert patient.label == {RARE_DISEASE.name: WILLIAMS.id}
    assert patient.photo is not None
    assert patient.photo.pixels().shape == (64, 64, 3)
    assert patient.note
    assert patient.consent == {"research"}
    assert WILLIAMS.name not in patient.note


def test_a_note_leaves_out_what_the_photo_shows_unless_asked_to_keep_it() -> None:
    for seed in range(20):
        hidden, kept = draw(seed, photo_size=None), draw(seed, photo_size=None, note_facial="keep")
        assert hidden.note and kept.note
        looked_for = (*hidden.observed, *hidden.excluded)
        facial = {finding.label.lower() for finding in looked_for if finding.id in FACIAL_TERMS}
        said = hidden.note.lower()
        assert not any(f" {label}{end}" in said for label in facial for end in (",", ".", " and"))
        assert all(label in kept.note.lower() for label in facial)


def test_the_photo_shows_the_facial_findings_among_observed_and_no_others() -> None:
    patient = draw(3)
    replay = np.random.default_rng(3)
    without_photo = draw_patient(WILLIAMS, replay, photo_size=None)
    assert patient.photo is not None
    shown = render_face({finding.id for finding in patient.observed}, replay)
    assert np.array_equal(shown, patient.photo.pixels())
    assert dataclasses.replace(patient, photo=None) == without_photo


def test_a_patient_is_a_function_of_the_generator() -> None:
    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_findings_occur_as_often_as_the_casebook_says() -> None:
    rng, seen = np.random.default_rng(0), Counter[str]()
    for _ in range(600):
        patient = draw_patient(WILLIAMS, rng, presentation=TURNED_OFF, photo_size=None)
        seen.update(finding.id for finding in patient.observed)
    for typical in WILLIAMS.findings:
        assert seen[typical.finding.id] / 600 == pytest.approx(typical.frequency, abs=0.08)
    assert set(seen) == {typical.finding.id for typical in WILLIAMS.findings}


def test_notes_have_gaps_general_words_and_findings_of_no_syndrome() -> None:
    rng = np.random.default_rng(0)
    findings = [
        finding.id
        for _ in range(300)
        for finding in draw_patient(WILLIAMS, rng, photo_size=None).observed
        if finding.id not in FACIAL_TERMS
    ]
    own = {typical.finding.id for typical in WILLIAMS.findings}
    broader = {BOOK.broader[hp_id].id for hp_id in own & set(BOOK.broader)}
    background = {finding.id for finding in BOOK.background}
    assert set(findings) <= own | broader | background
    assert set(findings) & broader
    assert set(findings) & background
    most = next(typical for typical in WILLIAMS.findings if typical.frequency == 0.75)
    assert findings.count(most.finding.id) / 300 < 0.6


def test_what_was_looked_for_and_not_found_belongs_to_other_syndromes_and_not_to_the_patient() -> None:
    rng = np.random.default_rng(0)
    counts = []
    for _ in range(200):
        patient = draw_patient(WILLIAMS, rng, photo_size=None)
        counts.append(len(patient.excluded))
        assert not {finding.id for finding in patient.excluded} & {finding.id for finding in patient.observed}
    assert np.mean(counts) == pytest.approx(Presentation().excluded, abs=0.6)


def test_what_is_broader_than_a_finding_is_not_said_to_be_absent() -> None:
    rng = np.random.default_rng(0)
    for patient in (draw_patient(s, rng, photo_size=None) for s in BOOK.syndromes for _ in range(20)):
        absent = {finding.id for finding in patient.excluded}
        for finding in patient.observed:
            hp_id = finding.id
            while hp_id in BOOK.broader:
                hp_id = BOOK.broader[hp_id].id
                assert hp_id not in absent


def test_girls_have_no_findings_of_boys_and_some_syndromes_are_mostly_male() -> None:
    rng = np.random.default_rng(0)
    fragile = next(syndrome for syndrome in BOOK.syndromes if syndrome.male_share > 0.5)
    patients = [draw_patient(fragile, rng, photo_size=None) for _ in range(300)]
    for patient in patients:
        named = {finding.id for finding in (*patient.observed, *patient.excluded)}
        assert patient.sex == "male" or not named & BOOK.male_only
    assert np.mean([patient.sex == "male" for patient in patients]) == pytest.approx(
        fragile.male_share, abs=0.07
    )


@pytest.mark.parametrize(
    "wrong",
    [{"missed": 1.0}, {"faint": -0.1}, {"generalized": 2}, {"background": -1}, {"excluded": float("nan")}],
)
def test_a_presentation_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))}"):
        Presentation(**wrong)


def test_streams_of_two_purposes_differ_for_every_seed() -> None:
    states = [
        tuple(stream(seed, purpose, *index).bit_generator.state["state"].values())
        for seed in (0, 1, 2, 3, 2**63)
        for purpose in Purpose
        for index in ((), (0,), (1,), (0, 0, 0), (0, 1, 0), (2,))
    ]
    assert len(set(states)) == len(states)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_could_run_into_the_purpose_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"0 to below 2\*\*64"):
        stream(seed, Purpose.PATIENT)


def test_public_faces_share_no_random_stream_with_a_sites_patients() -> None:
    sites = make_hospitals(7, {"north": 32}, test_per_answer=1, photo_size=32)
    photos, shown = public_faces(7, 40, size=32)
    theirs = {p.photo.pixels().tobytes() for p in (*sites["north"].train, *sites["north"].test) if p.photo}
    assert len(theirs) == 64
    assert not theirs & {photo.tobytes() for photo in photos}
    assert photos.shape == (40, 32, 32, 3)
    assert photos.dtype == np.uint8
    assert shown.shape == (40, len(DISTINCT_FINDINGS))
    assert shown.dtype == np.bool_


def test_public_faces_are_a_function_of_the_seed_and_longer_draws_begin_with_shorter_ones() -> None:
    photos, shown = public_faces(1, 6, size=32)
    more, more_shown = public_faces(1, 8, size=32)
    assert np.array_equal(more[:6], photos)
    assert np.array_equal(more_shown[:6], shown)
    assert not np.array_equal(public_faces(2, 6, size=32)[0], photos)


def test_public_faces_show_several_findings_none_of_which_contradicts_another() -> None:
    _, shown = public_faces(0, 60, size=16)
    assert 5 < shown.sum(axis=1).mean() < 9
    for row in shown:
        findings = [DISTINCT_FINDINGS[column] for column in np.flatnonzero(row)]
        assert not any(contradict(one, other) for one in findings for other in findings)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    skew=st.floats(0, 10),
    seen_share=st.floats(0.05, 1),
    seed=st.integers(0, 1000),
)
def test_caseload_rows_sum_to_sizes_and_every_syndrome_is_seen_by_some_hospital(
    sizes: list[int], skew: float, seen_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if sum(sizes) < 20:
        with pytest.raises(ValueError, match="20 patients or more together"):
            draw_caseloads(rng, sizes, 20, skew=skew, seen_share=seen_share)
        return
    loads = draw_caseloads(rng, sizes, 20, skew=skew, seen_share=seen_share)
    assert loads.sum(axis=1).tolist() == sizes
    assert (loads.sum(axis=0) > 0).all()


def test_skew_makes_hospitals_unequal() -> None:
    even, skewed = (
        draw_caseloads(np.random.default_rng(0), [400, 400], 20, skew=skew, seen_share=1.0)
        for skew in (0.0, 2.0)
    )
    assert skewed.std() > 2 * even.std()


@pytest.mark.parametrize("wrong", [{"skew": -1.0}, {"skew": 11.0}, {"seen_share": 0.0}, {"seen_share": 1.1}])
def test_caseloads_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"Expected {next(iter(wrong))}"):
        draw_caseloads(np.random.default_rng(0), [50], 20, **({"skew": 1.0, "seen_share": 0.7} | wrong))


@pytest.fixture(scope="module")
def hospitals() -> dict[str, Hospital]:
    return dict(make_hospitals(11, SIZES, test_per_answer=4, photo_size=None))


def test_hospitals_have_the_sizes_and_the_test_patients_asked_for(hospitals: dict[str, Hospital]) -> None:
    assert {name: len(hospital.train) for name, hospital in hospitals.items()} == SIZES
    tested = Counter(p.label[RARE_DISEASE.name] for hospital in hospitals.values() for p in hospital.test)
    assert tested == {syndrome.id: 4 for syndrome in BOOK.syndromes}


def test_a_patient_belongs_to_one_hospital_and_there_to_training_or_test_alone(
    hospitals: dict[str, Hospital],
) -> None:
    everybody = [p for hospital in hospitals.values() for p in (*hospital.train, *hospital.test)]
    assert len({p.patient_id for p in everybody}) == len(everybody) == 160 + 4 * len(BOOK.syndromes)


def test_a_hospital_sees_some_syndromes_and_is_tested_on_those(hospitals: dict[str, Hospital]) -> None:
    for hospital in hospitals.values():
        seen = {p.label[RARE_DISEASE.name] for p in hospital.train}
        assert len(seen) < len(BOOK.syndromes)
        assert {p.label[RARE_DISEASE.name] for p in hospital.test} <= seen
        order = [p.label[RARE_DISEASE.name] for p in hospital.train]
        assert order != sorted(order)


def test_hospitals_are_a_function_of_the_seed(hospitals: dict[str, Hospital]) -> None:
    assert dict(make_hospitals(11, SIZES, test_per_answer=4, photo_size=None)) == hospitals
    assert dict(make_hospitals(12, SIZES, test_per_answer=4, photo_size=None)) != hospitals


def test_fewer_patients_than_syndromes_are_refused() -> None:
    with pytest.raises(ValueError, match="patients or more together"):
        make_hospitals(0, {"north": 3})


def test_a_photo_carries_what_the_note_leaves_out_and_both_together_beat_either(
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    train, test = cohort(26, seed=1), cohort(12, seed=2)
    note, face, both = (accuracy(train, test, note=n, face=f) for n, f in ((1, 0), (0, 1), (1, 1)))
    record_testsuite_property("top1_note_face_both", f"{note:.3f} {face:.3f} {both:.3f}")
    assert 0.6 < note < 0.82
    assert face < both - 0.05
    assert note < both - 0.05
    assert 0.85 < both < 0.97


def cohort(per_syndrome: int, seed: int) -> list[PatientRecord]:
    rng = np.random.default_rng(seed)
    return [draw_patient(s, rng, photo_size=None) for s in BOOK.syndromes for _ in range(per_syndrome)]


def accuracy(train: Sequence[PatientRecord], test: Sequence[PatientRecord], *, note: int, face: int) -> float:
    """Top-1 of a linear classifier on the findings of the note, on those of the face, or on both."""

    def told(patient: PatientRecord) -> list[str]:
        observed = [f.id for f in patient.observed if (face if f.id in FACIAL_TERMS else note)]
        return [*observed, *(f"no {f.id}" for f in patient.excluded if note and f.id not in FACIAL_TERMS)]

    columns = {name: column for column, name in enumerate(sorted({name for p in train for name in told(p)}))}

    def table(patients: Sequence[PatientRecord]) -> NDArray[np.float32]:
        rows = np.zeros((len(patients), len(columns)), dtype=np.float32)
        for row, patient in zip(rows, patients, strict=True):
            row[[columns[name] for name in told(patient) if name in columns]] = 1
        return rows

    labels, truth = ([p.label[RARE_DISEASE.name] for p in patients] for patients in (train, test))
    with threadpool_limits(1):  # a second thread would wait for other tests
        model = LogisticRegression(max_iter=40).fit(table(train), labels)
    return float((model.predict(table(test)) == truth).mean())
