import csv
import gzip
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.cli import main as check
from client.patients import photos
from client.patients.importers import tiles
from client.patients.importers.tiles import (
    COLUMNS,
    MemberRef,
    read_member,
    read_tiles,
    tile_answers,
    unit_of,
)
from client.patients.photos import ImageRef, encode_png
from client.patients.records import PatientSet, pseudonym
from client.patients.splits import split_by_group
from common.errors import BadFileError
from common.tracks import Answer, AnswerList

KEY = bytes(range(32))
DATA = Path(__file__).resolve().parents[4].parent / "shared" / "data"


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8))


def tile(number: int, **changes: str) -> dict[str, str]:
    """The row of a tile whose image is ``png(number)``."""
    row = {
        "file": f"lab/{number}.png",
        "source": "lab",
        "organ": "colon",
        "tissue": "normal_mucosa",
        "malignant": "0",
        "group": f"image {number}",
        "slide": "",
        "patient": "",
        "sha256": hashlib.sha256(png(number)).hexdigest(),
    }
    return {**row, **changes}


def write(folder: Path, *rows: dict[str, str], plain: bool = False, compressed: bool = True) -> Path:
    """A folder with the rows' images, each ``png`` of the number in its name."""
    folder.mkdir(exist_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=[*rows[0]])
    table.writeheader()
    table.writerows(rows)
    data = text.getvalue().encode()
    name = "manifest.csv.gz" if compressed else "manifest.csv"
    (folder / name).write_bytes(gzip.compress(data) if compressed else data)
    for file in {row["file"] for row in rows}:
        put(folder, file, png(int(Path(file).stem)), plain=plain)
    return folder


def put(folder: Path, file: str, data: bytes, *, plain: bool) -> None:
    if plain:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(data)
        return
    with zipfile.ZipFile(folder / "lab.zip", "a") as archive:
        archive.writestr(file, data)


def read(folder: Path, *rows: dict[str, str], **options: Any) -> PatientSet:
    return read_tiles(write(folder, *rows), key=KEY, **options)


def refusals(folder: Path, *rows: dict[str, str]) -> list[str]:
    result = read(folder, *rows)
    assert result.records == ()
    return [str(problem).removeprefix("manifest.csv.gz:") for problem in result.problems]


def test_each_source_image_is_a_record_with_all_its_tiles(tmp_path: Path) -> None:
    rows = [tile(1), tile(2), tile(3, group="image 1")]
    result = read(tmp_path, *rows)
    assert result.problems == ()
    archive = tmp_path / "lab.zip"
    assert [record.slides for record in result.records] == [
        (MemberRef(path=archive, member="lab/1.png"), MemberRef(path=archive, member="lab/3.png")),
        (MemberRef(path=archive, member="lab/2.png"),),
    ]
    assert [record.patient_id for record in result.records] == [
        pseudonym(KEY, "lab/image 1"),
        pseudonym(KEY, "lab/image 2"),
    ]
    assert {record.label["tissue_type"] for record in result.records} == {"tissue:normal_mucosa"}


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("plain", [True, False])
def test_images_are_read_as_files_or_from_zips(tmp_path: Path, plain: bool, compressed: bool) -> None:
    write(tmp_path, tile(1), plain=plain, compressed=compressed)
    (record,) = read_tiles(tmp_path, key=KEY).records
    assert type(record.slides[0]) is (ImageRef if plain else MemberRef)
    assert encode_png(record.slides[0].pixels()) == png(1)


def test_ids_are_shown_and_consent_is_taken_as_given_only_for_public_images(tmp_path: Path) -> None:
    (hidden,) = read(tmp_path / "hidden", tile(1, patient="Smith")).records
    assert (hidden.case_id, hidden.group) == (hidden.patient_id, pseudonym(KEY, "lab/Smith"))
    assert hidden.consent == frozenset()
    (shown,) = read(tmp_path / "shown", tile(1, patient="P7"), public_ids=True).records
    assert (shown.case_id, shown.group) == ("lab/image 1", "lab/P7")
    assert shown.consent == {"research"}


