"""What a site's own administrator sets: folders, models, devices, ports, and the most that may be asked.

Nothing in here is told to anybody. What all sites agree on is in the ``RunPlan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.checks import require, require_positive, require_schema
from common.ids import SiteId, site_id
from common.settings import load_settings, read_yaml
from common.tracks import TRACKS

DEFAULTS = Path(__file__).parent / "conf" / "site.yaml"
SETTINGS_SCHEMA = 1
HIGHEST_PORT = 65535

Device = Literal["auto", "cpu", "cuda"]
# As in client.patients, which stands above this module.
Facial = Literal["keep", "hide"]
Stain = Literal["keep", "macenko"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Folders of the frozen models, none of which learns from a patient.

    Attributes:
        bases: By track, the folder of the student's base model; the plan names it by its digest.
        photo_encoder: Folder or ``timm`` name of what looks at photos; null leaves them out.
        slide_encoder: The same for tiles of slides.
        note_encoder: Folder of what reads notes; null leaves them out.
    """

    bases: Mapping[str, Path] = field(default_factory=dict)
    photo_encoder: str | None = None
    slide_encoder: str | None = None
    note_encoder: str | None = None

    def __post_init__(self) -> None:
        for track in self.bases:
            require(track in TRACKS, "bases", repr(track), f"tracks among {', '.join(TRACKS)}")


@dataclass(frozen=True, kw_only=True)
class CapSettings:
    """The most that this site lets anybody take of its patients, all plans and consortia together.

    Attributes:
        epsilon: At ``delta``, of one patient.
        delta: As in a plan.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require(0 < self.delta < 1, "delta", self.delta, "a number between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How the long-lived worker runs.

    Attributes:
        device: ``auto`` takes a GPU where there is one.
        threads: Of torch on the CPU.
        memory_limit_mb: A worker that holds more is ended and started again; 0 is no limit.
        restart_after_s: First pause before a worker that died is started again; doubled up to a minute.
    """

    device: Device = "auto"
    threads: int = 2
    memory_limit_mb: int = 0
    restart_after_s: float = 1.0

    def __post_init__(self) -> None:
        require(self.threads >= 1, "threads", self.threads, "a whole number >= 1")
        require(self.memory_limit_mb >= 0, "memory_limit_mb", self.memory_limit_mb, "a whole number >= 0")
        require_positive("restart_after_s", self.restart_after_s)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Ports of this machine's loopback, and the way out. 0 takes a free port.

    Attributes:
        node_port: SuperNode's own interface for its apps.
        proxy_port: The outbound proxy, to which SuperNode talks.
        health_port: ``GET /health`` and ``GET /metrics`` of the daemon.
        https_proxy: The hospital's proxy, ``http://host:port``; null goes out directly.
    """

    node_port: int = 0
    proxy_port: int = 0
    health_port: int = 0
    https_proxy: str | None = None

    def __post_init__(self) -> None:
        for key in ("node_port", "proxy_port", "health_port"):
            port = getattr(self, key)
            require(0 <= port <= HIGHEST_PORT, key, port, f"a port from 0 to {HIGHEST_PORT}")
        if self.https_proxy is not None:
            require(
                self.https_proxy.startswith("http://"),
                "https_proxy",
                # Not the value: it may hold a password.
                "another address",
                "http://[user:password@]host:port",
            )


@dataclass(frozen=True, kw_only=True)
class SiteSettings:
    """How one site runs.

    Attributes:
        schema: Version of this file.
        site: Its name.
        cohort: Names its patients; their ledger is the same for all consortia.
        data: Folder of the patients, as ``check-data`` reads it.
        test_share: Of the patients, those whom no student learns from and the site is measured on.
        facial: ``keep`` for a hospital's own notes; ``hide`` leaves out what the photo shows.
        facial_terms: File of the finding ids that ``hide`` leaves out, ``face_terms.csv``.
        stain: ``macenko`` brings the stains of slides to one reference.
        purposes: What plans here may be for; a plan with another purpose is refused.
        tracks: What this site takes part in; empty for all that it has models for.
        approvals_needed: People who have to approve a plan, 1 or 2.
        cap: None for no cap of the site's own.
        master_key: Where the key that wraps the data key is: ``file:PATH``, ``env:NAME`` or
            ``command:PROGRAM`` (of an HSM or a KMS).
        models: Folders of frozen models.
        worker: How the worker runs.
        network: Ports and the way out.
    """

    schema: int = SETTINGS_SCHEMA
    site: SiteId
    cohort: str
    data: Path
    test_share: float = 0.2
    facial: Facial = "keep"
    facial_terms: Path | None = None
    stain: Stain = "keep"
    purposes: tuple[str, ...] = ()
    tracks: tuple[str, ...] = ()
    approvals_needed: int = 1
    cap: CapSettings | None = None
    master_key: str = "file:master.key"
    models: ModelSettings = field(default_factory=ModelSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)

    def __post_init__(self) -> None:
        require_schema("site", self.schema, SETTINGS_SCHEMA)
        site_id(self.site)
        require(0 < self.test_share < 1, "test_share", self.test_share, "a share between 0 and 1")
        require(self.approvals_needed in (1, 2), "approvals_needed", self.approvals_needed, "1 or 2 people")
        scheme = self.master_key.partition(":")[0]
        require(
            scheme in ("file", "env", "command"),
            "master_key",
            scheme,
            "file:PATH, env:NAME or command:PROGRAM",
        )
        for track in self.tracks:
            require(track in TRACKS, "tracks", repr(track), f"tracks among {', '.join(TRACKS)}")
        hides = self.facial == "hide"
        require(
            not hides or self.facial_terms is not None,
            "facial_terms",
            "nothing",
            "a file, to hide what it names",
        )


def read_settings(path: Path, overrides: Mapping[str, Any] | None = None) -> SiteSettings:
    """The site's settings: defaults, the file, overrides.

    Raises:
        SettingsError: Names the key that is wrong.
        UnsupportedSchemaError: A newer version wrote the file.
    """
    content = read_yaml(path)
    # Before its keys, some of which this version may not know.
    require_schema(str(path), content.get("schema", SETTINGS_SCHEMA), SETTINGS_SCHEMA)
    return load_settings(SiteSettings, read_yaml(DEFAULTS), content, overrides or {}, where="site")
