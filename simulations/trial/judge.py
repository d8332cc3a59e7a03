"""What a run of the daemons left behind, and whether it is as it has to be.

Every round once, in order; every site's ledger whole, with at least as many steps as rounds; what was let in
written down in an audit log that is whole.
"""

from __future__ import annotations

import json
from typing import Any

from simulations.trial.stand import Stand


def judge(stand: Stand, run: str) -> dict[str, Any]:
    """What there is to see, as plain values; ``held`` if all of it is as it has to be."""
    plan = stand.hospitals.plan
    faults: list[str] = []
    tracks: dict[str, Any] = {}
    for track in plan.tracks:
        report = json.loads((stand.out(run) / track.track / "rounds.json").read_text(encoding="utf-8"))
        rounds = report["rounds"]
        numbers = [one["round_id"] for one in rounds]
        if numbers != list(range(1, track.all_rounds + 1)):
            faults.append(f"{track.track}: rounds {numbers}")
        sums = [one["sum_id"] for one in rounds]
        if len(set(sums)) < len(sums):
            faults.append(f"{track.track}: a secure sum was counted twice")
        tracks[track.track] = {
            "rounds": len(rounds),
            "adapter_id": report["adapter_id"],
            "retried": report["retried"],
            "seconds_a_round": _mean(one["seconds"] for one in rounds[1:] or rounds),
            "waiting_s_a_round": _mean(one["waiting_s"] for one in rounds[1:] or rounds),
            "exchanges": [one["exchanges"] for one in rounds],
            "metrics": report["metrics"],
        }
    return {
        "tracks": tracks,
        "ledgers": _ledgers(stand, faults),
        "faults": faults,
        "held": not faults,
    }


def _ledgers(stand: Stand, faults: list[str]) -> dict[str, int]:
    """Entries of each site's ledger, which has to be whole and never to say less than was released."""
    plan = stand.hospitals.plan
    if plan.privacy.mode == "none":
        return {}
    entries: dict[str, int] = {}
    least = sum(track.all_rounds for track in plan.tracks)
    for site in stand.sites:
        verified = stand.site(site, "ledger", "verify", check=False)
        audited = stand.site(site, "audit", "--verify", check=False)
        if verified.status or audited.status:
            faults.append(f"{site}: {verified.err}{audited.err}")
            continue
        lines = stand.site(site, "ledger", "export").out.splitlines()
        entries[site] = len(lines)
        steps = sum(
            charge["steps"]
            for charge in (json.loads(line)["charge"] for line in lines)
            if charge["part"] == "student"
        )
        if steps < least:
            faults.append(f"{site}: the ledger says {steps} steps, {least} were released")
    return entries


def _mean(values: Any) -> float:
    found = list(values)
    return round(sum(found) / len(found), 2)
