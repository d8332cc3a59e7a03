import contextlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import common.flower
from common.errors import BadMessageError, UnsupportedSchemaError
from common.flower import (
    ARRAYS_RECORD,
    HEAD_KEY,
    HEAD_RECORD,
    from_record,
    run_name,
    site_of_record,
    site_record,
    to_record,
)
from common.ids import AdapterId, RoundId, RunId, SiteId
from common.messages import Contribution, Refusal, TrainTask, to_bytes
from tests.fakes import tiny_adapter

# isort: split
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict


def contribution(values: list[int]) -> Contribution:
    return Contribution(
        run_id=RunId("run-1"),
        round_id=RoundId(1),
        track="rare_disease",
        site_id=SiteId("site-a"),
        adapter_id=AdapterId("0" * 64),
        words=np.array(values, dtype=np.uint32),
    )


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_a_contribution_comes_back_from_its_record(values: list[int]) -> None:
    message = contribution(values)
    assert to_bytes(from_record(to_record(message))) == to_bytes(message)


@pytest.mark.parametrize("name", ["train", "refusal"])
def test_messages_with_and_without_arrays_come_back_from_the_bytes_of_their_record(name: str) -> None:
    train = TrainTask(
        run_id=RunId("r"), round_id=RoundId(1), track="t", plan_digest="0" * 64, adapter=tiny_adapter()
    )
    message = train if name == "train" else Refusal(run_id=RunId("r"), site_id=SiteId("s"), reason="no")
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
    adapter = tiny_adapter()
    records = [
        to_record(
            TrainTask(
                run_id=RunId("r"), round_id=RoundId(number), track="t", plan_digest="0" * 64, adapter=adapter
            )
        )
        for number in (1, 2)
    ]
    first, second = (record[ARRAYS_RECORD]["adapter.A"].object_id for record in records)
    assert first == second


def with_head(text: object) -> RecordDict:
    return RecordDict({HEAD_RECORD: ConfigRecord({HEAD_KEY: text}), ARRAYS_RECORD: ArrayRecord()})


def with_words(array: Array) -> RecordDict:
    record = to_record(contribution([1, 2, 3]))
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
        with_head(json.dumps({"schema": 1, "kind": 99})),
        with_head(json.dumps({"schema": 1, "kind": [1]})),
    ],
)
def test_a_record_that_is_no_message_is_refused(record: RecordDict) -> None:
    with pytest.raises(BadMessageError):
        from_record(record)


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


@given(st.data())
def test_a_tampered_array_raises_nothing_but_bad_message(data: st.DataObject) -> None:
    tampered = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        tampered[data.draw(st.integers(0, len(tampered) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessageError):
        from_record(with_words(Array("uint32", (3,), "numpy.ndarray", bytes(tampered))))


def test_a_newer_schema_is_refused_in_a_record() -> None:
    record = to_record(contribution([1]))
    head = json.loads(record[HEAD_RECORD][HEAD_KEY])
    record[HEAD_RECORD] = ConfigRecord({HEAD_KEY: json.dumps({**head, "schema": 2})})
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
