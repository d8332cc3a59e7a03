"""The operation lists would notice: with a check taken out, one of the first lists fails."""

from collections.abc import Callable

import pytest

from client import session as client_session
from client.session_records import Record, Stage, SumRecords
from common.ids import RunId
from common.secagg import keys, sharing, survivors
from server import session as server_session
from tests.federation.play import play_seed

ENOUGH = 400


def nothing(*args: object, **kwargs: object) -> None:
    """No check at all."""


def plant_no_list_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(survivors.SurvivorList, "check", nothing)


def plant_forgotten_answers(patch: pytest.MonkeyPatch) -> None:
    read, forgotten = SumRecords.read, (Stage.UNMASK, Stage.SIGN_LIST)

    def forget(self: SumRecords, run_id: RunId, sum_id: int, stage: Stage) -> Record | None:
        return None if stage in forgotten else read(self, run_id, sum_id, stage)

    patch.setattr(SumRecords, "read", forget)
    patch.setattr(SumRecords, "close_up_to", nothing)
    patch.setattr(SumRecords, "require_open", nothing)


def plant_masks_that_ignore_the_adapter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(client_session, "sum_topic", lambda task, adapter_id: bytes(32))
    patch.setattr(server_session, "sum_topic", lambda task, adapter_id: bytes(32))


def plant_unchecked_secrets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        server_session,
        "recover",
        lambda shares, threshold, is_right: (
            sharing.join(dict(list(shares.items())[:threshold])) or bytes(32),
            tuple(shares)[:threshold],
        ),
    )


def plant_low_threshold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keys, "share_threshold", lambda sites: sites // 2)


@pytest.mark.parametrize(
    "plant",
    [
        plant_no_list_check,
        plant_forgotten_answers,
        plant_masks_that_ignore_the_adapter,
        plant_unchecked_secrets,
        plant_low_threshold,
    ],
    ids=lambda plant: plant.__name__.removeprefix("plant_"),
)
def test_the_lists_catch(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    for seed in range(ENOUGH):
        try:
            play_seed(seed)
        except AssertionError:
            return
    pytest.fail(f"{ENOUGH} lists did not notice")
