"""What a plan needs in a site's memory: its patients, the teacher's eyes, a student for each of its tracks.

All of it is read once and stays for as long as the plan is hosted (``client.hosting``). The very same classes
serve a simulation: a federation of sites that loaded the same patients under the same plan and seed gives the
same adapter as the simulation of it.

Guarantee: a student's base is the one that the plan names by its digests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from client.approvals import site_home
from client.budget import SiteBudget, cap_of
from client.home import ConsortiumHome
from client.keys import Keyring
from client.lessons import SiteTeaching
from client.patients.importers.sources import Source, read_source
from client.patients.notes import read_facial_ids
from client.patients.records import PatientRecord
from client.patients.splits import split_by_arrival
from client.patients.withdrawals import read_withdrawn
from client.settings import Device, ModelSettings, SiteSettings
from client.site_patients import Excluded, SitePatients, Views, set_aside
from client.student.model import Student, adapter_spec, digest_base, load_base, make_student
from client.teacher.eyes import ImageEncoder, NoteEncoder, load_image_encoder, load_note_encoder
from client.teacher.fit import TeacherRecipe
from client.teacher.sight import Encoders, Memory
from client.worker import SiteWorker
from common.errors import BadFileError, DeviceError, DigestMismatchError, SettingsError
from common.ids import SiteId
from common.pki import PublicIdentity
from common.plan import RunPlan, TrackPlan
from common.plan_package import PlanPackage
from common.privacy.ledger import Ledger
from common.privacy.ledger_receipts import receipts_path

NOTES_AT_ONCE = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedPlan:
    """A plan that is ready to answer.

    Attributes:
        package: The plan and its answers.
        workers: By track, of those that this site takes part in.
        budget: Of its patients; None where the plan spends none.
    """

    package: PlanPackage
    workers: Mapping[str, SiteWorker]
    budget: SiteBudget | None


class Loader:
    """Loads plans for one site and one consortium; what is frozen, and read for all plans alike, once.

    Attributes:
        loads: Models that were read from the disk so far.
    """

    def __init__(
        self,
        home: ConsortiumHome,
        settings: SiteSettings,
        keyring: Keyring,
        *,
        coordinator: PublicIdentity | None = None,
        recipe: TeacherRecipe | None = None,
    ) -> None:
        """Load from ``home``.

        Args:
            home: The site's, of the consortium that the plans come from.
            settings: The site's own.
            keyring: Its keys: pairs are stored under the data key, patients named by the pseudonym key.
            coordinator: Whose countersignatures of the ledger's head are believed.
            recipe: Of the teacher's training; a site's own affair.

        Raises:
            DeviceError: The settings ask for a device that is not here.
        """
        self.loads = 0
        self._home, self._settings, self._keyring = home, settings, keyring
        self._coordinator, self._recipe = coordinator, recipe
        self._device = device_of(settings.worker.device)
        self._encoders: Encoders | None = None
        self._ledger: Ledger | None = None

    def load(self, package: PlanPackage) -> LoadedPlan:
        """The plan with its workers, nothing trained yet.

        Raises:
            DigestMismatchError: A base is not the one that the plan names.
            BadFileError: A model, the patients or the ledger cannot be read.
            SettingsError: No eye is open here.
        """
        plan, site = package.plan, self._settings.site
        budget = self._budget(plan)
        teaching = SiteTeaching(
            site_id=site,
            plan=plan,
            patients=read_site(self._settings, package, key=self._keyring.pseudonym_key),
            answers=package.answers,
            memory=Memory(self._eyes()),
            store=self._pairs(),
            master_key=self._keyring.data_key,
            recipe=self._recipe,
            budget=budget,
            excluded=self._excluded(),
        )
        workers = {
            track.track: SiteWorker(
                site_id=site,
                plan=plan,
                track=track.track,
                teaching=teaching,
                student=self._student(track),
                excluded=self._excluded(),
            )
            for track in plan.tracks_of(site)
        }
        return LoadedPlan(package=package, workers=workers, budget=budget)

    def _student(self, track: TrackPlan) -> Student:
        self.loads += 1
        return load_student(self._settings.models.bases[track.track], track, self._device)

    def _eyes(self) -> Encoders:
        if self._encoders is None:
            self._encoders = load_eyes(self._settings.models, self._device)
            self.loads += sum(eye is not None for eye in vars(self._encoders).values())
        return self._encoders

    def _pairs(self) -> Path:
        self._home.pairs.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._home.pairs

    def _excluded(self) -> Excluded:
        path = site_home(self._home).withdrawn_file(self._settings.cohort)
        return lambda: read_withdrawn(path, self._keyring.pseudonym_key)

    def _budget(self, plan: RunPlan) -> SiteBudget | None:
        if plan.privacy.mode == "none" and plan.teacher.privacy != "dp":
            return None
        if self._ledger is None:
            self._ledger = open_ledger(
                site_home(self._home).ledger_file(self._settings.cohort), self._settings
            )
        return SiteBudget(
            plan,
            self._ledger,
            site=self._settings.site,
            cap=cap_of(self._settings.cap),
            coordinator=self._coordinator,
        )


def device_of(wanted: Device) -> str:
    """The name of the device that torch is to use. DeviceError if it is not here."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise DeviceError(wanted, "torch finds no GPU here")
    return "cuda" if there and wanted != "cpu" else "cpu"


