import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.audit import AuditHead, AuditLog, head_file, read_head, verify
from common.errors import AuditBrokenError, UnsupportedSchemaError

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
APPENDING = """
import sys
from pathlib import Path
from common.audit import AuditLog
for number in range(20):
    AuditLog(Path(sys.argv[1])).append("refused", run=f"run-{sys.argv[2]}-{number}")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = AuditLog(tmp_path / "audit.jsonl", lambda: NOON)
    for round_id in (1, 2, 3):
        log.append("let-in", run="run-1", round=round_id, reason="as  planned\n")
    return tmp_path / "audit.jsonl"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True)


def test_a_log_grows_line_by_line_and_each_holds_the_hash_of_the_one_before(path: Path) -> None:
    first, second, third = AuditLog(path).entries()
    assert (first.n, first.time, first.event) == (1, "2026-11-29T12:00:00+00:00", "let-in")
    assert first.facts == {"run": "run-1", "round": 1, "reason": "as planned"}
    assert (second.previous, third.previous) == (first.hash, second.hash)
    assert verify(path) == AuditHead(n=3, hash=third.hash) == read_head(path)
    assert verify(path, AuditHead(n=2, hash=second.hash)).n == 3
    assert path.stat().st_mode & 0o077 == 0


def test_a_log_that_was_never_written_is_whole(tmp_path: Path) -> None:
    assert verify(tmp_path / "none.jsonl").n == 0


def test_the_first_broken_line_is_named(path: Path) -> None:
    kept = lines(path)
    path.write_text(kept[0] + kept[1].replace("run-1", "run-2") + kept[2])
    with pytest.raises(AuditBrokenError, match=r"audit\.jsonl: line 2: not the line that was written"):
        verify(path)
    path.write_text(kept[0] + kept[2])
    with pytest.raises(AuditBrokenError, match="line 2: not the line that was written"):
        verify(path)
    path.write_text(kept[0] + "no json\n" + kept[2])
    with pytest.raises(AuditBrokenError, match="line 2: not the line that was written"):
        verify(path)


def test_a_line_that_was_hashed_anew_breaks_the_one_behind(path: Path, tmp_path: Path) -> None:
    kept = lines(path)
    other = AuditLog(tmp_path / "other.jsonl", lambda: NOON)
    other.append("let-in", run="run-9")
    path.write_text(lines(tmp_path / "other.jsonl")[0] + kept[1] + kept[2])
    with pytest.raises(AuditBrokenError, match="line 2: it does not follow the line before"):
        verify(path)


def test_a_cut_tail_is_noticed_against_the_head(path: Path) -> None:
    kept = lines(path)
    path.write_text(kept[0] + kept[1])
    with pytest.raises(AuditBrokenError, match="line 3: cut: 2 lines are left of the 3 that its head names"):
        verify(path)
    with pytest.raises(AuditBrokenError, match="expected line 3, which its head names"):
        AuditLog(path).append("let-in", run="run-1")
    path.write_text("")
    with pytest.raises(AuditBrokenError, match="cut"):
        AuditLog(path).append("let-in", run="run-1")
    path.unlink()
    with pytest.raises(AuditBrokenError, match="the log is gone, its head names 3 lines"):
        verify(path)


def test_a_head_that_was_kept_elsewhere_notices_what_was_forged_together(path: Path) -> None:
    kept = verify(path)
    path.unlink()
    head_file(path).unlink()
    AuditLog(path, lambda: NOON).append("let-in", run="run-7")
    assert verify(path).n == 1
    with pytest.raises(AuditBrokenError, match="cut: 1 lines are left of the 3 that the head that was kept"):
        verify(path, kept)


def test_a_crash_before_the_head_was_written_is_no_break(path: Path) -> None:
    older = head_file(path).read_text()
    AuditLog(path).append("let-in", run="run-1", round=4)
    head_file(path).write_text(older)
    assert verify(path).n == 4
    assert AuditLog(path).append("let-in", run="run-1", round=5).n == 5
    assert verify(path).n == 5


def test_half_a_line_of_a_crash_is_named_and_does_not_stop_the_next_event(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"schema":1,"n":4,')
    with pytest.raises(AuditBrokenError, match="line 4: half a line"):
        verify(path)
    assert AuditLog(path).append("let-in", run="run-1").n == 4
    assert verify(path).n == 4


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", APPENDING, str(path), str(number)]) for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert verify(path).n == 60


def test_a_newer_log_is_refused(path: Path) -> None:
    content = json.loads(lines(path)[0])
    path.write_text(json.dumps({**content, "schema": 2}) + "\n")
    head_file(path).unlink()
    with pytest.raises(UnsupportedSchemaError, match=r"audit\.jsonl: schema 2 is newer than 1"):
        verify(path)


def test_a_head_that_cannot_be_read_stops_the_log(path: Path) -> None:
    head_file(path).write_text("{}")
    with pytest.raises(AuditBrokenError, match="not a readable head"):
        AuditLog(path).append("let-in")


@pytest.mark.parametrize(
    "facts", [{"patient_id": "p"}, {"note": "n"}, {"token": "t"}, {"hash": "h"}, {"N": 1}]
)
def test_names_of_patients_data_and_of_secrets_are_refused(path: Path, facts: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        AuditLog(path).append("let-in", **facts)  # type: ignore[arg-type]
    assert verify(path).n == 3
