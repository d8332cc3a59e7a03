"""Tests of the daemon's lock."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.daemon_lock import hold, holder
from common.errors import AlreadyRunningError

HOLD = """\
import sys, time
from pathlib import Path
from common.daemon_lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_holds_the_lock_and_others_learn_who(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.lock"
    assert holder(path) is None
    with hold(path):
        assert holder(path) == os.getpid()
        with pytest.raises(AlreadyRunningError, match=f"held by process {os.getpid()}"), hold(path):
            pass
    assert holder(path) is None
    with hold(path):
        pass


def test_the_lock_of_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "daemon.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert holder(path) == other.pid
        other.kill()
    assert holder(path) is None
    with hold(path):
        assert path.read_text() == f"{os.getpid()}\n"
