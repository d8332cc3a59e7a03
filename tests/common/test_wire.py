import gc
import hashlib
import itertools
import string
import struct
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadMessageError, FederationError, UnsupportedSchemaError
from common.message_fields import MAX_PARTS
from common.messages import (
    KINDS,
    Bundle,
    EvaluateTask,
    KeysRequest,
    MaskedInput,
    Message,
    PrepareTask,
    RosterOffer,
    SealedShares,
    TrainTask,
)
from common.wire import (
    DECODING_BYTES,
    MAGIC,
    MAX_HEAD,
    SCHEMA,
    Flattened,
    from_bytes,
    from_parts,
    size_of,
    to_bytes,
    to_parts,
)
from tests.messages import SINGLE_KINDS, A, B, example, keys_of, messages, messages_of, train_task

# No deadline: another test may hold the processor.
some = settings(max_examples=15, deadline=None)
many = settings(max_examples=150, deadline=None)

PREPARE = PrepareTask(run_id="run-1", track="rare_disease", plan_digest="0" * 64)


def seal(body: bytes) -> bytes:
    """The body with the digest that belongs to it, as an attacker would write it."""
    return body + hashlib.sha256(body).digest()


def forged(head: bytes, kind: int = 1, schema: int = SCHEMA, rest: bytes = b"") -> bytes:
    return seal(struct.pack("<4sHBI", MAGIC, schema, kind, len(head)) + head + rest)


@pytest.mark.parametrize("kind", KINDS.values())
@some
@given(data=st.data())
def test_a_message_comes_back_from_its_bytes_and_from_its_parts(
    kind: type[Message], data: st.DataObject
) -> None:
    message = data.draw(messages_of(kind))
    written = to_bytes(message)
    back = from_bytes(written)
    assert type(back) is kind
    assert to_bytes(back) == written
    assert to_bytes(from_parts(*to_parts(message))) == written
    assert size_of(message) == len(written)


def test_a_message_without_arrays_comes_back_equal() -> None:
    for kind in SINGLE_KINDS:
        message = example(kind)
        if not to_parts(message)[1]:
            assert from_bytes(to_bytes(message)) == message
    assert from_bytes(to_bytes(example(Bundle))).parts == example(Bundle).parts


def test_bytes_are_laid_out_as_documented() -> None:
    head = b'{"plan_digest":"' + b"0" * 64 + b'","run_id":"run-1","track":"rare_disease"}'
    prefix = b"CSLM" + b"\x04\x00" + b"\x01" + struct.pack("<I", len(head))
    assert to_bytes(PREPARE) == seal(prefix + head)


def test_arrays_are_little_endian_words_after_their_number() -> None:
    masked = example(MaskedInput, words=np.array([1, 2**32 - 2], dtype=np.uint32))
    assert to_bytes(masked)[-48:-32].hex() == "02" + "00" * 7 + "01000000" + "feffffff"


def test_bytes_are_written_as_hexadecimal_and_sites_in_their_order() -> None:
    head, _ = to_parts(example(SealedShares, envelopes={B: b"\xab" * 160, A: bytes(160)}))
    assert head["envelopes"] == {B: "ab" * 160, A: "00" * 160}
    head, _ = to_parts(example(RosterOffer, roster=(keys_of(A),)))
    assert head["roster"][0]["mask_key"] == "01" * 32


def test_decoded_arrays_are_views_of_the_bytes() -> None:
    data = to_bytes(example(MaskedInput, words=np.arange(100_000, dtype=np.uint32)))
    words = from_bytes(data).words
    assert not words.flags.owndata
    assert not words.flags.writeable
    assert np.shares_memory(words, np.frombuffer(data, dtype=np.uint8))


def test_an_adapter_that_goes_to_many_sites_is_flattened_once() -> None:
    first, second = train_task(), train_task(sum_id=2)
    flattened: Flattened = {}
    (_, some_arrays), (_, others) = to_parts(first, flattened), to_parts(second, flattened)
    assert all(some_arrays[name] is others[name] for name in ("adapter.A", "adapter.B"))
    assert size_of(first, flattened) == len(to_bytes(first))


