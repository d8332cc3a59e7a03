"""Every message between a site and the coordinator, to bytes and back.

A message is a frozen value. ``to_parts`` splits it into a head of plain JSON values and named arrays,
which is what a transport with its own array format wants; ``to_bytes`` makes one byte string of both:

    magic (4) | schema (2) | kind (1) | length of head (4) | head: canonical JSON
    | for each array of the kind, in the order of ``ARRAYS``: number of values (8), values (4 each)
    | SHA-256 of all of the above (32)

Numbers are little-endian. The magic, the schema's place and the digest at the end stay put in later
schemas, so that a newer message is told from a broken one. The digest finds accidents, not attackers:
who sent a message is for the transport to know.

Guarantee: a byte string parses to the message it was made from, or raises ``BadMessageError``, or
``UnsupportedSchemaError`` where a newer version made it. It never raises anything else.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.adapter import Adapter, AdapterSpec, Block, flatten, tensor_key
from common.canonical import canonical_json, plain, read_object
from common.errors import LONGEST_VALUE, BadMessageError, UnsupportedSchemaError, one_line
from common.fixedpoint import FixedPoint
from common.ids import AdapterId, RoundId, RunId, SiteId, is_digest, run_id, site_id
from common.plan import RunPlan
from common.schema import build

SCHEMA = 1
MAGIC = b"CSLM"
MAX_REASON = LONGEST_VALUE
MAX_ROUND = 2**31 - 1

_PREFIX = struct.Struct("<4sHBI")
_COUNT = struct.Struct("<Q")
_DIGEST_SIZE = 32
_WORD_SIZE = 4
_TRACK = re.compile(r"[a-z][a-z0-9_]{0,39}")


def _check_fields(message: Any) -> None:
    """Checks every field by its name, since a name means the same in all messages."""
    for field in fields(message):
        value = getattr(message, field.name)
        accepts, expected = _CHECKS[field.name]
        if not accepts(value):
            shown = type(value).__name__ if field.name in ARRAYS else repr(value)
            raise ValueError(f"{field.name}: expected {expected}, got {shown}")


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """Asks a site to get data, teacher, pairs and student of a track ready."""

    kind: ClassVar[int] = 1
    run_id: RunId
    track: str
    plan_digest: str

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A site's answer to ``PrepareTask``. It carries no count: readiness is all that is told."""

    kind: ClassVar[int] = 2
    run_id: RunId
    track: str
    site_id: SiteId

    def __post_init__(self) -> None:
        _check_fields(self)


