"""A site's patients as a run sees them: who trains, who is tested, and what reaches a model of each.

A text student reads a patient's note; an image student is shown one tile at a time and nothing else, so that
a patient with several tiles is several cases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from client.patients.notes import Facial, ModelView, model_view
from client.patients.readings import write_readings
from client.patients.records import PatientRecord
from client.patients.stain import Stain, stain_normalized
from client.preferences.answers import write_prompt
from client.student.prompts import StudentPrompt
from common.ids import SiteId
from common.learning_plan import TrainingPlan
from common.tracks import Modality, Track

Excluded = Callable[[], frozenset[str]]
"""Who takes no part any more, by pseudonym; asked anew for each task."""


def nobody() -> frozenset[str]:
    """Excluded: none."""
    return frozenset()


@dataclass(frozen=True, kw_only=True)
class Views:
    """How a site's records reach models.

    Attributes:
        facial: ``keep`` for a hospital's own notes; ``hide`` leaves out what the photo shows (simulations).
        facial_ids: The finding ids that are hidden.
        stain: ``macenko`` brings the stains of every tile to one reference; ``keep`` shows tiles as they are.
    """

    facial: Facial = "keep"
    facial_ids: frozenset[str] = frozenset()
    stain: Stain = "keep"

    def view(self, record: PatientRecord) -> ModelView:
        """What a model may see of a patient."""
        view = model_view(record, facial=self.facial, facial_ids=self.facial_ids)
        if self.stain == "keep":
            return view
        return replace(view, slides=tuple(stain_normalized(tile) for tile in view.slides))

    def prompts(self, record: PatientRecord, track: Track) -> tuple[StudentPrompt, ...]:
        """What a track's student reads of a patient, one prompt a case; none where he has nothing for it."""
        view = self.view(record)
        if track.modality is Modality.TEXT:
            return (StudentPrompt(text=write_prompt(track, view.note)),) if view.note else ()
        text = write_prompt(track)
        return tuple(StudentPrompt(text=text, image=tile) for tile in view.slides)


@dataclass(frozen=True, kw_only=True, repr=False)
class SitePatients:
    """A site's patients, of all its tracks.

    Attributes:
        train: Whose pairs the students learn from.
        test: Whom the site's counts are taken of.
        views: How they reach models.
        calibration: Whom finished students are calibrated on; neither teacher nor pairs know them.

    Guarantee: nobody is in two parts.
    """

    train: tuple[PatientRecord, ...]
    test: tuple[PatientRecord, ...]
    views: Views
    calibration: tuple[PatientRecord, ...] = ()

    def __post_init__(self) -> None:
        parts = {
            name: {r.patient_id for r in getattr(self, name)} for name in ("train", "test", "calibration")
        }
        for one, other in combinations(parts, 2):
            both = parts[one] & parts[other]
            if both:
                raise ValueError(f"Expected no patient in {one} and {other}, got {len(both)}")


def site_prompts(
    records: Sequence[PatientRecord], views: Views, track: Track
) -> Mapping[str, tuple[StudentPrompt, ...]]:
    """What a track's student reads, by patient id, of those who have something for it."""
    read = ((record.patient_id, views.prompts(record, track)) for record in records)
    return {patient_id: prompts for patient_id, prompts in read if prompts}


def site_readings(
    records: Sequence[PatientRecord], views: Views, track: Track, training: TrainingPlan, *, seed: int
) -> Mapping[str, tuple[StudentPrompt, ...]]:
    """What a track's student learns from, by patient id: every tile, or every reading of the note.

    The first of a patient is what ``site_prompts`` has of him. ``seed`` is the plan's.
    """
    if training.readings == 1:
        return site_prompts(records, views, track)
    notes = {r.patient_id: write_readings(r, views.view(r), training, seed=seed) for r in records}
    return {
        patient_id: tuple(StudentPrompt(text=write_prompt(track, note)) for note in own)
        for patient_id, own in notes.items()
        if own
    }


def set_aside(
    records: Sequence[PatientRecord], share: float, seed: int
) -> tuple[tuple[PatientRecord, ...], tuple[PatientRecord, ...]]:
    """The records that stay, and about this share of them for calibration, both in their order.

    Guarantee: a patient's part depends on that patient's pseudonym and the seed alone, so that nobody moves
    for the sake of another.
    """
    bar = share * 2**64
    chosen = [_lot(seed, record.patient_id) < bar for record in records]
    parts = [
        tuple(r for r, aside in zip(records, chosen, strict=True) if aside is part) for part in (False, True)
    ]
    return parts[0], parts[1]


def _lot(seed: int, patient_id: str) -> int:
    digest = hashlib.sha256(f"{seed} set aside\n{patient_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def site_seed(seed: int, site_id: SiteId, purpose: str) -> int:
    """The plan's seed as one site uses it for one purpose; two sites never draw alike."""
    return int.from_bytes(hashlib.sha256(f"{seed} {site_id} {purpose}".encode()).digest()[:6], "big")
