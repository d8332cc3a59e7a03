"""Which patients a step takes, and in which parts the model gets them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from client.student.branches import PatientPairs
from client.student.vision import Vision

MOST_IMAGES = 2**31
"""As many as a patient may bring."""
MICRO_BATCH_TOKENS = 1024


def entries_by_patient(entries: Iterable[PatientPairs]) -> dict[str, list[PatientPairs]]:
    """The entries of each patient, patients in order of first appearance."""
    grouped: dict[str, list[PatientPairs]] = {}
    for entry in entries:
        grouped.setdefault(entry.patient_id, []).append(entry)
    return grouped


def micro_batches(
    batch: Sequence[PatientPairs], vision: Vision | None = None
) -> Iterator[list[PatientPairs]]:
    """The batch in parts of like length, none with more than ``MICRO_BATCH_TOKENS`` tokens, padding included.

    Short prompts do not wait for the longest one: on notes of published cases a step takes half the time.
    ``vision`` is the student's, where the entries hold images.

    Guarantee: every entry of the batch is in one part; one that is longer than the bound is a part alone. A
    part holds only images whose tensors can be joined.
    """
    alike: dict[Hashable, list[PatientPairs]] = {}
    for entry in sorted(batch, key=_length):
        shapes = None if vision is None or entry.image is None else vision.shapes(entry.image)
        alike.setdefault(shapes, []).append(entry)
    for entries in alike.values():
        yield from _bounded(entries)


def _bounded(entries: Iterable[PatientPairs]) -> Iterator[list[PatientPairs]]:
    part: list[PatientPairs] = []
    for entry in entries:
        if part and (len(part) + 1) * _length(entry) > MICRO_BATCH_TOKENS:
            yield part
            part = []
        part.append(entry)
    if part:
        yield part


def _length(patient: PatientPairs) -> int:
    return len(patient.prompt) + sum(map(len, patient.branches))


def some_of(own: list[PatientPairs], most: int, seed: Sequence[int]) -> list[PatientPairs]:
    """``most`` of a patient's entries, drawn from the seed, in their order; all where he has no more."""
    if len(own) <= most:
        return own
    drawn = np.random.default_rng(seed).permutation(len(own))[:most]
    return [own[place] for place in sorted(drawn)]


def draw_batches(
    entries: Sequence[PatientPairs], size: int, *, seed: int, first_step: int, images: int = MOST_IMAGES
) -> Iterator[list[list[PatientPairs]]]:
    """Endless batches of ``size`` patients (all, where the site has fewer), from step ``first_step`` on.

    A patient is the list of his entries, or of ``images`` of them, drawn anew each time.

    Guarantee: every pass over the patients takes each of them once, and a step's batch depends on the seed
    and the step alone, so that a site that was restarted goes on where it was.
    """
    if not entries:
        raise ValueError("Expected at least one patient with pairs, got none")
    patients = list(entries_by_patient(entries).values())
    count, size = len(patients), min(size, len(patients))
    order: dict[int, list[int]] = {}
    place = first_step * size
    while True:
        batch = []
        for _ in range(size):
            number, index = divmod(place, count)
            if number not in order:
                order = {number: np.random.default_rng([seed, number]).permutation(count).tolist()}
            # A stream of its own for each draw: the order of patients hangs on nobody's number of tiles.
            batch.append(some_of(patients[order[number][index]], images, [seed, number, index]))
            place += 1
        yield batch
