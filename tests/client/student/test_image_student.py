import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn

from client.preferences.answers import write_answers
from client.preferences.pairs import PreferencePair
from client.student.batches import draw_batches
from client.student.branches import PatientPairs, plain_log_probs
from client.student.fit import encode_pairs, fit_alone, local_fit
from client.student.model import PROCESSOR_FILES, Student, adapter_spec, digest_base, load_base
from client.student.orpo import orpo_losses
from client.student.predict import STUDENT_FILE, StudentCard, load_student, save_student
from client.student.private import clipped_gradients, clipped_gradients_plain
from client.student.prompts import StudentPrompt
from client.student.vision import FAMILIES, Sight
from common.adapter import Adapter, AdapterMode, Block, flatten, initial_adapter, tensor_shapes
from common.errors import BadFileError
from common.learning_plan import AdapterPlan, Side, TrainingPlan
from common.tracks import TISSUE_TYPE, AnswerList, Modality
from tests.client.student.tiny_vision import NAMES, TEXT, TILES, entry, image_student, save_family

PLAN = TrainingPlan(
    rounds=3,
    local_steps=3,
    patients_per_step=2,
    learning_rate=1e-2,
    max_prompt_tokens=256,
    images_per_step=100,
    orpo_lambda=0.5,
)
NO_CLIP = 1e6
TILES_OF = {"p1": TILES[:3], "p2": TILES[3:5], "p3": TILES[5:]}
PROMPTS = {name: [StudentPrompt(text=TEXT, image=tile) for tile in tiles] for name, tiles in TILES_OF.items()}


def pair(patient: str, chosen: str, rejected: str) -> PreferencePair:
    first, second = (write_answers(TISSUE_TYPE.header, [name]) for name in (chosen, rejected))
    return PreferencePair(patient_id=patient, prompt=TEXT, chosen=first, rejected=second, margin=1.0)


PAIRS = [
    pair("p1", NAMES[0], NAMES[1]),
    pair("p1", NAMES[0], NAMES[2]),
    pair("p2", NAMES[3], NAMES[0]),
    pair("p3", NAMES[4], NAMES[3]),
]


def encoded(student: Student) -> list[PatientPairs]:
    return encode_pairs(student, PAIRS, max_prompt_tokens=256, prompts=PROMPTS)


def filled(student: Student) -> Adapter:
    """An adapter without a zero, which would hide the other factors."""
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(student.spec).items()
    tensors = {key: rng.normal(size=shape, scale=0.1).astype(np.float32) for key, shape in shapes}
    return Adapter(spec=student.spec, tensors=tensors)


def test_a_patient_with_several_tiles_is_one_entry_a_tile(sighted: Student) -> None:
    entries = encoded(sighted)
    assert [own.patient_id for own in entries] == ["p1", "p1", "p1", "p2", "p2", "p3"]
    assert [own.image for own in entries] == list(TILES)
    assert {(own.branches, own.pairs) for own in entries[:3]} == {(entries[0].branches, ((0, 1), (0, 2)))}
    with pytest.raises(ValueError, match="Expected at least one prompt"):
        encode_pairs(sighted, PAIRS, max_prompt_tokens=256, prompts={**PROMPTS, "p3": []})


def test_a_step_takes_patients_with_all_their_tiles(sighted: Student) -> None:
    entries = encoded(sighted)
    drawn = draw_batches(entries, 2, seed=3, first_step=0)
    for own in [one for _ in range(3) for one in next(drawn)]:
        assert [entry.image for entry in own] == list(TILES_OF[own[0].patient_id])
    update = local_fit(sighted, initial_adapter(sighted.spec, 0), Block.B, entries, PLAN, round_id=1, seed=0)
    assert (update.patients, update.steps) == (6, 3)


def test_a_patients_loss_is_the_mean_over_his_tiles(sighted: Student) -> None:
    plan = replace(PLAN, local_steps=1, patients_per_step=3, local_optimizer="sgd")
    entries, adapter = encoded(sighted), filled(sighted)
    losses = []
    with torch.no_grad():
        sighted.load(adapter)
        for patient in TILES_OF:
            own = [entry for entry in entries if entry.patient_id == patient]
            each = [
                orpo_losses(sighted.model, [e], orpo_lambda=0.5, pad_id=0, vision=sighted.vision) for e in own
            ]
            losses.append(np.mean([float(one.loss) for one in each]))
    update = local_fit(sighted, adapter, Block.B, entries, plan, round_id=1, seed=0)
    assert update.loss == pytest.approx(float(np.mean(losses)), abs=1e-4)
    # Each tile twice changes the work and not the loss.
    twice = local_fit(sighted, adapter, Block.B, [*entries, *entries], plan, round_id=1, seed=0)
    assert twice.loss == pytest.approx(update.loss, abs=1e-4)
    difference = flatten(twice.adapter, Block.B) - flatten(update.adapter, Block.B)
    assert np.abs(difference).max() < 1e-5


