from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.session_records import OPEN_SUMS, Record, Stage, SumRecords
from client.session_store import FolderStore, MemoryStore, SessionStore
from common.errors import StaleSumError
from common.ids import RunId
from common.messages import KINDS, Message, UnmaskShares
from common.wire import to_bytes
from tests.fakes import RUN
from tests.federation.hospitals import Crash, CrashingStore
from tests.messages import SINGLE_KINDS, example

OTHER = RunId("run-10")
RECORD = Record(request="asked", facts={"mask_key": "ab" * 32, "members": ["site-a"]})
UNMASKED = Record(request="list", answer=example(UnmaskShares))


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SessionStore:
    return MemoryStore() if request.param == "memory" else FolderStore(tmp_path)


def begun(store: SessionStore, *sums: int, run: RunId = RUN) -> SumRecords:
    """Records in which these sums have come as far as their masked input."""
    records = SumRecords(store)
    for sum_id in sums:
        records.begin(run, sum_id)
        for stage in (Stage.ADVERTISE_KEYS, Stage.OPEN_SHARES, Stage.MASKED_INPUT):
            records.write(run, sum_id, stage, RECORD)
    return records


def sums_in(store: SessionStore, run: RunId = RUN) -> set[int]:
    names = [name.split(".") for name in store.names()]
    return {int(name[1]) for name in names if name[0] == run and name[1] != "closed"}


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_a_record_comes_back_with_its_answer(kind: type[Message]) -> None:
    record = Record(
        request="a\nb", facts={"text": "line\nbreak", "list": ["é", 1, None]}, answer=example(kind)
    )
    back = Record.from_bytes(record.to_bytes())
    assert (back.request, back.facts) == (record.request, record.facts)
    assert to_bytes(back.sent()) == to_bytes(record.sent())


def test_an_answer_of_any_bytes_comes_back() -> None:
    # Line breaks in the words must not be taken for the end of the first line.
    masked = example(KINDS[11], words=np.full(9, 0x0A0A0A0A, dtype=np.uint32))
    back = Record.from_bytes(Record(request="r", answer=masked).to_bytes())
    assert to_bytes(back.sent()) == to_bytes(masked)


def test_a_stage_that_answers_nothing_has_no_answer() -> None:
    back = Record.from_bytes(RECORD.to_bytes())
    assert back == RECORD
    with pytest.raises(ValueError, match="Expected a record with an answer"):
        back.sent()


def test_a_record_never_prints_its_secrets() -> None:
    assert "abab" not in repr(RECORD)
    assert "asked" in repr(RECORD)


def test_what_was_not_written_is_not_there_and_stages_are_apart(store: SessionStore) -> None:
    records = begun(store, 1)
    assert records.read(RUN, 1, Stage.MASKED_INPUT) == RECORD
    assert records.read(RUN, 1, Stage.UNMASK) is None
    assert records.read(RUN, 2, Stage.MASKED_INPUT) is None
    assert records.read(OTHER, 1, Stage.MASKED_INPUT) is None


def test_every_record_survives_a_new_session(store: SessionStore) -> None:
    begun(store, 1)
    assert SumRecords(store).read(RUN, 1, Stage.ADVERTISE_KEYS) == RECORD


def test_two_sums_of_a_run_are_open_however_many_a_coordinator_begins(store: SessionStore) -> None:
    records = SumRecords(store)
    for sum_id in range(1, 9):
        begun(store, sum_id)
        assert sums_in(store) == {number for number in (sum_id - 1, sum_id) if number}
        assert len(sums_in(store)) <= OPEN_SUMS
    for sum_id in range(1, 7):
        with pytest.raises(StaleSumError, match="this site has closed all sums up to 6"):
            records.begin(RUN, sum_id)
    records.require_open(RUN, 7)
    records.require_open(RUN, 8)


def test_a_sum_far_ahead_closes_all_but_the_one_before_it(store: SessionStore) -> None:
    records = begun(store, 1, 2, 2**31 - 1)
    assert sums_in(store) == {2**31 - 1}
    with pytest.raises(StaleSumError):
        records.begin(RUN, 3)


