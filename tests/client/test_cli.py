"""Tests of consilium-site."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client.cli import NOT_RUNNING, OK, REFUSED, UNUSABLE, USAGE, main, site_program
from client.patients.photos import SlideRef, encode_png
from client.patients.records import Finding, PatientRecord, PatientSet, Problem
from client.predict_command import CASES_AT_A_TIME
from client.student.predictions import read_predictions
from common.errors import BadFileError, FederationError

ROOT = Path(__file__).parents[2]


class FakeStudent:
    """Answers with the length of a note, so that a test can tell notes apart."""

    def rank(self, notes: Sequence[str], top: int) -> list[list[tuple[str, str, float]]]:
        assert len(notes) <= CASES_AT_A_TIME
        return [
            [(f"OMIM:{len(note)}-{i}", f"disease {i}", 0.5 / (i + 1)) for i in range(top)] for note in notes
        ]

    def rank_images(self, images: Sequence[SlideRef], top: int) -> list[list[tuple[str, str, float]]]:
        """Answers with the red of an image's first pixel."""
        assert len(images) <= CASES_AT_A_TIME
        reds = [int(image.pixels()[0, 0, 0]) for image in images]
        return [[(f"tissue:{red}-{i}", f"tissue {i}", 0.5 / (i + 1)) for i in range(top)] for red in reds]


class FakeLoader:
    """Remembers what it was asked to load."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[Path, str, str | None]] = []
        self.error = error

    def __call__(self, folder: Path, track: str, base_model: str | None) -> FakeStudent:
        self.asked.append((folder, track, base_model))
        if self.error is not None:
            raise self.error
        return FakeStudent()


def command(folder: Path, *more: str) -> list[str]:
    return [
        "predict", "--student", str(folder / "student"), "--track", "rare_disease",
        "--input", str(folder / "cases.jsonl"), "--output", str(folder / "answers.jsonl"), *more,
    ]  # fmt: skip


def write_cases(folder: Path, *lines: str) -> None:
    """Write the input; the student's folder is there as well, for the fakes to find."""
    (folder / "student").mkdir(exist_ok=True)
    (folder / "cases.jsonl").write_text("".join(f"{line}\n" for line in lines))


def case(case_id: str, note: str) -> str:
    return json.dumps({"case_id": case_id, "note": note})


def test_every_case_is_answered_in_the_order_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 2 * CASES_AT_A_TIME + 1
    write_cases(tmp_path, *(case(f"c{i}", "x" * (i + 1)) for i in range(number)))
    assert main(command(tmp_path, "--top", "3"), load=FakeLoader()) == 0
    predictions = read_predictions(tmp_path / "answers.jsonl")
    assert [prediction.case_id for prediction in predictions] == [f"c{i}" for i in range(number)]
    assert [answer.id for answer in predictions[4].answers] == ["OMIM:5-0", "OMIM:5-1", "OMIM:5-2"]
    assert f"{number} cases answered, 0 lines refused" in capsys.readouterr().err


def test_ten_answers_are_given_unless_asked_otherwise(tmp_path: Path) -> None:
    write_cases(tmp_path, case("c", "x"))
    assert main(command(tmp_path), load=FakeLoader()) == 0
    assert len(read_predictions(tmp_path / "answers.jsonl")[0].answers) == 10


def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cases(tmp_path, case("a", "x"), "secret", case("b", ""), case("a", "secret"), case("z", "y"))
    assert main(command(tmp_path), load=FakeLoader()) == 3
    error = capsys.readouterr().err
    assert "cases.jsonl:2: expected JSON\n" in error
    assert "cases.jsonl:3: note: expected text that is not empty" in error
    assert "cases.jsonl:4: case_id: the same as in line 1\n" in error
    assert "secret" not in error
    assert [found.case_id for found in read_predictions(tmp_path / "answers.jsonl")] == ["a", "z"]


@pytest.mark.parametrize(
    "error",
    [BadFileError("student.json", "missing\nreally"), FederationError("x"), ValueError(), OSError("disk")],
)
def test_a_student_that_cannot_be_used_gives_one_line_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    write_cases(tmp_path, case("c", "x"))
    assert main(command(tmp_path), load=FakeLoader(error)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_missing_student_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path, case("c", "x"))
    (tmp_path / "student").rmdir()
    assert main(command(tmp_path)) == 1
    assert f"{tmp_path / 'student'}: expected a student's folder" in capsys.readouterr().err


