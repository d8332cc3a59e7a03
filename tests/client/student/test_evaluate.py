import numpy as np
import pytest

from client.preferences.answers import write_prompt
from client.student.evaluate import (
    CASES_AT_ONCE,
    SPARE_BEAMS,
    RankedCase,
    batches_by_length,
    count_cases,
    free_answers,
    rank_cases,
    read_free_answer,
)
from client.student.model import Student
from client.student.prompts import StudentPrompt
from common.adapter import initial_adapter
from common.calibration import ReliabilityBins, TemperatureSums, confidence_of
from common.metrics import FreeAnswer
from common.tracks import RARE_DISEASE, Answer, AnswerList

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
    free = free_answers(
        student, PROMPTS, RARE_DISEASE.header, answers, max_prompt_tokens=64, max_answer_tokens=5
    )
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    ranked = rank_cases(student, PROMPTS, trie, top=5, max_prompt_tokens=64)
    counts = count_cases(ranked, ["A:0", "A:1", "A:2"], answers, free=free).metrics
    assert (counts.n, counts.top5, counts.top10, counts.free_cases) == (3, 3, 3, 3)
    assert counts.invalid == counts.free >= 3
    assert counts.free_top10 == 0


def test_coverage_and_avoidance_look_at_the_students_own_answer(
    student: Student, answers: AnswerList
) -> None:
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    (case,) = rank_cases(student, PROMPTS[:1], trie, top=2, max_prompt_tokens=64)
    ids = [answers.answers[i].id for i in case.answers]
    counts = count_cases([case], ["A:0"], answers, teacher_tops=[ids], teacher_bottoms=[ids]).metrics
    assert counts.rate("coverage") == 1.0
    assert counts.rate("avoidance") == 0.0


KNOWN = AnswerList(
    answers=tuple(
        Answer(id=f"OMIM:{i}", name=name, synonyms=synonyms)
        for i, (name, synonyms) in enumerate(
            [("Marfan syndrome", ("MFS", "shared")), ("Noonan syndrome", ("shared",)), ("Unknown fever", ())]
        )
    )
)


def read(*lines: str) -> FreeAnswer:
    return read_free_answer("\n".join((RARE_DISEASE.header, *lines)), RARE_DISEASE.header, KNOWN)


def test_free_answers_are_known_by_any_name_and_exact_by_their_own() -> None:
    text = read("1. mfs", "2. NOONAN  syndrome.", "3. shared", "4. Marfan syndrome (tall)", "5. Flu")
    assert text.ids == ("OMIM:0", "OMIM:1", None, "OMIM:0", None)
    assert text.valid == (True, True, False, True, False)
    assert text.exact == (False, True, False, True, False)
    assert not text.abstained


@pytest.mark.parametrize(
    "line",
    [
        "Unknown",
        "1. unknown.",
        "The diagnosis is unclear",
        "1. None",
        "Cannot be determined",
        "n/a",
        "Not determined",
        "I do not know",
        "1. Unknown disease (too few findings)",
        "Unable to determine the disease",
    ],
)
def test_who_says_that_he_does_not_know_abstains(line: str) -> None:
    assert read(line).abstained
    assert read(line).valid == (False,)


def test_who_lists_nothing_abstains_and_who_guesses_does_not() -> None:
    assert read().abstained
    assert not read("1. Unknown fever").abstained
    assert not read("1. Nonexistent syndrome").abstained
    assert not read("1. Unknown", "2. Marfan syndrome").abstained


def ranked_case(*scores: float, top: int = 2) -> RankedCase:
    return RankedCase.of(range(len(scores)), scores, top)


def test_a_case_keeps_the_scores_of_all_the_beam_kept(student: Student, answers: AnswerList) -> None:
    student.load(initial_adapter(student.spec, 0))
    trie = student.answer_trie(RARE_DISEASE.header, answers)
    (case,) = rank_cases(student, PROMPTS[:1], trie, top=2, max_prompt_tokens=64)
    assert len(case.answers) == 2 < len(case.scores) == len(case.kept) <= 2 + SPARE_BEAMS
    assert list(case.scores) == sorted(case.scores, reverse=True)
    assert case.confidence == pytest.approx(confidence_of(np.array(case.scores))[:2])
    assert case.all_confidences().sum() == pytest.approx(1)


def test_tempering_changes_confidences_alone_and_can_be_taken_back() -> None:
    case = ranked_case(-1.0, -2.0, -4.0)
    warm = case.tempered(3.0)
    assert warm.confidence == pytest.approx(confidence_of(np.array([-1.0, -2.0, -4.0]), 3.0)[:2])
    assert (warm.answers, warm.scores, warm.kept) == (case.answers, case.scores, case.kept)
    assert warm.confidence[0] < case.confidence[0]
    assert warm.tempered(1.0) == case


def test_counts_are_read_at_the_temperature_of_the_cases() -> None:
    cases = [ranked_case(-1.0, -2.0, -4.0), ranked_case(-1.0, -1.5), ranked_case(-3.0)]
    truths = ["OMIM:0", "OMIM:2", "OMIM:9"]  # the first answer; not kept; no answer of the plan
    counts = count_cases([case.tempered(2.0) for case in cases], truths, KNOWN)
    first, correct = [case.tempered(2.0).confidence[0] for case in cases], np.array([True, False, False])
    assert counts.bins == ReliabilityBins.from_cases(np.array(first), correct)
    assert counts.temperatures == TemperatureSums.from_cases([np.array(c.scores) for c in cases], correct)
    assert (counts.metrics.n, counts.metrics.top1, counts.proper.n) == (3, 1, 3)
    with pytest.raises(ValueError, match=r"one temperature, got \[1\.0, 2\.0\]"):
        count_cases([cases[0], cases[1].tempered(2.0)], truths[:2], KNOWN)


def test_a_truth_that_was_kept_but_not_wanted_has_its_own_confidence() -> None:
    case = ranked_case(-1.0, -2.0, -3.0, top=1)
    counts = count_cases([case], ["OMIM:2"], KNOWN)
    assert counts.metrics.top5 == 0
    assert counts.proper.nll() == pytest.approx(-np.log(case.all_confidences()[2]), abs=1e-3)


def test_a_case_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="first of those kept"):
        RankedCase(answers=(1,), confidence=(), scores=(-1.0,))
    with pytest.raises(ValueError, match="first of those kept"):
        RankedCase(answers=(1,), confidence=(1.0,), scores=(-1.0, -2.0), kept=(0, 1))
    with pytest.raises(ValueError, match="1 scores, got 0"):
        RankedCase(answers=(1,), confidence=(1.0,), scores=())


@pytest.mark.parametrize("count", [0, 1, CASES_AT_ONCE, CASES_AT_ONCE + 1])
def test_batches_hold_every_case_once(count: int) -> None:
    encoded = [(1,) * (1 + i % 7) for i in range(count)]
    rows = [row for batch in batches_by_length(encoded) for row in batch]
    assert sorted(rows) == list(range(count))
