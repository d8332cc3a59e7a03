"""All that a federation run agrees on, and its digest.

A plan is a JSON file that every site's administrator can read. It is named by the SHA-256 of its
canonical form, which every task carries: a site works only for a digest that it approved. Nothing that
changes what is learned, or how well patients are protected, stands anywhere else.

Reading is strict: an unknown key, a wrong type, a value out of range or a newer schema is refused with
one line that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from common.adapter import AdapterMode
from common.canonical import canonical_json, json_digest, read_object
from common.checks import (
    require,
    require_date,
    require_digest,
    require_line,
    require_once,
    require_positive,
    require_schema,
    require_whole,
    require_within,
)
from common.errors import SettingsError
from common.fixedpoint import WORD_BITS
from common.ids import SiteId, site_id
from common.schedule import Schedule
from common.schema import build, conform
from common.secagg.packing import SMALLEST_BITS
from common.tracks import TRACKS, Track

PLAN_SCHEMA = 1
RUN_CONFIG_KEY = "plan"
SMALLEST_FEDERATION = 3
LARGEST_FEDERATION = 256

LabelPolicy = Literal["teacher", "label_first", "correct_only"]
RejectedFrom = Literal["bottom", "middle"]
RejectFrom = Literal["seen", "all"]
NllOn = Literal["answer", "sequence"]
Weighting = Literal["patients", "uniform"]
LocalOptimizer = Literal["adamw", "sgd"]
OptimizerName = Literal["sgd", "adam"]
AggregationMode = Literal["secagg-v1"]
LostBeforeUpload = Literal["recover", "abort"]


@dataclass(frozen=True, kw_only=True)
class AdapterPlan:
    """The adapter of a track.

    Attributes:
        mode: Which block is trained in which round.
        rank: Rank of every module's adapter.
        alpha: Strength; the product of the factors is scaled by ``alpha / rank``.
        targets: Last parts of the names of the modules that are adapted.
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
    """How each site trains its teacher.

    Attributes:
        privacy: ``none``: pairs carry no formal guarantee for the patients the teacher learned from.
        folds: Parts of the cross-fitting; no patient is ranked by a teacher that trained on him.
        modality_dropout: Probability that a present modality is hidden in a training step.
    """

    privacy: str = "none"
    folds: int = 5
    modality_dropout: float

    def __post_init__(self) -> None:
        conform(self)
        _require_no_privacy("privacy", self.privacy)
        require_whole("folds", self.folds, 2)
        require_within("modality_dropout", self.modality_dropout, 0, 1)


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
        rounds: Rounds of the run.
        local_steps: Optimizer steps of a site in one round.
        patients_per_step: Patients of one step; all pairs of a patient go together.
        learning_rate: Of the site's optimizer.
        local_optimizer: ``adamw``, fresh each round; or plain ``sgd``, where an adaptive server optimizer
            does the scaling (Reddi et al. 2021) and, with one local step, the federation takes the steps
            that one machine with all patients would take.
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
    orpo_lambda: float = 0.1
    nll_on: NllOn = "answer"
    max_prompt_tokens: int
    weighting: Weighting = "patients"

    def __post_init__(self) -> None:
        conform(self)
        for key in ("rounds", "local_steps", "patients_per_step", "max_prompt_tokens"):
            require_whole(key, getattr(self, key), 1)
        require_positive("learning_rate", self.learning_rate)
        require(self.orpo_lambda >= 0, "orpo_lambda", self.orpo_lambda, "a number >= 0")


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


@dataclass(frozen=True, kw_only=True)
class AggregationPlan:
    """How the sites' contributions are summed.

    Attributes:
        mode: ``secagg-v1``: the coordinator sees the sum alone (``common/secagg/README.md``).
        minimum_survivors: Fewer contributions than this, and a round fails. Sites check it too, beside
            the share threshold, floor(2n/3) + 1 of a roster of n, below which no sum can be unmasked.
        lost_before_upload: What becomes of a round that loses a site before its contribution arrived:
            ``recover`` goes on without it; ``abort`` fails, to be tried again with fresh keys, as
            it must where every site of the roster adds its share of the noise.
        word_bits: Bits of a word on its way, 16 to 32: fewer are a smaller upload and a coarser sum.
        max_abs_delta: Largest coordinate of weight times delta that is encoded; at least 1, as a site's
            weight, at most 1, goes through the same fixed point and must not be clipped.
        site_patients_cap: A site's weight is its patients divided by this public constant.
        timeout_s: Seconds that each exchange of a round waits for its sites.
    """

    mode: AggregationMode = "secagg-v1"
    minimum_survivors: int
    lost_before_upload: LostBeforeUpload = "recover"
    word_bits: int = WORD_BITS
    max_abs_delta: float = 1.0
    site_patients_cap: int
    timeout_s: float

    def __post_init__(self) -> None:
        conform(self)
        # A sum of one contribution would be that site's own delta.
        require_whole("minimum_survivors", self.minimum_survivors, 2)
        require(self.max_abs_delta >= 1, "max_abs_delta", self.max_abs_delta, "a number >= 1")
        require_whole("site_patients_cap", self.site_patients_cap, 1)
        require_positive("timeout_s", self.timeout_s)
        bits = f"a whole number from {SMALLEST_BITS} to {WORD_BITS}"
        require(SMALLEST_BITS <= self.word_bits <= WORD_BITS, "word_bits", self.word_bits, bits)

    def least_survivors(self, roster: int, threshold: int) -> int:
        """How many must be in the sum of a roster of so many sites, with its share threshold."""
        least = max(self.minimum_survivors, threshold)
        return max(least, roster) if self.lost_before_upload == "abort" else least


