"""The files of a FHIR bulk export."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.patients.importers.fhir_files import count_lines, find_files, read_resources
from client.patients.records import Problem
from tests.client.patients.importers.fhir_rows import patient, write_lines


def manifest(folder: Path, name: str = "output.json", **content: Any) -> None:
    (folder / name).write_text(json.dumps({"transactionTime": "2026-01-01T00:00:00Z", **content}))


def test_every_ndjson_of_the_folder_is_in_the_export(tmp_path: Path) -> None:
    names = ["1.Condition.ndjson.gz", "Patient-2.ndjson", "Patient.000.ndjson", "Patient.ndjson", "x.ndjson"]
    for name in names:
        write_lines(tmp_path / name, patient())
    (tmp_path / "notes.txt").write_text("x")
    found = find_files(tmp_path)
    assert [file.name for file in found.files] == names
    assert [file.type for file in found.files] == ["Condition", *["Patient"] * 4]
    assert (found.missing, found.problems) == (frozenset(), ())


@pytest.mark.parametrize("url", ["https://x/7", "https://x/a/7.ndjson?token=1#x", "7.ndjson", "7.ndjson.gz"])
def test_a_manifest_names_files_by_the_end_of_their_addresses(tmp_path: Path, url: str) -> None:
    write_lines(tmp_path / ("7.ndjson.gz" if url.endswith("gz") else "7.ndjson"), "x")
    manifest(tmp_path, "manifest.json", output=[{"type": "Media", "url": url, "count": 1}])
    (file,) = find_files(tmp_path).files
    assert (file.type, file.expected) == ("Media", 1)


def test_a_type_whose_file_is_missing_is_known(tmp_path: Path) -> None:
    manifest(tmp_path, output=[{"type": "Consent", "url": "x/Consent.ndjson"}])
    found = find_files(tmp_path)
    assert (found.missing, len(found.problems)) == ({"Consent"}, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"Smith", "expected JSON"),
        (b"\xff", "not UTF-8"),
        (b"{}", "output: expected a list of files"),
        (b'{"output": [1]}', "output[0]: expected a type and a url"),
        (b'{"output": [{"type": "Smith B", "url": "x"}]}', "output[0]: expected a type and a url"),
    ],
)
def test_a_manifest_that_is_none_is_a_problem(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "output.json").write_bytes(text)
    assert find_files(tmp_path).problems == (Problem(file="output.json", reason=reason),)


def test_lines_are_counted_without_being_read(tmp_path: Path) -> None:
    for name, text in (("a.ndjson", "1\n2"), ("b.ndjson", "1\n2\n"), ("c.ndjson", "")):
        (tmp_path / name).write_text(text)
    assert [count_lines(file) for file in find_files(tmp_path).files] == [2, 2, 0]


def test_a_file_with_fewer_lines_than_the_manifest_says_has_a_problem(tmp_path: Path) -> None:
    write_lines(tmp_path / "Patient.ndjson", patient())
    manifest(tmp_path, output=[{"type": "Patient", "url": "Patient.ndjson", "count": 2}])
    (file,) = find_files(tmp_path).files
    *_, last = read_resources(file)
    assert last == Problem(file="Patient.ndjson", reason="the manifest says 2 resources, the file has 1")
