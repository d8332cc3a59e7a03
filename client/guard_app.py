"""What SuperNode starts for a task, under the name of every program that Flower may ask for.

A run names the type of its tasks, and brings a bundle of code (FAB). So the site's own guard stands first on
SuperNode's path under all of these names. ``flwr-clientapp`` asks the guard (``client.guard``) and hands what
is let in to the site's worker, through the site's own installed ``client.app``; every other name runs
nothing.

Guarantee: no code of a run is installed, imported or run; a bundle that holds some is refused.

Flower's own ``run_clientapp`` does the rest: it pulls the task, sends heartbeats, uses the task's token and
ends as SuperNode expects. Two names inside of that module are replaced and nothing else:
``install_from_fab``, which would unpack the bundle, now looks at it in memory, and
``get_load_client_app_fn``, which would import from it, now gives the site's own app. To write the rest anew
would mean to follow each change of Flower's heartbeats and exit handlers; that both names are there, as they
are used here, is tested.

Every message starts this program anew, so that what it imports is paid for each time: no torch, and
the accountant's libraries for tasks under privacy only.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.home import ConsortiumHome, SiteHome
from common.errors import FederationError, ForeignCodeError, SettingsError, one_line

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.app import Message as FlowerMessage

    from client.guard import Guard
    from client.settings import SiteSettings
    from common.messages import Message

SITE_HOME, CONSORTIUM = "CONSILIUM_SITE_HOME", "CONSILIUM_CONSORTIUM"
CLIENT_APP = "flwr-clientapp"
OTHERS = ("flwr-serverapp", "flwr-simulation", "flwr-agentapp", "flwr-model", "flwr-connector")
EXECUTABLES = (CLIENT_APP, *OTHERS)
COMPONENTS = {"serverapp": "server.app:app", "clientapp": "client.app:app"}

UNUSABLE, REFUSED = 1, 3
PRIVATE_EXECUTABLE = 0o700
# Of Linux since 5.1, 256; older ones and other systems cut at 127.
LONGEST_SHEBANG = 120
PR_SET_PDEATHSIG = 1

PROJECT_FILE = "pyproject.toml"
# What a bundle without code may hold: its settings, Flower's list of its files, and text for people.
ALLOWED_FILES = (PROJECT_FILE, ".info/CONTENT", "README.md", "LICENSE")
# The first is the most that Flower takes.
MOST_BUNDLE_BYTES, MOST_PROJECT_BYTES = 10 * 2**20, 2**16


def install_executables(home: ConsortiumHome) -> tuple[Path, ...]:
    """Put the guard into ``bin/`` of the home, under each name that Flower may start; their paths."""
    home.executables.mkdir(mode=PRIVATE_EXECUTABLE, parents=True, exist_ok=True)
    return tuple(_write(home.executables / name) for name in EXECUTABLES)


def _write(path: Path) -> Path:
    from common.atomic import write_atomically

    # -P: what lies in the folder it is started from is not found by its name.
    program = f"from client.guard_app import main; raise SystemExit(main({path.name!r}))"
    shebang = f"#!{sys.executable} -P"
    if len(shebang) <= LONGEST_SHEBANG and " " not in sys.executable:
        text = f"{shebang}\n{program}\n"
    else:
        text = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(program)} "$@"\n'
    write_atomically(path, text, private=True)
    path.chmod(PRIVATE_EXECUTABLE)
    return path


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run under one of Flower's names; the exit status: 3 for a task of a type that is refused."""
    _end_with_parent()
    try:
        home = home_of(os.environ)
        if name != CLIENT_APP:
            return _refuse_type(home, name)
        return _run_client_app(home, sys.argv[1:] if argv is None else argv)
    except FederationError as error:
        _say(str(error))
        return REFUSED if name != CLIENT_APP else UNUSABLE


def home_of(environment: Any) -> ConsortiumHome:
    """The home that the site's daemon named. SettingsError if it did not."""
    for key in (SITE_HOME, CONSORTIUM):
        if not environment.get(key):
            raise SettingsError(key, "nothing", "what the site's daemon sets (consilium-site start)")
    return SiteHome(Path(environment[SITE_HOME])).consortium(environment[CONSORTIUM])


