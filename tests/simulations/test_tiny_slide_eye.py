from pathlib import Path

import numpy as np
import pytest
import torch

from client.patients.photos import ImageRef
from client.teacher.eyes import encode_images, load_image_encoder
from simulations.public_tiles import PublicTiles
from simulations.slides import ATTRIBUTES, TISSUES, public_tiles
from simulations.tile_lessons import batches, draw_lessons, seeing_loss, turned
from simulations.tiny_eyes import normalized
from simulations.tiny_slide_eye import SlideEyeRecipe, pretrain, steps_of, tiny_slide_eye

RECIPE = SlideEyeRecipe(tiles=24, size=32, epochs=1, batch=8)
EXTRA = PublicTiles(
    images=np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8), names=("x", "y") * 4
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_tiny_slide_eye_is_made_once_and_loads_as_a_teachers_eye(tmp_path: Path) -> None:
    steps: list[int] = []
    folder = tiny_slide_eye(tmp_path, RECIPE, 0, on_progress=steps.append)
    assert sum(steps) == steps_of(RECIPE) == 3
    assert tiny_slide_eye(tmp_path, RECIPE, 0, on_progress=steps.append) == folder
    assert sum(steps) == 3
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    encoder = load_image_encoder(str(folder))
    assert encoder.size == (RECIPE.size, RECIPE.size)
    tiles, _, _ = public_tiles(9, 2, size=RECIPE.size)
    vectors = encode_images(encoder, [[ImageRef(array=tile)] for tile in tiles])
    assert vectors.shape == (2, encoder.width)
    # The folder tells its reader the same normalization as it was trained with.
    with torch.inference_mode():
        own = encoder.network(normalized(torch.from_numpy(tiles))).numpy()
    assert np.allclose(own, vectors, atol=1e-4)


def test_the_same_arguments_make_the_same_eye_and_others_another(tmp_path: Path) -> None:
    one, other = (tiny_slide_eye(tmp_path / name, RECIPE, 3) for name in ("a", "b"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert tiny_slide_eye(tmp_path / "a", RECIPE, 4) != one
    with_real = tiny_slide_eye(tmp_path / "a", RECIPE, 3, extra=EXTRA)
    assert with_real.name != one.name


def test_an_eye_learns_what_tiles_show() -> None:
    recipe = SlideEyeRecipe(tiles=160, size=32, epochs=6, batch=16)
    model = pretrain(recipe, 1)
    tiles, kinds, _ = public_tiles(2, 120, size=32)  # of another seed: never seen
    with torch.inference_mode():
        found = model(normalized(torch.from_numpy(tiles)))[:, len(ATTRIBUTES) :].argmax(dim=1)
    right = (found.numpy() == kinds).mean()
    assert right > 2.5 / len(TISSUES)


def test_real_tiles_bring_a_class_for_each_name_and_no_measures() -> None:
    pixels, classes, measured = draw_lessons(6, 16, 0, EXTRA)
    assert pixels.shape == (14, 16, 16, 3)
    assert classes[6:].tolist() == [len(TISSUES), len(TISSUES) + 1] * 4
    assert measured.shape == (6, len(ATTRIBUTES))
    assert np.allclose(measured.mean(axis=0), 0, atol=1e-5)


def test_nobody_is_blamed_for_measures_of_real_tiles() -> None:
    measured = torch.zeros(2, 3)
    found = torch.zeros(2, 3 + 2)
    classes = torch.tensor([0, 1])
    drawn = seeing_loss(found + torch.tensor([9.0, 9, 9, 0, 0]), classes, measured, torch.tensor([0, 1]))
    real = seeing_loss(found + torch.tensor([9.0, 9, 9, 0, 0]), classes, measured, torch.tensor([2, 3]))
    assert real.item() == pytest.approx(np.log(2))
    assert drawn.item() == pytest.approx(np.log(2) + 8.5)


def test_a_turned_tile_has_the_same_pixels_at_other_places() -> None:
    pixels = torch.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    ways = {tuple(turned(pixels, np.random.default_rng(seed)).flatten().tolist()) for seed in range(60)}
    assert len(ways) == 8
    assert all(sorted(way) == pixels.flatten().tolist() for way in ways)


def test_of_each_sort_every_tile_comes_once_before_any_comes_again() -> None:
    rows = batches(6, 4, 5, np.random.default_rng(0), real_share=0.4)
    for _ in range(2):
        taken = torch.cat([next(rows) for _ in range(2)]).tolist()
        assert sorted(taken) == [*range(6), 6, 7, 8, 9]


def test_without_real_tiles_a_batch_is_drawn_tiles_alone() -> None:
    rows = batches(6, 0, 3, np.random.default_rng(0), real_share=0.4)
    assert sorted(torch.cat([next(rows), next(rows)]).tolist()) == list(range(6))
    with pytest.raises(ValueError, match="at least 7 tiles"):
        next(batches(6, 0, 7, np.random.default_rng(0), real_share=0.5))