@dataclass(frozen=True, kw_only=True)
class TrackPlan:
    """One track of a run.

    Attributes:
        track: Its name, a key of `TRACKS`.
        answers_digest: `AnswerList.digest()` of the answers.
        base_model_digest: SHA-256 that names the base model.
        tokenizer_digest: SHA-256 that names its tokenizer.
        adapter: What is trained.
        teacher: Who teaches.
        preferences: What is taught.
        training: How it is learned.
        server_optimizer: How it is brought together.
    """

    track: str
    answers_digest: str
    base_model_digest: str
    tokenizer_digest: str
    adapter: AdapterPlan
    teacher: TeacherPlan
    preferences: PreferencePlan
    training: TrainingPlan
    server_optimizer: ServerOptimizerPlan

    def __post_init__(self) -> None:
        conform(self)
        require(self.track in TRACKS, "track", repr(self.track), f"one of {', '.join(TRACKS)}")
        for key in ("answers_digest", "base_model_digest", "tokenizer_digest"):
            require_digest(key, getattr(self, key))

    @property
    def definition(self) -> Track:
        """The track itself: modality and header."""
        return TRACKS[self.track]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that a run agrees on.

    Guarantee: a plan refuses fewer than 3 sites.

    Attributes:
        schema: Version of this format.
        name: For people; one line.
        purpose: What patients must have consented to, for example ``research``.
        ethics_id: The approval's number; one line.
        expires: Last day of the plan, ``YYYY-MM-DD``.
        seed: Of everything random that is not a key, a mask or privacy noise.
        sites: Who takes part, each once.
        tracks: What is trained, each track once.
        aggregation: How contributions are summed.
        privacy: ``none``: the released students carry no formal guarantee.
    """

    schema: int = PLAN_SCHEMA
    name: str
    purpose: str
    ethics_id: str
    expires: str
    seed: int
    sites: tuple[SiteId, ...]
    tracks: tuple[TrackPlan, ...]
    aggregation: AggregationPlan
    privacy: str = "none"

    def __post_init__(self) -> None:
        require_schema("plan", self.schema, PLAN_SCHEMA)
        conform(self)
        for key in ("name", "purpose", "ethics_id"):
            require_line(key, getattr(self, key))
        require_date("expires", self.expires)
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        self._require_sites()
        self._require_tracks()
        _require_no_privacy("privacy", self.privacy)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits: the plan's name."""
        return json_digest(self)

    def to_json(self) -> str:
        """The plan as canonical JSON."""
        return canonical_json(self)

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """The plan back from its JSON.

        Raises:
            SettingsError: A key is unknown or missing, or a value is refused.
            UnsupportedSchemaError: A newer version wrote it.
        """
        content = read_object(text, "plan")
        require_schema("plan", content.get("schema"), PLAN_SCHEMA)
        return build(cls, content, "plan")

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> RunPlan:
        """The plan of a Flower run, whose configuration holds its JSON under the key ``plan``."""
        text = run_config.get(RUN_CONFIG_KEY)
        if not isinstance(text, str):
            raise SettingsError(f"run config.{RUN_CONFIG_KEY}", "no text", "a plan's JSON")
        return cls.from_json(text)

    def track(self, name: str) -> TrackPlan:
        """The plan of one track; ValueError if the run has no such track."""
        for track in self.tracks:
            if track.track == name:
                return track
        names = ", ".join(track.track for track in self.tracks)
        raise ValueError(f"Expected a track of the plan ({names}), got {name!r}")

    def _require_sites(self) -> None:
        for site in self.sites:
            try:
                site_id(site)
            except ValueError as error:
                raise SettingsError("sites", repr(site), "lower-case letters, digits and hyphens") from error
        require_once("sites", self.sites)
        require(
            len(self.sites) >= SMALLEST_FEDERATION,
            "sites",
            f"{len(self.sites)} sites",
            "at least 3: a plan refuses fewer than 3 sites",
        )
        require(
            len(self.sites) <= LARGEST_FEDERATION,
            "sites",
            f"{len(self.sites)} sites",
            f"at most {LARGEST_FEDERATION}: every site holds a share of every other's secrets",
        )
        least = self.aggregation.minimum_survivors
        require(
            least <= len(self.sites),
            "aggregation.minimum_survivors",
            least,
            f"at most {len(self.sites)} sites",
        )

    def _require_tracks(self) -> None:
        require_once("tracks", [track.track for track in self.tracks])


def _require_no_privacy(key: str, got: str) -> None:
    require(got == "none", key, repr(got), "'none'; 'public' and 'dp' come with patient-level privacy")
