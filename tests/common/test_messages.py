import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.adapter import Adapter, AdapterMode, AdapterSpec, Block, ModuleShape, initial_adapter, unflatten
from common.errors import BadMessageError, UnsupportedSchemaError
from common.ids import AdapterId, RoundId, RunId, SiteId
from common.messages import (
    MAGIC,
    SCHEMA,
    Contribution,
    EvaluateTask,
    Message,
    PrepareTask,
    Ready,
    Refusal,
    TrainTask,
    TrainWords,
    from_bytes,
    from_parts,
    refusal,
    size_of,
    to_bytes,
    to_parts,
    train_fixed_point,
)
from tests.fakes import tiny_adapter, tiny_plan

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
tracks = st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
rounds = st.integers(1, 2**31 - 1)
words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20).map(
    lambda x: np.array(x, dtype=np.uint32)
)
reasons = st.text(min_size=1, max_size=100).filter(str.isprintable)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    module_names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    width = st.integers(1, 4)
    modules = tuple(
        ModuleShape(name=f"layer.{name}", in_features=draw(width), out_features=draw(width))
        for name in module_names
    )
    spec = AdapterSpec(
        mode=draw(st.sampled_from(list(AdapterMode))),
        rank=draw(st.integers(1, 3)),
        alpha=draw(st.floats(0.5, 64)),
        modules=modules,
    )
    adapter = initial_adapter(spec, draw(st.integers(0, 5)))
    vector = np.random.default_rng(0).normal(size=spec.size(Block.B))
    return unflatten(adapter, Block.B, vector)


messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(PrepareTask, run_id=names, track=tracks, plan_digest=digests),
    st.builds(Ready, run_id=names, track=tracks, site_id=names),
    st.builds(
        TrainTask, run_id=names, round_id=rounds, track=tracks, plan_digest=digests, adapter=adapters()
    ),
    st.builds(
        Contribution,
        run_id=names,
        round_id=rounds,
        track=tracks,
        site_id=names,
        adapter_id=digests,
        words=words,
    ),
    st.builds(
        EvaluateTask, run_id=names, round_id=rounds, track=tracks, plan_digest=digests, adapter=adapters()
    ),
    st.builds(Refusal, run_id=names, site_id=names, reason=reasons),
)


def seal(body: bytes) -> bytes:
    """The body with the digest that belongs to it, as an attacker would write it."""
    return body + hashlib.sha256(body).digest()


def prepare_task() -> PrepareTask:
    return PrepareTask(run_id=RunId("run-1"), track="rare_disease", plan_digest="0" * 64)


@given(messages)
def test_a_message_comes_back_from_its_bytes_and_from_its_parts(message: Message) -> None:
    data = to_bytes(message)
    back = from_bytes(data)
    assert type(back) is type(message)
    assert to_bytes(back) == data
    assert to_bytes(from_parts(*to_parts(message))) == data
    assert size_of(message) == len(data)


def test_bytes_are_laid_out_as_documented() -> None:
    head = b'{"plan_digest":"' + b"0" * 64 + b'","run_id":"run-1","track":"rare_disease"}'
    prefix = b"CSLM" + b"\x01\x00" + b"\x01" + struct.pack("<I", len(head))
    assert to_bytes(prepare_task()) == seal(prefix + head)


def test_arrays_are_little_endian_words_after_their_number() -> None:
    contribution = Contribution(
        run_id=RunId("r"),
        round_id=RoundId(1),
        track="t",
        site_id=SiteId("s"),
        adapter_id=AdapterId("0" * 64),
        words=np.array([1, 2**32 - 2], dtype=np.uint32),
    )
    assert to_bytes(contribution)[-48:-32].hex() == "02" + "00" * 7 + "01000000" + "feffffff"


@given(message=messages, data=st.data())
def test_a_byte_string_parses_to_its_message_or_raises_bad_message(
    message: Message, data: st.DataObject
) -> None:
    original = to_bytes(message)
    tampered = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(tampered) - 1))
        tampered[place] = data.draw(st.integers(0, 255))
    cut = bytes(tampered[: data.draw(st.integers(0, len(tampered)))])
    if cut == original:
        assert to_bytes(from_bytes(cut)) == original
        return
    with pytest.raises(BadMessageError):
        from_bytes(cut)