def test_a_local_fit_on_images_moves_its_block_and_lowers_the_loss(sighted: Student) -> None:
    plan = replace(PLAN, local_steps=6, patients_per_step=3, learning_rate=0.02)
    entries, start = encoded(sighted), initial_adapter(sighted.spec, 0)
    update = local_fit(sighted, start, Block.B, entries, plan, round_id=1, seed=5)
    assert (flatten(update.adapter, Block.A) == flatten(start, Block.A)).all()
    assert (flatten(update.adapter, Block.B) != flatten(start, Block.B)).any()
    again = local_fit(sighted, update.adapter, Block.B, entries, plan, round_id=1, seed=5)
    assert again.loss < update.loss
    alone = fit_alone(sighted, start, entries, PLAN, patients_per_step=3, learning_rate=0.02, seed=0)
    assert alone.loss < update.loss


@pytest.fixture
def saved(image_folder: Path, sighted: Student, tissues: AnswerList, tmp_path: Path) -> Path:
    base_digest, tokenizer_digest = digest_base(image_folder)
    card = StudentCard(
        track=TISSUE_TYPE.name,
        base_model=str(image_folder),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        max_prompt_tokens=256,
        chosen_length=1,
        plan_digest="1" * 64,
        method="federated_orpo",
        privacy="none",
        aggregation="secagg-v1",
    )
    save_student(tmp_path / "student", filled(sighted), tissues, card)
    return tmp_path / "student"


def test_a_saved_image_student_answers_images_and_no_notes(saved: Path, tissues: AnswerList) -> None:
    loaded = load_student(saved)
    ranked = loaded.rank_images(TILES, 3)
    assert len(ranked) == len(TILES)
    for case in ranked:
        assert len(case) == 3
        for identifier, name, confidence in case:
            assert tissues.answers[tissues.index_of(identifier)].name == name
            assert 0 < confidence <= 1
    with pytest.raises(ValueError, match="its student reads the image alone"):
        loaded.rank(["seizure"], 3)
    assert "--input FOLDER_OF_IMAGES --output" in (saved / "README.md").read_text()


