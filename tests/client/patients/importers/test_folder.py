import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from client.patients import photos
from client.patients.ages import ONSET_LABELS, onset_class
from client.patients.importers.folder import MAX_NOTE_BYTES, read_folder, write_folder
from client.patients.photos import ImageRef, encode_png
from client.patients.records import (
    SEXES,
    Finding,
    PatientRecord,
    PatientSet,
    PhotoRef,
    is_line,
    is_text,
    pseudonym,
)
from client.patients.slides import TileRef, Tiling, tile_slide
from common.tracks import Answer, AnswerList
from tests.client.patients.slide_files import patches, write_tiff

KEY = bytes(range(32))
TODAY = date(2026, 6, 30)
ONE_AND_TWO = AnswerList(answers=(Answer(id="OMIM:1", name="One"), Answer(id="OMIM:2", name="Two")))
ANSWERS = {"rare_disease": ONE_AND_TWO}
AGE_FORMS = "an ISO 8601 duration of at most 130 years, GA<weeks>w<days>d, or an HPO onset class"
WHOLE = {"schema": 1, "patient_id": "17", "note": "A note."}
NOTELESS = {"schema": 1, "patient_id": "17"}
SMITHS = [
    {"note": "\ud800 Smith"},
    {"sex": "Smith"},
    {"Smith B": 1},
    {"age": "Smith"},
    {"photo": "Smith.png"},
]


def write(folder: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "patients.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def read(folder: Path, *rows: Any) -> PatientSet:
    return read_folder(write(folder, *rows), key=KEY, answers=ANSWERS, today=TODAY)


def refusal(folder: Path, row: Any) -> str:
    result = read(folder, row)
    assert result.records == ()
    (problem,) = result.problems
    assert (problem.file, problem.line) == ("patients.jsonl", 1)
    assert str(problem) == f"patients.jsonl:1: {problem.reason}"
    return problem.reason


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files are bad in every way."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("notes", "photos"):
        (folder / name).mkdir()
    (folder / "notes/17.txt").write_text("A note.")
    (folder / "notes/latin.txt").write_bytes("größer".encode("latin-1"))
    (folder / "notes/empty.txt").write_text(" \n")
    (folder / "notes/long.txt").write_text("x" * (MAX_NOTE_BYTES + 1))
    Image.new("1", (8_000, 8_000)).save(folder / "photos/bomb.png")
    (folder / "photos/cut.png").write_bytes(encode_png(np.zeros((64, 64, 3), dtype=np.uint8))[:-30])
    with (folder / "photos/large.png").open("wb") as file:
        file.truncate(photos.MAX_FILE_BYTES + 1)
    (folder / "photos/out.png").symlink_to("/etc/passwd")
    (folder / "photos/circle.png").symlink_to(folder / "photos/circle.png")
    return folder


def test_a_patient_with_everything_is_read(tmp_path: Path) -> None:
    for name in ("photos/17.jpg", "slides/17-1.png", "slides/17-2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/17.txt").write_bytes(b"\xef\xbb\xbfA note.\r\n")
    row = {
        "schema": 1,
        "patient_id": "17",
        "sex": "female",
        "birth_date": "2010-05-20",
        "seen_on": "2013-11-20",
        "onset": "P1Y",
        "deceased": True,
        "observed": [{"id": "HP:0001250", "label": "Seizure", "onset": "P2Y"}],
        "excluded": [{"id": "HP:0000252", "label": "Microcephaly"}],
        "note_file": "notes/17.txt",
        "photo": "photos/17.jpg",
        "slides": ["slides/17-1.png", "slides/17-2.png"],
        "label": {"rare_disease": "OMIM:1"},
        "consent": ["research"],
        "withdrawn": False,
        "group": None,
    }
    result = read(tmp_path, row)
    assert result.problems == ()
    assert result.records == (
        PatientRecord(
            patient_id=pseudonym(KEY, "17"),
            case_id=pseudonym(KEY, "17"),
            sex="female",
            age="P3Y6M",
            onset="P1Y",
            deceased=True,
            observed=(Finding(id="HP:0001250", label="Seizure", onset="P2Y"),),
            excluded=(Finding(id="HP:0000252", label="Microcephaly"),),
            note="A note.",
            photo=PhotoRef(path=tmp_path / "photos/17.jpg"),
            slides=(
                ImageRef(path=tmp_path / "slides/17-1.png"),
                ImageRef(path=tmp_path / "slides/17-2.png"),
            ),
            label={"rare_disease": "OMIM:1"},
            consent=frozenset({"research"}),
        ),
    )


def tiled_site(folder: Path) -> Path:
    """Slide 17 has three tiles of tissue."""
    write_tiff(folder / "slides/17.svs", [(1024, 1024)], patches([(1, 1), (1, 2), (1, 3)]))
    return folder


def test_a_whole_slide_becomes_its_tiles_and_stands_beside_plain_ones(tmp_path: Path) -> None:
    image = tiled_site(tmp_path) / "slides/17-1.png"
    Image.new("RGB", (4, 3), "red").save(image)
    row = {**NOTELESS, "slides": ["slides/17.svs", "slides/17-1.png"]}
    result = read_folder(write(tmp_path, row), key=KEY, today=TODAY, tiling=Tiling(size=256))
    assert result.problems == ()
    assert result.records[0].slides == (
        *tile_slide(tmp_path / "slides/17.svs", Tiling(size=256)),
        ImageRef(path=image),
    )
    assert len(result.records[0].slides) == 4


def test_a_slides_format_counts_not_its_name(tmp_path: Path) -> None:
    (tiled_site(tmp_path) / "slides/17.svs").rename(tmp_path / "slides/17.jpg")
    (record,) = read(tmp_path, {**NOTELESS, "slides": ["slides/17.jpg"]}).records
    assert {type(slide) for slide in record.slides} == {TileRef}
    assert {slide.pixels().shape for slide in record.slides} == {(224, 224, 3)}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("slides/white.svs", "slides: no tissue: no tile is tissue by a share of 0.5"),
        ("slides/coarse.svs", "slides: 2 µm a pixel, coarser than the 0.5 asked for"),
        ("slides/cut.svs", "slides: a damaged slide"),
        ("slides/text.svs", "slides: no slide of a format that OpenSlide knows"),
        ("slides/text.tif", "slides: no image of the formats JPEG, PNG, TIFF, WEBP, BMP"),
        ("slides/missing.svs", "slides: missing"),
        ("slides/missing.png", "slides: missing"),
        ("../slide.svs", "slides: expected a relative path inside the folder"),
    ],
)
def test_a_broken_slide_is_a_problem_with_its_reason(tmp_path: Path, name: str, reason: str) -> None:
    write_tiff(tmp_path / "slides/white.svs", [(512, 512)], patches([]))
    write_tiff(tmp_path / "slides/coarse.svs", [(512, 512)], patches([(0, 0)]), mpp=2.0)
    (tmp_path / "slides/cut.svs").write_bytes((tmp_path / "slides/white.svs").read_bytes()[:300])
    for text in ("slides/text.svs", "slides/text.tif"):
        (tmp_path / text).write_text("not a slide")
    assert refusal(tmp_path, {**WHOLE, "slides": [name]}) == reason


