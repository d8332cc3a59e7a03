import multiprocessing
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