def test_a_damaged_student_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path, case("c", "x"))
    assert main(command(tmp_path)) == 1
    assert str(tmp_path / "student") in capsys.readouterr().err


def test_a_folder_of_students_holds_one_for_each_track(tmp_path: Path) -> None:
    write_cases(tmp_path, case("c", "x"))
    loader = FakeLoader()
    assert main(command(tmp_path, "--base-model", "tiny"), load=loader) == 0
    (tmp_path / "student" / "rare_disease").mkdir(parents=True)
    assert main(command(tmp_path), load=loader) == 0
    assert loader.asked == [
        (tmp_path / "student", "rare_disease", "tiny"),
        (tmp_path / "student" / "rare_disease", "rare_disease", None),
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--stain", "macenko"], "--stain is for images"),
        (["--track", "horoscope"], "invalid choice"),
        (["--top", "0"], "expected a whole number of 1 or more, got 0"),
        (["--top", "x"], "expected a whole number of 1 or more, got x"),
        (["--input", "nowhere.jsonl"], "no input file nowhere.jsonl"),
        (["--output", "no/such/folder/out"], "for the output"),
        (["--output", "{folder}/cases.jsonl"], "would replace the input"),
        (["--output", "{folder}"], "is a folder"),
        (["--temperature", "1"], "unrecognized arguments"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused_before_the_student_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    write_cases(tmp_path, case("c", "x"))
    loader = FakeLoader()
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path, *(text.format(folder=tmp_path) for text in more)), load=loader)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
    assert loader.asked == []


def patients(*problems: Problem) -> PatientSet:
    finding = Finding(id="HP:0001166", label="Arachnodactyly")
    records = (
        PatientRecord(
            patient_id="p1", case_id="p1", note="secret note", label={"rare_disease": "OMIM:154700"}
        ),
        PatientRecord(patient_id="p2", case_id="p2", observed=(finding,), withdrawn=True),
    )
    return PatientSet(records=records, problems=problems)


def test_check_data_counts_what_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(tmp_path)], read=lambda folder: patients()) == 0
    text = capsys.readouterr().out
    rows = [tuple(line.rsplit(maxsplit=1)) for line in text.splitlines()]
    for row in (
        ("patients", "2"),
        ("with a note", "1"),
        ("withdrawn", "1"),
        ("with an answer for rare_disease", "1"),
    ):
        assert row in [(what.strip(), number) for what, number in rows if number]
    assert "secret" not in text
    assert "p1" not in text


