from pathlib import Path

import numpy as np
import pytest
import torch

from client.student.branches import PatientPairs
from client.student.fit import fit_alone, local_fit
from client.student.model import (
    Student,
    adapter_spec,
    digest_base,
    load_base,
    make_student,
)
from client.student.orpo import orpo_losses
from client.student.predict import LoadedStudent, StudentCard, load_student, save_student
from client.student.vision import TAIL_TOKENS
from common.adapter import (
    Adapter,
    AdapterMode,
    Block,
    flatten,
    initial_adapter,
    tensor_key,
    unflatten,
)
from common.learning_plan import AdapterPlan, TrainingPlan
from common.tracks import RARE_DISEASE, AnswerList


def test_an_adapter_goes_in_and_comes_out_unchanged(student: Student) -> None:
    adapter = initial_adapter(student.spec, 3)
    block = Block.B
    moved = unflatten(adapter, block, np.linspace(-1, 1, adapter.spec.size(block)))
    student.load(moved)
    assert student.read() == moved


def test_the_initial_adapter_changes_nothing(student: Student, base_folder: Path) -> None:
    student.load(initial_adapter(student.spec, 0))
    base, _ = load_base(str(base_folder))
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        assert torch.allclose(student.model(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-6)


@pytest.mark.parametrize("block", [Block.A, Block.B])
def test_only_the_active_block_is_trained_in_the_adapters_order(student: Student, block: Block) -> None:
    student.load(initial_adapter(student.spec, 1))
    factors = student.train_block(block)
    assert sum(factor.numel() for factor in factors) == student.spec.size(block)
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(f".lora_{block.value}." in name for name in trained)
    flat = torch.cat([factor.detach().flatten() for factor in factors]).numpy()
    assert np.array_equal(flat, flatten(student.read(), block))


def test_a_block_that_the_mode_does_not_have_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="Expected a block of the mode rolora, got core"):
        student.train_block(Block.CORE)


@pytest.fixture
def cored(base_folder: Path) -> Student:
    base, tokenizer = load_base(str(base_folder))
    plan = AdapterPlan(
        mode=AdapterMode.CORE, rank=4, alpha=8.0, targets=("q_proj", "down_proj"), factors_digest="0" * 64
    )
    return make_student(base, tokenizer, adapter_spec(base, plan))


def with_core(student: Student) -> Adapter:
    """An adapter whose core is not zero."""
    adapter = initial_adapter(student.spec, 3)
    core = np.random.default_rng(0).normal(size=student.spec.size(Block.CORE))
    return unflatten(adapter, Block.CORE, core)


def test_an_adapter_with_a_core_goes_in_and_comes_out_unchanged(cored: Student) -> None:
    cored.load(with_core(cored))
    assert cored.read() == with_core(cored)


def test_the_initial_core_changes_nothing_and_another_one_changes_w_by_b_m_a(
    cored: Student, base_folder: Path
) -> None:
    base, _ = load_base(str(base_folder))
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        before = base(input_ids=ids).logits
        cored.load(initial_adapter(cored.spec, 0))
        assert torch.allclose(cored.model(input_ids=ids).logits, before, atol=1e-6)
        adapter = with_core(cored)
        cored.load(adapter)
        for module in cored.spec.modules:
            a, b, core = (torch.tensor(adapter.tensors[tensor_key(module, block)]) for block in Block)
            base.get_submodule(module.name).weight += 8.0 / 4 * b @ core @ a
        after = base(input_ids=ids).logits
        assert torch.allclose(cored.model(input_ids=ids).logits, after, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-1)


def test_only_the_core_is_trained_in_the_adapters_order(cored: Student) -> None:
    cored.load(with_core(cored))
    factors = cored.train_block(Block.CORE)
    assert sum(factor.numel() for factor in factors) == cored.spec.size(Block.CORE) == 4 * 4 * 4
    trained = {name for name, p in cored.model.named_parameters() if p.requires_grad}
    assert len(trained) == len(factors)
    assert all(name.endswith(".lora_A.default.core") for name in trained)
    flat = torch.cat([factor.detach().flatten() for factor in factors]).numpy()
    assert np.array_equal(flat, flatten(cored.read(), Block.CORE))


