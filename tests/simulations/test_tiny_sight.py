from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from client.preferences.answers import parse_answers, write_answers, write_prompt
from common.tracks import TISSUE_TYPE
from simulations.public_tiles import PublicTiles
from simulations.sight_words import (
    ASSISTANT,
    BEGIN,
    END,
    HEADER,
    IGNORED,
    IMAGE,
    TOLD,
    USER,
    build_processor,
    build_tokenizer,
    pad_texts,
    phrases,
    read_prompt,
    write_captions,
)
from simulations.slides import ATTRIBUTES, TISSUES, public_tiles
from simulations.tile_lessons import resized
from simulations.tiny_sight import SightRecipe, steps_of, tiny_sight, waves

RECIPE = SightRecipe(
    tiles=24,
    size=32,
    tower_width=24,
    tower_layers=1,
    tower_heads=2,
    width=32,
    layers=1,
    heads=2,
    see_steps=2,
    see_batch=8,
    speak_steps=2,
    speak_batch=8,
)
NAMES = (*TISSUES.names, "oral squamous cell carcinoma", "stroma, cancer-associated")
EXTRA = PublicTiles(
    images=np.random.default_rng(0).integers(0, 256, (6, 48, 48, 3), dtype=np.uint8),
    names=("stroma, cancer-associated",) * 6,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_sight(tmp_path_factory.mktemp("sight"), RECIPE, NAMES, 0)


@pytest.fixture(scope="module")
def processor() -> object:
    return build_processor(build_tokenizer(NAMES), 32, 1)


def test_a_tiny_sight_is_the_same_bytes_for_the_same_arguments(folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    again = tiny_sight(tmp_path, RECIPE, NAMES, 0, on_progress=steps.append)
    assert sum(steps) == steps_of(RECIPE) == 4
    assert again.name == folder.name
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    assert tiny_sight(tmp_path, RECIPE, NAMES, 1).name != folder.name
    assert tiny_sight(tmp_path, RECIPE, NAMES, 0, extra=EXTRA).name != folder.name
    assert tiny_sight(tmp_path, RECIPE, NAMES[:-1], 0).name != folder.name


def test_a_tiny_sight_is_found_in_the_cache(folder: Path) -> None:
    steps: list[int] = []
    assert tiny_sight(folder.parent, RECIPE, NAMES, 0, on_progress=steps.append) == folder
    assert steps == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_any_loader_of_hugging_face_reads_it_and_it_answers(folder: Path) -> None:
    model, processor = (one.from_pretrained(folder) for one in (AutoModelForImageTextToText, AutoProcessor))
    assert model.config.model_type == "idefics3"
    picture = Image.fromarray(public_tiles(1, 1, size=48)[0][0])  # of another size than the model's
    content = [{"type": "image", "image": picture}, {"type": "text", "text": write_prompt(TISSUE_TYPE)}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["pixel_values"].shape == (1, 1, 3, 32, 32)
    assert inputs["input_ids"][0].tolist() == read_prompt(processor, write_prompt(TISSUE_TYPE))
    assert (inputs["input_ids"] == processor.image_token_id).sum() == RECIPE.image_tokens == 1
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > inputs["input_ids"].shape[1]


def test_it_looks_at_the_image(folder: Path) -> None:
    model, processor = (one.from_pretrained(folder) for one in (AutoModelForImageTextToText, AutoProcessor))
    tiles = [Image.fromarray(tile) for tile in public_tiles(1, 2, size=32)[0]]
    ids = torch.tensor([read_prompt(processor, write_prompt(TISSUE_TYPE))] * 2)
    with torch.inference_mode():
        pixels = processor.image_processor([[tile] for tile in tiles], return_tensors="pt")["pixel_values"]
        one, other = model(input_ids=ids, pixel_values=pixels).logits[:, -1]
    assert not torch.allclose(one, other, atol=1e-6)


def test_the_processor_resizes_as_pretraining_does(processor) -> None:
    tile = public_tiles(1, 1, size=96)[0]
    mine = resized(tile, 32)[0].astype(np.float32) / 255
    found = processor.image_processor([[Image.fromarray(tile[0])]], return_tensors="pt")["pixel_values"]
    theirs = found[0, 0].permute(1, 2, 0).numpy() * 0.25 + 0.5
    assert np.abs(mine - theirs).max() < 0.02


def test_a_prompt_is_one_token_for_each_of_its_parts(processor) -> None:
    ids = read_prompt(processor, write_prompt(TISSUE_TYPE))
    tokens = [processor.tokenizer.decode([one]) for one in ids]
    around = "<fake_token_around_image>"
    image = [around, "<global-img>", IMAGE, around]
    assert tokens == [BEGIN, USER, *image, write_prompt(TISSUE_TYPE), END, ASSISTANT]


def test_every_answer_is_three_tokens_and_read_back_from_them(processor) -> None:
    tokenizer = processor.tokenizer
    for name in NAMES:
        text = write_answers(TISSUE_TYPE.header, [name])
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        assert len(ids) == 3
        assert ids[0] == tokenizer.convert_tokens_to_ids(HEADER)
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_list_of_answers_is_read_back(processor) -> None:
    tokenizer = processor.tokenizer
    text = write_answers(TISSUE_TYPE.header, TISSUES.names)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) <= 2 * len(TISSUES)
    found = parse_answers(tokenizer.decode(ids), TISSUE_TYPE.header, TISSUES)
    assert found == list(TISSUES.answers)


def test_captions_say_the_plate_and_how_much_of_a_few_attributes_in_one_token_each(processor) -> None:
    table = np.arange(9, dtype=np.float32)[:, None].repeat(len(ATTRIBUTES), axis=1)
    low, *_, high = write_captions(np.arange(9), table, np.random.default_rng(0))
    assert low.startswith(f"{HEADER}plate 1: low ") and high.startswith(f"{HEADER}plate 9: high ")
    assert low.count("low ") == high.count("high ") == TOLD
    assert len(processor.tokenizer(low)["input_ids"]) == 2 + TOLD
    assert len(set(phrases())) == 3 * len(ATTRIBUTES) + len(TISSUES)


def test_captions_never_say_a_plans_name() -> None:
    kinds, table = np.arange(12), np.zeros((12, len(ATTRIBUTES)), dtype=np.float32)
    written = " ".join(write_captions(kinds, table, np.random.default_rng(0)))
    assert not any(name in written for name in TISSUES.names)


def test_prompts_and_padding_are_not_learned(processor) -> None:
    ids, labels = pad_texts([([5, 6], [7]), ([5], [8, 9, 10])], processor.tokenizer)
    pad = processor.tokenizer.pad_token_id
    assert ids.tolist() == [[5, 6, 7, pad], [5, 8, 9, 10]]
    assert labels.tolist() == [[IGNORED, IGNORED, 7, IGNORED], [IGNORED, 8, 9, 10]]


def test_a_tower_starts_from_waves_that_share_nothing() -> None:
    flat = waves(8, 96).reshape(96, -1)
    across = flat @ flat.T
    assert np.abs(across - np.diag(np.diag(across))).max() < 1e-4
    assert np.diag(across).min() > 0
    slowest = waves(8, 96)[0]
    assert np.allclose(slowest, slowest[0, 0, 0])


def test_a_recipe_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of patch"):
        SightRecipe(size=64, patch=8, scale=3)
    with pytest.raises(ValueError, match="names_right from 0 to 1"):
        SightRecipe(names_right=1.5)
