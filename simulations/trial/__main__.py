"""``python -m simulations.trial``: a coordinator and four hospitals as real processes on this machine.

From nothing to two trained students: homes, enrolment by token, fingerprints compared, plan approved by every
site, mutual TLS, rounds with both tracks in each exchange. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from common.errors import FederationError
from common.offline import stay_offline
from simulations.trial.chaos import run_through
from simulations.trial.equal import differing, simulated, trained
from simulations.trial.hospitals import NO_NOISE, Hospitals, make_hospitals
from simulations.trial.hosts import LOOPBACK, Hosts, in_namespaces, on_loopback
from simulations.trial.judge import judge
from simulations.trial.stand import Ports, Stand

RUN = "trial"
LIMIT_S = 900.0
# A round has to have all sites in it, or the adapter would be another than the undisturbed run's.
ALL_SITES = "plan.aggregation.minimum_survivors=4"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trial; 0 if everything held, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m simulations.trial", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="of each track; default %(default)s")
    parser.add_argument(
        "--no-noise", action="store_true", help="privacy mode none; compare with a simulation"
    )
    parser.add_argument(
        "--namespaces", action="store_true", help="a network namespace and firewall for each host"
    )
    parser.add_argument("--kills", type=int, default=0, help="kill -9 at random instants; then `resume`")
    parser.add_argument("--seed", type=int, default=0, help="of the kills; default %(default)s")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds; default %(default)s")
    parser.add_argument("--keep", type=Path, help="leave homes and logs in this folder, with a short name")
    arguments = parser.parse_args(argv)
    stay_offline()
    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with _folder(arguments.keep) as folder:
            found = run_trial(
                folder,
                rounds=arguments.rounds,
                no_noise=arguments.no_noise,
                namespaces=arguments.namespaces,
                kills=arguments.kills,
                seed=arguments.seed,
                limit_s=arguments.limit,
                say=_say,
            )
    except FederationError as error:
        print(f"simulations.trial: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(json.dumps(found))  # noqa: T201
    return 0 if found["held"] else 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def run_trial(
    folder: Path,
    *,
    rounds: int,
    no_noise: bool,
    namespaces: bool = False,
    kills: int = 0,
    seed: int = 0,
    limit_s: float = LIMIT_S,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """A whole trial in ``folder``; what was seen, as plain values."""
    started = time.monotonic()
    overrides = [f"plan.training.rounds={rounds}", f"tracks.tissue_type.training.rounds={rounds}"]
    overrides += [*NO_NOISE] if no_noise else [f"plan.privacy.spare_steps={rounds + 2 * kills}"]
    overrides += [ALL_SITES] if kills else []
    hospitals = make_hospitals(folder / "given", overrides=overrides, cache=cache)
    ports = free_ports()
    with (
        _hosts(hospitals, ports, namespaces) as hosts,
        Stand(folder, hosts, hospitals, ports, say=say) as stand,
    ):
        stand.note("data, models and plan are made")
        digest = stand_up(stand)
        stand.note("the run begins")
        if kills:
            killer = run_through(stand, digest, RUN, kills=kills, seed=seed, limit_s=limit_s)
            killed = [f"{one.kind}@{one.host}" for one in killer.kills]
        else:
            killed = []
            done = stand.run(digest, RUN, timeout_s=limit_s)
            if done.status:
                raise FederationError(f"the run ended with status {done.status}: {done.out}{done.err}")
        stand.note("the run has finished")
        found = judge(stand, RUN)
        if no_noise:
            found["tracks_that_differ_from_the_simulation"] = differing(
                trained(stand, RUN), simulated(stand, folder / "simulated")
            )
            stand.note("the simulation of it has finished")
        found["held"] = found["held"] and not found.get("tracks_that_differ_from_the_simulation")
        found |= {"kills": killed, "namespaces": namespaces, "seconds": round(time.monotonic() - started, 1)}
        say(f"           {'everything held' if found['held'] else 'not as it has to be; see the last line'}")
        found["timeline"] = {what: round(at, 1) for at, what in stand.timeline}
    return found


def stand_up(stand: Stand) -> str:
    """Everything before the run: the plan's digest."""
    stand.found_consortium()
    stand.at_each_site(stand.set_up_site)
    stand.approve_everybody()
    digest = stand.offer_plan()
    stand.at_each_site(lambda site: stand.approve_plan(site, digest))
    stand.note("every site has approved the plan")
    for site in stand.sites:
        stand.start_site(site)
    stand.wait_for_sites()
    return digest


def free_ports() -> Ports:
    """Four ports of the loopback that nothing listens on, and what lies behind the last one."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            first = int(probe.getsockname()[1])
        wanted = range(first, first + 8)
        if wanted[-1] < 2**16 and all(_is_free(port) for port in wanted):
            return Ports(gateway=first, enrolment=first + 2, superlink=first + 4, health=first + 6)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) != 0


@contextmanager
def _hosts(hospitals: Hospitals, ports: Ports, namespaces: bool) -> Iterator[Hosts]:
    sites = hospitals.plan.sites
    if not namespaces:
        yield on_loopback(sites)
        return
    with in_namespaces(sites, (ports.gateway, ports.enrolment)) as hosts:
        yield hosts


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where the homes lie; with a short name, since sockets lie in it."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="ct"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
