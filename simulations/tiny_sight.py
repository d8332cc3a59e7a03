"""Tiny models that see and speak, pretrained on public tiles: stand-ins for large ones on two cores.

A small model of the real Idefics3 architecture with its processor, saved as an ordinary Hugging Face folder:
any other folder of an image-text-to-text model can be put in its place by one setting. It is deterministic in
recipe, names, public tiles and seed, cached under a name that is their digest, and never sees a patient.

It learns in two parts. First the tower and what joins it to the language learn to measure drawn tiles and to
tell their kinds apart. Then the tower stands still, and the language learns to say in words what was
measured and which plate of an atlas a tile looks like, and the names of few tiles, most of them wrong, as
captions on the web are: what a tissue is called here is left for the hospitals to teach.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Idefics3Config, Idefics3ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from client.preferences.answers import write_answers, write_prompt
from common.canonical import canonical_json, plain
from common.schedule import rate_factor
from common.tracks import TISSUE_TYPE
from simulations.public_tiles import PublicTiles
from simulations.sight_words import (
    DESCRIBE,
    IMAGE,
    MEAN,
    STD,
    build_processor,
    build_tokenizer,
    pad_texts,
    read_prompt,
    write_captions,
)
from simulations.slides import TISSUES
from simulations.tile_lessons import batches, draw_lessons, seeing_loss, turned

CODE_VERSION = 1
"""Part of every cached folder's digest: raised whenever this file or the drawing makes another model."""
# Measured on drawn tiles: about 1 for the spread of every wave.
WAVE_LOUDNESS, COLOR_LOUDNESS, COLOR_SLOWNESS = 0.33, 3.0, 5
NAMED_SHARE = 0.3  # of a batch of sentences


