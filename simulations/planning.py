"""What the sites of a simulation agree on: frozen models, and the plan that names them by digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from client.student.model import Student, adapter_spec, digest_base, load_base, make_student
from client.teacher.sight import Memory
from common.adapter import Adapter, initial_adapter
from common.ids import SiteId
from common.learning_plan import AdapterPlan
from common.plan import RunPlan, TrackPlan
from common.tracks import Track
from simulations.populations import Population, Populations
from simulations.privacy import calibrated, planned_privacy, planned_teacher, planned_track
from simulations.settings import PlanSettings


@dataclass(frozen=True, kw_only=True)
class Models:
    """What the sites of a simulation share because it is frozen, for one track.

    Attributes:
        base: Folder of the student's base.
        student: The base with LoRA layers; whoever uses it loads an adapter first.
        memory: The teachers' eyes, which look at each patient once; the same for all tracks.
        initial: The adapter that every training starts from.
    """

    base: Path
    student: Student
    memory: Memory
    initial: Adapter


AllModels = Mapping[str, Models]
"""By track."""


def load_models(track: Track, base: Path, memory: Memory, settings: PlanSettings, seed: int) -> Models:
    """Load a track's base once for all sites."""
    model, reader = load_base(str(base), modality=track.modality)
    planned = AdapterPlan(**vars(settings.adapter), factors_digest="0" * 64)
    spec = adapter_spec(model, planned)
    return Models(
        base=base,
        student=make_student(model, reader, spec),
        memory=memory,
        initial=initial_adapter(spec, seed),
    )


def make_plan(
    name: str,
    settings: Mapping[str, PlanSettings],
    populations: Populations,
    models: AllModels,
    seed: int,
) -> RunPlan:
    """The plan that all sites agree on, everything in it named by digest.

    What the tracks have in common is taken from the first track's settings.
    """
    common = settings[next(iter(populations))]
    sites = tuple(sorted({site for population in populations.values() for site in population.sites}))
    tracks = tuple(
        _plan_track(settings[track], population, models[track], sites)
        for track, population in populations.items()
    )
    plan = RunPlan(
        name=name,
        purpose=common.purpose,
        ethics_id=common.ethics_id,
        expires=common.expires,
        seed=seed,
        sites=sites,
        tracks=tracks,
        teacher=planned_teacher(common),
        aggregation=common.aggregation,
        privacy=planned_privacy(common),
    )
    return calibrated(plan, common.privacy.epsilon)


def _plan_track(
    settings: PlanSettings, population: Population, models: Models, sites: tuple[SiteId, ...]
) -> TrackPlan:
    base_digest, tokenizer_digest = digest_base(models.base)
    # About as many as there are: a federation would name a round number here.
    patients = sum(len(site.train) for site in population.sites.values())
    own = tuple(sorted(population.sites))
    return TrackPlan(
        track=population.track.name,
        answers_digest=population.answers.digest(),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        adapter=AdapterPlan(**vars(settings.adapter), factors_digest=models.initial.digest()),
        preferences=settings.preferences,
        training=settings.training,
        server_optimizer=settings.server_optimizer,
        privacy=planned_track(settings, sites=len(own), patients=patients, spec=models.initial.spec),
        sites=() if own == sites else own,
    )


def imitation_plan(plan: RunPlan) -> RunPlan:
    """The same plan for supervised fine-tuning on labels: one name, the label, and no odds ratio."""
    return replace(plan, name=f"{plan.name} sft", tracks=tuple(_imitating(track) for track in plan.tracks))


def halved(plan: RunPlan, *, first: bool) -> RunPlan:
    """The plan with the first half of its rounds, or with the other ones; each has at least one."""
    return replace(plan, tracks=tuple(_half(track, first) for track in plan.tracks))


def _half(track: TrackPlan, first: bool) -> TrackPlan:
    rounds = track.training.rounds
    part = max(1, rounds // 2) if first else max(1, rounds - rounds // 2)
    return replace(track, training=replace(track.training, rounds=part))


def dpo_plan(plan: RunPlan) -> RunPlan:
    """The second half of the same plan with DPO's loss on the same pairs."""
    half = halved(plan, first=False)
    weight = type(plan.tracks[0].training).orpo_lambda
    tracks = tuple(
        replace(track, training=replace(track.training, loss="dpo", orpo_lambda=weight))
        for track in half.tracks
    )
    return replace(half, name=f"{plan.name} dpo", tracks=tracks)


def starting_from(plan: RunPlan, adapters: Mapping[str, Adapter]) -> RunPlan:
    """The plan with these adapters, by track, to begin with."""
    tracks = tuple(
        replace(track, adapter=replace(track.adapter, factors_digest=adapters[track.track].digest()))
        for track in plan.tracks
    )
    return replace(plan, tracks=tracks)


def _imitating(track: TrackPlan) -> TrackPlan:
    preferences = replace(track.preferences, label_policy="label_first", chosen_length=1)
    return replace(track, preferences=preferences, training=replace(track.training, orpo_lambda=0.0))
