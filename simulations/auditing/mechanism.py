"""The student's mechanism audited from the inside: what is clipped, noised, added up and decoded in a run.

Canaries point in directions of their own, so that the released sums tell of each of them apart. Each brings
two notes whose gradients are far longer than the clip norm. They go through the code of a real round: the sum
of a patient's rows and the clip of ``client.student.private``, one share of the plan's noise a site, the
addition of words in the ring, the coordinator's decoding. Sampling is off (q = 1), since with it a sum of
scores sees less (measured in sampled runs: two thirds of ε).

A piece can be replaced, which is how the bugs are planted that the audit must catch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.student.private import PatientClip
from client.student.unit_lora import UnitSums
from common.adapter import AdapterMode, AdapterSpec, Block, ModuleShape
from common.fixedpoint import Words, add_words
from common.guarantee import guarantee
from common.ids import site_id
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.plan import AggregationPlan, RunPlan, TrackPlan
from common.privacy.mechanism import Mechanism
from common.privacy_plan import PrivacyPlan, TrackPrivacy
from common.tracks import RARE_DISEASE
from simulations.auditing.canaries import Audit, Scores, Vector, audit_scores

CANARIES = 2048
NUMBERS_A_CANARY = 8
ROWS = 2
PART = 128
"""Canaries that are clipped at once."""
LONGER = 100.0
"""A canary's gradient, in units of the clip norm."""
NO_DIGEST = "0" * 64
STEPS, NOISE_MULTIPLIER, CLIP_NORM, DELTA = 8, 1.0, 0.3, 1e-5
"""μ = sqrt(8), ε about 16: less noise lets an audit see more. The code does not know how much there is."""

Clip = Callable[[Tensor, Sequence[int], float], Vector]
"""Rows (rows, numbers), whose each is, and the clip norm: the sum over patients."""
Share = Callable[[Mechanism, Vector, int, int], Words]
"""Mechanism, a site's sum, how many shares are counted on, and the site's number: the site's words."""


def audit_plan(canaries: int = CANARIES, *, sites: int = 3) -> RunPlan:
    """A plan of few sites that add their shares of the noise and none to spare: a lost one is missed."""
    numbers = canaries * NUMBERS_A_CANARY
    per_site = canaries // sites
    track = TrackPlan(
        track=RARE_DISEASE.name,
        answers_digest=NO_DIGEST,
        base_model_digest=NO_DIGEST,
        tokenizer_digest=NO_DIGEST,
        adapter=AdapterPlan(mode=AdapterMode.FFA, rank=1, alpha=1.0, factors_digest=NO_DIGEST),
        preferences=PreferencePlan(pairs_per_patient=1, reject_from="all"),
        training=TrainingPlan(
            rounds=STEPS,
            local_steps=1,
            patients_per_step=per_site,
            learning_rate=1.0,
            local_optimizer="sgd",
            weighting="uniform",
            max_prompt_tokens=64,
        ),
        server_optimizer=ServerOptimizerPlan(),
        privacy=TrackPrivacy(
            clip_norm=CLIP_NORM,
            noise_multiplier=NOISE_MULTIPLIER,
            sampling_rate=1.0,
            population=per_site * sites,
            dimension=numbers,
        ),
    )
    return RunPlan(
        name="audit",
        teacher=TeacherPlan(privacy="public", modality_dropout=0.0),
        purpose="audit",
        ethics_id="none needed",
        expires="2099-12-31",
        seed=0,
        sites=tuple(site_id(f"site-{number}") for number in range(1, sites + 1)),
        tracks=(track,),
        aggregation=AggregationPlan(
            minimum_survivors=sites, lost_before_upload="abort", site_patients_cap=canaries, timeout_s=1.0
        ),
        privacy=PrivacyPlan(mode="distributed", delta=DELTA),
    )


def clip_by_patient(rows: Tensor, patient_of_row: Sequence[int], clip_norm: float) -> Vector:
    """The sum over patients, by the code that sums and clips the student's gradients."""
    module = ModuleShape(name="canaries", in_features=1, out_features=rows.shape[1])
    spec = AdapterSpec(mode=AdapterMode.FFA, rank=1, alpha=1.0, modules=(module,))
    sums, clip = UnitSums(Block.B), PatientClip(spec, Block.B, clip_norm, rows.device)
    patients = max(patient_of_row) + 1
    sums.start(patients)
    sums.expect(patient_of_row, rows.device)
    sums.add(module.name, rows.unsqueeze(2))
    clip.add(sums.by_module, np.bincount(patient_of_row, minlength=patients).tolist())
    return clip.result().total


