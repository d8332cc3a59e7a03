import json
from pathlib import Path

import pytest
from peft import PeftModel

from client.student.model import Student, digest_base, load_base
from client.student.predict import STUDENT_FILE, StudentCard, card_text, load_student, save_student
from common.adapter import initial_adapter
from common.errors import BadFileError, DigestMismatchError, UnsupportedSchemaError
from common.tracks import AnswerList
from tests.client.student.tiny_vision import tile


@pytest.fixture
def folder(student: Student, answers: AnswerList, base_folder: Path, tmp_path: Path) -> Path:
    base_digest, tokenizer_digest = digest_base(base_folder)
    card = StudentCard(
        track="rare_disease",
        base_model=str(base_folder),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        max_prompt_tokens=64,
        chosen_length=1,
        plan_digest="1" * 64,
        method="federated_orpo",
        privacy="none",
        aggregation="secagg-v1",
    )
    save_student(tmp_path / "student", initial_adapter(student.spec, 2), answers, card)
    return tmp_path / "student"


def test_a_saved_student_answers_notes(folder: Path, answers: AnswerList) -> None:
    loaded = load_student(folder)
    (first, _) = loaded.rank(["seizure", "short stature"], 3)
    assert len(first) == 3
    for identifier, name, confidence in first:
        assert answers.answers[answers.index_of(identifier)].name == name
        assert 0 < confidence <= 1


def test_a_student_of_notes_answers_no_images(folder: Path) -> None:
    with pytest.raises(ValueError, match="Expected a student of images, got one of the track rare_disease"):
        load_student(folder).rank_images([tile(16, 16, 0)], 3)


def test_peft_loads_the_folder_as_it_is(folder: Path, base_folder: Path) -> None:
    base, _ = load_base(str(base_folder))
    PeftModel.from_pretrained(base, str(folder))


def test_the_card_says_what_protects_nobody(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "Privacy mode: `none`. Aggregation mode: `secagg-v1`." in card
    assert "the coordinator saw only the sum of the sites' updates." in card
    assert "There is no formal guarantee for any patient" in card


def test_the_card_says_what_is_promised_and_what_not() -> None:
    promised = StudentCard(
        track="rare_disease",
        base_model="base",
        base_model_digest="0" * 64,
        tokenizer_digest="0" * 64,
        max_prompt_tokens=64,
        chosen_length=1,
        plan_digest="1" * 64,
        method="federated_orpo",
        privacy="distributed",
        aggregation="secagg-v1",
        statement="epsilon = 8.00 at delta = 1e-05 for each patient",
        not_covered=("how long a site works",),
    )
    text = card_text(promised, 3)
    assert "- epsilon = 8.00 at delta = 1e-05 for each patient" in text
    assert "  - how long a site works" in text
    assert "no formal guarantee" not in text


def test_another_base_is_refused(folder: Path, base_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in base_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    load_student(folder, str(other))
    config = other / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(DigestMismatchError, match="base model"):
        load_student(folder, str(other))


def test_a_missing_base_is_one_clear_line(folder: Path) -> None:
    with pytest.raises(BadFileError, match="give its place with --base-model"):
        load_student(folder, "/nowhere/base")


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 1, "track": 3}'])
def test_a_damaged_card_is_refused(folder: Path, content: str) -> None:
    (folder / STUDENT_FILE).write_text(content)
    with pytest.raises(BadFileError, match=STUDENT_FILE):
        load_student(folder)


def test_a_newer_student_is_refused(folder: Path) -> None:
    card = json.loads((folder / STUDENT_FILE).read_text())
    (folder / STUDENT_FILE).write_text(json.dumps(card | {"schema": 2}))
    with pytest.raises(UnsupportedSchemaError, match="schema 2 is newer than 1"):
        load_student(folder)
