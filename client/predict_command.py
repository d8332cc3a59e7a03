"""`consilium-site predict`: a trained student answers for notes or images, with public knowledge if wished.

The answers of every usable case are written, and every line or file that is not usable is reported.
"""

from __future__ import annotations

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
METHODS = ("student", "search", "base", "cot", "rag", "rag_cot", "cot_rag", "router")
SEARCHING = frozenset({"search", "rag", "rag_cot", "cot_rag", "router"})
DEFAULT_DOCUMENTS, DEFAULT_LONG_NOTE = 1, 700

DESCRIPTION = """\
Answer for every note in a file, or every image in a folder, with a trained student: a ranked list of
answers with the student's confidence. They are a research result, not a diagnosis.

The input has one JSON object a line:   {"case_id": "case-17", "note": "A 4-year-old girl with ..."}
of a track that reads images:           {"case_id": "case-17", "image": "tiles/17.png"}
                                        or it is a folder of images, each a case under its file's name
The output has one line for each case:  {"case_id": "case-17", "answers": [{"id": ..., "name": ...,
                                        "confidence": ...}, ...]}, best answer first.

Notes may be answered with an index of public knowledge (made by `index build`); nothing leaves this machine:
  student   the student alone; its confidence is the one that was calibrated
  search    the search alone: the student's possible answers in the order of their documents
  base      the student alone, one note at a time
  cot       the student, led by questions: findings, demographics, groups of diseases, refinement
  rag       the student with the documents that are found for the note
  rag_cot   both: documents found for the note, and the questions
  cot_rag   both: the questions one after the other, and documents found for the answer to the first
  router    rag_cot for short notes, cot_rag for long ones
Lines of a searching method also name the documents: {"documents": [{"id": ..., "title": ...}, ...]}."""

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
    _add_method(parser)


def _add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--method", choices=METHODS, default="student", help="how notes are answered (default: %(default)s)"
    )
    parser.add_argument("--index", type=Path, metavar="FILE", help="the index of a method that searches")
    parser.add_argument(
        "--documents",
        type=_positive,
        metavar="N",
        help=f"documents found for a note (default: {DEFAULT_DOCUMENTS})",
    )
    parser.add_argument(
        "--long-note",
        type=_positive,
        metavar="WORDS",
        help=f"from how many words on the router takes a note for long (default: {DEFAULT_LONG_NOTE})",
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
    _check_method(parser, arguments)


def _check_method(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse an option that the method would not read."""
    method = arguments.method
    if method != "student" and TRACKS[arguments.track].modality is Modality.IMAGE:
        parser.error(f"--method {method} reads notes; track {arguments.track} reads images")
    if method in SEARCHING and arguments.index is None:
        parser.error(f"--method {method} needs --index")
    if method in SEARCHING and not arguments.index.is_file():
        parser.error(f"no index {arguments.index}")
    for option, given, read_by in (
        ("--index", arguments.index, SEARCHING),
        ("--documents", arguments.documents, SEARCHING),
        ("--long-note", arguments.long_note, {"router"}),
        ("--base-model", arguments.base_model, set(METHODS) - {"search"}),
    ):
        if given is not None and method not in read_by:
            parser.error(f"{option} is not for --method {method}")


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
    if arguments.method == "student":
        student = (load or load_student)(folder, arguments.track, arguments.base_model)
        predictions = _answer(student, read.cases, arguments.top, arguments.stain)
    else:
        predictions = _answer_by_method(arguments, folder, read.cases)
    write_predictions(arguments.output, predictions)
    refused = "files" if arguments.input.is_dir() else "lines"
    print(f"{len(read.cases)} cases answered, {len(read.problems)} {refused} refused", file=sys.stderr)  # noqa: T201
    return len(read.problems)


def _student_folder(folder: Path, track: str) -> Path:
    return folder / track if (folder / track).is_dir() else folder


def _answer_by_method(
    arguments: argparse.Namespace, folder: Path, cases: Sequence[Case]
) -> Iterator[Prediction]:
    # Imported here: help and check-data need not wait for torch.
    from client.retrieval.answering import open_method

    _say_no_progress()
    predict = open_method(
        arguments.method,
        folder,
        arguments.track,
        base_model=arguments.base_model,
        index=arguments.index,
        documents=arguments.documents or DEFAULT_DOCUMENTS,
        long_note=arguments.long_note or DEFAULT_LONG_NOTE,
        top=arguments.top,
    )
    with _progress() as progress:
        for case in progress.track(cases, description="Answering"):
            yield predict(case.case_id, case.note or "")


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, disable=not console.is_terminal)


def _say_no_progress() -> None:
    """A library's own bar for each file that it loads tells nobody anything."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _answer(student: Student, cases: Sequence[Case], top: int, stain: Stain) -> Iterator[Prediction]:
    with _progress() as progress:
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
    from client.student.predict import load_student

    _say_no_progress()
    student = load_student(folder, base_model)
    if student.card.track != track:
        raise BadFileError(folder, f"expected a student of track {track}, got one of {student.card.track}")
    return student
