"""The real data beside the repository, where it is."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from client.patients.importers.phenopacket_store import read_cases
from client.patients.records import PatientSet

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    if not (DATA / "phenopackets" / "cases.jsonl.gz").is_file():
        pytest.skip(f"the real data are not at {DATA}")
    return DATA


@pytest.fixture(scope="session")
def real_set(data_root: Path) -> PatientSet:
    return read_cases(data_root / "phenopackets" / "cases.jsonl.gz", key=bytes(range(32)))


@pytest.fixture(scope="session")
def real_rows(data_root: Path) -> list[dict[str, Any]]:
    """The lines behind the records, in the same order."""
    with gzip.open(data_root / "phenopackets" / "cases.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
