from dataclasses import replace

import numpy as np
import pytest

from client.patients.photos import ImageRef
from client.patients.records import Finding, PatientRecord
from client.patients.stain import normalize_stain
from client.site_patients import SitePatients, Views, set_aside, site_prompts
from common.tracks import RARE_DISEASE, TISSUE_TYPE


def tile(seed: int) -> ImageRef:
    rng = np.random.default_rng(seed)
    return ImageRef(array=rng.integers(60, 200, size=(24, 24, 3), dtype=np.uint8))


NOTE = PatientRecord(patient_id="n", case_id="n", note="A girl with seizures.")
SLIDES = PatientRecord(patient_id="s", case_id="s", slides=(tile(0), tile(1)))
BOTH = replace(NOTE, patient_id="b", slides=(tile(2),))


def test_a_text_student_reads_the_note_and_an_image_student_one_tile_at_a_time() -> None:
    views = Views()
    (read,) = views.prompts(NOTE, RARE_DISEASE)
    assert read.text.startswith("A girl with seizures.")
    assert read.image is None
    seen = views.prompts(SLIDES, TISSUE_TYPE)
    assert [prompt.image for prompt in seen] == [tile(0), tile(1)]
    assert len({prompt.text for prompt in seen}) == 1


def test_an_image_student_is_never_shown_a_note() -> None:
    (seen,) = Views().prompts(BOTH, TISSUE_TYPE)
    assert "seizures" not in seen.text


def test_who_has_nothing_for_a_track_is_left_out_of_it() -> None:
    everybody = [NOTE, SLIDES, BOTH]
    assert set(site_prompts(everybody, Views(), RARE_DISEASE)) == {"n", "b"}
    assert set(site_prompts(everybody, Views(), TISSUE_TYPE)) == {"s", "b"}


def test_teacher_and_student_see_the_same_stains() -> None:
    views = Views(stain="macenko")
    shown = views.view(SLIDES).slides
    read = [prompt.image for prompt in views.prompts(SLIDES, TISSUE_TYPE)]
    for original, one, other in zip(SLIDES.slides, shown, read, strict=True):
        assert other is not None
        np.testing.assert_array_equal(one.pixels(), normalize_stain(original.pixels()))
        np.testing.assert_array_equal(one.pixels(), other.pixels())
        assert (one.pixels() != original.pixels()).any()


def test_what_the_photo_shows_is_hidden_whichever_track_asks() -> None:
    record = replace(BOTH, note=None, observed=(Finding(id="HP:0000316", label="Hypertelorism"),))
    views = Views(facial="hide", facial_ids=frozenset({"HP:0000316"}))
    assert "ypertelorism" not in (views.view(record).note or "")


def test_a_patient_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected no patient in train and test, got 1"):
        SitePatients(train=(NOTE,), test=(NOTE,), views=Views())
    with pytest.raises(ValueError, match="Expected no patient in train and calibration, got 1"):
        SitePatients(train=(NOTE,), test=(), calibration=(NOTE,), views=Views())
    with pytest.raises(ValueError, match="Expected no patient in test and calibration, got 1"):
        SitePatients(train=(), test=(NOTE,), calibration=(NOTE,), views=Views())


def many(number: int) -> list[PatientRecord]:
    return [replace(NOTE, patient_id=f"p-{i}") for i in range(number)]


def test_about_the_share_is_set_aside_by_the_seed_and_nobody_is_lost() -> None:
    records = many(1000)
    stay, aside = set_aside(records, 0.2, 7)
    assert sorted((*stay, *aside), key=records.index) == records
    # Five standard deviations.
    assert abs(len(aside) - 200) < 5 * (1000 * 0.2 * 0.8) ** 0.5
    assert set_aside(records, 0.2, 7) == (stay, aside)
    assert set_aside(records, 0.2, 8) != (stay, aside)
    assert set_aside(records, 0.0, 7) == (tuple(records), ())


def test_nobody_moves_for_the_sake_of_another_who_comes_or_goes() -> None:
    records = many(100)
    _, aside = set_aside(records, 0.3, 7)
    _, fewer = set_aside(records[::2], 0.3, 7)
    assert {r.patient_id for r in fewer} == {r.patient_id for r in aside} & {
        r.patient_id for r in records[::2]
    }
    # A larger share takes more, and nobody back.
    _, more = set_aside(records, 0.5, 7)
    assert {r.patient_id for r in aside} < {r.patient_id for r in more}
