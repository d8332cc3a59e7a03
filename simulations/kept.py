"""Students that a run has trained, on the disk: a comparison that was cut off goes on with them.

``trained/<track>/<method>[.<site>].safetensors`` is the adapter, the ``.json`` of the same name what
it took. A student is taken back only for the same plan, patients and recipes, which its key says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.adapter import Adapter, load_adapter, save_adapter
from common.atomic import write_atomically
from common.canonical import canonical_json, plain, read_object
from common.errors import FederationError
from common.ids import SiteId
from common.plan import RunPlan
from common.privacy.ledger import Entry
from common.schema import build
from server.rounds import RoundReport

CODE_VERSION = 1
"""Part of every key: raised whenever the same plan would train another student."""
KEPT_FOLDER = "trained"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained student: where it stands, and what it took.

    Attributes:
        adapter: Its values.
        seconds: Of training.
        bytes_up: That one site sent, at most.
        plan: Of the federation that trained it; None for a student trained alone.
        rounds: Of that federation.
        retried: Its rounds that were run again.
        work_seconds: Of the rounds, those in which sites trained.
        privacy: What a federation took from a patient, as ``results.json`` says it; None for other students.
        entries: Of the ledger of the site that was charged most.
        temperature: What its scores are divided by before they become confidences.
    """

    adapter: Adapter
    seconds: float = 0.0
    bytes_up: int | None = None
    plan: RunPlan | None = None
    rounds: tuple[RoundReport, ...] = ()
    retried: int = 0
    work_seconds: float = 0.0
    privacy: Mapping[str, Any] | None = None
    entries: tuple[Entry, ...] = ()
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """A `Trained` without its adapter and its plan, as it is written."""

    key: str
    seconds: float
    bytes_up: int | None
    plan: str | None
    rounds: tuple[RoundReport, ...]
    retried: int
    work_seconds: float
    privacy: Mapping[str, Any] | None
    entries: tuple[Entry, ...]
    temperature: float


ByTrack = Mapping[str, Trained | Mapping[SiteId, Trained]]
"""What a method trains, by track: one student, or one for each site."""


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Keeps the students of a run.

    Attributes:
        folder: Of the run.
        recipe: What students depend on beside their plans: data, and the recipes of teachers and of training
            alone. The teachers' eyes are not in it.
    """

    folder: Path
    recipe: str

    def once(self, method: str, plan: RunPlan, train: Callable[[], ByTrack]) -> ByTrack:
        """The method's students: those that are kept, or else trained now and kept."""
        key = hashlib.sha256(canonical_json([CODE_VERSION, plan.digest(), self.recipe]).encode()).hexdigest()
        tracks = [track.track for track in plan.tracks]
        found = {track: self._read(track, method, key) for track in tracks}
        if all(one is not None for one in found.values()):
            return {track: one for track, one in found.items() if one is not None}
        made = train()
        for track, one in made.items():
            for site, student in one.items() if isinstance(one, Mapping) else [(None, one)]:
                self._write(self._path(track, method, site), student, key)
        return made

    def _path(self, track: str, method: str, site: SiteId | None = None) -> Path:
        name = method if site is None else f"{method}.{site}"
        return self.folder / KEPT_FOLDER / track / f"{name}.safetensors"

    def _read(self, track: str, method: str, key: str) -> Trained | Mapping[SiteId, Trained] | None:
        whole = _read(self._path(track, method), key)
        if whole is not None:
            return whole
        by_site = {
            SiteId(path.name.removeprefix(f"{method}.").removesuffix(".safetensors")): _read(path, key)
            for path in sorted((self.folder / KEPT_FOLDER / track).glob(f"{method}.*.safetensors"))
        }
        known = {site: one for site, one in by_site.items() if one is not None}
        return known if known and len(known) == len(by_site) else None

    def _write(self, path: Path, student: Trained, key: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_adapter(student.adapter, path)
        values = {name: value for name, value in vars(student).items() if name not in ("adapter", "plan")}
        sheet = _Sheet(key=key, plan=None if student.plan is None else student.plan.to_json(), **values)
        # Last: an adapter without its sheet is not taken back.
        write_atomically(path.with_suffix(".json"), canonical_json(sheet))


def _read(path: Path, key: str) -> Trained | None:
    sheet_path = path.with_suffix(".json")
    if not path.is_file() or not sheet_path.is_file():
        return None
    try:
        sheet = build(
            _Sheet, read_object(sheet_path.read_text(encoding="utf-8"), str(sheet_path)), "kept student"
        )
        if sheet.key != key:
            return None
        adapter = load_adapter(path)
        plan = None if sheet.plan is None else RunPlan.from_json(sheet.plan)
    except (FederationError, ValueError, OSError):
        # Of an older version, or damaged: it is trained again.
        return None
    values = {name: value for name, value in vars(sheet).items() if name not in ("key", "plan")}
    return Trained(adapter=adapter, plan=plan, **values)


def recipe_of(*parts: Any) -> str:
    """What `Keeper` calls a recipe, of settings."""
    return canonical_json([plain(part) for part in parts])
