"""What a site answers to an evaluation: one vector of whole numbers that adds up over sites.

It holds how often the student was right, how sure it was, and how well each temperature would have done. The
bins of the classes are not in it: they tell how often each answer is the truth at a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from common import metrics
from common.calibration import (
    BINS,
    TEMPERATURES,
    ProperScores,
    ReliabilityBins,
    Scores,
    TemperatureSums,
    confidence_of,
)
from common.fixedpoint import Words, decode_counts, encode_counts
from common.metrics import MetricCounts

_BIN_WORDS = 3 * BINS
_SCORE_WORDS = 4 + len(TEMPERATURES)
WORD_COUNT = metrics.WORD_COUNT + _BIN_WORDS + _SCORE_WORDS


@dataclass(frozen=True, kw_only=True)
class EvaluationCounts:
    """Counts over cases; all of them add up, up to 65,535 cases in all.

    Guarantee: whatever is computed from added counts is what all their cases counted together would give.

    Attributes:
        metrics: Right and wrong answers.
        bins: Of the first answer's confidence, at the temperature the cases were read at.
        proper: Log loss and Brier score of all the answers of a case, at the same temperature.
        temperatures: What each temperature would give, from the scores as the student gave them: whatever
            temperature the cases were read at, this is the same.
    """

    metrics: MetricCounts = field(default_factory=MetricCounts)
    bins: ReliabilityBins = field(default_factory=ReliabilityBins)
    proper: ProperScores = field(default_factory=ProperScores)
    temperatures: TemperatureSums = field(default_factory=TemperatureSums)

    def __post_init__(self) -> None:
        n = self.metrics.n
        for name, counted in (
            ("bins", sum(self.bins.n)),
            ("proper", self.proper.n),
            ("temperatures", self.temperatures.n),
        ):
            if counted != n:
                raise ValueError(f"Expected {n} cases in {name}, got {counted}")
        if sum(self.bins.correct) != self.metrics.top1:
            raise ValueError(f"Expected {self.metrics.top1} right in bins, got {sum(self.bins.correct)}")

    @classmethod
    def from_cases(
        cls,
        counts: MetricCounts,
        scores: Sequence[Scores],
        places: Sequence[int | None],
        temperature: float = 1.0,
    ) -> EvaluationCounts:
        """The counts of cases.

        Args:
            counts: Their right and wrong answers, pooled.
            scores: Of each case, the summed log-probability of every answer it kept, best first; empty
                where it has no answer, which is wrong with confidence 0.
            places: Of each case, where among these the truth is; None where it is none of them.
            temperature: What the scores are divided by before they become confidences.
        """
        confidence = [confidence_of(own, temperature) for own in scores]
        first = np.array([own[0] if len(own) else 0.0 for own in confidence], dtype=np.float64)
        correct = np.array([place == 0 for place in places], dtype=np.bool_)
        return cls(
            metrics=counts,
            bins=ReliabilityBins.from_cases(first, correct),
            proper=ProperScores.from_cases(confidence, places),
            temperatures=TemperatureSums.from_cases(scores, correct),
        )

    def __add__(self, other: EvaluationCounts) -> EvaluationCounts:
        """The counts of both together."""
        return EvaluationCounts(
            metrics=self.metrics + other.metrics,
            bins=self.bins + other.bins,
            proper=self.proper + other.proper,
            temperatures=self.temperatures + other.temperatures,
        )

    def to_words(self) -> Words:
        """The counts as uint32 words of ``WORD_COUNT``: metrics, bins, proper scores, temperatures."""
        proper, temperatures = self.proper, self.temperatures
        rest = [proper.n, proper.nll_steps, proper.brier_steps, temperatures.n, *temperatures.nll_steps]
        return np.concatenate([self.metrics.to_words(), self.bins.to_words(), encode_counts(rest)])

    @classmethod
    def from_words(cls, words: Words) -> EvaluationCounts:
        """The counts of words, or of their sum. ValueError where they cannot be counts of cases."""
        if words.shape != (WORD_COUNT,):
            raise ValueError(f"Expected {WORD_COUNT} words of counts, got {words.shape}")
        start, end = metrics.WORD_COUNT, metrics.WORD_COUNT + _BIN_WORDS
        n, nll, brier, tempered, *losses = decode_counts(words[end:])
        return cls(
            metrics=MetricCounts.from_words(words[:start]),
            bins=ReliabilityBins.from_words(words[start:end]),
            proper=ProperScores(n=n, nll_steps=nll, brier_steps=brier),
            temperatures=TemperatureSums(n=tempered, nll_steps=tuple(losses)),
        )
