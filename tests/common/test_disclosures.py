from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import pytest

from client.session import SiteSession
from client.teacher.fit import TeacherRecipe
from common import messages
from common.calibration_plan import CalibrationPlan
from common.disclosures import CHOSEN, SENT, Protection, not_covered
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.message_fields import BUNDLE
from common.messages import (
    EvaluateTask,
    HeadRequest,
    KeysRequest,
    ListRequest,
    PrepareTask,
    RosterOffer,
    TrainTask,
    UnmaskRequest,
)
from common.plan import TrackPlan
from common.privacy_plan import PrivacyPlan, TeacherPrivacy, TrackPrivacy
from common.secagg.keys import SignedKeys
from tests.fakes import SITES, fake_sites, tiny_plan

# What a coordinator sends. All other messages are a site's.
REQUESTS = {
    PrepareTask,
    HeadRequest,
    TrainTask,
    EvaluateTask,
    KeysRequest,
    RosterOffer,
    ListRequest,
    UnmaskRequest,
}
BESIDE_THE_MESSAGES = {"time to answer"}


def test_every_field_that_a_site_sends_has_its_line_and_there_is_no_line_too_many() -> None:
    sent = {kind for number, kind in messages.KINDS.items() if number != BUNDLE} - REQUESTS
    named = {f"{kind.__name__}.{one.name}" for kind in sent for one in fields(kind)}
    # One field, three contents: the student's sum, counts of the test patients, and of those set aside.
    named -= {"MaskedInput.words"}
    named |= {f"MaskedInput.words ({what})" for what in ("training", "evaluation", "calibration")}
    assert set(SENT) == named | BESIDE_THE_MESSAGES


def test_the_requests_are_what_a_site_answers() -> None:
    session: SiteSession = fake_sites(tiny_plan())[SITES[0]]
    assert set(session._handlers) == REQUESTS


def test_what_is_inside_a_sites_keys_tells_nothing_of_patients() -> None:
    # Keys.keys is a value of fields of its own.
    names = {one.name for one in fields(SignedKeys)}
    assert names == {"site_id", "mask_key", "envelope_key", "seed_hash", "signature"}
    assert SENT["Keys.keys"].protection == "nothing of patients"


def test_only_noised_sums_and_what_is_not_covered_may_tell_of_patients() -> None:
    telling = {name for name, found in SENT.items() if found.protection != "nothing of patients"}
    assert telling == {
        "MaskedInput.words (training)",
        "MaskedInput.words (evaluation)",
        "MaskedInput.words (calibration)",
        "Refusal.reason",
        "Refusal.cause",
        "time to answer",
    }
    assert {name for name in telling if SENT[name].protection == "student"} == {
        "MaskedInput.words (training)"
    }


