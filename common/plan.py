"""All that a federation run agrees on, and its digest.

A plan is a JSON file that every site's administrator can read. It is named by the SHA-256 of its
canonical form, which every task carries: a site works only for a digest that it approved. Nothing that
changes what is learned, or how well patients are protected, stands anywhere else.

Reading is strict: an unknown key, a wrong type, a value out of range or a newer schema is refused with
one line that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.calibration_plan import CalibrationPlan
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
)
from common.errors import SettingsError
from common.fixedpoint import WORD_BITS
from common.ids import SiteId, site_id
from common.learning_plan import (
    AdapterPlan,
    PreferencePlan,
    ServerOptimizerPlan,
    TeacherPlan,
    TrainingPlan,
)
from common.plan_checks import (
    SMALLEST_FEDERATION,
    require_one_share,
    require_privacy,
    require_teacher,
    require_track_sites,
)
from common.privacy.mechanism import Mechanism
from common.privacy_plan import PrivacyPlan, TrackPrivacy
from common.schema import build, conform
from common.secagg.packing import SMALLEST_BITS
from common.tracks import TRACKS, Modality, Track

PLAN_SCHEMA = 4
RUN_CONFIG_KEY = "plan"
LARGEST_FEDERATION = 256

AggregationMode = Literal["secagg-v1"]
LostBeforeUpload = Literal["recover", "abort"]


@dataclass(frozen=True, kw_only=True)
class AggregationPlan:
    """How the sites' contributions are summed.

    Attributes:
        mode: ``secagg-v1``: the coordinator sees the sum alone (``common/secagg/README.md``).
        minimum_survivors: Fewer contributions than this, and a round fails. Sites check it too, beside
            the share threshold, floor(2n/3) + 1 of a roster of n, below which no sum can be unmasked.
        lost_before_upload: What becomes of a round that loses a site before its contribution arrived:
            ``recover`` goes on without it; ``abort`` fails, to be tried again with fresh keys, as
            it must where every site of the roster adds its share of the noise. It tolerates the
            ``late_losses`` of the privacy plan.
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


