import pytest

from client.preferences.answers import write_prompt
from client.student.evaluate import CASES_AT_ONCE, batches_by_length, count_cases, free_answers, rank_cases
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.adapter import initial_adapter
from common.tracks import RARE_DISEASE, AnswerList

PROMPTS = [
    StudentPrompt(text=write_prompt(RARE_DISEASE, note))
    for note in ("seizure", "short stature", "broad thumb, seizure")
]


def test_cases_are_ranked_in_their_order_with_confidence_at_most_one(
    student: Student, answers: AnswerList
) -> None:
    student.load(initial_adapter(student.spec, 0))
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    done: list[int] = []
    ranked = rank_cases(student, PROMPTS, trie, top=3, max_prompt_tokens=64, on_progress=done.append)
    assert sum(done) == len(PROMPTS)
    for prompt, case in zip(PROMPTS, ranked, strict=True):
        (alone,) = rank_cases(student, [prompt], trie, top=3, max_prompt_tokens=64)
        assert case.answers == alone.answers
        assert len(set(case.answers)) == 3
        assert list(case.confidence) == sorted(case.confidence, reverse=True)
        assert sum(case.confidence) <= 1 + 1e-9


def test_an_untrained_students_free_answers_are_counted_as_invalid(
    student: Student, answers: AnswerList
) -> None:
    valid = free_answers(
        student, PROMPTS, RARE_DISEASE.header, answers, max_prompt_tokens=64, max_answer_tokens=5
    )
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    ranked = rank_cases(student, PROMPTS, trie, top=5, max_prompt_tokens=64)
    counts = count_cases(ranked, ["A:0", "A:1", "A:2"], answers, valid=valid)
    assert (counts.n, counts.top5, counts.top10) == (3, 3, 3)
    assert counts.invalid == counts.free >= 3


def test_coverage_and_avoidance_look_at_the_students_own_answer(
    student: Student, answers: AnswerList
) -> None:
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    (case,) = rank_cases(student, PROMPTS[:1], trie, top=2, max_prompt_tokens=64)
    ids = [answers.answers[i].id for i in case.answers]
    counts = count_cases([case], ["A:0"], answers, teacher_tops=[ids], teacher_bottoms=[ids])
    assert counts.rate("coverage") == 1.0
    assert counts.rate("avoidance") == 0.0


@pytest.mark.parametrize("count", [0, 1, CASES_AT_ONCE, CASES_AT_ONCE + 1])
def test_batches_hold_every_case_once(count: int) -> None:
    encoded = [(1,) * (1 + i % 7) for i in range(count)]
    rows = [row for batch in batches_by_length(encoded) for row in batch]
    assert sorted(rows) == list(range(count))
