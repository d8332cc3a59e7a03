"""A site's home folder: what lies where. Names and paths only; whoever owns a file reads and writes it.

One home serves several consortia, and what a patient has lost does not depend on who learned it. So the
ledger is keyed by the cohort of patients, and all else that a federation brings along by its consortium:

site.yaml                       what the site's administrator sets (``client.settings``)
keyring.json                    the data key, wrapped by the master key (``client.keys``)
cohorts/COHORT/ledger.db        what was taken from these patients, by all consortia together
cohorts/COHORT/withdrawn.txt    who took the consent back, one pseudonym or id a line
consortia/NAME/                 one federation, see ``ConsortiumHome``
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import BadFileError
from common.ids import NAME_PATTERN

PRIVATE_FOLDER = 0o700
_COHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ConsortiumHome:
    """What a site keeps for one consortium.

    identity.json  public/  approved/       who this site is, and whom it approved (``client.approval``)
    coordinator.json                        addresses and identity of the coordinator (``client.enrolment``)
    tls.key  tls.crt  ca.crt                for the gateway: mutual TLS
    node.key  node.pub                      SuperNode's own key, registered at enrolment
    loopback.key  loopback.crt              between SuperNode and the site's outbound proxy
    offered/SITE.json                       identities that the coordinator names; not approved by that
    packages/DIGEST.json                    plans that the coordinator offers (``common.plan_package``)
    approvals.jsonl                         which plans were approved, by whom; hash-chained
    audit.jsonl                             what was let in and what was refused; hash-chained
    sessions/TRACK/                         secrets and answers of secure sums, sealed
    pairs/                                  preference pairs, encrypted
    bin/                                    the guard, under the name of every task executable of Flower
    run/                                    the worker's socket, and what ``status`` reads
    logs/                                   one a process

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def name(self) -> str:
        """The consortium's."""
        return self.root.name

    @property
    def coordinator_file(self) -> Path:
        """Addresses and identity of the coordinator."""
        return self.root / "coordinator.json"

    @property
    def tls_key(self) -> Path:
        """Private key of the site's certificate."""
        return self.root / "tls.key"

    @property
    def tls_certificate(self) -> Path:
        """The site's certificate, by the consortium's authority."""
        return self.root / "tls.crt"

    @property
    def authority_certificate(self) -> Path:
        """The consortium's authority."""
        return self.root / "ca.crt"

    @property
    def node_key(self) -> Path:
        """SuperNode's private key, OpenSSH, ECDSA P-384."""
        return self.root / "node.key"

    @property
    def node_public_key(self) -> Path:
        """Its public half, OpenSSH."""
        return self.root / "node.pub"

    @property
    def loopback_key(self) -> Path:
        """Private key of the proxy towards SuperNode."""
        return self.root / "loopback.key"

    @property
    def loopback_certificate(self) -> Path:
        """Its certificate, which SuperNode trusts and nothing else does."""
        return self.root / "loopback.crt"

    @property
    def offered(self) -> Path:
        """Identities that the coordinator names."""
        return self.root / "offered"

    @property
    def packages(self) -> Path:
        """Plans that were offered."""
        return self.root / "packages"

    @property
    def approvals_file(self) -> Path:
        """Approvals of plans."""
        return self.root / "approvals.jsonl"

    @property
    def audit_file(self) -> Path:
        """What was let in and what was refused."""
        return self.root / "audit.jsonl"

    @property
    def sessions(self) -> Path:
        """Secure sums, a folder a track."""
        return self.root / "sessions"

    @property
    def pairs(self) -> Path:
        """Preference pairs."""
        return self.root / "pairs"

    @property
    def executables(self) -> Path:
        """The guard, by the names of Flower's task executables."""
        return self.root / "bin"

    @property
    def run(self) -> Path:
        """Sockets and status."""
        return self.root / "run"

    @property
    def worker_socket(self) -> Path:
        """Where the worker listens."""
        return self.run / "worker.sock"

    @property
    def worker_status(self) -> Path:
        """What the worker is doing, for ``status``."""
        return self.run / "worker.json"

    @property
    def proxy_status(self) -> Path:
        """Where the outbound proxy says its port."""
        return self.run / "outbound.json"

    @property
    def daemon_lock(self) -> Path:
        """Held by the daemon while it runs."""
        return self.run / "daemon.lock"

    @property
    def daemon_status(self) -> Path:
        """Where a running daemon says its number and the port of its health."""
        return self.run / "daemon.json"

    @property
    def processes_status(self) -> Path:
        """Where it says how its processes are."""
        return self.run / "processes.json"

    @property
    def logs(self) -> Path:
        """A file for each process."""
        return self.root / "logs"


@dataclass(frozen=True)
class SiteHome:
    """A site's home folder.

    Attributes:
        root: Its path.
    """

    root: Path

    @property
    def settings_file(self) -> Path:
        """What the administrator sets."""
        return self.root / "site.yaml"

    @property
    def keyring_file(self) -> Path:
        """The wrapped data key."""
        return self.root / "keyring.json"

    def ledger_file(self, cohort: str) -> Path:
        """The ledger of a cohort of patients."""
        return self._cohort(cohort) / "ledger.db"

    def withdrawn_file(self, cohort: str) -> Path:
        """Who took the consent back."""
        return self._cohort(cohort) / "withdrawn.txt"

    def consortium(self, name: str) -> ConsortiumHome:
        """What is kept for one consortium. BadFileError for a name that cannot be a folder's."""
        if NAME_PATTERN.fullmatch(name) is None:
            raise BadFileError(
                self.root / "consortia",
                f"expected a consortium of lower-case letters, digits and hyphens, got {name!r}",
            )
        return ConsortiumHome(self.root / "consortia" / name)

    def consortia(self) -> tuple[str, ...]:
        """The consortia that this home is in, or is about to join, by name."""
        folder = self.root / "consortia"
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        return tuple(name for name in found if NAME_PATTERN.fullmatch(name))

    def the_consortium(self, name: str | None) -> ConsortiumHome:
        """The named one, or the only one. BadFileError if it is not here, or not just one is."""
        found = self.consortia()
        had = ", ".join(found) or "none"
        if name is not None:
            if name not in found:
                raise BadFileError(
                    self.root, f"expected a consortium of this home, got {name!r}; it is in {had}"
                )
            return self.consortium(name)
        if len(found) != 1:
            raise BadFileError(self.root, f"name one with --consortium: this home is in {had}")
        return self.consortium(found[0])

    def _cohort(self, cohort: str) -> Path:
        if _COHORT.fullmatch(cohort) is None:
            raise BadFileError(
                self.root / "cohorts", f"expected letters, digits, dots, dashes, got {cohort!r}"
            )
        return self.root / "cohorts" / cohort
