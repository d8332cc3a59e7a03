"""Frozen encoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from client.patients.photos import ImageRef
from client.teacher.eyes import (
    ImageEncoder,
    NoteEncoder,
    encode_images,
    encode_notes,
    load_image_encoder,
    load_note_encoder,
)
from common.errors import BadFileError

NOTE = "the boy was tall and had long fingers"
WORDS = ["<pad>", "<s>", "[UNK]", *NOTE.split(), "no", "other", "findings"]


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eyes") / "photo"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_byobnet", num_classes=5)
        model(torch.randn(8, 3, 32, 32))
    config = {"input_size": (3, 32, 32), "mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}
    save_for_hf(model, str(folder), data_config=config, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def photo(photo_folder: Path) -> ImageEncoder:
    return load_image_encoder(str(photo_folder), batch_size=3)


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # No padding token, as in Llama.
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="[UNK]").save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eyes") / "llama"
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def note(llama_folder: Path) -> NoteEncoder:
    return load_note_encoder(str(llama_folder), batch_size=3)


def faces(count: int, size: int = 32) -> list[ImageRef]:
    rng = np.random.default_rng(0)
    return [ImageRef(array=rng.integers(0, 255, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def test_an_image_encoder_comes_from_a_folder_with_its_own_size_and_colors(photo: ImageEncoder) -> None:
    assert (photo.size, photo.mean, photo.std) == ((32, 32), (0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    assert not photo.network.training
    assert not any(parameter.requires_grad for parameter in photo.network.parameters())


def test_an_image_encoder_comes_from_a_name_and_a_checkpoint_whose_classifier_is_left_out(
    photo: ImageEncoder, photo_folder: Path
) -> None:
    other = load_image_encoder("test_byobnet", checkpoint=photo_folder / "model.safetensors")
    for name, tensor in photo.network.state_dict().items():
        assert torch.equal(other.network.state_dict()[name], tensor)


def test_a_checkpoint_beside_a_folder_or_an_empty_batch_is_refused(photo_folder: Path) -> None:
    with pytest.raises(ValueError, match="got one beside a folder"):
        load_image_encoder(str(photo_folder), checkpoint=photo_folder / "model.safetensors")
    with pytest.raises(ValueError, match="Expected batch_size of at least 1, got 0"):
        load_image_encoder(str(photo_folder), batch_size=0)


def test_the_width_is_what_comes_out_and_not_what_the_architecture_calls_its_features(tmp_path: Path) -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=2)
    save_for_hf(model, str(tmp_path), data_config={"input_size": (3, 32, 32)})
    encoder = load_image_encoder(str(tmp_path))
    assert encode_images(encoder, [faces(1)]).shape == (1, encoder.width)
    assert encoder.width != encoder.network.num_features


def test_images_become_the_vectors_of_the_network(photo: ImageEncoder) -> None:
    image = faces(1)[0]
    pixels = torch.from_numpy(image.pixels() / 255).permute(2, 0, 1).float()
    expected = (pixels - torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(
        3, 1, 1
    )
    with torch.no_grad():
        vector = photo.network(expected.unsqueeze(0))[0].numpy()
    assert np.allclose(encode_images(photo, [[image]])[0], vector, atol=1e-5)


def test_several_images_of_a_patient_are_averaged_and_none_is_zero(photo: ImageEncoder) -> None:
    images = faces(5)
    one_by_one = encode_images(photo, [[image] for image in images])
    together = encode_images(photo, [[], images[:4], images[4:]])
    assert together.dtype == np.float32
    assert not together[0].any()
    assert np.allclose(together[1], one_by_one[:4].mean(axis=0), atol=1e-5)
    assert np.allclose(together[2], one_by_one[4], atol=1e-5)


def test_images_of_another_size_are_resized(photo: ImageEncoder) -> None:
    large = np.full((96, 80, 3), 77, dtype=np.uint8)
    small = np.full((32, 32, 3), 77, dtype=np.uint8)
    vectors = encode_images(photo, [[ImageRef(array=large)], [ImageRef(array=small)]])
    assert np.allclose(vectors[0], vectors[1], atol=1e-5)


def test_an_image_that_cannot_be_read_is_named(photo: ImageEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"gone\.png: missing"):
        encode_images(photo, [[ImageRef(path=tmp_path / "gone.png")]])


def test_a_note_is_the_mean_of_hidden_states_beside_embeddings_over_its_own_tokens(note: NoteEncoder) -> None:
    ids = torch.tensor([[1, *(WORDS.index(word) for word in NOTE.split())]])
    with torch.no_grad():
        hidden = note.network(input_ids=ids).last_hidden_state[0, 1:].mean(dim=0)
        embedded = note.network.get_input_embeddings()(ids)[0, 1:].mean(dim=0)
    (vector,) = encode_notes(note, [NOTE])
    assert vector.dtype == np.float32
    assert note.width == len(vector) == 32
    assert np.allclose(vector, torch.cat([hidden, embedded]).numpy(), atol=1e-5)


def test_padding_and_batches_change_no_note(note: NoteEncoder) -> None:
    notes = [NOTE, "tall", None, "no other findings", " ".join([NOTE] * 5), "the boy"]
    alone = np.concatenate([encode_notes(note, [each]) for each in notes])
    assert np.allclose(encode_notes(note, notes), alone, atol=1e-5)
    assert not alone[2].any()


def test_no_token_of_a_long_note_is_left_out(llama_folder: Path) -> None:
    narrow = load_note_encoder(str(llama_folder), window=5, batch_size=2)
    long_note = " ".join([NOTE] * 20 + ["findings"])
    words = [WORDS.index(word) for word in long_note.split()]
    with torch.no_grad():
        mean = narrow.network.get_input_embeddings()(torch.tensor(words)).mean(dim=0).numpy()
    assert np.allclose(encode_notes(narrow, [long_note])[0, 16:], mean, atol=1e-5)


def test_a_window_is_cut_to_what_the_model_allows(llama_folder: Path) -> None:
    assert load_note_encoder(str(llama_folder), window=4096).window == 64
    with pytest.raises(ValueError, match="Expected window of at least 1, got 0"):
        load_note_encoder(str(llama_folder), window=0)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_note_encoder_may_be_of_any_architecture(tmp_path: Path, family: str) -> None:
    model: Any
    if family == "bert":
        model = BertModel(
            BertConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
            )
        )
    else:
        config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = load_note_encoder(str(tmp_path))
    vectors = encode_notes(encoder, [NOTE, "no other findings"])
    assert vectors.shape == (2, encoder.width) == (2, 32)
    assert np.isfinite(vectors).all()
    assert not np.allclose(vectors[0], vectors[1])


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "no_such_network"}))
    with pytest.raises(RuntimeError, match="Unknown model"):
        load_image_encoder(str(tmp_path))
