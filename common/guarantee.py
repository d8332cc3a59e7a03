"""What a plan's mechanisms add up to for one patient: the number, its unit, and what it does not cover.

Teacher and student are composed in one accounting, since a student's pairs are a function of the teacher; so
are all tracks, since a patient may be in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.checks import require
from common.ids import SiteId
from common.plan import RunPlan, TrackPlan
from common.privacy.accountant import DiscreteShares, RdpFilter, Spending, epsilon_of


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What may be said to a patient.

    Attributes:
        mode: The plan's privacy mode.
        unit: Whose presence is hidden: ``patient`` or ``site``; by adding or removing one.
        epsilon: Of teacher and student together, against everybody and up to ``colluders`` sites; None where
            there is no bound.
        delta: At which.
        epsilon_teacher: Of the teacher alone; 0 if it never learned from patients, None without a bound.
        colluders: Sites that may pool what they know.
        tracks: How many students the patient may be in.
    """

    mode: str
    unit: str
    epsilon: float | None
    delta: float | None
    epsilon_teacher: float | None
    colluders: int
    tracks: int = 1

    def sentence(self) -> str:
        """One line for a patient's privacy officer: number, unit, delta, adversary."""
        if self.epsilon is None:
            return f"No bound on what the student tells about one {self.unit} (privacy mode {self.mode})."
        learned = "teacher and student" if self.tracks == 1 else f"teacher and {self.tracks} students"
        return (
            f"epsilon = {self.epsilon:.2f} at delta = {self.delta:.0e} for each {self.unit} (added or "
            f"removed), {learned} together, against the public, the coordinator and "
            f"{self._other_sites()}."
        )

    def _other_sites(self) -> str:
        if self.mode == "local":
            return "all other sites together"
        if self.colluders == 0:
            return "no site that took part"
        return "one other site" if self.colluders == 1 else f"up to {self.colluders} other sites together"


def guarantee(plan: RunPlan, steps: Mapping[str, int] | None = None) -> Guarantee:
    """What a plan guarantees after so many ``steps`` by track; after all that it pays for if None."""
    mode, delta = plan.privacy.mode, plan.privacy.delta
    if delta is None:
        return Guarantee(
            mode=mode,
            unit="patient",
            epsilon=None,
            delta=None,
            epsilon_teacher=None,
            colluders=0,
        )
    bounded = mode == "site" or plan.teacher.privacy != "none"
    teachers = _teachers(plan)
    return Guarantee(
        mode=mode,
        unit=plan.privacy.unit,
        epsilon=_of_plan(plan, steps, delta) if bounded else None,
        delta=delta,
        epsilon_teacher=epsilon_of(teachers, delta) if bounded and mode != "site" else None,
        colluders=plan.privacy.colluders,
        tracks=len(plan.tracks),
    )


@lru_cache(maxsize=64)
def certify(plan: RunPlan) -> Guarantee:
    """The guarantee of the whole plan. SettingsError if it promises more than its mechanisms hold.

    Guarantee: no plan that gets through lets a patient lose more than the epsilon it states, as long as
    no more steps are taken than it pays for, or, with ``stop: filter``, than the filter admits.
    """
    privacy = plan.privacy
    if privacy.epsilon is None or privacy.delta is None:
        return guarantee(plan)
    if privacy.stop == "filter":
        track = plan.tracks[0]
        first = student_spending(plan, track, track.training.local_steps if privacy.mode == "local" else 1)
        able = RdpFilter(epsilon=privacy.epsilon, delta=privacy.delta).admits(_teachers(plan), first)
        require(able, "plan.privacy.epsilon", privacy.epsilon, "room for the teacher and a first round")
        return guarantee(plan, {track.track: 0 for track in plan.tracks})
    held = guarantee(plan)
    if held.epsilon is not None:
        enough = held.epsilon <= privacy.epsilon
        expected = f"at least {held.epsilon:.4f}, what its noise and its steps give"
        require(enough, "plan.privacy.epsilon", privacy.epsilon, expected)
    return held