def test_a_sum_that_is_begun_again_keeps_what_it_has(store: SessionStore) -> None:
    records = begun(store, 1, 2)
    before = {name: store.read(name) for name in store.names()}
    records.begin(RUN, 2)
    records.begin(RUN, 1)
    assert {name: store.read(name) for name in store.names()} == before


def test_what_belongs_to_a_closed_sum_is_erased_but_for_its_last_answer(store: SessionStore) -> None:
    records = begun(store, 1, 2)
    records.write(RUN, 1, Stage.UNMASK, UNMASKED)
    records.close_up_to(RUN, 1)
    assert [name for name in store.names() if name.startswith(f"{RUN}.1.")] == [f"{RUN}.1.{Stage.UNMASK}"]
    assert to_bytes(records.read(RUN, 1, Stage.UNMASK).sent()) == to_bytes(UNMASKED.sent())
    assert records.read(RUN, 2, Stage.MASKED_INPUT) == RECORD
    records.write(RUN, 2, Stage.UNMASK, UNMASKED)
    records.close_up_to(RUN, 2)
    assert set(store.names()) == {f"{RUN}.closed", f"{RUN}.2.{Stage.UNMASK}"}


def test_what_is_closed_stays_closed(store: SessionStore) -> None:
    records = begun(store, 1, 2)
    records.close_up_to(RUN, 2)
    records.close_up_to(RUN, 1)
    for sum_id in (1, 2):
        with pytest.raises(StaleSumError, match=f"Sum {sum_id}: this site has closed all sums up to 2"):
            SumRecords(store).require_open(RUN, sum_id)
    records.require_open(RUN, 3)


def test_a_sum_whose_last_answer_is_stored_is_closed_after_a_crash_as_well(store: SessionStore) -> None:
    begun(store, 1).write(RUN, 1, Stage.UNMASK, UNMASKED)
    with pytest.raises(StaleSumError, match="closed all sums up to 1"):
        SumRecords(store).require_open(RUN, 1)
    assert set(store.names()) == {f"{RUN}.closed", f"{RUN}.1.{Stage.UNMASK}"}


def test_another_run_ends_the_one_before_for_good(store: SessionStore) -> None:
    begun(store, 1, 2)
    records = begun(store, 1, run=OTHER)
    assert sums_in(store) == set()
    assert sums_in(store, OTHER) == {1}
    for sum_id in (1, 2):
        # The keys that it had are gone; it must not give others for the same sum.
        with pytest.raises(StaleSumError):
            records.begin(RUN, sum_id)
    assert sums_in(store, OTHER) == {1}


def test_a_run_whose_name_begins_like_anothers_is_another(store: SessionStore) -> None:
    assert OTHER.startswith(RUN)
    records = begun(store, 1, 2, run=OTHER)
    records.close_up_to(RUN, 5)
    assert sums_in(store, OTHER) == {1, 2}
    records.require_open(OTHER, 2)


CHANGES: dict[str, Callable[[SumRecords], None]] = {
    "close": lambda records: records.close_up_to(RUN, 1),
    "begin": lambda records: records.begin(RUN, 3),
    "another run": lambda records: records.begin(OTHER, 1),
}


@pytest.mark.parametrize("after_the_step", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_crash_at_any_step_a_sum_is_whole_or_closed(change: str, after_the_step: bool) -> None:
    for steps in range(1, 20):
        store = CrashingStore()
        begun(store, 1, 2)
        before = store.names()
        store.steps_left, store.after = steps, after_the_step
        try:
            CHANGES[change](SumRecords(store))
        except Crash:
            store.steps_left = None
        else:
            assert steps > 4
            return
        for sum_id in (1, 2):
            own = {name for name in before if name.startswith(f"{RUN}.{sum_id}.")}
            if not own <= set(store.names()):
                with pytest.raises(StaleSumError):
                    SumRecords(store).require_open(RUN, sum_id)
    raise AssertionError("a change that does not end")
