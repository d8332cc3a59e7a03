"""Other readings of a patient's note: the same findings in another order, some of them not mentioned.

What a paper lists, in which order, and above all what it says was looked for and not found is a fingerprint
of the paper: a student that reads one note of a patient again and again learns it by heart, and it is no help
with patients of the next paper. A student that reads several learns what they have in common.

A reading is drawn from the patient's own findings and from lots that hang on the plan's seed and his
pseudonym alone: nobody else's data are in it, so that the clip on all that he brings covers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client.patients.notes import ModelView, write_note
from client.patients.records import Finding, PatientRecord
from common.learning_plan import TrainingPlan


def write_readings(
    record: PatientRecord, view: ModelView, training: TrainingPlan, *, seed: int
) -> tuple[str, ...]:
    """As many readings of a patient's note as the plan says, the first being the note itself.

    A patient without a finding that may be seen has his note alone, one without a note has nothing.

    Guarantee: the same patient, plan and seed give the same readings, whoever else is at the site. Each
    reading names at least one observed finding, and no finding that the view hides. Sex, ages and what else
    the note says are in each of them.

    Args:
        record: The patient.
        view: What a model may see of him.
        training: How many readings, how many findings they leave out, how many list exclusions.
        seed: From 0 to 2**63 - 1; with the pseudonym it decides what is drawn.
    """
    if view.note is None:
        return ()
    if training.readings == 1 or not view.observed:
        return (view.note,)
    rng = _draws_of(record.patient_id, seed)
    seen = replace(record, observed=view.observed, excluded=view.excluded)
    others = [write_note(_varied(seen, training, rng)) for _ in range(training.readings - 1)]
    return (view.note, *others)


def _draws_of(patient_id: str, seed: int) -> np.random.Generator:
    """Draws of one patient: from one generator for all, one patient more would change those of the others."""
    digest = hashlib.blake2b(patient_id.encode(), key=seed.to_bytes(8, "big"), person=b"readings")
    return np.random.default_rng(int.from_bytes(digest.digest(), "big"))


def _varied(record: PatientRecord, training: TrainingPlan, rng: np.random.Generator) -> PatientRecord:
    observed = _some(record.observed, training.dropped, rng)
    with_exclusions = rng.random() < training.with_exclusions
    excluded = _some(record.excluded, training.dropped, rng) if with_exclusions and record.excluded else ()
    return replace(record, observed=observed, excluded=excluded)


def _some(findings: Sequence[Finding], dropped: float, rng: np.random.Generator) -> tuple[Finding, ...]:
    """The findings in a drawn order, each left out with chance ``dropped``, but not all of them."""
    mixed = [findings[place] for place in rng.permutation(len(findings))]
    kept = rng.random(len(mixed)) >= dropped
    return tuple(finding for finding, stays in zip(mixed, kept, strict=True) if stays) or (mixed[0],)
