"""Tests of fitting a prompt to its reader."""

import pytest

from client.retrieval.questions import Gives, Part, Task, disease_task, fit
from common.errors import SettingsError
from common.tracks import Answer, AnswerList

PARTS = [
    Part("r1 r2 r3", Gives.REFERENCE),
    Part("n1 n2 n3", Gives.NOTE),
    Part("a1 a2", Gives.TURN),
    Part("b1 b2", Gives.TURN),
    Part("q1 q2", Gives.QUESTION),
]
ANSWERS = AnswerList(answers=(Answer(id="A", name="A"),))


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("longest", "prompt"),
    [
        (12, "r1 r2 r3\nn1 n2 n3\na1 a2\nb1 b2\nq1 q2\n"),
        (11, "r1 r2\nn1 n2 n3\na1 a2\nb1 b2\nq1 q2\n"),
        (9, "n1 n2 n3\na1 a2\nb1 b2\nq1 q2\n"),
        (8, "n1 n2 n3\na1\nb1 b2\nq1 q2\n"),
        (6, "n1 n2 n3\nb1\nq1 q2\n"),
        (4, "n1 n2\nq1 q2\n"),
        (1, "q1 q2\n"),
    ],
)
def test_what_gives_way_readily_is_gone_before_another_part_loses_a_word(longest: int, prompt: str) -> None:
    assert fit(PARTS, longest, count) == (prompt, 12 - count(prompt))


def test_a_prompt_that_fits_is_not_touched() -> None:
    assert fit(PARTS[1:2], 3, count) == ("n1 n2 n3\n", 0)


@pytest.mark.parametrize("name", ["wanted", "documents", "step_tokens", "chain_tokens"])
def test_a_task_of_nothing_is_refused(name: str) -> None:
    values = {"kind": "disease", "header": "H:", "answers": ANSWERS, "questions": ("Q?",), "final": "L."}
    assert Task(**values, **{name: 1})
    with pytest.raises(SettingsError, match=name):
        Task(**values, **{name: 0})


def test_the_protocol_asks_for_exactly_ten() -> None:
    assert "exactly 10" in disease_task(ANSWERS).final
    assert disease_task(ANSWERS).wanted == 10
