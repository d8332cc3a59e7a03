"""Messages as bytes, and back.

``to_parts`` splits a message into a head of plain JSON values and named arrays, which is what a transport
with its own array format wants; ``to_bytes`` makes one byte string of both:

    magic (4) | schema (2) | kind (1) | length of head (4) | head: canonical JSON
    | for each array of the message, in its order: number of values (8), values (4 each)
    | SHA-256 of all of the above (32)

Numbers are little-endian, byte strings in the head hexadecimal. The magic, the schema's place and the digest
at the end stay put in later schemas, so that another version's message is told from a broken one. The
digest finds accidents, not attackers: those meet the signatures.

Guarantee: a byte string parses to the message it was made from, or raises ``BadMessageError``, or
``UnsupportedSchemaError`` where a newer version made it. It never raises anything else, and takes at most
``DECODING_BYTES`` of memory beyond the byte string, whose arrays are views of it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.adapter import Adapter, AdapterMode, AdapterSpec, Block, flatten, tensor_key
from common.canonical import canonical_json, plain, plain_json, read_object
from common.errors import BadMessageError, UnsupportedSchemaError
from common.message_fields import BUNDLE, MAX_PARTS, MAX_SITES, names_of
from common.messages import KINDS, Bundle, Message
from common.schema import build
from common.secagg.keys import SignedKeys

SCHEMA = 4
MAGIC = b"CSLM"
MAX_HEAD = 2**20
DECODING_BYTES = 64 * MAX_HEAD

_PREFIX = struct.Struct("<4sHBI")
_COUNT = struct.Struct("<Q")
_DIGEST_SIZE = 32
_WORD_SIZE = 4

# The fields of a message that travel as arrays.
ARRAY_FIELDS = ("adapter", "words")
Arrays = dict[str, NDArray[Any]]
# The vectors of an adapter that goes to many sites, by the adapter's identity.
Flattened = dict[int, Arrays]


def to_parts(message: Message, flattened: Flattened | None = None) -> tuple[dict[str, Any], Arrays]:
    """The head as plain JSON values, and the arrays by name.

    ``flattened`` remembers the vectors of adapters, for a caller that sends one to many sites.
    """
    head, arrays = _split(message, flattened if flattened is not None else {})
    return {"schema": SCHEMA, **head}, arrays


def from_parts(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Message:
    """The message of these parts. BadMessageError, UnsupportedSchemaError."""
    _check_schema(head.get("schema"))
    rest = {key: value for key, value in head.items() if key != "schema"}
    types = _array_types(rest)
    _expect_names("arrays", arrays, types)
    try:
        for name, dtype in types.items():
            _check_array(name, arrays[name], dtype)
        return _join(rest, arrays)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise BadMessageError(str(error)) from error


def to_bytes(message: Message) -> bytes:
    """The message as one byte string; see the module's first lines."""
    pieces = list(_pieces(message, {}))
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return b"".join([*pieces, digest.digest()])


def size_of(message: Message, flattened: Flattened | None = None) -> int:
    """Length of ``to_bytes(message)``, without making it; ``flattened`` as in ``to_parts``."""
    pieces = _pieces(message, flattened if flattened is not None else {})
    return sum(len(piece) for piece in pieces) + _DIGEST_SIZE


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
    # Before the head is read: another schema may write it in another way.
    _check_schema(schema)
    if head_size > MAX_HEAD:
        raise BadMessageError(f"head: expected at most {MAX_HEAD} bytes, got {head_size}")
    head_end = _PREFIX.size + head_size
    head = {**_read_head(bytes(body[_PREFIX.size : head_end]), head_size), "kind": kind}
    arrays = _read_arrays(body[head_end:], _array_types(head))
    return from_parts({**head, "schema": schema}, arrays)


