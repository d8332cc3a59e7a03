"""Tests of consilium-coordinator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from common.audit import read_entries
from common.charges import round_charge
from common.daemon_lock import hold
from common.enrolment_messages import read_invitation
from common.ids import RunId, SiteId
from common.peft import import_peft
from common.plan import RunPlan
from common.privacy.ledger import Ledger
from common.tracks import AnswerList
from server.calibrating import evaluate
from server.cli import NOT_RUNNING, OK, REFUSED, UNUSABLE, USAGE, main
from server.home import CoordinatorHome
from server.journal import Journal
from server.rounds import TrackState, run_round
from server.site_records import site_record
from server.status import coordinator_cohort
from simulations.link import MemoryLink
from tests.fakes import SITES, TRACK, fake_identities, fake_sites, private_plan, tiny_adapter
from tests.server.homes import FakeLink, enrolled, made_home, offered, packaged

ROOT = Path(__file__).parents[2]
BERLIN = SiteId("berlin")
RUN = RunId("first")
COMMANDS = ("init", "up", "enrol", "plan", "run", "resume", "status", "revoke", "ledger", "export")


@pytest.fixture
def home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CoordinatorHome:
    made = made_home(tmp_path / "home")
    monkeypatch.setenv("CONSILIUM_HOME", str(made.root))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return made


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> FakeLink:
    """What every command finds at the address of SuperLink."""
    link = FakeLink()
    for module in ("run_commands", "site_commands"):
        monkeypatch.setattr(f"server.{module}.SuperLink", lambda host, port: link)
    monkeypatch.setattr("server.runs.ASK_EVERY_S", 0.0)
    monkeypatch.setattr("server.runs.POLL_S", 0.01)
    return link


@contextmanager
def daemon(home: CoordinatorHome) -> Iterator[None]:
    """As if `up` ran."""
    with hold(home.run / "coordinator.lock"):
        yield


def works(home: CoordinatorHome, plan: RunPlan, *, end: bool = True, declined: str = "") -> None:
    """As a ServerApp that was started by the newest of Flower's runs: one round, or all."""
    identities = {site: identity.public() for site, identity in fake_identities(plan).items()}
    declining = {SITES[3]: declined} if declined else {}
    state = TrackState(
        plan=plan, run_id=RUN, track=TRACK, adapter=tiny_adapter(), identities=identities, declined=declining
    )
    sites = MemoryLink(fake_sites(plan))
    with suppress(KeyboardInterrupt), Journal.open(home.runs / RUN, plan, RUN) as journal:
        journal.add_flower_run(1)
        for _ in range(state.track_plan.training.rounds if end else 1):
            state = run_round(state, sites)
            journal.close(state)
        if not end:
            raise KeyboardInterrupt
        journal.close(evaluate(state, sites))


