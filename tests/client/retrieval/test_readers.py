"""Tests of a student as a reader."""

from dataclasses import replace

import pytest
import torch

from client.preferences.answers import write_prompt
from client.retrieval.index import OntologyIndex
from client.retrieval.methods import METHODS, base
from client.retrieval.questions import student_task
from client.retrieval.readers import Sampling, StudentReader
from client.retrieval.retrievers import Bm25Retriever
from client.student.evaluate import rank_cases
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.tracks import RARE_DISEASE, AnswerList

NOTE = "seizure and short stature"


def test_a_student_that_is_held_to_answers_ranks_as_it_does_without_methods(
    student: Student,
    answers: AnswerList,
    index: OntologyIndex,
) -> None:
    reader = StudentReader(student, constrained=True, lists=False)
    answered = base(NOTE, reader, Bm25Retriever(index), replace(student_task(answers), wanted=3))
    prompt = write_prompt(RARE_DISEASE, NOTE)
    (case,) = rank_cases(
        student,
        [StudentPrompt(text=prompt)],
        student.answer_trie(RARE_DISEASE.header, answers),
        top=3,
        max_prompt_tokens=500,
    )
    assert answered.ranked == tuple(answers.ids[row] for row in case.answers)
    assert answered.confidence == case.confidence
    assert answered.tokens_in == len(student.prompt_ids(prompt, 500))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_answers_with_answers_of_the_plan(
    student: Student,
    answers: AnswerList,
    index: OntologyIndex,
    name: str,
) -> None:
    task = replace(student_task(answers), step_tokens=5, chain_tokens=9, wanted=4)
    reader = StudentReader(student, constrained=True, lists=False)
    answered = METHODS[name](NOTE, reader, Bm25Retriever(index), task)
    assert len(answered.ranked) == 4
    assert set(answered.ranked) <= set(answers.ids)
    assert answered.tokens_out == {"base": 0, "rag": 0, "cot": 9, "rag_cot": 9, "cot_rag": 20}[name]
    assert answered == METHODS[name](NOTE, reader, Bm25Retriever(index), task)


def test_a_free_student_writes_its_list_itself(
    student: Student,
    answers: AnswerList,
    index: OntologyIndex,
) -> None:
    reader = StudentReader(student, constrained=False, lists=False)
    task = replace(student_task(answers), step_tokens=6)
    answered = base(NOTE, reader, Bm25Retriever(index), task)
    assert (answered.tokens_out, len(answered.steps), answered.confidence) == (6, 1, ())
    assert reader.rank("prompt", task) is None


def test_sampling_is_repeatable_depends_on_its_seed_and_leaves_the_generator_alone(student: Student) -> None:
    def written(seed: int, prompt: str = NOTE) -> str:
        reader = StudentReader(student, constrained=False, lists=False, sampling=Sampling(seed=seed))
        return reader.generate(prompt, 12).text

    state = torch.random.get_rng_state()
    first = written(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    written(1, "broad thumb")
    assert written(1) == first
    assert any(written(seed) != first for seed in (2, 3, 4))


def test_a_student_writes_no_further_than_its_positions(student: Student) -> None:
    positions = student.model.config.max_position_embeddings
    reader = StudentReader(student, constrained=False, lists=False, longest_prompt=positions - 3)
    long = "short stature " * positions
    written = reader.generate(long, 50)
    assert (written.tokens_in, written.tokens_out) == (positions - 3, 3)
    assert reader.count(long) > positions


def test_a_prompt_as_long_as_the_model_is_refused(student: Student) -> None:
    positions = student.model.config.max_position_embeddings
    with pytest.raises(ValueError, match=f"below the model's {positions} positions"):
        StudentReader(student, constrained=True, lists=False, longest_prompt=positions)
    assert StudentReader(student, constrained=True, lists=False).longest_prompt == positions * 3 // 4
