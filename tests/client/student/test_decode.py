import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preferences.answers import write_prompt
from client.student.decode import build_trie, decode_freely, rank_by_beam, score_one_by_one, shared_prefix
from client.student.model import Student
from common.tracks import RARE_DISEASE, AnswerList

NOTES = ("seizure and short stature", "short stature", "cleft palate, seizure", "broad thumb")


def prompts_of(student: Student) -> list[tuple[int, ...]]:
    return [student.prompt_ids(write_prompt(RARE_DISEASE, note), 200) for note in NOTES]


def test_with_as_many_beams_as_answers_the_ranking_equals_scoring_every_answer_alone(
    student: Student, answers: AnswerList
) -> None:
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    encoded = [student.answer_ids(f"{RARE_DISEASE.header}\n1. {name}") for name in answers.names]
    prompts = prompts_of(student)
    found = rank_by_beam(student.model, prompts, trie, beams=len(answers), pad_id=student.pad_id)
    for prompt, ranking in zip(prompts, found, strict=True):
        alone = score_one_by_one(student.model, prompt, encoded)
        order = sorted(range(len(answers)), key=lambda i: -alone[i])
        assert [answer for answer, _ in ranking] == order
        assert [score for _, score in ranking] == pytest.approx([alone[i] for i in order], abs=1e-4)


def test_a_case_ranks_alike_alone_and_in_a_batch(student: Student, answers: AnswerList) -> None:
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    prompts = prompts_of(student)
    together = rank_by_beam(student.model, prompts, trie, beams=3, pad_id=student.pad_id)
    for prompt, expected in zip(prompts, together, strict=True):
        (alone,) = rank_by_beam(student.model, [prompt], trie, beams=3, pad_id=student.pad_id)
        assert [answer for answer, _ in alone] == [answer for answer, _ in expected]


def test_the_header_read_with_the_prompt_changes_no_order(student: Student, answers: AnswerList) -> None:
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    prefix, branch = shared_prefix(trie)
    assert student.tokenizer.decode(prefix).startswith(RARE_DISEASE.header)
    prompts = prompts_of(student)
    whole = rank_by_beam(student.model, prompts, trie, beams=5, pad_id=student.pad_id)
    cut = rank_by_beam(
        student.model, [(*p, *prefix) for p in prompts], branch, beams=5, pad_id=student.pad_id
    )
    assert [[a for a, _ in case] for case in whole] == [[a for a, _ in case] for case in cut]


@given(st.lists(st.lists(st.integers(3, 6), max_size=4).map(tuple), min_size=1, max_size=12, unique=True))
@settings(deadline=None)
def test_a_trie_holds_every_sequence_once(sequences: list[tuple[int, ...]]) -> None:
    ended = [(*sequence, 2) for sequence in sequences]
    trie = build_trie(ended)
    for index, sequence in enumerate(ended):
        node = trie
        for token in sequence:
            node = node.children[token]
        assert node.answer == index


@pytest.mark.parametrize(
    "wrong", [[(4, 5), (4, 5)], [()], [(4,), (4, 5)]], ids=["twice", "empty", "beginning"]
)
def test_a_trie_refuses_answers_that_cannot_be_told_apart(wrong: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        build_trie(wrong)


def test_free_decoding_equals_greedy_steps_one_by_one(student: Student) -> None:
    prompts = prompts_of(student)
    found = decode_freely(student.model, prompts, pad_id=student.pad_id, end_id=student.end_id, longest=6)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = list(prompt)
        expected: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                token = int(student.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == student.end_id:
                break
            expected.append(token)
            ids.append(token)
        assert answer == expected