def says(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def says_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert content["schema"] == 1
    return content


def complains(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("consilium-coordinator: ")
    assert error.count("\n") == 1
    return error


def test_init_makes_a_home_that_only_its_owner_enters(home: CoordinatorHome) -> None:
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.settings().consortium == "trial"
    for secret in (home.identity_file, home.server_key, home.authority / "ca.key"):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert [entry.event for entry in read_entries(home.audit_file)] == ["made"]


def test_init_makes_it_once(home: CoordinatorHome, capsys: pytest.CaptureFixture[str]) -> None:
    before = home.identity_file.read_bytes()
    command = ["init", "--consortium", "other", "--host", "example.org"]
    assert main(command) == UNUSABLE
    assert "expected an empty folder for a new home" in complains(capsys)
    assert home.identity_file.read_bytes() == before


@pytest.mark.parametrize(
    "wrong", [["--consortium", "No Name"], ["--gateway-port", "70000"], ["--token-hours", "0"]]
)
def test_init_refuses_settings_and_leaves_nothing(
    tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["init", "--home", str(tmp_path / "new"), "--consortium", "trial", "--host", "h", *wrong]
    assert main(command) == UNUSABLE
    assert "coordinator." in complains(capsys)
    assert not (tmp_path / "new").exists()


def test_enrol_writes_an_invitation_that_only_its_owner_reads(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enrol", "berlin", "--hours", "2"]) == OK
    told = says(capsys)
    invitation = read_invitation(tmp_path / "berlin.invitation.json")
    assert (tmp_path / "berlin.invitation.json").stat().st_mode & 0o777 == 0o600
    assert (invitation.site, invitation.consortium) == (BERLIN, "trial")
    assert invitation.expires in told
    assert invitation.token not in told + (home.audit_file.read_text())
    assert "consilium-coordinator up" in told
    assert main(["enrol", "berlin"]) == UNUSABLE
    assert "is there already" in complains(capsys)


def test_enrol_refuses_a_site_that_takes_part(
    home: CoordinatorHome, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolled(home, BERLIN)
    assert main(["enrol", "berlin"]) == UNUSABLE
    assert "berlin" in complains(capsys)
    assert main(["enrol", "coordinator"]) == UNUSABLE


def test_enrol_lists_the_sites(home: CoordinatorHome, capsys: pytest.CaptureFixture[str]) -> None:
    enrolled(home, BERLIN)
    assert main(["enrol", "--list"]) == OK
    assert "berlin" in says(capsys)
    assert main(["enrol", "--list", "--json"]) == OK
    (row,) = says_json(capsys)["sites"]
    assert (row["site"], row["online"], row["last_seen"], row["revoked"]) == ("berlin", False, None, None)
    assert 89 < row["certificate_days_left"] <= 90


def test_a_plan_is_checked_offered_and_listed(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    told = says(capsys)
    assert plan.digest() in told
    assert "No bound on what the student tells about one patient" in told
    assert "not in it" in told
    assert main(["plan", "--list"]) == OK
    assert plan.digest()[:12] in says(capsys)
    assert main(["plan", "--list", "--json"]) == OK
    (row,) = says_json(capsys)["plans"]
    assert (row["digest"], row["tracks"]) == (plan.digest(), {TRACK: 4})


def test_a_plan_that_cannot_be_run_here_is_not_offered(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(packaged().to_json())
    command = ["plan", "plan.json", "--adapter", f"{TRACK}=plan.json"]
    assert main(command) == UNUSABLE
    assert "has not enrolled" in complains(capsys)
    enrolled(home, *SITES)
    assert main(command) == UNUSABLE
    assert main(["plan", "plan.json"]) == UNUSABLE
    assert "expected an initial adapter for rare_disease, got none" in capsys.readouterr().err
    assert not list(home.packages.iterdir())


def test_nothing_runs_without_up(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    says(capsys)
    for command in (["run", plan.digest()], ["resume", "first"]):
        assert main(command) == NOT_RUNNING
        assert "`consilium-coordinator up` starts it" in complains(capsys)
    assert main(["status"]) == NOT_RUNNING


def test_run_follows_a_run_to_its_end(
    home: CoordinatorHome, tmp_path: Path, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    says(capsys)

    def status(flower_id: int) -> Any:
        if link.runs[1].status == "pending":
            works(home, plan)
            link.become(1, "finished:completed")
        return link.runs[flower_id]

    link.run_status = status  # type: ignore[method-assign]
    with daemon(home):
        assert main(["run", plan.digest()[:6], "--run", RUN]) == OK
    told = says(capsys)
    assert f"{TRACK}: round 4 of 4 closed: 4 sites" in told
    assert f"{TRACK}: evaluated: 40 cases, top1 0.200" in told
    assert (link.started[0]["run"], link.started[0]["resume"]) == (RUN, False)
    assert [entry.event for entry in read_entries(home.audit_file)][-2:] == ["run-started", "run-ended"]


def test_a_run_in_which_sites_declined_says_so(
    home: CoordinatorHome, tmp_path: Path, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    says(capsys)

    def status(flower_id: int) -> Any:
        if link.runs[1].status == "pending":
            works(home, plan, declined="no patients for this track")
            link.become(1, "finished:completed")
        return link.runs[flower_id]

    link.run_status = status  # type: ignore[method-assign]
    with daemon(home):
        assert main(["run", plan.digest(), "--run", RUN]) == REFUSED
        assert f"declined     {TRACK}: {SITES[3]}: no patients for this track" in says(capsys)
        assert main(["resume", RUN]) == UNUSABLE
    assert "has finished" in complains(capsys)


def test_a_run_that_fails_says_why(
    home: CoordinatorHome, tmp_path: Path, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    start = link.start_run

    def failing(config: dict[str, Any]) -> int:
        number = start(config)
        link.become(number, "finished:failed", "identity: expected a file")
        return number

    link.start_run = failing  # type: ignore[method-assign]
    says(capsys)
    with daemon(home):
        assert main(["run", plan.digest(), "--run", RUN]) == UNUSABLE
    told = says(capsys)
    assert "failed       identity: expected a file" in told
    assert f"consilium-coordinator resume {RUN}" in told


def test_a_run_that_was_stopped_is_resumed_and_one_at_work_is_not(
    home: CoordinatorHome, tmp_path: Path, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    works(home, plan, end=False)
    says(capsys)
    with daemon(home):
        with Journal.open(home.runs / RUN, plan, RUN):
            assert main(["resume", RUN, "--detach"]) == UNUSABLE
            assert "another process works on this run" in complains(capsys)
            works_on = main(["status", RUN, "--json"])
            assert (works_on, says_json(capsys)["state"]) == (OK, "running")
        with suppress(KeyboardInterrupt), Journal.open(home.runs / RUN, plan, RUN):
            raise KeyboardInterrupt
        assert main(["resume", RUN, "--detach"]) == OK
    assert link.started[0]["resume"] is True
    assert main(["resume", "other"]) == NOT_RUNNING


def test_run_refuses_a_plan_of_a_site_that_was_revoked(
    home: CoordinatorHome, tmp_path: Path, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    assert main(["revoke", SITES[0], "--reason", "left", "--yes"]) == OK
    says(capsys)
    with daemon(home):
        assert main(["run", plan.digest()]) == UNUSABLE
    assert SITES[0] in complains(capsys)
    assert not link.started


def test_status_tells_of_sites_runs_and_certificates(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    works(home, plan)
    says(capsys)
    with daemon(home):
        assert main(["status"]) == OK
        told = says(capsys)
        assert main(["status", "--json"]) == OK
    found = says_json(capsys)
    assert "finished" in told and "40 cases, top1 0.200" in told
    assert [row["site"] for row in found["sites"]] == list(SITES)
    assert (found["up"], found["epsilon_asked"], found["runs"][0]["state"]) == (True, None, "finished")
    assert set(found["certificate_days_left"]) == {"authority", "server"}
    assert main(["status", RUN]) == OK
    assert "round 4 of 4" in says(capsys)
    assert main(["status", "other"]) == UNUSABLE
    assert "no run of this name; there are: first" in complains(capsys)


def test_revoke_shuts_a_site_out_at_once(
    home: CoordinatorHome, link: FakeLink, capsys: pytest.CaptureFixture[str]
) -> None:
    enrolled(home, BERLIN)
    assert main(["revoke", "berlin", "--reason", "left"]) == UNUSABLE
    assert "not confirmed" in complains(capsys)
    assert site_record(home, BERLIN).revoked is None
    number = link.register_node(b"as it was", BERLIN)
    with daemon(home):
        assert main(["revoke", "berlin", "--reason", "left the consortium", "--yes"]) == OK
        assert "taken out" in says(capsys)
        assert number not in link.nodes
        link.away = True
        assert main(["revoke", "berlin", "--reason", "again", "--yes"]) == REFUSED
    assert site_record(home, BERLIN).revoked is not None
    assert "left the consortium" in home.audit_file.read_text()
    assert main(["revoke", "paris", "--reason", "unknown", "--yes"]) == UNUSABLE


def test_ledger_shows_what_was_asked_of_patients(
    home: CoordinatorHome, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ledger", "show"]) == UNUSABLE
    assert "the ledger is gone" in complains(capsys)
    plan = private_plan(consortium="trial")
    ledger = Ledger.create(home.root / "ledger.db", coordinator_cohort("trial"))
    charge = {"run_id": RUN, "round_id": 1, "sum_id": 1, "roster_digest": "ab" * 32}
    ledger.charge(round_charge(plan, plan.tracks[0], **charge))  # type: ignore[arg-type]
    ledger.close()
    assert main(["ledger", "verify"]) == OK
    assert says(capsys).startswith("whole        1 entries")
    assert main(["ledger", "show", "--json"]) == OK
    assert says_json(capsys)["epsilon"] > 0
    assert main(["ledger", "export"]) == OK
    assert len(says(capsys).splitlines()) == 1


def test_export_writes_students_as_peft_reads_them(
    home: CoordinatorHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = offered(home, tmp_path)
    works(home, plan, end=False)
    says(capsys)
    assert main(["export", RUN, "--out", "students"]) == UNUSABLE
    assert "no track has finished" in complains(capsys)
    folder = home.runs / RUN / TRACK
    (folder / "adapter.safetensors").write_bytes((tmp_path / "start.safetensors").read_bytes())
    (folder / "rounds.json").write_text("{}")
    assert main(["export", RUN, "--out", "students"]) == OK
    student = tmp_path / "students" / TRACK
    assert import_peft(student).digest() == tiny_adapter().digest()
    assert AnswerList.from_json((student / "answers.json").read_text()).names == ("Marfan syndrome",)
    assert RunPlan.from_json((tmp_path / "students" / "plan.json").read_text()) == plan
    assert main(["export", RUN, "--out", "students"]) == UNUSABLE


def test_a_folder_without_a_coordinator_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--home", str(tmp_path)]) == UNUSABLE
    assert "no coordinator's home" in complains(capsys)


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["nonsense"],
        ["enrol"],
        ["enrol", "berlin", "--list"],
        ["enrol", "Berlin!"],
        ["enrol", "berlin", "--hours", "0"],
        ["plan"],
        ["plan", "nowhere.json"],
        ["plan", "--adapter", "rare_disease"],
        ["revoke", "berlin"],
        ["run", "ab", "--run", "No Name"],
        ["ledger", "burn"],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(wrong)
    assert left.value.code == USAGE


def test_the_help_says_what_the_coordinator_sees(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "in mode none not at all" in said
    assert "right answers, which are exact in every mode" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_the_exit_statuses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == OK
    assert "exit status, of all commands:" in says(capsys)


def test_the_program_has_its_commands_and_loads_no_deep_learning() -> None:
    code = (
        "import sys\nfrom server.cli import PROGRAM\n"
        "print(*(command.name for command in PROGRAM.commands))\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(COMMANDS)