def test_check_data_lists_what_is_refused_on_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "sex: expected one of [male, female] " + "and so on" * 20
    problem = Problem(file="patients.jsonl", line=7, reason=reason)
    whole = Problem(file="photos/1.png", reason="damaged")
    assert main(["check-data", str(tmp_path)], read=lambda folder: patients(problem, whole)) == 3
    lines = [line.rstrip().split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["patients.jsonl", "7", reason] in lines
    assert ["photos/1.png", "damaged"] in lines


def test_check_data_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem(file="patients.jsonl", line=7, reason="not UTF-8")
    assert main(["check-data", str(tmp_path), "--json"], read=lambda folder: patients(problem)) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 2
    assert report["accepted"]["patients"] == 2
    assert report["refused"] == [{"file": "patients.jsonl", "line": 7, "reason": "not UTF-8"}]


def test_check_data_reads_the_folder_as_training_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ['{"schema": 1, "patient_id": "a", "note": "Tall."}', '{"schema": 1, "patient_id": "b"}']
    (tmp_path / "patients.jsonl").write_text("\n".join(lines))
    assert main(["check-data", str(tmp_path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["accepted"]["patients"], len(report["refused"])) == (1, 1)


def test_check_data_refuses_what_is_no_folder_of_patients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["check-data", str(tmp_path / "none")])
    assert ended.value.code == 2
    assert main(["check-data", str(tmp_path)]) == 1
    assert "expected one of patients.jsonl, manifest.csv" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, client.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("words", [[], *([command.name] for command in site_program().commands)])
def test_help_explains_itself_and_every_exit_status(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 12
    for status in (OK, UNUSABLE, USAGE, REFUSED, NOT_RUNNING):
        assert f"\n  {status}  " in text


def test_commands_are_listed_in_the_order_of_a_new_site(capsys: pytest.CaptureFixture[str]) -> None:
    names = [command.name for command in site_program().commands]
    order = ["init", "enrol", "sites", "approve-site", "plans", "approve", "start", "status"]
    assert [name for name in names if name in order] == order
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("words", [["horoscope"], [], ["status"], ["start"], ["init", "--home", "x"]])
def test_a_command_that_is_not_understood_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == USAGE


def write_tile(path: Path, red: int) -> None:
    """A tile of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((8, 8, 3), (red, 0, 0), dtype=np.uint8)))


def image_command(folder: Path, given: Path, *more: str) -> list[str]:
    (folder / "student").mkdir(exist_ok=True)
    return [
        "predict", "--student", str(folder / "student"), "--track", "tissue_type",
        "--input", str(given), "--output", str(folder / "answers.jsonl"), "--top", "2", *more,
    ]  # fmt: skip


def test_every_image_of_a_folder_is_a_case_under_its_files_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, red in (("b.png", 7), ("a.png", 3)):
        write_tile(tmp_path / "tiles" / name, red)
    (tmp_path / "tiles" / ".hidden").write_text("x")
    (tmp_path / "tiles" / "more").mkdir()
    (tmp_path / "tiles" / "c.png").write_bytes(b"no image")
    assert main(image_command(tmp_path, tmp_path / "tiles"), load=FakeLoader()) == 3
    found = read_predictions(tmp_path / "answers.jsonl")
    assert [(one.case_id, one.answers[0].id) for one in found] == [
        ("a.png", "tissue:3-0"),
        ("b.png", "tissue:7-0"),
    ]
    said = capsys.readouterr().err
    assert "c.png: no image of the formats" in said
    assert "2 cases answered, 1 files refused" in said


def test_a_line_may_name_an_image_beside_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tile(tmp_path / "in" / "tiles" / "1.png", 9)
    lines = [
        {"case_id": "x", "image": "tiles/1.png"},
        {"case_id": "y", "image": "tiles/2.png"},
        {"case_id": "z"},
    ]
    (tmp_path / "in" / "cases.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(image_command(tmp_path, tmp_path / "in" / "cases.jsonl"), load=FakeLoader()) == 3
    (found,) = read_predictions(tmp_path / "answers.jsonl")
    assert (found.case_id, found.answers[0].id) == ("x", "tissue:9-0")
    said = capsys.readouterr().err
    assert "cases.jsonl:2: image: missing" in said
    assert "cases.jsonl:3: image: missing" in said


def test_stains_are_normalized_where_it_is_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tissue = rng.integers(60, 200, size=(32, 32, 3), dtype=np.uint8)
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "1.png").write_bytes(encode_png(tissue))
    answers = []
    for stain in ("keep", "macenko"):
        assert main(image_command(tmp_path, tmp_path / "tiles", "--stain", stain), load=FakeLoader()) == 0
        answers.append(read_predictions(tmp_path / "answers.jsonl")[0].answers[0].id)
    assert answers[0] == f"tissue:{tissue[0, 0, 0]}-0"
    assert answers[1] != answers[0]


@pytest.mark.parametrize(
    ("track", "output", "line"),
    [
        ("rare_disease", "answers.jsonl", "rare_disease reads a file of notes"),
        ("tissue_type", "tiles/answers.jsonl", "the output would lie among the images"),
    ],
)
def test_a_folder_that_cannot_be_the_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], track: str, output: str, line: str
) -> None:
    write_tile(tmp_path / "tiles" / "1.png", 1)
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *image_command(tmp_path, tmp_path / "tiles"),
                "--track",
                track,
                "--output",
                str(tmp_path / output),
            ]
        )
    assert ended.value.code == 2
    assert line in capsys.readouterr().err
