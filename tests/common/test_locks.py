import multiprocessing
import subprocess
import sys
from pathlib import Path

from common.locks import locked


def add_one(folder: str) -> None:
    path = Path(folder) / "count"
    for _ in range(50):
        with locked(Path(folder) / "new" / "lock"):
            path.write_text(str(int(path.read_text()) + 1))


def test_processes_take_turns(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_one, args=(str(tmp_path),)) for _ in range(2)]
    for worker in workers:
        worker.start()
    add_one(str(tmp_path))
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert (tmp_path / "count").read_text() == "150"


def test_whoever_dies_leaves_no_lock_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.locks import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        with locked(tmp_path / "lock"):
            pass
