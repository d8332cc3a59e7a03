"""What commands say to people and to scripts, and how they ask: lines, tables, JSON, exit status."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import FederationError, NotConfirmedError, one_line

OK, UNUSABLE, USAGE, REFUSED, NOT_RUNNING = 0, 1, 2, 3, 4

LABEL_WIDTH = 13
_PIPE_WIDTH = 10_000
_YES = ("y", "yes")


def say(label: str, value: object) -> None:
    """One line: what it is, and its value."""
    print(f"{label:<{LABEL_WIDTH}}{value}")  # noqa: T201


def say_json(schema: int, content: Mapping[str, Any]) -> None:
    """One JSON object that begins with the number of its schema."""
    print(json.dumps({"schema": schema, **content}, indent=1, ensure_ascii=False))  # noqa: T201


def say_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; in a pipe no cell is ever broken into lines."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    # Not the table's own title, which would be broken to the width of the cells.
    console.print(Text(title))
    table = Table(*headings, box=None)
    for row in rows:
        # Text, because a cell may hold brackets that would be read as markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    console.print(table)


def confirm(question: str) -> None:
    """Ask on the terminal. NotConfirmedError unless the answer is yes; no terminal is no answer."""
    if not sys.stdin.isatty():
        raise NotConfirmedError(question, "no terminal to ask on")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in _YES:
        raise NotConfirmedError(question, repr(answer.strip()) if answer.strip() else "no answer")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a program.

    Attributes:
        name: As it is typed.
        brief: One line, for the list of commands.
        description: What it does, for its own help.
        add: Adds its arguments.
        run: Does it; its exit status. OSError, ValueError or FederationError if it cannot.
        check: Refuses arguments that make no sense together, before anything is done.
    """

    name: str
    brief: str
    description: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None] | None = None


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of several commands.

    Attributes:
        name: As it is typed.
        description: What it is, for its help.
        statuses: What its exit statuses mean, for the end of every help.
        commands: In the order of its help.
        not_running: The refusal that has an exit status of its own.
    """

    name: str
    description: str
    statuses: str
    commands: tuple[Command, ...]
    not_running: type[Exception]

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run one command; its exit status. SystemExit for help and for usage errors."""
        parser, commands = self.parser(), {command.name: command for command in self.commands}
        arguments = parser.parse_args(argv)
        command = commands[arguments.command]
        if command.check is not None:
            command.check(parser, arguments)
        try:
            return command.run(arguments)
        except self.not_running as error:
            self.complain(error)
            return NOT_RUNNING
        except (OSError, ValueError, FederationError) as error:
            self.complain(error)
            return UNUSABLE

    def parser(self) -> argparse.ArgumentParser:
        """Of all commands."""
        keys: dict[str, Any] = {
            "epilog": self.statuses,
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        parser = argparse.ArgumentParser(prog=self.name, description=self.description, **keys)
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        for command in self.commands:
            command.add(
                commands.add_parser(command.name, help=command.brief, description=command.description, **keys)
            )
        return parser

    def complain(self, error: Exception) -> None:
        """Say on standard error why something cannot be done."""
        reason = one_line(str(error))
        if isinstance(error, FederationError):
            # Whole: it was written for people, and a long path must not cut off what was found there.
            reason = " ".join(str(error).split())
        elif isinstance(error, OSError) and error.strerror:
            reason = f"{error.filename}: {error.strerror}"
        print(f"{self.name}: {reason or type(error).__name__}", file=sys.stderr)  # noqa: T201