@given(message=messages, data=st.data())
def test_a_forged_digest_brings_no_other_exception(message: Message, data: st.DataObject) -> None:
    body = bytearray(to_bytes(message)[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    extra = data.draw(st.binary(max_size=8))
    cut = data.draw(st.integers(0, len(body)))
    for forged in (bytes(body), bytes(body[:cut]), bytes(body) + extra):
        try:
            back = from_bytes(seal(forged))
        except (BadMessageError, UnsupportedSchemaError):
            continue
        assert to_bytes(from_bytes(to_bytes(back))) == to_bytes(back)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_bad_message(data: bytes) -> None:
    with pytest.raises(BadMessageError):
        from_bytes(data)


@pytest.mark.parametrize(
    "head",
    [
        b"[" * 100_000,
        b"[]",
        b"1" * 5000,
        b'{"run_id":NaN}',
        b'{"run_id":"a","run_id":"a"}',
        b'{ "run_id":"a"}',
        b"\xff",
        b'{"kind":1}',
        b'{"run_id":"\\ud800"}',
        b'{"plan_digest":"' + b"0" * 64 + b'","run_id":"run-1","track":7}',
    ],
    ids=lambda head: head[:20],
)
def test_a_head_that_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(BadMessageError):
        from_bytes(seal(struct.pack("<4sHBI", MAGIC, SCHEMA, 1, len(head)) + head))


def test_a_newer_schema_is_refused_before_its_head_is_read() -> None:
    newer = seal(struct.pack("<4sHBI", MAGIC, SCHEMA + 1, 99, 3) + b"???")
    with pytest.raises(UnsupportedSchemaError, match=f"schema {SCHEMA + 1} is newer than {SCHEMA}"):
        from_bytes(newer)


def test_a_newer_schema_is_refused_in_parts_too() -> None:
    head, arrays = to_parts(prepare_task())
    with pytest.raises(UnsupportedSchemaError):
        from_parts({**head, "schema": SCHEMA + 1}, arrays)


@pytest.mark.parametrize("schema", [0, -1, "1", True, None, 1.0])
def test_a_schema_that_is_no_schema_is_a_bad_message(schema: object) -> None:
    head, arrays = to_parts(prepare_task())
    with pytest.raises(BadMessageError):
        from_parts({**head, "schema": schema}, arrays)


def test_parts_refuse_a_missing_and_an_unknown_field() -> None:
    head, arrays = to_parts(prepare_task())
    with pytest.raises(BadMessageError, match="fields"):
        from_parts({**head, "patients": 3}, arrays)
    with pytest.raises(BadMessageError, match="fields"):
        from_parts({key: value for key, value in head.items() if key != "track"}, arrays)
    with pytest.raises(BadMessageError, match="arrays"):
        from_parts(head, {"words": np.ones(1, dtype=np.uint32)})


def test_an_adapter_must_fit_its_spec() -> None:
    task = TrainTask(
        run_id=RunId("r"), round_id=RoundId(1), track="t", plan_digest="0" * 64, adapter=tiny_adapter()
    )
    head, arrays = to_parts(task)
    with pytest.raises(BadMessageError, match="expected 20 values in A, got 19"):
        from_parts(head, {**arrays, "adapter.A": arrays["adapter.A"][:-1]})
    with pytest.raises(BadMessageError, match="float32"):
        from_parts(head, {**arrays, "adapter.A": arrays["adapter.A"].astype(np.float64)})
    with pytest.raises(BadMessageError, match="finite"):
        from_parts(head, {**arrays, "adapter.A": arrays["adapter.A"] * np.float32("nan")})
    huge = {**head["adapter"], "rank": 10**12}
    with pytest.raises(BadMessageError, match="values in A"):
        from_parts({**head, "adapter": huge}, arrays)
    with pytest.raises(BadMessageError):
        from_parts({**head, "adapter": {**head["adapter"], "alpha": 10**400}}, arrays)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "Run 1"),
        ("run_id", 3),
        ("site_id", "../site"),
        ("round_id", -1),
        ("round_id", True),
        ("round_id", 2**31),
        ("track", "Rare"),
        ("adapter_id", "0" * 63),
        ("words", np.zeros(0, dtype=np.uint32)),
        ("words", np.zeros(3, dtype=np.int64)),
        ("words", np.zeros((1, 3), dtype=np.uint32)),
    ],
)
def test_a_message_refuses_a_field_of_its_maker(field: str, value: object) -> None:
    good = {
        "run_id": "r",
        "round_id": 1,
        "track": "t",
        "site_id": "s",
        "adapter_id": "0" * 64,
        "words": np.ones(1, dtype=np.uint32),
    }
    Contribution(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=field):
        Contribution(**{**good, field: value})  # type: ignore[arg-type]


def test_round_zero_is_for_evaluation_only() -> None:
    values = {"run_id": "r", "round_id": 0, "track": "t", "plan_digest": "0" * 64, "adapter": tiny_adapter()}
    EvaluateTask(**values)
    with pytest.raises(ValueError, match="at least 1, the first round"):
        TrainTask(**values)


def test_a_refusal_is_one_printable_line() -> None:
    made = refusal(RunId("r"), SiteId("s"), "no\n patients\x00 " + "x" * 1000)
    assert made.reason.startswith("no patients? xxx")
    assert len(made.reason) <= 160
    assert from_bytes(to_bytes(made)) == made
    assert refusal(RunId("r"), SiteId("s"), " ").reason == "no reason given"
    with pytest.raises(ValueError, match="printable line"):
        Refusal(run_id=RunId("r"), site_id=SiteId("s"), reason="two\nlines")


@given(words.filter(lambda x: len(x) >= 6))
def test_train_words_split_and_join(vector: np.ndarray) -> None:
    parts = TrainWords.split(vector)
    assert TrainWords.length(len(parts.delta)) == len(vector)
    assert (parts.join() == vector).all()


def test_train_words_refuse_what_is_too_short_or_of_another_shape() -> None:
    with pytest.raises(ValueError, match="at least 6 words, got 5"):
        TrainWords.split(np.zeros(5, dtype=np.uint32))
    one = np.zeros(1, dtype=np.uint32)
    with pytest.raises(ValueError, match="shapes"):
        TrainWords(delta=one, weight=one, counts=one)


def test_the_fixed_point_of_a_plan_holds_a_weight_of_one_from_every_site() -> None:
    plan = tiny_plan()
    fixed_point = train_fixed_point(plan)
    total = np.zeros(1, dtype=np.uint32)
    for _ in plan.sites:
        total += fixed_point.encode(np.array([1.0]))
    assert fixed_point.decode(total)[0] == pytest.approx(len(plan.sites), abs=1e-6)
