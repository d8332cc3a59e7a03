import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common.flower
from common.errors import BadMessageError, UnsupportedSchemaError
from common.flower import (
    ARRAYS_RECORD,
    HEAD_KEY,
    HEAD_RECORD,
    Recorder,
    from_record,
    run_name,
    site_of_record,
    site_record,
    to_record,
)
from common.ids import SiteId
from common.messages import KINDS, Bundle, KeysRequest, MaskedInput, Message
from common.wire import MAX_HEAD, SCHEMA, to_bytes
from tests.fakes import tiny_adapter
from tests.messages import example, messages, train_task

# isort: split
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

# No deadline: another test may hold the processor.
few = settings(max_examples=60, deadline=None)


def masked(values: list[int]) -> MaskedInput:
    return example(MaskedInput, words=np.array(values, dtype=np.uint32))


@few
@given(messages)
def test_a_message_comes_back_from_its_record(message: Message) -> None:
    assert to_bytes(from_record(to_record(message))) == to_bytes(message)


@pytest.mark.parametrize("kind", KINDS.values())
def test_messages_with_and_without_arrays_come_back_from_the_bytes_of_their_record(
    kind: type[Message],
) -> None:
    message = example(kind)
    record = to_record(message)
    # What the SuperLink stores and sends: each object by itself.
    head = ConfigRecord.inflate(record[HEAD_RECORD].deflate())
    arrays = ArrayRecord(
        {
            key: Array(array.dtype, array.shape, array.stype, array.data)
            for key, array in record[ARRAYS_RECORD].items()
        }
    )
    back = from_record(RecordDict({HEAD_RECORD: head, ARRAYS_RECORD: arrays}))
    assert to_bytes(back) == to_bytes(message)


def test_an_unchanged_block_is_the_same_object_in_the_next_round() -> None:
    records = [to_record(train_task(round_id=number, adapter=tiny_adapter())) for number in (1, 2)]
    first, second = (record[ARRAYS_RECORD]["adapter.A"].object_id for record in records)
    assert first == second


def test_an_adapter_that_goes_to_many_sites_becomes_arrays_once() -> None:
    recorder, task = Recorder(), train_task()
    alone = recorder.record(task)
    riding = recorder.record(Bundle(parts=(train_task(sum_id=2, adapter=task.adapter), example(KeysRequest))))
    for block in "AB":
        first, second = alone[ARRAYS_RECORD][f"adapter.{block}"], riding[ARRAYS_RECORD][f"0.adapter.{block}"]
        assert first.data is second.data
    other = to_record(task)
    assert other[ARRAYS_RECORD]["adapter.A"].data is not alone[ARRAYS_RECORD]["adapter.A"].data


def test_a_recorder_keeps_apart_what_two_messages_hold() -> None:
    recorder = Recorder()
    # The second vector may be made where the first one was.
    records = [recorder.record(masked([number])) for number in range(50)]
    assert [int(from_record(record).words[0]) for record in records] == list(range(50))


def with_head(text: object) -> RecordDict:
    return RecordDict({HEAD_RECORD: ConfigRecord({HEAD_KEY: text}), ARRAYS_RECORD: ArrayRecord()})


def with_words(array: Array) -> RecordDict:
    record = to_record(masked([1, 2, 3]))
    record[ARRAYS_RECORD] = ArrayRecord({"words": array})
    return record


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({HEAD_RECORD: ConfigRecord({HEAD_KEY: "{}"})}),
        RecordDict({HEAD_RECORD: ArrayRecord(), ARRAYS_RECORD: ArrayRecord()}),
        RecordDict({HEAD_RECORD: ConfigRecord(), ARRAYS_RECORD: ArrayRecord()}),
        with_head(3),
        with_head("[]"),
        with_head("[" * 100_000),
        with_head("1" * 5000),
        with_head("{}"),
        with_head(json.dumps({"schema": SCHEMA, "kind": 99})),
        with_head(json.dumps({"schema": SCHEMA, "kind": [1]})),
    ],
)
def test_a_record_that_is_no_message_is_refused(record: RecordDict) -> None:
    with pytest.raises(BadMessageError):
        from_record(record)


def test_a_head_longer_than_it_may_be_is_refused_before_it_is_read() -> None:
    with pytest.raises(BadMessageError, match=f"head: expected at most {MAX_HEAD} characters"):
        from_record(with_head("[" * (MAX_HEAD + 1)))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


GOOD = npy(np.array([1, 2, 3], dtype=np.uint32))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:5],
        GOOD[:-1],
        GOOD + b"\0",
        b"PK\x03\x04" + GOOD,
        GOOD.replace(b"(3,)", b"(99999999999999,)".ljust(4)),
        GOOD.replace(b"'<u4'", b"'<i4'"),
        GOOD.replace(b"(3,)", b"(-3)"),
        GOOD.replace(b"{", b"("),
        npy(np.array([[1, 2, 3]], dtype=np.uint32)),
        npy(np.array(["patient"], dtype=object)),
        npy(np.float64(3)),
    ],
    ids=range(12),
)
def test_an_array_that_does_not_bear_out_its_header_is_refused(data: bytes) -> None:
    from_record(with_words(Array("uint32", (3,), "numpy.ndarray", GOOD)))
    with pytest.raises(BadMessageError):
        from_record(with_words(Array("uint32", (3,), "numpy.ndarray", data)))


@few
@given(st.data())
def test_a_tampered_array_raises_nothing_but_bad_message(data: st.DataObject) -> None:
    tampered = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        tampered[data.draw(st.integers(0, len(tampered) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessageError):
        from_record(with_words(Array("uint32", (3,), "numpy.ndarray", bytes(tampered))))


def test_a_newer_schema_is_refused_in_a_record() -> None:
    record = to_record(masked([1]))
    head = json.loads(record[HEAD_RECORD][HEAD_KEY])
    record[HEAD_RECORD] = ConfigRecord({HEAD_KEY: json.dumps({**head, "schema": SCHEMA + 1})})
    with pytest.raises(UnsupportedSchemaError):
        from_record(record)


def test_a_node_says_its_site() -> None:
    assert site_of_record(site_record(SiteId("site-a"))) == "site-a"
    for record in (RecordDict(), RecordDict({"site": ConfigRecord({"site_id": "../a"})})):
        with pytest.raises(BadMessageError):
            site_of_record(record)


def test_the_longest_run_of_flower_has_a_name() -> None:
    assert run_name(2**64 - 1) == "run-18446744073709551615"


QUIET_CHECK = """
import {module}
from flwr.supercore import telemetry, update_check
import os
assert telemetry.FLWR_TELEMETRY_ENABLED == "0", telemetry.FLWR_TELEMETRY_ENABLED
assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
"""


@pytest.mark.parametrize("before", ["", "import flwr.app"], ids=["first", "after Flower"])
def test_importing_it_keeps_flower_quiet(before: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    script = f"{before}\n{QUIET_CHECK.format(module='common.flower')}"
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_what_keeps_flower_quiet_are_variables_that_flower_reads() -> None:
    assert set(common.flower.QUIET) == {"FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"}
    from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK

    assert FLWR_DISABLE_UPDATE_CHECK == "FLWR_DISABLE_UPDATE_CHECK"
