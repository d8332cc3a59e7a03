"""A site's way in, by commands, against the real enrolment service in this process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.cli import OK, REFUSED, UNUSABLE, USAGE, main
from client.home import SiteHome
from client.init_command import TEMPLATE, settings_text
from client.keys import Keyring
from client.settings import read_settings
from common.certificates import fingerprint, in_groups, read_certificate
from common.enrolment_messages import join_address, write_invitation
from common.ids import SiteId
from common.pki import Identity, read_identity, write_public
from common.plan_package import write_package
from common.privacy.ledger import Ledger
from server.enrolment import serve
from server.home import CoordinatorHome, HomeSettings
from server.invitations import make_coordinator, make_invitation, revoke_site
from tests.client.homes import packaged
from tests.fakes import tiny_plan

A, B = SiteId("site-a"), SiteId("site-b")
UNCOMMENTED = re.compile(r"^#((?:  )?[a-z_]+:)")


def new_site(folder: Path, site: str = "site-a", *more: str) -> SiteHome:
    (folder / "data").mkdir(exist_ok=True)
    home = folder / site
    assert main(["init", "--home", str(home), "--site", site, "--data", str(folder / "data"), *more]) == OK
    return SiteHome(home)


# init


def test_a_new_home_is_private_and_holds_settings_keys_and_an_empty_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = new_site(tmp_path)
    said = capsys.readouterr().out
    settings = read_settings(home.settings_file)
    assert (settings.site, settings.cohort, settings.data) == ("site-a", "patients", tmp_path / "data")
    assert home.root.stat().st_mode & 0o777 == 0o700
    assert home.settings_file.stat().st_mode & 0o777 == 0o600
    with Keyring.open(home, settings) as keyring:
        assert len(keyring.pseudonym_key) == 32
    ledger = Ledger.open(home.ledger_file("patients"), "patients")
    assert ledger.entries() == ()
    ledger.close()
    assert f"consilium-site enrol INVITATION --home {home.root}" in said
    assert f"consilium-site check-data {settings.data}" in said


def test_settings_are_given_by_their_key(tmp_path: Path) -> None:
    home = new_site(
        tmp_path, "site-a", "--cohort", "children", "--set", "approvals_needed=2",
        "--set", "models.bases.rare_disease=/srv/base", "--set", "purposes=[research, audit]",
    )  # fmt: skip
    settings = read_settings(home.settings_file)
    assert (settings.cohort, settings.approvals_needed) == ("children", 2)
    assert settings.models.bases == {"rare_disease": Path("/srv/base")}
    assert settings.purposes == ("research", "audit")
    assert home.ledger_file("children").is_file()


def test_a_home_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = new_site(tmp_path)
    before = {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()}
    again = ["init", "--home", str(home.root), "--site", "site-b", "--data", str(tmp_path)]
    assert main(again) == UNUSABLE
    assert "expected an empty folder for a new home, found site.yaml" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in home.root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("more", "status", "says"),
    [
        (["--site", "Site A"], USAGE, "lower-case letters"),
        (["--data", "nowhere"], USAGE, "no folder nowhere"),
        (["--set", "aprovals_needed=2"], UNUSABLE, "site.aprovals_needed: expected one of"),
        (["--set", "approvals_needed=3"], UNUSABLE, "expected 1 or 2 people, got 3"),
        (["--set", "approvals_needed"], UNUSABLE, "--set: expected KEY=VALUE"),
        (["--cohort", "../x"], UNUSABLE, "expected letters, digits, dots, dashes"),
        (["--set", "master_key=env:NOT_SET"], UNUSABLE, "the variable is not set"),
    ],
)
def test_what_makes_no_home_leaves_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, says: str
) -> None:
    home = tmp_path / "home"
    given = ["init", "--home", str(home), "--site", "site-a", "--data", str(tmp_path), *more]
    try:
        got = main(given)
    except SystemExit as ended:
        got = int(str(ended.code))
    assert got == status
    assert says in capsys.readouterr().err
    assert not [path for path in home.glob("*") if not path.name.startswith(".")]


def test_the_settings_file_shows_every_key_with_its_default(tmp_path: Path) -> None:
    given: dict[str, Any] = {"schema": 1, "site": "site-a", "cohort": "patients", "data": "/srv/data"}
    path = tmp_path / "site.yaml"
    path.write_text(settings_text(given))
    as_written = read_settings(path)
    # All that is commented out, taken in, changes nothing: the comments tell the truth.
    lines = [UNCOMMENTED.sub(r"\1", line) for line in TEMPLATE.read_text().splitlines()]
    whole = yaml.safe_load("\n".join(line for line in lines if not line.startswith(("# ", "@"))))
    path.write_text(yaml.safe_dump({**whole, **given}))
    assert read_settings(path) == as_written
    assert {*whole, *given} == set(vars(as_written))
    for group in ("models", "worker", "network"):
        assert set(whole[group]) == set(vars(getattr(as_written, group)))


# enrol, sites, renew


class Coordinator:
    """A coordinator whose enrolment service runs in this process."""

    def __init__(self, folder: Path) -> None:
        self.home = CoordinatorHome(folder)
        self.settings = HomeSettings(
            consortium="trial", host="127.0.0.1", bind="127.0.0.1", gateway_port=9, enrolment_port=9,
            private_host="127.0.0.1", superlink_port=9, health_port=9, certificate_days=90, token_hours=1.0,
        )  # fmt: skip
        self.identity = make_coordinator(self.home, self.settings)
        self.server, self.port = serve(self.home, self.settings, lambda event, facts: None, port=0)

    def invite(self, site: str) -> Path:
        made = make_invitation(self.home, self.settings, SiteId(site))
        path = self.home.root / f"invitation-{site}.json"
        write_invitation(replace(made, enrolment=join_address("127.0.0.1", self.port)), path)
        return path


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    found = Coordinator(tmp_path / "coordinator")
    yield found
    found.server.stop(None).wait()


def enrolled(folder: Path, coordinator: Coordinator, site: str) -> SiteHome:
    home = new_site(folder, site)
    assert main(["enrol", str(coordinator.invite(site)), "--home", str(home.root), "--yes"]) == OK
    return home


def identity_of(home: SiteHome) -> Identity:
    return read_identity(home.consortium("trial").root / "identity.json")


def test_both_ends_see_the_fingerprints_that_they_compare(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = enrolled(tmp_path, coordinator, "site-a")
    said = capsys.readouterr().out
    authority = fingerprint(read_certificate(coordinator.home.authority / "ca.crt"))
    assert f"coordinator  {in_groups(coordinator.identity.public().fingerprint())}" in said
    assert f"authority    {in_groups(authority)}" in said
    assert f"fingerprint  {in_groups(identity_of(home).public().fingerprint())}" in said
    assert "consortium   trial" in said
    assert (home.consortium("trial").executables / "flwr-clientapp").stat().st_mode & 0o777 == 0o700
    invited = json.loads((coordinator.home.root / "invitation-site-a.json").read_text())
    assert invited["token"] not in said


def test_a_script_compares_a_fingerprint(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home, invitation = new_site(tmp_path), str(coordinator.invite("site-a"))
    command = ["enrol", invitation, "--home", str(home.root)]
    assert main([*command, "--fingerprint", "ab" * 32]) == UNUSABLE
    assert "invitation: expected digest abab" in capsys.readouterr().err
    assert not (home.root / "consortia").exists()
    spoken = in_groups(coordinator.identity.public().fingerprint()).upper()
    assert main([*command, "--fingerprint", spoken]) == OK


def test_without_a_yes_nothing_is_made(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = new_site(tmp_path)
    # A test has no terminal to ask on.
    assert main(["enrol", str(coordinator.invite("site-a")), "--home", str(home.root)]) == UNUSABLE
    assert "not confirmed, nothing was changed" in capsys.readouterr().err
    assert not (home.root / "consortia").exists()


def test_an_invitation_for_another_site_is_refused(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = new_site(tmp_path)
    assert main(["enrol", str(coordinator.invite("site-b")), "--home", str(home.root), "--yes"]) == UNUSABLE
    assert "invitation.site: expected this site's name, site-a, got site-b" in capsys.readouterr().err


def test_a_second_enrolment_is_refused(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = enrolled(tmp_path, coordinator, "site-a")
    invitation = str(coordinator.home.root / "invitation-site-a.json")
    assert main(["enrol", invitation, "--home", str(home.root), "--yes"]) == UNUSABLE
    assert "enrolled already" in capsys.readouterr().err


def test_sites_are_offered_then_approved_by_name_and_fingerprint(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = enrolled(tmp_path, coordinator, "site-a"), enrolled(tmp_path, coordinator, "site-b")
    capsys.readouterr()
    spoken = in_groups(identity_of(b).public().fingerprint())
    assert main(["sites", "--home", str(a.root)]) == OK
    table = capsys.readouterr().out
    assert "site-b" in table
    assert "offered" in table
    assert spoken in table
    assert main(["approve-site", "site-b", "--fingerprint", "00" * 32, "--home", str(a.root)]) == UNUSABLE
    assert main(["approve-site", "site-c", "--fingerprint", spoken, "--home", str(a.root)]) == UNUSABLE
    assert "no site of this name" in capsys.readouterr().err
    assert main(["approve-site", "site-b", "--fingerprint", spoken, "--home", str(a.root)]) == OK
    capsys.readouterr()
    assert main(["sites", "--home", str(a.root), "--json"]) == OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["fresh"]) == (1, True)
    assert [(site["site"], site["state"]) for site in shown["sites"]] == [("site-b", "approved")]
    assert main(["identity", "--home", str(a.root)]) == OK
    assert f"approved     site-b  {spoken}" in capsys.readouterr().out


def test_a_key_that_is_not_the_approved_one_is_shown_as_such(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    a = enrolled(tmp_path, coordinator, "site-a")
    impostor, known = Identity.generate(B).public(), Identity.generate(B).public()
    (a.consortium("trial").root / "approved").mkdir()
    write_public(known, a.consortium("trial").root / "approved")
    coordinator.server.stop(None).wait()
    a.consortium("trial").offered.mkdir(exist_ok=True)
    write_public(impostor, a.consortium("trial").offered)
    capsys.readouterr()
    # The coordinator is gone: the list is the old one, and says so.
    assert main(["sites", "--home", str(a.root)]) == REFUSED
    out, err = capsys.readouterr()
    assert f"WARNING      site-b is offered with {in_groups(impostor.fingerprint())}" in out
    assert in_groups(known.fingerprint()) in out
    assert "what is listed is from the last time" in err
    spoken = impostor.fingerprint()
    assert main(["approve-site", "site-b", "--fingerprint", spoken, "--home", str(a.root)]) == UNUSABLE


def test_a_file_is_approved_as_well(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    a = enrolled(tmp_path, coordinator, "site-a")
    other = Identity.generate(B).public()
    file, spoken = write_public(other, tmp_path), in_groups(other.fingerprint())
    assert main(["approve-site", str(file), "--fingerprint", spoken, "--home", str(a.root)]) == OK
    assert f"approved     site-b  {spoken}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "fingerprint", "says"),
    [
        ("{other}", "00", "identity of site-b: expected digest 00"),
        ("{own}", "00", "which is this site itself"),
        ("{broken}", "00", "not a readable identity"),
        ("{folder}/nothing.json", "00", "no such file, and no site of this name"),
    ],
)
def test_an_identity_that_cannot_be_approved_is_refused_in_one_line(
    tmp_path: Path,
    coordinator: Coordinator,
    capsys: pytest.CaptureFixture[str],
    named: str,
    fingerprint: str,
    says: str,
) -> None:
    a = enrolled(tmp_path, coordinator, "site-a")
    other = write_public(Identity.generate(B).public(), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    own = a.consortium("trial").root / "public" / "site-a.json"
    file = named.format(other=other, own=own, broken=tmp_path / "broken.json", folder=tmp_path)
    capsys.readouterr()
    assert main(["approve-site", file, "--fingerprint", fingerprint, "--home", str(a.root)]) == UNUSABLE
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert identity_of(a).private_key.hex() not in error


def test_plans_on_offer_come_along(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    a = enrolled(tmp_path, coordinator, "site-a")
    package = packaged(tiny_plan())
    write_package(package, coordinator.home.packages)
    capsys.readouterr()
    assert main(["plans", "--home", str(a.root), "--json"]) == OK
    (row,) = json.loads(capsys.readouterr().out)["plans"]
    assert (row["digest"], row["approved"]) == (package.plan.digest(), False)


def test_a_certificate_is_renewed_until_the_site_is_revoked(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = enrolled(tmp_path, coordinator, "site-a")
    before = read_certificate(home.consortium("trial").tls_certificate).serial_number
    assert main(["renew", "--home", str(home.root)]) == OK
    assert "certificate  good until 20" in capsys.readouterr().out
    assert read_certificate(home.consortium("trial").tls_certificate).serial_number != before
    revoke_site(coordinator.home, A)
    assert main(["renew", "--home", str(home.root)]) == UNUSABLE
    assert "revoked" in capsys.readouterr().err
    assert main(["sites", "--home", str(home.root)]) == UNUSABLE


def test_a_site_in_several_federations_says_which(
    tmp_path: Path, coordinator: Coordinator, capsys: pytest.CaptureFixture[str]
) -> None:
    home = enrolled(tmp_path, coordinator, "site-a")
    home.consortium("other").root.mkdir()
    assert main(["identity", "--home", str(home.root)]) == UNUSABLE
    assert "name one with --consortium: this home is in other, trial" in capsys.readouterr().err
    assert main(["identity", "--home", str(home.root), "--consortium", "trail"]) == UNUSABLE
    assert "expected a consortium of this home, got 'trail'; it is in other, trial" in capsys.readouterr().err
    assert main(["identity", "--home", str(home.root), "--consortium", "trial", "--json"]) == OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["site"], shown["consortium"]) == (1, "site-a", "trial")
    assert shown["fingerprint"] == identity_of(home).public().fingerprint()
    assert Path(shown["public_file"]).is_file()


@pytest.mark.parametrize(
    "words", [["identity"], ["sites"], ["renew"], ["approve-site", "b", "--fingerprint", "0"]]
)
def test_a_site_that_is_in_no_federation_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    home = new_site(tmp_path)
    assert main([*words, "--home", str(home.root)]) == UNUSABLE
    assert "this home is in none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["nowhere.json"], "no file nowhere.json"),
        (["{file}", "--yes", "--fingerprint", "0"], "compares nothing"),
    ],
)
def test_an_enrolment_that_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    file = tmp_path / "invitation.json"
    file.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main(["enrol", *(word.format(file=file) for word in more), "--home", str(tmp_path)])
    assert ended.value.code == USAGE
    assert says in capsys.readouterr().err
