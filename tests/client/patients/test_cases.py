"""Tests of the file of cases to answer."""

import json
from pathlib import Path

import pytest

from client.patients.cases import Case, read_cases


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines))
    return path


def test_cases_keep_the_order_of_the_file_and_further_fields_are_left_alone(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cases.jsonl",
        b'\xef\xbb\xbf{"case_id": "b", "note": "Long fingers.", "truth": "OMIM:154700"}',
        '{"case_id": "a", "note": "Café-au-lait spots."}'.encode(),
    )
    found = read_cases(path)
    assert found.cases == (
        Case(case_id="b", note="Long fingers."),
        Case(case_id="a", note="Café-au-lait spots."),
    )
    assert not found.problems


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"secret", "expected JSON"),
        (b'"secret"', "expected a JSON object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "expected JSON"),
        (b'{"note": "secret"}', "case_id: missing"),
        (b'{"case_id": "c"}', "note: missing"),
        (b'{"case_id": "c", "note": null}', "note: missing"),
        (b'{"case_id": "c", "note": "  "}', "note: expected text that is not empty, in whole characters"),
        (
            b'{"case_id": "", "note": "secret"}',
            "case_id: expected text that is not empty, in whole characters",
        ),
        (b'{"case_id": 7, "note": "secret"}', "case_id: expected text"),
        (b'{"case_id": "c", "note": ["secret"]}', "note: expected text"),
        (
            b'{"case_id": "c", "note": "secret \\ud800"}',
            "note: expected text that is not empty, in whole characters",
        ),
        (b'{"case_id": "first", "note": "secret"}', "case_id: the same as in line 1"),
    ],
)
def test_every_line_that_is_not_empty_ends_as_a_case_or_as_a_problem(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = [json.dumps({"case_id": case, "note": "Short stature."}).encode() for case in ("first", "last")]
    found = read_cases(write(tmp_path / "cases.jsonl", good[0], b"", line, good[1]))
    assert [case.case_id for case in found.cases] == ["first", "last"]
    assert [str(problem) for problem in found.problems] == [f"cases.jsonl:3: {reason}"]
    assert "secret" not in str(found.problems)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_cases(tmp_path / "none.jsonl")