def test_the_tiles_of_a_slide_are_written_as_images_and_read_back(tmp_path: Path) -> None:
    row = {**NOTELESS, "slides": ["slides/17.svs"]}
    records = read(tiled_site(tmp_path), row).records
    write_folder(tmp_path / "copy", records)
    (copied,) = read_folder(tmp_path / "copy", key=None, today=TODAY).records
    assert len(copied.slides) == len(records[0].slides) == 3
    assert {type(slide) for slide in copied.slides} == {ImageRef}
    for slide, copy in zip(records[0].slides, copied.slides, strict=True):
        assert (slide.pixels() == copy.pixels()).all()


def test_an_id_that_may_be_shown_is_the_case_id(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {**WHOLE, "case_id": "case 17"}).records
    assert (record.patient_id, record.case_id) == (pseudonym(KEY, "17"), "case 17")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected a JSON object"),
        ({**WHOLE, "patient_id": None}, "patient_id: missing"),
        ({**WHOLE, "patient_id": 17}, "patient_id: expected one line of text, not empty, not padded"),
        ({**WHOLE, "schema": None}, "schema: missing"),
        ({**WHOLE, "schema": "1"}, "schema: expected 1"),
        ({**WHOLE, "schema": True}, "schema: expected 1"),
        ({**WHOLE, "schema": 0}, "schema: expected 1"),
        (
            {**WHOLE, "schema": 2},
            "patient: schema 2 is newer than 1, the newest this version reads; upgrade Consilium here",
        ),
        (
            {**WHOLE, "observed": [{"id": "HP:12", "label": "Seizure"}]},
            "observed: [0]: expected a finding's id as HP: and seven digits",
        ),
        ({**WHOLE, "sex": "F"}, "sex: expected one of male, female, other, unknown"),
        (
            {**WHOLE, "age": "3"},
            f"age: expected {AGE_FORMS}",
        ),
        ({**WHOLE, "birth_date": "2010-05-20"}, "birth_date and seen_on: expected both or neither"),
        ({**WHOLE, "seen_on": "2010-05-20"}, "birth_date and seen_on: expected both or neither"),
        (
            {**WHOLE, "birth_date": "20 May 2010", "seen_on": 2013},
            "birth_date: expected a date as YYYY-MM-DD; seen_on: expected a date as YYYY-MM-DD",
        ),
        (
            {**WHOLE, "birth_date": "2010-05-20", "seen_on": "2026-07-01"},
            "seen_on: a date in the future; birth_date and seen_on: expected both or neither",
        ),
        (
            {**WHOLE, "birth_date": "2010-05-20", "seen_on": "2010-05-19"},
            "seen_on: expected a date after birth_date",
        ),
        (
            {**WHOLE, "birth_date": "1880-01-01", "seen_on": "2020-01-01"},
            "birth_date: more than 130 years before seen_on",
        ),
        (
            {**WHOLE, "birth_date": "2010-05-20", "seen_on": "2013-05-20", "age": "P3Y"},
            "age: expected an age or two dates, got both",
        ),
        ({**WHOLE, "note": " "}, "note: expected text that is not empty"),
        (NOTELESS, "expected a note, a photo, a slide or a finding, got none of them"),
        ({**WHOLE, "note_file": "notes/none.txt"}, "note_file: missing"),
        ({**WHOLE, "note_file": "notes/17.txt"}, "note: expected a note or its file, got both"),
        ({**NOTELESS, "note_file": "notes/latin.txt"}, "note_file: not UTF-8"),
        (
            {**NOTELESS, "note_file": "notes/empty.txt"},
            "note_file: expected text that is not empty",
        ),
        (
            {**NOTELESS, "note_file": "notes/long.txt"},
            f"note_file: larger than {MAX_NOTE_BYTES} bytes",
        ),
        ({**NOTELESS, "note_file": "notes"}, "note_file: missing"),
        ({**WHOLE, "photo": "photos/none.jpg"}, "photo: missing"),
        ({**WHOLE, "photo": "notes/17.txt"}, f"photo: no image of the formats {', '.join(photos.FORMATS)}"),
        ({**WHOLE, "photo": "photos/cut.png"}, "photo: damaged image data"),
        (
            {**WHOLE, "photo": "photos/bomb.png"},
            "photo: 64000000 pixels, a decompression bomb: at most 50000000 are decoded",
        ),
        (
            {**WHOLE, "photo": "photos/large.png"},
            "photo: 67108865 bytes, too large: at most 67108864 are read",
        ),
        ({**WHOLE, "slides": "slides/1.png"}, "slides: expected a list of paths"),
        ({**WHOLE, "slides": ["slides/none.png"]}, "slides: missing"),
        ({**WHOLE, "photo": "../photo.png"}, "photo: expected a relative path inside the folder"),
        ({**WHOLE, "photo": "/etc/passwd"}, "photo: expected a relative path inside the folder"),
        ({**WHOLE, "photo": "photos/out.png"}, "photo: expected a relative path inside the folder"),
        (
            {**WHOLE, "photo": "photos/circle.png"},
            "photo: expected a path, got links in a circle or a name too long",
        ),
        ({**WHOLE, "photo": "a" * 300}, "photo: not readable"),
        ({**NOTELESS, "note_file": "a" * 300}, "note_file: not readable"),
        ({**WHOLE, "label": "OMIM:1"}, "label: expected an answer id by track"),
        ({**WHOLE, "label": {"disease": "OMIM:1"}}, "label: expected tracks among rare_disease, tissue_type"),
        ({**WHOLE, "label": {"rare_disease": "OMIM:3"}}, "label: not among the 2 answers of rare_disease"),
        (
            {**WHOLE, "label": {"rare_disease": ["OMIM:1"]}},
            "label: expected one line of text, not empty, not padded",
        ),
        ({**WHOLE, "consent": "research"}, "consent: expected a list of lines of text"),
        ({**WHOLE, "withdrawn": "no"}, "withdrawn: expected true or false"),
        ({**WHOLE, "gene": "FBN1", "title": "x"}, "unknown keys: gene, title"),
    ],
)
def test_a_bad_line_is_one_clear_line_with_its_reason(site: Path, row: Any, reason: str) -> None:
    assert refusal(site, row) == reason


