"""Identifiers that de-identification left in a note."""

from pathlib import Path

import pytest

from client.patients.identifiers import find_identifiers, in_words
from client.patients.importers.phenopacket_store import read_cases

CASES = Path(__file__).parents[4] / "shared/data/phenopackets/cases.jsonl.gz"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DOB: 20.05.2010, tall.", "date of birth"),
        ("date of birth 1998-03-12", "date of birth"),
        ("geb. 12.03.1998", "date of birth"),
        ("born on March 12, 1998", "date of birth"),
        ("Seen on 2016-11-20.", "calendar date"),
        ("Seen on 20/11/2016 at noon.", "calendar date"),
        ("Seen on 20th November 2016", "calendar date"),
        ("am 3. März 2016 gesehen", "calendar date"),
        ("Tel. 0221 123456", "telephone number"),
        ("call 555-814-2932 any time", "telephone number"),
        ("(617) 555-1234", "telephone number"),
        ("+49 221 4780123", "telephone number"),
        ("020 7946 0958", "telephone number"),
        ("mail jane.smith@mail.example.org", "e-mail address"),
        ("MRN 00123456", "record number"),
        ("Patient ID: A-1234567", "record number"),
        ("Fallnummer 4711-0815", "record number"),
        ("NHS no. 943 476 5919", "record number"),
        ("SSN 999-12-3456", "record number"),
        ("999-12-3456", "social security number"),
        ("Mr Smith is tall.", "name with a title"),
        ("Ms. O'Neil", "name with a title"),
        ("Frau Dr. Müller", "name with a title"),
        ("lives at NW1 6XE", "postcode"),
        ("Boston, MA 02114", "postcode"),
        ("D-50937 Köln", "postcode"),
    ],
)
def test_an_identifier_is_found_once_and_as_one_kind(text: str, kind: str) -> None:
    assert find_identifiers(text) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "The patient was a 6-year-old girl. Disease onset was at birth.",
        "Height 172.5 cm, weight 61 kg, BMI 20.6, OFC 54.2 cm (-1.5 SD).",
        "c.1129C>T (p.Arg377*) in FBN1, NM_000138.5, chr15:48760000-48770000, rs123456789",
        "HP:0001166, OMIM:154700, PMID:12345678",
        "Blood pressure 120/80, ratio 3/4, 10.5-12.5 mg, 1,000,000 copies",
        "T2 lesions at L4/L5; Ki-67 of 20%; CD3 and CD20; grade 2-3 of 4.",
        "Mr and Mrs agreed; the mother, 32, and dr. by phone.",
        "In 2016 she was seen in Boston.",
    ],
)
def test_what_medicine_writes_is_no_identifier(text: str) -> None:
    assert find_identifiers(text) == {}


def test_kinds_are_counted_and_nothing_is_quoted() -> None:
    text = "Mr Smith and Mrs Smith, born 1998-03-12, seen 2016-11-20 and 2016-11-21, NW1 6XE."
    found = find_identifiers(text)
    assert found == {"date of birth": 1, "calendar date": 2, "name with a title": 2, "postcode": 1}
    assert in_words(found) == "1 date of birth, 2 calendar dates, 2 names with a title, 1 postcode"
    assert in_words({"date of birth": 2, "e-mail address": 2}) == "2 dates of birth, 2 e-mail addresses"


@pytest.mark.parametrize(
    "part",
    [
        "1",
        "a",
        "a@",
        "a.",
        "Mr ",
        "Dr ",
        "Dr",
        "+1 ",
        "tel ",
        "tel 0",
        "0 ",
        "0-",
        "MRN ",
        " ",
        "born ",
        "A-",
    ],
)
def test_the_time_grows_with_the_note_and_no_faster(part: str) -> None:
    find_identifiers(part * (2**19 // len(part)))


@pytest.mark.data
def test_real_notes_without_identifiers_have_few_warnings() -> None:
    if not CASES.exists():
        pytest.skip(f"no {CASES}")
    records = read_cases(CASES, key=bytes(16)).records
    hits = [found for record in records if (found := find_identifiers(record.note or ""))]
    assert len(records) > 8_000
    assert len(hits) / len(records) < 0.001
