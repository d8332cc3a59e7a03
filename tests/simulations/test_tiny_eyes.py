from pathlib import Path

import numpy as np
import torch

from client.patients.photos import PhotoRef
from client.teacher.eyes import encode_images, load_image_encoder
from simulations.hospital import public_faces
from simulations.tiny_eyes import EyesRecipe, normalized, steps_of, tiny_eyes

RECIPE = EyesRecipe(faces=32, epochs=1, batch=16)


def test_a_tiny_encoder_is_made_once_and_loads_as_a_teachers_eye(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    steps: list[int] = []
    folder = tiny_eyes(tmp_path, RECIPE, 0, on_progress=steps.append)
    assert sum(steps) == steps_of(RECIPE) == 2
    assert tiny_eyes(tmp_path, RECIPE, 0, on_progress=steps.append) == folder
    assert sum(steps) == 2
    encoder = load_image_encoder(str(folder))
    assert encoder.size == (RECIPE.size, RECIPE.size)
    photos, _ = public_faces(9, 2)
    vectors = encode_images(encoder, [[PhotoRef(array=photo)] for photo in photos])
    assert vectors.shape == (2, encoder.width)
    # The folder tells its reader the same normalization as it was trained with.
    with torch.inference_mode():
        own = encoder.network(normalized(torch.from_numpy(photos))).numpy()
    assert np.allclose(own, vectors, atol=1e-4)


def test_the_same_arguments_make_the_same_encoder(tmp_path: Path) -> None:
    one, other = (tiny_eyes(tmp_path / name, RECIPE, 3) for name in ("a", "b"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert tiny_eyes(tmp_path / "a", RECIPE, 4) != one
