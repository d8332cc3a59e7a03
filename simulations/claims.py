"""What a method claims of each case: its answers' confidences beside the truth, and their class-wise error.

There are ten bins for each answer of the plan, and one patient fills few of them. So what a patient adds to
them is kept as a sparse row: drawing a thousand samples of patients then costs one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from common.calibration import BINS, CONFIDENCE_STEPS, ClassBins, ProperScores


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A method's confidences for one case.

    Attributes:
        answers: Ids of the answers that have one, best first; none where the method has no answer.
        confidence: Of each, together at most 1. Every other answer of the plan has confidence 0.
        truth: Id of the right answer.
    """

    answers: tuple[str, ...]
    confidence: tuple[float, ...]
    truth: str

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.confidence):
            raise ValueError(
                f"Expected a confidence for each of {len(self.answers)} answers, got {len(self.confidence)}"
            )

    @property
    def first(self) -> float:
        """The confidence of the first answer; 0 where there is none."""
        return self.confidence[0] if self.confidence else 0.0

    def proper(self) -> ProperScores:
        """Log loss and Brier score of the case."""
        place = self.answers.index(self.truth) if self.truth in self.answers else None
        return ProperScores.from_cases([np.array(self.confidence)], [place])


def class_bins(claims: Sequence[Claim], classes: int) -> ClassBins:
    """The bins of every class; ``classes`` is how many answers the plan has, named here or not."""
    place = _places(claims)
    if len(place) > classes:
        raise ValueError(f"Expected claims of at most {classes} answers, got {len(place)}")
    return ClassBins.from_cases(
        [[place[answer] for answer in claim.answers] for claim in claims],
        [np.array(claim.confidence) for claim in claims],
        [place[claim.truth] for claim in claims],
        classes,
    )


def class_gaps(claims_by_patient: Sequence[Sequence[Claim]]) -> sparse.csr_array:
    """What each patient adds to every bin of every class, (patients, classes named here x bins).

    It is the number of cases whose truth the class is less the sum of its confidences, in steps of
    ``1 / CONFIDENCE_STEPS``: the class-wise ECE of any patients is the mean size of their sums.
    """
    place = _places([claim for claims in claims_by_patient for claim in claims])
    rows: list[int] = []
    columns: list[int] = []
    values: list[int] = []
    for row, claims in enumerate(claims_by_patient):
        for claim in claims:
            given = dict(zip(claim.answers, claim.confidence, strict=True)) | (
                {} if claim.truth in claim.answers else {claim.truth: 0.0}
            )
            for answer, confidence in given.items():
                steps = round(confidence * CONFIDENCE_STEPS)
                rows.append(row)
                columns.append(place[answer] * BINS + min(steps * BINS // CONFIDENCE_STEPS, BINS - 1))
                values.append((CONFIDENCE_STEPS if answer == claim.truth else 0) - steps)
    shape = (len(claims_by_patient), len(place) * BINS)
    return sparse.csr_array((np.array(values, dtype=np.float64), (rows, columns)), shape=shape)


def class_eces(
    drawn: NDArray[np.float64], gaps: sparse.csr_array, cases: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    """The class-wise ECE of samples of patients, (samples,); NaN where no case claims anything.

    Args:
        drawn: How often each patient is in each sample, (samples, patients).
        gaps: Of ``class_gaps``.
        cases: How many cases of each sample claim something, (samples,).
        classes: How many answers the plan has.
    """
    error = np.abs((gaps.T @ drawn.T).T).sum(axis=1) / CONFIDENCE_STEPS
    return np.divide(error, cases * classes, out=np.full(len(cases), np.nan), where=cases * classes > 0)


def _places(claims: Sequence[Claim]) -> dict[str, int]:
    """A number for each answer that is named."""
    named = dict.fromkeys(answer for claim in claims for answer in (*claim.answers, claim.truth))
    return {answer: place for place, answer in enumerate(named)}
