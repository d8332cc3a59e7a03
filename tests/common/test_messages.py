import dataclasses
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from common.ids import RunId, SiteId
from common.message_fields import MAX_REASON, MAX_SITES
from common.messages import (
    KINDS,
    Bundle,
    EvaluateTask,
    Keys,
    KeysRequest,
    Message,
    Ready,
    Refusal,
    TrainTask,
    bundle,
    refusal,
    sum_topic,
)
from common.secagg.envelopes import ENVELOPE_SIZE
from common.secagg.sharing import SHARE_SIZE
from tests.fakes import tiny_adapter
from tests.messages import A, B, example, keys_of, train_task

MANY_SITES = tuple(f"site-{number}" for number in range(MAX_SITES + 1))


def by_site_refused(size: int) -> list[object]:
    good = bytes(size)
    return [
        {A: good[1:]},
        {A: good + b"\0"},
        {A: bytearray(good)},
        {A: good.hex()},
        {"Site A": good},
        {3: good},
        [(A, good)],
        None,
        dict.fromkeys(MANY_SITES, good),
    ]


SITES_REFUSED: list[object] = [[A], A, (A, "Site B"), (3,), None, MANY_SITES]
# What a field of this name may not hold, in whichever message it stands.
REFUSED: dict[str, list[object]] = {
    "run_id": ["", "Run 1", "-a", "a" * 41, 3, None],
    "site_id": ["", "../site", "a" * 41, 3, None],
    "round_id": [-1, 2**31, 1.0, "1", True, None],
    "sum_id": [0, -1, 2**31, 1.0, "1", True, None],
    "track": ["", "Rare", "1a", "a b", "a" * 41, 3, None],
    "plan_digest": ["0" * 63, "0" * 65, "A" * 64, b"0" * 64, 0, None],
    "adapter": [None, {}, "adapter"],
    "words": [
        np.zeros(0, dtype=np.uint32),
        np.zeros(3, dtype=np.int64),
        np.zeros(3, dtype=np.float32),
        np.zeros((1, 3), dtype=np.uint32),
        np.uint32(3),
        [1, 2],
        None,
    ],
    "reason": ["", "two\nlines", "\x00", "x" * (MAX_REASON + 1), b"no", None],
    "members": SITES_REFUSED,
    "survivors": SITES_REFUSED,
    "dropouts": SITES_REFUSED,
    "keys": [None, {}, (keys_of(A),)],
    "roster": [[keys_of(A)], (None,), None, tuple(keys_of(site) for site in MANY_SITES)],
    "envelopes": by_site_refused(ENVELOPE_SIZE),
    "signatures": by_site_refused(64),
    "seed_shares": by_site_refused(SHARE_SIZE),
    "mask_key_shares": by_site_refused(SHARE_SIZE),
    "transcript": [bytes(31), bytes(33), bytearray(32), "0" * 32, None],
    "head": ["ab", "AB" * 32, b"", None],
    "countersignature": [bytes(63), bytes(65), bytearray(64), "0" * 64, None],
    "cause": ["", "why", b"failed", None],
    "signature": [bytes(63), bytes(65), bytearray(64), "0" * 64, None],
    "part": ["", "train", b"test", None],
    "temperature": [0.0, -1.0, float("inf"), float("nan"), 1, "1", True, None],
    "bin_accuracy": [
        (),
        (0.5,) * 9,
        (0.5,) * 11,
        [0.5] * 10,
        (1.5,) * 10,
        (-0.1,) * 10,
        (1,) * 10,
        (float("nan"),) * 10,
        "none",
    ],
    "parts": [
        (),
        (example(Ready),),
        (example(Ready),) * 7,
        [example(Ready)] * 2,
        (example(Ready), "ready"),
        (example(Ready), None),
        (example(Ready), example(Bundle)),
        None,
    ],
}
# The largest and smallest that it may.
ACCEPTED: dict[str, list[object]] = {
    "run_id": ["a", "0", "a" * 40],
    "site_id": ["a" * 40],
    "round_id": [1, 2**31 - 1],
    "sum_id": [1, 2**31 - 1],
    "track": ["t", "a" * 40],
    "plan_digest": ["f" * 64],
    "words": [np.zeros(1, dtype=np.uint32)],
    "reason": ["x", "x" * MAX_REASON],
    "members": [(), MANY_SITES[1:]],
    "survivors": [(), MANY_SITES[1:]],
    "dropouts": [(), MANY_SITES[1:]],
    "roster": [(), tuple(keys_of(site) for site in MANY_SITES[1:])],
    "envelopes": [{}, dict.fromkeys(MANY_SITES[1:], bytes(ENVELOPE_SIZE))],
    "signatures": [{}],
    "seed_shares": [{}],
    "mask_key_shares": [{}],
    "cause": ["failed", "budget", "ledger"],
    "part": ["test", "calibration"],
    "temperature": [5e-324, 1.7e308],
    "bin_accuracy": [None, (None,) * 10, (0.0, 1.0, *(None,) * 8)],
    "parts": [(example(Ready),) * 2, (example(Ready), example(Keys)) * 2],
}
BY_KIND = [(kind, field.name) for kind in KINDS.values() for field in fields(kind)]


