"""Four tiny hospitals, each with a home of its own, in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.approvals import approve_plan, withdraw_approval
from client.home import ConsortiumHome, SiteHome
from client.hosting import MOST_PLANS, Activity, Hosting
from client.keys import Keyring
from client.loaded_plan import device_of, load_eyes, load_student, read_site
from client.patients.importers.folder import write_folder
from client.patients.records import pseudonym
from client.settings import ModelSettings, SiteSettings
from client.teacher.eyes import load_note_encoder
from client.teacher.fit import TeacherRecipe
from client.teacher.sight import Encoders, Memory
from common.errors import BadFileError, DeviceError, DigestMismatchError, SettingsError
from common.ids import SiteId
from common.messages import Bundle, EvaluateTask, KeysRequest, PrepareTask, Ready, Refusal, TrainTask
from common.plan import RunPlan
from common.plan_package import PlanPackage
from common.tracks import RARE_DISEASE
from server.rounds import TrackState, run_track
from simulations.data_settings import SyntheticData
from simulations.federation import federate, make_workers
from simulations.link import MemoryLink
from simulations.planning import Models, make_plan
from simulations.populations import Population
from simulations.scenarios import synthetic_population
from simulations.settings import SimulationSettings
from tests.client.homes import CONSORTIUM, NOW, make_home
from tests.fakes import COORDINATOR, RUN, SITES, fake_identities
from tests.messages import example
from tests.simulations.small import small_models, small_settings

TRACK = RARE_DISEASE.name
SITE = SITES[0]
FEW = (
    "data=notes_only",
    "data.sites={site-a: 24, site-b: 20, site-c: 20, site-d: 20}",
    "data.test_per_answer=1",
    "plan.training.local_steps=1",
)


def ignore(state: TrackState) -> None:
    """Nobody looks."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Four homes with data, keys and models, and a plan that all of them approved."""

    root: Path
    package: PlanPackage
    models: Models
    settings: Mapping[SiteId, SiteSettings]
    recipe: TeacherRecipe | None

    @property
    def plan(self) -> RunPlan:
        return self.package.plan

    def site_home(self, site: SiteId) -> SiteHome:
        return SiteHome(self.root / site)

    def home(self, site: SiteId = SITE) -> ConsortiumHome:
        return self.site_home(site).consortium(CONSORTIUM)

    def keyring(self, site: SiteId = SITE) -> Keyring:
        home = self.site_home(site)
        if not home.keyring_file.exists():
            Keyring.create(home, self.settings[site]).close()
        return Keyring.open(home, self.settings[site])

    def hosting(self, site: SiteId = SITE, **changed: Any) -> Hosting:
        return Hosting(
            self.home(site),
            self.settings[site],
            self.keyring(site),
            **{
                "coordinator": COORDINATOR.public(),
                "recipe": self.recipe,
                "clock": lambda: NOW,
                **changed,
            },
        )

    def state(self, plan: RunPlan | None = None) -> TrackState:
        identities = {site: one.public() for site, one in fake_identities(self.plan).items()}
        plan = plan or self.plan
        return TrackState(
            plan=plan,
            run_id=RUN,
            track=TRACK,
            adapter=self.models.initial,
            identities=identities,
            signer=COORDINATOR if plan.privacy.mode != "none" else None,
        )


@pytest.fixture(scope="module")
def small() -> SimulationSettings:
    return small_settings(FEW)


@pytest.fixture(scope="module")
def population(small: SimulationSettings) -> Population:
    data = small.data
    assert isinstance(data, SyntheticData)
    return synthetic_population(data, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, population: Population) -> Models:
    return small_models(tmp_path_factory.mktemp("cache"), population)


@pytest.fixture
def trial(tmp_path: Path, small: SimulationSettings, population: Population, models: Models) -> Trial:
    # With two, the teachers of a busy machine wait for each other's threads.
    torch.set_num_threads(1)
    plan = make_plan("trial", small.plans, {TRACK: population}, {TRACK: models}, 3)
    plan = replace(plan, consortium=CONSORTIUM, expires="2030-01-01")
    package = PlanPackage(plan=plan, answers={TRACK: population.answers})
    settings = {}
    for site in plan.sites:
        root = tmp_path / site
        home = make_home(root, plan, site=site)
        own = population.sites[site]
        write_folder(root / "data", [*own.train, *own.test])
        settings[site] = SiteSettings(
            site=site,
            cohort="adults",
            data=root / "data",
            master_key="file:master.key",
            models=ModelSettings(bases={TRACK: models.base}, note_encoder=str(models.base)),
        )
        approve_plan(home, settings[site], package, by="A", now=NOW)
    return Trial(root=tmp_path, package=package, models=models, settings=settings, recipe=small.recipe)


def prepare(trial: Trial, **changed: Any) -> PrepareTask:
    return PrepareTask(**{"run_id": RUN, "track": TRACK, "plan_digest": trial.plan.digest(), **changed})


