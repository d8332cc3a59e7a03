"""Tests of `consilium-site index`, and of `consilium-site predict` with a method."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.cli import main
from client.predict_command import METHODS
from client.retrieval.hpo import from_hpo
from client.retrieval.index import OntologyIndex
from client.retrieval.questions import Task, student_task
from client.student.model import adapter_spec, digest_base, load_base
from client.student.predict import StudentCard, save_student
from client.student.predictions import Prediction, RankedAnswer, ReadDocument, read_predictions
from common.adapter import AdapterMode, initial_adapter
from common.learning_plan import AdapterPlan
from common.tracks import Answer, AnswerList
from tests.client.retrieval.tiny import PLANTED, write_hpo
from tests.client.student import conftest as students

base_folder = students.base_folder
ANSWERS = AnswerList(
    answers=(Answer(id="OMIM:1", name="Alpha syndrome"), Answer(id="OMIM:2", name="Beta disease"))
)
NOTE = f"A boy with {PLANTED} and seizure."


@pytest.fixture(scope="module")
def site(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a student, an index and notes."""
    folder = tmp_path_factory.mktemp("site")
    from_hpo(write_hpo(folder / "hpo")).save(folder / "index")
    base, _ = load_base(str(base_folder))
    plan = AdapterPlan(
        mode=AdapterMode.ROLORA, rank=2, alpha=4.0, targets=("q_proj",), factors_digest="0" * 64
    )
    model, tokenizer = digest_base(base_folder)
    card = StudentCard(
        track="rare_disease", base_model=str(base_folder), base_model_digest=model,
        tokenizer_digest=tokenizer, max_prompt_tokens=256, chosen_length=1, plan_digest="1" * 64,
        method="federated_orpo", privacy="none", aggregation="plain",
    )  # fmt: skip
    adapter = initial_adapter(adapter_spec(base, plan), np.random.default_rng(0))
    save_student(folder / "student", adapter, ANSWERS, card)
    (folder / "cases.jsonl").write_text(f"{json.dumps({'case_id': 'c1', 'note': NOTE})}\n")
    (folder / "note.txt").write_text(NOTE)
    return folder


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def task(answers: AnswerList) -> Task:
        return replace(student_task(answers), step_tokens=4, chain_tokens=8)

    monkeypatch.setattr("client.retrieval.answering.student_task", task)


def predict(site: Path, *more: str) -> list[str]:
    return [
        "predict", "--student", str(site / "student"), "--track", "rare_disease",
        "--input", str(site / "cases.jsonl"), "--output", str(site / "answers.jsonl"), *more,
    ]  # fmt: skip


