"""Plans by commands: listed, read, approved by one or two people, withdrawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.approvals import approved
from client.cli import OK, REFUSED, UNUSABLE, USAGE, main
from client.home import ConsortiumHome, SiteHome
from client.init_command import settings_text
from client.settings import read_settings
from common.certificates import in_groups
from common.plan_package import PlanPackage, write_package
from tests.client.homes import CONSORTIUM, SITE, make_home, packaged
from tests.fakes import tiny_plan

PACKAGE = packaged(tiny_plan())
DIGEST = PACKAGE.plan.digest()
ALICE, BORIS = "Dr Alice Adams", "Dr Boris Brown"


@pytest.fixture
def home(tmp_path: Path) -> ConsortiumHome:
    return written(tmp_path)


def written(root: Path, **more: object) -> ConsortiumHome:
    """A home with a plan on offer, whose other sites are approved."""
    found = make_home(root, PACKAGE.plan)
    given = {"site": str(SITE), "cohort": "adults", "data": str(root), **more}
    bases = {"bases": {"rare_disease": "/srv/base"}}
    SiteHome(root).settings_file.write_text(settings_text({"models": bases, **given}))
    write_package(PACKAGE, found.packages)
    return found


def run(home: ConsortiumHome, *words: str) -> int:
    return main([*words, "--home", str(home.root.parent.parent)])


def is_approved(home: ConsortiumHome) -> bool:
    return DIGEST in approved(home, read_settings(SiteHome(home.root.parent.parent).settings_file))


def offered(home: ConsortiumHome, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """The plans as JSON; this site is not enrolled, so that nobody is asked."""
    capsys.readouterr()
    assert run(home, "plans", "--json") == REFUSED
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["consortium"], shown["fresh"]) == (1, CONSORTIUM, False)
    return list(shown["plans"])


def test_an_offered_plan_is_not_approved(home: ConsortiumHome, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = offered(home, capsys)
    assert (row["digest"], row["approved"], row["approved_by"], row["objections"]) == (DIGEST, False, [], [])
    assert run(home, "plans") == REFUSED
    out, err = capsys.readouterr()
    assert f"{DIGEST[:12]}  a tiny plan" in out
    assert "offered" in out
    assert "not enrolled" in err


def test_a_script_approves_the_plan_whose_digest_it_names(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["approve", DIGEST[:8], "--by", ALICE, "--yes", "--digest", in_groups(DIGEST).upper()]
    assert run(home, *words) == OK
    out = capsys.readouterr().out
    for told in (
        "purpose      research",
        "ethics id",
        "last day     2030-01-01",
        "privacy",
        "site-b  approved",
    ):
        assert told in out
    assert f"approved     {in_groups(DIGEST)}  by {ALICE}" in out
    assert is_approved(home)
    (row,) = offered(home, capsys)
    assert (row["approved"], row["approved_by"]) == (True, [ALICE])


def test_a_package_file_is_approved_and_kept(
    home: ConsortiumHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.packages / f"{DIGEST}.json").unlink()
    file = write_package(PACKAGE, tmp_path / "post")
    assert run(home, "approve", str(file), "--by", ALICE, "--yes", "--digest", DIGEST) == OK
    assert (home.packages / f"{DIGEST}.json").is_file()


def test_a_yes_is_asked_for(
    home: ConsortiumHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["approve", DIGEST[:8], "--by", ALICE]
    assert run(home, *words) == UNUSABLE
    assert "not confirmed, nothing was changed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, status in (("", UNUSABLE), ("no", UNUSABLE), ("Yes", OK)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert run(home, *words) == status
        assert is_approved(home) == (status == OK)


def test_two_different_people_approve_where_the_site_asks_for_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = written(tmp_path, approvals_needed=2)
    words = ["approve", DIGEST, "--yes", "--digest", DIGEST, "--by"]
    assert run(home, *words, ALICE) == OK
    assert "1 of 2 people have approved; it does not run yet" in capsys.readouterr().out
    assert not is_approved(home)
    assert run(home, *words, ALICE.upper()) == UNUSABLE
    assert not is_approved(home)
    assert run(home, "plans") == REFUSED
    assert "1 of 2 approvals" in capsys.readouterr().out
    assert run(home, *words, BORIS) == OK
    assert is_approved(home)


def test_an_approval_is_withdrawn_by_one(home: ConsortiumHome, capsys: pytest.CaptureFixture[str]) -> None:
    run(home, "approve", DIGEST, "--by", ALICE, "--yes", "--digest", DIGEST)
    words = ["withdraw-approval", DIGEST[:10], "--by", BORIS, "--reason", "the study  has ended"]
    assert run(home, *words) == OK
    assert not is_approved(home)
    assert "the study has ended" in home.approvals_file.read_text()
    assert run(home, *words) == UNUSABLE
    assert "0 plans begin like this" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["approve", "00000000", "--by", ALICE], "0 plans begin like this"),
        (["approve", DIGEST[:7], "--by", ALICE], "expected a package file, or 8 or more first digits"),
        (["approve", DIGEST, "--by", ALICE, "--yes", "--digest", "00"], "plan: expected digest 00"),
        (["approve", DIGEST, "--by", " ", "--yes", "--digest", DIGEST], "by: expected one line"),
        (["withdraw-approval", DIGEST, "--by", ALICE], "0 plans begin like this"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert run(home, *words) == UNUSABLE
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not is_approved(home)


def test_a_yes_without_a_digest_is_no_approval(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(home, "approve", DIGEST, "--by", ALICE, "--yes")
    assert ended.value.code == USAGE
    assert "--yes needs --digest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"purposes": ["quality"]}, "research"),
        ({"tracks": ["tissue_type"]}, "this site takes part in tissue_type"),
        ({"models": {"bases": {}}}, "there is no base model for it here"),
        ({"site": "site-x"}, "site-x"),
    ],
)
def test_what_stands_against_a_plan_is_listed_and_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, object], says: str
) -> None:
    home = written(tmp_path, **settings)
    (row,) = offered(home, capsys)
    assert says in str(row["objections"])
    assert run(home, "plans") == REFUSED
    assert f"against      {DIGEST[:12]}" in capsys.readouterr().out
    assert run(home, "approve", DIGEST, "--by", ALICE, "--yes", "--digest", DIGEST) == UNUSABLE
    assert says in capsys.readouterr().err
    assert not is_approved(home)


def test_a_site_of_the_plan_that_is_not_approved_here_stands_against_it(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.root / "approved" / "site-c.json").unlink()
    assert run(home, "approve", DIGEST, "--by", ALICE, "--yes", "--digest", DIGEST) == UNUSABLE
    out, err = capsys.readouterr()
    assert "site-c  NOT approved here" in out
    assert "site-c is not approved here" in err


def test_a_damaged_package_has_its_line_and_the_rest_is_listed(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str]
) -> None:
    (home.packages / f"{'0' * 64}.json").write_text("{}")
    assert run(home, "plans") == REFUSED
    out = capsys.readouterr().out
    assert f"refused      {'0' * 64}.json: " in out
    assert DIGEST[:12] in out


def test_a_plan_under_another_s_name_is_refused(
    home: ConsortiumHome, capsys: pytest.CaptureFixture[str]
) -> None:
    other = PlanPackage(plan=replace(PACKAGE.plan, name="another"), answers=PACKAGE.answers)
    (home.packages / f"{DIGEST}.json").write_text(other.to_json())
    assert run(home, "approve", DIGEST[:8], "--by", ALICE) == UNUSABLE
    assert f"expected digest {DIGEST}" in capsys.readouterr().err
    assert offered(home, capsys) == []