def test_a_base_of_a_family_that_is_not_known_is_one_clear_line(
    saved: Path, image_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in image_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    card = json.loads((saved / STUDENT_FILE).read_text())
    (saved / STUDENT_FILE).write_text(json.dumps(card | {"base_model_digest": digest_base(other)[0]}))
    with pytest.raises(BadFileError, match="got model_type gemma3"):
        load_student(saved, str(other))


def test_peft_loads_an_image_student_and_gives_the_same_logits(
    saved: Path, image_folder: Path, sighted: Student
) -> None:
    base, processor = load_base(str(image_folder), modality=Modality.IMAGE)
    theirs = PeftModel.from_pretrained(base, str(saved))
    sighted.load(filled(sighted))
    content = [{"type": "image", "image": TILES[2].pixels().copy()}, {"type": "text", "text": TEXT}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        ours = sighted.model(**inputs).logits
        assert torch.allclose(theirs(**inputs).logits, ours, atol=1e-5)
        with theirs.disable_adapter():
            assert not torch.allclose(theirs(**inputs).logits, ours, atol=1e-2)


def test_the_language_side_leaves_image_tower_and_connector_alone(image_folder: Path) -> None:
    base, _ = load_base(str(image_folder), modality=Modality.IMAGE)

    def names(side: Side, *targets: str) -> set[str]:
        plan = AdapterPlan(
            mode=AdapterMode.FFA, rank=2, alpha=2.0, targets=targets, side=side, factors_digest="0" * 64
        )
        return {module.name for module in adapter_spec(base, plan).modules}

    attention = "qkv" if image_folder.name.startswith("qwen") else "q_proj"
    language = names("language", "q_proj", "down_proj")
    assert all(name.startswith(("model.text_model.", "model.language_model.")) for name in language)
    both = names("both", *{"q_proj", attention}) - names("language", "q_proj")
    assert both
    assert all(name.startswith(("model.vision_model.", "model.visual.")) for name in both)
    with pytest.raises(ValueError, match=r"not so: \['lm_head'\]"):
        names("both", "lm_head")


def test_the_tokenizers_digest_covers_the_processor(image_folder: Path, tmp_path: Path) -> None:
    before = digest_base(image_folder)
    for path in image_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert digest_base(tmp_path) == before
    (changed, *_) = [tmp_path / name for name in PROCESSOR_FILES if (tmp_path / name).exists()]
    changed.write_text(changed.read_text() + "\n")
    assert digest_base(tmp_path)[0] == before[0]
    assert digest_base(tmp_path)[1] != before[1]


def ragged(student: Student) -> list[PatientPairs]:
    """One to three tiles a patient, of different shapes, with one to three answers, and not in order."""
    return [
        entry(student, "a", TILES[0], NAMES[:2]),
        entry(student, "b", TILES[2], NAMES[1:4], extra="old "),
        entry(student, "c", TILES[1], NAMES[:1]),
        entry(student, "b", TILES[3], NAMES[1:4]),
        entry(student, "d", TILES[4], NAMES[2:4], extra="a long question: "),
        entry(student, "b", TILES[5], NAMES[1:4]),
        entry(student, "d", TILES[5], NAMES[2:4]),
    ]


def by_hand(
    student: Student, adapter: Adapter, block: Block, entries: list[PatientPairs], clip_norm: float
) -> NDArray[np.float64]:
    """The clipped sum written down: one answer, tile and patient at a time, by the model's own forward."""
    student.load(adapter)
    factors = student.train_block(block)
    total = np.zeros(student.spec.size(block))
    for patient in sorted({own.patient_id for own in entries}):
        tiles = [own for own in entries if own.patient_id == patient]
        loss = torch.stack([torch.stack(pair_losses(student, own)).mean() for own in tiles]).mean()
        parts = torch.autograd.grad(loss, factors)
        gradient = torch.cat([part.double().flatten() for part in parts]).numpy()
        total += gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
    return total


def pair_losses(student: Student, own: PatientPairs) -> list[torch.Tensor]:
    means = [
        plain_log_probs(student.model, own.prompt, branch, vision=student.vision, image=own.image).mean()
        for branch in own.branches
    ]
    losses = []
    for winner, loser in own.pairs:
        loss = -means[winner]
        if loser is not None:
            odds = [means[i] - torch.log(-torch.expm1(means[i])) for i in (winner, loser)]
            loss = loss - PLAN.orpo_lambda * nn.functional.logsigmoid(odds[0] - odds[1])
        losses.append(loss)
    return losses


@pytest.mark.parametrize(
    ("image_folder", "mode", "block"),
    [
        *((family, AdapterMode.ROLORA, Block.B) for family in FAMILIES),
        ("idefics3", AdapterMode.ROLORA, Block.A),
        ("mllama", AdapterMode.CORE, Block.CORE),
    ],
    indirect=["image_folder"],
)
def test_clipped_sums_of_images_equal_a_loop_over_patients(
    image_folder: Path, mode: AdapterMode, block: Block
) -> None:
    student = image_student(image_folder, mode=mode)
    student.model.double()
    adapter, entries = filled(student), ragged(student)
    for clip_norm, clipped in ((NO_CLIP, 0), (0.01, 4)):
        found = clipped_gradients(student, adapter, block, entries, PLAN, clip_norm=clip_norm)
        plain = clipped_gradients_plain(student, adapter, block, entries, PLAN, clip_norm=clip_norm)
        right = by_hand(student, adapter, block, entries, clip_norm)
        # Logits are rounded to float32 on their way to the loss.
        scale = float(np.linalg.norm(right))
        assert np.linalg.norm(found.total - plain.total) < 1e-5 * scale
        assert np.linalg.norm(found.total - right) < 1e-5 * scale
        assert (found.patients, found.dropped, plain.patients) == (4, 0, 4)
        assert found.clipped == plain.clipped == clipped


def test_no_patients_part_is_longer_than_the_clip_norm_however_many_tiles_he_has(
    sighted: Student,
) -> None:
    adapter, own = filled(sighted), [one for one in ragged(sighted) if one.patient_id == "b"]
    for entries in (own, own * 3):
        result = clipped_gradients(sighted, adapter, Block.B, entries, PLAN, clip_norm=0.01)
        assert (result.patients, result.clipped) == (1, 1)
        assert 0.01 * (1 - 1e-5) < np.linalg.norm(result.total) <= 0.01


def test_a_layer_of_the_image_tower_is_adapted_under_privacy_only_where_rows_can_be_told_apart(
    image_folder: Path,
) -> None:
    qwen = image_folder.name.startswith("qwen")
    student = image_student(image_folder, targets=("qkv",) if qwen else ("q_proj",), side="both")
    student.model.double()
    adapter, entries = filled(student), ragged(student)
    if qwen:
        assert student.vision is not None
        assert student.vision.sight is Sight.GRID
        with pytest.raises(
            ValueError, match=r"rows of tokens at model\.visual\..* patients cannot be told apart"
        ):
            clipped_gradients(student, adapter, Block.B, entries, PLAN, clip_norm=NO_CLIP)
        return
    found = clipped_gradients(student, adapter, Block.B, entries, PLAN, clip_norm=NO_CLIP)
    right = by_hand(student, adapter, Block.B, entries, NO_CLIP)
    assert np.linalg.norm(found.total - right) < 1e-5 * np.linalg.norm(right)
    tower = [module.name.startswith("model.vision_model.") for module in student.spec.modules]
    assert any(tower)
    of_module = np.split(found.total, np.cumsum([4 * module.out_features for module in student.spec.modules]))
    assert all(np.abs(part).max() > 0 for part in of_module[:-1])


def test_batch_statistics_in_the_image_tower_are_refused_by_name(tmp_path: Path) -> None:
    student = image_student(save_family("idefics3", tmp_path))
    tower = student.model.get_base_model().model.vision_model
    tower.post_layernorm = nn.BatchNorm1d(16, track_running_stats=False)
    with pytest.raises(ValueError, match=r"got batch statistics at .*vision_model\.post_layernorm"):
        clipped_gradients(student, filled(student), Block.B, ragged(student), PLAN, clip_norm=1.0)