def test_an_index_is_built_shown_and_searched(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    assert main(["index", "build", "--hpo", str(site / "hpo"), "--output", index]) == 0
    digest = from_hpo(site / "hpo").digest()
    assert digest in capsys.readouterr().out
    assert main(["index", "show", index, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "schema": 1, "diseases": 3, "genes": 2, "sources": ["hp 2024", "hp 2025"], "digest": digest,
    }  # fmt: skip
    assert main(["index", "show", index]) == 0
    assert "3 diseases, 2 genes" in capsys.readouterr().out
    note = ["--note", str(site / "note.txt")]
    assert main(["index", "search", index, *note, "--kind", "disease", "--top", "1", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["documents"]
    assert (found["kind"], found["id"], found["title"]) == ("disease", "OMIM:2", "Beta disease")
    assert main(["index", "search", index, *note]) == 0
    shown = capsys.readouterr().out
    assert "GENB" in shown and "4 documents" in shown and "boy" not in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["build", "--hpo", "{}/nowhere", "--output", "{}/i"], "no folder {}/nowhere"),
        (["build", "--hpo", "{}", "--output", "{}/no/i"], "is a folder, or lies in none"),
        (["build", "--hpo", "{}", "--output", "{}"], "is a folder, or lies in none"),
        (["show", "{}/nowhere"], "no file {}/nowhere"),
        (["search", "{}/index", "--note", "{}/nowhere"], "no file {}/nowhere"),
        (["search", "{}/index", "--note", "{}/note.txt", "--top", "0"], "invalid choice: 0"),
        ([], "required: build|show|search"),
    ],
)
def test_an_index_command_that_cannot_be_is_refused_in_a_line(
    site: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["index", *(one.format(site) for one in arguments)])
    assert refused.value.code == 2
    assert reason.format(site) in capsys.readouterr().err


def test_damaged_files_are_refused_in_a_line(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index").write_text("no index")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    index = str(site / "index")
    assert main(["index", "show", str(tmp_path / "index")]) == 1
    assert main(["index", "build", "--hpo", str(tmp_path), "--output", str(tmp_path / "i")]) == 1
    assert main(["index", "search", index, "--note", str(tmp_path / "empty")]) == 1
    assert main(["index", "search", index, "--note", str(tmp_path / "binary")]) == 1
    assert main(predict(site, "--method", "rag", "--index", str(tmp_path / "index"))) == 1
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in errors] == ["consilium-site"] * 5
    assert "not a gzipped file" in errors[0] and "hp_terms.jsonl.gz" in errors[1]
    assert "expected a note, got an empty file" in errors[2] and "plain text" in errors[3]


@pytest.mark.parametrize("method", ["base", "cot", "rag", "rag_cot", "cot_rag", "router"])
def test_a_method_answers_with_the_student_and_names_its_documents(site: Path, method: str) -> None:
    searching = ["--index", str(site / "index"), "--documents", "2"] if "r" in method else []
    assert main(predict(site, "--method", method, *searching)) == 0
    (case,) = read_predictions(site / "answers.jsonl")
    assert {answer.id for answer in case.answers} == {"OMIM:1", "OMIM:2"}
    assert sum(answer.confidence or 0 for answer in case.answers) == pytest.approx(1, abs=1e-5)
    if method in ("rag", "rag_cot", "router"):
        assert case.documents[0] == ReadDocument(id="OMIM:2", title="Beta disease")
        assert len(case.documents) == 2
    if method in ("base", "cot"):
        assert case.documents == ()


def test_base_answers_as_the_student_does(site: Path) -> None:
    assert main(predict(site)) == 0
    (student,) = read_predictions(site / "answers.jsonl")
    assert main(predict(site, "--method", "base")) == 0
    assert read_predictions(site / "answers.jsonl") == (student,)


def test_the_search_ranks_the_student_s_answers_and_claims_no_confidence(site: Path) -> None:
    search = predict(site, "--method", "search", "--index", str(site / "index"))
    assert main(search) == 0
    assert read_predictions(site / "answers.jsonl") == (
        Prediction(
            case_id="c1",
            answers=(
                RankedAnswer(id="OMIM:2", name="Beta disease"),
                RankedAnswer(id="OMIM:1", name="Alpha syndrome"),
            ),
            documents=(ReadDocument(id="OMIM:2", title="Beta disease"),),
        ),
    )
    assert "confidence" not in (site / "answers.jsonl").read_text()
    assert main([*search, "--top", "1"]) == 0
    assert len(read_predictions(site / "answers.jsonl")[0].answers) == 1


def test_a_long_note_goes_the_other_way(site: Path) -> None:
    router = predict(site, "--method", "router", "--index", str(site / "index"))
    answered = []
    for more in (["--long-note", "1"], ["--long-note", "9999"]):
        assert main([*router, *more]) == 0
        answered.append((site / "answers.jsonl").read_text())
    for method, one in zip(("cot_rag", "rag_cot"), answered, strict=True):
        assert main(predict(site, "--method", method, "--index", str(site / "index"))) == 0
        assert (site / "answers.jsonl").read_text() == one


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--method", "rag"], "--method rag needs --index"),
        (["--method", "search", "--index", "{}/nowhere"], "no index {}/nowhere"),
        (["--index", "{}/index"], "--index is not for --method student"),
        (["--method", "cot", "--index", "{}/index"], "--index is not for --method cot"),
        (["--method", "base", "--documents", "2"], "--documents is not for --method base"),
        (
            ["--method", "rag", "--index", "{}/index", "--long-note", "9"],
            "--long-note is not for --method rag",
        ),
        (
            ["--method", "search", "--index", "{}/index", "--base-model", "b"],
            "--base-model is not for --method search",
        ),
        (["--method", "guess"], "invalid choice: 'guess'"),
        (["--method", "rag", "--index", "{}/index", "--documents", "0"], "whole number of 1 or more"),
    ],
)
def test_an_option_that_the_method_would_not_read_is_refused(
    site: Path, capsys: pytest.CaptureFixture[str], more: list[str], reason: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(predict(site, *(one.format(site) for one in more)))
    assert refused.value.code == 2
    assert reason.format(site) in capsys.readouterr().err


def test_methods_are_for_notes(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = predict(site, "--method", "cot")
    images[images.index("rare_disease")] = "tissue_type"
    with pytest.raises(SystemExit):
        main(images)
    assert "--method cot reads notes" in capsys.readouterr().err


def test_a_student_of_another_track_has_no_answers_here(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (site / "student").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps({**card, "track": "tissue_type"}))
    other = predict(site, "--method", "search", "--index", str(site / "index"))
    other[other.index(str(site / "student"))] = str(tmp_path)
    assert main(other) == 1
    assert "expected a student of track rare_disease, got one of tissue_type" in capsys.readouterr().err


def test_the_command_s_methods_are_those_that_exist() -> None:
    from client.retrieval import methods

    assert set(METHODS) == {"student", "search", "router", *methods.METHODS}


def test_an_index_of_the_command_line_is_the_one_of_the_library(site: Path) -> None:
    assert OntologyIndex.load(site / "index") == from_hpo(site / "hpo")
