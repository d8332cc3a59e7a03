"""One play: rounds under operations, each against a plain sum, then a clean round with everybody."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from common.adapter import Adapter
from common.errors import FederationError, TooFewSurvivorsError, WrongSecretError
from common.ids import SiteId
from common.messages import TrainTask
from common.train_words import train_fixed_point
from server.aggregate import next_adapter, survivor_mean
from server.rounds import TrackState, run_round
from tests.fakes import RUN, TRACK, FakeWork, fake_identities, fake_works, tiny_adapter, tiny_plan
from tests.federation.hospitals import Hospital, Seen
from tests.federation.operations import Play, draw
from tests.federation.stage import OperationLink

ROUNDS = 2
FAR = 20
"""More sums than a play's lies may have made sites close."""


def play_seed(seed: int) -> str:
    """Play the seed's list; how its rounds ended. An AssertionError has the list."""
    play = draw(seed)
    # A list's warnings are what it is for.
    logging.disable(logging.CRITICAL)
    try:
        return perform(play)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{play}") from error
    finally:
        logging.disable(logging.NOTSET)


def perform(play: Play) -> str:
    """One word for each round: ``sum``, or the error's class."""
    plan = tiny_plan(
        tiny_adapter(),
        sites=play.sites,
        minimum_survivors=2,
        lost_before_upload=play.lost_before_upload,
    )
    works, seen = fake_works(plan), Seen()
    hospitals = {site: Hospital(site, plan, works[site], seen) for site in plan.sites}
    public = {site: identity.public() for site, identity in fake_identities(plan).items()}
    state = TrackState(plan=plan, run_id=RUN, track=TRACK, adapter=tiny_adapter(), identities=public)
    link = OperationLink(play, plan, hospitals)
    endings = []
    for _ in range(ROUNDS):
        try:
            after = run_round(state, link)
        except (TooFewSurvivorsError, WrongSecretError) as error:
            # Any other error would mean that a sum of rubbish came out.
            endings.append(type(error).__name__)
            state = state.after_failure()
            continue
        require_plain_sum(state, after, works)
        endings.append("sum")
        state = after
    seen.check(plan, play.colluders)
    # Whatever happened, nobody is locked out.
    clean = OperationLink(replace(play, operations=(), scheme=""), plan, hospitals)
    state = replace(state, sum_id=state.sum_id + FAR, setup=None)
    try:
        after = run_round(state, clean)
    except FederationError as error:
        raise AssertionError(f"a clean round failed: {error}") from error
    assert after.history[-1].survivors == plan.sites, "a clean round without everybody"
    require_plain_sum(state, after, works)
    seen.check(plan, play.colluders)
    return " ".join(endings)


def require_plain_sum(state: TrackState, after: TrackState, works: dict[SiteId, FakeWork]) -> None:
    """The adapter after a round is the one that the survivors' vectors, added in the open, give."""
    expected = plainly(state, after.history[-1].survivors, works)
    assert after.adapter.digest() == expected.digest(), "a wrong sum"


def plainly(state: TrackState, survivors: tuple[SiteId, ...], works: dict[SiteId, FakeWork]) -> Adapter:
    """The next adapter of a plain sum, in Python's own integers."""
    round_id = state.round_id + 1
    task = TrainTask(
        run_id=state.run_id,
        track=state.track,
        plan_digest=state.plan.digest(),
        round_id=round_id,
        adapter=state.adapter,
        sum_id=1,
        members=(),
        envelopes={},
        bin_accuracy=None,
    )
    vectors = [works[site].words(task).tolist() for site in survivors]
    total = np.array([sum(words) % 2**32 for words in zip(*vectors, strict=True)], dtype=np.uint32)
    mean = survivor_mean(total, train_fixed_point(state.plan))
    block = state.adapter.spec.active_block(round_id)
    made, _ = next_adapter(
        state.adapter, block, mean.delta, plan=state.track_plan.server_optimizer, optimizer=state.optimizer
    )
    return made