def spendings(
    plan: RunPlan,
    steps: Mapping[str, int] | None = None,
    *,
    site: SiteId | None = None,
    colluders: int | None = None,
) -> list[Spending]:
    """Everything that a plan takes from a patient who is in all of its tracks.

    Args:
        plan: The plan.
        steps: By track; all that the plan pays for if None.
        site: Whose patients are meant: in all of this site's tracks.
        colluders: Sites of each track that pool what they know; what the plan is made for if None.
    """
    students = [
        student_spending(
            plan,
            track,
            plan.steps(track) if steps is None else steps[track.track],
            noise_factor=1.0 if colluders is None else _noise_factor(plan, track, colluders),
        )
        for track in (plan.tracks if site is None else plan.tracks_of(site))
    ]
    return [*_teachers(plan), *students]


def _noise_factor(plan: RunPlan, track: TrackPlan, colluders: int) -> float:
    """What is left of a track's noise for so many who know their own shares; 1 at the plan's own number."""
    sites = len(plan.sites_of(track))
    return math.sqrt((sites - plan.privacy.late_losses - colluders) / (sites - plan.privacy.absent))


def student_spending(plan: RunPlan, track: TrackPlan, steps: int, *, noise_factor: float = 1.0) -> Spending:
    """So many steps of a track's student. ValueError in mode ``none``."""
    privacy, mechanism = track.privacy, plan.mechanism(track)
    if privacy is None:
        raise ValueError("Expected a track with privacy, got one in mode none")
    discrete = None
    if plan.privacy.noise == "discrete_gaussian":
        # The most members have the narrowest shares, which is the worst for a sum of discrete ones.
        enough = 1 if plan.privacy.mode == "local" else len(plan.sites_of(track)) - plan.privacy.absent
        discrete = DiscreteShares(
            share_std=mechanism.share_std(enough) * noise_factor,
            shares=enough,
            sensitivity=mechanism.sensitivity,
            dimension=privacy.dimension,
        )
    return Spending(
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=privacy.noise_multiplier * noise_factor,
        steps=steps,
        discrete=discrete,
    )


def teacher_spending(plan: RunPlan) -> Spending | None:
    """A site's teachers: a patient trains all of the cross-fitting's but one. None if public.

    One teacher learns all tracks at once, and clips a patient's gradient over all of them.
    """
    dp = plan.teacher.dp
    if dp is None:
        return None
    return Spending(
        sampling_rate=dp.sampling_rate,
        noise_multiplier=dp.noise_multiplier,
        steps=dp.steps * plan.teacher.runs,
    )


def _of_plan(plan: RunPlan, steps: Mapping[str, int] | None, delta: float) -> float | None:
    if plan.privacy.stop == "filter":
        # Whoever stops when he likes what he sees has what the filter proves, however few steps it took.
        return plan.privacy.epsilon
    return epsilon_of(spendings(plan, steps), delta)


def _teachers(plan: RunPlan) -> Sequence[Spending]:
    # With a hospital as the unit nothing of its own is counted but what leaves it.
    found = teacher_spending(plan) if plan.privacy.mode != "site" else None
    return [] if found is None else [found]


def by_colluders(plan: RunPlan, steps: Mapping[str, int] | None = None) -> dict[int, float]:
    """Epsilon against so many colluding sites of each track, from none to all but one of the smallest.

    Colluders know their own shares of the noise: what is left hides the others' patients. Empty where no
    shares are added up, or nothing is bounded.
    """
    privacy, delta = plan.privacy, plan.privacy.delta
    if (
        privacy.stop == "filter"
        or privacy.mode not in ("distributed", "site")
        or delta is None
        or guarantee(plan, steps).epsilon is None
    ):
        return {}
    fewest = min(len(plan.sites_of(track)) for track in plan.tracks)
    return {
        number: epsilon_of(spendings(plan, steps, colluders=number), delta)
        for number in range(fewest - privacy.late_losses)
    }