def test_a_head_that_is_too_long_is_refused_before_it_is_sent() -> None:
    spec = to_parts(train_task())[0]["adapter"]
    long = {**spec, "modules": [{**spec["modules"][0], "name": f"{i:060}"} for i in range(12_000)]}
    arrays = {"adapter.A": np.zeros(12_000 * 10, "<f4"), "adapter.B": np.zeros(12_000 * 6, "<f4")}
    task = from_parts({**to_parts(train_task())[0], "adapter": long}, arrays)
    with pytest.raises(ValueError, match=f"Expected a head of at most {MAX_HEAD} bytes, got "):
        to_bytes(task)


@many
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


@many
@given(message=messages, data=st.data())
def test_a_forged_digest_brings_no_other_exception(message: Message, data: st.DataObject) -> None:
    body = bytearray(to_bytes(message)[:-32])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    extra = data.draw(st.binary(max_size=8))
    cut = data.draw(st.integers(0, len(body)))
    for changed in (bytes(body), bytes(body[:cut]), bytes(body) + extra):
        try:
            back = from_bytes(seal(changed))
        except (BadMessageError, UnsupportedSchemaError):
            continue
        assert to_bytes(from_bytes(to_bytes(back))) == to_bytes(back)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**40)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "site-a", "00" * 32, "00" * 160]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "site-a"]), inner),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", KINDS.values())
@some
@given(data=st.data())
def test_any_json_value_in_any_field_is_a_message_or_a_bad_one(
    kind: type[Message], data: st.DataObject
) -> None:
    head, arrays = to_parts(example(kind))
    name = data.draw(st.sampled_from(sorted(head)))
    try:
        back = from_parts({**head, name: data.draw(JSON)}, arrays)
    except (BadMessageError, UnsupportedSchemaError):
        return
    assert isinstance(back, tuple(KINDS.values()))


@many
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
        b'{"schema":2}',
        b'{"run_id":"\\ud800"}',
        b'{"plan_digest":"' + b"0" * 64 + b'","run_id":"run-1","track":7}',
    ],
    ids=lambda head: head[:20],
)
def test_a_head_that_is_no_head_is_refused(head: bytes) -> None:
    with pytest.raises(BadMessageError):
        from_bytes(forged(head))


def test_a_head_that_is_longer_than_it_may_be_or_than_it_is_is_refused() -> None:
    head = to_bytes(PREPARE)[11:-32]
    assert from_bytes(forged(head)) == PREPARE
    with pytest.raises(BadMessageError, match=f"head: expected at most {MAX_HEAD} bytes"):
        from_bytes(forged(b" " * (MAX_HEAD + 1)))
    body = struct.pack("<4sHBI", MAGIC, SCHEMA, 1, len(head) + 1) + head
    with pytest.raises(BadMessageError, match=f"head: expected {len(head) + 1} bytes, got {len(head)}"):
        from_bytes(seal(body))


def test_a_newer_schema_is_refused_before_its_head_is_read() -> None:
    with pytest.raises(UnsupportedSchemaError, match=f"schema {SCHEMA + 1} is newer than {SCHEMA}"):
        from_bytes(forged(b"???", kind=99, schema=SCHEMA + 1))


def test_an_older_schema_is_refused_as_such() -> None:
    assert SCHEMA == 4
    with pytest.raises(BadMessageError, match="expected schema 4, got 1: the sender's version is too old"):
        from_bytes(forged(b"{}", schema=1))


def test_a_newer_schema_is_refused_in_parts_too() -> None:
    head, arrays = to_parts(PREPARE)
    with pytest.raises(UnsupportedSchemaError):
        from_parts({**head, "schema": SCHEMA + 1}, arrays)


@pytest.mark.parametrize("schema", [0, -1, 1, "2", True, None, 2.0])
def test_a_schema_that_is_no_schema_is_a_bad_message(schema: object) -> None:
    head, arrays = to_parts(PREPARE)
    with pytest.raises(BadMessageError):
        from_parts({**head, "schema": schema}, arrays)


@pytest.mark.parametrize("kind", [0, 4, 19, 255])
def test_a_kind_that_is_not_given_is_a_bad_message(kind: int) -> None:
    with pytest.raises(BadMessageError, match=f"a known kind, got kind {kind}"):
        from_bytes(forged(b"{}", kind=kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind is not Bundle])
