"""Nothing that names a patient leaves a site: a whole federation over sockets, with canaries in its patients.

The canaries stand in notes, file names, the sites' own patient ids and the EXIF data of photos. They are
looked for in every message, in the bytes of every socket, in all that is logged at DEBUG and printed, and in
every file that the run leaves, the sites' own encrypted stores and ledgers included.
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import simulations.federation
import simulations.run
from client.patients.records import pseudonym
from client.session import SiteSession
from client.site_patients import SitePatients, Views
from client.worker_link import Handler, attach, detach, remote, serve
from common.errors import FederationError
from common.ids import SiteId
from common.messages import Message, PrepareTask, Refusal
from common.wire import to_bytes
from simulations.populations import Population
from simulations.run import run_simulation
from simulations.stages import Stages
from tests.federation.leaks import (
    KEY,
    KINDS,
    Listener,
    Wire,
    canaries_of,
    find_leaks,
    forms_of,
    listening,
    plant,
    read_planted,
    tapped,
)
from tests.messages import example
from tests.simulations.small import small_settings

PRIVATE = (
    "plan.privacy.mode=distributed",
    "plan.teacher.privacy=dp",
    "data.sites={site-a: 30, site-b: 30, site-c: 30, site-d: 30}",
    "plan.privacy.teacher.steps=3",
    "methods=[federated_orpo]",
)
NEXT_TO = 2
"""Planted patients a site, of those who train and of those who test."""


@dataclass
class Heard:
    """All that left the sites, by place."""

    messages: dict[str, bytes] = field(default_factory=dict)
    wires: dict[str, Wire] = field(default_factory=dict)

    def tap(self, site: str, handle: Handler) -> Handler:
        """The same handler; what it is asked and what it answers is kept."""

        def heard(task: Message) -> Message:
            answer = handle(task)
            number = len(self.messages)
            self.messages |= {
                f"message {number} to {site}": to_bytes(task),
                f"message {number} of {site}": to_bytes(answer),
            }
            return answer

        return heard

    def places(self) -> dict[str, bytes]:
        """Bytes by place."""
        ways = {f"socket to {site}": bytes(wire.there) for site, wire in self.wires.items()}
        back = {f"socket of {site}": bytes(wire.back) for site, wire in self.wires.items()}
        return {**self.messages, **ways, **back}


@contextmanager
def over_sockets(sessions: Mapping[SiteId, SiteSession], folder: Path, heard: Heard) -> Iterator[None]:
    """Each site's session behind a socket of its own, as a hospital's worker is."""
    with ExitStack() as stack:
        for number, (site, session) in enumerate(sessions.items()):
            real = folder / f"{number}" / "worker.sock"
            server = serve(session, real, site=site)
            stack.callback(lambda server=server: server.stop(None).wait())
            heard.wires[site] = stack.enter_context(tapped(real, folder / f"{number}.sock"))
            attach(site, heard.tap(site, remote(folder / f"{number}.sock", timeout_s=60.0)))
            stack.callback(detach, site)
        yield


@dataclass(frozen=True)
class Run:
    """A finished run: what was planted, and where it could be."""

    planted: list[str]
    heard: Heard
    log: Listener
    printed: str
    files: dict[str, bytes]

    def places(self) -> dict[str, bytes]:
        log = "\n".join(self.log.lines).encode()
        return {**self.heard.places(), **self.files, "log": log, "console": self.printed.encode()}


def plant_population(population: Population, folder: Path) -> tuple[Population, list[str]]:
    """The same patients, read from folders in which some carry canaries."""
    planted, sites = [], {}
    for place, (site, patients) in enumerate(sorted(population.sites.items())):
        parts = []
        for part, records in enumerate((patients.train, patients.test)):
            first = 10 * (2 * place + part)
            own = folder / site / f"{part}"
            planted += plant(own, records, patients=range(first, first + NEXT_TO))
            parts.append(read_planted(own))
        sites[site] = SitePatients(train=parts[0], test=parts[1], views=Views(facial="keep"))
    return replace(population, sites=sites), planted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    place = tmp_path_factory.mktemp("leaks")
    settings = replace(small_settings(PRIVATE), out=place / "out", cache=place / "cache")
    (found,) = simulations.run.gather_populations(settings, quiet()).values()
    population, planted = plant_population(found, place / "in")
    heard, printed = Heard(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        # A socket's path must be short.
        tempfile.TemporaryDirectory(prefix="leak") as sockets,
        listening() as log,
    ):
        drawn = {population.track.name: population}
        patch.setattr(simulations.run, "gather_populations", lambda settings, stages: drawn)
        patch.setattr(
            simulations.federation,
            "attached_sessions",
            lambda sessions: over_sockets(sessions, Path(sockets), heard),
        )
        run_simulation(settings, Console(file=printed))
    out = settings.out
    files = {f"{path.relative_to(out)}": path.read_bytes() for path in out.rglob("*") if path.is_file()}
    yield Run(planted=planted, heard=heard, log=log, printed=printed.getvalue(), files=files)


def quiet() -> Stages:
    return Stages(progress=Progress(console=Console(quiet=True)))


def test_no_canary_is_in_any_message_log_or_file(finished: Run) -> None:
    places = finished.places()
    assert len(finished.planted) == 4 * 2 * NEXT_TO * len(KINDS)
    assert find_leaks(finished.planted, places) == []


def test_all_that_leaves_a_site_was_looked_at(finished: Run) -> None:
    places = finished.places()
    for site in ("site-a", "site-b", "site-c", "site-d"):
        # What a site says in plain words, such as its name, is seen in its socket's bytes. As a flag: pytest
        # would take minutes to print the bytes.
        named = site.encode() in places[f"socket of {site}"]
        assert named, site
        assert any(place.endswith(f"of {site}") for place in finished.heard.messages)
    names = set(finished.files)
    assert {"results.json", "report.html", "plan.json"} <= names
    for part in ("predictions/", "students/", "coordinator/", "sites/"):
        assert any(name.startswith(part) for name in names), part
    assert any(name.startswith("coordinator/") and "ledger" in name for name in names)
    assert any(name.startswith("sites/") and "ledger" in name for name in names)
    assert len(finished.log.lines) > 0


def test_the_planted_patients_were_in_the_run(finished: Run) -> None:
    # Their pseudonyms are allowed outside: predictions carry them as case ids.
    predictions = finished.files["predictions/rare_disease/federated_orpo.jsonl"].decode()
    for number in range(10, 10 + NEXT_TO):
        assert pseudonym(KEY, canaries_of(number)["patient"]) in predictions


@pytest.mark.parametrize("form", sorted(forms_of("canary note 001/köhler zx1")))
def test_a_canary_is_found_in_every_form(form: str) -> None:
    text = canaries_of(7)["note"]
    content = b"left" * 99 + forms_of(text)[form] + b"right" * 99
    assert find_leaks([text], {"a file": content})
    assert not find_leaks([text], {"a file": b"left" * 99})
    assert not find_leaks([canaries_of(8)["note"]], {"a file": content})


@pytest.mark.parametrize("start", range(6))
def test_a_canary_is_found_in_base64_wherever_it_begins(start: int) -> None:
    text = canaries_of(7)["file"]
    whole = base64.b64encode(b"x" * start + text.encode() + b"after it")
    assert find_leaks([text], {"a message": whole})


def answer_over_socket(error: Exception) -> tuple[Message, dict[str, bytes], Listener]:
    """What comes back from a worker that fails with ``error``, the socket's bytes and the log."""

    def fail(task: Message) -> Message:
        raise error

    heard, site = Heard(), SiteId("site-a")
    with tempfile.TemporaryDirectory(prefix="leak") as folder, listening() as log:
        real, tap = Path(folder) / "own" / "worker.sock", Path(folder) / "tap.sock"
        server = serve(fail, real, site=site)
        with tapped(real, tap) as wire:
            heard.wires[site] = wire
            answer = heard.tap(site, remote(tap, timeout_s=10.0))(example(PrepareTask))
        server.stop(None).wait()
    return answer, heard.places(), log


def test_a_refusal_that_quotes_a_note_is_found() -> None:
    text = canaries_of(3)["note"]
    answer, places, _ = answer_over_socket(FederationError(f"cannot read: {text}"))
    assert isinstance(answer, Refusal)
    found = find_leaks([text], places)
    assert any(one.startswith("socket of site-a") for one in found)
    assert any(one.startswith("message 0 of site-a") for one in found)


def test_an_unexpected_error_that_quotes_a_note_stays_in_the_sites_own_log() -> None:
    text = canaries_of(3)["note"]
    _, places, log = answer_over_socket(KeyError(text))
    assert find_leaks([text], places) == []
    assert find_leaks([text], {"log": "\n".join(log.lines).encode()})
