"""The runbook's commands are those of the programs, and its links lead somewhere."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from client.cli import site_program
from server.cli import PROGRAM

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGES = (
    DEPLOY / "README.md",
    DEPLOY / "compose" / "README.md",
    *sorted(DEPLOY.glob("helm/*/templates/NOTES.txt")),
)
PROGRAMS = {"consilium-site": site_program(), "consilium-coordinator": PROGRAM}
# What a page shows besides its blocks: `consilium-site renew --home HOME` in a sentence.
COMMAND = re.compile(r"\bconsilium-(?:site|coordinator) [a-z][^`|;&<>\n]*")


def blocks(path: Path) -> list[str]:
    return re.findall(r"(?ms)^```sh\n(.*?)^```$", path.read_text())


def commands(path: Path) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return [found.strip(" )\"'") for found in COMMAND.findall(text)]


def parsers(name: str) -> dict[str, argparse.ArgumentParser]:
    for action in PROGRAMS[name].parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("no commands")


def options_of(command: str) -> set[str]:
    return set(re.findall(r"(?<= )--[a-z][a-z-]*", command))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_command_of_a_page_is_there_with_its_options(path: Path) -> None:
    found = commands(path)
    assert found
    for command in found:
        program, name = command.split()[:2]
        known = parsers(program)
        assert name in known, command
        assert options_of(command) <= known[name]._option_string_actions.keys(), command


def test_a_command_that_is_not_there_would_be_noticed() -> None:
    assert "approve-plan" not in parsers("consilium-site")
    assert options_of('consilium-site approve x --by "Dr. Example" --yes') == {"--by", "--yes"}


def test_the_runbook_shows_every_command_of_both_programs() -> None:
    shown = {tuple(command.split()[:2]) for command in commands(PAGES[0])}
    for program in PROGRAMS:
        missing = {name for name in parsers(program) if (program, name) not in shown}
        assert not missing, f"{program}: {missing}"


@pytest.mark.parametrize("path", PAGES[:2], ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_block_is_one_that_a_shell_reads(path: Path) -> None:
    assert blocks(path)
    for block in blocks(path):
        done = subprocess.run(
            ["bash", "-n"], input=block, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stderr


def test_every_variable_is_set_in_the_first_block_or_by_a_step() -> None:
    text = "\n".join(blocks(PAGES[0]))
    used = set(re.findall(r"\$\{?([A-Za-z_]+)", text)) - {"HOME", "PWD", "PATH"}
    given = set(re.findall(r"\b([A-Za-z_]+)=", text)) | set(re.findall(r"\bfor ([a-z]+) in", text))
    assert used <= given


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"(?m)^#+ (.+)$", path.read_text())
    return {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES[:2], ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def test_every_file_of_the_folder_is_mentioned_where_an_administrator_reads() -> None:
    text = "\n".join(path.read_text() for path in PAGES)
    for name in ("bundle.sh", "install.sh", *(path.name for path in DEPLOY.iterdir() if path.is_dir())):
        assert name in text, name
    for path in (DEPLOY / "samples").iterdir():
        assert path.name in text, path.name


def test_the_folder_holds_no_python() -> None:
    assert not list(DEPLOY.rglob("*.py"))