def test_parts_refuse_a_missing_and_an_unknown_field(kind: type[Message]) -> None:
    head, arrays = to_parts(example(kind))
    with pytest.raises(BadMessageError, match="fields"):
        from_parts({**head, "patients": 3}, arrays)
    for name in set(head) - {"schema", "kind"}:
        with pytest.raises(BadMessageError, match="fields"):
            from_parts({key: value for key, value in head.items() if key != name}, arrays)
    with pytest.raises(BadMessageError, match="arrays"):
        from_parts(head, {**arrays, "more": np.ones(1, dtype=np.uint32)})
    for name in arrays:
        with pytest.raises(BadMessageError, match="arrays"):
            from_parts(head, {key: value for key, value in arrays.items() if key != name})


def test_hexadecimal_digits_have_one_spelling() -> None:
    head, arrays = to_parts(example(MaskedInput))
    for spelled in (head["transcript"].upper(), f" {head['transcript']}", "0" * 63, "xy" * 32, 3):
        if spelled != head["transcript"]:
            with pytest.raises(BadMessageError):
                from_parts({**head, "transcript": spelled}, arrays)


@pytest.mark.parametrize("value", [1, "1.0", None, True])
def test_numbers_of_a_task_have_one_spelling(value: object) -> None:
    head, arrays = to_parts(example(EvaluateTask))
    with pytest.raises(BadMessageError):
        from_parts({**head, "temperature": value}, arrays)
    head, arrays = to_parts(train_task())
    for rates in ([value] * 10 if value is not None else [None] * 9, value if value is not None else 0.5):
        with pytest.raises(BadMessageError):
            from_parts({**head, "bin_accuracy": rates}, arrays)


def test_a_list_of_more_than_256_sites_is_refused() -> None:
    sites = [f"site-{number}" for number in range(257)]
    head, arrays = to_parts(train_task())
    for name, value in {"members": sites, "envelopes": dict.fromkeys(sites, "00" * 160)}.items():
        with pytest.raises(BadMessageError, match="at most 256"):
            from_parts({**head, name: value}, arrays)


def test_an_adapter_must_fit_its_spec() -> None:
    head, arrays = to_parts(train_task())
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


def test_an_adapters_spec_has_one_spelling() -> None:
    head, arrays = to_parts(train_task())
    spec = head["adapter"]
    assert spec["alpha"] == 4.0
    for changes in ({"alpha": 4}, {"modules": spec["modules"][::-1]}):
        with pytest.raises(BadMessageError, match="expected its spec as it would be written"):
            from_parts({**head, "adapter": {**spec, **changes}}, arrays)


@pytest.mark.parametrize("number", [2**64 - 1, 2**62, 3])
def test_an_array_that_claims_more_than_there_is_takes_no_memory(number: int) -> None:
    words = example(MaskedInput)
    body = to_bytes(words)[: -32 - 16]
    with pytest.raises(BadMessageError, match=f"array words: expected {number} values, got 8 bytes"):
        from_bytes(seal(body + struct.pack("<Q", number) + bytes(8)))
    with pytest.raises(BadMessageError, match="4 bytes after the last array"):
        from_bytes(seal(body + struct.pack("<Q", 1) + bytes(8)))
    with pytest.raises(BadMessageError, match="the bytes end before its length"):
        from_bytes(seal(body + bytes(7)))


def test_a_bundle_holds_two_to_six_messages_that_are_none() -> None:
    head, arrays = to_parts(example(Bundle, parts=(train_task(), example(KeysRequest))))
    train, request = head["parts"]
    assert type(from_parts(head, arrays).parts[0]) is TrainTask
    for parts in (
        [],
        [train],
        [train, *[request] * MAX_PARTS],
        [train, head],
        [train, 3],
        {"0": train},
        None,
    ):
        with pytest.raises(BadMessageError):
            from_parts({**head, "parts": parts}, arrays)
    with pytest.raises(BadMessageError, match="fields"):
        from_parts({**head, "parts": [train, {**request, "schema": SCHEMA}]}, arrays)
    with pytest.raises(BadMessageError, match="arrays"):
        from_parts({**head, "parts": [request, train]}, arrays)