def test_a_label_of_a_track_without_a_list_is_kept(tmp_path: Path) -> None:
    (record,) = read(tmp_path, {**WHOLE, "label": {"tissue_type": "anything"}}).records
    assert record.label == {"tissue_type": "anything"}


def test_every_line_of_the_file_is_a_record_or_a_problem(tmp_path: Path) -> None:
    result = read(tmp_path, WHOLE, "{", {**WHOLE, "patient_id": "18"}, WHOLE, {**WHOLE, "sex": 1, "x": 2}, "")
    assert [record.patient_id for record in result.records] == [pseudonym(KEY, "17"), pseudonym(KEY, "18")]
    assert [str(problem) for problem in result.problems] == [
        "patients.jsonl:2: expected JSON",
        "patients.jsonl:4: patient_id: the same as line 1",
        "patients.jsonl:5: sex: expected one of male, female, other, unknown; unknown keys: x",
    ]


@pytest.mark.parametrize("secret", SMITHS)
def test_no_problem_quotes_a_value(tmp_path: Path, secret: dict[str, Any]) -> None:
    assert "Smith" not in refusal(tmp_path, {**WHOLE, **secret})


def test_dates_may_be_today(tmp_path: Path) -> None:
    row = {**WHOLE, "birth_date": TODAY.isoformat(), "seen_on": TODAY.isoformat()}
    assert read(tmp_path, row).records[0].age == "P0D"
    row = {**WHOLE, "birth_date": date.today().isoformat(), "seen_on": date.today().isoformat()}
    assert read_folder(write(tmp_path, row), key=KEY).records[0].age == "P0D"


