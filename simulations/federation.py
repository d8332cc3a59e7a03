"""The federation of a simulation: its plan, its workers, and a run over either link."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from client.app import app as client_app
from client.preferences.store import create_master_key, read_master_key
from client.student.model import Student, adapter_spec, digest_base, load_base, make_student
from client.teacher.eyes import load_image_encoder, load_note_encoder
from client.teacher.fit import TeacherRecipe
from client.teacher.sight import Encoders, Memory
from client.worker import SiteWorker, attach, detach
from common.adapter import Adapter, initial_adapter, save_adapter
from common.ids import RunId, SiteId
from common.plan import AdapterPlan, RunPlan, TrackPlan
from common.tracks import RARE_DISEASE
from server.app import make_app
from server.rounds import TrackState, run_track
from simulations.grid import run_apps
from simulations.link import MemoryLink
from simulations.scenarios import Population
from simulations.settings import PlanSettings

TRACK = RARE_DISEASE.name


@dataclass(frozen=True, kw_only=True)
class Models:
    """What the sites of a simulation share because it is frozen.

    Attributes:
        base: Folder of the student's base.
        student: The base with LoRA layers; whoever uses it loads an adapter first.
        memory: The teachers' eyes, which look at each patient once.
        initial: The adapter that every training starts from.
    """

    base: Path
    student: Student
    memory: Memory
    initial: Adapter


def load_models(base: Path, eyes: Path, settings: PlanSettings, seed: int) -> Models:
    """Load base and encoders once for all sites. The teacher reads notes with the student's own base."""
    model, tokenizer = load_base(str(base))
    planned = AdapterPlan(**vars(settings.adapter), factors_digest="0" * 64)
    spec = adapter_spec(model, planned)
    return Models(
        base=base,
        student=make_student(model, tokenizer, spec),
        memory=Memory(
            Encoders(photo=load_image_encoder(str(eyes)), note=load_note_encoder(str(base), batch_size=64))
        ),
        initial=initial_adapter(spec, seed),
    )


def make_plan(
    name: str, settings: PlanSettings, population: Population, models: Models, seed: int
) -> RunPlan:
    """The plan that all sites agree on, everything in it named by digest."""
    base_digest, tokenizer_digest = digest_base(models.base)
    track = TrackPlan(
        track=TRACK,
        answers_digest=population.answers.digest(),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        adapter=AdapterPlan(**vars(settings.adapter), factors_digest=models.initial.digest()),
        teacher=settings.teacher,
        preferences=settings.preferences,
        training=settings.training,
        server_optimizer=settings.server_optimizer,
    )
    return RunPlan(
        name=name,
        purpose=settings.purpose,
        ethics_id=settings.ethics_id,
        expires=settings.expires,
        seed=seed,
        sites=tuple(sorted(population.sites)),
        tracks=(track,),
        aggregation=settings.aggregation,
    )


def imitation_plan(plan: RunPlan) -> RunPlan:
    """The same plan for supervised fine-tuning on labels: one name, the label, and no odds ratio."""
    (track,) = plan.tracks
    preferences = replace(track.preferences, label_policy="label_first", chosen_length=1)
    training = replace(track.training, orpo_lambda=0.0)
    sft = replace(track, preferences=preferences, training=training)
    return replace(plan, name=f"{plan.name} sft", tracks=(sft,))


def make_workers(
    plan: RunPlan, population: Population, models: Models, home: Path, recipe: TeacherRecipe
) -> dict[SiteId, SiteWorker]:
    """A worker for each site of the plan, each with a home of its own for its key and its pairs."""
    workers = {}
    for site in plan.sites:
        folder = home / site
        folder.mkdir(parents=True, exist_ok=True)
        key_path = folder / "master.key"
        if not key_path.exists():
            create_master_key(key_path)
        workers[site] = SiteWorker(
            site_id=site,
            plan=plan,
            track=TRACK,
            patients=population.sites[site],
            answers=population.answers,
            student=models.student,
            memory=models.memory,
            store=folder / f"pairs-{plan.digest()[:16]}.json",
            master_key=read_master_key(key_path),
            recipe=recipe,
        )
    return workers


def federate(
    plan: RunPlan,
    workers: Mapping[SiteId, SiteWorker],
    initial: Adapter,
    *,
    link: str,
    folder: Path,
    on_state: Callable[[TrackState], None],
) -> TrackState:
    """Run the plan over the workers; the evaluated state.

    Args:
        plan: With one track.
        workers: By site.
        initial: The adapter the plan names.
        link: ``grid`` for the real ServerApp and ClientApp in this process, ``memory`` without Flower.
        folder: Gets the initial adapter and the coordinator's output.
        on_state: Handed every state on the way.
    """
    if link == "memory":
        start = TrackState(plan=plan, run_id=RunId("run-1"), track=TRACK, adapter=initial)
        return run_track(start, MemoryLink(workers), on_state=on_state)
    last: list[TrackState] = []

    def keep(state: TrackState) -> None:
        last[:] = [state]
        on_state(state)

    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(initial, folder / f"{TRACK}.safetensors")
    with attached_workers(workers):
        run_apps(
            make_app(keep),
            client_app,
            sites=plan.sites,
            run_config={
                "plan": plan.to_json(),
                "adapters": os.fspath(folder),
                "out": os.fspath(folder),
                "attempts": 1,
            },
        )
    return last[0]


@contextmanager
def attached_workers(workers: Mapping[SiteId, SiteWorker]) -> Iterator[None]:
    """Let the client app find the workers for a while."""
    try:
        for site, worker in workers.items():
            attach(site, worker)
        yield
    finally:
        for site in workers:
            detach(site)
