from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTImageProcessor,
)

from client.patients.photos import ImageRef
from client.teacher.eyes import encode_images, load_image_encoder
from client.teacher.towers import is_tower, load_tower

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
COLORS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP as PLIP is one, from a small configuration."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    text = {**SMALL, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 1, "bos_token_id": 0}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(crop_size=32, size={"shortest_edge": 32}, **COLORS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 28, "width": 28}, **COLORS).save_pretrained(folder)
    return folder


def tiles(count: int) -> list[ImageRef]:
    rng = np.random.default_rng(0)
    return [ImageRef(array=rng.integers(256, size=(40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def test_the_image_tower_of_a_clip_like_model_sees_as_the_model_itself_does(clip: Path) -> None:
    encoder = load_image_encoder(str(clip))
    assert (encoder.width, encoder.size) == (24, (32, 32))
    assert (encoder.mean, encoder.std) == (tuple(COLORS["image_mean"]), tuple(COLORS["image_std"]))
    pixels = torch.randn(2, 3, 32, 32)
    model = CLIPModel.from_pretrained(clip)
    with torch.inference_mode():
        embeds = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        torch.testing.assert_close(encoder.network(pixels), embeds)


def test_a_patient_is_the_mean_of_his_tiles(clip: Path) -> None:
    encoder, each = load_image_encoder(str(clip), batch_size=2), tiles(3)
    together = encode_images(encoder, [each, []])
    alone = encode_images(encoder, [[tile] for tile in each])
    np.testing.assert_allclose(together[0], alone.mean(axis=0), atol=1e-5)
    assert not together[1].any()


def test_a_plain_vision_encoder_gives_its_pooled_output(plain: Path) -> None:
    tower = load_tower(str(plain))
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(plain)(pixel_values=pixels).pooler_output
        torch.testing.assert_close(tower.network(pixels), expected)
    assert tower.size == (28, 28)


def test_a_tower_learns_nothing(clip: Path) -> None:
    assert not any(parameter.requires_grad for parameter in load_tower(str(clip)).network.parameters())


def test_a_name_is_timms_or_that_of_a_model_of_transformers(clip: Path, tmp_path: Path) -> None:
    assert is_tower(str(clip))
    assert is_tower("vinid/plip")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    assert not is_tower(str(tmp_path))
    for name in ("resnet18", "vit_tiny_patch16_224.augreg_in21k", "hf-hub:timm/resnet18", "timm/resnet18"):
        assert not is_tower(name), name


def test_a_processor_without_colors_or_size_is_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a checkpoint beside a name of timm"):
        load_image_encoder(str(clip), checkpoint=Path("weights.bin"))
    processor = CLIPImageProcessor(**COLORS)
    processor.image_mean = None
    monkeypatch.setattr("client.teacher.towers.AutoImageProcessor.from_pretrained", lambda _: processor)
    with pytest.raises(ValueError, match="mean and spread of colors"):
        load_tower(str(clip))
