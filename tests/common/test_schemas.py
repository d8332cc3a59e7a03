"""Every durable file says its schema; a newer one is refused by name, and nothing of it is read."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from client.enrolment import Coordinator, read_coordinator
from client.home import SiteHome
from client.keys import Keyring
from client.patients.importers.batches import MARKER_FILE, read_marker
from client.preferences.store import StoredPairs, load_pairs, save_pairs
from client.settings import SiteSettings, read_settings
from client.student.predict import ANSWERS_FILE, STUDENT_FILE, StudentCard, load_student, save_student
from common.adapter import load_adapter, save_adapter
from common.audit import AuditLog, head_file, read_entries
from common.canonical import plain
from common.certificates import Authority, make_csr, new_key
from common.durable import write_durable
from common.enrolment_messages import read_invitation, write_invitation
from common.errors import FederationError, SettingsError, UnsupportedSchemaError
from common.ids import RunId, SiteId
from common.pki import create_identity, read_identity, read_public, write_public
from common.plan import PLAN_SCHEMA, RunPlan
from common.plan_package import PlanPackage, read_package, write_package
from common.privacy.ledger import Ledger
from common.privacy.ledger_receipts import read_receipts, receipts_path, write_receipts
from common.tracks import Answer, AnswerList
from server.home import CoordinatorHome
from server.invitations import make_coordinator, make_invitation
from server.journal import Journal, read_progress
from server.site_records import add_site, site_record
from server.tokens import Tokens
from tests.fakes import tiny_adapter, tiny_plan

SITE, COHORT = SiteId("alpha"), "alpha-2026"
SETTINGS = SiteSettings(site=SITE, cohort=COHORT, data=Path("data"))
ANSWERS = AnswerList(answers=(Answer(id="OMIM:1", name="One"), Answer(id="OMIM:2", name="Two")))

# Makes the file in a folder; its path, and what reads it.
Made = tuple[Path, Callable[[], object]]


def identity(folder: Path) -> Made:
    path = folder / "identity.json"
    create_identity(path, SITE)
    return path, lambda: read_identity(path)


def public_identity(folder: Path) -> Made:
    path = write_public(create_identity(folder / "identity.json", SITE).public(), folder)
    return path, lambda: read_public(path)


def package(folder: Path) -> Made:
    plan = tiny_plan()
    (track,) = plan.tracks
    plan = replace(plan, tracks=(replace(track, answers_digest=ANSWERS.digest()),))
    path = write_package(PlanPackage(plan=plan, answers={track.track: ANSWERS}), folder)
    return path, lambda: read_package(path)


def keyring(folder: Path) -> Made:
    Keyring.create(SiteHome(folder), SETTINGS).close()
    return folder / "keyring.json", lambda: Keyring.open(SiteHome(folder), SETTINGS).close()


def pairs(folder: Path) -> Made:
    path, key = folder / "pairs.json", bytes(32)
    save_pairs(StoredPairs(pairs=(), teacher_digest="1", plan_digest="2"), path, master_key=key)
    return path, lambda: load_pairs(path, master_key=key, plan_digest="2")


def receipts(folder: Path) -> Made:
    path = receipts_path(folder / "ledger.db")
    write_receipts(path, COHORT, ())
    return path, lambda: read_receipts(path, COHORT)


def student(folder: Path, name: str) -> Made:
    card = StudentCard(
        track="rare_disease",
        base_model="nowhere",
        base_model_digest="0" * 64,
        tokenizer_digest="0" * 64,
        max_prompt_tokens=10,
        chosen_length=1,
        plan_digest="0" * 64,
        method="federated_orpo",
        privacy="none",
        aggregation="secagg-v1",
    )
    save_student(folder, tiny_adapter(), ANSWERS, card)
    return folder / name, lambda: load_student(folder)


def run_of_a_coordinator(folder: Path) -> Made:
    with Journal.create(folder / "run-1", tiny_plan(), RunId("run-1")):
        pass
    return folder / "run-1" / "run.json", lambda: read_progress(folder / "run-1")


def record_of_a_site(folder: Path) -> Made:
    home = CoordinatorHome(folder)
    authority = Authority.create(home.authority, "north")
    certificate = authority.sign_site(make_csr(new_key(), SITE), SITE, 1)
    public = create_identity(folder / "identity.json", SITE).public()
    home.sites.mkdir()
    add_site(home, public, node_key="ecdsa", certificate=certificate, protocol=3)
    return home.sites / f"{SITE}.json", lambda: site_record(home, SITE)


def invitation(folder: Path) -> Made:
    home = CoordinatorHome(folder)
    home.settings_file.write_text("consortium: north\nhost: localhost\n")
    make_coordinator(home, home.settings())
    path = folder / "alpha.invitation.json"
    write_invitation(make_invitation(home, home.settings(), SITE), path)
    return path, lambda: read_invitation(path)


def coordinator_of_a_site(folder: Path) -> Made:
    consortium = SiteHome(folder).consortium("north")
    consortium.root.mkdir(parents=True)
    known = Coordinator(
        consortium="north", site=SITE, enrolment="a:1", gateway="a:2", coordinator="00" * 32, protocol=3
    )
    write_durable(consortium.coordinator_file, "coordinator", 1, plain(known))
    return consortium.coordinator_file, lambda: read_coordinator(consortium)


def batch_of_patients(folder: Path) -> Made:
    marker = folder / "batch-0001" / MARKER_FILE
    marker.parent.mkdir()
    marker.write_text(json.dumps({"schema": 1}))
    return marker, lambda: read_marker(marker.parent)


def head_of_an_audit_log(folder: Path) -> Made:
    path = folder / "audit.jsonl"
    AuditLog(path).append("refused", reason="none")
    return head_file(path), lambda: read_entries(path)


def tokens(folder: Path) -> Made:
    held = Tokens(folder / "tokens.json")
    held.issue(SITE, 1.0)
    return folder / "tokens.json", lambda: held.issue(SITE, 1.0)


FILES: dict[str, Callable[[Path], Made]] = {
    "identity": identity,
    "public identity": public_identity,
    "package": package,
    "keyring": keyring,
    "pairs": pairs,
    "receipts of a ledger": receipts,
    "card of a student": lambda folder: student(folder, STUDENT_FILE),
    "answers of a student": lambda folder: student(folder, ANSWERS_FILE),
    "batch of patients": batch_of_patients,
    "coordinator of a site": coordinator_of_a_site,
    "head of an audit log": head_of_an_audit_log,
    "invitation": invitation,
    "record of a site": record_of_a_site,
    "run of a coordinator": run_of_a_coordinator,
    "tokens": tokens,
}


@pytest.mark.parametrize("name", FILES)
def test_a_newer_file_is_refused_by_its_name_and_both_versions(name: str, tmp_path: Path) -> None:
    path, read = FILES[name](tmp_path)
    content = json.loads(path.read_text())
    newest = content["schema"]
    # With a key that this version does not know, as a newer one may have.
    path.write_text(json.dumps({**content, "schema": newest + 1, "quantum": True}))
    with pytest.raises(
        UnsupportedSchemaError, match=rf"{path.name}.*schema {newest + 1} is newer than {newest},"
    ):
        read()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": "1"}', "\xff\xfe"])
def test_a_damaged_file_is_refused_with_one_line(name: str, damage: str, tmp_path: Path) -> None:
    path, read = FILES[name](tmp_path)
    path.write_bytes(damage.encode("latin-1"))
    with pytest.raises(FederationError, match=path.name) as caught:
        read()
    assert "\n" not in str(caught.value)


def test_newer_settings_are_refused_before_their_unknown_keys(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("schema: 2\nsite: alpha\ncohort: a\ndata: d\nquantum: true\n")
    with pytest.raises(UnsupportedSchemaError, match=r"site.yaml: schema 2 is newer than 1, .*upgrade"):
        read_settings(site)
    site.write_text("schema: one\nsite: alpha\ncohort: a\ndata: d\n")
    with pytest.raises(SettingsError, match=r"site.yaml.schema: expected a number from 1 to 1"):
        read_settings(site)
    home = CoordinatorHome(tmp_path)
    home.settings_file.write_text("schema: 2\nconsortium: north\nhost: localhost\nquantum: true\n")
    with pytest.raises(UnsupportedSchemaError, match=r"coordinator.yaml: schema 2 is newer than 1"):
        home.settings()


def test_settings_without_a_schema_are_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("site: alpha\ncohort: a\ndata: d\n")
    assert read_settings(tmp_path / "site.yaml").schema == 1


def test_a_newer_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, COHORT).close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    database.close()
    with pytest.raises(UnsupportedSchemaError, match=r"ledger.db: schema 2 is newer than 1"):
        Ledger.open(path, COHORT)


def test_a_newer_adapter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    save_adapter(tiny_adapter(), path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    spec = json.loads(metadata["consilium"]) | {"schema": 2}
    save_file(tensors, path, metadata={"consilium": json.dumps(spec)})
    with pytest.raises(
        UnsupportedSchemaError, match=r"adapter.safetensors: adapter: schema 2 is newer than 1"
    ):
        load_adapter(path)


def test_a_newer_audit_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    AuditLog(path).append("refused", reason="none")
    path.write_text(path.read_text().replace('"schema":1', '"schema":2'))
    with pytest.raises(UnsupportedSchemaError, match=r"audit.jsonl: schema 2 is newer than 1"):
        read_entries(path)


@pytest.mark.parametrize("schema", range(1, PLAN_SCHEMA))
def test_an_older_plan_is_refused_since_its_digest_was_approved(schema: int) -> None:
    content = json.loads(tiny_plan().to_json()) | {"schema": schema, "forgotten": 1}
    with pytest.raises(SettingsError, match=rf"^plan.schema: expected 4: .*approved anew, got {schema}$"):
        RunPlan.from_json(json.dumps(content))
    with pytest.raises(SettingsError, match=r"^schema: expected 4"):
        replace(tiny_plan(), schema=schema)
