"""A linear model over the findings behind the notes: the reference that a student has to stand beside.

Multinomial logistic regression on all sites' training patients in one place. It reads the structured
findings that the notes were written from, facial ones hidden alike, each with all of its broader terms. No
hospital could train it (it pools patients), and it cannot read a note without coded findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression

from client.patients.notes import ModelView
from client.patients.records import PatientRecord
from client.site_patients import Views
from client.teacher.rank import Ranking
from common.tracks import AnswerList

MOST_ITERATIONS = 100


def rank_by_findings(
    train: Sequence[PatientRecord],
    cases: Sequence[PatientRecord],
    answers: AnswerList,
    views: Views,
    parents: Mapping[str, tuple[str, ...]],
    track: str,
    *,
    exclusions: bool,
) -> dict[str, Ranking]:
    """Train on ``train`` and rank all answers for each of ``cases``, by patient id.

    Guarantee: a finding that the views hide has no influence; the same arguments give the same rankings.

    Args:
        train: With labels of ``track``.
        cases: To be ranked.
        answers: The plan's; one without a training patient gets the score of the least likely one seen.
        views: What of a patient may be seen.
        parents: Broader terms by finding id; a finding without an entry stands alone.
        track: Which label.
        exclusions: Whether findings that were looked for and not found are read too.
    """
    vectorizer = DictVectorizer(dtype=np.float64)
    learned = vectorizer.fit_transform(
        [features(views.view(record), parents, exclusions=exclusions) for record in train]
    )
    seen = vectorizer.transform(
        [features(views.view(record), parents, exclusions=exclusions) for record in cases]
    )
    return rank_linearly(learned, train, seen, cases, answers, track)


def rank_linearly(
    learned: Any,
    train: Sequence[PatientRecord],
    seen: Any,
    cases: Sequence[PatientRecord],
    answers: AnswerList,
    track: str,
    *,
    looseness: float = 1.0,
) -> dict[str, Ranking]:
    """All answers for each of ``cases`` by multinomial logistic regression, by patient id.

    Args:
        learned: Sparse (training patients, features).
        train: Whose labels of ``track`` are learned.
        seen: Sparse (cases, features).
        cases: To be ranked.
        answers: The plan's; one without a training patient gets the score of the least likely one seen.
        track: Which label.
        looseness: Inverse of the weight of the L2 penalty.
    """
    labels = [answers.index_of(record.label[track]) for record in train]
    model = LogisticRegression(C=looseness, max_iter=MOST_ITERATIONS, tol=1e-3).fit(learned, labels)
    known = model.predict_log_proba(seen)
    scores = np.repeat(known.min(axis=1, keepdims=True), len(answers), axis=1).astype(np.float32)
    scores[:, model.classes_] = known
    orders = np.argsort(-scores, axis=1, kind="stable")
    return {
        record.patient_id: Ranking(
            patient_id=record.patient_id,
            answer_ids=tuple(answers.ids[index] for index in order),
            scores=row[order],
        )
        for record, row, order in zip(cases, scores, orders, strict=True)
    }


def features(
    view: ModelView, parents: Mapping[str, tuple[str, ...]], *, exclusions: bool
) -> dict[str, float]:
    """What the model reads of a patient: observed findings, their broader terms, sex, exclusions if wanted.

    An excluded finding speaks for itself alone: that a narrow sign is absent says nothing about broader ones.
    """
    found: dict[str, float] = {f"sex={view.sex}": 1.0}
    open_terms = [finding.id for finding in view.observed]
    while open_terms:
        term = open_terms.pop()
        if term not in found:
            found[term] = 1.0
            open_terms.extend(parents.get(term, ()))
    if exclusions:
        found |= {f"not {finding.id}": 1.0 for finding in view.excluded}
    return found
