"""What each field of a message may hold. A name means the same in all messages."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Literal, get_args

import numpy as np

from common.adapter import Adapter
from common.errors import LONGEST_VALUE
from common.ids import is_digest, run_id, site_id
from common.pki import SIGNATURE_SIZE
from common.plan import LARGEST_FEDERATION
from common.secagg.envelopes import ENVELOPE_SIZE
from common.secagg.keys import SignedKeys
from common.secagg.sharing import SHARE_SIZE
from common.tracks import TRACKS

MAX_REASON = LONGEST_VALUE
MAX_NUMBER = 2**31 - 1
MAX_SITES = LARGEST_FEDERATION
# For each track the head of a ledger, the work, and the keys of the next sum.
MAX_PARTS = 3 * len(TRACKS)
# As many as there are bins of confidences (``common.calibration``, which every process would wait for).
RATES = 10
DIGEST_SIZE = 32
BUNDLE = 16

Part = Literal["test", "calibration"]
RefusalCause = Literal["failed", "away", "budget", "ledger"]
# No retry changes these.
BUDGET_CAUSES: frozenset[RefusalCause] = frozenset({"budget", "ledger"})

_NAMES: dict[type[Any], tuple[str, ...]] = {}
_TRACK = re.compile(r"[a-z][a-z0-9_]{0,39}")


def check_fields(message: Any) -> None:
    """ValueError, naming the field, unless every field of a message holds what its name says."""
    for name in names_of(type(message)):
        value = getattr(message, name)
        accepts, expected = _CHECKS[name]
        if not accepts(value):
            shown = repr(value) if isinstance(value, str | int) else type(value).__name__
            raise ValueError(f"{name}: expected {expected}, got {shown}")


def names_of(kind: type[Any]) -> tuple[str, ...]:
    """The names of a dataclass's fields. Kept: asked for every message, part and array."""
    if kind not in _NAMES:
        _NAMES[kind] = tuple(field.name for field in fields(kind))
    return _NAMES[kind]


def _is(make: Callable[[str], object], value: object) -> bool:
    """Whether ``make`` accepts this text."""
    try:
        return isinstance(value, str) and make(value) == value
    except ValueError:
        return False


def _is_number(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MAX_NUMBER


def _is_bytes(value: object, size: int) -> bool:
    return isinstance(value, bytes) and len(value) == size


def _is_track(value: object) -> bool:
    return isinstance(value, str) and _TRACK.fullmatch(value) is not None


def _is_words(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint32 and value.ndim == 1 and value.size > 0


def _is_reason(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_REASON and value.isprintable()


def _is_temperature(value: object) -> bool:
    return type(value) is float and 0 < value < math.inf


def _is_rate(value: object) -> bool:
    return value is None or (type(value) is float and 0 <= value <= 1)


def _are_rates(value: object) -> bool:
    return value is None or (isinstance(value, tuple) and len(value) == RATES and all(map(_is_rate, value)))


def _are_sites(value: object) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_SITES and all(_is(site_id, site) for site in value)


def _are_by_site(value: object, size: int) -> bool:
    return (
        isinstance(value, Mapping)
        and _are_sites(tuple(value))
        and all(_is_bytes(item, size) for item in value.values())
    )


def _are_keys(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= MAX_SITES
        and all(isinstance(entry, SignedKeys) for entry in value)
    )


def _are_parts(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and 2 <= len(value) <= MAX_PARTS
        and all(getattr(type(part), "kind", BUNDLE) != BUNDLE for part in value)
    )


def _by_site(size: int, what: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: _are_by_site(value, size), f"{what} of {size} bytes by site, of {MAX_SITES} at most"


_SITES = f"a tuple of at most {MAX_SITES} site ids"
# What a field of this name may hold, and how that is said.
_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "run_id": (lambda value: _is(run_id, value), "a run id of lower-case letters, digits and hyphens"),
    "site_id": (lambda value: _is(site_id, value), "a site id of lower-case letters, digits and hyphens"),
    "round_id": (lambda value: _is_number(value, 0), f"0 to {MAX_NUMBER}"),
    "sum_id": (lambda value: _is_number(value, 1), f"1 to {MAX_NUMBER}"),
    "track": (_is_track, "a track's name of lower-case letters, digits and underscores"),
    "plan_digest": (
        lambda value: isinstance(value, str) and is_digest(value),
        "a digest of 64 hexadecimal digits",
    ),
    "adapter": (lambda value: isinstance(value, Adapter), "an adapter"),
    "words": (_is_words, "uint32 words with one axis, at least one"),
    "reason": (_is_reason, f"one printable line of 1 to {MAX_REASON} characters"),
    "members": (_are_sites, _SITES),
    "survivors": (_are_sites, _SITES),
    "dropouts": (_are_sites, _SITES),
    "keys": (lambda value: isinstance(value, SignedKeys), "signed keys"),
    "roster": (_are_keys, f"a tuple of at most {MAX_SITES} signed keys"),
    "envelopes": _by_site(ENVELOPE_SIZE, "envelopes"),
    "signatures": _by_site(SIGNATURE_SIZE, "signatures"),
    "seed_shares": _by_site(SHARE_SIZE, "shares"),
    "mask_key_shares": _by_site(SHARE_SIZE, "shares"),
    "transcript": (lambda value: _is_bytes(value, DIGEST_SIZE), f"{DIGEST_SIZE} bytes"),
    "head": (
        lambda value: value == "" or (isinstance(value, str) and is_digest(value)),
        "a digest of 64 hexadecimal digits, or nothing",
    ),
    "countersignature": (
        lambda value: _is_bytes(value, SIGNATURE_SIZE) or value == b"",
        f"{SIGNATURE_SIZE} bytes, or none",
    ),
    "part": (lambda value: value in get_args(Part), f"one of {', '.join(get_args(Part))}"),
    "temperature": (_is_temperature, "a finite number > 0"),
    "bin_accuracy": (_are_rates, f"nothing, or {RATES} rates from 0 to 1, each of which may be nothing"),
    "cause": (lambda value: value in get_args(RefusalCause), f"one of {', '.join(get_args(RefusalCause))}"),
    "signature": (lambda value: _is_bytes(value, SIGNATURE_SIZE), f"{SIGNATURE_SIZE} bytes"),
    "parts": (_are_parts, f"2 to {MAX_PARTS} messages, none of them a bundle"),
}
