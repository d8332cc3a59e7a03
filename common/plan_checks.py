"""What the tracks of a plan must be like, each and together, for what the plan says to hold.

Each function raises a SettingsError that names the key below the track, the value and the expectation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.checks import require, require_once
from common.errors import SettingsError
from common.ids import SiteId
from common.privacy_plan import TrackPrivacy

if TYPE_CHECKING:
    from common.plan import RunPlan, TrackPlan

SMALLEST_FEDERATION = 3


def require_track_sites(plan: RunPlan, sites: tuple[SiteId, ...], where: str) -> None:
    """Refuse sites of a track that the plan does not have, or too few of them."""
    require_once(where, sites)
    for site in sites:
        require(site in plan.sites, where, repr(site), f"sites of the plan: {', '.join(plan.sites)}")
    least = max(SMALLEST_FEDERATION, plan.aggregation.minimum_survivors)
    require(len(sites) >= least, where, f"{len(sites)} sites", f"at least {least} for each track")


def promises(plan: RunPlan) -> bool:
    """Whether the plan states an epsilon for each patient."""
    return plan.privacy.epsilon is not None and plan.privacy.mode != "site"


def require_teacher(plan: RunPlan) -> None:
    """Refuse a teacher that learned from patients without privacy where the plan states an epsilon."""
    void = "public or dp: with another teacher an epsilon is void"
    teacher = plan.teacher.privacy
    require(not promises(plan) or teacher != "none", "teacher.privacy", teacher, void)


def require_one_share(plan: RunPlan) -> None:
    """Refuse tracks that set different shares of a site's patients aside: a patient may be in several."""
    shares = [
        (place, track.calibration.share) for place, track in enumerate(plan.tracks) if track.calibration
    ]
    for place, share in shares[1:]:
        key, first = f"tracks[{place}].calibration.share", shares[0][1]
        require(
            share == first, key, share, f"{first}, as of the other tracks: a site sets patients aside once"
        )


def require_privacy(plan: RunPlan, track: TrackPlan) -> None:
    """Refuse a track that the plan's promise does not hold for."""
    mode = plan.privacy.mode
    if mode == "none":
        require(track.privacy is None, "privacy", "settings", "nothing, since the plan's mode is none")
        return
    if track.privacy is None:
        raise SettingsError("privacy", "nothing", f"how sums are protected, since the mode is {mode}")
    if promises(plan):
        _require_promise(track)
    if track.calibration is not None:
        method = track.calibration.method
        covered = f"temperature or cft: no accounting covers the others in privacy mode {mode}"
        require(method in ("temperature", "cft"), "calibration.method", method, covered)
    _require_silence(plan, track)
    if mode != "site":
        _require_steps(plan, track, track.privacy)
    else:
        sites = len(plan.sites_of(track))
        every = (track.privacy.sampling_rate, track.privacy.population) == (1.0, sites)
        got = f"{track.privacy.sampling_rate} of {track.privacy.population}"
        require(every, "privacy.sampling_rate", got, f"1 of {sites} sites in mode site")
    try:
        plan.mechanism(track)
    except ValueError as error:
        expected, _, got = str(error).removeprefix("Expected ").rpartition(", got ")
        raise SettingsError("privacy", got, expected) from error


def _require_promise(track: TrackPlan) -> None:
    """A number called epsilon is void where something beside the noise tells of patients."""
    rejected = track.preferences.reject_from
    seen = "all: which answers a site has seen is told by its patients"
    require(rejected == "all", "preferences.reject_from", rejected, seen)


def _require_silence(plan: RunPlan, track: TrackPlan) -> None:
    """What would be told of a site's patients beside the sum, or would leave the sum without its noise."""
    weighting, lost = track.training.weighting, plan.aggregation.lost_before_upload
    uniform = "uniform: a weight by patients would tell their number"
    require(weighting == "uniform", "training.weighting", weighting, uniform)
    if plan.privacy.mode in ("distributed", "site"):
        abort = "abort: the noise is divided among all of the roster"
        require(lost == "abort", "aggregation.lost_before_upload", lost, abort)


def _require_steps(plan: RunPlan, track: TrackPlan, privacy: TrackPrivacy) -> None:
    """Steps on patients' clipped gradients, each of the size that the accounting takes it for."""
    mode, training = plan.privacy.mode, track.training
    local = training.local_optimizer
    require(local == "sgd", "training.local_optimizer", local, f"sgd in privacy mode {mode}")
    expected = privacy.divisor / len(plan.sites_of(track))
    require(
        abs(expected - training.patients_per_step) <= 0.5,
        "training.patients_per_step",
        training.patients_per_step,
        f"{expected:.1f}, what a site contributes to a step on average at the plan's sampling rate",
    )
    if mode == "distributed":
        one = "1: in mode distributed a secure sum is an optimizer step"
        require(training.local_steps == 1, "training.local_steps", training.local_steps, one)
        rate = "1: the server's rate is the only one in mode distributed"
        require(training.learning_rate == 1, "training.learning_rate", training.learning_rate, rate)
