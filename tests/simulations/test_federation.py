import time

import numpy as np
import pytest

from client.worker_link import attached
from common.errors import FederationError
from common.fixedpoint import Words
from common.messages import PrepareTask, Ready, SumTask
from simulations.federation import Clocked, attached_sessions, make_sessions
from tests.fakes import RUN, SITES, TRACK, FakeWork, fake_works, tiny_plan
from tests.messages import evaluate_task, example, train_task


def test_every_site_of_a_simulation_has_a_session_and_an_identity_of_this_run_alone() -> None:
    plan = tiny_plan()
    sessions, identities = make_sessions(plan, {TRACK: fake_works(plan)})
    assert set(sessions) == set(identities) == set(SITES)
    for site, session in sessions.items():
        assert session(example(PrepareTask)) == Ready(run_id=RUN, track=TRACK, site_id=site)
        assert identities[site].site_id == site
    _, others = make_sessions(plan, {TRACK: fake_works(plan)})
    assert not {one.key for one in identities.values()} & {one.key for one in others.values()}


def test_the_sites_are_attached_for_a_while_and_after_an_error_no_more() -> None:
    plan = tiny_plan()
    sessions, _ = make_sessions(plan, {TRACK: fake_works(plan)})
    with pytest.raises(KeyError), attached_sessions(sessions):
        assert attached(SITES[0]) is sessions[SITES[0]]
        raise KeyError("a bug")
    for site in SITES:
        with pytest.raises(FederationError, match="no worker is running"):
            attached(site)


def test_training_is_on_the_clock_and_evaluation_is_not() -> None:
    class Slow(FakeWork):
        def words(self, task: SumTask) -> Words:
            time.sleep(0.02)
            return super().words(task)

    work = Slow(site=SITES[0], plan=tiny_plan())
    clocked = Clocked(work)
    assert clocked.prepare() is None
    counts = clocked.words(evaluate_task())
    assert clocked.seconds == 0
    words = clocked.words(train_task())
    assert clocked.seconds >= 0.02
    np.testing.assert_array_equal(words, work.words(train_task()))
    np.testing.assert_array_equal(counts, work.words(evaluate_task()))
