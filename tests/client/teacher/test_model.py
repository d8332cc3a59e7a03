"""The trunk that fuses what the eyes saw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.teacher.model import FusionTrunk, class_weights, hide_eyes
from common.tracks import Eye

WIDTHS = {Eye.PHOTO: 5, Eye.NOTE: 7}
ANSWERS = {"rare_disease": 4, "tissue_type": 2}


def trunk(seed: int = 0) -> FusionTrunk:
    return FusionTrunk(WIDTHS, ANSWERS, 8, torch.Generator().manual_seed(seed))


def patients(count: int, seed: int = 1) -> tuple[dict[Eye, torch.Tensor], dict[Eye, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    vectors = {eye: torch.randn(count, width, generator=generator) for eye, width in WIDTHS.items()}
    present = {eye: torch.rand(count, generator=generator) < 0.6 for eye in WIDTHS}
    return vectors, present


def test_there_is_one_head_a_track() -> None:
    vectors, present = patients(3)
    logits = trunk()(vectors, present)
    assert {track: tuple(each.shape) for track, each in logits.items()} == {
        "rare_disease": (3, 4),
        "tissue_type": (3, 2),
    }


def test_the_vector_of_an_eye_that_is_not_present_has_no_influence() -> None:
    network = trunk().eval()
    vectors, present = patients(6)
    other = {
        eye: torch.where(present[eye][:, None], each, torch.full_like(each, 1e6))
        for eye, each in vectors.items()
    }
    assert torch.equal(network(vectors, present)["rare_disease"], network(other, present)["rare_disease"])
    everything = {eye: torch.ones_like(each) for eye, each in present.items()}
    assert not torch.equal(
        network(vectors, everything)["rare_disease"], network(other, everything)["rare_disease"]
    )


def test_a_missing_eye_is_not_the_same_as_a_vector_of_zeros() -> None:
    network = trunk().eval()
    zeros = {eye: torch.zeros(1, width) for eye, width in WIDTHS.items()}
    seen = {eye: torch.tensor([True]) for eye in WIDTHS}
    unseen = {**seen, Eye.PHOTO: torch.tensor([False])}
    assert not torch.allclose(network(zeros, seen)["rare_disease"], network(zeros, unseen)["rare_disease"])


def test_first_weights_come_from_the_generator_and_leave_the_global_one_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = trunk(3).state_dict(), trunk(3).state_dict(), trunk(4).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["join.weight"], other["join.weight"])


def test_eyes_are_standardized_by_those_who_bring_them() -> None:
    network = trunk()
    vectors, present = patients(50)
    vectors[Eye.PHOTO][:, 0] = 3.0
    network.standardize_by(vectors, present)
    seen = network.standardized(Eye.PHOTO, vectors[Eye.PHOTO])[present[Eye.PHOTO]]
    assert torch.allclose(seen.mean(dim=0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(seen[:, 1:].std(dim=0, correction=0), torch.ones(4), atol=1e-3)
    assert torch.isfinite(seen).all()


def test_an_eye_nobody_brings_is_left_as_it_is() -> None:
    network = trunk()
    vectors, present = patients(4)
    network.standardize_by(vectors, {**present, Eye.PHOTO: torch.zeros(4, dtype=torch.bool)})
    assert torch.equal(network.standardized(Eye.PHOTO, vectors[Eye.PHOTO]), vectors[Eye.PHOTO])


@settings(deadline=None)
@given(
    brought=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=20),
    probability=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_a_patient_who_brings_an_eye_keeps_at_least_one(
    brought: list[tuple[bool, bool, bool]], probability: float, seed: int
) -> None:
    before = torch.tensor(brought)
    present = {eye: before[:, column] for column, eye in enumerate(Eye)}
    hidden = hide_eyes(present, probability, torch.Generator().manual_seed(seed))
    after = torch.stack([hidden[eye] for eye in Eye], dim=1)
    assert not (after & ~before).any()
    assert torch.equal(after.any(dim=1), before.any(dim=1))


def test_eyes_are_hidden_as_often_as_asked_and_never_without_asking() -> None:
    present = {eye: torch.ones(20_000, dtype=torch.bool) for eye in (Eye.PHOTO, Eye.NOTE)}
    hidden = hide_eyes(present, 0.3, torch.Generator().manual_seed(0))
    # Both would be hidden in 9 % of the draws; then one of them stays, either as often as the other.
    for eye in hidden:
        assert float((~hidden[eye]).float().mean()) == pytest.approx(0.3 - 0.09 / 2, abs=0.01)
    untouched = hide_eyes(present, 0.0, torch.Generator().manual_seed(0))
    assert all(bool(each.all()) for each in untouched.values())


def test_all_answers_with_patients_count_the_same() -> None:
    labels = np.array([0, 0, 0, 2, -1, 2, 3])
    weights = class_weights(labels, 5)
    assert weights[[1, 4]].tolist() == [0, 0]
    assert (weights * [3, 1, 2, 1, 1])[[0, 2, 3]] == pytest.approx([2, 2, 2])
    assert weights[labels[labels >= 0]].mean() == pytest.approx(1)