# eq=False: arrays compare value by value, and a message is compared by its bytes.
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """One round's work: train the round's block of ``adapter``, which carries its own spec."""

    kind: ClassVar[int] = 3
    run_id: RunId
    round_id: RoundId
    track: str
    plan_digest: str
    adapter: Adapter

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.round_id < 1:
            raise ValueError(f"round_id: expected at least 1, the first round, got {self.round_id}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Contribution:
    """What a site adds to a sum.

    Attributes:
        adapter_id: The adapter that was trained from, or evaluated.
        words: uint32, one axis. ``TrainWords`` after training; the words of
            ``common.metrics.MetricCounts`` after evaluation.
    """

    kind: ClassVar[int] = 4
    run_id: RunId
    round_id: RoundId
    track: str
    site_id: SiteId
    adapter_id: AdapterId
    words: NDArray[np.uint32]

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateTask:
    """Asks a site to evaluate ``adapter``; ``round_id`` is the round that made it, 0 before the first."""

    kind: ClassVar[int] = 5
    run_id: RunId
    round_id: RoundId
    track: str
    plan_digest: str
    adapter: Adapter

    def __post_init__(self) -> None:
        _check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A site will not do a task. ``reason`` is one printable line without a patient's data."""

    kind: ClassVar[int] = 6
    run_id: RunId
    site_id: SiteId
    reason: str

    def __post_init__(self) -> None:
        _check_fields(self)


Task: TypeAlias = PrepareTask | TrainTask | EvaluateTask
Message: TypeAlias = PrepareTask | Ready | TrainTask | Contribution | EvaluateTask | Refusal

_KINDS: Mapping[int, type[Message]] = {
    message.kind: message for message in (PrepareTask, Ready, TrainTask, Contribution, EvaluateTask, Refusal)
}
_ADAPTER_ARRAYS = {f"adapter.{block.value}": "<f4" for block in Block}
# The arrays of a message and their types, by the field that they come from.
ARRAYS: Mapping[str, Mapping[str, str]] = {"adapter": _ADAPTER_ARRAYS, "words": {"words": "<u4"}}


def refusal(run: RunId, site: SiteId, reason: str) -> Refusal:
    """A ``Refusal`` whose reason is made to fit: one line, printable, at most ``MAX_REASON`` characters."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in one_line(reason))
    return Refusal(run_id=run, site_id=site, reason=printable or "no reason given")


@dataclass(frozen=True, kw_only=True)
class TrainWords:
    """The words of a training ``Contribution``, and of their sum.

    Attributes:
        delta: uint32 (d,), fixed-point ``weight * site_delta`` of the round's active block.
        weight: uint32 (1,), weight of the site, at most 1; by the same fixed point.
        counts: uint32 (4,), whole numbers in the order of ``COUNTS``.
    """

    COUNTS: ClassVar[tuple[str, ...]] = ("patients", "pairs", "steps", "clipped")

    delta: NDArray[np.uint32]
    weight: NDArray[np.uint32]
    counts: NDArray[np.uint32]

    def __post_init__(self) -> None:
        if self.delta.ndim != 1 or self.weight.shape != (1,) or self.counts.shape != (len(self.COUNTS),):
            shapes = f"{self.delta.shape}, {self.weight.shape}, {self.counts.shape}"
            raise ValueError(f"Expected shapes (d,), (1,), ({len(self.COUNTS)},), got {shapes}")

    @classmethod
    def length(cls, size: int) -> int:
        """Number of words for an active block of ``size`` values."""
        return size + 1 + len(cls.COUNTS)

    def join(self) -> NDArray[np.uint32]:
        """All words in one vector of ``length(d)``."""
        return np.concatenate([self.delta, self.weight, self.counts]).astype(np.uint32, copy=False)

    @classmethod
    def split(cls, words: NDArray[np.uint32]) -> TrainWords:
        """The parts of ``words`` as views. ValueError where there are too few."""
        size = len(words) - cls.length(0)
        if size < 1:
            raise ValueError(f"Expected at least {cls.length(1)} words, got {len(words)}")
        return cls(delta=words[:size], weight=words[size : size + 1], counts=words[size + 1 :])


def train_fixed_point(plan: RunPlan) -> FixedPoint:
    """The fixed point of every word of a plan's training contributions, at each site and the coordinator.

    One for deltas and weights alike, which is why a plan's ``max_abs_delta`` is at least 1.
    """
    return FixedPoint.for_sum(max_abs=plan.aggregation.max_abs_delta, terms=len(plan.sites))


def to_parts(message: Message) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The head as plain JSON values, and the arrays by name."""
    head: dict[str, Any] = {"schema": SCHEMA, "kind": message.kind}
    arrays: dict[str, NDArray[Any]] = {}
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name == "words":
            arrays["words"] = value
        elif field.name == "adapter":
            head["adapter"] = plain(value.spec)
            arrays.update({f"adapter.{block.value}": flatten(value, block) for block in Block})
        else:
            head[field.name] = value
    return head, arrays


def from_parts(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Message:
    """The message of these parts. BadMessageError, UnsupportedSchemaError."""
    kind = _kind_of(head)
    _expect_names("fields", head, {"schema", "kind", *_plain_names(kind)})
    _expect_names("arrays", arrays, _array_types(kind))
    try:
        values = {name: head[name] for name in _plain_names(kind)}
        for name, dtype in _array_types(kind).items():
            _check_array(name, arrays[name], dtype)
        if "adapter" in values:
            values["adapter"] = _adapter_from_parts(values["adapter"], arrays)
        if "words" in arrays:
            values["words"] = arrays["words"]
        return _KINDS[kind](**values)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise BadMessageError(str(error)) from error


def to_bytes(message: Message) -> bytes:
    """The message as one byte string; see the module's first lines."""
    pieces = list(_pieces(message))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return b"".join([*pieces, digest.digest()])


def size_of(message: Message) -> int:
    """Length of ``to_bytes(message)``, without making it."""
    return sum(len(piece) for piece in _pieces(message)) + _DIGEST_SIZE


def from_bytes(data: bytes) -> Message:
    """The message that ``data`` was made from. BadMessageError, UnsupportedSchemaError."""
    if len(data) < _PREFIX.size + _DIGEST_SIZE:
        raise BadMessageError(f"expected at least {_PREFIX.size + _DIGEST_SIZE} bytes, got {len(data)}")
    body = memoryview(data)[:-_DIGEST_SIZE]
    magic, schema, kind, head_size = _PREFIX.unpack_from(body)
    if magic != MAGIC:
        raise BadMessageError(f"expected to begin with {MAGIC!r}, got {magic!r}")
    if hashlib.sha256(body).digest() != data[-_DIGEST_SIZE:]:
        raise BadMessageError("the digest at the end does not fit the bytes before it")
    # Before the head is read: a newer schema may write it in another way.
    _check_schema(schema)
    head_end = _PREFIX.size + head_size
    head = _read_head(bytes(body[_PREFIX.size : head_end]), head_size)
    if kind not in _KINDS:
        raise BadMessageError(f"expected a kind of 1 to {len(_KINDS)}, got {kind}")
    arrays = _read_arrays(body[head_end:], _array_types(kind))
    return from_parts({**head, "schema": schema, "kind": kind}, arrays)


def _pieces(message: Message) -> Iterator[bytes | memoryview]:
    """What the digest of ``to_bytes`` covers, piece by piece."""
    head, arrays = to_parts(message)
    schema, kind = head.pop("schema"), head.pop("kind")
    head_bytes = canonical_json(head).encode()
    yield _PREFIX.pack(MAGIC, schema, kind, len(head_bytes))
    yield head_bytes
    for name, dtype in _array_types(kind).items():
        values = np.ascontiguousarray(arrays[name], dtype=dtype)
        yield _COUNT.pack(values.size)
        yield values.data.cast("B")


def _read_head(head_bytes: bytes, size: int) -> dict[str, Any]:
    if len(head_bytes) != size:
        raise BadMessageError(f"head: expected {size} bytes, got {len(head_bytes)}")
    try:
        head = read_object(head_bytes.decode(), "head")
        # One message, one spelling.
        canonical = canonical_json(head).encode() == head_bytes
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"head: expected a JSON object ({type(error).__name__})") from error
    if not canonical or "schema" in head or "kind" in head:
        raise BadMessageError("head: expected canonical JSON without a schema and a kind of its own")
    return head


def _read_arrays(rest: memoryview, types: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in types.items():
        if len(rest) < _COUNT.size:
            raise BadMessageError(f"array {name}: the bytes end before its length")
        (count,) = _COUNT.unpack_from(rest)
        end = _COUNT.size + count * _WORD_SIZE
        if len(rest) < end:
            raise BadMessageError(
                f"array {name}: expected {count} values, got {len(rest) - _COUNT.size} bytes"
            )
        arrays[name] = np.frombuffer(rest[_COUNT.size : end], dtype=dtype)
        rest = rest[end:]
    if len(rest):
        raise BadMessageError(f"{len(rest)} bytes after the last array")
    return arrays


def _kind_of(head: Mapping[str, Any]) -> int:
    _check_schema(head.get("schema"))
    kind = head.get("kind")
    if type(kind) is not int or kind not in _KINDS:
        raise BadMessageError(f"expected a kind of 1 to {len(_KINDS)}, got {kind!r}")
    return kind


def _check_schema(schema: object) -> None:
    if type(schema) is not int or schema < 1:
        raise BadMessageError(f"expected a schema of at least 1, got {schema!r}")
    if schema > SCHEMA:
        raise UnsupportedSchemaError("message", schema, SCHEMA)


def _plain_names(kind: int) -> set[str]:
    return {field.name for field in fields(_KINDS[kind])} - {"words"}


def _array_types(kind: int) -> dict[str, str]:
    names = (field.name for field in fields(_KINDS[kind]) if field.name in ARRAYS)
    return {array: dtype for name in names for array, dtype in ARRAYS[name].items()}


def _expect_names(what: str, got: Mapping[str, Any], expected: Mapping[str, Any] | set[str]) -> None:
    if set(got) != set(expected):
        raise BadMessageError(f"expected {what} {sorted(expected)}, got {sorted(map(str, got))}")


def _check_array(name: str, values: NDArray[Any], dtype: str) -> None:
    if values.dtype != np.dtype(dtype) or values.ndim != 1:
        raise ValueError(
            f"array {name}: expected {np.dtype(dtype)} with one axis, got {values.dtype} {values.shape}"
        )


def _adapter_from_parts(head: Any, arrays: Mapping[str, NDArray[Any]]) -> Adapter:
    spec = build(AdapterSpec, head, "adapter")
    tensors: dict[str, NDArray[np.float32]] = {}
    for block in Block:
        vector = arrays[f"adapter.{block.value}"]
        if vector.size != spec.size(block):
            raise ValueError(
                f"adapter: expected {spec.size(block)} values in {block.value}, got {vector.size}"
            )
        # Views, not copies: an adapter may take a large part of the memory.
        ends = np.cumsum([math.prod(spec.shape(module, block)) for module in spec.modules])[:-1]
        for module, values in zip(spec.modules, np.split(vector, ends), strict=True):
            tensors[tensor_key(module, block)] = values.reshape(spec.shape(module, block))
    return Adapter(spec=spec, tensors=tensors)


def _is(make: Callable[[str], object], value: object) -> bool:
    """Whether ``make`` accepts this text."""
    try:
        return isinstance(value, str) and make(value) == value
    except ValueError:
        return False


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and is_digest(value)


def _is_track(value: object) -> bool:
    return isinstance(value, str) and _TRACK.fullmatch(value) is not None


def _is_words(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint32 and value.ndim == 1 and value.size > 0


def _is_reason(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_REASON and value.isprintable()


# What a field of this name may hold, and how that is said.
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "run_id": (lambda value: _is(run_id, value), "a run id of lower-case letters, digits and hyphens"),
    "site_id": (lambda value: _is(site_id, value), "a site id of lower-case letters, digits and hyphens"),
    "round_id": (lambda value: type(value) is int and 0 <= value <= MAX_ROUND, f"0 to {MAX_ROUND}"),
    "track": (_is_track, "a track's name of lower-case letters, digits and underscores"),
    "plan_digest": (_is_sha256, "a digest of 64 hexadecimal digits"),
    "adapter_id": (_is_sha256, "a digest of 64 hexadecimal digits"),
    "adapter": (lambda value: isinstance(value, Adapter), "an adapter"),
    "words": (_is_words, "uint32 words with one axis, at least one"),
    "reason": (_is_reason, f"one printable line of 1 to {MAX_REASON} characters"),
}
