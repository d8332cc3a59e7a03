"""Cases to answer, as a site's people write them: a file with one JSON object a line.

A line needs ``case_id`` and ``note``; further fields are left alone and never reach the student. A line
that cannot be used is reported with its number and the rest goes on. A report never repeats what the line
holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.patients.importers.lines import read_lines
from client.patients.records import Problem, is_text


@dataclass(frozen=True, kw_only=True)
class Case:
    """One case to answer.

    Attributes:
        case_id: The name the answers are given back under.
        note: What the student reads.
    """

    case_id: str
    note: str


@dataclass(frozen=True, kw_only=True)
class CaseSet:
    """What a file of cases held.

    Attributes:
        cases: The usable ones, in the file's order.
        problems: The lines that are not, in the file's order.
    """

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]


def read_cases(path: Path) -> CaseSet:
    """Read a file of cases; OSError if it cannot be opened.

    Guarantee: every line of the file that is not empty ends as a case or as a problem.
    """
    cases: list[Case] = []
    problems: list[Problem] = []
    line_by_case: dict[str, int] = {}
    with path.open("rb") as file:
        for line in read_lines(file, path.name):
            if isinstance(line, Problem):
                problems.append(line)
                continue
            number, row = line
            try:
                case = Case(case_id=_read_text(row, "case_id"), note=_read_text(row, "note"))
                _refuse_second(case, number, line_by_case)
            except ValueError as error:
                problems.append(Problem(file=path.name, line=number, reason=str(error)))
            else:
                cases.append(case)
    return CaseSet(cases=tuple(cases), problems=tuple(problems))


def _read_text(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        raise ValueError(f"{key}: missing")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text")
    if not is_text(value):
        raise ValueError(f"{key}: expected text that is not empty, in whole characters")
    return value


def _refuse_second(case: Case, number: int, line_by_case: dict[str, int]) -> None:
    first = line_by_case.setdefault(case.case_id, number)
    if first != number:
        raise ValueError(f"case_id: the same as in line {first}")
