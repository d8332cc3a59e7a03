import pytest

from client.track_sessions import TrackSessions
from common.errors import FederationError
from common.ids import RunId, site_id
from common.messages import Bundle, Message, PrepareTask, Ready, Refusal

SITE, RUN = site_id("site-a"), RunId("run-1")


def task(track: str) -> PrepareTask:
    return PrepareTask(run_id=RUN, track=track, plan_digest="0" * 64)


def ready(track: str) -> Ready:
    return Ready(run_id=RUN, track=track, site_id=SITE)


def session(track: str):  # type: ignore[no-untyped-def]
    def answer(message: Message) -> Message:
        assert getattr(message, "track", None) == track
        return ready(track)

    return answer


BOTH = TrackSessions(SITE, {track: session(track) for track in ("rare_disease", "tissue_type")})


def test_a_task_reaches_the_session_of_its_track() -> None:
    for track in ("rare_disease", "tissue_type"):
        assert BOTH(task(track)) == ready(track)


def test_a_task_of_a_track_that_the_site_is_not_in_is_refused_by_name() -> None:
    alone = TrackSessions(SITE, {"rare_disease": session("rare_disease")})
    with pytest.raises(
        FederationError, match="site-a: expected a task of track rare_disease, got tissue_type"
    ):
        alone(task("tissue_type"))
    with pytest.raises(FederationError, match="got None"):
        alone(Refusal(run_id=RUN, site_id=SITE, reason="no", cause="failed"))


def test_a_part_of_a_bundle_that_fails_does_not_cost_the_others() -> None:
    alone = TrackSessions(SITE, {"rare_disease": session("rare_disease")})
    answer = alone(Bundle(parts=(task("rare_disease"), task("tissue_type"))))
    assert isinstance(answer, Bundle)
    assert answer.parts[0] == ready("rare_disease")
    assert isinstance(answer.parts[1], Refusal)


def test_a_site_without_a_session_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a session for a track of site-a, got none"):
        TrackSessions(SITE, {})