@dataclass(frozen=True, kw_only=True)
class TrackPlan:
    """One track of a run.

    Attributes:
        track: Its name, a key of `TRACKS`.
        answers_digest: `AnswerList.digest()` of the answers.
        base_model_digest: SHA-256 that names the base model.
        tokenizer_digest: SHA-256 that names its tokenizer.
        adapter: What is trained.
        preferences: What is taught.
        training: How it is learned.
        server_optimizer: How it is brought together.
        privacy: How its sums are protected; None in privacy mode ``none``.
        sites: Who takes part, each once; empty for all sites of the plan.
        calibration: What comes after training; None for nothing. With it ``training.rounds`` may be 0: the
            adapter of ``factors_digest`` was trained before, and no teacher teaches.
    """

    track: str
    answers_digest: str
    base_model_digest: str
    tokenizer_digest: str
    adapter: AdapterPlan
    preferences: PreferencePlan
    training: TrainingPlan
    server_optimizer: ServerOptimizerPlan
    privacy: TrackPrivacy | None = None
    sites: tuple[SiteId, ...] = ()
    calibration: CalibrationPlan | None = None

    def __post_init__(self) -> None:
        conform(self)
        require(self.track in TRACKS, "track", repr(self.track), f"one of {', '.join(TRACKS)}")
        for key in ("answers_digest", "base_model_digest", "tokenizer_digest"):
            require_digest(key, getattr(self, key))
        readings, read = self.training.readings, self.definition.modality is Modality.TEXT
        require(readings == 1 or read, "training.readings", readings, f"1, since {self.track} has no notes")
        if self.calibration is None:
            require_whole("training.rounds", self.training.rounds, 1)

    @property
    def all_rounds(self) -> int:
        """Rounds of training and of calibration together."""
        return self.training.rounds + (self.calibration.rounds if self.calibration else 0)

    @property
    def definition(self) -> Track:
        """The track itself: modality and header."""
        return TRACKS[self.track]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that a run agrees on.

    Guarantee: a plan refuses fewer than 3 sites, and a track of fewer than 3.

    Attributes:
        schema: Version of this format.
        name: For people; one line.
        purpose: What patients must have consented to, for example ``research``.
        ethics_id: The approval's number; one line.
        expires: Last day of the plan, ``YYYY-MM-DD``.
        seed: Of everything random that is not a key, a mask or privacy noise.
        sites: Who takes part, each once.
        tracks: What is trained, each track once.
        teacher: Who teaches; one teacher a site, for all of its tracks.
        aggregation: How contributions are summed.
        privacy: What is promised to each patient.
        consortium: Who runs it together; a site's ledger names it.
    """

    schema: int = PLAN_SCHEMA
    name: str
    purpose: str
    ethics_id: str
    expires: str
    seed: int
    sites: tuple[SiteId, ...]
    tracks: tuple[TrackPlan, ...]
    teacher: TeacherPlan
    aggregation: AggregationPlan
    privacy: PrivacyPlan = field(default_factory=PrivacyPlan)
    consortium: str = "consilium"

    def __post_init__(self) -> None:
        _require_schema(self.schema, "schema")
        conform(self)
        for key in ("name", "purpose", "ethics_id", "consortium"):
            require_line(key, getattr(self, key))
        require_date("expires", self.expires)
        require(0 <= self.seed < 2**63, "seed", self.seed, "a whole number from 0 to 2**63 - 1")
        self._require_sites()
        self._require_tracks()
        require_teacher(self)
        require_one_share(self)
        for place, track in enumerate(self.tracks):
            try:
                require_privacy(self, track)
            except SettingsError as error:
                raise error.under(f"tracks[{place}]") from error

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
            SettingsError: A key is unknown or missing, a value is refused, or an older version wrote it.
            UnsupportedSchemaError: A newer version wrote it.
        """
        content = read_object(text, "plan")
        # Before its keys, some of which this version may not know, or no longer.
        _require_schema(content.get("schema"), "plan.schema")
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

    def sites_of(self, track: TrackPlan) -> tuple[SiteId, ...]:
        """Who takes part in a track."""
        return track.sites or self.sites

    def tracks_of(self, site: SiteId) -> tuple[TrackPlan, ...]:
        """The tracks that a site takes part in."""
        return tuple(track for track in self.tracks if site in self.sites_of(track))

    def least_survivors(self, roster: int, threshold: int) -> int:
        """How many must be in the sum of a roster of so many sites, with its share threshold."""
        least = max(self.aggregation.minimum_survivors, threshold)
        if self.aggregation.lost_before_upload == "recover":
            return least
        return max(least, roster - self.privacy.late_losses)

    def mechanism(self, track: TrackPlan) -> Mechanism:
        """What adds a track's noise. ValueError in mode ``none``, or where its ring could wrap.

        In mode ``local`` it is that of one site's step, else that of the sum of all sites of the track.
        """
        privacy, sites = track.privacy, len(self.sites_of(track))
        cap = self.aggregation.site_patients_cap
        if privacy is None:
            raise ValueError("Expected a track with privacy, got one in mode none")
        local = self.privacy.mode == "local"
        patients = {"local": cap, "site": sites}.get(self.privacy.mode, sites * cap)
        return Mechanism.finest(
            clip_norm=privacy.clip_norm,
            noise_multiplier=privacy.noise_multiplier,
            dimension=privacy.dimension,
            most_patients=patients,
            most_shares=1 if local else sites,
            absent=self.privacy.absent,
            least_shares=1 if local else self.aggregation.minimum_survivors,
            bits=self.aggregation.word_bits if not local else WORD_BITS,
            noise=self.privacy.noise,
        )

    def steps(self, track: TrackPlan) -> int:
        """Steps on private patients that the plan pays for in a track, failed attempts included (T)."""
        per_round = track.training.local_steps if self.privacy.mode == "local" else 1
        return (track.all_rounds + self.privacy.spare_steps) * per_round

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
        for place, track in enumerate(self.tracks):
            if track.sites:
                require_track_sites(self, track.sites, f"tracks[{place}].sites")
        idle = [site for site in self.sites if not self.tracks_of(site)]
        require(not idle, "sites", ", ".join(idle), "sites that take part in some track")


def _require_schema(got: object, key: str) -> None:
    require_schema("plan", got, PLAN_SCHEMA)
    # A plan is approved by its digest, which a migrated one would not have.
    require(got == PLAN_SCHEMA, key, got, f"{PLAN_SCHEMA}: an older plan is drawn up and approved anew")
