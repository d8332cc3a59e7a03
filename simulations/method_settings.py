"""Which methods a simulation compares, and how those are set that no plan describes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from common.calibration_plan import CalibrationMethod
from common.checks import require_positive, require_whole

MAIN = "federated_orpo"
"""The method that a run is about."""
POOLED_TEMPERATURE = "pooled_temperature"
CALIBRATIONS = (POOLED_TEMPERATURE, *get_args(CalibrationMethod))
"""How the finished federated student may be calibrated; the methods are ``federated_orpo_<calibration>``.

``pooled_temperature`` is what a machine with all patients would fit: the reference of the federated one."""
RETRIEVALS = ("base", "cot", "rag", "rag_cot", "cot_rag", "router")
"""How the finished federated student may be asked with documents; the methods are ``rag_<retrieval>``."""
METHODS = ("base", "teacher", "linear_model", "linear_model_with_exclusions", "text_linear", "search",
           "local_orpo", "pooled_orpo", "federated_orpo", "local_sft", "pooled_sft", "federated_sft",
           "local_dpo", "federated_dpo",
           *(f"federated_orpo_{name}" for name in CALIBRATIONS),
           *(f"rag_{name}" for name in RETRIEVALS))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AloneSettings:
    """How the students without a federation are trained; data, steps and loss are the plan's.

    Attributes:
        learning_rate: Of AdamW over both blocks, with a cosine schedule.
    """

    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How students are judged.

    Attributes:
        top: Answers of a list.
        free_cases: Cases that are also decoded freely, for the invalid-answer rate.
        max_answer_tokens: Longest free answer.
        teacher_top: Length of the teacher's top and bottom lists for coverage and avoidance.
    """

    top: int
    free_cases: int
    max_answer_tokens: int
    teacher_top: int


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How a finished student is calibrated; as in ``CalibrationPlan``, for all of ``CALIBRATIONS``.

    The patients are those that the data set aside (``data.calibration_share``); a confidence is made of
    summed log-probabilities, as those of the students that are compared with.
    """

    rounds: int
    refresh: int
    weight: float
    smoothing: float
    candidates: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """How the methods with documents are run.

    Attributes:
        cases: Cases of the union test that they answer, evenly spread over it; none of these methods is fast.
        documents: That a prompt gets.
        longest_step: Tokens of an answer to one of the five questions, at most.
        longest_answer: Tokens of the final list, at most.
        constrained: Whether the final list holds the plan's answers alone, or whatever is written freely.
    """

    cases: int = 100
    documents: int = 1
    longest_step: int = 48
    longest_answer: int = 96
    constrained: bool = True

    def __post_init__(self) -> None:
        for key in ("cases", "documents", "longest_step", "longest_answer"):
            require_whole(key, getattr(self, key), 1)


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A promise to train another student under, everything else being as in the run's own plan.

    Attributes:
        mode: Who draws the noise; as in ``PrivacyPlan``.
        epsilon: Of teacher and student together; the teacher's part is the same share of it as in the run's
            own plan.
    """

    mode: Literal["distributed", "local"]
    epsilon: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)

    @property
    def name(self) -> str:
        """As methods and folders are named, for example ``distributed_eps_8``."""
        return f"{self.mode}_eps_{self.epsilon:g}".replace(".", "-").replace("+", "")
