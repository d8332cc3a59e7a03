import pytest

from common.errors import FederationError
from common.ids import RoundId, SiteId
from common.messages import Contribution, EvaluateTask, Message, PrepareTask, Ready, Refusal, TrainTask
from simulations.link import INJECTED, Fault, MemoryLink
from tests.fakes import RUN, SITES, TRACK, fake_sites, tiny_adapter, tiny_plan

A, B = SITES[:2]


def train(round_id: int) -> TrainTask:
    return TrainTask(
        run_id=RUN,
        round_id=RoundId(round_id),
        track=TRACK,
        plan_digest=tiny_plan().digest(),
        adapter=tiny_adapter(),
    )


def exchange(link: MemoryLink, task: Message) -> dict[SiteId, Message]:
    return dict(link.exchange(dict.fromkeys(link.sites(), task), 1.0))


def test_every_site_answers_its_task() -> None:
    replies = exchange(MemoryLink(fake_sites(tiny_plan())), train(1))
    assert list(replies) == list(SITES)
    assert all(isinstance(reply, Contribution) and reply.site_id == site for site, reply in replies.items())


def test_a_site_does_not_share_the_coordinators_adapter() -> None:
    task = train(1)
    seen = []

    def keep(message: Message) -> Message:
        seen.append(message)
        return Ready(run_id=RUN, track=TRACK, site_id=A)

    MemoryLink({A: keep}).exchange({A: task}, 1.0)
    assert seen[0].adapter == task.adapter
    assert seen[0].adapter is not task.adapter


@pytest.mark.parametrize(("fault", "works"), [(Fault.DROP, False), (Fault.LATE, True), (Fault.REFUSE, False)])
def test_a_fault_hits_its_site_in_its_round_once(fault: Fault, works: bool) -> None:
    worked = []
    sites = fake_sites(tiny_plan())

    def watched(message: Message) -> Message:
        worked.append(message)
        return sites[B](message)

    link = MemoryLink({**sites, B: watched}, {(RoundId(2), B): fault})
    assert isinstance(exchange(link, train(1))[B], Contribution)
    hit = exchange(link, train(2))
    if fault is Fault.REFUSE:
        assert hit[B] == Refusal(run_id=RUN, site_id=B, reason=INJECTED)
    else:
        assert B not in hit
    assert isinstance(hit[A], Contribution)
    assert len(worked) == 1 + works
    assert isinstance(exchange(link, train(2))[B], Contribution)


def test_preparation_is_round_0_and_evaluation_is_left_alone() -> None:
    digest = tiny_plan().digest()
    prepare = PrepareTask(run_id=RUN, track=TRACK, plan_digest=digest)
    evaluate = EvaluateTask(
        run_id=RUN, round_id=RoundId(0), track=TRACK, plan_digest=digest, adapter=tiny_adapter()
    )
    link = MemoryLink(fake_sites(tiny_plan()), {(RoundId(0), A): Fault.DROP})
    assert A in exchange(link, evaluate)
    assert A not in exchange(link, prepare)


def test_what_the_world_may_do_becomes_a_refusal_and_a_mistake_stays_an_error() -> None:
    def refuses(message: Message) -> Message:
        raise FederationError("the plan is not approved")

    reply = MemoryLink({A: refuses}).exchange({A: train(1)}, 1.0)[A]
    assert isinstance(reply, Refusal)
    assert reply.reason == "the plan is not approved"

    def wrong(message: Message) -> Message:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        MemoryLink({A: wrong}).exchange({A: train(1)}, 1.0)


def test_a_task_for_a_site_that_is_not_there_is_a_dropout() -> None:
    assert MemoryLink({}).exchange({A: train(1)}, 1.0) == {}


def test_a_fault_at_no_site_and_a_deadline_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="site-a"):
        MemoryLink({}, {(RoundId(1), A): Fault.DROP})
    with pytest.raises(ValueError, match="timeout_s > 0"):
        MemoryLink({}).exchange({}, 0)
