"""A linear model over the words of the notes: the plain reference that reads what the student reads.

TF-IDF of words and pairs of words with multinomial logistic regression, on all sites' training patients in
one place. Like the linear model over findings (``simulations.linear``) no hospital could train it; unlike
that one it sees nothing but the note.
"""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer

from client.patients.records import PatientRecord
from client.site_patients import Views
from client.teacher.rank import Ranking
from common.tracks import AnswerList
from simulations.linear import rank_linearly

LOOSENESS = 30.0
"""The best of 1, 3, 10, 30, 100 and 300 on a fifth of the real cases' training patients, never on the test:
at 1 the short rows of TF-IDF are held too tight (top-1 0.946 there, against 0.980)."""


def rank_by_text(
    train: Sequence[PatientRecord],
    cases: Sequence[PatientRecord],
    answers: AnswerList,
    views: Views,
    track: str,
) -> dict[str, Ranking]:
    """Train on the notes of ``train`` and rank all answers for each of ``cases``, by patient id.

    Guarantee: what the views hide has no influence; the same arguments give the same rankings.

    Args:
        train: With labels of ``track``.
        cases: To be ranked.
        answers: The plan's; one without a training patient gets the score of the least likely one seen.
        views: What of a patient may be read.
        track: Which label.

    Raises:
        ValueError: No note has a word, or the patients of ``train`` have one answer.
    """
    # Without the lists of what is common in English: "no" and "not" are findings here.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    learned = vectorizer.fit_transform([_note(record, views) for record in train])
    seen = vectorizer.transform([_note(record, views) for record in cases])
    return rank_linearly(learned, train, seen, cases, answers, track, looseness=LOOSENESS)


def _note(record: PatientRecord, views: Views) -> str:
    return views.view(record).note or ""