def as_simulated(trial: Trial, population: Population) -> dict[SiteId, Any]:
    """The patients of all homes, as a simulation of them has them."""
    return {
        site: read_site(trial.settings[site], trial.package, key=trial.keyring(site).pseudonym_key)
        for site in trial.plan.sites
    }


def test_a_federation_of_homes_equals_the_simulation_of_their_patients(
    trial: Trial, population: Population
) -> None:
    sites = as_simulated(trial, population)
    memory = Memory(Encoders(note=load_note_encoder(str(trial.models.base), batch_size=64)))
    models = {TRACK: replace(trial.models, memory=memory)}
    workers = make_workers(
        trial.plan,
        {TRACK: replace(population, sites=sites)},
        models,
        trial.root / "simulated",
        trial.recipe,
    )
    simulated = federate(
        trial.plan,
        workers,
        models,
        link="memory",
        folder=trial.root / "out",
        home=trial.root / "simulated",
        on_state=ignore,
    )[TRACK].state
    hostings = {site: trial.hosting(site) for site in trial.plan.sites}
    hosted = run_track(trial.state(), MemoryLink(hostings), on_state=ignore)
    assert hosted.round_id == trial.plan.tracks[0].training.rounds == simulated.round_id
    for name, tensor in simulated.adapter.tensors.items():
        np.testing.assert_array_equal(hosted.adapter.tensors[name], tensor)
    assert hosted.adapter.digest() != trial.models.initial.digest()
    assert hosted.metrics == simulated.metrics


def test_a_warm_message_costs_no_model_load(trial: Trial) -> None:
    seen: list[Activity] = []
    hosting = trial.hosting(on_activity=seen.append)
    assert hosting(prepare(trial)) == Ready(run_id=RUN, track=TRACK, site_id=SITE)
    assert hosting.activity.loads == 2
    assert set(hosting.activity.seconds) == {"load", "prepare", "mask"}
    for _ in range(3):
        assert isinstance(hosting(prepare(trial)), Ready)
    assert hosting.activity.loads == 2
    assert "load" not in hosting.activity.seconds
    assert [one.state for one in seen] == ["preparing", "idle"] * 4
    assert (seen[0].plan, seen[0].run, seen[0].track) == (trial.plan.digest(), RUN, TRACK)
    assert seen[1].plans == (trial.plan.digest(),)


def test_two_plans_are_kept_and_a_third_takes_the_place_of_the_one_not_used_longest(trial: Trial) -> None:
    hosting = trial.hosting()
    others = [replace(trial.package, plan=replace(trial.plan, seed=seed)) for seed in (11, 12)]
    for other in others:
        approve_plan(trial.home(), trial.settings[SITE], other, by="A", now=NOW)
    digests = [one.plan.digest() for one in (trial.package, *others)]

    def ask(number: int) -> None:
        message = prepare(trial, plan_digest=digests[number], run_id=f"run-{number}")
        assert isinstance(hosting(message), Ready)

    for number in (0, 1, 0, 2):
        ask(number)
    assert MOST_PLANS == 2
    assert hosting.activity.plans == (digests[0], digests[2])
    # The eye is the same for all plans, each has a student of its own.
    assert hosting.activity.loads == 4


