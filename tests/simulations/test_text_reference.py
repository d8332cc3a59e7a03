from dataclasses import replace

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from client.patients.photos import ImageRef
from client.patients.records import Finding, PatientRecord
from client.site_patients import Views
from client.teacher.rank import Ranking
from common.tracks import Answer, AnswerList
from simulations.text_reference import LOOSENESS, rank_by_text

ANSWERS = AnswerList(answers=tuple(Answer(id=f"OMIM:{n}", name=f"disease {n}") for n in range(3)))
FACIAL = Finding(id="HP:0000001", label="Broad nose")
SEIZURE, ATAXIA = Finding(id="HP:0000002", label="Seizure"), Finding(id="HP:0000003", label="Ataxia")
PHOTO = ImageRef(array=np.zeros((2, 2, 3), dtype=np.uint8))
OPEN, HIDING = Views(), Views(facial="hide", facial_ids=frozenset({FACIAL.id}))


def record(name: str, answer: int, note: str | None, observed: tuple[Finding, ...] = ()) -> PatientRecord:
    return PatientRecord(
        patient_id=name,
        case_id=name,
        observed=observed,
        excluded=(),
        note=note,
        photo=PHOTO,
        label={"rare_disease": f"OMIM:{answer}"},
    )


def by_answer(ranking: Ranking) -> dict[str, float]:
    return dict(zip(ranking.answer_ids, ranking.scores.tolist(), strict=True))


def test_the_words_of_the_note_decide_and_nothing_else_of_the_record() -> None:
    train = [record("a", 0, "Seizures since birth."), record("b", 1, "A boy with ataxia.")]
    case = record("c", 2, "He had SEIZURES.", (ATAXIA,))
    first = rank_by_text(train, [case], ANSWERS, OPEN, "rare_disease")["c"]
    assert first.answer_ids[0] == "OMIM:0"
    other = replace(case, observed=(SEIZURE,), label={"rare_disease": "OMIM:1"}, sex="female")
    second = rank_by_text(train, [other], ANSWERS, OPEN, "rare_disease")["c"]
    assert by_answer(first) == by_answer(second)


def test_pairs_of_words_are_read() -> None:
    train = [record("a", 0, "no pain but fever"), record("b", 1, "no fever but pain")]
    for note, answer in (("but fever", "OMIM:0"), ("no fever", "OMIM:1")):
        ranked = rank_by_text(train, [record("c", 2, note)], ANSWERS, OPEN, "rare_disease")
        assert ranked["c"].answer_ids[0] == answer


def test_a_finding_that_the_views_hide_has_no_influence() -> None:
    train = [record("a", 0, None, (FACIAL, SEIZURE)), record("b", 1, None, (SEIZURE,))]
    pair = [record("shown", 0, None, (FACIAL, SEIZURE)), record("bare", 0, None, (SEIZURE,))]
    for views, alike in ((OPEN, False), (HIDING, True)):
        ranked = rank_by_text(train, pair, ANSWERS, views, "rare_disease")
        assert (by_answer(ranked["shown"]) == by_answer(ranked["bare"])) is alike


def test_an_answer_without_a_training_patient_comes_last_and_all_are_ranked() -> None:
    train = [record("a", 0, "seizures"), record("b", 2, "ataxia")]
    ranking = rank_by_text(train, [record("c", 1, "seizures")], ANSWERS, OPEN, "rare_disease")["c"]
    assert set(ranking.answer_ids) == set(ANSWERS.ids)
    assert ranking.answer_ids[0] == "OMIM:0"
    assert ranking.scores[ranking.answer_ids.index("OMIM:1")] == ranking.scores.min()


def test_a_patient_without_a_note_is_ranked_by_how_common_answers_are() -> None:
    train = [record(f"p{n}", int(n > 4), f"word{n} of a note") for n in range(7)]
    ranking = rank_by_text(train, [record("c", 1, None)], ANSWERS, OPEN, "rare_disease")["c"]
    assert ranking.answer_ids[0] == "OMIM:0"


def test_scores_are_those_of_tf_idf_and_logistic_regression_and_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(12)]
    people = [record(f"p{n}", int(rng.integers(3)), " ".join(rng.choice(words, 5))) for n in range(40)]
    train, cases = people[:30], people[30:]
    one, two = (rank_by_text(train, cases, ANSWERS, OPEN, "rare_disease") for _ in range(2))
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    notes = [[r.note for r in part] for part in (train, cases)]
    model = LogisticRegression(C=LOOSENESS, max_iter=100, tol=1e-3).fit(
        vectorizer.fit_transform(notes[0]), [r.label["rare_disease"] for r in train]
    )
    expected = model.predict_log_proba(vectorizer.transform(notes[1]))
    for case, row in zip(cases, expected, strict=True):
        found = one[case.patient_id]
        assert [by_answer(found)[answer] for answer in model.classes_] == pytest.approx(
            row.tolist(), abs=1e-5
        )
        assert two[case.patient_id].answer_ids == found.answer_ids


def test_notes_without_a_word_are_refused() -> None:
    train = [record("a", 0, "."), record("b", 1, None)]
    with pytest.raises(ValueError, match="empty vocabulary"):
        rank_by_text(train, [record("c", 1, "seizures")], ANSWERS, OPEN, "rare_disease")