def noised_share(mechanism: Mechanism, vector: Vector, enough: int, site: int) -> Words:
    """A site's words: the same for every site."""
    return mechanism.noised(vector, enough=enough)


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What an audited round is made of.

    Attributes:
        clip: Sums patients' rows.
        share: Makes a site's words.
    """

    clip: Clip = clip_by_patient
    share: Share = noised_share


def _clip_by_row(rows: Tensor, patient_of_row: Sequence[int], clip_norm: float) -> Vector:
    return clip_by_patient(rows, range(len(patient_of_row)), clip_norm)


def _clip_to_twice(rows: Tensor, patient_of_row: Sequence[int], clip_norm: float) -> Vector:
    return clip_by_patient(rows, patient_of_row, 2 * clip_norm)


def _share_but_of_first(mechanism: Mechanism, vector: Vector, enough: int, site: int) -> Words:
    if site > 0:
        return mechanism.noised(vector, enough=enough)
    steps = np.rint(vector * mechanism.scale).astype(np.int64)
    return (steps & ((1 << mechanism.bits) - 1)).astype(np.uint32)


PLANTED_BUGS: Mapping[str, Pieces] = MappingProxyType(
    {
        "each row clipped instead of each patient": Pieces(clip=_clip_by_row),
        "noise for half of what the clip lets through": Pieces(clip=_clip_to_twice),
        "one of three sites adds no noise": Pieces(share=_share_but_of_first),
    }
)


def audit_mechanism(
    plan: RunPlan,
    rng: np.random.Generator,
    *,
    pieces: Pieces | None = None,
    name: str = "student's mechanism",
) -> Audit:
    """Whether a run of the plan's mechanism reveals more of a patient than is accounted.

    Guarantee: an honest mechanism fails once in ten thousand audits at most, by chance.

    Args:
        plan: In privacy mode ``distributed``, of `audit_plan`.
        rng: Of the canaries and their coins; the noise is the system's.
        pieces: What a round is made of; the real ones if None.
        name: What the audit is called.
    """
    pieces = pieces or Pieces()
    (track,) = plan.tracks
    privacy = track.privacy
    held = guarantee(plan)
    if privacy is None or held.epsilon is None or held.delta is None:
        raise ValueError(f"Expected a plan that bounds an epsilon, got privacy mode {plan.privacy.mode}")
    canaries = privacy.dimension // NUMBERS_A_CANARY
    signs = rng.choice(np.array([-1.0, 1.0]), size=(canaries, NUMBERS_A_CANARY))
    coins = rng.random(canaries) < 0.5
    homes = rng.integers(len(plan.sites), size=canaries)
    mechanism = plan.mechanism(track)
    # What canaries pull does not depend on the adapter, hence not on the step.
    sums = [
        _site_sum(signs, np.flatnonzero(coins & (homes == site)), pieces.clip, privacy.clip_norm)
        for site in range(len(plan.sites))
    ]
    released = np.zeros(privacy.dimension)
    for _ in range(plan.steps(track)):
        released += _round(mechanism, sums, len(sums) - plan.privacy.absent, pieces.share)
    scores = (released.reshape(signs.shape) * signs).sum(axis=1)
    return audit_scores(name, Scores.split(scores, coins), accounted=held.epsilon, delta=held.delta)


def _round(mechanism: Mechanism, sums: Sequence[Vector], enough: int, share: Share) -> Vector:
    """What the coordinator decodes of the sites' words."""
    total = np.zeros(len(sums[0]), dtype=np.uint32)
    for site, vector in enumerate(sums):
        add_words(total, share(mechanism, vector, enough, site))
    return mechanism.decode(total & np.uint32((1 << mechanism.bits) - 1))


def _site_sum(signs: Vector, members: NDArray[np.int64], clip: Clip, clip_norm: float) -> Vector:
    """The clipped sum of a site's canaries; each is a unit vector in numbers that no other one uses."""
    canaries, width = signs.shape
    total = np.zeros((canaries, width))
    for start in range(0, len(members), PART):
        part = members[start : start + PART]
        count = len(part)
        # In the numbers of this part alone: the others are zero, and would only take time.
        rows = torch.zeros(count, count, width)
        rows[range(count), range(count)] = torch.from_numpy(signs[part] / np.sqrt(width)).float()
        whole = (LONGER * clip_norm * rows).flatten(1).repeat(ROWS, 1)
        total[part] = clip(whole, list(range(count)) * ROWS, clip_norm).reshape(count, width)
    return total.reshape(-1)