def test_every_kind_has_a_number_of_its_own_and_that_of_a_clear_contribution_is_not_given_again() -> None:
    assert [number for number, kind in KINDS.items() if kind.kind != number] == []
    assert len(set(KINDS.values())) == len(KINDS) == 17
    assert 4 not in KINDS


def test_every_field_of_every_message_is_tested() -> None:
    assert {field for _, field in BY_KIND} == set(REFUSED)


@pytest.mark.parametrize(("kind", "field"), BY_KIND)
def test_a_message_refuses_a_field_of_its_maker(kind: type[Message], field: str) -> None:
    example(kind)
    for value in REFUSED[field]:
        with pytest.raises(ValueError, match=f"^{field}: expected "):
            example(kind, **{field: value})


@pytest.mark.parametrize(("kind", "field"), BY_KIND)
def test_a_message_takes_the_largest_and_the_smallest_that_it_may(kind: type[Message], field: str) -> None:
    for value in ACCEPTED.get(field, []):
        assert getattr(example(kind, **{field: value}), field) is value


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_message_cannot_be_changed_and_lacks_no_field(kind: type[Message]) -> None:
    made = example(kind)
    for field in fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, field.name, None)
        values = {other.name: getattr(made, other.name) for other in fields(kind) if other is not field}
        with pytest.raises(TypeError, match=field.name):
            kind(**values)


def test_a_refused_value_is_shown_only_where_it_is_text_or_a_number() -> None:
    with pytest.raises(ValueError, match=r"got bytes$"):
        example(Keys, keys=b"private")
    with pytest.raises(ValueError, match=r"got dict$"):
        example(TrainTask, envelopes={A: b"private"})


def test_round_zero_is_for_evaluation_only() -> None:
    assert example(EvaluateTask, round_id=0).round_id == 0
    with pytest.raises(ValueError, match="round_id: expected at least 1, the first round, got 0"):
        example(TrainTask, round_id=0)


def test_a_refusal_is_one_printable_line() -> None:
    made = refusal(RunId("r"), SiteId("s"), "no\n patients\x00 " + "x" * 1000)
    assert made.reason.startswith("no patients? xxx")
    assert len(made.reason) <= MAX_REASON
    assert refusal(RunId("r"), SiteId("s"), " ").reason == "no reason given"
    with pytest.raises(ValueError, match="printable line"):
        Refusal(run_id=RunId("r"), site_id=SiteId("s"), reason="two\nlines", cause="failed")


def test_messages_of_one_exchange_are_a_bundle_and_a_single_one_stays_as_it_is() -> None:
    keys, request = example(Keys), example(KeysRequest)
    assert bundle((keys,)) is keys
    both = bundle((keys, request))
    assert isinstance(both, Bundle)
    assert both.parts == (keys, request)
    assert both.run_id == keys.run_id
    with pytest.raises(ValueError, match="parts: expected 2 to 6 messages"):
        bundle((request,) * 7)


TOPIC_CHANGES: list[dict[str, Any]] = [
    {"run_id": "run-2"},
    {"track": "tissue_type"},
    {"plan_digest": "0" * 64},
    {"round_id": 2},
]


@pytest.mark.parametrize("changes", TOPIC_CHANGES)
def test_other_work_is_another_topic(changes: dict[str, Any]) -> None:
    task = train_task()
    assert sum_topic(replace(task, **changes), "a" * 64) != sum_topic(task, "a" * 64)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (EvaluateTask, {"part": "test"}),
        (EvaluateTask, {"temperature": 2.0}),
        (TrainTask, {"bin_accuracy": None}),
        (TrainTask, {"bin_accuracy": (None,) * 10}),
    ],
)
def test_what_else_decides_on_an_answer_is_in_its_topic(kind: type[Message], changes: dict[str, Any]) -> None:
    task = example(kind)
    assert sum_topic(replace(task, **changes), "a" * 64) != sum_topic(task, "a" * 64)


def test_a_topic_names_the_kind_of_work_and_the_adapter() -> None:
    train, evaluate = train_task(round_id=3), example(EvaluateTask, round_id=3)
    topics = [sum_topic(train, "a" * 64), sum_topic(evaluate, "a" * 64), sum_topic(train, "b" * 64)]
    assert len(set(topics)) == 3
    assert {len(topic) for topic in topics} == {32}


def test_a_topic_is_the_same_for_all_sites_of_a_sum() -> None:
    task = train_task()
    for changes in ({"envelopes": {B: bytes(ENVELOPE_SIZE)}}, {"adapter": tiny_adapter()}):
        assert sum_topic(replace(task, **changes), "a" * 64) == sum_topic(task, "a" * 64)