def test_a_folder_without_patients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_folder(tmp_path, key=KEY)


def test_a_short_key_is_the_callers_mistake_not_the_patients(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        read_folder(write(tmp_path, WHOLE), key=b"short")


printable = st.characters(codec="utf-8", categories=("L", "N", "P", "S"))
lines = st.text(printable, min_size=1, max_size=12).filter(is_line)
ages = st.sampled_from([None, "P3Y6M", "P0D", "GA19w3d", *map(onset_class, ONSET_LABELS)])
findings = st.lists(
    st.builds(
        lambda number, label, onset: Finding(id=f"HP:{number:07d}", label=label, onset=onset),
        st.integers(0, 9_999_999),
        lines,
        ages,
    ),
    max_size=3,
).map(tuple)
images = st.builds(
    lambda height, width, seed: ImageRef(
        array=np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 9),
)
records = st.builds(
    PatientRecord,
    patient_id=lines,
    case_id=lines,
    sex=st.sampled_from(SEXES),
    age=ages,
    onset=ages,
    deceased=st.booleans(),
    observed=findings,
    excluded=findings,
    note=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(is_text),
    photo=st.one_of(st.none(), images),
    slides=st.lists(images, max_size=2).map(tuple),
    label=st.dictionaries(st.sampled_from(["rare_disease", "tissue_type"]), lines),
    consent=st.frozensets(lines, max_size=2),
    withdrawn=st.booleans(),
    group=st.one_of(st.none(), lines),
)


def with_pixels(record: PatientRecord) -> dict[str, Any]:
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    fields["photo"] = None if record.photo is None else record.photo.pixels().tolist()
    fields["slides"] = [slide.pixels().tolist() for slide in record.slides]
    return fields


@settings(max_examples=30, deadline=None)
@given(
    patients=st.lists(records, max_size=4, unique_by=(lambda r: r.patient_id, lambda r: r.case_id)),
)
def test_what_is_written_is_read_back_as_the_same_records(patients: list[PatientRecord]) -> None:
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name) / "site", patients)
        result = read_folder(Path(name) / "site", key=None, today=TODAY)
        assert result.problems == ()
        assert list(map(with_pixels, result.records)) == list(map(with_pixels, patients))


def test_images_go_without_exif_and_no_file_name_holds_an_id(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "John Smith"
    Image.new("RGB", (4, 3), "red").save(tmp_path / "smith.jpg", exif=exif)
    photo = PhotoRef(path=tmp_path / "smith.jpg")
    write_folder(tmp_path / "out", [PatientRecord(patient_id="p17", case_id="p17", photo=photo)])
    out = tmp_path / "out"
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["patients.jsonl", "photos/000001.png"]
    assert b"John" not in (out / "photos/000001.png").read_bytes()


def test_writing_overwrites_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path, [])
    with pytest.raises(FileExistsError):
        write_folder(tmp_path, [])


def test_writing_a_patient_twice_is_refused_and_leaves_no_finished_folder(tmp_path: Path) -> None:
    record = PatientRecord(patient_id="p", case_id="p", note="A note.")
    with pytest.raises(ValueError, match="got record 2 again"):
        write_folder(tmp_path, [record, record])
    assert not (tmp_path / "patients.jsonl").exists()
