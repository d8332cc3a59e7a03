"""The frozen models of a simulation: named ones, or tiny ones made from public text, faces and tiles.

What is made is cached; a person who has real models names their folders and nothing is made.
"""

from __future__ import annotations

from pathlib import Path

from client.teacher.eyes import ImageEncoder, NoteEncoder, load_image_encoder, load_note_encoder
from client.teacher.sight import Encoders, Memory
from common.tracks import Modality
from simulations import tiny_eyes, tiny_sight, tiny_slide_eye
from simulations.planning import AllModels, load_models
from simulations.populations import Population, Populations
from simulations.settings import SimulationSettings
from simulations.stages import Stages
from simulations.tiny_base import tiny_base

NOTES_AT_ONCE = 64


def gather_models(settings: SimulationSettings, populations: Populations, stages: Stages) -> AllModels:
    """Every track's base with its student, and the teachers' eyes, which all tracks share."""
    bases = {track: gather_base(settings, one, stages) for track, one in populations.items()}
    memory = Memory(gather_eyes(settings, populations, bases, stages))
    return {
        track: load_models(one.track, bases[track], memory, settings.plans[track], settings.seed)
        for track, one in populations.items()
    }


def gather_base(settings: SimulationSettings, population: Population, stages: Stages) -> Path:
    """The folder of a track's base model. ValueError where there is nothing to make one from."""
    cache, image = settings.cache.expanduser(), population.track.modality is Modality.IMAGE
    named = settings.image_base_model if image else settings.base_model
    if named is not None:
        return named
    if image:
        with stages.stage("tiny_sight", tiny_sight.steps_of(settings.sight)) as advance:
            return tiny_sight.tiny_sight(
                cache,
                settings.sight,
                population.answers.names,
                settings.frozen_seed,
                extra=population.tiles,
                on_progress=advance,
            )
    if population.text is None:
        raise ValueError(f"Expected public text for a base of {population.track.name}, got none")
    with stages.stage("tiny_base", settings.base.steps) as advance:
        return tiny_base(cache, population.text, settings.base, settings.frozen_seed, on_progress=advance)


def gather_eyes(
    settings: SimulationSettings, populations: Populations, bases: dict[str, Path], stages: Stages
) -> Encoders:
    """An eye for whatever patients bring; notes are read with the text student's own base."""
    photo: ImageEncoder | None = None
    note: NoteEncoder | None = None
    slide: ImageEncoder | None = None
    for track, population in populations.items():
        if population.track.modality is Modality.TEXT:
            photo = _face_eye(settings, stages)
            note = load_note_encoder(str(bases[track]), batch_size=NOTES_AT_ONCE)
        else:
            slide = _slide_eye(settings, population, stages)
    return Encoders(photo=photo, note=note, slide=slide)


def _face_eye(settings: SimulationSettings, stages: Stages) -> ImageEncoder:
    with stages.stage("tiny_eyes", tiny_eyes.steps_of(settings.eyes)) as advance:
        folder = tiny_eyes.tiny_eyes(
            settings.cache.expanduser(), settings.eyes, settings.frozen_seed, on_progress=advance
        )
    return load_image_encoder(str(folder))


def _slide_eye(settings: SimulationSettings, population: Population, stages: Stages) -> ImageEncoder:
    if settings.slide_encoder is not None:
        return load_image_encoder(settings.slide_encoder)
    with stages.stage("tiny_slide_eye", tiny_slide_eye.steps_of(settings.slide_eye)) as advance:
        folder = tiny_slide_eye.tiny_slide_eye(
            settings.cache.expanduser(),
            settings.slide_eye,
            settings.frozen_seed,
            extra=population.tiles,
            on_progress=advance,
        )
    return load_image_encoder(str(folder))
