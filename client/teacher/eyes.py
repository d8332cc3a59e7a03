"""What a teacher sees: frozen encoders turn photo, note and slides into vectors.

Encoders never learn from a patient, so each patient is encoded once a run and the vectors stay in memory:
the five teachers of cross-fitting then cost seconds. An eye that a patient does not bring is a row of zeros
whose ``present`` flag is false.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from client.patients.ages import DAYS_PER_YEAR, OLDEST_YEARS, read_duration, read_gestation
from client.patients.notes import ModelView
from client.patients.records import SEXES
from common.tracks import Eye

Images: TypeAlias = Iterable[NDArray[np.uint8]]
Vectors: TypeAlias = NDArray[np.float32]

ALL_EYES = frozenset(Eye)
# Sex one-hot, age on a logarithmic scale, and whether the age is known.
PERSON_WIDTH = len(SEXES) + 2
# Years at the middle of the span that HPO gives an onset class.
ONSET_YEARS: Mapping[str, float] = {
    "HP:0003577": 0.0,
    "HP:0003623": 0.04,
    "HP:0003593": 0.5,
    "HP:0011463": 3.0,
    "HP:0003621": 10.0,
    "HP:0410280": 8.0,
    "HP:0025708": 17.5,
    "HP:0025709": 22.0,
    "HP:0011462": 28.0,
    "HP:0025710": 32.5,
    "HP:0003581": 40.0,
    "HP:0003596": 50.0,
    "HP:0003584": 70.0,
}
ANTENATAL = frozenset({"HP:0030674", "HP:0011460", "HP:0011461", "HP:0034197", "HP:0034198", "HP:0034199"})


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """A frozen ``timm`` network: images in, one vector an image out.

    Attributes:
        encode: The network without its classifier: float (images, 3, height, width) -> (images, width).
        width: Length of a vector.
        size: Height and width that images are resized to, pixels.
        mean: Subtracted from each color channel, for values in 0..1.
        std: What each color channel is divided by then.
        batch_size: Images encoded at once; bounds the memory.
    """

    encode: Callable[[Tensor], Tensor]
    width: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class NoteEncoder:
    """A frozen ``transformers`` network: notes in, one vector a note out.

    A vector is the mean of the last hidden states beside the mean of the input embeddings, over a note's own
    tokens. A small causal network's last layer forgets the rare words that name a finding: on 1,000 public
    cases a teacher that reads hidden states alone reaches top-1 0.24, embeddings alone 0.82, both 0.81.

    Attributes:
        model: Any encoder, or the trunk of a causal model.
        tokenizer: Its tokenizer.
        width: Length of a vector.
        window: Longest run of tokens the model reads at once; a longer note is read window by window.
        batch_size: Windows encoded at once; bounds the memory.
    """

    model: Any
    tokenizer: Any
    width: int
    window: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """A site's encoders; an eye without one is closed, for whatever patients bring."""

    photo: ImageEncoder | None = None
    note: NoteEncoder | None = None
    slide: ImageEncoder | None = None

    def __post_init__(self) -> None:
        if self.photo is None and self.note is None and self.slide is None:
            raise ValueError("Expected an encoder for at least one of photo, note and slide, got none")


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the eyes saw of some patients, once a run.

    Attributes:
        patient_ids: One a row; each patient once.
        vectors: By open eye, (patients, width); a row of zeros where the eye is missing.
        present: By open eye, (patients,); whether the patient brings it.
    """

    patient_ids: tuple[str, ...]
    vectors: Mapping[Eye, Vectors]
    present: Mapping[Eye, NDArray[np.bool_]]

    def __post_init__(self) -> None:
        count = len(self.patient_ids)
        if len(set(self.patient_ids)) < count:
            raise ValueError(f"Expected every patient once, got {count - len(set(self.patient_ids))} again")
        if not self.vectors or self.vectors.keys() != self.present.keys():
            raise ValueError("Expected the same eyes, one at least, in vectors and present")
        for eye, vectors in self.vectors.items():
            if vectors.ndim != 2 or len(vectors) != count or self.present[eye].shape != (count,):
                raise ValueError(f"Expected a row of {eye} for each of {count} patients")
            if not np.isfinite(vectors).all():
                raise ValueError(f"Expected finite vectors of {eye}, got others")

    def rows(self, indices: NDArray[np.int64]) -> Sight:
        """The patients of these rows, in this order."""
        return Sight(
            patient_ids=tuple(self.patient_ids[index] for index in indices),
            vectors={eye: vectors[indices] for eye, vectors in self.vectors.items()},
            present={eye: present[indices] for eye, present in self.present.items()},
        )

    def bringing(self, eyes: Collection[Eye] = ALL_EYES) -> Sight:
        """The patients who bring at least one of ``eyes``; who is left out is the difference in ids."""
        return self.rows(np.flatnonzero(seen_by(self, eyes)).astype(np.int64))


def seen_by(sight: Sight, eyes: Collection[Eye]) -> NDArray[np.bool_]:
    """Whether each patient brings at least one of ``eyes``, (patients,)."""
    seen = np.zeros(len(sight.patient_ids), dtype=np.bool_)
    for eye, present in sight.present.items():
        if eye in eyes:
            seen |= present
    return seen


def load_image_encoder(
    source: str, *, checkpoint: Path | None = None, batch_size: int = 64
) -> ImageEncoder:
    """Load a photo or slide encoder with its pretrained weights, without its classifier.

    Args:
        source: A model name of ``timm``, or a local folder in its format (``config.json`` beside the weights).
        checkpoint: A weights file for that name; a classifier inside it is left out.
        batch_size: Images encoded at once.

    Raises:
        ValueError: A batch size below 1, or a folder with a checkpoint of its own given another.
    """
    _require_positive("batch_size", batch_size)
    is_folder = Path(source).is_dir()
    if is_folder and checkpoint is not None:
        raise ValueError("Expected a checkpoint beside a model name, got one beside a folder")
    model: Any = timm.create_model(
        f"local-dir:{source}" if is_folder else source,
        pretrained=True,
        num_classes=0,
        pretrained_cfg_overlay=None if checkpoint is None else {"file": str(checkpoint)},
    )
    config = resolve_model_data_config(model)
    # Evaluation mode also holds the statistics of batch normalization still: patients never mix.
    return ImageEncoder(
        encode=model.eval().requires_grad_(requires_grad=False),
        width=int(model.num_features),
        size=(int(config["input_size"][1]), int(config["input_size"][2])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        batch_size=batch_size,
    )


def load_note_encoder(source: str, *, window: int = 512, batch_size: int = 16) -> NoteEncoder:
    """Load a note encoder by its name or folder in ``transformers``, of any architecture.

    Of an encoder-decoder the encoder is kept, of a causal model the trunk. ``window`` is cut to what the
    model's positions allow.
    """
    _require_positive("window", window)
    _require_positive("batch_size", batch_size)
    model: Any = AutoModel.from_pretrained(source, dtype=torch.float32)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    positions = getattr(model.config, "max_position_embeddings", None) or window
    width = 2 * int(model.get_input_embeddings().embedding_dim) + PERSON_WIDTH
    return NoteEncoder(
        model=model.eval().requires_grad_(requires_grad=False),
        tokenizer=AutoTokenizer.from_pretrained(source),
        width=width,
        window=min(window, int(positions)),
        batch_size=batch_size,
    )


def encode_patients(views: Mapping[str, ModelView], encoders: Encoders) -> Sight:
    """Look at each patient once; ``views`` by patient id.

    Guarantee: a patient's vectors depend on that patient's view alone.

    Sex and age go with the note, as numbers beside its vector: written as words in front of it they would be
    a few tokens among hundreds in the mean.
    """
    ids, everyone = tuple(views), list(views.values())
    vectors: dict[Eye, Vectors] = {}
    if encoders.photo is not None:
        vectors[Eye.PHOTO] = encode_images(
            encoders.photo, [[] if view.photo is None else [view.photo] for view in everyone]
        )
    if encoders.note is not None:
        vectors[Eye.NOTE] = _encode_notes_of(encoders.note, everyone)
    if encoders.slide is not None:
        vectors[Eye.SLIDE] = encode_images(encoders.slide, [view.slides for view in everyone])
    present = {
        Eye.PHOTO: np.array([view.photo is not None for view in everyone], dtype=np.bool_),
        Eye.NOTE: np.array([view.note is not None for view in everyone], dtype=np.bool_),
        Eye.SLIDE: np.array([len(view.slides) > 0 for view in everyone], dtype=np.bool_),
    }
    return Sight(patient_ids=ids, vectors=vectors, present={eye: present[eye] for eye in vectors})
