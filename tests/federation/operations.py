"""Operation lists: what happens to whom in which exchange, drawn from a seed and printed where it fails."""

from __future__ import annotations

import random
from dataclasses import dataclass

from common.ids import SiteId, site_id

# What a network and a hospital's machine do.
FAULTS = ("drop", "late", "replay_answer", "duplicate", "tamper_answer", "crash", "restart")
# What a lying coordinator asks for.
LIES = (
    *("replay_request", "tamper_request", "swap_keys", "forge_keys", "invent_site", "shrink_roster"),
    *("other_adapter", "wrong_round", "wrong_sum", "fewer_members", "swap_envelopes"),
    *("both_lists", "move_to_dropouts", "probe_list", "probe_unmask"),
)
# What a lying hospital answers.
BAD_HOSPITAL = ("wrong_shares", "wrong_envelopes")
# Twice what is effective in one of the exchanges only.
KINDS = (*FAULTS, *LIES, *BAD_HOSPITAL, *BAD_HOSPITAL)
# What a lying coordinator does to all sites together: no single message would get him anything.
SCHEMES = ("", "", "both_lists", "split_lists", "ask_twice")
EXCHANGES = 9


@dataclass(frozen=True)
class Operation:
    """One thing that happens: in which exchange, to which site, with a number to choose by."""

    exchange: int
    site: SiteId
    kind: str
    choice: int


@dataclass(frozen=True)
class Play:
    """A federation and all that happens to it."""

    sites: tuple[SiteId, ...]
    colluders: frozenset[SiteId]
    lost_before_upload: str
    scheme: str
    operations: tuple[Operation, ...]


def draw(seed: int) -> Play:
    """The play of a seed."""
    rng = random.Random(seed)
    sites = tuple(site_id(f"site-{letter}") for letter in "abcdef"[: rng.choice((3, 4, 4, 5, 6))])
    # As many as a coordinator may have bought: fewer than a third.
    colluders = frozenset(rng.sample(sites, rng.randint(0, (len(sites) - 1) // 3)))
    operations = tuple(
        Operation(rng.randrange(EXCHANGES), rng.choice(sites), rng.choice(KINDS), rng.randrange(10**6))
        for _ in range(rng.randint(1, 8))
    )
    return Play(
        sites, colluders, rng.choice(("recover", "recover", "abort")), rng.choice(SCHEMES), operations
    )
