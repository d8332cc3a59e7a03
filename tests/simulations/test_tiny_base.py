from pathlib import Path

import pytest
import torch

from client.preferences.answers import write_answers, write_prompt
from client.student.model import digest_base, load_base
from common.tracks import RARE_DISEASE
from simulations.public_text import from_syndromes
from simulations.syndromes import load_casebook
from simulations.tiny_base import HEADER, BaseRecipe, build_tokenizer, tiny_base
from tests.simulations.test_public_text import TEXT

RECIPE = BaseRecipe(vocabulary=400, width=32, layers=1, heads=2, steps=3, batch=4)


def test_a_tiny_base_is_the_same_bytes_for_the_same_arguments(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    steps: list[int] = []
    first = tiny_base(tmp_path / "a", TEXT, RECIPE, 0, on_progress=steps.append)
    second = tiny_base(tmp_path / "b", TEXT, RECIPE, 0)
    assert sum(steps) == RECIPE.steps
    assert first.name == second.name
    assert digest_base(first) == digest_base(second)
    assert digest_base(tiny_base(tmp_path / "a", TEXT, RECIPE, 1)) != digest_base(first)


def test_a_tiny_base_is_found_in_the_cache(tmp_path: Path) -> None:
    first = tiny_base(tmp_path, TEXT, RECIPE, 0)
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert tiny_base(tmp_path, TEXT, RECIPE, 0) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_any_loader_of_hugging_face_reads_it(tmp_path: Path) -> None:
    model, tokenizer = load_base(str(tiny_base(tmp_path, TEXT, RECIPE, 0)))
    ids = tokenizer(write_prompt(RARE_DISEASE, "Finding 1"), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=ids).logits.shape[-1] == len(tokenizer)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return build_tokenizer(from_syndromes(load_casebook(), seed=0), 2000)


def test_every_answer_is_read_back_from_its_tokens(tokenizer) -> None:
    for name in load_casebook().answers.names:
        text = write_answers(RARE_DISEASE.header, [name])
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_fixed_text_is_one_token(tokenizer) -> None:
    assert len(tokenizer(HEADER)["input_ids"]) == 1


def test_a_finding_is_the_same_tokens_wherever_it_stands_in_a_list(tokenizer) -> None:
    first, middle, last = (
        tokenizer(f"The patient was a 6-year-old girl who presented with {listed}.")["input_ids"]
        for listed in (
            "seizure, scoliosis and deafness",
            "scoliosis, seizure and deafness",
            "deafness, scoliosis and seizure",
        )
    )
    assert sorted(first) == sorted(middle) == sorted(last)
