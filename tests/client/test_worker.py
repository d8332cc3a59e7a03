from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import worker as worker_module
from client.budget import SiteBudget
from client.contribution import site_weight
from client.lessons import Lessons, NoPairsError, SiteTeaching
from client.patients.notes import NO_FINDINGS
from client.patients.records import Finding, PatientRecord
from client.preferences.store import create_master_key, load_pairs, read_master_key
from client.site_patients import Excluded, SitePatients, Views, nobody, site_seed
from client.student.batches import entries_by_patient
from client.student.fit import encode_pairs, local_fit
from client.student.model import adapter_spec, digest_base
from client.teacher.rank import Ranking
from client.worker import NobodySetAsideError, SiteWorker
from common.adapter import Block, initial_adapter
from common.calibration_plan import CalibrationPlan
from common.errors import BudgetSpentError, DigestMismatchError
from common.evaluation_counts import EvaluationCounts
from common.fixedpoint import decode_counts
from common.ids import RoundId, RunId, site_id
from common.learning_plan import TeacherPlan
from common.messages import EvaluateTask, PrepareTask, Ready, TrainTask
from common.plan import RunPlan
from common.privacy_plan import PrivacyPlan, TeacherPrivacy, TrackPrivacy
from common.tracks import RARE_DISEASE
from common.train_words import TrainWords, train_fixed_point
from simulations.federation import make_sessions
from simulations.planning import Models, imitation_plan, make_plan
from simulations.populations import Population
from tests.fakes import fake_budget
from tests.simulations.small import small_models, small_population, small_settings

SITE = site_id("site-a")
RUN = RunId("run-1")


@pytest.fixture(scope="module")
def population() -> Population:
    return small_population()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, population: Population) -> Models:
    return small_models(tmp_path_factory.mktemp("cache"), population)


@pytest.fixture(scope="module")
def plan(population: Population, models: Models) -> RunPlan:
    track = RARE_DISEASE.name
    return make_plan("test", small_settings().plans, {track: population}, {track: models}, 0)


def worker_of(
    plan: RunPlan,
    population: Population,
    models: Models,
    home: Path,
    patients: SitePatients | None = None,
    budget: SiteBudget | None = None,
    excluded: Excluded = nobody,
) -> SiteWorker:
    key = home / "master.key"
    if not key.exists():
        create_master_key(key)
    teaching = SiteTeaching(
        site_id=SITE,
        plan=plan,
        patients=patients or population.sites[SITE],
        answers={RARE_DISEASE.name: population.answers},
        memory=models.memory,
        store=home,
        master_key=read_master_key(key),
        recipe=small_settings().recipe,
        budget=budget,
        excluded=excluded,
    )
    return SiteWorker(
        site_id=SITE,
        plan=plan,
        track=RARE_DISEASE.name,
        teaching=teaching,
        student=models.student,
        excluded=excluded,
    )


