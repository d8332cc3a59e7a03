"""The enrolment service as a process: ``python -m server.enrolment_process HOME``.

Listens where ``coordinator.yaml`` says, writes its port into ``run/enrolment.json``, keeps the coordinator's
own certificate in date, and ends with SIGTERM or SIGINT.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.atomic import write_atomically
from common.audit import AuditLog
from common.canonical import canonical_json
from common.errors import FederationError
from common.logs import configure
from server.enrolment import serve
from server.home import CoordinatorHome
from server.invitations import ensure_server_certificate

logger = logging.getLogger(__name__)

STATUS_SCHEMA = 1
STATUS_NAME = "enrolment.json"
CHECK_S = 3600.0
GRACE_S = 5.0
FAILED = 1


def run(home: CoordinatorHome, stop: threading.Event) -> None:
    """Serve until ``stop`` is set. FederationError if the home was not set up, or the port is taken."""
    settings = home.settings()
    ensure_server_certificate(home, settings)
    log = AuditLog(home.audit_file)

    def audit(event: str, facts: Mapping[str, str | int]) -> None:
        log.append(event, **facts)

    server, port = serve(home, settings, audit)
    home.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = home.run / STATUS_NAME
    content = {"schema": STATUS_SCHEMA, "pid": os.getpid(), "port": port}
    write_atomically(status, canonical_json(content) + "\n")
    logger.info("enrolment listens on %s:%d", settings.bind, port)
    try:
        while not stop.wait(CHECK_S):
            if ensure_server_certificate(home, settings):
                logger.info("the coordinator's certificate was made anew")
    finally:
        status.unlink(missing_ok=True)
        server.stop(GRACE_S).wait(GRACE_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the home that is named; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1:
        print("usage: python -m server.enrolment_process HOME", file=sys.stderr)  # noqa: T201
        return 2
    configure()
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda number, frame: stop.set())
    try:
        run(CoordinatorHome(Path(given[0])), stop)
    except FederationError as error:
        logger.error("%s", error)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
