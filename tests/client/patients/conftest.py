"""The real data beside the repository, where it is."""

from pathlib import Path

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
