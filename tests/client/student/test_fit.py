from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.preferences.answers import write_answers, write_prompt
from client.preferences.pairs import PreferencePair
from client.student.batches import MICRO_BATCH_TOKENS, draw_batches, micro_batches
from client.student.branches import PatientPairs
from client.student.fit import encode_pairs, fit_alone, local_fit
from client.student.model import Student
from common.adapter import Block, flatten, initial_adapter
from common.learning_plan import TrainingPlan
from common.tracks import RARE_DISEASE

PLAN = TrainingPlan(
    rounds=4, local_steps=3, patients_per_step=2, learning_rate=1e-2, max_prompt_tokens=64, orpo_lambda=0.1
)


def pair(patient: str, chosen: str, rejected: str, note: str = "seizure") -> PreferencePair:
    return PreferencePair(
        patient_id=patient,
        prompt=write_prompt(RARE_DISEASE, note),
        chosen=write_answers(RARE_DISEASE.header, [chosen]),
        rejected=write_answers(RARE_DISEASE.header, [rejected]),
        margin=1.0,
    )


PAIRS = [
    pair("p1", "Epsilon", "Beta disease"),
    pair("p1", "Epsilon", "Alpha syndrome"),
    pair("p2", "Beta disease", "Epsilon", "short stature"),
    pair("p3", "Alpha syndrome", "Epsilon", "broad thumb"),
]


def patient(name: str, length: int = 3) -> PatientPairs:
    return PatientPairs(patient_id=name, prompt=(1,) * length, branches=((50, 2), (51, 2)), pairs=((0, 1),))


def test_pairs_of_a_patient_share_prompt_and_branches(student: Student) -> None:
    first, *others = encode_pairs(student, PAIRS, max_prompt_tokens=64)
    assert [entry.patient_id for entry in (first, *others)] == ["p1", "p2", "p3"]
    assert len(first.branches) == 3
    assert first.pairs == ((0, 1), (0, 2))


def test_imitation_leaves_the_rejected_answers_out(student: Student) -> None:
    first, *_ = encode_pairs(student, PAIRS, max_prompt_tokens=64, imitate=True)
    assert len(first.branches) == 1
    assert first.pairs == ((0, None),)


def test_a_patient_with_two_prompts_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="Expected one prompt"):
        encode_pairs(
            student, [PAIRS[0], pair("p1", "Epsilon", "Beta disease", "other")], max_prompt_tokens=64
        )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("block", [Block.A, Block.B])
def test_a_local_fit_moves_its_block_alone_and_lowers_the_loss(
    student: Student, block: Block, optimizer: str
) -> None:
    plan = replace(
        PLAN, local_optimizer=optimizer, local_steps=12, learning_rate=0.02 if optimizer == "adamw" else 0.5
    )
    patients = encode_pairs(student, PAIRS, max_prompt_tokens=64)
    # A block trained against a zero partner has no gradient: start where both are filled.
    start = fit_alone(
        student,
        initial_adapter(student.spec, 0),
        patients,
        replace(PLAN, rounds=1),
        patients_per_step=3,
        learning_rate=1e-2,
        seed=0,
    ).adapter
    update = local_fit(student, start, block, patients, plan, round_id=1, seed=5)
    other = Block.A if block is Block.B else Block.B
    assert (flatten(update.adapter, other) == flatten(start, other)).all()
    assert (flatten(update.adapter, block) != flatten(start, block)).any()
    again = local_fit(student, update.adapter, block, patients, plan, round_id=1, seed=5)
    assert again.loss < update.loss
    assert (update.patients, update.steps) == (24, 12)


def test_the_same_round_gives_the_same_update_whatever_came_before(student: Student) -> None:
    patients = encode_pairs(student, PAIRS, max_prompt_tokens=64)
    adapter = initial_adapter(student.spec, 0)
    first = local_fit(student, adapter, Block.B, patients, PLAN, round_id=2, seed=5)
    local_fit(student, first.adapter, Block.A, patients, PLAN, round_id=3, seed=6)
    assert local_fit(student, adapter, Block.B, patients, PLAN, round_id=2, seed=5).adapter == first.adapter


