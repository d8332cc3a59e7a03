"""`consilium-site predict`: a trained student answers for notes or images.

The answers of every usable case are written, and every line or file that is not usable is reported.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, get_args

from rich.console import Console
from rich.progress import Progress

from client.patients.cases import Case, read_cases
from client.patients.photos import SlideRef
from client.patients.stain import Stain, stain_normalized
from client.student.predictions import Prediction, RankedAnswer, write_predictions
from common.errors import BadFileError
from common.tracks import TRACKS, Modality

DEFAULT_TOP = 10
# Cases a student gets at a time: enough to sort notes of like length together, few enough to show progress.
CASES_AT_A_TIME = 128

DESCRIPTION = """\
Answer for every note in a file, or every image in a folder, with a trained student: a ranked list of
answers with the student's confidence. They are a research result, not a diagnosis.

The input has one JSON object a line:   {"case_id": "case-17", "note": "A 4-year-old girl with ..."}
of a track that reads images:           {"case_id": "case-17", "image": "tiles/17.png"}
                                        or it is a folder of images, each a case under its file's name
The output has one line for each case:  {"case_id": "case-17", "answers": [{"id": ..., "name": ...,
                                        "confidence": ...}, ...]}, best answer first."""

Ranked = list[list[tuple[str, str, float]]]
"""For each case its best answers, best first: id, name, confidence."""


class Student(Protocol):
    """A trained student that ranks answers for notes, or for images."""

    def rank(self, notes: Sequence[str], top: int) -> Ranked:
        """Return the best ``top`` answers to each note."""
        ...

    def rank_images(self, images: Sequence[SlideRef], top: int) -> Ranked:
        """Return the best ``top`` answers to each image."""
        ...


# Folder, track, and another place of the base model.
LoadStudent = Callable[[Path, str, str | None], Student]


def add_predict(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--student",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the student, or the folder 'students' of a run, which holds one for each track",
    )
    parser.add_argument(
        "--track", choices=sorted(TRACKS), required=True, help="the question the student was trained on"
    )
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="FILE_OR_DIR",
        help="cases to answer, one JSON object a line; or a folder of images",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="where the answers go; an older file is replaced, and only you may read the new one",
    )
    parser.add_argument(
        "--base-model",
        metavar="NAME_OR_DIR",
        help="the language model the student was trained on, if it is not where it was then",
    )
    parser.add_argument(
        "--stain",
        choices=get_args(Stain),
        default="keep",
        help="of images: bring their stains to one reference by Macenko's method, if the site's tiles were "
        "when the student was trained (default: %(default)s)",
    )
    parser.add_argument(
        "--top",
        type=_positive,
        default=DEFAULT_TOP,
        metavar="N",
        help="answers a case (default: %(default)s)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text}")
    return int(text)


def check_predict(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse before the student is loaded what would fail after an hour of answering."""
    modality, folder = TRACKS[arguments.track].modality, arguments.input.is_dir()
    if folder and modality is Modality.TEXT:
        parser.error(f"the input {arguments.input} is a folder, and {arguments.track} reads a file of notes")
    if not folder and not arguments.input.is_file():
        parser.error(f"no input file {arguments.input}")
    if arguments.stain != "keep" and modality is Modality.TEXT:
        parser.error(f"--stain is for images; track {arguments.track} reads notes")
    if not arguments.output.absolute().parent.is_dir():
        parser.error(f"no folder {arguments.output.absolute().parent} for the output")
    if arguments.output.is_dir():
        parser.error(f"the output {arguments.output} is a folder")
    if arguments.output.resolve() == arguments.input.resolve():
        parser.error("the output would replace the input")
    if folder and arguments.output.resolve().parent == arguments.input.resolve():
        parser.error("the output would lie among the images")


def run_predict(arguments: argparse.Namespace, load: LoadStudent | None = None) -> int:
    """Answer, and return how many lines or files were refused.

    Raises:
        OSError, ValueError, FederationError: The input, the student or the output cannot be used.
    """
    read = read_cases(arguments.input, TRACKS[arguments.track].modality)
    for problem in read.problems:
        print(problem, file=sys.stderr)  # noqa: T201 - the report of a command line
    folder = _student_folder(arguments.student, arguments.track)
    if not folder.is_dir():
        raise BadFileError(folder, "expected a student's folder")
    student = (load or load_student)(folder, arguments.track, arguments.base_model)
    write_predictions(arguments.output, _answer(student, read.cases, arguments.top, arguments.stain))
    refused = "files" if arguments.input.is_dir() else "lines"
    print(f"{len(read.cases)} cases answered, {len(read.problems)} {refused} refused", file=sys.stderr)  # noqa: T201
    return len(read.problems)


def _student_folder(folder: Path, track: str) -> Path:
    return folder / track if (folder / track).is_dir() else folder


def _answer(student: Student, cases: Sequence[Case], top: int, stain: Stain) -> Iterator[Prediction]:
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("Answering", total=len(cases))
        for start in range(0, len(cases), CASES_AT_A_TIME):
            batch = cases[start : start + CASES_AT_A_TIME]
            rankings = _rank(student, batch, top, stain)
            for case, ranking in zip(batch, rankings, strict=True):
                yield Prediction(case_id=case.case_id, answers=tuple(_named(*answer) for answer in ranking))
            progress.advance(task, len(batch))


def _rank(student: Student, cases: Sequence[Case], top: int, stain: Stain) -> Ranked:
    images = [case.image for case in cases if case.image is not None]
    if not images:
        return student.rank([case.note or "" for case in cases], top)
    if stain == "macenko":
        images = [stain_normalized(image) for image in images]
    return student.rank_images(images, top)


def _named(answer_id: str, name: str, confidence: float) -> RankedAnswer:
    return RankedAnswer(id=answer_id, name=name, confidence=confidence)


def load_student(folder: Path, track: str, base_model: str | None) -> Student:
    """The student of a folder. BadFileError if it is one of another track."""
    # Imported here: help and check-data need not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from client.student.predict import load_student

    disable_progress_bar()
    student = load_student(folder, base_model)
    if student.card.track != track:
        raise BadFileError(folder, f"expected a student of track {track}, got one of {student.card.track}")
    return student
