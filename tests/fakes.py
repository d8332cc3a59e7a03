"""A tiny plan, a tiny adapter and sites that answer by arithmetic instead of training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from client.budget import SiteBudget
from client.session import SiteSession, Work
from client.session_store import MemoryStore, SessionStore
from common.adapter import Adapter, AdapterMode, AdapterSpec, ModuleShape, initial_adapter
from common.calibration_plan import CalibrationPlan
from common.evaluation_counts import EvaluationCounts
from common.fixedpoint import Words, encode_counts
from common.ids import RoundId, RunId, SiteId, site_id
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.messages import SumTask, TrainTask
from common.metrics import MetricCounts
from common.pki import Identity
from common.plan import AggregationPlan, RunPlan, TrackPlan
from common.privacy.budget import Cap
from common.privacy.ledger import Ledger
from common.privacy_plan import PrivacyPlan, TrackPrivacy
from common.train_words import TrainWords, train_fixed_point
from server.rounds import TrackState

TRACK = "rare_disease"
RUN = RunId("run-1")
SITES = tuple(site_id(name) for name in ("site-a", "site-b", "site-c", "site-d"))
COORDINATOR = Identity(site_id=site_id("coordinator"), private_key=hashlib.sha256(b"coordinator").digest())
CAP = 100
COUNTS = MetricCounts(n=10, top1=2, top5=4, top10=5)


def evaluation_of(counts: MetricCounts, temperature: float = 1.0) -> EvaluationCounts:
    """What a site answers that counted ``counts``; its cases differ in how sure the student was."""
    kept = [0] * counts.top1 + [1] * (counts.top10 - counts.top1)
    places = [*kept, *[None] * (counts.n - counts.top10)]
    scores = [np.array([0.0, -0.1 * case, -2.0]) for case in range(counts.n)]
    scores = [np.sort(one)[::-1] for one in scores]
    return EvaluationCounts.from_cases(counts, scores, places, temperature)


def tiny_adapter(mode: AdapterMode = AdapterMode.ROLORA, seed: int = 0) -> Adapter:
    modules = (
        ModuleShape(name="layers.0.q_proj", in_features=5, out_features=3),
        ModuleShape(name="layers.0.v_proj", in_features=5, out_features=4),
    )
    return initial_adapter(AdapterSpec(mode=mode, rank=2, alpha=4.0, modules=modules), seed)


def tiny_plan(
    adapter: Adapter | None = None,
    *,
    rounds: int = 4,
    sites: tuple[SiteId, ...] = SITES,
    optimizer: Mapping[str, Any] | None = None,
    tracks: tuple[str, ...] = (TRACK,),
    calibration: CalibrationPlan | None = None,
    **aggregation: Any,
) -> RunPlan:
    adapter = tiny_adapter() if adapter is None else adapter
    spec = adapter.spec
    track_plans = tuple(
        TrackPlan(
            track=track,
            answers_digest="0" * 64,
            base_model_digest="1" * 64,
            tokenizer_digest="2" * 64,
            adapter=AdapterPlan(
                mode=spec.mode,
                rank=spec.rank,
                alpha=spec.alpha,
                targets=("q_proj", "v_proj"),
                factors_digest=adapter.digest(),
            ),
            preferences=PreferencePlan(pairs_per_patient=1),
            training=TrainingPlan(
                rounds=rounds, local_steps=1, patients_per_step=1, learning_rate=1e-3, max_prompt_tokens=64
            ),
            server_optimizer=ServerOptimizerPlan(**(optimizer or {})),
            calibration=calibration,
        )
        for track in tracks
    )
    return RunPlan(
        name="a tiny plan",
        purpose="research",
        ethics_id="none needed",
        expires="2030-01-01",
        seed=0,
        sites=sites,
        tracks=track_plans,
        teacher=TeacherPlan(modality_dropout=0.1),
        aggregation=AggregationPlan(
            **{"minimum_survivors": 3, "site_patients_cap": CAP, "timeout_s": 5.0, **aggregation}
        ),
    )


PUBLIC_TEACHER = TeacherPlan(privacy="public", modality_dropout=0.1)
PRIVACY = PrivacyPlan(mode="distributed", epsilon=3.0, delta=1e-5)
TRACK_PRIVACY = TrackPrivacy(
    clip_norm=0.5, noise_multiplier=2.0, sampling_rate=0.1, population=40, dimension=20
)


def private_plan(
    adapter: Adapter | None = None, *, track: Mapping[str, Any] | None = None, **plan: Any
) -> RunPlan:
    """A tiny plan in privacy mode ``distributed``; ``track`` changes its track, ``plan`` the rest."""
    made = tiny_plan(adapter, lost_before_upload="abort")
    (first,) = made.tracks
    parts: dict[str, Any] = {
        "preferences": replace(first.preferences, reject_from="all"),
        "training": replace(first.training, learning_rate=1.0, local_optimizer="sgd", weighting="uniform"),
        "server_optimizer": ServerOptimizerPlan(),
        "privacy": TRACK_PRIVACY,
        **(track or {}),
    }
    whole = {"tracks": (replace(first, **parts),), "teacher": PUBLIC_TEACHER, "privacy": PRIVACY, **plan}
    return replace(made, **whole)


def tiny_state(adapter: Adapter | None = None, **plan: Any) -> TrackState:
    adapter = tiny_adapter() if adapter is None else adapter
    made = tiny_plan(adapter, **plan)
    public = {site: identity.public() for site, identity in fake_identities(made).items()}
    return TrackState(plan=made, run_id=RUN, track=TRACK, adapter=adapter, identities=public)


def private_state(plan: RunPlan, adapter: Adapter | None = None) -> TrackState:
    """The state before the first round of a plan that spends a privacy budget."""
    public = {site: identity.public() for site, identity in fake_identities(plan).items()}
    return TrackState(
        plan=plan,
        run_id=RUN,
        track=TRACK,
        adapter=tiny_adapter() if adapter is None else adapter,
        identities=public,
        signer=COORDINATOR,
    )


def fake_identities(plan: RunPlan) -> dict[SiteId, Identity]:
    """The same for every plan with these sites: a key that is made of the name."""
    return {
        site: Identity(site_id=site, private_key=hashlib.sha256(site.encode()).digest())
        for site in plan.sites
    }


def pulled(task: TrainTask) -> float:
    """Something that hangs on the bins that a task names."""
    return 1 + sum(rate for rate in task.bin_accuracy or () if rate is not None)


@dataclass(frozen=True, kw_only=True)
class FakeWork:
    """Does every task; its delta depends on site, round, block and bins only."""

    site: SiteId
    plan: RunPlan
    patients: int = 10
    counts: MetricCounts = COUNTS

    def prepare(self) -> None:
        """Be ready."""

    def words(self, task: SumTask) -> Words:
        return (
            self.train_words(task).join()
            if isinstance(task, TrainTask)
            else evaluation_of(self.counts, task.temperature).to_words()
        )

    def delta(self, round_id: RoundId, size: int) -> np.ndarray:
        seed = [self.plan.sites.index(self.site), round_id]
        return np.random.default_rng(seed).normal(scale=0.05, size=size)

    def train_words(self, task: TrainTask) -> TrainWords:
        fixed_point = train_fixed_point(self.plan)
        size = task.adapter.spec.size(task.adapter.spec.active_block(task.round_id))
        weight = self.patients / CAP
        return TrainWords(
            delta=fixed_point.encode(weight * self.delta(task.round_id, size) * pulled(task)),
            weight=fixed_point.encode(np.array([weight])),
            counts=encode_counts([self.patients, 2 * self.patients, 1, 0]),
        )


@dataclass(frozen=True, kw_only=True)
class FakePrivateWork:
    """Does every task of a plan with privacy: a vector of its own, with real noise."""

    site: SiteId
    plan: RunPlan
    counts: MetricCounts = COUNTS

    def prepare(self) -> None:
        """Be ready."""

    def words(self, task: SumTask) -> Words:
        if not isinstance(task, TrainTask):
            return evaluation_of(self.counts, task.temperature).to_words()
        mechanism, local = self.plan.mechanism(self.plan.track(task.track)), self.plan.privacy.mode == "local"
        vector = self.vector(
            task.round_id, task.adapter.spec.size(task.adapter.spec.active_block(task.round_id))
        )
        enough = 1 if local else len(task.members) - self.plan.privacy.absent
        words = mechanism.noised(vector, enough=enough)
        return train_fixed_point(self.plan).encode(mechanism.decode(words)) if local else words

    def vector(self, round_id: RoundId, size: int) -> np.ndarray:
        """What it sends before the noise: a sum of some patients' clipped descents, L2 at most 1/4."""
        vector = np.random.default_rng([self.plan.sites.index(self.site), round_id]).normal(size=size)
        return vector / (4 * np.linalg.norm(vector))