def _split(message: Message, flattened: Flattened) -> tuple[dict[str, Any], Arrays]:
    head: dict[str, Any] = {"kind": message.kind}
    if isinstance(message, Bundle):
        pairs = [_split(part, flattened) for part in message.parts]
        arrays = {f"{i}.{name}": values for i, (_, some) in enumerate(pairs) for name, values in some.items()}
        return {**head, "parts": [part for part, _ in pairs]}, arrays
    arrays = {}
    for name in names_of(type(message)):
        value = getattr(message, name)
        if name == "words":
            arrays["words"] = value
        elif name == "adapter":
            head["adapter"] = plain(value.spec)
            arrays.update(_vectors(value, flattened))
        else:
            head[name] = _as_json(value)
    return head, arrays


def _join(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Message:
    """The message of a head whose arrays have the right types."""
    kind = _kind_of(head)
    _expect_names("fields", head, {"kind", *_head_names(kind)})
    if kind == BUNDLE:
        return Bundle(parts=tuple(_join(part, _arrays_of(i, arrays)) for i, part in enumerate(head["parts"])))
    values = {name: _READERS.get(name, _as_is)(head[name]) for name in _head_names(kind)}
    if "adapter" in values:
        values["adapter"] = _adapter(values["adapter"], arrays)
    if "words" in arrays:
        values["words"] = arrays["words"]
    return KINDS[kind](**values)


def _pieces(message: Message, flattened: Flattened) -> Iterator[bytes | memoryview]:
    """What the digest of ``to_bytes`` covers, piece by piece."""
    head, arrays = _split(message, flattened)
    types = _array_types(head)
    kind = head.pop("kind")
    head_bytes = plain_json(head).encode()
    if len(head_bytes) > MAX_HEAD:
        raise ValueError(f"Expected a head of at most {MAX_HEAD} bytes, got {len(head_bytes)}")
    yield _PREFIX.pack(MAGIC, SCHEMA, kind, len(head_bytes))
    yield head_bytes
    for name, dtype in types.items():
        values = np.ascontiguousarray(arrays[name], dtype=dtype)
        yield _COUNT.pack(values.size)
        yield values.data.cast("B")


def _read_head(head_bytes: bytes, size: int) -> dict[str, Any]:
    if len(head_bytes) != size:
        raise BadMessageError(f"head: expected {size} bytes, got {len(head_bytes)}")
    try:
        head = read_object(head_bytes.decode(), "head")
        # One message, one spelling.
        canonical = plain_json(head).encode() == head_bytes
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"head: expected a JSON object ({type(error).__name__})") from error
    if not canonical or "schema" in head or "kind" in head:
        raise BadMessageError("head: expected canonical JSON without a schema and a kind of its own")
    return head


def _read_arrays(rest: memoryview, types: Mapping[str, str]) -> Arrays:
    arrays: Arrays = {}
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


def _check_schema(schema: object) -> None:
    if type(schema) is not int or schema < 1:
        raise BadMessageError(f"expected a schema of at least 1, got {schema!r}")
    if schema > SCHEMA:
        raise UnsupportedSchemaError("message", schema, SCHEMA)
    if schema < SCHEMA:
        raise BadMessageError(f"expected schema {SCHEMA}, got {schema}: the sender's version is too old")


def _kind_of(head: object) -> int:
    kind = head.get("kind") if isinstance(head, Mapping) else None
    if type(kind) is not int or kind not in KINDS:
        raise BadMessageError(f"expected a message of a known kind, got kind {kind!r}")
    return kind


def _array_types(head: Mapping[str, Any]) -> dict[str, str]:
    """The names and types of the arrays that belong to a head, in their order."""
    kind = _kind_of(head)
    if kind != BUNDLE:
        names = (name for name in names_of(KINDS[kind]) if name in ARRAY_FIELDS)
        return {array: dtype for name in names for array, dtype in _arrays_in(name, head).items()}
    parts = head.get("parts")
    if not isinstance(parts, list) or not 2 <= len(parts) <= MAX_PARTS:
        raise BadMessageError(f"expected a bundle of 2 to {MAX_PARTS} parts")
    if any(_kind_of(part) == BUNDLE for part in parts):
        raise BadMessageError("expected no bundle in a bundle")
    types = ((i, _array_types(part)) for i, part in enumerate(parts))
    return {f"{i}.{name}": dtype for i, some in types for name, dtype in some.items()}


