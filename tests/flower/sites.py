"""The workers of fake sites, in one process: ``python -m tests.flower.sites FOLDER``.

FOLDER holds ``plan.json`` and gets a socket for each site of the plan. A test steers them by files in it:
where there is a ``hold-{site}``, the site keeps a train task until there is a ``go-{site}``. ``asked-{site}``
and ``answered-{site}`` get a line with the round's number when a train task comes and when it is done.
"""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from client.worker_link import Handler, serve
from common.errors import FederationError
from common.ids import SiteId
from common.messages import Message, TrainTask
from common.plan import RunPlan
from tests.fakes import fake_sites

PLAN = "plan.json"
POLL_S = 0.05
# Bounds, not waiting times: a test that forgot to say go, or was killed, ends.
LONGEST_HOLD_S = 180.0
LIFETIME_S = 900.0


@dataclass(frozen=True, kw_only=True)
class SteeredSite:
    """A site whose train tasks a test can hold up.

    Attributes:
        site: Its name.
        answer: What answers its tasks.
        folder: Where the files are.
    """

    site: SiteId
    answer: Handler
    folder: Path

    def __call__(self, task: Message) -> Message:
        """The answer. FederationError if a train task is held too long."""
        # Tasks may travel in bundles.
        rounds = [part.round_id for part in getattr(task, "parts", (task,)) if isinstance(part, TrainTask)]
        for round_id in rounds:
            self._note("asked", round_id)
            self._hold()
        reply = self.answer(task)
        for round_id in rounds:
            self._note("answered", round_id)
        return reply

    def _note(self, what: str, round_id: int) -> None:
        with (self.folder / f"{what}-{self.site}").open("a") as file:
            file.write(f"{round_id}\n")

    def _hold(self) -> None:
        deadline = time.monotonic() + LONGEST_HOLD_S
        while (self.folder / f"hold-{self.site}").exists() and not (self.folder / f"go-{self.site}").exists():
            if time.monotonic() >= deadline:
                raise FederationError(f"{self.site}: held for more than {LONGEST_HOLD_S:g} s")
            time.sleep(POLL_S)


def socket_of(folder: Path, site: SiteId) -> Path:
    """Where the site's worker listens."""
    return folder / f"{site}.sock"


def main(folder: Path) -> None:
    """Serve all sites of the plan for ``LIFETIME_S`` at most."""
    plan = RunPlan.from_json((folder / PLAN).read_text())
    servers = [
        serve(SteeredSite(site=site, answer=answer, folder=folder), socket_of(folder, site), site=site)
        for site, answer in fake_sites(plan).items()
    ]
    servers[0].wait_for_termination(LIFETIME_S)
    for server in servers:
        server.stop(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(Path(sys.argv[1]))