def test_a_group_is_the_patient_else_the_slide_else_the_source_image(tmp_path: Path) -> None:
    rows = [tile(1, patient="P", slide="S"), tile(2, slide="T"), tile(3), tile(4, slide="S")]
    records = read(tmp_path, *rows, public_ids=True).records
    # The fourth is of a slide whose patient another row names.
    assert [record.group for record in records] == ["lab/P", "lab/T", "lab/image 3", "lab/P"]


def test_a_split_by_group_never_puts_a_patient_on_two_sides(tmp_path: Path) -> None:
    rows = [tile(number, patient=f"P{number % 4}", slide=f"S{number % 8}") for number in range(24)]
    records = read(tmp_path, *rows).records
    for seed in range(5):
        parts = split_by_group(records, {"train": 0.5, "test": 0.5}, seed)
        sides = [{record.group for record in part} for part in parts.values()]
        assert all(sides)
        assert not sides[0] & sides[1]
    assert len({record.group for record in records}) == 4


def test_the_answer_is_the_tissue_or_the_organ(tmp_path: Path) -> None:
    write(tmp_path, tile(1), tile(2, tissue="mucus"), tile(3, tissue="fat", organ="skin"))
    organs, tissues = tile_answers([tmp_path], "organ"), tile_answers([tmp_path])
    assert organs.names == ("colon", "skin")
    assert tissues.answers[2] == Answer(
        id="tissue:normal_mucosa", name="normal mucosa", ontology="consilium tissues 1"
    )
    for level, answers in (("organ", organs), ("tissue", tissues)):
        records = read_tiles(tmp_path, key=KEY, answers=answers, level=level).records  # type: ignore[arg-type]
        assert [record.label["tissue_type"] in answers.ids for record in records] == [True] * 3
        assert {record.label["tissue_type"] for record in records} == set(answers.ids)


def test_answers_of_many_folders_are_named_once_in_order(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / "a", tile(1, tissue="z")),
        write(tmp_path / "b", tile(1, tissue="a"), tile(2)),
    ]
    assert tile_answers(folders).names == ("a", "normal mucosa", "z")
    with pytest.raises(BadFileError, match="line 2: tissue: expected lower-case words"):
        tile_answers([write(tmp_path / "c", tile(1, tissue="A b"))])