def test_a_student_alone_trains_both_blocks(student: Student) -> None:
    patients = encode_pairs(student, PAIRS, max_prompt_tokens=64)
    adapter = initial_adapter(student.spec, 0)
    steps = []
    update = fit_alone(
        student,
        adapter,
        patients,
        PLAN,
        patients_per_step=3,
        learning_rate=1e-2,
        seed=0,
        on_progress=steps.append,
    )
    assert len(steps) == update.steps == PLAN.rounds * PLAN.local_steps
    for block in (Block.A, Block.B):
        assert (flatten(update.adapter, block) != flatten(adapter, block)).any()


@given(count=st.integers(1, 9), size=st.integers(1, 12), seed=st.integers(0, 3), first=st.integers(0, 20))
@settings(deadline=None)
def test_every_pass_takes_each_patient_once_and_steps_can_be_entered_anywhere(
    count: int, size: int, seed: int, first: int
) -> None:
    everyone = [patient(str(i)) for i in range(count)]
    taken = min(size, count)
    whole = list(islice(draw_batches(everyone, size, seed=seed, first_step=0), first + 3 * count))
    flat = [entry.patient_id for batch in whole for (entry,) in batch]
    for number in range(len(flat) // count):
        assert len(set(flat[number * count : (number + 1) * count])) == count
    assert {len(batch) for batch in whole} == {taken}
    assert (
        list(islice(draw_batches(everyone, size, seed=seed, first_step=first), 3)) == whole[first : first + 3]
    )


def test_patients_with_one_entry_are_drawn_in_the_order_of_a_seeded_permutation() -> None:
    everyone = [patient(str(i)) for i in range(7)]
    batch = next(draw_batches(everyone, 7, seed=3, first_step=0))
    assert batch == [[everyone[i]] for i in np.random.default_rng([3, 0]).permutation(7)]


def test_nobody_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected at least one patient"):
        next(draw_batches([], 2, seed=0, first_step=0))


def test_a_step_looks_at_some_of_a_patients_images_drawn_anew_each_time() -> None:
    each = [patient(f"p{number % 3}", length=number + 1) for number in range(12)]
    whole = list(islice(draw_batches(each, 2, seed=5, first_step=0), 30))
    some = list(islice(draw_batches(each, 2, seed=5, first_step=0, images=2), 30))
    assert [[own[0].patient_id for own in batch] for batch in whole] == [
        [own[0].patient_id for own in batch] for batch in some
    ]
    assert {len(own) for batch in whole for own in batch} == {4}
    assert {len(own) for batch in some for own in batch} == {2}
    # Over the passes every image gets its turn.
    assert {id(entry) for batch in some for own in batch for entry in own} == {id(entry) for entry in each}
    again = list(islice(draw_batches(each, 2, seed=5, first_step=7, images=2), 5))
    assert again == some[7:12]


@given(st.lists(st.integers(1, 2 * MICRO_BATCH_TOKENS), min_size=1, max_size=20))
@settings(deadline=None)
def test_every_patient_of_the_batch_is_in_one_micro_batch_within_the_bound(lengths: list[int]) -> None:
    batch = [patient(str(i), length) for i, length in enumerate(lengths)]
    parts = list(micro_batches(batch))
    assert sorted(entry.patient_id for part in parts for entry in part) == sorted(
        entry.patient_id for entry in batch
    )
    for part in parts:
        longest = max(len(entry.prompt) for entry in part) + 4
        assert len(part) == 1 or len(part) * longest <= MICRO_BATCH_TOKENS


def test_micro_batches_give_the_gradient_of_the_whole_batch(
    student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = encode_pairs(student, PAIRS, max_prompt_tokens=64)
    adapter = initial_adapter(student.spec, 0)
    plan = replace(PLAN, local_steps=1, patients_per_step=3, local_optimizer="sgd")
    whole = local_fit(student, adapter, Block.B, patients, plan, round_id=1, seed=0)
    monkeypatch.setattr("client.student.batches.MICRO_BATCH_TOKENS", 1)
    parts = local_fit(student, adapter, Block.B, patients, plan, round_id=1, seed=0)
    difference = torch.tensor(flatten(whole.adapter, Block.B) - flatten(parts.adapter, Block.B))
    assert float(difference.abs().max()) < 1e-7
    assert whole.loss == pytest.approx(parts.loss, abs=1e-5)
