"""What the eyes saw."""

from typing import Any

import numpy as np
import pytest

from client.patients.ages import ONSET_LABELS
from client.patients.notes import ModelView
from client.patients.photos import ImageRef
from client.teacher import sight as sight_module
from client.teacher.eyes import ImageEncoder, NoteEncoder, Vectors
from client.teacher.sight import ONSET_YEARS, PERSON_WIDTH, Encoders, Sight, encode_patients, seen_by
from common.tracks import Eye

PHOTO = ImageRef(array=np.full((4, 4, 3), 8, dtype=np.uint8))
TILE = ImageRef(array=np.full((4, 4, 3), 2, dtype=np.uint8))


def view(**changes: Any) -> ModelView:
    usual: dict[str, Any] = {"note": "tall", "sex": "female", "age": "P10Y", "observed": (), "excluded": ()}
    return ModelView(**{"photo": PHOTO, "slides": (), **usual, **changes})


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> Encoders:
    def images(encoder: ImageEncoder, brought: Any) -> Vectors:
        rows = [[np.mean([each.pixels().mean() for each in row] or [0])] * encoder.width for row in brought]
        return np.array(rows, dtype=np.float32).reshape(-1, encoder.width)

    def notes(encoder: NoteEncoder, texts: Any) -> Vectors:
        rows = [[len(text or "")] * encoder.width for text in texts]
        return np.array(rows, dtype=np.float32).reshape(-1, encoder.width)

    monkeypatch.setattr(sight_module, "encode_images", images)
    monkeypatch.setattr(sight_module, "encode_notes", notes)
    image = ImageEncoder(network=None, width=3, size=(4, 4), mean=(0,) * 3, std=(1,) * 3, batch_size=2)
    note = NoteEncoder(network=None, tokenizer=None, width=2, window=8, batch_size=2)
    return Encoders(photo=image, note=note, slide=image)


def test_each_eye_is_a_row_or_zeros_with_its_flag(encoders: Encoders) -> None:
    views = {
        "all": view(slides=(TILE, TILE)),
        "photo": view(note=None),
        "note": view(photo=None),
        "none": view(note=None, photo=None),
    }
    seen = encode_patients(views, encoders)
    assert seen.patient_ids == ("all", "photo", "note", "none")
    assert seen.present[Eye.PHOTO].tolist() == [True, True, False, False]
    assert seen.present[Eye.NOTE].tolist() == [True, False, True, False]
    assert seen.present[Eye.SLIDE].tolist() == [True, False, False, False]
    assert seen.vectors[Eye.PHOTO][:, 0].tolist() == [8, 8, 0, 0]
    assert seen.vectors[Eye.SLIDE][:, 0].tolist() == [2, 0, 0, 0]
    assert not seen.vectors[Eye.NOTE][~seen.present[Eye.NOTE]].any()


def test_sex_and_age_go_with_the_note(encoders: Encoders) -> None:
    ages = ["P0D", "P130Y", "P6M", None, "GA19w3d", "HP:0003577 Congenital onset", "HP:0003581 Adult onset"]
    seen = encode_patients({str(age): view(age=age, sex="male") for age in ages}, encoders)
    person = seen.vectors[Eye.NOTE][:, -PERSON_WIDTH:]
    assert (person[:, :4] == [1, 0, 0, 0]).all()
    assert person[:, 4].tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert person[:, 5] == pytest.approx([0, 1, 0.083, 0, 0, 0, 0.762], abs=1e-3)


def test_every_onset_class_has_years_or_lies_before_birth() -> None:
    assert ONSET_YEARS.keys() <= ONSET_LABELS.keys()
    before_birth = {"Antenatal", "Embryonal", "Fetal", "Third", "Second", "Late first"}
    others = {label for hpo_id, label in ONSET_LABELS.items() if hpo_id not in ONSET_YEARS}
    assert all(any(label.startswith(word) for word in before_birth) for label in others)


def test_a_closed_eye_is_not_in_sight(encoders: Encoders) -> None:
    seen = encode_patients({"p": view()}, Encoders(note=encoders.note))
    assert set(seen.vectors) == set(seen.present) == {Eye.NOTE}


def test_no_encoder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one of photo, note and slide"):
        Encoders()


def test_rows_follow_the_indices_and_bringing_keeps_who_brings_an_eye(encoders: Encoders) -> None:
    views = {"a": view(note=None), "b": view(photo=None), "c": view(note=None, photo=None), "d": view()}
    seen = encode_patients(views, encoders)
    assert seen.rows(np.array([3, 0])).patient_ids == ("d", "a")
    assert seen.bringing().patient_ids == ("a", "b", "d")
    assert seen.bringing({Eye.PHOTO}).patient_ids == ("a", "d")
    assert seen_by(seen, {Eye.SLIDE}).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"patient_ids": ("a", "a")}, "every patient once"),
        ({"patient_ids": ("a",)}, "a row of photo for each of 1 patients"),
        ({"present": {}}, "the same eyes"),
        ({"vectors": {Eye.PHOTO: np.full((2, 3), np.nan, dtype=np.float32)}}, "finite vectors of photo"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(changes: dict[str, Any], reason: str) -> None:
    usual: dict[str, Any] = {
        "patient_ids": ("a", "b"),
        "vectors": {Eye.PHOTO: np.zeros((2, 3), dtype=np.float32)},
        "present": {Eye.PHOTO: np.ones(2, dtype=np.bool_)},
    }
    assert len(Sight(**usual).patient_ids) == 2
    with pytest.raises(ValueError, match=reason):
        Sight(**usual | changes)
