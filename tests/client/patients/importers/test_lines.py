import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.patients.importers.lines import MAX_LINE_BYTES, read_lines
from client.patients.records import Problem


def read(data: bytes) -> list[tuple[int, dict[str, Any]] | Problem]:
    return list(read_lines(io.BytesIO(data), "f.jsonl"))


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none())), max_size=5))
def test_each_line_is_read_with_its_number(rows: list[dict[str, Any]]) -> None:
    data = "\n".join(json.dumps(row) for row in rows).encode()
    assert read(data) == list(enumerate(rows, start=1))


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_give_objects_and_problems(data: bytes) -> None:
    lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    assert len(read(data)) == len(lines)


def test_empty_lines_are_passed_over_and_counted() -> None:
    assert read(b'\n{"a": 1}\r\n \n{"a": 2}') == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_byte_order_mark_is_passed_over() -> None:
    assert read(b'\xef\xbb\xbf{"a": 1}\n') == [(1, {"a": 1})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "expected JSON"),
        (b"John Smith", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
        (b'{"a": NaN}', "expected finite numbers"),
        (b'["John Smith"]', "expected a JSON object"),
        (b'{"John": 1, "John": 2}', "expected every key once in an object"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_a_bad_line_is_a_problem_that_quotes_nothing_and_reading_goes_on(line: bytes, reason: str) -> None:
    assert read(line + b'\n{"a": 1}\n') == [Problem(file="f.jsonl", line=1, reason=reason), (2, {"a": 1})]


@pytest.mark.parametrize("length", [MAX_LINE_BYTES + 1, 2 * MAX_LINE_BYTES, 2 * MAX_LINE_BYTES + 1])
def test_a_line_too_long_is_a_problem_and_the_next_is_read(length: int) -> None:
    data = b" " * (length - 1) + b"\n" + b'{"a": 1}\n'
    assert read(data) == [
        Problem(file="f.jsonl", line=1, reason=f"longer than {MAX_LINE_BYTES} bytes"),
        (2, {"a": 1}),
    ]


def test_a_line_as_long_as_allowed_is_read() -> None:
    assert read(b'{"a": 1}'.ljust(MAX_LINE_BYTES - 1) + b"\n") == [(1, {"a": 1})]
