import itertools

import pytest
from flwr.proto import fleet_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadMessageError
from server.node_field import MOST_FIELDS, FieldOne, Value, node_message


def read(data: bytes, *cuts: int) -> list[Value]:
    found: list[Value] = []
    scan = FieldOne(found.append)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        scan.feed(data[start:end])
    scan.finish()
    return found


@given(
    number=st.integers(0, 2**64 - 1),
    content=st.binary(max_size=3000),
    run_id=st.integers(0, 2**64 - 1),
    cuts=st.lists(st.integers(0, 4000), max_size=5),
)
def test_the_node_of_flowers_own_messages_is_found_however_they_are_cut(
    number: int, content: bytes, run_id: int, cuts: list[int]
) -> None:
    message = message_pb2.PushObjectRequest(
        node=Node(node_id=number), run_id=run_id, object_id="a", object_content=content
    )
    expected = b"" if number == 0 else node_message(number)
    assert read(message.SerializeToString(), *cuts) == [expected]
    if number:
        numbered = fleet_pb2.DeactivateNodeRequest(node_id=number)
        assert read(numbered.SerializeToString(), *cuts) == [number]


def test_a_field_after_eight_and_four_bytes_is_found() -> None:
    heartbeat = fleet_pb2.ActivateNodeRequest(public_key=b"key", heartbeat_interval=30.0)
    assert read(heartbeat.SerializeToString()) == [b"key"]
    assert read(b"\x11" + bytes(8) + b"\x1d" + bytes(4) + b"\x0a\x01k") == [b"k"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "names no node"),
        (b"\x10\x01", "names no node"),
        (b"\x08\x01\x08\x01", "expected one node"),
        # The number 1 in more bytes than it needs.
        (b"\x08\x01\x88\x80\x00\x02", "expected one node"),
        (b"\x0d" + bytes(4), "expected one node"),
        (b"\x08\x01\x12\x05ab", "is cut"),
        (b"\x08", "is cut"),
        (b"\x0b\x0c", "no protobuf message"),
        (b"\x00\x00", "no protobuf message"),
        (b"\x08" + b"\xff" * 10, "no protobuf message"),
        (b"\xff" * 9 + b"\x01", "no protobuf message"),
        (b"\x0a\x81\x08", "at most 1024 bytes"),
        (b"\x08\x01" + b"\x10\x01" * MOST_FIELDS, f"at most {MOST_FIELDS} fields"),
    ],
)
def test_what_is_no_message_with_one_node_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(BadMessageError, match=reason):
        read(data)
    with pytest.raises(BadMessageError, match=reason):
        read(data, *range(min(len(data), 40)))


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        (found,) = read(data)
    except BadMessageError:
        return
    # protobuf agrees on it.
    if isinstance(found, int):
        parsed = fleet_pb2.DeactivateNodeRequest()
        parsed.ParseFromString(data)
        assert parsed.node_id == found
