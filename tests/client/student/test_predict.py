import json
import math
from pathlib import Path

import pytest
from peft import PeftModel

from client.preferences.answers import write_prompt
from client.student.calibrate import own_lengths
from client.student.model import Student, digest_base, load_base
from client.student.predict import (
    STUDENT_FILE,
    STUDENT_SCHEMA,
    StudentCard,
    card_text,
    load_student,
    save_student,
)
from client.student.prompts import StudentPrompt
from common.adapter import initial_adapter
from common.errors import BadFileError, DigestMismatchError, UnsupportedSchemaError
from common.tracks import RARE_DISEASE, AnswerList
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


def recarded(folder: Path, **changes: object) -> Path:
    card = json.loads((folder / STUDENT_FILE).read_text())
    (folder / STUDENT_FILE).write_text(json.dumps(card | changes))
    return folder


def test_a_student_claims_what_its_temperature_says_and_orders_as_before(folder: Path) -> None:
    plain = load_student(folder).rank(["seizure"], 3)[0]
    tempered = load_student(recarded(folder, temperature=4.0)).rank(["seizure"], 3)[0]
    assert [name for _, name, _ in tempered] == [name for _, name, _ in plain]
    assert tempered[0][2] < plain[0][2]
    # Of two answers the odds are the fourth root.
    odds = [one[0][2] / one[1][2] for one in (plain, tempered)]
    assert odds[1] == pytest.approx(odds[0] ** 0.25)


def test_what_an_answer_is_claimed_with_hangs_not_on_how_many_are_asked_for(folder: Path) -> None:
    loaded = load_student(folder)
    assert loaded.rank(["seizure"], 1)[0] == loaded.rank(["seizure"], 5)[0][:1]


def test_a_student_by_means_is_confident_by_means(folder: Path, answers: AnswerList) -> None:
    by_sum = load_student(folder)
    (sums,) = by_sum.rank_prompts([StudentPrompt(text=write_prompt(RARE_DISEASE, "seizure"))], 5)
    lengths = own_lengths(by_sum.student.answer_tokens(RARE_DISEASE.header, answers))
    means = {a: s / lengths[a] for a, s in zip(sums.kept, sums.scores, strict=True)}
    (found,) = load_student(recarded(folder, score="mean")).rank(["seizure"], 5)
    assert [answers.index_of(one) for one, _, _ in found] == sorted(means, key=lambda a: -means[a])
    assert found[0][2] / found[1][2] == pytest.approx(
        math.exp(sorted(means.values())[-1] - sorted(means.values())[-2])
    )


def test_a_card_of_the_first_schema_is_still_read(folder: Path) -> None:
    content = json.loads((folder / STUDENT_FILE).read_text())
    del content["temperature"], content["score"]
    (folder / STUDENT_FILE).write_text(json.dumps(content | {"schema": 1}))
    assert load_student(folder).card.temperature == 1


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_none_is_refused(folder: Path, temperature: float) -> None:
    with pytest.raises(BadFileError, match=r"student: expected a temperature > 0|temperature > 0"):
        load_student(recarded(folder, temperature=temperature))


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
    (folder / STUDENT_FILE).write_text(json.dumps(card | {"schema": STUDENT_SCHEMA + 1}))
    with pytest.raises(
        UnsupportedSchemaError, match=f"schema {STUDENT_SCHEMA + 1} is newer than {STUDENT_SCHEMA}"
    ):
        load_student(folder)
