"""How a student's confidence is brought to mean what it says, after its last aggregation.

A part of ``common.plan.TrackPlan``. The rounds of calibration follow those of training, on patients whom no
pair is made of; what they learn by is in ``client.student.calibrate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from common.checks import require, require_positive, require_whole
from common.schema import conform

CalibrationMethod = Literal["temperature", "label_smoothing", "cft", "rcft"]
ConfidenceScore = Literal["sum", "mean"]

EFFECTIVE: Mapping[CalibrationMethod, frozenset[str]] = {
    "temperature": frozenset(),
    "label_smoothing": frozenset({"rounds", "learning_rate", "smoothing"}),
    "cft": frozenset({"rounds", "learning_rate"}),
    "rcft": frozenset({"rounds", "learning_rate", "refresh", "weight", "candidates"}),
}
"""What each method looks at, beside ``share`` and ``score``."""


@dataclass(frozen=True, kw_only=True)
class CalibrationPlan:
    """The last stage of a track's student.

    Attributes:
        method: ``temperature``: confidences are of scores divided by one number, chosen on pooled counts.
            ``cft``: supervised fine-tuning on the right answer alone. ``label_smoothing``: the same against
            smoothed tokens, the baseline. ``rcft``: fine-tuning on prompt and right answer, with confidences
            pulled to the pooled accuracy of their bin (arXiv 2505.01997).
        share: Of a site's patients outside of its test, who are set aside for this and teach nothing else.
        rounds: Rounds after those of training; 0 for ``temperature`` alone.
        refresh: Of rcft: the pooled accuracies of the bins are taken anew before every so many rounds.
        weight: Of rcft, of the pull against the likelihood (λ).
        smoothing: Of label_smoothing, the share of a token's target that all tokens divide evenly.
        candidates: Of rcft, how many of the student's own best answers share a confidence of 1.
        score: What confidences are made of: the ``sum`` of an answer's token log-probabilities or their
            ``mean``, which also orders the answers.
        learning_rate: Of the server optimizer in these rounds, constant; its moments begin anew.
    """

    method: CalibrationMethod
    share: float
    rounds: int = 0
    refresh: int = 1
    weight: float = 1.0
    smoothing: float = 0.1
    candidates: int = 16
    score: ConfidenceScore = "sum"
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        conform(self)
        for key in ("refresh", "weight", "smoothing", "candidates", "learning_rate", "rounds"):
            default, got = getattr(type(self), key), getattr(self, key)
            foreign = key not in EFFECTIVE[self.method]
            require(
                not foreign or got == default, key, got, f"{default}, since it has no effect on {self.method}"
            )
        require(0 < self.share < 1, "share", self.share, "a number > 0 and < 1")
        if self.method != "temperature":
            require_whole("rounds", self.rounds, 1)
        require_whole("refresh", self.refresh, 1)
        require_whole("candidates", self.candidates, 2)
        for key in ("weight", "learning_rate"):
            require_positive(key, getattr(self, key))
        require(0 < self.smoothing < 1, "smoothing", self.smoothing, "a number > 0 and < 1")

    def refreshes(self, number: int) -> bool:
        """Whether the bins' accuracies are taken anew before the calibration round ``number``, from 1."""
        return self.method == "rcft" and (number - 1) % self.refresh == 0
