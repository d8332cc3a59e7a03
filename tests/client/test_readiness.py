"""A site that is not as the others rely on does not start."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client import readiness
from client.cli import UNUSABLE, main
from client.home import SiteHome
from client.readiness import require_certificate, require_own_packages, require_ready
from client.settings import SiteSettings, read_settings
from common.errors import (
    BadFileError,
    FederationError,
    LedgerMissingError,
    NotReadyError,
    SettingsError,
    UnsafeKeyError,
    UnsupportedSchemaError,
)
from tests.client.test_setup_commands import Coordinator, enrolled

OWNED = {name: ["consilium"] for name in readiness.PACKAGES}


@pytest.fixture(scope="module")
def enrolled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Homes of two sites of one coordinator, to be copied."""
    folder = tmp_path_factory.mktemp("sites")
    coordinator = Coordinator(folder / "coordinator")
    enrolled(folder, coordinator, "site-a")
    enrolled(folder, coordinator, "site-b")
    coordinator.server.stop(None).wait()
    yield folder


@pytest.fixture
def home(enrolled_once: Path, tmp_path: Path) -> SiteHome:
    shutil.copytree(enrolled_once / "site-a", tmp_path / "site-a")
    return SiteHome(tmp_path / "site-a")


def settings_of(home: SiteHome) -> SiteSettings:
    return read_settings(home.settings_file)


def ready(home: SiteHome) -> None:
    require_ready(home, home.consortium("trial"), settings_of(home))


def test_an_enrolled_site_is_ready(home: SiteHome) -> None:
    ready(home)


def _gone(name: str) -> Callable[[SiteHome], object]:
    return lambda home: (home.consortium("trial").root / name).unlink()


def _rename(home: SiteHome) -> None:
    text = home.settings_file.read_text()
    home.settings_file.write_text(text.replace("site: site-a", "site: site-x"))


def _newer(home: SiteHome) -> None:
    text = home.settings_file.read_text()
    home.settings_file.write_text(text.replace("schema: 1\n", "schema: 2\n"))


@pytest.mark.parametrize(
    ("broken", "error", "says"),
    [
        (lambda home: home.root.chmod(0o755), NotReadyError, "expected mode 700 .chmod 700., got mode 755"),
        (lambda home: home.consortium("trial").root.chmod(0o750), NotReadyError, "got mode 750"),
        (lambda home: (home.root / "master.key").unlink(), UnsafeKeyError, "master.key"),
        (lambda home: (home.root / "master.key").chmod(0o644), UnsafeKeyError, "expected mode 600"),
        (lambda home: home.keyring_file.unlink(), BadFileError, "keyring.json"),
        (lambda home: home.ledger_file("patients").unlink(), LedgerMissingError, "the ledger is gone"),
        (_gone("identity.json"), BadFileError, "not a readable identity"),
        (_gone("tls.crt"), BadFileError, "tls.crt"),
        (_gone("node.key"), NotReadyError, "expected what `consilium-site enrol` writes"),
        (_gone("loopback.crt"), NotReadyError, "loopback.crt"),
        (_gone("coordinator.json"), NotReadyError, "coordinator.json"),
        (_rename, NotReadyError, "expected the site site-x, got site-a"),
        (_newer, UnsupportedSchemaError, "schema 2 is newer than 1"),
        (lambda home: home.settings_file.write_text("sight: 1"), SettingsError, "site.sight"),
    ],
)
def test_what_does_not_hold_is_named(
    home: SiteHome, broken: Callable[[SiteHome], object], error: type[FederationError], says: str
) -> None:
    broken(home)
    with pytest.raises(error, match=says):
        ready(home)


def test_start_says_it_in_one_line_and_starts_nothing(
    home: SiteHome, capsys: pytest.CaptureFixture[str]
) -> None:
    home.root.chmod(0o755)
    assert main(["start", "--home", str(home.root)]) == UNUSABLE
    assert capsys.readouterr().err.count("\n") == 1
    assert not home.consortium("trial").run.exists()


def test_a_certificate_that_has_ended_is_refused(home: SiteHome) -> None:
    now = datetime.now(UTC)
    require_certificate(home.consortium("trial"), settings_of(home), now + timedelta(days=89))
    with pytest.raises(NotReadyError, match=r"got one that ended 1\.0 days ago"):
        require_certificate(home.consortium("trial"), settings_of(home), now + timedelta(days=91))


def test_another_site_s_certificate_is_refused(home: SiteHome, enrolled_once: Path) -> None:
    other = SiteHome(enrolled_once / "site-b").consortium("trial")
    shutil.copy(other.tls_certificate, home.consortium("trial").tls_certificate)
    with pytest.raises(NotReadyError, match="expected a certificate of site-a, got site-b"):
        ready(home)


def test_a_certificate_that_names_no_site_is_refused(home: SiteHome) -> None:
    consortium = home.consortium("trial")
    shutil.copy(consortium.authority_certificate, consortium.tls_certificate)
    with pytest.raises(NotReadyError, match="names no site"):
        ready(home)


def test_packages_belong_to_this_project_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # Installed in place, for development, no project lists them.
    require_own_packages()
    monkeypatch.setattr(readiness, "packages_distributions", lambda: OWNED)
    require_own_packages()


@pytest.mark.parametrize(
    ("owners", "got"),
    [
        ({**OWNED, "server": ["consilium", "server-tools"]}, "consilium, server-tools"),
        ({**OWNED, "common": ["common"]}, "got common"),
    ],
)
def test_another_project_s_packages_are_refused(
    monkeypatch: pytest.MonkeyPatch, owners: dict[str, list[str]], got: str
) -> None:
    monkeypatch.setattr(readiness, "packages_distributions", lambda: owners)
    with pytest.raises(
        NotReadyError, match=f"expected consilium as its owner, got .*{got.removeprefix('got ')}"
    ):
        require_own_packages()


def test_packages_of_nobody_are_refused_where_the_project_is_not_installed_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readiness, "packages_distributions", dict)
    monkeypatch.setattr(readiness, "_is_in_place", lambda: False)
    with pytest.raises(NotReadyError, match="package client: expected consilium as its owner, got nobody"):
        require_own_packages()
