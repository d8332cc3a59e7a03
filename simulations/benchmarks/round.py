"""Where the time of a round goes: in one process, and over real processes between sites.

The same plan twice, four sites with both tracks in each exchange. First over ``LocalGrid`` in this process,
then as ``simulations.trial`` runs it: SuperLink, gateway, outbound proxies, SuperNodes, guards and workers.
A round's time is the coordinator's. What its slowest site spent on training and on masks is the sites' own
account; what is left of the waiting is transport: Flower's polling and processes, gateway, proxies.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from client.home import SiteHome
from client.teacher.fit import TeacherRecipe
from common.ids import SiteId
from server.rounds import TrackState
from simulations.benchmarks._measure import parser, report
from simulations.federation import federate, make_workers
from simulations.trial.__main__ import free_ports, stand_up
from simulations.trial.hospitals import NO_NOISE, Hospitals, make_hospitals
from simulations.trial.hosts import on_loopback
from simulations.trial.stand import CONSORTIUM, Stand

RUN = "benchmark"
LIMIT_S = 1800.0
Seconds = Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; the last line is one JSON object."""
    made = parser("round", __doc__)
    made.set_defaults(threads=1)  # four workers share the processors
    arguments = made.parse_args(argv)
    if arguments.repeats < 2:
        made.error("--repeats: expected two rounds or more: the first is not like the others")
    folder = Path(tempfile.mkdtemp(prefix="cr"))
    try:
        found = measure(folder, arguments.repeats, arguments.threads)
        report("a round of four sites, two tracks", found, as_json=arguments.json)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def measure(folder: Path, rounds: int, threads: int) -> dict[str, float | int | str]:
    """Seconds of a round by what they were spent on, over both links; later rounds, medians."""
    overrides = [
        f"threads={threads}",
        f"plan.training.rounds={rounds}",
        f"tracks.tissue_type.training.rounds={rounds}",
        *NO_NOISE,
    ]
    hospitals = make_hospitals(folder / "given", overrides=overrides)
    local = in_one_process(hospitals, folder / "local")
    with Stand(folder, on_loopback(hospitals.plan.sites), hospitals, free_ports()) as stand:
        digest = stand_up(stand)
        done = stand.run(digest, RUN, timeout_s=LIMIT_S)
        if done.status:
            raise RuntimeError(f"Expected a run that finishes, got {done.out}{done.err}")
        rows = _rounds(stand)
        works = {site: site_log(stand, site) for site in stand.sites}
    first, later = _split(rows[0], works, 1), [_split(row, works, n) for n, row in enumerate(rows[1:], 2)]
    return {
        "n": len(hospitals.plan.sites),
        "tracks": len(hospitals.plan.tracks),
        "rounds": rounds,
        "local_round_s": local,
        **{f"first_{key}": value for key, value in first.items()},
        **{key: statistics.median(row[key] for row in later) for key in first},
        "message_to_first_step_first_s": _to_first_step(works, "prepare"),
        "message_to_first_step_later_s": _to_first_step(works, "train"),
    }


def in_one_process(hospitals: Hospitals, folder: Path) -> float:
    """Median seconds of a round of both tracks over ``LocalGrid``."""
    torch.set_num_threads(hospitals.settings.threads)
    workers = make_workers(
        hospitals.plan, hospitals.populations, hospitals.models, folder / "sites", TeacherRecipe()
    )
    for own in workers.values():
        for worker in own.values():
            worker.encoded()
    seconds: dict[str, list[float]] = {}

    def on_state(state: TrackState) -> None:
        if state.history and state.metrics is None:
            seconds.setdefault(state.track, []).append(state.history[-1].seconds)

    federate(
        hospitals.plan,
        workers,
        hospitals.models,
        link="grid",
        folder=folder / "coordinator",
        home=folder / "sites",
        on_state=on_state,
    )
    # Lanes share their exchanges: a round of one is a round of all.
    return max(statistics.median(own[1:] or own) for own in seconds.values())


def _rounds(stand: Stand) -> list[dict[str, float]]:
    """The coordinator's account of each round: the longer of its tracks."""
    by_track = [
        json.loads((stand.out(RUN) / track.track / "rounds.json").read_text(encoding="utf-8"))["rounds"]
        for track in stand.hospitals.plan.tracks
    ]
    return [
        {key: max(float(one[key]) for one in rows) for key in ("seconds", "waiting_s")}
        for rows in zip(*by_track, strict=True)
    ]


def site_log(stand: Stand, site: SiteId) -> list[dict[str, Any]]:
    """What the site's worker wrote of each message that it answered."""
    log = SiteHome(stand.home(site)).consortium(CONSORTIUM).logs / "worker.log"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line[:1] == "{"]
    return [line for line in lines if line.get("event") == "a message was answered"]


def _split(row: Seconds, works: Mapping[SiteId, list[dict[str, Any]]], number: int) -> dict[str, float]:
    """A round's seconds: the coordinator's own, the slowest site's by part, and what lies between."""
    answers = {site: [line for line in lines if line.get("round") == number] for site, lines in works.items()}
    busiest = max(answers.values(), key=lambda lines: sum(line["seconds"] for line in lines))
    site = {
        part: sum(line.get(f"{part}_s", 0.0) for line in busiest)
        for part in ("load", "prepare", "train", "mask")
    }
    return {
        "round_s": row["seconds"],
        "coordinator_s": row["seconds"] - row["waiting_s"],
        "training_s": site["train"],
        "preparing_s": site["load"] + site["prepare"],
        "masking_s": site["mask"],
        "transport_s": row["waiting_s"] - sum(line["seconds"] for line in busiest),
    }


def _to_first_step(works: Mapping[SiteId, list[dict[str, Any]]], kind: str) -> float:
    """Median seconds in a worker before training begins: when a plan is new, or of a warm message."""
    found = []
    for lines in works.values():
        if kind == "prepare":
            found.append(sum(line.get("load_s", 0.0) + line.get("prepare_s", 0.0) for line in lines))
            continue
        warm = [line for line in lines if line.get("what") == "TrainTask" and line.get("round", 0) > 1]
        found += [line.get("load_s", 0.0) + line.get("prepare_s", 0.0) for line in warm]
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
