"""What is learned in a track, and how: the adapter, its teacher, the pairs, the training.

Each class is a part of ``common.plan.TrackPlan``, the teacher of the whole plan; what
protects patients is in ``common.privacy_plan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.adapter import AdapterMode
from common.checks import (
    require,
    require_digest,
    require_line,
    require_once,
    require_positive,
    require_whole,
    require_within,
)
from common.privacy_plan import TeacherPrivacy
from common.schedule import Schedule
from common.schema import conform

LabelPolicy = Literal["teacher", "label_first", "correct_only"]
RejectedFrom = Literal["bottom", "middle"]
RejectFrom = Literal["seen", "all"]
Loss = Literal["orpo", "dpo"]
NllOn = Literal["answer", "sequence"]
Weighting = Literal["patients", "uniform"]
LocalOptimizer = Literal["adamw", "sgd"]
OptimizerName = Literal["sgd", "adam"]
TeacherMode = Literal["public", "dp", "none"]
Side = Literal["language", "both"]


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The adapter of a track.

    Attributes:
        mode: Which block is trained in which round.
        rank: Rank of every module's adapter.
        alpha: Strength; the product of the factors is scaled by ``alpha / rank``.
        targets: Last parts of the names of the modules that are adapted.
        side: Of an image student, whether its ``language`` model alone is adapted, or its image tower too
            (``both``).
        factors_digest: `Adapter.digest()` of the adapter that the run starts from.
    """

    mode: AdapterMode = AdapterMode.ROLORA
    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    side: Side = "language"
    factors_digest: str

    def __post_init__(self) -> None:
        conform(self)
        require_whole("rank", self.rank, 1)
        require_positive("alpha", self.alpha)
        require_once("targets", self.targets)
        for target in self.targets:
            require_line("targets", target)
        require_digest("factors_digest", self.factors_digest)


@dataclass(frozen=True, kw_only=True)
class TeacherPlan:
    """How each site gets its teacher.

    Attributes:
        privacy: ``public``: it never learned from a site's patients. ``dp``: it learned from them by DP-SGD,
            and is composed with the student. ``none``: pairs carry no formal guarantee for the patients
            the teacher learned from.
        folds: Parts of the cross-fitting; no patient is ranked by a teacher that trained on him, and each
            trains all but one of them.
        modality_dropout: Probability that a present modality is hidden in a training step.
        dp: How ``dp`` trains.
    """

    privacy: TeacherMode = "none"
    folds: int = 5
    modality_dropout: float
    dp: TeacherPrivacy | None = None

    def __post_init__(self) -> None:
        conform(self)
        require_whole("folds", self.folds, 2)
        require_within("modality_dropout", self.modality_dropout, 0, 1)
        if self.privacy == "dp":
            require(self.dp is not None, "dp", "nothing", "how the teacher trains, since its privacy is dp")
        else:
            require(self.dp is None, "dp", "settings", f"nothing, since privacy is {self.privacy}")

    @property
    def runs(self) -> int:
        """How many teachers a patient trains: those of all folds but his own."""
        return self.folds - 1


