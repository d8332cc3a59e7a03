"""Tests of structured logs."""

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import BadFileError
from common.logs import about, configure, describe

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_has_time_level_logger_event_and_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    with about(run="run-1", track="rare_disease"):
        logging.getLogger("server.rounds").info("round %d closed", 3, extra={"round": 3})
    logging.getLogger("server.rounds").info("over")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert list(first)[:4] == ["time", "level", "logger", "event"]
    assert first | {"time": ""} == {
        "time": "", "level": "info", "logger": "server.rounds", "event": "round 3 closed",
        "run": "run-1", "round": 3, "track": "rare_disease",
    }  # fmt: skip
    assert "run" not in second


def test_no_other_fact_gets_into_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    logging.getLogger("client").info("read", extra={"patient": "Ada", "site": "berlin"})
    line = json.loads(capsys.readouterr().err)
    assert line["site"] == "berlin"
    assert "Ada" not in str(line)
    with pytest.raises(ValueError, match="got patient"):
        about(patient="Ada")


def test_no_text_of_an_unexpected_exception_gets_into_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    try:
        raise KeyError("Ada Lovelace")
    except KeyError:
        logging.getLogger("client").exception("failed")
    text = capsys.readouterr().err
    assert "Ada" not in text
    assert json.loads(text)["exception"].startswith("KeyError at test_logs.py:")


def test_our_own_errors_keep_their_words() -> None:
    assert (
        describe(BadFileError("x.json", "expected JSON")) == "BadFileError: x.json: expected JSON at no place"
    )


def test_a_terminal_gets_plain_lines_and_the_last_call_counts(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    configure(json=False)
    with about(site="berlin"):
        logging.getLogger("client").warning("late")
    (line,) = capsys.readouterr().err.splitlines()
    assert line[8:] == " warning client: late site=berlin"


def test_a_pipe_gets_json_and_debug_lines_stay_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("client").debug("detail")
    logging.getLogger("httpx").info("request")
    logging.getLogger("client").info("done")
    assert json.loads(capsys.readouterr().err)["event"] == "done"


@pytest.mark.parametrize(
    "ending",
    ["raise KeyError('Ada Lovelace')", "threading.Thread(target=lambda: {}['Ada Lovelace']).start()"],
)
def test_what_ends_a_process_or_a_thread_is_told_without_its_words(ending: str) -> None:
    program = f"import threading\nfrom common.logs import configure\nconfigure()\n{ending}\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "Ada" not in done.stderr
    line = json.loads(done.stderr)
    assert (line["event"], line["exception"][:8]) == ("ended by an exception", "KeyError")


def test_a_file_gets_the_same_lines_and_is_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / "log.jsonl"
    for text in ("first", "second"):
        configure(json=False, file=file)
        logging.getLogger("server").info(text)
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["first", "second"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "server: second" in capsys.readouterr().err