@pytest.fixture(scope="module")
def worker(
    plan: RunPlan, population: Population, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> SiteWorker:
    return worker_of(plan, population, models, tmp_path_factory.mktemp("home"))


def train_task(plan: RunPlan, models: Models, round_id: int = 1) -> TrainTask:
    return TrainTask(
        run_id=RUN,
        round_id=RoundId(round_id),
        track=RARE_DISEASE.name,
        plan_digest=plan.digest(),
        adapter=models.initial,
        sum_id=1,
        members=plan.sites,
        envelopes={},
        bin_accuracy=None,
    )


def test_readiness_is_told_without_a_count(worker: SiteWorker, plan: RunPlan) -> None:
    sessions, _ = make_sessions(plan, {RARE_DISEASE.name: {SITE: worker}})
    task = PrepareTask(run_id=RUN, track=RARE_DISEASE.name, plan_digest=plan.digest())
    assert sessions[SITE](task) == Ready(run_id=RUN, track=RARE_DISEASE.name, site_id=SITE)


def test_a_site_gets_ready_once(worker: SiteWorker) -> None:
    assert worker.prepare() is worker.prepare()


def test_pairs_are_stored_encrypted_under_their_plan(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    worker = worker_of(plan, population, models, tmp_path)
    lessons, path = worker.prepare(), worker.teaching.pairs_file(RARE_DISEASE.name)
    assert path.parent == tmp_path
    assert lessons.pairs[0].patient_id.encode() not in path.read_bytes()
    key = read_master_key(tmp_path / "master.key")
    assert load_pairs(path, master_key=key, plan_digest=plan.digest()).pairs == lessons.pairs


def test_a_contribution_is_a_weighted_delta_with_its_counts(
    worker: SiteWorker, plan: RunPlan, models: Models
) -> None:
    words = TrainWords.split(worker.words(train_task(plan, models)))
    fixed_point = train_fixed_point(plan)
    training = plan.tracks[0].training
    weight = site_weight(len(worker.encoded()), plan.aggregation, training.weighting)
    assert fixed_point.decode(words.weight) == pytest.approx([weight])
    patients, _, steps, clipped = decode_counts(words.counts)
    assert (patients, steps, clipped) == (
        training.patients_per_step * training.local_steps,
        training.local_steps,
        0,
    )
    assert np.abs(fixed_point.decode(words.delta)).max() > 0


def test_the_same_task_gives_the_same_words(worker: SiteWorker, plan: RunPlan, models: Models) -> None:
    first, second = (worker.words(train_task(plan, models)) for _ in range(2))
    assert (first == second).all()


def test_evaluation_answers_with_counts_of_the_sites_own_test_patients(
    worker: SiteWorker, plan: RunPlan, population: Population, models: Models
) -> None:
    task = EvaluateTask(
        run_id=RUN,
        round_id=RoundId(0),
        track=RARE_DISEASE.name,
        plan_digest=plan.digest(),
        adapter=models.initial,
        sum_id=1,
        members=plan.sites,
        envelopes={},
        part="test",
        temperature=1.0,
    )
    counts = EvaluationCounts.from_words(worker.words(task)).metrics
    assert counts.n == len(population.sites[SITE].test)


def test_other_answers_than_the_plans_are_refused(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    fewer = replace(population.answers, answers=population.answers.answers[:-1])
    with pytest.raises(DigestMismatchError, match="answers"):
        worker_of(plan, replace(population, answers=fewer), models, tmp_path)


def test_who_withdrew_teaches_nobody(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    own = population.sites[SITE]
    gone = own.train[0].patient_id
    train = tuple(replace(r, withdrawn=r.patient_id == gone) for r in own.train)
    worker = worker_of(plan, population, models, tmp_path, replace(own, train=train))
    lessons = worker.prepare()
    assert lessons.left_out == 1
    assert gone not in {entry.patient_id for entry in worker.encoded()}
    assert gone not in {ranking.patient_id for ranking in lessons.rankings}


def test_who_is_excluded_teaches_nobody(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    gone = population.sites[SITE].train[0].patient_id
    worker = worker_of(plan, population, models, tmp_path, excluded=lambda: frozenset({gone}))
    lessons = worker.prepare()
    assert lessons.left_out == 1
    assert gone not in {ranking.patient_id for ranking in lessons.rankings}


def test_a_site_without_a_pair_says_so(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    own = population.sites[SITE]
    label = own.train[0].label
    train = tuple(replace(r, label=label) for r in own.train[:12])
    (track,) = plan.tracks
    only_seen = replace(
        plan, tracks=(replace(track, preferences=replace(track.preferences, reject_from="seen")),)
    )
    with pytest.raises(NoPairsError, match="site-a: no patient of track rare_disease gives"):
        worker_of(only_seen, population, models, tmp_path, replace(own, train=train)).prepare()


def test_imitation_teaches_the_label_alone(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    worker = worker_of(imitation_plan(plan), population, models, tmp_path)
    lessons = worker.prepare()
    names = {r.patient_id: r.label[RARE_DISEASE.name] for r in population.sites[SITE].train}
    for pair in lessons.pairs:
        answer = population.answers.find(pair.chosen.split("1. ")[1])
        assert answer is not None
        assert answer.id == names[pair.patient_id]
    assert {entry.pairs for entry in worker.encoded()} == {((0, None),)}


@pytest.fixture(scope="module")
def varied_plan(plan: RunPlan) -> RunPlan:
    (track,) = plan.tracks
    training = replace(track.training, readings=3, dropped=0.3, with_exclusions=0.5)
    return replace(plan, tracks=(replace(track, training=training),))


def test_one_reading_changes_nothing(worker: SiteWorker, plan: RunPlan, models: Models) -> None:
    training, pairs = plan.tracks[0].training, worker.prepare().pairs
    assert training.readings == 1
    notes_alone = encode_pairs(models.student, pairs, max_prompt_tokens=training.max_prompt_tokens)
    assert list(worker.encoded()) == notes_alone
    fits = [
        local_fit(models.student, models.initial, Block.B, entries, training, round_id=1, seed=0).adapter
        for entries in (worker.encoded(), notes_alone)
    ]
    assert fits[0].digest() == fits[1].digest()


def test_a_patients_readings_share_his_pairs_and_begin_with_his_note(
    worker: SiteWorker, varied_plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    varied = worker_of(varied_plan, population, models, tmp_path)
    by_patient = entries_by_patient(varied.encoded())
    assert {len(own) for own in by_patient.values()} == {3}
    for note in worker.encoded():
        own = by_patient[note.patient_id]
        assert own[0] == note
        assert {(one.branches, one.pairs) for one in own} == {(note.branches, note.pairs)}
    prompts = [{one.prompt for one in own} for own in by_patient.values()]
    assert sum(len(own) > 1 for own in prompts) > 0.8 * len(prompts)


def test_a_patient_of_several_readings_weighs_as_one_and_is_read_once_a_step(
    worker: SiteWorker, varied_plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    varied = worker_of(varied_plan, population, models, tmp_path)
    words = TrainWords.split(varied.words(train_task(varied_plan, models)))
    training = varied_plan.tracks[0].training
    weight = site_weight(len(worker.encoded()), varied_plan.aggregation, training.weighting)
    assert train_fixed_point(varied_plan).decode(words.weight) == pytest.approx([weight])
    patients, pairs, _, _ = decode_counts(words.counts)
    assert patients == training.patients_per_step * training.local_steps
    assert pairs == patients * varied_plan.tracks[0].preferences.pairs_per_patient


def test_a_patient_in_train_and_test_is_refused(population: Population) -> None:
    own = population.sites[SITE]
    with pytest.raises(ValueError, match="Expected no patient in train and test, got 1"):
        replace(own, test=(*own.test, own.train[0]))


def test_hidden_findings_reach_no_prompt() -> None:
    record = PatientRecord(
        patient_id="p", case_id="p", sex="male", observed=(Finding(id="HP:0000316", label="Hypertelorism"),)
    )
    view = Views(facial="hide", facial_ids=frozenset({"HP:0000316"})).view(record)
    assert view.note == f"The patient was male. {NO_FINDINGS}"


def test_two_sites_never_draw_alike() -> None:
    seeds = {site_seed(0, site_id(name), use) for name in ("a", "b") for use in ("pairs", "order")}
    assert len(seeds) == 4


def test_the_base_is_what_the_plan_names(plan: RunPlan, models: Models) -> None:
    track = plan.tracks[0]
    assert (track.base_model_digest, track.tokenizer_digest) == digest_base(models.base)
    spec = adapter_spec(
        models.student.model.get_base_model(), replace(track.adapter, targets=("base_layer",))
    )
    assert initial_adapter(models.student.spec, 0).digest() == track.adapter.factors_digest
    assert len(spec.modules) == len(models.student.spec.modules)
    assert models.student.spec.size(Block.B) > 0


DP = TeacherPrivacy(noise_multiplier=4.0, sampling_rate=0.1, clip_norm=1.0, steps=5, learning_rate=0.1)


def private(plan: RunPlan, models: Models, teacher: TeacherPlan) -> RunPlan:
    """The same plan in privacy mode ``distributed``, with nothing promised."""
    (track,) = plan.tracks
    training = replace(
        track.training, local_steps=1, learning_rate=1.0, local_optimizer="sgd", weighting="uniform"
    )
    protected = TrackPrivacy(
        clip_norm=0.5,
        noise_multiplier=2.0,
        sampling_rate=0.25,
        population=16 * training.patients_per_step,
        dimension=max(models.initial.spec.size(block) for block in Block),
    )
    return replace(
        plan,
        tracks=(replace(track, training=training, privacy=protected),),
        teacher=teacher,
        aggregation=replace(plan.aggregation, lost_before_upload="abort"),
        privacy=PrivacyPlan(mode="distributed", delta=1e-5),
    )


@pytest.fixture(scope="module")
def dp_plan(plan: RunPlan, models: Models) -> RunPlan:
    return private(plan, models, TeacherPlan(privacy="dp", folds=2, modality_dropout=0.1, dp=DP))


class Teaching:
    """Stands in for teachers: gives another worker's rankings, and looks whether they are paid for."""

    def __init__(self, lessons: Lessons, home: Path, plan: RunPlan) -> None:
        self._lessons, self._home, self._plan = lessons, home, plan
        self.paid: list[bool] = []

    def __call__(self, *_: Any) -> dict[str, list[Ranking]]:
        budget = fake_budget(self._plan, self._home / "ledger.db", SITE)
        self.paid.append(budget.has_teacher())
        return {RARE_DISEASE.name: list(self._lessons.rankings)}


@pytest.fixture
def teaching(
    monkeypatch: pytest.MonkeyPatch, worker: SiteWorker, dp_plan: RunPlan, tmp_path: Path
) -> Teaching:
    made = Teaching(worker.prepare(), tmp_path, dp_plan)
    monkeypatch.setattr(SiteTeaching, "_rank", made)
    return made


def dp_worker(
    dp_plan: RunPlan,
    population: Population,
    models: Models,
    home: Path,
    patients: SitePatients | None = None,
) -> SiteWorker:
    """As it is after a start: with what is on the disk."""
    budget = fake_budget(dp_plan, home / "ledger.db", SITE)
    return worker_of(dp_plan, population, models, home, patients, budget=budget)


def test_teachers_are_charged_before_they_learn_and_once(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    own = dp_worker(dp_plan, population, models, tmp_path)
    assert own.prepare() is own.prepare()
    assert teaching.paid == [True]
    assert own.teaching.budget is not None
    assert [entry.charge.part for entry in own.teaching.budget.entries()] == ["teacher"]


def test_a_restarted_worker_goes_on_with_its_pairs_without_a_second_charge(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    first = dp_worker(dp_plan, population, models, tmp_path)
    again = dp_worker(dp_plan, population, models, tmp_path)
    taught, lessons = first.prepare(), again.prepare()
    assert (lessons.pairs, lessons.rankings) == (taught.pairs, ())
    assert again.encoded() == first.encoded()
    assert lessons.counts.patients == len(first.encoded())
    assert len(teaching.paid) == 1
    assert again.teaching.budget is not None
    assert len(again.teaching.budget.entries()) == 1


def test_a_patient_of_whom_nothing_is_left_to_read_is_left_out_and_nobody_else(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    first = dp_worker(dp_plan, population, models, tmp_path)
    gone = first.encoded()[0].patient_id
    own = population.sites[SITE]
    train = tuple(
        replace(record, note=None, observed=(), excluded=()) if record.patient_id == gone else record
        for record in own.train
    )
    again = dp_worker(dp_plan, population, models, tmp_path, patients=replace(own, train=train))
    assert again.encoded() == first.encoded()[1:]


def test_teachers_that_are_paid_for_and_lost_are_not_trained_again(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    first = dp_worker(dp_plan, population, models, tmp_path)
    first.prepare()
    first.teaching.pairs_file(RARE_DISEASE.name).unlink()
    with pytest.raises(BudgetSpentError, match="budget of the teacher: 5 of the plan's 5 steps are spent"):
        dp_worker(dp_plan, population, models, tmp_path).prepare()
    assert len(teaching.paid) == 1


def test_the_pairs_of_another_plan_are_not_gone_on_with(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    dp_worker(dp_plan, population, models, tmp_path).prepare()
    other = replace(dp_plan, name="another")
    own = dp_worker(other, population, models, tmp_path)
    own.prepare()
    assert len(teaching.paid) == 2
    assert own.teaching.budget is not None
    digests = [entry.charge.plan_digest for entry in own.teaching.budget.entries()]
    assert digests == [dp_plan.digest(), other.digest()]


def test_a_teacher_under_privacy_needs_a_budget(
    dp_plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Expected a budget to train a teacher under privacy, got none"):
        worker_of(dp_plan, population, models, tmp_path)


def test_a_private_contribution_is_the_noised_vector_and_nothing_else(
    dp_plan: RunPlan, population: Population, models: Models, teaching: Teaching, tmp_path: Path
) -> None:
    own = dp_worker(dp_plan, population, models, tmp_path)
    first, second = (own.words(train_task(dp_plan, models)) for _ in range(2))
    assert first.shape == (models.initial.spec.size(models.initial.spec.active_block(1)),)
    # The same task gives another draw.
    assert (first != second).mean() > 0.99


def test_who_is_excluded_when_a_task_comes_is_in_no_answer_under_privacy(
    dp_plan: RunPlan,
    population: Population,
    models: Models,
    teaching: Teaching,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone: set[str] = set()
    budget = fake_budget(dp_plan, tmp_path / "ledger.db", SITE)
    own = worker_of(dp_plan, population, models, tmp_path, budget=budget, excluded=lambda: frozenset(gone))
    everybody = {entry.patient_id for entry in own.encoded()}
    drawn_from: list[set[str]] = []
    real = worker_module.private_words

    def private_words(student: Any, adapter: Any, block: Any, patients: Any, *rest: Any, **named: Any) -> Any:
        drawn_from.append({entry.patient_id for entry in patients})
        return real(student, adapter, block, patients, *rest, **named)

    monkeypatch.setattr(worker_module, "private_words", private_words)
    one = min(everybody)
    for leaving in (set(), {one}, everybody):
        gone |= leaving
        words = own.words(train_task(dp_plan, models))
        # Also where nobody is left: noise, so that nobody can tell.
        assert (words != 0).any()
    assert drawn_from == [everybody, everybody - {one}, set()]


@pytest.mark.parametrize(("loss", "known"), [("dpo", True), ("orpo", False)])
def test_what_the_base_says_is_known_where_the_plan_compares_with_it(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path, loss: Any, known: bool
) -> None:
    track = plan.tracks[0]
    changed = replace(plan, tracks=(replace(track, training=replace(track.training, loss=loss)),))
    worker = worker_of(changed, population, models, tmp_path)
    assert [entry.reference is not None for entry in worker.encoded()] == [known] * len(worker.encoded())
    before = worker.encoded()
    assert np.any(TrainWords.split(worker.words(train_task(changed, models))).delta)
    assert worker.encoded() == before


CFT = CalibrationPlan(method="cft", share=0.2, rounds=2)


def calibrating(plan: RunPlan, calibration: CalibrationPlan = CFT, **training: Any) -> RunPlan:
    (track,) = plan.tracks
    changed = replace(track.training, **training)
    return replace(plan, tracks=(replace(track, training=changed, calibration=calibration),))


def set_apart(population: Population) -> SitePatients:
    """Ten of the site's training patients set aside; one of them gave consent for something else."""
    own = population.sites[SITE]
    first, *others = own.train[:10]
    return replace(own, train=own.train[10:], calibration=(replace(first, consent=frozenset()), *others))


def counts_of(
    worker: SiteWorker, plan: RunPlan, models: Models, part: Any, **changes: Any
) -> EvaluationCounts:
    task = EvaluateTask(
        run_id=RUN, round_id=RoundId(0), track=RARE_DISEASE.name, plan_digest=plan.digest(),
        adapter=models.initial, sum_id=1, members=plan.sites, envelopes={}, part=part,
        **{"temperature": 1.0, **changes},
    )  # fmt: skip
    return EvaluationCounts.from_words(worker.words(task))


def test_a_measurement_counts_those_set_aside_who_allow_it_and_are_not_excluded(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    apart, gone = set_apart(population), set[str]()
    own = worker_of(
        calibrating(plan), population, models, tmp_path, patients=apart, excluded=lambda: frozenset(gone)
    )
    assert counts_of(own, plan, models, "calibration").metrics.n == 9
    gone.add(apart.calibration[1].patient_id)
    assert counts_of(own, plan, models, "calibration").metrics.n == 8
    assert counts_of(own, plan, models, "test").metrics.n == len(apart.test)


def test_confidences_are_made_at_the_tasks_temperature(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    own = worker_of(plan, population, models, tmp_path)
    plain, tempered = (counts_of(own, plan, models, "test", temperature=t) for t in (1.0, 4.0))
    assert plain.metrics == tempered.metrics
    assert plain.temperatures == tempered.temperatures
    assert sum(plain.bins.confidence_sum) > sum(tempered.bins.confidence_sum)


def test_calibration_learns_from_those_set_aside_alone_and_training_never_from_them(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart, gone = set_apart(population), set[str]()
    made = calibrating(plan)
    own = worker_of(made, population, models, tmp_path, patients=apart, excluded=lambda: frozenset(gone))
    seen: list[set[str]] = []
    real = worker_module.calibrate_fit

    def watched(student: Any, adapter: Any, block: Any, cases: Any, *rest: Any, **named: Any) -> Any:
        seen.append({case.patient_id for case in cases})
        return real(student, adapter, block, cases, *rest, **named)

    monkeypatch.setattr(worker_module, "calibrate_fit", watched)
    rounds = made.tracks[0].training.rounds
    own.words(train_task(made, models, round_id=rounds))
    assert seen == []
    allowed = {record.patient_id for record in apart.calibration[1:]}
    assert not allowed & {entry.patient_id for entry in own.encoded()}
    for leaving in (set(), {min(allowed)}):
        gone |= leaving
        words = TrainWords.split(own.words(train_task(made, models, round_id=rounds + 1)))
        assert seen[-1] == allowed - gone
        weight = site_weight(len(seen[-1]), made.aggregation, made.tracks[0].training.weighting)
        assert train_fixed_point(made).decode(words.weight) == pytest.approx([weight])
    gone |= allowed
    with pytest.raises(NobodySetAsideError, match="site-a: no patient of track rare_disease is set aside"):
        own.words(train_task(made, models, round_id=rounds + 1))


def test_a_site_with_nobody_set_aside_is_not_ready_where_calibration_is_all(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    with pytest.raises(NobodySetAsideError):
        worker_of(calibrating(plan, rounds=0), population, models, tmp_path).prepare()
    ready = worker_of(
        calibrating(plan, rounds=0), population, models, tmp_path, patients=set_apart(population)
    )
    assert ready.prepare().pairs == ()


def test_a_round_after_the_last_is_refused(
    plan: RunPlan, population: Population, models: Models, tmp_path: Path
) -> None:
    made = calibrating(plan, CalibrationPlan(method="temperature", share=0.2))
    own = worker_of(made, population, models, tmp_path, patients=set_apart(population))
    last = made.tracks[0].training.rounds
    with pytest.raises(ValueError, match=f"Expected a round up to {last} of the plan, got {last + 1}"):
        own.words(train_task(made, models, round_id=last + 1))


def test_under_privacy_calibration_is_a_private_step_on_those_set_aside(
    dp_plan: RunPlan, population: Population, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = calibrating(replace(dp_plan, privacy=replace(dp_plan.privacy, epsilon=None)))
    budget = fake_budget(made, tmp_path / "ledger.db", SITE)
    apart = set_apart(population)
    own = worker_of(made, population, models, tmp_path, patients=apart, budget=budget)
    seen: list[tuple[set[str], set[Any], Any]] = []
    real = worker_module.private_words

    def watched(
        student: Any, adapter: Any, block: Any, patients: Any, plan: Any, track: Any, **named: Any
    ) -> Any:
        seen.append((
            {entry.patient_id for entry in patients}, {entry.pairs for entry in patients}, track.training
        ))  # fmt: skip
        return real(student, adapter, block, patients, plan, track, **named)

    monkeypatch.setattr(worker_module, "private_words", watched)
    last = made.tracks[0].training.rounds
    words = own.words(train_task(made, models, round_id=last + 1))
    assert words.shape == (models.initial.spec.size(models.initial.spec.active_block(last + 1)),)
    ((patients, pairs, training),) = seen
    assert patients == {record.patient_id for record in apart.calibration[1:]}
    assert pairs == {((0, None),)}
    assert (training.orpo_lambda, training.nll_on, training.loss) == (0.0, "answer", "orpo")
