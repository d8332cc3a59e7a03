"""Splits of patients that depend on who they are and on a seed, never on the order they come in.

Each patient gets a keyed hash from the seed and the pseudonym; all choices follow from it. A split by
patient is balanced by label; a split by group (publication, family) is the strict one, for cases of one
paper look alike.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import isclose

from client.patients.records import PatientRecord

Parts = Mapping[str, tuple[PatientRecord, ...]]

_LARGEST_SEED = 2**63 - 1
_HASH_RANGE = 2**64
_SMALLEST_SHARE = 1e-6
_SURPLUS = 1e-9


def split_by_patient(records: Iterable[PatientRecord], fractions: Mapping[str, float], seed: int) -> Parts:
    """Parts of about the given shares, every label spread over them; records in order of their pseudonyms.

    A label's patients are shared out by rounding its shares down; what is left over goes where the parts
    lag behind most, so that the parts' sizes come out right although most labels are rare.

    Guarantee: parts are disjoint and together whole, and a label of two or more patients has one in the
    part that ``fractions`` names first.

    Args:
        records: Each patient once.
        fractions: Share by name of the part, 1 together; the training part first.
        seed: At least 0.
    """
    return split_by_arrival((records,), fractions, seed)


def split_by_arrival(
    arrivals: Iterable[Iterable[PatientRecord]], fractions: Mapping[str, float], seed: int
) -> Parts:
    """As `split_by_patient`, for patients who come one group after the other.

    Each arrival is split by itself, labels too, but for how far the parts lag behind: the parts' sizes come
    out right however small the arrivals are.

    Guarantee: whoever came before stays in his part when others come after.

    Args:
        arrivals: In their order; each patient once, in one of them.
        fractions: As of `split_by_patient`.
        seed: As of `split_by_patient`.
    """
    lag = dict.fromkeys(fractions, 0.0)
    parts: dict[str, list[PatientRecord]] = {name: [] for name in fractions}
    for records in arrivals:
        for stratum in _strata(_ordered(records, fractions, seed), seed):
            sizes = _shares(len(stratum), fractions, lag)
            start = 0
            for name, size in sizes.items():
                parts[name] += stratum[start : start + size]
                start += size
    return _sorted_parts(parts)


def split_by_group(records: Iterable[PatientRecord], fractions: Mapping[str, float], seed: int) -> Parts:
    """Parts of about the given shares with every group whole; records in order of their pseudonyms.

    A patient without a group is a group of one. Groups are placed from large to small, each by chance
    among the parts that still have room for it, in proportion to that room.

    Guarantee: parts are disjoint and together whole, and no group is on two sides.
    """
    ordered = _ordered(records, fractions, seed)
    members = _groups(ordered)
    room = {name: share * len(ordered) for name, share in fractions.items()}
    parts: dict[str, list[PatientRecord]] = {name: [] for name in fractions}
    for group in sorted(members, key=lambda group: _placing_order(members[group], group, seed)):
        name = _roomy_part(room, len(members[group]), _hash(seed, "part", group) / _HASH_RANGE)
        parts[name] += members[group]
        room[name] -= len(members[group])
    return _sorted_parts(parts)


def folds(records: Iterable[PatientRecord], k: int, seed: int) -> Mapping[str, int]:
    """The fold of each patient, 0 to k - 1, by pseudonym; sizes differ by at most one.

    Guarantee: a label's patients are spread over the folds as evenly as their number allows.
    """
    ordered = _ordered(records, {"all": 1.0}, seed)
    if not 2 <= k <= len(ordered):
        raise ValueError(f"Expected 2 to {len(ordered)} folds, one patient each at least, got {k}")
    # Dealt on from label to label: starting each label at fold 0 would make that fold the largest.
    dealt = [record.patient_id for stratum in _strata(ordered, seed) for record in stratum]
    fold_by_id = {patient_id: index % k for index, patient_id in enumerate(dealt)}
    return {record.patient_id: fold_by_id[record.patient_id] for record in ordered}


def independent_folds(records: Iterable[PatientRecord], k: int, seed: int) -> Mapping[str, int]:
    """The fold of each patient, 0 to k - 1, by pseudonym; a fold may be empty.

    Guarantee: a patient's fold depends on that patient's pseudonym and the seed alone. With `folds`, one
    patient more or less would move others to other folds, which differential privacy does not allow.
    """
    if k < 2:
        raise ValueError(f"Expected 2 folds or more, got {k}")
    ordered = _ordered(records, {"all": 1.0}, seed)
    return {record.patient_id: _hash(seed, "fold", record.patient_id) % k for record in ordered}


def _ordered(
    records: Iterable[PatientRecord], fractions: Mapping[str, float], seed: int
) -> list[PatientRecord]:
    """The records in order of their pseudonyms, after checks of all arguments."""
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"Expected a seed from 0 to 2**63 - 1, got {seed}")
    if not fractions or not all(share >= _SMALLEST_SHARE for share in fractions.values()):
        raise ValueError(f"Expected at least one part, each with a share of {_SMALLEST_SHARE} or more")
    if not isclose(sum(fractions.values()), 1.0, abs_tol=1e-9):
        raise ValueError(f"Expected shares of 1 together, got {sum(fractions.values())}")
    ordered = sorted(records, key=lambda record: record.patient_id)
    distinct = {record.patient_id for record in ordered}
    if len(distinct) < len(ordered):
        raise ValueError(f"Expected every patient once, got {len(ordered) - len(distinct)} again")
    return ordered


def _strata(ordered: Sequence[PatientRecord], seed: int) -> list[list[PatientRecord]]:
    """The patients of each label, labels and patients in the order of their hashes."""
    by_label: dict[str, list[PatientRecord]] = {}
    for record in ordered:
        by_label.setdefault(repr(sorted(record.label.items())), []).append(record)
    return [
        sorted(by_label[label], key=lambda record: _hash(seed, "patient", record.patient_id))
        for label in sorted(by_label, key=lambda label: _hash(seed, "label", label))
    ]


def _shares(count: int, fractions: Mapping[str, float], lag: dict[str, float]) -> dict[str, int]:
    """How many of ``count`` patients each part gets; ``lag``, in patients, is brought up to date."""
    first = next(iter(fractions))
    # Without the surplus 0.1 * 30, a little below 3 in binary, would lose its third patient.
    sizes = {name: int(share * count + _SURPLUS) for name, share in fractions.items()}
    if count >= 2:
        sizes[first] = max(sizes[first], 1)
    for name, share in fractions.items():
        lag[name] += share * count - sizes[name]
    for _ in range(count - sum(sizes.values())):
        name = max(lag, key=lambda name: lag[name])
        sizes[name] += 1
        lag[name] -= 1
    return sizes


def _groups(ordered: Iterable[PatientRecord]) -> dict[str, list[PatientRecord]]:
    members: dict[str, list[PatientRecord]] = {}
    for record in ordered:
        # The prefixes keep a group's name apart from a pseudonym that equals it.
        name = f"patient {record.patient_id}" if record.group is None else f"group {record.group}"
        members.setdefault(name, []).append(record)
    return members


def _placing_order(members: Sequence[PatientRecord], group: str, seed: int) -> tuple[int, int]:
    # Powers of two: placing strictly by size would give the largest groups the same order for every seed.
    return -len(members).bit_length(), _hash(seed, "group", group)


def _roomy_part(room: Mapping[str, float], size: int, chance: float) -> str:
    """A part with room for ``size`` patients, drawn in proportion to the room; the roomiest if none has."""
    fitting = {name: space for name, space in room.items() if space >= size}
    if not fitting:
        return max(room, key=lambda name: room[name])
    bounds = list(accumulate(fitting.values()))
    return list(fitting)[min(bisect_right(bounds, chance * bounds[-1]), len(bounds) - 1)]


def _sorted_parts(parts: Mapping[str, list[PatientRecord]]) -> Parts:
    return {name: tuple(sorted(part, key=lambda record: record.patient_id)) for name, part in parts.items()}


def _hash(seed: int, purpose: str, text: str) -> int:
    digest = hashlib.blake2b(
        f"{purpose}\n{text}".encode(), digest_size=8, key=seed.to_bytes(8, "big"), person=b"split"
    )
    return int.from_bytes(digest.digest(), "big")