def test_another_level_is_refused(tmp_path: Path) -> None:
    for call in (lambda: read(tmp_path, tile(1), level="cell"), lambda: tile_answers([], "cell")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Expected a level of tissue, organ, got 'cell'"):
            call()


def test_an_answer_outside_the_list_is_a_problem(tmp_path: Path) -> None:
    answers = AnswerList(answers=(Answer(id="tissue:mucus", name="mucus"),))
    result = read(tmp_path, tile(1), tile(2, tissue="mucus"), answers=answers)
    assert [record.label["tissue_type"] for record in result.records] == ["tissue:mucus"]
    assert [problem.reason for problem in result.problems] == ["tissue: not among the 1 answers"]


def test_the_unit_is_a_patient_only_if_every_row_names_one(tmp_path: Path) -> None:
    assert unit_of(write(tmp_path / "a", tile(1, patient="P"), tile(2, patient="Q"))) == "patient"
    assert unit_of(write(tmp_path / "b", tile(1, patient="P"), tile(2, slide="S"))) == "source image"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "file: another sha256 than the manifest says"),
        ({"sha256": "abc"}, "sha256: expected 64 hexadecimal digits"),
        ({"source": "../lab"}, "source: expected letters, digits, _, - and ."),
        ({"source": "other"}, "file: missing, as a file and as a zip"),
        ({"tissue": "Smith B"}, "tissue: expected lower-case words with underscores"),
        ({"organ": ""}, "organ: expected lower-case words with underscores"),
        ({"group": ""}, "group: expected one line of text, not empty"),
        ({"patient": "x\ty"}, "patient: expected one line of text, or nothing"),
    ],
)
def test_a_row_that_is_wrong_is_a_problem_that_names_its_line(
    tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    assert refusals(tmp_path, tile(1, **changes)) == [f"2: {reason}"]


@pytest.mark.parametrize("file", ["/etc/passwd", "../17.png", "", "lab/../../17.png"])
def test_a_path_that_leads_out_is_a_problem(tmp_path: Path, file: str) -> None:
    write(tmp_path, tile(1))
    text = gzip.decompress((tmp_path / "manifest.csv.gz").read_bytes()).decode().replace("lab/1.png", file)
    (tmp_path / "manifest.csv.gz").write_bytes(gzip.compress(text.encode()))
    (problem,) = read_tiles(tmp_path, key=KEY).problems
    assert problem.reason == "file: expected a relative path inside the folder"


def test_a_link_that_leads_out_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(png(1))
    folder = write(tmp_path / "folder", tile(1))
    (folder / "lab").mkdir()
    (folder / "lab/1.png").symlink_to(tmp_path / "out.png")
    (problem,) = read_tiles(folder, key=KEY).problems
    assert problem.reason == "file: expected a relative path inside the folder"


def test_a_missing_member_and_a_damaged_image_are_problems(tmp_path: Path) -> None:
    damaged = png(2)[:-30]
    write(tmp_path, tile(1))
    put(tmp_path, "lab/2.png", damaged, plain=False)
    rows = [tile(1), tile(2, sha256=hashlib.sha256(damaged).hexdigest()), tile(3), tile(4, file="lab/x.png")]
    text = "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])
    (tmp_path / "manifest.csv.gz").write_bytes(gzip.compress(text.encode()))
    result = read_tiles(tmp_path, key=KEY)
    assert len(result.records) == 1
    assert [str(problem) for problem in result.problems] == [
        "manifest.csv.gz:3: file: damaged image data",
        "manifest.csv.gz:4: file: missing in the zip",
        "manifest.csv.gz:5: file: missing in the zip",
    ]


@pytest.mark.parametrize("column", ["tissue", "organ", "slide", "patient"])
def test_a_source_image_whose_tiles_contradict_each_other_is_left_out_whole(
    tmp_path: Path, column: str
) -> None:
    rows = [tile(1, group="g"), tile(2, group="g", **{column: "other"})]
    assert refusals(tmp_path, *rows) == [f"3: {column}: another than in line 2, of the same group"]


def test_a_source_image_with_a_bad_tile_is_left_out_whole(tmp_path: Path) -> None:
    rows = [tile(1, group="g"), tile(2, group="g", sha256="0" * 64)]
    assert refusals(tmp_path, *rows) == ["3: file: another sha256 than the manifest says"]


def test_a_file_named_twice_is_a_problem(tmp_path: Path) -> None:
    result = read(tmp_path, tile(1), tile(1, group="another"))
    assert [problem.reason for problem in result.problems] == ["file: the same as line 2"]
    assert len(result.records) == 1


def test_every_row_is_part_of_a_record_or_its_image_has_a_problem(tmp_path: Path) -> None:
    rows = [tile(number, group=f"g{number // 3}") for number in range(12)]
    rows[4]["sha256"] = "0" * 64
    rows[9]["organ"] = "Smith"
    result = read(tmp_path, *rows)
    assert sum(len(record.slides) for record in result.records) == 6
    assert {problem.line for problem in result.problems if problem.line in (6, 11)} == {6, 11}
    assert "Smith" not in "".join(map(str, result.problems))


def test_no_member_beyond_max_file_bytes_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "lab.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**20))
        archive.writestr("fair.png", bytes(2**10))
    monkeypatch.setattr(photos, "MAX_FILE_BYTES", 2**20 - 1)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(BadFileError, match="1048576 bytes, too large"):
        read_member(tmp_path / "lab.zip", "bomb.png")
    with pytest.raises(pytest.fail.Exception, match="unpacked"):
        read_member(tmp_path / "lab.zip", "fair.png")


def test_a_member_larger_than_the_archive_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**20))
    # Both headers hold the size, little-endian.
    path.write_bytes(path.read_bytes().replace((2**20).to_bytes(4, "little"), (2**10).to_bytes(4, "little")))
    with pytest.raises(BadFileError, match="damaged zip data"):
        read_member(path, "bomb.png")


