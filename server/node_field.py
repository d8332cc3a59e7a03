"""Field 1 of a protobuf message, read as the message's bytes pass by.

Flower's Fleet messages hold the node they speak for, or its key, in field 1. A parser of protobuf takes the
last of two fields with one number, and merges two messages; so a second field 1 is refused, wherever it
stands.
"""

from __future__ import annotations

from collections.abc import Callable

from common.errors import BadMessageError

Value = int | bytes
"""A varint's number, or the bytes of a message or of a byte string."""

LONGEST = 1024
MOST_FIELDS = 4096
_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_SKIPPED = {_FIXED_64: 8, _FIXED_32: 4}
_LONGEST_VARINT = 10
_CONTINUED, _DIGITS = 0x80, 0x7F
_TAG_BOUND = 2**32
_NUMBER_BOUND = 2**64


class FieldOne:
    """Hands field 1 to ``check``, once, as soon as its last byte has been fed."""

    def __init__(self, check: Callable[[Value], None]) -> None:
        self._check = check
        self._head = bytearray()
        self._skip, self._fields, self._found = 0, 0, False

    def feed(self, data: bytes) -> None:
        """The next bytes of the message. BadMessageError; and what ``check`` raises."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip, at = self._skip - step, at + step
                continue
            self._head.append(data[at])
            at += 1
            self._advance()

    def finish(self) -> None:
        """BadMessageError if the message is cut, or has no field 1."""
        if self._skip or self._head:
            raise BadMessageError("the message is cut")
        if not self._found:
            raise BadMessageError("the message names no node")

    def _advance(self) -> None:
        """Look at the beginning of a field, as far as it has come."""
        tag = _varint(self._head, 0)
        if tag is None:
            return
        number, kind = tag[0] >> 3, tag[0] & 7
        if tag[0] >= _TAG_BOUND or number == 0 or kind not in (_VARINT, _BYTES, *_SKIPPED):
            raise BadMessageError("no protobuf message")
        if kind in _SKIPPED:
            self._end(number, None, _SKIPPED[kind])
            return
        value = _varint(self._head, tag[1])
        if value is None:
            return
        if kind == _VARINT:
            self._end(number, value[0], 0)
        elif number != 1:
            self._end(number, None, value[0])
        elif value[0] > LONGEST:
            raise BadMessageError(f"expected a node of at most {LONGEST} bytes")
        elif len(self._head) == value[1] + value[0]:
            self._end(number, bytes(self._head[value[1] :]), 0)

    def _end(self, number: int, value: Value | None, skip: int) -> None:
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise BadMessageError(f"expected at most {MOST_FIELDS} fields")
        if number == 1:
            if self._found or value is None:
                raise BadMessageError("expected one node")
            self._found = True
            self._check(value)
        self._head.clear()
        self._skip = skip


def node_message(number: int) -> bytes:
    """Flower's message of a node: its number as field 1."""
    out = bytearray(b"\x08")
    while number >= _CONTINUED:
        out.append(number & _DIGITS | _CONTINUED)
        number >>= 7
    return bytes([*out, number])


def _varint(data: bytearray, start: int) -> tuple[int, int] | None:
    """A number and where it ends; None if it is not all there. BadMessageError for one that does not end."""
    number = 0
    for index, byte in enumerate(data[start : start + _LONGEST_VARINT]):
        number |= (byte & _DIGITS) << (7 * index)
        if byte < _CONTINUED:
            return number % _NUMBER_BOUND, start + index + 1
    if len(data) - start >= _LONGEST_VARINT:
        raise BadMessageError("no protobuf message")
    return None
