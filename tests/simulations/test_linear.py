import numpy as np
import pytest

from client.patients.records import Finding, PatientRecord
from client.site_patients import Views
from common.tracks import Answer, AnswerList
from simulations.linear import features, rank_by_findings

ANSWERS = AnswerList(answers=tuple(Answer(id=f"OMIM:{n}", name=f"disease {n}") for n in range(3)))
NARROW, BROAD, OTHER, FACIAL = (f"HP:000000{n}" for n in range(1, 5))
PARENTS = {NARROW: (BROAD,), BROAD: (), OTHER: ()}
OPEN, HIDING = Views(), Views(facial="hide", facial_ids=frozenset({FACIAL}))


def record(
    name: str, answer: int, observed: tuple[str, ...], excluded: tuple[str, ...] = ()
) -> PatientRecord:
    return PatientRecord(
        patient_id=name,
        case_id=name,
        observed=tuple(Finding(id=i, label="a finding") for i in observed),
        excluded=tuple(Finding(id=i, label="a finding") for i in excluded),
        note="A note.",
        label={"rare_disease": f"OMIM:{answer}"},
    )


def first(train: list[PatientRecord], case: PatientRecord, views: Views = OPEN, **how: bool) -> str:
    ranked = rank_by_findings(
        train, [case], ANSWERS, views, PARENTS, "rare_disease", **{"exclusions": False, **how}
    )
    return ranked[case.patient_id].answer_ids[0]


def test_a_narrow_finding_also_counts_as_its_broader_terms() -> None:
    assert features(OPEN.view(record("p", 0, (NARROW,))), PARENTS, exclusions=False) == {
        "sex=unknown": 1.0,
        NARROW: 1.0,
        BROAD: 1.0,
    }
    train = [record("a", 0, (BROAD,)), record("b", 1, (OTHER,))]
    assert first(train, record("c", 0, (NARROW,))) == "OMIM:0"


def test_exclusions_are_read_only_if_wanted() -> None:
    train = [record("a", 0, (OTHER,), (NARROW,)), record("b", 1, (OTHER,), (BROAD,))]
    for excluded, answer in ((NARROW, "OMIM:0"), (BROAD, "OMIM:1")):
        assert first(train, record("c", 0, (OTHER,), (excluded,)), exclusions=True) == answer
    assert "not HP:0000001" not in features(OPEN.view(train[0]), PARENTS, exclusions=False)


def test_a_finding_that_the_notes_hide_has_no_influence() -> None:
    train = [record("a", 0, (FACIAL, OTHER)), record("b", 1, (OTHER,))]
    pair = [record("shown", 0, (FACIAL, OTHER)), record("bare", 0, (OTHER,))]
    for notes, alike in ((OPEN, False), (HIDING, True)):
        ranked = rank_by_findings(train, pair, ANSWERS, notes, PARENTS, "rare_disease", exclusions=False)
        assert np.array_equal(ranked["shown"].scores, ranked["bare"].scores) is alike


def test_an_answer_without_a_training_patient_comes_last_and_all_are_ranked() -> None:
    train = [record("a", 0, (BROAD,)), record("b", 2, (OTHER,))]
    ranking = rank_by_findings(
        train, [record("c", 1, (BROAD,))], ANSWERS, OPEN, PARENTS, "rare_disease", exclusions=True
    )["c"]
    assert set(ranking.answer_ids) == set(ANSWERS.ids)
    assert ranking.answer_ids[0] == "OMIM:0"
    assert ranking.scores[ranking.answer_ids.index("OMIM:1")] == ranking.scores.min()


@pytest.mark.parametrize("exclusions", [False, True])
def test_the_same_arguments_give_the_same_rankings(exclusions: bool) -> None:
    rng = np.random.default_rng(0)
    terms = [NARROW, BROAD, OTHER, FACIAL]
    people = [
        record(f"p{n}", int(rng.integers(3)), tuple(rng.choice(terms, 2, replace=False))) for n in range(30)
    ]
    one, two = (
        rank_by_findings(
            people[:20], people[20:], ANSWERS, HIDING, PARENTS, "rare_disease", exclusions=exclusions
        )
        for _ in range(2)
    )
    assert {name: r.answer_ids for name, r in one.items()} == {name: r.answer_ids for name, r in two.items()}