def test_archives_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lab.zip"
    for text in (b"", b"not a zip"):
        path.write_bytes(text)
        with pytest.raises(BadFileError, match="damaged zip data"):
            read_member(path, "a.png")
    with pytest.raises(BadFileError, match="not a file"):
        read_member(tmp_path, "a.png")
    with pytest.raises(BadFileError, match="missing, as a file"):
        read_member(tmp_path / "missing.zip", "a.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png(1))
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(BadFileError, match="a zip with a password"):
        read_member(path, "a.png")


def test_few_archives_stay_open(tmp_path: Path) -> None:
    for number in range(tiles.MAX_OPEN + 2):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr("a.png", png(number))
        assert read_member(tmp_path / f"{number}.zip", "a.png") == png(number)
    assert len(tiles._archives) == tiles.MAX_OPEN
    tiles._archives.close()


def test_members_of_the_same_name_are_equal_and_print_none(tmp_path: Path) -> None:
    one, same = (MemberRef(path=tmp_path / "Smith.zip", member="Smith.png") for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != MemberRef(path=one.path, member="another.png")
    assert "Smith" not in repr(one)


def test_pixels_cannot_be_written_to(tmp_path: Path) -> None:
    (record,) = read(tmp_path, tile(1)).records
    with pytest.raises(ValueError, match="read-only"):
        record.slides[0].pixels()[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            gzip.compress(b"file,source\n"),
            "expected the columns group, tissue, organ, slide, patient, sha256",
        ),
        (gzip.compress(b""), f"expected the columns {', '.join(COLUMNS)}"),
        (gzip.compress(b"\xff\xfe"), "not UTF-8"),
        (gzip.compress(b"file" * 100)[:-9], "damaged gzip data"),
        (b"file", "damaged gzip data"),
        (
            gzip.compress(",".join(COLUMNS).encode() + b"\n" + b"x" * 200_000),
            "expected comma-separated values",
        ),
        (gzip.compress(bytes(tiles.MAX_MANIFEST_BYTES + 1)), f"larger than {tiles.MAX_MANIFEST_BYTES} bytes"),
    ],
    ids=["columns", "empty", "not text", "cut", "not gzip", "one long field", "bomb"],
)
def test_a_manifest_that_is_no_such_table_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "manifest.csv.gz").write_bytes(data)
    with pytest.raises(BadFileError) as caught:
        read_tiles(tmp_path, key=KEY)
    assert caught.value.reason == reason


def test_a_row_of_too_few_values_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(f"{','.join(COLUMNS)}\nlab/1.png,lab\n")
    (problem,) = read_tiles(tmp_path, key=KEY).problems
    assert str(problem) == "manifest.csv:2: tissue: expected lower-case words with underscores"


def test_a_folder_without_a_manifest_and_a_short_key_are_the_callers_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tiles(tmp_path, key=KEY)
    with pytest.raises(ValueError, match="at least 16 bytes"):
        read_tiles(tmp_path, key=b"short")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "images"), [("histology", 1636, 1014), ("histology_nc", 1107, 884)]
)
def test_all_real_tiles_are_read_without_a_problem(name: str, count: int, images: int) -> None:
    if not (DATA / name / "manifest.csv.gz").is_file():
        pytest.skip(f"the real data are not at {DATA}")
    folder = DATA / name
    result = read_tiles(folder, key=KEY, answers=tile_answers([folder]), public_ids=True)
    assert result.problems == ()
    assert len(result.records) == images
    assert sum(len(record.slides) for record in result.records) == count
    assert {record.slides[0].pixels().shape for record in result.records[::50]} == {(224, 224, 3)}
    assert unit_of(folder) == "source image"


def test_check_data_reads_a_folder_of_tiles_as_it_does_one_of_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "tiles", tile(1), tile(2, group="image 1"), tile(3, sha256="0" * 64))
    assert check(["check-data", str(folder), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["accepted"]["patients"] == 1
    assert found["accepted"]["tiles of slides"] == 2
    assert [one["file"] for one in found["refused"]] == ["manifest.csv.gz"]