@pytest.mark.parametrize("alone", [False, True])
def test_training_without_privacy_moves_the_core_alone_and_lowers_the_loss(
    cored: Student, alone: bool
) -> None:
    plan = TrainingPlan(
        rounds=1, local_steps=8, patients_per_step=2, learning_rate=0.05, max_prompt_tokens=64
    )
    patients = [
        PatientPairs(patient_id=str(i), prompt=(1, 40 + i), branches=((50 + i, 2), (60, 2)), pairs=((0, 1),))
        for i in range(3)
    ]
    adapter = initial_adapter(cored.spec, 0)
    for _ in range(2):
        if alone:
            update = fit_alone(
                cored, adapter, patients, plan, patients_per_step=2, learning_rate=0.05, seed=0
            )
        else:
            block = cored.spec.active_block(1)
            update = local_fit(cored, adapter, block, patients, plan, round_id=1, seed=0)
        for block in (Block.A, Block.B):
            assert np.array_equal(flatten(update.adapter, block), flatten(adapter, block))
        assert (flatten(update.adapter, Block.CORE) != flatten(adapter, Block.CORE)).all()
        before, adapter = adapter, update.adapter
    losses = []
    for some in (before, adapter, initial_adapter(cored.spec, 0)):
        cored.load(some)
        with torch.no_grad():
            losses.append(float(orpo_losses(cored.model, patients, orpo_lambda=0.1, pad_id=0).loss.sum()))
    assert losses[1] < losses[0] < losses[2]


def test_a_saved_student_with_a_core_gives_the_same_answers(
    cored: Student, base_folder: Path, answers: AnswerList, tmp_path: Path
) -> None:
    base_digest, tokenizer_digest = digest_base(base_folder)
    card = StudentCard(
        track="rare_disease",
        base_model=str(base_folder),
        base_model_digest=base_digest,
        tokenizer_digest=tokenizer_digest,
        max_prompt_tokens=64,
        chosen_length=1,
        plan_digest="1" * 64,
        method="federated_orpo",
        privacy="none",
        aggregation="secagg-v1",
    )
    notes = ["seizure and short stature", "cleft palate", "broad thumb"]
    found = {}
    for name, adapter in (("first", initial_adapter(cored.spec, 3)), ("trained", with_core(cored))):
        cored.load(adapter)
        here = LoadedStudent(cored, answers, card).rank(notes, 5)
        save_student(tmp_path / name, adapter, answers, card)
        loaded = load_student(tmp_path / name)
        there = loaded.rank(notes, 5)
        assert loaded.student.spec.mode is AdapterMode.ROLORA
        assert [[one[:2] for one in case] for case in there] == [[one[:2] for one in case] for case in here]
        for got, right in zip(there, here, strict=True):
            np.testing.assert_allclose([one[2] for one in got], [one[2] for one in right], rtol=1e-3)
        found[name] = here
    assert found["first"] != found["trained"]


def test_an_adapter_of_another_shape_is_refused(student: Student) -> None:
    other = initial_adapter(type(student.spec)(**vars(student.spec) | {"rank": 2}), 0)
    with pytest.raises(ValueError, match="Expected an adapter of this student's specification"):
        student.load(other)


def test_a_target_that_is_no_linear_layer_is_refused(base_folder: Path) -> None:
    base, _ = load_base(str(base_folder))
    plan = AdapterPlan(
        mode=AdapterMode.FFA, rank=2, alpha=2.0, targets=("q_proj", "nowhere"), factors_digest="0" * 64
    )
    with pytest.raises(ValueError, match=r"not so: \['nowhere'\]"):
        adapter_spec(base, plan)


def test_a_long_prompt_loses_its_middle_and_keeps_its_end(student: Student) -> None:
    text = "short stature " * 80
    whole = student.prompt_ids(text, 10_000)
    cut = student.prompt_ids(text, 60)
    assert len(cut) == 60
    assert cut[: 60 - TAIL_TOKENS] == whole[: 60 - TAIL_TOKENS]
    assert cut[-TAIL_TOKENS:] == whole[-TAIL_TOKENS:]


def test_a_chat_template_is_used_where_there_is_one(student: Student) -> None:
    student.tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert student.tokenizer.decode(student.prompt_ids("seizure", 100)) == "<s>seizure>"


def test_answers_end_and_are_told_apart(student: Student, answers: AnswerList) -> None:
    assert student.answer_ids("Epsilon")[-1] == student.end_id
    for lists in (False, True):
        student.answer_trie(RARE_DISEASE.header, answers, lists=lists)


def test_the_digest_changes_with_weights_and_tokenizer(base_folder: Path, tmp_path: Path) -> None:
    before = digest_base(base_folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in base_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert digest_base(copy) == before
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert digest_base(copy)[0] != before[0]
    assert digest_base(copy)[1] == before[1]
    (copy / "tokenizer.json").write_text("{}")
    assert digest_base(copy)[1] != before[1]


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected config\.json, weights"):
        digest_base(tmp_path)
