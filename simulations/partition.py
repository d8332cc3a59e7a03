"""How real records fall to simulated hospitals.

Cases of one publication look alike and were seen by one team, so a publication belongs to one site as a
whole: few sites then see a given disease, and some see it alone. That is as uneven as it gets, and close to
how rare diseases are spread.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from client.patients.records import PatientRecord
from common.ids import SiteId


def hold_out_publications(
    records: Sequence[PatientRecord], track: str, *, share: float, fewest_left: int, seed: int
) -> tuple[tuple[PatientRecord, ...], tuple[PatientRecord, ...]]:
    """Split off whole publications: (the rest, the held-out ones).

    Publications are visited in an order drawn from ``seed``; one is held out if every answer in it keeps
    ``fewest_left`` records in the rest, until ``share`` of the records is out. So a held-out case can be
    answered from what is left, and its paper was never seen.

    Guarantee: no publication is on both sides.
    """
    if not 0 <= share < 1:
        raise ValueError(f"Expected a share from 0 to below 1, got {share}")
    left = Counter(record.label[track] for record in records)
    out: set[str] = set()
    wanted = share * len(records)
    held = 0
    for name, members in _publications(records, seed):
        taken = Counter(record.label[track] for record in members)
        if held + len(members) > wanted or any(left[a] - n < fewest_left for a, n in taken.items()):
            continue
        out.add(name)
        held += len(members)
        left.subtract(taken)
    rest = tuple(record for record in records if _publication(record) not in out)
    return rest, tuple(record for record in records if _publication(record) in out)


def split_by_publication(
    records: Sequence[PatientRecord], shares: Mapping[SiteId, float], *, seed: int
) -> Mapping[SiteId, tuple[PatientRecord, ...]]:
    """Records by site, every publication whole, sites of about the given shares.

    Large publications are placed first, each at the site that is furthest below its share.

    Guarantee: every record is at one site, and no publication at two.
    """
    if not shares or min(shares.values()) <= 0:
        raise ValueError(f"Expected a positive share for each site, got {dict(shares)}")
    total = sum(shares.values())
    room = {site: len(records) * share / total for site, share in shares.items()}
    by_site: dict[SiteId, list[PatientRecord]] = {site: [] for site in shares}
    publications = _publications(records, seed)
    for _, members in sorted(publications, key=lambda item: -len(item[1])):
        site = max(room, key=lambda name: room[name])
        by_site[site] += members
        room[site] -= len(members)
    return {site: tuple(members) for site, members in by_site.items()}


def _publications(records: Iterable[PatientRecord], seed: int) -> list[tuple[str, list[PatientRecord]]]:
    """(publication, its records), in an order drawn from the seed."""
    members: defaultdict[str, list[PatientRecord]] = defaultdict(list)
    for record in records:
        members[_publication(record)].append(record)
    return sorted(members.items(), key=lambda item: hashlib.sha256(f"{seed} {item[0]}".encode()).digest())


def _publication(record: PatientRecord) -> str:
    return record.group or record.patient_id
