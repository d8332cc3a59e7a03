"""Tests of the project's own files: what they promise is there."""

import contextlib
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from client import cli

ROOT = Path(__file__).parents[1]
PACKAGES = ("client", "common", "server", "simulations")
TARGETS = {"help", "demo", "federation", "test", "check", "bench", "soak", "bundle", "lock"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
WALKTHROUGH = (ROOT / "docs" / "walkthrough.md").read_text()
CODE_NAMES = sorted(set(re.findall(r"`((?:client|common|server|simulations)[./][\w./]+)`", WALKTHROUGH)))
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^ ;]+)( ;[^\\]*)? \\")
HASHED = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def modules() -> list[str]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]


@pytest.mark.parametrize("name", modules())
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module(name)


def test_every_package_folder_says_what_it_is() -> None:
    folders = {path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    for folder in sorted(folders):
        assert (folder / "__init__.py").read_text().startswith('"""'), folder


def test_every_line_of_the_lock_is_a_pinned_version_a_hash_or_a_comment() -> None:
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        assert PINNED.fullmatch(line) or HASHED.fullmatch(line), line
        # A pinned version without a hash, or one whose last hash goes on, would not install.
        assert line.endswith("\\") == bool(HASHED.fullmatch(following)), line


def test_lock_names_no_host_and_no_path() -> None:
    assert not re.search(r"https?:|file:|--index|--find-links|@ |/(home|root|tmp|usr|work)/", LOCK)


def test_lock_holds_what_the_project_asks_for() -> None:
    pinned = {canonicalize_name(found["name"]): found["version"] for found in PINNED.finditer(LOCK)}
    extras = PROJECT["project"]["optional-dependencies"].values()
    groups = [*extras, PROJECT["project"]["dependencies"], PROJECT["dependency-groups"]["dev"]]
    wanted = [Requirement(text) for group in groups for text in group]
    assert len(wanted) > 20
    for requirement in wanted:
        if requirement.name != PROJECT["project"]["name"]:
            assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_newest_version_of_the_changelog_is_the_project_s() -> None:
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"]


def test_make_has_the_promised_targets_and_help_lists_them() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    done = subprocess.run([make, "help"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(re.findall(r"^  make (\w+) +\w", done.stdout, flags=re.MULTILINE)) == TARGETS
    for target in sorted(TARGETS):
        subprocess.run([make, "--dry-run", target], capture_output=True, check=True, cwd=ROOT)


def test_targets_and_commands_of_the_readme_exist() -> None:
    assert {"demo", "test", "bench", "help"} <= set(re.findall(r"`?make (\w+)", README)) <= TARGETS
    scripts = PROJECT["project"]["scripts"]
    assert set(re.findall(r"`(consilium-\w+)", README)) == set(scripts)
    for place in scripts.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("words", re.findall(r"`consilium-site ([^`]+)`", README))
def test_site_commands_of_the_readme_are_understood(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    # Files and folders of an example are not here: that is the only thing to be complained about.
    with contextlib.suppress(SystemExit):
        assert cli.main(words.split()) != 0
    expected = (
        r"error: no (input file|folder) |this home is in none|the ledger is gone|"
        r"site\.yaml: expected a readable file"
    )
    assert re.search(expected, capsys.readouterr().err)


def test_scenarios_of_the_readme_exist() -> None:
    scenarios = set(re.findall(r"scenario=(\w+)", README))
    assert {"demo", "rare_disease"} <= scenarios
    for scenario in scenarios:
        assert list((ROOT / "simulations" / "conf").rglob(f"{scenario}.yaml")), scenario


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "deploy" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_walkthrough_names_code() -> None:
    assert len(CODE_NAMES) > 80
    assert {"client/home.py", "client.guard.Guard.check_task"} <= set(CODE_NAMES)


@pytest.mark.parametrize("name", CODE_NAMES)
def test_what_the_walkthrough_names_is_there(name: str) -> None:
    if "/" in name:
        assert (ROOT / name).is_file()
        return
    module = max((one for one in modules() if f"{name}.".startswith(f"{one}.")), key=len)
    found = importlib.import_module(module)
    for part in name.removeprefix(module).split(".")[1:]:
        found = getattr(found, part)


def test_ci_calls_make_check() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make check" in script.read_text()


def test_deploy_holds_no_python() -> None:
    assert not list((ROOT / "deploy").rglob("*.py"))


PREDICTABLE = {
    "import random\n\nx = random.random()\n",
    "from numpy import random as r\n\nx = r.normal()\n",
    "import numpy as np\n\nx = np.random.default_rng(0)\n",
}


@pytest.mark.parametrize(
    "place", ["common/secagg/masks.py", "common/pki.py", "client/session.py", "server/x.py"]
)
@pytest.mark.parametrize("code", sorted(PREDICTABLE))
def test_the_linter_refuses_predictable_randomness_near_a_key(place: str, code: str) -> None:
    assert "TID251" in linted(code, place)


@pytest.mark.parametrize("code", sorted(PREDICTABLE))
def test_the_linter_leaves_training_alone(code: str) -> None:
    assert "TID251" not in linted(code, "client/student/fit.py")


def linted(code: str, place: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--stdin-filename", place, "--output-format", "concise", "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def test_tests_that_the_threat_model_names_exist() -> None:
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", (ROOT / "docs" / "threat_model.md").read_text())
    assert len(named) > 15
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(), name
