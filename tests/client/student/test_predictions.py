"""Tests of the answers' line format."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.student.predictions import (
    Prediction,
    RankedAnswer,
    ReadDocument,
    read_predictions,
    write_predictions,
)

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ANSWERS = st.lists(
    st.builds(
        RankedAnswer, id=WORDS, name=WORDS, confidence=st.integers(0, 100).map(lambda percent: percent / 100)
    ),
    max_size=4,
    unique_by=lambda answer: answer.id,
).map(tuple)


def answer(identifier: str = "OMIM:1", confidence: float = 0.5) -> RankedAnswer:
    return RankedAnswer(id=identifier, name=f"disease {identifier}", confidence=confidence)


@settings(deadline=None, max_examples=40)
@given(prediction=st.builds(Prediction, case_id=WORDS, answers=ANSWERS, truth=st.none() | WORDS))
def test_a_line_comes_back_as_it_was(prediction: Prediction) -> None:
    line = prediction.to_line()
    assert "\n" not in line
    assert Prediction.from_line(line) == prediction


def test_a_line_has_the_promised_fields_in_order() -> None:
    line = Prediction(case_id="p1", answers=(answer(confidence=1 / 3),), truth="OMIM:1").to_line()
    assert line == (
        '{"case_id": "p1", "answers": [{"id": "OMIM:1", "name": "disease OMIM:1", "confidence": 0.333333}], '
        '"truth": "OMIM:1"}'
    )
    assert "truth" not in json.loads(Prediction(case_id="p1", answers=()).to_line())


def test_a_file_comes_back_in_its_order(tmp_path: Path) -> None:
    predictions = tuple(Prediction(case_id=f"p{n}", answers=(answer(),)) for n in (2, 1))
    write_predictions(tmp_path / "base.jsonl", predictions)
    assert read_predictions(tmp_path / "base.jsonl") == predictions


def test_a_damaged_line_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "base.jsonl"
    path.write_text(Prediction(case_id="p1", answers=()).to_line() + "\n{}\n")
    with pytest.raises(ValueError, match=r"base\.jsonl:2: Expected a field 'answers', got none"):
        read_predictions(path)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[" * 100_000,
        "[]",
        '{"case_id": "p1"}',
        '{"case_id": 1, "answers": []}',
        '{"case_id": "", "answers": []}',
        '{"case_id": "p1", "answers": {}}',
        '{"case_id": "p1", "answers": [1]}',
        '{"case_id": "p1", "answers": [], "truth": 1}',
        '{"case_id": "p1", "answers": [], "note": "x"}',
        '{"case_id": "p1", "answers": [{"id": "a", "name": "b", "confidence": 1.1}]}',
        '{"case_id": "p1", "answers": [{"id": "a", "name": "b", "confidence": NaN}]}',
        '{"case_id": "p1", "answers": [{"id": "a", "name": "b", "confidence": true}]}',
        '{"case_id": "p1", "answers": [{"id": "a", "name": "", "confidence": 0}]}',
        '{"case_id": "p1", "answers": [{"id": 1, "name": "b", "confidence": 0}]}',
        '{"case_id": "p1", "answers": [{"id": "a", "name": "b", "confidence": null}]}',
        '{"case_id": "p1", "answers": [], "documents": {}}',
        '{"case_id": "p1", "answers": [], "documents": [{"id": "a"}]}',
        '{"case_id": "p1", "answers": [], "documents": [{"id": "a", "title": 1}]}',
    ],
)
def test_what_no_student_writes_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        Prediction.from_line(line)


def test_an_answer_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="every answer once"):
        Prediction(case_id="p1", answers=(answer(), answer()))


def test_a_search_claims_no_confidence_and_names_its_documents() -> None:
    prediction = Prediction(
        case_id="p1",
        answers=(RankedAnswer(id="A", name="Alpha"),),
        documents=(ReadDocument(id="A", title="Alpha syndrome"),),
    )
    assert json.loads(prediction.to_line()) == {
        "case_id": "p1",
        "answers": [{"id": "A", "name": "Alpha"}],
        "documents": [{"id": "A", "title": "Alpha syndrome"}],
    }
    assert Prediction.from_line(prediction.to_line()) == prediction