def _end_with_parent() -> None:
    """On Linux, end with SuperExec: an orphan would go on asking the worker for nobody."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _refuse_type(home: ConsortiumHome, name: str) -> int:
    from common.audit import AuditLog

    reason = f"a run asked for a task of type {name}; this site runs {CLIENT_APP} alone, its own"
    _say(reason)
    AuditLog(home.audit_file).append(
        "refused", place="guard", kind=name, error="TaskTypeRefused", reason=reason
    )
    return REFUSED


def _say(line: str) -> None:
    print(f"consilium guard: {one_line(line)}", file=sys.stderr)  # noqa: T201


def _run_client_app(home: ConsortiumHome, argv: Sequence[str]) -> int:
    # First of Flower, so that it stays quiet.
    import common.flower  # noqa: F401

    # isort: split
    import argparse

    from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
    from flwr.supercore.constant import SUPERNODE_DEFAULT_CLIENT_ADDRESS
    from flwr.supercore.tls import validate_and_resolve_root_certificates
    from flwr.supernode.runtime import run_clientapp as flower

    from client.approvals import site_home
    from client.guard import Guard
    from client.settings import read_settings

    parser = argparse.ArgumentParser(prog=CLIENT_APP, description="Run a task of a coordinator, guarded")
    parser.add_argument("--runtime-api-address", default=SUPERNODE_DEFAULT_CLIENT_ADDRESS)
    add_args_flwr_app_common(parser=parser)
    arguments = parser.parse_args(argv)
    _require_parent(arguments.parent_pid)
    settings = read_settings(site_home(home).settings_file)
    door = Door(Guard(home, settings, place="guard"), settings, home.worker_socket)
    vars(flower).update(install_from_fab=door.look_at, get_load_client_app_fn=door.load)
    flower.run_clientapp(
        runtime_api_address=arguments.runtime_api_address,
        token=try_obtain_flwr_app_token(arguments),
        insecure=arguments.insecure,
        certificates=validate_and_resolve_root_certificates(arguments.root_certificates, arguments.insecure),
        parent_pid=arguments.parent_pid,
        # Whatever the command line says: a run must not have packages installed here.
        runtime_dependency_install=False,
    )
    return 0


def _require_parent(pid: int | None) -> None:
    """End if SuperExec ended before this process could ask to end with it."""
    if pid is not None and os.getppid() != pid:
        raise FederationError(f"SuperExec, process {pid}, is gone")


class Door:
    """Between Flower and the worker: what the guard lets in goes through."""

    def __init__(self, guard: Guard, settings: SiteSettings, socket: Path) -> None:
        """Hand tasks to the worker at ``socket``, as the site that the settings name."""
        self._guard, self._site, self._socket = guard, settings.site, socket
        self._objection: FederationError | None = None

    def look_at(
        self, fab_file: Path | bytes, install_dir: Path | None = None, skip_prompt: bool = False
    ) -> Path:
        """In the place of Flower's ``install_from_fab``: nothing is installed.

        An objection is kept, so that the coordinator hears of it as of any other refusal.
        """
        try:
            check_bundle(fab_file if isinstance(fab_file, bytes) else fab_file.read_bytes())
        except ForeignCodeError as error:
            self._objection = error
        return Path(os.devnull)

    def load(
        self, default_app_ref: str, app_path: str | None, multi_app: bool
    ) -> Callable[[str, str, str], Callable[[FlowerMessage, Context], FlowerMessage]]:
        """In the place of Flower's ``get_load_client_app_fn``: the site's own app, whatever the run names."""
        return lambda fab_id, fab_version, fab_hash: self.answer

    def answer(self, message: FlowerMessage, context: Context) -> FlowerMessage:
        """The worker's answer, or a refusal."""
        from client.app import app
        from client.worker_link import attach, detach

        is_question = message.metadata.message_type.partition(".")[0] == "query"
        refusal = self._unreadable(message, context, is_question)
        if refusal is not None:
            return refusal
        # Site and worker are the home's, not what a run or a command line says.
        context.node_config = {"site": self._site}
        attach(self._site, self._handler(message.metadata.ttl))
        try:
            return app(message, context)
        finally:
            detach(self._site)

    def _handler(self, timeout_s: float) -> Callable[[Message], Message]:
        from client.guard import guarded
        from client.worker_link import remote

        return guarded(self._check, remote(self._socket, timeout_s=timeout_s), self._site)

    def _check(self, part: Message) -> object:
        if self._objection is not None:
            self._guard.refuse(self._objection, part)
            raise self._objection
        return self._guard.check_task(part)

    def _unreadable(
        self, message: FlowerMessage, context: Context, is_question: bool
    ) -> FlowerMessage | None:
        """A refusal of what is no message of this protocol, or of a question of a run with foreign code."""
        from client.refusals import reply_or_refusal
        from common.flower import from_record, run_name

        try:
            if not is_question:
                from_record(message.content)
                return None
            if self._objection is None:
                return None
            raise self._objection
        except FederationError as error:
            # Foreign code first: it says more than that its message is odd as well.
            failed = self._objection or error
        run = run_name(context.run_id)
        self._guard.refuse(failed, run=run, kind=message.metadata.message_type)
        return _reply(reply_or_refusal(_raising(failed), run, self._site), message)


def _raising(error: FederationError) -> Callable[[], Message]:
    def fail() -> Message:
        raise error

    return fail


def _reply(answer: Message, message: FlowerMessage) -> FlowerMessage:
    from flwr.app import Message as FlowerMessage

    from common.flower import to_record

    return FlowerMessage(to_record(answer), reply_to=message)


def check_bundle(content: bytes) -> None:
    """ForeignCodeError unless a bundle holds no code and names the installed apps; nothing is unpacked."""
    import io
    import tomllib
    import zipfile

    if len(content) > MOST_BUNDLE_BYTES:
        raise ForeignCodeError(f"expected at most {MOST_BUNDLE_BYTES} bytes, got {len(content)}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            names = bundle.namelist()
            foreign = sorted(set(names) - set(ALLOWED_FILES))
            if foreign:
                raise ForeignCodeError(f"expected no code in it, got {foreign[0]!r}")
            if names.count(PROJECT_FILE) != 1:
                raise ForeignCodeError(f"expected one {PROJECT_FILE} in it")
            if bundle.getinfo(PROJECT_FILE).file_size > MOST_PROJECT_BYTES:
                raise ForeignCodeError(f"expected a {PROJECT_FILE} of at most {MOST_PROJECT_BYTES} bytes")
            project = tomllib.loads(bundle.read(PROJECT_FILE).decode())
        components = project["tool"]["flwr"]["app"]["components"]
    except (zipfile.BadZipFile, UnicodeDecodeError, ValueError, KeyError, TypeError, OSError) as error:
        raise ForeignCodeError(f"it cannot be read ({type(error).__name__})") from error
    if components != COMPONENTS:
        expected = " and ".join(COMPONENTS.values())
        raise ForeignCodeError(f"expected the components {expected}, got {components}")