def test_a_refused_message_loads_nothing(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw_approval(trial.home(), trial.settings[SITE], trial.plan.digest(), by="A", now=NOW)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("something was read for a refused message")

    for name in ("read_site", "load_student", "load_eyes", "open_ledger"):
        monkeypatch.setattr(f"client.loaded_plan.{name}", fail)
    hosting = trial.hosting()
    reply = hosting(Bundle(parts=(prepare(trial), example(KeysRequest, plan_digest="ab" * 32))))
    assert isinstance(reply, Bundle)
    assert all(isinstance(part, Refusal) for part in reply.parts)
    assert "is not approved here" in reply.parts[0].reason  # type: ignore[union-attr]
    assert hosting.activity.loads == 0


def test_a_base_that_the_plan_does_not_name_is_refused(trial: Trial) -> None:
    (track,) = trial.plan.tracks
    other = replace(trial.plan, tracks=(replace(track, base_model_digest="ab" * 32),))
    package = replace(trial.package, plan=other)
    approve_plan(trial.home(), trial.settings[SITE], package, by="A", now=NOW)
    reply = trial.hosting()(prepare(trial, plan_digest=other.digest()))
    assert isinstance(reply, Refusal)
    assert reply.reason.startswith(f"base model of {TRACK}: expected digest {'ab' * 32}, got ")
    with pytest.raises(DigestMismatchError, match="tokenizer of rare_disease"):
        load_student(trial.models.base, replace(track, tokenizer_digest="ab" * 32))
    with pytest.raises(BadFileError, match="no base model"):
        load_student(trial.root, track)


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The patients of each training of a site, in order."""
    from client import worker

    found: list[set[str]] = []
    fit = worker.local_fit

    def local_fit(student: Any, adapter: Any, block: Any, patients: Any, *rest: Any, **named: Any) -> Any:
        found.append({entry.patient_id for entry in patients})
        return fit(student, adapter, block, patients, *rest, **named)

    monkeypatch.setattr(worker, "local_fit", local_fit)
    return found


def test_who_withdraws_between_two_rounds_is_in_no_later_round(
    trial: Trial, population: Population, trained_on: list[set[str]]
) -> None:
    hostings = {site: trial.hosting(site) for site in trial.plan.sites}
    key = trial.keyring().pseudonym_key
    withdrawn_file = trial.site_home(SITE).withdrawn_file("adults")
    withdrawn_file.parent.mkdir(parents=True, exist_ok=True)
    gone: set[str] = set()

    def between(state: TrackState) -> None:
        if state.round_id != 1 or gone:
            return
        first = trained_on[0]
        source_ids = {pseudonym(key, r.patient_id): r.patient_id for r in population.sites[SITE].train}
        named = sorted(first & set(source_ids))[:2]
        gone.update(named)
        # One by the hospital's own id, one by his pseudonym.
        withdrawn_file.write_text(f"# since today\n{source_ids[named[0]]}\n{named[1]}\n\n")

    run_track(trial.state(), MemoryLink(hostings), on_state=between)
    assert len(gone) == 2
    rounds = trial.plan.tracks[0].training.rounds
    assert len(trained_on) == rounds * len(trial.plan.sites)
    before, after = trained_on[: len(trial.plan.sites)], trained_on[len(trial.plan.sites) :]
    assert any(gone <= patients for patients in before)
    assert not any(gone & patients for patients in after)


def test_who_withdrew_from_the_test_is_not_counted(trial: Trial) -> None:
    site = read_site(trial.settings[SITE], trial.package, key=trial.keyring().pseudonym_key)
    hosting = trial.hosting()
    hosting(prepare(trial))
    (worker,) = hosting._loaded[trial.plan.digest()].workers.values()
    task = example(
        EvaluateTask,
        track=TRACK,
        adapter=trial.models.initial,
        plan_digest=trial.plan.digest(),
        envelopes={},
        part="test",
    )
    whole = worker.words(task)[0]
    withdrawn_file = trial.site_home(SITE).withdrawn_file("adults")
    withdrawn_file.parent.mkdir(parents=True, exist_ok=True)
    withdrawn_file.write_text(site.test[0].patient_id)
    assert worker.words(task)[0] < whole


def test_a_list_of_withdrawals_that_cannot_be_read_stops_the_task(trial: Trial) -> None:
    withdrawn_file = trial.site_home(SITE).withdrawn_file("adults")
    withdrawn_file.parent.mkdir(parents=True, exist_ok=True)
    withdrawn_file.write_bytes(b"\xff\xfe\x00")
    reply = trial.hosting()(prepare(trial))
    assert isinstance(reply, Refusal)
    assert reply.reason == "a file of this site cannot be used (BadFileError); see the site's log"


def test_where_everybody_withdrew_the_site_refuses_to_train(trial: Trial) -> None:
    hosting = trial.hosting()
    hosting(prepare(trial))
    (worker,) = hosting._loaded[trial.plan.digest()].workers.values()
    everybody = sorted({entry.patient_id for entry in worker.encoded()})
    withdrawn_file = trial.site_home(SITE).withdrawn_file("adults")
    withdrawn_file.parent.mkdir(parents=True, exist_ok=True)
    withdrawn_file.write_text("\n".join(everybody))
    task = example(
        TrainTask, track=TRACK, adapter=trial.models.initial, plan_digest=trial.plan.digest(), envelopes={}
    )
    with pytest.raises(Exception, match="site-a: no patient of track rare_disease gives a preference pair"):
        worker.words(task)


def test_a_site_without_a_gpu_does_not_pretend(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert (device_of("auto"), device_of("cpu")) == ("cpu", "cpu")
    with pytest.raises(DeviceError, match=r"worker\.device cuda: torch finds no GPU here"):
        device_of("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert (device_of("auto"), device_of("cuda"), device_of("cpu")) == ("cuda", "cuda", "cpu")


def test_a_teacher_needs_an_eye(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a teacher needs an eye"):
        load_eyes(ModelSettings())
    with pytest.raises(BadFileError, match="no note encoder"):
        load_eyes(ModelSettings(note_encoder=str(tmp_path)))
    with pytest.raises(BadFileError, match="no image encoder"):
        load_eyes(ModelSettings(photo_encoder=str(tmp_path)))


def test_secrets_of_secure_sums_lie_sealed_in_the_home(trial: Trial) -> None:
    hostings = {site: trial.hosting(site) for site in trial.plan.sites}
    run_track(trial.state(), MemoryLink(hostings), on_state=ignore)
    stored = [path.read_bytes() for path in trial.home().sessions.rglob("*") if path.is_file()]
    assert stored
    assert not any(b"mask_key" in content for content in stored)
    assert list(trial.home().pairs.iterdir())