def _arrays_in(field: str, head: Mapping[str, Any]) -> dict[str, str]:
    """Names and types of the arrays that a field travels as."""
    if field == "words":
        return {"words": "<u4"}
    spec = head.get("adapter")
    mode = spec.get("mode") if isinstance(spec, Mapping) else None
    # As `AdapterSpec.blocks`, before the spec is known to be one.
    blocks = tuple(Block) if mode == AdapterMode.CORE else (Block.A, Block.B)
    return {f"adapter.{block.value}": "<f4" for block in blocks}


def _arrays_of(part: int, arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    start = f"{part}."
    return {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}


def _head_names(kind: int) -> set[str]:
    return set(names_of(KINDS[kind])) - {"words"}


def _expect_names(what: str, got: Mapping[str, Any], expected: Mapping[str, Any] | set[str]) -> None:
    if set(got) != set(expected):
        raise BadMessageError(f"expected {what} {sorted(expected)}, got {sorted(map(str, got))}")


def _check_array(name: str, values: NDArray[Any], dtype: str) -> None:
    if values.dtype != np.dtype(dtype) or values.ndim != 1:
        raise ValueError(
            f"array {name}: expected {np.dtype(dtype)} with one axis, got {values.dtype} {values.shape}"
        )


def _vectors(adapter: Adapter, flattened: Flattened) -> Arrays:
    if id(adapter) not in flattened:
        flattened[id(adapter)] = {
            f"adapter.{block.value}": flatten(adapter, block) for block in adapter.spec.blocks
        }
    return flattened[id(adapter)]


def _adapter(head: Any, arrays: Mapping[str, NDArray[Any]]) -> Adapter:
    spec = build(AdapterSpec, head, "adapter")
    if canonical_json(spec) != plain_json(head):
        raise ValueError("adapter: expected its spec as it would be written, modules in order")
    tensors: dict[str, NDArray[np.float32]] = {}
    for block in spec.blocks:
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


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, SignedKeys):
        return {name: _as_json(item) for name, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value


def _as_is(value: Any) -> Any:
    return value


def _from_hex(value: Any) -> bytes:
    # One spelling: bytes.fromhex would take capitals and spaces too.
    made = bytes.fromhex(value)
    if made.hex() != value:
        raise ValueError("expected lower-case hexadecimal digits")
    return made


def _sites(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) > MAX_SITES:
        raise ValueError(f"expected a list of at most {MAX_SITES}")
    return tuple(value)


def _by_site(value: Any) -> dict[Any, bytes]:
    if not isinstance(value, dict) or len(value) > MAX_SITES:
        raise ValueError(f"expected an object of at most {MAX_SITES} sites")
    return {site: _from_hex(item) for site, item in value.items()}


def _signed_keys(value: Any) -> SignedKeys:
    names = names_of(SignedKeys)
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected signed keys of {', '.join(names)}")
    hexes = {name: _from_hex(value[name]) for name in names if name != "site_id"}
    return SignedKeys(site_id=value["site_id"], **hexes)


def _roster(value: Any) -> tuple[SignedKeys, ...]:
    return tuple(_signed_keys(entry) for entry in _sites(value))


def _rates(value: Any) -> tuple[float | None, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError("expected a list of rates")
    return tuple(None if rate is None else _number(rate) for rate in value)


def _number(value: Any) -> float:
    # One spelling: 1 would be the same number as 1.0, and another message.
    if type(value) is not float:
        raise ValueError(f"expected a number with a point, got {type(value).__name__}")
    return value


# How a field of the head is read, where JSON has no value of its kind.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "members": _sites,
    "survivors": _sites,
    "dropouts": _sites,
    "envelopes": _by_site,
    "signatures": _by_site,
    "seed_shares": _by_site,
    "mask_key_shares": _by_site,
    "keys": _signed_keys,
    "roster": _roster,
    "bin_accuracy": _rates,
    "temperature": _number,
    "transcript": _from_hex,
    "signature": _from_hex,
    "countersignature": _from_hex,
}
