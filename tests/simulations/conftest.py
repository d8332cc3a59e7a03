"""A small run that never was: three sites, four answers, known figures."""

from dataclasses import dataclass

import numpy as np
import pytest

from common.adapter import Block
from common.calibration import ReliabilityBins
from common.ids import RoundId, SiteId
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.metrics import MetricCounts
from common.plan import AggregationPlan, RunPlan, TrackPlan
from common.tracks import Answer, AnswerList
from server.rounds import RoundReport
from simulations.report import RunPicture, SiteHolding, TrackPicture
from simulations.results import AggregationResult, MethodResult, RunResult, TrackResult
from simulations.scores import Outcomes, mean_over_sites, score

SITES = tuple(SiteId(f"site-{letter}") for letter in "abc")
PATIENTS = 40
TOP1 = {"base": 0.1, "federated_orpo": 0.7, "pooled_orpo": 0.75, "teacher": 0.9}
LOCAL_TOP1 = dict(zip(SITES, (0.3, 0.4, 0.5), strict=True))
ANSWERS = AnswerList(answers=tuple(Answer(id=f"OMIM:{n}", name=f"disease <{n}> & co") for n in range(4)))


@dataclass(frozen=True)
class SampleRun:
    result: RunResult
    picture: RunPicture


@pytest.fixture(scope="session")
def sample_run() -> SampleRun:
    return SampleRun(result=make_result(), picture=make_picture())


def outcomes(top1: float, patients: int = PATIENTS) -> Outcomes:
    right = round(top1 * patients)
    counts = [
        MetricCounts(
            n=1, top1=int(i < right), top5=1, top10=1, invalid=int(i % 20 == 0), free=1,
            coverage_hits=6, coverage_total=10, avoidance_hits=9, avoidance_total=10,
        )
        for i in range(patients)
    ]  # fmt: skip
    return Outcomes.of(counts, np.full(patients, 0.65))


def method(of_method: Outcomes, sites: tuple[SiteId, ...] = SITES) -> MethodResult:
    rng = np.random.default_rng(0)
    return MethodResult(
        union=score(of_method, rng),
        own_answers={site: score(of_method.only(range(0, PATIENTS, 2)), rng) for site in sites},
        new_publications=score(of_method.only(range(0, PATIENTS, 4)), rng),
        seconds=12.5,
        bytes_up=1000,
    )


def make_result() -> RunResult:
    local = {site: outcomes(top1) for site, top1 in LOCAL_TOP1.items()}
    methods = {name: method(outcomes(top1)) for name, top1 in TOP1.items()}
    methods["local_orpo_mean"] = method(mean_over_sites(local), sites=())
    by_site = {site: method(of_site, sites=(site,)) for site, of_site in local.items()}
    return RunResult(
        scenario="demo",
        seed=7,
        seconds={"data": 1.25, "teacher": 30.0, "rounds": 200.0},
        tracks={
            "rare_disease": TrackResult(
                n_train=60,
                n_test=PATIENTS,
                n_answers=len(ANSWERS),
                methods={**methods, "local_orpo": by_site},
            )
        },
        aggregation=AggregationResult.of(make_history(), retried=1, work_seconds=2.0),
    )


def make_history() -> tuple[RoundReport, ...]:
    return tuple(
        RoundReport(
            round_id=RoundId(i),
            block=Block.B if i % 2 else Block.A,
            mode="secagg-v1",
            survivors=SITES[: 3 - i // 4],
            dropouts=dict.fromkeys(SITES[3 - i // 4 :], "no answer in time"),
            weight_sum=1.0,
            patients=60,
            pairs=240,
            steps=30,
            clipped=0,
            sum_id=i,
            exchanges=2 + i // 4,
            bytes_up=1_200_000,
            bytes_down=1_200_000,
            seconds=50.0,
            waiting_s=40.0,
            mean_delta_norm=3 / i,
        )
        for i in range(1, 5)
    )


def make_picture() -> RunPicture:
    holdings = [
        SiteHolding(
            site=site, patients=10 * (i + 1), patients_by_answer={"OMIM:0": 9 * i + 8, f"OMIM:{i + 1}": i + 2}
        )
        for i, site in enumerate(SITES)
    ]
    bins = ReliabilityBins.from_cases(np.linspace(0, 1, 200), np.arange(200) % 3 > 0)
    track = TrackPicture(
        answers=ANSWERS,
        holdings=holdings,
        rounds=make_history(),
        bins={"federated_orpo": bins, "teacher": bins},
    )
    return RunPicture(plan=make_plan(), patients="Synthetic patients.", tracks={"rare_disease": track})


def make_plan() -> RunPlan:
    digest = "0" * 64
    track = TrackPlan(
        track="rare_disease",
        answers_digest=ANSWERS.digest(),
        base_model_digest=digest,
        tokenizer_digest=digest,
        adapter=AdapterPlan(factors_digest=digest),
        preferences=PreferencePlan(pairs_per_patient=4),
        training=TrainingPlan(
            rounds=4, local_steps=10, patients_per_step=8, learning_rate=3e-3, max_prompt_tokens=256
        ),
        server_optimizer=ServerOptimizerPlan(),
    )
    return RunPlan(
        name="Demo <script>alert(1)</script>",
        purpose="research",
        ethics_id="none-synthetic",
        expires="2030-01-01",
        seed=7,
        sites=SITES,
        tracks=(track,),
        teacher=TeacherPlan(modality_dropout=0.3),
        aggregation=AggregationPlan(minimum_survivors=3, site_patients_cap=100, timeout_s=60.0),
    )