@dataclass(frozen=True, kw_only=True)
class PreferencePlan:
    """How a teacher's ranking becomes preference pairs.

    Attributes:
        chosen_length: Answers in the chosen list (k).
        rejected_length: Answers in the rejected list (q).
        pairs_per_patient: Most pairs that one patient brings.
        label_policy: ``teacher``: as ranked. ``label_first``: the patient's label is put first.
            ``correct_only``: only patients whose label the teacher ranks first bring pairs.
        rejected_from: ``bottom``: the last ranks. ``middle``: the ranks ``middle``.
        reject_from: ``seen``: only answers that have training cases at this site may be rejected. ``all``.
        middle: First and last rank, the best being 1, of which ``rejected_from: middle`` takes its answers.
    """

    chosen_length: int = 10
    rejected_length: int = 10
    pairs_per_patient: int
    label_policy: LabelPolicy = "teacher"
    rejected_from: RejectedFrom = "bottom"
    reject_from: RejectFrom = "seen"
    middle: tuple[int, int] = (11, 20)

    def __post_init__(self) -> None:
        conform(self)
        for key in ("chosen_length", "rejected_length", "pairs_per_patient"):
            require_whole(key, getattr(self, key), 1)
        first, last = self.middle
        require(
            1 <= first <= last, "middle", list(self.middle), "ranks (first, last) with 1 <= first <= last"
        )
        if self.rejected_from == "middle":
            self._require_enough_ranks(first, last)

    def _require_enough_ranks(self, first: int, last: int) -> None:
        require(
            first > self.chosen_length,
            "middle",
            list(self.middle),
            f"ranks after the {self.chosen_length} chosen ones",
        )
        require(
            last - first + 1 >= self.rejected_length,
            "middle",
            list(self.middle),
            f"at least {self.rejected_length} ranks, as many as are rejected",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How long and how a student is trained.

    Attributes:
        rounds: Rounds of training; 0 only where an adapter that was trained before is calibrated.
        local_steps: Optimizer steps of a site in one round.
        patients_per_step: Patients of one step; all pairs of a patient go together.
        images_per_step: Images of one patient that an image student sees in one step, at most, drawn anew for
            each step; a patient counts as one, however many they are.
        readings: Versions of his note that a text student's patient brings, the first being the note itself;
            the others have his coded findings in another order. Each step reads one of them, drawn anew.
        dropped: Chance of a finding to be left out of a reading other than the first; at least one stays.
        with_exclusions: Share of these readings that list what was looked for and not found.
        learning_rate: Of the site's optimizer.
        local_optimizer: ``adamw``, fresh each round; or plain ``sgd``, where an adaptive server optimizer
            does the scaling (Reddi et al. 2021) and, with one local step, the federation takes the steps
            that one machine with all patients would take.
        loss: ``orpo``, which is supervised fine-tuning where ``orpo_lambda`` is 0; or ``dpo``, against the
            base without its adapter.
        dpo_beta: Of dpo, how strongly the student is held to that reference (Rafailov et al. 2023, β).
        orpo_lambda: Weight of the odds ratio against the likelihood (Hong et al. 2024, section 4.2).
        nll_on: Tokens of the likelihood: the ``answer`` alone, or the whole ``sequence`` with the prompt.
        max_prompt_tokens: A longer prompt is cut to this many tokens.
        weighting: A site counts by its ``patients``, or all sites count the same (``uniform``).
    """

    rounds: int
    local_steps: int
    patients_per_step: int
    learning_rate: float
    local_optimizer: LocalOptimizer = "adamw"
    loss: Loss = "orpo"
    dpo_beta: float = 0.1
    orpo_lambda: float = 0.1
    nll_on: NllOn = "answer"
    max_prompt_tokens: int
    images_per_step: int = 4
    readings: int = 1
    dropped: float = 0.0
    with_exclusions: float = 1.0
    weighting: Weighting = "patients"

    def __post_init__(self) -> None:
        conform(self)
        # None at all only where a track's calibration is all that is done: `TrackPlan` knows.
        require_whole("rounds", self.rounds, 0)
        for key in ("local_steps", "patients_per_step", "max_prompt_tokens", "images_per_step"):
            require_whole(key, getattr(self, key), 1)
        require_positive("learning_rate", self.learning_rate)
        require_positive("dpo_beta", self.dpo_beta)
        require(self.orpo_lambda >= 0, "orpo_lambda", self.orpo_lambda, "a number >= 0")
        self._require_of_loss()
        self._require_readings()

    def _require_of_loss(self) -> None:
        for key in ("orpo_lambda", "nll_on") if self.loss == "dpo" else ("dpo_beta",):
            default, got = getattr(type(self), key), getattr(self, key)
            require(got == default, key, got, f"{default}, since it has no effect on {self.loss}")

    def _require_readings(self) -> None:
        require_whole("readings", self.readings, 1)
        require(0 <= self.dropped < 1, "dropped", self.dropped, "a number from 0 to less than 1")
        share = self.with_exclusions
        require(0 <= share <= 1, "with_exclusions", share, "a number from 0 to 1")
        if self.readings > 1:
            return
        for key, default in (("dropped", 0), ("with_exclusions", 1)):
            got = getattr(self, key)
            require(got == default, key, got, f"{default}, since it has no effect on 1 reading")

    @property
    def entries_per_step(self) -> int:
        """How many of a patient's entries a step looks at, at most: one reading, or some of his images."""
        return 1 if self.readings > 1 else self.images_per_step


@dataclass(frozen=True, kw_only=True)
class ServerOptimizerPlan:
    """How the coordinator applies a mean delta (Reddi et al. 2021, algorithms 1 and 2).

    Attributes:
        name: ``sgd``, or ``adam``.
        learning_rate: 1 with plain sgd adds the mean delta as it is.
        schedule: How the rate goes over the run's rounds: ``constant``, or a ``cosine`` with a warm-up.
        momentum: Of sgd; 0 is plain averaging.
        beta1: Of adam, decay of the mean.
        beta2: Of adam, decay of the square.
        epsilon: Of adam, the least denominator.
    """

    name: OptimizerName = "sgd"
    learning_rate: float = 1.0
    schedule: Schedule = "constant"
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        conform(self)
        require_positive("learning_rate", self.learning_rate)
        for key in ("momentum", "beta1", "beta2"):
            require_within(key, getattr(self, key), 0, 1)
        require_positive("epsilon", self.epsilon)
        foreign = ("momentum",) if self.name == "adam" else ("beta1", "beta2", "epsilon")
        for key in foreign:
            default = getattr(type(self), key)
            require(
                getattr(self, key) == default,
                key,
                getattr(self, key),
                f"{default}, since it has no effect on {self.name}",
            )
