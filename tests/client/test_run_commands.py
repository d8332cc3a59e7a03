"""The running site by commands: start, status, audit; and that nothing it says is about a patient."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from client.approvals import approve_plan
from client.cli import NOT_RUNNING, OK, UNUSABLE, USAGE, main
from client.home import SiteHome
from client.settings import read_settings
from common.audit import AuditLog, verify
from common.certificates import in_groups
from common.charges import round_charge
from common.ids import RoundId, RunId
from common.pki import write_public
from common.plan_package import PlanPackage
from common.privacy.budget import epsilon_spent
from common.privacy.ledger import Ledger
from tests.client.homes import ANSWERS, NOW
from tests.client.test_daemon import ROOT, eventually, get, rows
from tests.client.test_setup_commands import Coordinator, enrolled
from tests.fakes import fake_identities, private_plan

# Starts the daemon as the command does, over stand-ins for its processes.
STARTING = """
import pathlib, sys
import client.daemon
from client.cli import main
from client.home import SiteHome
from tests.client.test_daemon import stand_ins
home = pathlib.Path(sys.argv[1])
client.daemon.site_programs = lambda site, consortium, settings: stand_ins(consortium, home / "port")
sys.exit(main(["start", "--home", str(home)]))
"""
CANARIES = ("canary-patient-7", "Canarina Lovelace", "canary-photo", "CANARY-DIAGNOSIS")


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteHome]:
    # Not tmp_path, which has the test's name in it: a socket's path is short.
    tmp_path = tmp_path_factory.mktemp("r")
    """An enrolled site with a plan that one person approved, a charge, a cap and two lines of audit."""
    coordinator = Coordinator(tmp_path / "coordinator")
    found = enrolled(tmp_path, coordinator, "site-a")
    coordinator.server.stop(None).wait()
    text = found.settings_file.read_text()
    settings = "cap: {epsilon: 9.0, delta: 1.0e-5}\nmodels: {bases: {rare_disease: /srv/base}}\n"
    found.settings_file.write_text(text + settings)
    filled(found)
    yield found


def filled(home: SiteHome) -> PlanPackage:
    plan = private_plan(consortium="trial")
    plan = replace(plan, tracks=tuple(replace(t, answers_digest=ANSWERS.digest()) for t in plan.tracks))
    package = PlanPackage(plan=plan, answers={track.track: ANSWERS for track in plan.tracks})
    consortium = home.consortium("trial")
    (consortium.root / "approved").mkdir()
    for site, identity in fake_identities(plan).items():
        if site != "site-a":
            write_public(identity.public(), consortium.root / "approved")
    approve_plan(consortium, read_settings(home.settings_file), package, by="Dr Adams", now=NOW)
    ledger = Ledger.open(home.ledger_file("patients"), "patients")
    ledger.charge(
        round_charge(
            plan,
            plan.tracks[0],
            run_id=RunId("run-1"),
            round_id=RoundId(1),
            sum_id=1,
            roster_digest="ab" * 32,
        )
    )
    ledger.close()
    log = AuditLog(consortium.audit_file)
    log.append("let-in", run="run-1", plan=plan.digest())
    log.append("refused", run="run-2", reason="plan 00 is not approved here")
    return package


def run(home: SiteHome, *words: str) -> int:
    return main([*words, "--home", str(home.root)])


@contextmanager
def started(home: SiteHome) -> Iterator[subprocess.Popen[str]]:
    (home.root / "port").write_text("4001")
    daemon = subprocess.Popen(
        [sys.executable, "-c", STARTING, str(home.root)], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    try:
        eventually(lambda: [row.state for row in rows(home.consortium("trial"))] == ["running"] * 3)
        yield daemon
    finally:
        daemon.kill()
        daemon.wait()


def test_status_of_a_site_that_does_not_run(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(home, "status", "--json") == NOT_RUNNING
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert found["daemon"] == {"running": False, "pid": None, "since": None, "health_port": None}
    assert (found["processes"], found["worker"], found["connection"]) == ([], None, None)
    assert found["certificate"]["days_left"] == pytest.approx(90, abs=0.1)
    assert found["sites"] == ["site-b", "site-c", "site-d"]
    assert [(plan["name"], plan["by"], plan["needed"]) for plan in found["plans"]] == [
        ("a tiny plan", ["Dr Adams"], 1)
    ]
    assert [line["reason"] for line in found["refusals"]] == ["plan 00 is not approved here"]
    assert run(home, "status") == NOT_RUNNING
    out = capsys.readouterr().out
    assert "daemon       NOT RUNNING" in out
    assert "reason plan 00 is not approved here" in out


def test_the_budget_is_that_of_the_ledger_and_the_cap(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger.open(home.ledger_file("patients"), "patients")
    spent = epsilon_spent(ledger.entries(), 1e-5)
    ledger.close()
    capsys.readouterr()
    run(home, "status", "--json")
    assert json.loads(capsys.readouterr().out)["budget"] == {
        "cohort": "patients",
        "entries": 1,
        "delta": 1e-5,
        "epsilon": spent,
        "cap": 9.0,
        "left": 9.0 - spent,
    }
    assert run(home, "ledger", "show", "--json") == OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["cohort"], shown["epsilon"]) == (1, "patients", spent)
    assert run(home, "ledger", "verify") == OK
    assert capsys.readouterr().out.startswith("whole        1 entries, head ")


def test_a_started_site_says_what_it_does_and_ends_when_told(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    consortium = home.consortium("trial")
    with started(home) as daemon:
        work = {"state": "training", "plan": "ab" * 32, "run": "run-1", "track": "rare_disease", "round": 3}
        work |= {"pid": daemon.pid, "metrics": "", "seconds": {"load": 1.5}}
        consortium.worker_status.write_text(json.dumps(work))
        capsys.readouterr()
        assert run(home, "status") == OK
        out = capsys.readouterr().out
        for name in ("worker", "outbound", "supernode"):
            assert f"process      {name}: running, 0 restarts" in out
        expected = (
            "training; plan abababababab, run run-1, track rare_disease, round 3; last task: load 1.5 s"
        )
        assert expected in out
        assert "connection   gateway hub.example:443, state connected" in out
        assert run(home, "status", "--json") == OK
        found = json.loads(capsys.readouterr().out)
        assert (found["daemon"]["pid"], found["worker"]["round"]) == (daemon.pid, 3)
        assert "metrics" not in found["worker"]
        assert {"flwr-clientapp", "flwr-serverapp"} <= {
            path.name for path in consortium.executables.iterdir()
        }
        assert get(consortium, "/health")[0] == 200
        proxy = json.loads(consortium.proxy_status.read_text())
        trouble = {**proxy, "state": "refused", "reason": "hub.example:443: the certificate has ended"}
        consortium.proxy_status.write_text(json.dumps(trouble))
        status, text = get(consortium, "/health")
        assert (status, json.loads(text)["failing"]) == (503, {"gateway": trouble["reason"]})
        assert "consilium_gateway_usable 0.0" in get(consortium, "/metrics")[1]
        # A second one.
        assert run(home, "start") == UNUSABLE
        assert "only one may run here" in capsys.readouterr().err
        daemon.send_signal(signal.SIGTERM)
        _, log = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    order = [line["child"] for line in lines if line.get("what") == "stopped"]
    assert order == ["supernode", "worker", "outbound"]
    assert lines[-1]["event"] == "trial: stopped"
    assert run(home, "status") == NOT_RUNNING


def test_no_log_status_or_metric_is_about_a_patient(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    identifier, note, photo, diagnosis = CANARIES
    data = read_settings(home.settings_file).data
    (data / "photos").mkdir()
    (data / "photos" / f"{photo}.png").write_bytes(b"no image")
    record = {"schema": 1, "patient_id": identifier, "note": note, "photo": f"photos/{photo}.png"}
    (data / "patients.jsonl").write_text(json.dumps({**record, "label": {"rare_disease": diagnosis}}) + "\n")
    # The stand-in for the worker fails as a library would, with a patient's words.
    (home.root / "fails").write_text(str(data / "patients.jsonl"))
    consortium = home.consortium("trial")
    said = []
    with started(home) as daemon:
        eventually(lambda: "JSONDecodeError" in (consortium.logs / "worker.log").read_text())
        capsys.readouterr()
        for words in (["status"], ["status", "--json"], ["audit"], ["ledger", "show"], ["ledger", "export"]):
            assert run(home, *words) == OK
        said += [*capsys.readouterr(), get(consortium, "/health")[1], get(consortium, "/metrics")[1]]
        daemon.send_signal(signal.SIGTERM)
        said += [text or "" for text in daemon.communicate(timeout=30)]
    files = [
        path for folder in (consortium.logs, consortium.run) for path in folder.rglob("*") if path.is_file()
    ]
    assert {"worker.log", "outbound.log", "supernode.log"} <= {path.name for path in files}
    said += [path.read_text(errors="replace") for path in [*files, consortium.audit_file]]
    assert not [canary for canary in CANARIES for text in said if canary in text]


def test_audit_lists_and_verifies(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    path = home.consortium("trial").audit_file
    capsys.readouterr()
    assert run(home, "audit") == OK
    out = capsys.readouterr().out
    assert out.index("let-in") < out.index("reason plan 00 is not approved here")
    assert run(home, "audit", "--json", "--last", "1") == OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], [line["event"] for line in shown["lines"]]) == (1, ["refused"])
    assert run(home, "audit", "--verify") == OK
    assert capsys.readouterr().out == f"whole        2 lines, head {in_groups(verify(path).hash)}\n"
    assert run(home, "audit", "--verify", "--json") == OK
    assert json.loads(capsys.readouterr().out)["head"] == verify(path).hash
    path.write_text(path.read_text().replace("run-2", "run-3"))
    assert run(home, "audit", "--verify") == UNUSABLE
    assert "not the line that was written" in capsys.readouterr().err
    assert run(home, "status") == UNUSABLE


@pytest.mark.parametrize("last", ["0", "-1", "x"])
def test_a_number_of_lines_that_is_none_is_refused(
    home: SiteHome, capsys: pytest.CaptureFixture[str], last: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(home, "audit", f"--last={last}")
    assert ended.value.code == USAGE
    assert "expected a whole number of 1 or more" in capsys.readouterr().err
