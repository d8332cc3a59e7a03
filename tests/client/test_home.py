from pathlib import Path

import pytest

from client.home import SiteHome
from common.errors import BadFileError


@pytest.mark.parametrize("name", ["", "..", "North", "a/b", "-north"])
def test_a_consortium_that_cannot_be_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadFileError, match="expected a consortium of lower-case letters"):
        SiteHome(tmp_path).consortium(name)


@pytest.mark.parametrize("cohort", ["", "..", "a/b", "a b"])
def test_a_cohort_that_cannot_be_a_folder_is_refused(tmp_path: Path, cohort: str) -> None:
    with pytest.raises(BadFileError, match="cohorts"):
        SiteHome(tmp_path).ledger_file(cohort)


def test_the_only_consortium_needs_no_name_and_one_of_two_does(tmp_path: Path) -> None:
    home = SiteHome(tmp_path)
    with pytest.raises(BadFileError, match="this home is in none"):
        home.the_consortium(None)
    home.consortium("north").root.mkdir(parents=True)
    assert home.the_consortium(None).name == "north"
    home.consortium("south").root.mkdir()
    with pytest.raises(BadFileError, match="north, south"):
        home.the_consortium(None)
    assert home.the_consortium("south").name == "south"


def test_the_ledger_is_the_same_for_all_consortia(tmp_path: Path) -> None:
    ledger = SiteHome(tmp_path).ledger_file("adults")
    assert ledger == tmp_path / "cohorts" / "adults" / "ledger.db"