@dataclass(frozen=True, kw_only=True)
class SightRecipe:
    """How a tiny model that sees and speaks is made.

    Attributes:
        tiles: Public tiles that are drawn for it.
        size, patch: Height and width of a tile and of a patch of the tower, pixels.
        scale: Patches on a side that become one token of the language: an image is
            ``(size / patch / scale)**2`` tokens.
        tower_width, tower_layers, tower_heads: Of what sees.
        width, layers, heads: Of the language, a Llama.
        see_steps, see_batch, see_rate: Of the first part; rates warm up, then fall as a cosine.
        speak_steps, speak_batch, speak_rate: Of the second.
        names_share: Share of the drawn tiles whose name is told.
        names_right: Share of the told names of drawn tiles that are right; the others are any.
        real_share: Share of what it sees in the first part that real tiles make up where there are any.
        real_named: Whether it is told the names of real tiles; if not, it has seen their tissues and never
            heard what they are called.
    """

    tiles: int = 4000
    size: int = 64
    patch: int = 8
    scale: int = 4
    tower_width: int = 96
    tower_layers: int = 2
    tower_heads: int = 3
    width: int = 128
    layers: int = 2
    heads: int = 4
    see_steps: int = 400
    see_batch: int = 32
    see_rate: float = 2e-3
    speak_steps: int = 300
    speak_batch: int = 24
    speak_rate: float = 3e-3
    names_share: float = 0.08
    names_right: float = 0.25
    real_share: float = 0.5
    real_named: bool = False

    def __post_init__(self) -> None:
        if self.size % self.patch or self.size // self.patch % self.scale:
            raise ValueError(
                f"Expected size a multiple of patch * scale, got {self.size}, {self.patch} and {self.scale}"
            )
        for name in ("names_share", "names_right", "real_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected {name} from 0 to 1, got {getattr(self, name)}")

    @property
    def image_tokens(self) -> int:
        """How many tokens of the language an image takes."""
        return (self.size // self.patch // self.scale) ** 2


def tiny_sight(
    cache: Path,
    recipe: SightRecipe,
    names: Sequence[str],
    seed: int,
    *,
    extra: PublicTiles | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Path:
    """The folder of a tiny model: made now, or found in ``cache`` where it was made before.

    Args:
        cache: Where made folders stay.
        recipe: How it is made.
        names: Answers that its tokenizer writes in few tokens; a plan's.
        seed: Decides everything else.
        extra: Real public tiles with their names, resized to the recipe's size.
        on_progress: Called with the number of steps just made; there are ``steps_of(recipe)``.
    """
    folder = cache / f"tiny-sight-{_digest(recipe, names, seed, extra)[:20]}"
    if (folder / "config.json").exists():
        return folder
    tokenizer = build_tokenizer([*names, *(extra.names if extra else ())])
    processor = build_processor(tokenizer, recipe.size, recipe.image_tokens)
    model = pretrain(processor, recipe, seed, extra=extra, on_progress=on_progress)
    cache.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there whole: a run that is cut off leaves no half model behind.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "made"
        model.save_pretrained(made)
        processor.save_pretrained(made)
        if not folder.exists():
            shutil.move(made, folder)
    return folder


def steps_of(recipe: SightRecipe) -> int:
    """How many steps the pretraining takes."""
    return recipe.see_steps + recipe.speak_steps


def _digest(recipe: SightRecipe, names: Sequence[str], seed: int, extra: PublicTiles | None) -> str:
    # The same recipe gives other last digits under another version of torch.
    versions = [CODE_VERSION, torch.__version__, transformers.__version__]
    parts = [*versions, plain(recipe), list(names), seed, extra.digest() if extra else ""]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def build_model(tokenizer: Any, recipe: SightRecipe, seed: int) -> Any:
    """An Idefics3 that has learned nothing; the same bytes for the same arguments."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.width,
        "intermediate_size": round(recipe.width * 8 / 3 / 16) * 16,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.heads,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    vision = {
        "hidden_size": recipe.tower_width,
        "intermediate_size": 3 * recipe.tower_width,
        "num_hidden_layers": recipe.tower_layers,
        "num_attention_heads": recipe.tower_heads,
        "image_size": recipe.size,
        "patch_size": recipe.patch,
    }
    config = Idefics3Config(
        vision_config=vision,
        text_config=text | special,
        scale_factor=recipe.scale,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
        **special,
    )
    # Drawn from a generator of its own, without touching the one that the process shares.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Idefics3ForConditionalGeneration(config)
    model.generation_config.update(**special)
    with torch.no_grad():
        embedding = model.model.vision_model.embeddings.patch_embedding
        embedding.weight.copy_(torch.from_numpy(waves(recipe.patch, recipe.tower_width)))
    return model


def waves(patch: int, width: int) -> NDArray[np.float32]:
    """What a tower's first layer starts from: cosines of brightness and color, (width, 3, patch, patch).

    Slow waves come first, of brightness before color; the quick ones are louder, since images have less of
    them. After 300 steps of 32 tiles a linear reading of a tower that starts so names 0.67 of hospitals'
    tiles, of one that starts from chance 0.62 (two layers of 96).
    """
    place = np.pi * (np.arange(patch) + 0.5) / patch
    lines = np.cos(np.arange(patch)[:, None] * place)
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    colors = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    some = [(u * u + v * v, u, v, color) for u in range(patch) for v in range(patch) for color in range(3)]
    some.sort(key=lambda wave: (wave[0] * (COLOR_SLOWNESS if wave[3] else 1), wave))
    found = np.zeros((width, 3, patch, patch), dtype=np.float32)
    for row, (quickness, u, v, color) in zip(found, some, strict=False):
        loudness = WAVE_LOUDNESS * (1 + quickness) ** 0.75 * (COLOR_LOUDNESS if color else 1)
        row[:] = loudness * np.einsum("c,y,x->cyx", colors[color], lines[u], lines[v])
    return found


def pretrain(
    processor: Any,
    recipe: SightRecipe,
    seed: int,
    *,
    extra: PublicTiles | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Any:
    """A model that learned to see, then to speak; the same bytes for the same arguments on one machine."""
    lessons = _lessons(recipe, seed, extra)
    model = build_model(processor.tokenizer, recipe, seed)
    told = on_progress or (lambda _: None)
    _learn_to_see(model, lessons, recipe, seed, told)
    _learn_to_speak(model, processor, lessons, recipe, seed, told)
    return model.eval()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lessons:
    """Public tiles, drawn ones first.

    Attributes:
        pixels: uint8 (tiles, size, size, 3).
        classes: int64 (tiles,): a kind of drawn tiles or a name of real ones.
        measured: float32 (drawn tiles, attributes), in spreads from their mean.
        captions: For each drawn tile, what may be said of it.
        names: For each tile, the name that is told, right or wrong; empty where none is.
    """

    pixels: Tensor
    classes: Tensor
    measured: Tensor
    captions: tuple[str, ...]
    names: tuple[str, ...]


def _lessons(recipe: SightRecipe, seed: int, extra: PublicTiles | None) -> _Lessons:
    pixels, classes, measured = draw_lessons(recipe.tiles, recipe.size, seed, extra)
    rng = np.random.default_rng([seed, 6])
    told = rng.random(recipe.tiles) < recipe.names_share
    right = rng.random(recipe.tiles) < recipe.names_right
    said = np.where(right, classes[: recipe.tiles], rng.integers(len(TISSUES), size=recipe.tiles))
    names = [TISSUES.names[kind] if one else "" for kind, one in zip(said, told, strict=True)]
    return _Lessons(
        pixels=torch.from_numpy(pixels),
        classes=torch.from_numpy(classes),
        measured=torch.from_numpy(measured),
        captions=tuple(write_captions(classes[: recipe.tiles], measured, rng)),
        names=(*names, *_heard(recipe, extra)),
    )


def _heard(recipe: SightRecipe, extra: PublicTiles | None) -> tuple[str, ...]:
    """The names of real tiles as they are told, empty where they are not."""
    if extra is None:
        return ()
    return extra.names if recipe.real_named else ("",) * len(extra.names)


def _learn_to_see(
    model: Any, lessons: _Lessons, recipe: SightRecipe, seed: int, told: Callable[[int], None]
) -> None:
    """Train the tower and what joins it to the language, by a head that is thrown away."""
    outputs = lessons.measured.shape[1] + int(lessons.classes.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        head = nn.Linear(recipe.width + recipe.tower_width, outputs)
    learned = [
        *model.model.vision_model.parameters(),
        *model.model.connector.parameters(),
        *head.parameters(),
    ]
    step_of = _stepper(learned, recipe.see_rate, recipe.see_steps)
    rng = np.random.default_rng([seed, 7])
    model.train()
    real = len(lessons.pixels) - recipe.tiles
    rows_of = batches(recipe.tiles, real, recipe.see_batch, rng, real_share=recipe.real_share)
    for step, rows in zip(range(recipe.see_steps), rows_of, strict=False):
        features = _seen(model, turned(lessons.pixels[rows], rng))
        joined = model.model.connector(features).mean(dim=1)
        found = head(torch.cat([joined, features.mean(dim=1)], dim=1))
        loss = seeing_loss(found, lessons.classes[rows], lessons.measured, rows)
        step_of(step, loss)
        told(1)


def _learn_to_speak(
    model: Any, processor: Any, lessons: _Lessons, recipe: SightRecipe, seed: int, told: Callable[[int], None]
) -> None:
    """Train the language and what joins the tower to it on captions and names; the tower stands still."""
    with torch.no_grad():
        features = torch.cat([_seen(model.eval(), part) for part in lessons.pixels.split(64)])
    describe, ask = (read_prompt(processor, text) for text in (DESCRIBE, write_prompt(TISSUE_TYPE)))
    tokenizer = processor.tokenizer
    captions = tokenizer(list(lessons.captions))["input_ids"]
    answers = tokenizer([write_answers(TISSUE_TYPE.header, [name or "?"]) for name in lessons.names])[
        "input_ids"
    ]
    learned = [*model.model.text_model.parameters(), *model.model.connector.parameters()]
    step_of = _stepper(learned, recipe.speak_rate, recipe.speak_steps)
    rng = np.random.default_rng([seed, 8])
    named = np.array([k for k, name in enumerate(lessons.names) if name], dtype=np.int64)
    few = round(NAMED_SHARE * recipe.speak_batch) if len(named) else 0
    model.train()
    for step in range(recipe.speak_steps):
        rows = rng.integers(len(lessons.measured), size=recipe.speak_batch - few)
        chosen = rng.choice(named, few) if few else named
        texts = [(describe, captions[row]) for row in rows] + [(ask, answers[row]) for row in chosen]
        ids, labels = pad_texts(
            [(prompt, [*text, tokenizer.eos_token_id]) for prompt, text in texts], tokenizer
        )
        joined = model.model.connector(features[torch.from_numpy(np.concatenate([rows, chosen]))])
        seen = {"image": BaseModelOutputWithPooling(pooler_output=joined)}
        step_of(step, model(input_ids=ids, labels=labels, mm_encoder_outputs=seen, use_cache=False).loss)
        told(1)


def _stepper(learned: list[nn.Parameter], rate: float, steps: int) -> Callable[[int, Tensor], None]:
    optimizer = torch.optim.AdamW(learned, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True)

    def step_of(step: int, loss: Tensor) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor("cosine", step, steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()

    return step_of


def _seen(model: Any, pixels: Tensor) -> Tensor:
    """What the tower makes of uint8 (n, size, size, 3): float (n, patches, width)."""
    scaled = (pixels.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    side = pixels.shape[1] // model.config.vision_config.patch_size
    mask = torch.ones((len(pixels), side, side), dtype=torch.bool)
    return model.model.vision_model(pixel_values=scaled, patch_attention_mask=mask).last_hidden_state