def filled(item: bytes, size: int, *, start: bytes = b'{"a":[', end: bytes = b"]}") -> bytes:
    """A head of one list that repeats ``item``, as large as it may be."""
    return start + b",".join([item] * ((size - len(start) - len(end)) // (len(item) + 1))) + end


def keyed(value: bytes, size: int) -> bytes:
    """A head of as many keys as there is room for, in order."""
    letters = string.ascii_letters + string.digits
    names = ("".join(name) for n in (1, 2, 3, 4) for name in itertools.product(letters, repeat=n))
    items = [f'"{name}":'.encode() + value for name in itertools.islice(names, size // (len(value) + 8) - 9)]
    return b"{" + b",".join(sorted(items)) + b"}"


def modules(size: int) -> bytes:
    """The head of a task with as many modules as there is room for."""
    shapes = [
        f'{{"in_features":1,"name":"{i:05x}","out_features":1}}'.encode() for i in range((size - 400) // 52)
    ]
    return (
        b'{"adapter":{"alpha":1.0,"mode":"ffa","modules":[' + b",".join(shapes) + b'],"rank":1},'
        b'"bin_accuracy":null,"envelopes":{},"members":[],"plan_digest":"'
        + b"0"
        * 64
        + b'","round_id":1,"run_id":"r",'
        b'"sum_id":1,"track":"t"}'
    )


def decoding_peak(data: bytes) -> tuple[int, Message | FederationError]:
    """Most memory that decoding took beyond ``data``, and what came out."""
    found: list[tuple[int, Message | FederationError]] = []

    def decode() -> None:
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        try:
            result: Message | FederationError = from_bytes(data)
        except FederationError as error:
            result = error
        found.append((tracemalloc.get_traced_memory()[1] - before, result))
        tracemalloc.stop()

    # In a thread of its own, whose stack is short: tracing counts all of it at each allocation.
    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
    return found[0]


NESTED = b"[" * 100 + b"]" * 100
# Text with one letter beyond 16 bits takes four bytes a letter in memory.
WIDE = '{"a":["\U0001f600",'.encode()
# What JSON grows from: the shortest texts of the largest values.
GROWING: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: filled(b"[]", MAX_HEAD),
    "nested lists": lambda: filled(NESTED, MAX_HEAD),
    "nested lists in wide text": lambda: filled(NESTED, MAX_HEAD, start=WIDE),
    "empty objects": lambda: filled(b"{}", MAX_HEAD),
    "nested objects": lambda: filled(b'{"":' * 16 + b"0" + b"}" * 16, MAX_HEAD),
    "short keys": lambda: keyed(b"{}", MAX_HEAD),
    "keys of which the last comes twice": lambda: keyed(b"0", MAX_HEAD)[:-1] + b',"zzz":0}',
    "numbers": lambda: filled(b"300", MAX_HEAD),
    "too deep": lambda: b'{"a":' + b"[" * (MAX_HEAD // 2 - 8) + b"]" * (MAX_HEAD // 2 - 8) + b"}",
}


@pytest.mark.parametrize("name", GROWING)
def test_a_forged_head_takes_no_more_than_the_documented_memory(name: str) -> None:
    head = GROWING[name]()
    assert 0.85 * MAX_HEAD < len(head) <= MAX_HEAD
    peak, result = decoding_peak(forged(head))
    assert isinstance(result, BadMessageError)
    assert peak <= DECODING_BYTES
    # A worst case that is none would show nothing.
    assert peak > DECODING_BYTES // 2 or name != "nested lists in wide text"


def test_a_task_of_very_many_modules_takes_no_more_than_the_documented_memory() -> None:
    head = modules(MAX_HEAD // 4)
    number = head.count(b"in_features")
    array = struct.pack("<Q", number) + bytes(4 * number)
    peak, result = decoding_peak(forged(head, kind=TrainTask.kind, rest=array * 2))
    assert isinstance(result, TrainTask)
    assert len(result.adapter.spec.modules) == number
    assert peak <= DECODING_BYTES // 4


def test_a_long_masked_input_takes_no_memory_for_its_words() -> None:
    data = to_bytes(example(MaskedInput, words=np.zeros(2**20, dtype=np.uint32)))
    peak, result = decoding_peak(data)
    assert isinstance(result, MaskedInput)
    assert peak < 2**20
