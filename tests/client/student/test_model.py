from pathlib import Path

import numpy as np
import pytest
import torch

from client.student.model import TAIL_TOKENS, Student, adapter_spec, digest_base, load_base
from common.adapter import AdapterMode, Block, flatten, initial_adapter, unflatten
from common.plan import AdapterPlan
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


@pytest.mark.parametrize("block", list(Block))
def test_only_the_active_block_is_trained_in_the_adapters_order(student: Student, block: Block) -> None:
    student.load(initial_adapter(student.spec, 1))
    factors = student.train_block(block)
    assert sum(factor.numel() for factor in factors) == student.spec.size(block)
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(f".lora_{block.value}." in name for name in trained)
    flat = torch.cat([factor.detach().flatten() for factor in factors]).numpy()
    assert np.array_equal(flat, flatten(student.read(), block))


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
