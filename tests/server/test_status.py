"""Tests of what a coordinator tells of itself."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.charges import round_charge
from common.errors import BadFileError
from common.ids import RunId, SiteId
from common.privacy.ledger import Ledger
from server.home import CoordinatorHome
from server.journal import Journal, read_progress
from server.rounds import run_round
from server.site_records import revoke
from server.status import (
    CoordinatorCollector,
    coordinator_cohort,
    ledger_epsilon,
    process_rows,
    run_folders,
    run_row,
    site_rows,
    state_of,
)
from simulations.link import MemoryLink
from tests.fakes import RUN, TRACK, fake_sites, private_plan, tiny_state
from tests.server.homes import CONSORTIUM, enrolled, made_home

BERLIN, PARIS = SiteId("berlin"), SiteId("paris")
START = tiny_state(rounds=2)


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return made_home(tmp_path / "home")


def ran(home: CoordinatorHome, run: RunId = RUN) -> None:
    """One round of a run that was stopped."""
    with suppress(KeyboardInterrupt), Journal.open(home.runs / run, START.plan, run) as journal:
        journal.close(run_round(START, MemoryLink(fake_sites(START.plan))))
        raise KeyboardInterrupt


def charged(home: CoordinatorHome) -> None:
    plan = private_plan()
    ledger = Ledger.create(home.root / "ledger.db", coordinator_cohort(CONSORTIUM))
    ledger.charge(
        round_charge(plan, plan.tracks[0], run_id=RUN, round_id=1, sum_id=1, roster_digest="ab" * 32)
    )
    ledger.close()


def metrics(home: CoordinatorHome) -> list[str]:
    registry = CollectorRegistry()
    registry.register(CoordinatorCollector(home, CONSORTIUM))
    return generate_latest(registry).decode().splitlines()


def test_sites_are_listed_with_what_is_left_of_their_certificates(home: CoordinatorHome) -> None:
    enrolled(home, BERLIN, PARIS)
    revoke(home, PARIS)
    berlin, paris = site_rows(home, datetime.now(UTC) + timedelta(days=89))
    assert (berlin["site"], berlin["revoked"]) == (BERLIN, None)
    assert berlin["certificate_days_left"] == 1.0
    assert paris["revoked"] is not None and not paris["online"]


def test_a_run_that_nobody_works_on_has_crashed(home: CoordinatorHome) -> None:
    ran(home)
    folder = home.runs / RUN
    assert state_of(read_progress(folder)) == "stopped"
    journal = Journal.open(folder, START.plan, RUN)
    assert state_of(read_progress(folder)) == "running"
    journal._lock.close()
    assert state_of(read_progress(folder)) == "crashed"


def test_a_run_has_its_rounds_survivors_and_bytes(home: CoordinatorHome) -> None:
    ran(home)
    (folder,) = run_folders(home)
    row = run_row(folder)
    track = row["tracks"][TRACK]
    assert (row["run_id"], row["state"], track["round_id"], track["rounds"]) == (RUN, "stopped", 1, 2)
    assert len(track["survivors"]) == 4
    assert min(track["bytes_up"], track["bytes_down"]) > 1000


def test_prometheus_sees_sites_runs_rounds_certificates_and_the_database(home: CoordinatorHome) -> None:
    enrolled(home, BERLIN)
    ran(home)
    home.state_file.write_bytes(bytes(1000))
    found = metrics(home)
    for line in (
        'consilium_site_online{site="berlin"} 0.0',
        'consilium_site_certificate_days_left{site="berlin"} 90.0',
        'consilium_runs{state="stopped"} 1.0',
        f'consilium_round{{run="{RUN}",track="{TRACK}"}} 1.0',
        f'consilium_round_survivors{{run="{RUN}",track="{TRACK}"}} 4.0',
        'consilium_certificate_days_left{certificate="server"} 398.0',
        "consilium_state_bytes 1000.0",
    ):
        assert line in found
    assert not any(line.startswith("consilium_epsilon_spent") for line in found)


def test_prometheus_sees_what_was_asked_of_patients(home: CoordinatorHome) -> None:
    assert ledger_epsilon(home, CONSORTIUM) is None
    charged(home)
    epsilon = ledger_epsilon(home, CONSORTIUM)
    assert epsilon is not None and epsilon > 0
    assert f"consilium_epsilon_spent {epsilon}" in metrics(home)


def test_a_damaged_run_is_counted_and_another_consortiums_ledger_is_an_error(home: CoordinatorHome) -> None:
    ran(home)
    (home.runs / RUN / "run.json").write_text("{}")
    assert 'consilium_runs{state="damaged"} 1.0' in metrics(home)
    charged(home)
    with pytest.raises(BadFileError):
        ledger_epsilon(home, "another-consortium")


def test_without_up_there_are_no_processes(home: CoordinatorHome) -> None:
    assert process_rows(home) == []
