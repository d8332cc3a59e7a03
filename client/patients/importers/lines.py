"""JSON objects from a file of lines, one at a time, under limits.

A file is never held whole. A line that is too long, not UTF-8 or no JSON object becomes a problem with its
number, and reading goes on after it.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from client.patients.records import Problem
from common.canonical import read_object
from common.errors import SettingsError

MAX_LINE_BYTES = 4 * 2**20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ByteLines(Protocol):
    """A file open for reading bytes, compressed or not."""

    def readline(self, size: int, /) -> bytes:
        """The next line, or as much of it as ``size`` bytes hold; empty at the end."""
        ...


def read_lines(file: ByteLines, name: str) -> Iterator[tuple[int, dict[str, Any]] | Problem]:
    """Each line's number, counted from 1, with its object; a `Problem` where there is none.

    Empty lines are passed over. ``name`` is what problems call the file.
    """
    for number, line in enumerate(_bounded(file), start=1):
        if line is None:
            yield _problem(name, number, f"longer than {MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield _read(line, name, number)


def _bounded(file: ByteLines) -> Iterator[bytes | None]:
    """The lines; None for one that is too long, of which no more than the limit is ever held."""
    line = file.readline(MAX_LINE_BYTES + 1).removeprefix(_BYTE_ORDER_MARK)
    while line:
        if len(line) <= MAX_LINE_BYTES:
            yield line
        else:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield None
        line = file.readline(MAX_LINE_BYTES + 1)


def _read(line: bytes, name: str, number: int) -> tuple[int, dict[str, Any]] | Problem:
    try:
        return number, read_object(line.decode(), "line")
    except UnicodeDecodeError:
        return _problem(name, number, "not UTF-8")
    except SettingsError as error:
        # What was got may quote the patient; what was expected never does.
        return _problem(name, number, f"expected {error.expected}")
    except ValueError:
        # json refuses a number of thousands of digits.
        return _problem(name, number, "expected JSON")


def _problem(name: str, number: int, reason: str) -> Problem:
    return Problem(file=name, line=number, reason=reason)