def private_works(plan: RunPlan) -> dict[SiteId, FakePrivateWork]:
    """One for each site of a plan with privacy."""
    return {site: FakePrivateWork(site=site, plan=plan) for site in plan.sites}


def fake_budgets(plan: RunPlan, folder: Path, *, cap: Cap | None = None) -> dict[SiteId, SiteBudget]:
    """Access of each site to its ledger in ``folder``, made if there is none."""
    return {site: fake_budget(plan, folder / f"{site}.db", site, cap=cap) for site in plan.sites}


def fake_budget(plan: RunPlan, path: Path, site: SiteId, *, cap: Cap | None = None) -> SiteBudget:
    """Access to the ledger at ``path``, as a site has it when it starts."""
    cohort = f"patients of {site}"
    path.parent.mkdir(exist_ok=True)
    ledger = Ledger.open(path, cohort) if path.exists() else Ledger.create(path, cohort)
    return SiteBudget(plan, ledger, site=site, cap=cap, coordinator=COORDINATOR.public())


def fake_works(plan: RunPlan) -> dict[SiteId, FakeWork]:
    """One for each site of the plan, with 10, 20, 30 ... patients."""
    return {site: FakeWork(site=site, plan=plan, patients=10 * n) for n, site in enumerate(plan.sites, 1)}


def fake_sites(
    plan: RunPlan,
    works: Mapping[SiteId, Work] | None = None,
    stores: Mapping[SiteId, SessionStore] | None = None,
    *,
    track: str = TRACK,
    budgets: Mapping[SiteId, SiteBudget] | None = None,
) -> dict[SiteId, SiteSession]:
    """The real session of every site over its fake work."""
    identities = fake_identities(plan)
    public = {site: identity.public() for site, identity in identities.items()}
    return {
        site: SiteSession(
            plan=plan,
            track=track,
            identity=identities[site],
            approved=public,
            store=stores[site] if stores else MemoryStore(),
            work=work,
            budget=(budgets or {}).get(site),
        )
        for site, work in (works or fake_works(plan)).items()
    }
