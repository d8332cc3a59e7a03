"""What sites sign: digests of 32 bytes, one label for each kind, so that none can stand for another.

The signature of a site's keys is with the keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from common.canonical import labeled_digest
from common.fixedpoint import Words
from common.ids import SiteId
from common.secagg.keys import Roster, SumContext

SEALED_LABEL = "consilium secagg-v1 sealed shares"
MASKED_LABEL = "consilium secagg-v1 masked input"
LIST_LABEL = "consilium secagg-v1 survivor list"
SHARES_LABEL = "consilium secagg-v1 unmask shares"


def sealed_shares_statement(roster: Roster, sender: SiteId, envelopes: Mapping[SiteId, bytes]) -> bytes:
    """That ``sender`` sealed these envelopes, by receiver, for this roster."""
    return labeled_digest(SEALED_LABEL, roster.digest(), sender.encode(), *_pairs(envelopes))


def masked_input_statement(context: SumContext, transcript: bytes, site: SiteId, packed: Words) -> bytes:
    """That ``site`` adds these masked words, as they are sent."""
    words = hashlib.sha256(packed.data).digest()
    return labeled_digest(MASKED_LABEL, context.digest(), transcript, site.encode(), words)


def survivor_list_statement(
    context: SumContext, transcript: bytes, survivors: Sequence[SiteId], dropouts: Sequence[SiteId]
) -> bytes:
    """That the signer will give shares for this list and no other."""
    names = (",".join(sites).encode() for sites in (survivors, dropouts))
    return labeled_digest(LIST_LABEL, context.digest(), transcript, *names)


def unmask_shares_statement(
    context: SumContext,
    transcript: bytes,
    site: SiteId,
    seed_shares: Mapping[SiteId, bytes],
    mask_key_shares: Mapping[SiteId, bytes],
) -> bytes:
    """That ``site`` gives these shares of survivors' seeds and of dropouts' mask keys."""
    counts = (str(len(seed_shares)).encode(), str(len(mask_key_shares)).encode())
    parts = (*counts, *_pairs(seed_shares), *_pairs(mask_key_shares))
    return labeled_digest(SHARES_LABEL, context.digest(), transcript, site.encode(), *parts)


def _pairs(by_site: Mapping[SiteId, bytes]) -> list[bytes]:
    return [part for site, value in sorted(by_site.items()) for part in (site.encode(), value)]