def open_ledger(path: Path, settings: SiteSettings) -> Ledger:
    """The cohort's ledger, made where nothing was ever spent. As `Ledger.open` it raises."""
    if path.exists() or receipts_path(path).exists():
        return Ledger.open(path, settings.cohort)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Ledger.create(path, settings.cohort)


def read_site(settings: SiteSettings, package: PlanPackage, *, key: bytes) -> SitePatients:
    """The site's patients with an answer for a track of the plan, in their parts by the plan's seed.

    Of those who are not tested and have an answer for a track that is calibrated, the plan's share is set
    aside.

    Who withdrew is among them: he is left out of each task, and nobody else moves for his sake.

    Guarantee: nobody moves from one part to another when another batch is imported, nor between test and the
    rest with whatever the plan sets aside.

    Raises:
        BadFileError: The folder, or the table of facial terms, cannot be read.
    """
    plan = package.plan
    tracks = {track.track for track in plan.tracks_of(settings.site)}
    source = read_source(settings.data, key=key, answers=package.answers)
    found = source.patients
    if found.problems:
        logger.warning(
            "%d things of the data are refused; see consilium-site check-data", len(found.problems)
        )
    shares = {"train": 1 - settings.test_share, "test": settings.test_share}
    arrivals = [
        [record for record in records if tracks & record.label.keys()] for records in _arrivals(source)
    ]
    parts = split_by_arrival(arrivals, shares, plan.seed)
    train, calibration = _calibrated(parts["train"], plan, settings.site)
    return SitePatients(train=train, test=parts["test"], calibration=calibration, views=views_of(settings))


def _calibrated(
    records: Sequence[PatientRecord], plan: RunPlan, site: SiteId
) -> tuple[tuple[PatientRecord, ...], tuple[PatientRecord, ...]]:
    """Who stays, and who is set aside: the same share for all tracks that the plan calibrates."""
    planned = {t.track: t.calibration.share for t in plan.tracks_of(site) if t.calibration is not None}
    concerned = [record for record in records if planned.keys() & record.label.keys()]
    _, aside = set_aside(concerned, max(planned.values(), default=0.0), plan.seed)
    chosen = {record.patient_id for record in aside}
    return tuple(record for record in records if record.patient_id not in chosen), aside


def _arrivals(source: Source) -> Iterable[Sequence[PatientRecord]]:
    """The patients of each batch, in the order of the batches; of another folder all at once."""
    if source.kind != "imported":
        return (source.patients.records,)
    batches: dict[str, list[PatientRecord]] = {}
    for record, place in zip(source.patients.records, source.patients.places, strict=True):
        batches.setdefault(place.file, []).append(record)
    return batches.values()


def views_of(settings: SiteSettings) -> Views:
    """How the site's records reach models. BadFileError."""
    terms = settings.facial_terms
    hidden = read_facial_ids(terms) if settings.facial == "hide" and terms is not None else frozenset()
    return Views(facial=settings.facial, facial_ids=hidden, stain=settings.stain)


def load_eyes(models: ModelSettings, device: str = "cpu") -> Encoders:
    """The teacher's frozen encoders. SettingsError if there is none, BadFileError if one is no model."""
    if models.photo_encoder is None and models.slide_encoder is None and models.note_encoder is None:
        raise SettingsError(
            "models", "no encoder", "photo_encoder, note_encoder or slide_encoder: a teacher needs an eye"
        )
    return Encoders(
        photo=_image_eye(models.photo_encoder, device),
        note=_note_eye(models.note_encoder, device),
        slide=_image_eye(models.slide_encoder, device),
    )


def _image_eye(source: str | None, device: str) -> ImageEncoder | None:
    if source is None:
        return None
    try:
        eye = load_image_encoder(source)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFileError(source, f"no image encoder ({type(error).__name__})") from error
    return replace(eye, network=eye.network.to(device))


def _note_eye(source: str | None, device: str) -> NoteEncoder | None:
    if source is None:
        return None
    try:
        eye = load_note_encoder(source, batch_size=NOTES_AT_ONCE)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFileError(source, f"no note encoder ({type(error).__name__})") from error
    return replace(eye, network=eye.network.to(device))


def load_student(folder: Path, track: TrackPlan, device: str = "cpu") -> Student:
    """A track's student, on the base in ``folder``.

    Raises:
        DigestMismatchError: It is another base, or another tokenizer, than the plan names.
        BadFileError: It is no base, or has not the layers that the plan adapts.
    """
    try:
        found = digest_base(folder)
    except (OSError, ValueError) as error:
        raise BadFileError(folder, f"no base model ({type(error).__name__})") from error
    named = {"base model": track.base_model_digest, "tokenizer": track.tokenizer_digest}
    for (what, expected), got in zip(named.items(), found, strict=True):
        if got != expected:
            raise DigestMismatchError(f"{what} of {track.track}", got, expected)
    try:
        model, reader = load_base(str(folder), modality=track.definition.modality, device=device)
        student = make_student(model, reader, adapter_spec(model, track.adapter))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadFileError(folder, f"no base model for {track.track} ({type(error).__name__})") from error
    student.model.to(device)
    return student
