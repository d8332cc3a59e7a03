"""The coordinator's home folder: what lies where, and what its administrator sets.

coordinator.yaml            addresses and ports (``HomeSettings``)
identity.json               the coordinator's own Ed25519 identity, which countersigns ledgers
authority/                  the consortium's certificate authority (``common.certificates``)
server.key  server.crt      of gateway and enrolment service
tokens.json                 one-time tokens, as hashes
sites/SITE.json             enrolled sites: certificate, node key, time
identities/SITE.json        their public identities
packages/DIGEST.json        plans that are offered
adapters/DIGEST/            for each plan, the adapters to start from, TRACK.safetensors
runs/RUN/                   journal, adapters and reports of a run
ledger.db                   what was asked of patients
audit.jsonl                 what was done here; hash-chained
state.db                    SuperLink's own memory of messages on their way
run/  logs/                 of the processes
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.checks import require, require_schema
from common.ids import NAME_PATTERN
from common.settings import load_settings, read_yaml

SETTINGS_SCHEMA = 1
HIGHEST_PORT = 65535
DEFAULTS = Path(__file__).parent / "conf" / "home.yaml"


@dataclass(frozen=True, kw_only=True)
class HomeSettings:
    """Where a coordinator listens.

    Attributes:
        schema: Version of this file.
        consortium: Its name, lower-case letters, digits and hyphens.
        host: Name or address by which sites reach this machine; the certificate is for it.
        bind: Address that gateway and enrolment listen on.
        gateway_port: Where sites reach the gateway, mutual TLS.
        enrolment_port: Where sites enrol and renew, gRPC over TLS.
        private_host: Address for SuperLink's Control and Runtime interfaces, never one that sites reach.
        superlink_port: Theirs.
        health_port: ``GET /health`` and ``GET /metrics`` of the supervisor, on ``private_host``.
        certificate_days: Life of a site's certificate.
        token_hours: Life of a token for enrolment.
    """

    schema: int = SETTINGS_SCHEMA
    consortium: str
    host: str
    bind: str
    gateway_port: int
    enrolment_port: int
    private_host: str
    superlink_port: int
    health_port: int
    certificate_days: int
    token_hours: float

    def __post_init__(self) -> None:
        name = "lower-case letters, digits and hyphens"
        require(
            NAME_PATTERN.fullmatch(self.consortium) is not None, "consortium", repr(self.consortium), name
        )
        for key in ("gateway_port", "enrolment_port", "superlink_port", "health_port"):
            port = getattr(self, key)
            require(0 < port <= HIGHEST_PORT, key, port, f"a port from 1 to {HIGHEST_PORT}")
        require(self.certificate_days >= 1, "certificate_days", self.certificate_days, "a whole number >= 1")
        require(self.token_hours > 0, "token_hours", self.token_hours, "a number > 0")


@dataclass(frozen=True)
class CoordinatorHome:
    """A coordinator's home folder.

    Attributes:
        root: Its path.
    """

    root: Path

    def settings(self) -> HomeSettings:
        """What the administrator set. SettingsError, UnsupportedSchemaError."""
        content = read_yaml(self.settings_file)
        # Before its keys, some of which this version may not know.
        require_schema(str(self.settings_file), content.get("schema", SETTINGS_SCHEMA), SETTINGS_SCHEMA)
        return load_settings(HomeSettings, read_yaml(DEFAULTS), content, where="coordinator")

    @property
    def settings_file(self) -> Path:
        """What the administrator sets."""
        return self.root / "coordinator.yaml"

    @property
    def identity_file(self) -> Path:
        """The coordinator's own identity."""
        return self.root / "identity.json"

    @property
    def authority(self) -> Path:
        """The certificate authority."""
        return self.root / "authority"

    @property
    def server_key(self) -> Path:
        """Private key of gateway and enrolment service."""
        return self.root / "server.key"

    @property
    def server_certificate(self) -> Path:
        """Their certificate."""
        return self.root / "server.crt"

    @property
    def tokens_file(self) -> Path:
        """One-time tokens."""
        return self.root / "tokens.json"

    @property
    def sites(self) -> Path:
        """Enrolled sites."""
        return self.root / "sites"

    @property
    def identities(self) -> Path:
        """Their public identities."""
        return self.root / "identities"

    @property
    def packages(self) -> Path:
        """Plans that are offered."""
        return self.root / "packages"

    def adapters(self, plan_digest: str) -> Path:
        """The adapters that a plan starts from."""
        return self.root / "adapters" / plan_digest

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.root / "runs"

    @property
    def audit_file(self) -> Path:
        """What was done here."""
        return self.root / "audit.jsonl"

    @property
    def state_file(self) -> Path:
        """SuperLink's database."""
        return self.root / "state.db"

    @property
    def run(self) -> Path:
        """Of the processes: numbers, sockets, what ``status`` reads."""
        return self.root / "run"

    @property
    def logs(self) -> Path:
        """A file for each process."""
        return self.root / "logs"