# What decides each number on the way from patients to a release: the plan, or a line of CHOSEN. A new field
# has no place here until somebody has said which.
DECIDED: Mapping[type[Any], Mapping[str, str]] = {
    TeacherPlan: {
        "privacy": "teacher: weights",
        "folds": "teacher: folds",
        "modality_dropout": "teacher: hyper-parameters",
        "dp": "teacher: hyper-parameters",
    },
    TeacherPrivacy: {
        "noise_multiplier": "teacher: weights",
        "sampling_rate": "teacher: weights",
        "clip_norm": "teacher: hyper-parameters",
        "steps": "teacher: early stopping",
        "learning_rate": "teacher: hyper-parameters",
    },
    TeacherRecipe: {
        "hidden": "teacher: hyper-parameters",
        "learning_rate": "teacher: hyper-parameters",
        "weight_decay": "teacher: hyper-parameters",
        "batch_size": "teacher: hyper-parameters",
        "most_epochs": "teacher: early stopping",
        "patience": "teacher: early stopping",
        "validation_share": "teacher: early stopping",
        "input_dropout": "teacher: hyper-parameters",
    },
    PreferencePlan: {
        "chosen_length": "student: hyper-parameters",
        "rejected_length": "student: hyper-parameters",
        "pairs_per_patient": "student: hyper-parameters",
        "label_policy": "pairs: which answers are rejected",
        "rejected_from": "pairs: which answers are rejected",
        "reject_from": "pairs: which answers a site has seen",
        "middle": "pairs: which answers are rejected",
    },
    TrainingPlan: {
        "rounds": "student: which round is released",
        "local_steps": "student: hyper-parameters",
        "patients_per_step": "student: drawn batches",
        "learning_rate": "student: hyper-parameters",
        "local_optimizer": "student: hyper-parameters",
        "loss": "student: hyper-parameters",
        "dpo_beta": "student: hyper-parameters",
        "orpo_lambda": "student: hyper-parameters",
        "nll_on": "student: hyper-parameters",
        "max_prompt_tokens": "student: hyper-parameters",
        "images_per_step": "student: drawn batches",
        "readings": "student: readings of a note",
        "dropped": "student: readings of a note",
        "with_exclusions": "student: readings of a note",
        "weighting": "patients: how many there are",
    },
    ServerOptimizerPlan: dict.fromkeys(
        ("name", "learning_rate", "schedule", "momentum", "beta1", "beta2", "epsilon"),
        "student: hyper-parameters",
    ),
    CalibrationPlan: {
        "method": "student: temperature",
        "share": "patients: who is set aside",
        "rounds": "student: which round is released",
        "refresh": "student: bins",
        "weight": "student: bins",
        "candidates": "student: bins",
        "smoothing": "student: hyper-parameters",
        "score": "student: hyper-parameters",
        "learning_rate": "student: hyper-parameters",
    },
    AdapterPlan: dict.fromkeys(
        ("mode", "rank", "alpha", "targets", "side", "factors_digest"), "student: hyper-parameters"
    ),
    TrackPrivacy: {
        "clip_norm": "student: hyper-parameters",
        "noise_multiplier": "student: hyper-parameters",
        "sampling_rate": "student: drawn batches",
        "population": "patients: how many there are",
        "dimension": "student: hyper-parameters",
    },
    PrivacyPlan: {
        **dict.fromkeys(
            ("mode", "epsilon", "delta", "colluders", "late_losses", "spare_steps", "noise"),
            "student: hyper-parameters",
        ),
        "stop": "student: which round is released",
    },
}
# Lines that no number decides.
WITHOUT_A_NUMBER = {
    "teacher: class weights",
    "teacher: standardization",
    "patients: who may take part",
}


@pytest.mark.parametrize("kind", DECIDED, ids=lambda kind: kind.__name__)
def test_whatever_decides_over_patients_data_has_been_looked_at(kind: type[Any]) -> None:
    assert set(DECIDED[kind]) == {one.name for one in fields(kind)}


def test_every_choice_has_its_line_and_there_is_no_line_too_many() -> None:
    used = {line for lines in DECIDED.values() for line in lines.values()}
    assert set(CHOSEN) == used | WITHOUT_A_NUMBER
    assert not used & WITHOUT_A_NUMBER


def test_every_part_of_a_tracks_plan_is_among_them() -> None:
    parts = {TrackPlan.__dataclass_fields__[one.name].type for one in fields(TrackPlan)}
    named = {kind.__name__ for kind in DECIDED}
    # The others are names and digests: what answers, base, tokenizer and sites there are is public.
    public = {"str", "tuple[SiteId, ...]"}
    assert {part.split(" |")[0] for part in parts if isinstance(part, str)} - public <= named


def test_what_is_not_covered_is_all_of_it_and_cannot_be_nothing() -> None:
    expected = [
        found.note for found in (*SENT.values(), *CHOSEN.values()) if found.protection == "not covered"
    ]
    assert list(not_covered()) == expected
    assert len(expected) == 8
    for words in (
        "counts of right answers",
        "set aside for calibration",
        "one number that all confidences",
        "how long a site works",
        "number of patients",
        "declines",
        "looking at",
    ):
        assert any(words in note for note in not_covered()), words


def test_nothing_is_named_twice_on_a_report() -> None:
    assert len(set(not_covered())) == len(not_covered())


JARGON = (
    "SENT",
    "epsilon",
    "RDP",
    "PLD",
    "tensor",
    "ORPO",
    "adapter",
    "digest",
    "secagg",
    "DP-SGD",
    "_",
    "`",
)


@pytest.mark.parametrize("note", not_covered())
def test_what_a_report_says_is_said_without_jargon(note: str) -> None:
    assert not [word for word in JARGON if word in note]
    assert 20 <= len(note) <= 120
    assert note == note.strip().rstrip(".")


def test_every_line_has_a_known_protection_and_a_note() -> None:
    for name, found in {**SENT, **CHOSEN}.items():
        assert found.protection in get_args(Protection), name
        assert found.note, name
