"""What a site signs in a secure sum, made from its secrets. No state, no checks: those are the session's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from common.fixedpoint import Words
from common.ids import SiteId
from common.messages import Keys, ListSignature, MaskedInput, SealedShares, UnmaskShares
from common.pki import Identity
from common.secagg.envelopes import seal
from common.secagg.keys import Roster, SumContext, SumSecrets, sign_keys
from common.secagg.masks import mask_words
from common.secagg.packing import pack
from common.secagg.sharing import split
from common.secagg.statements import (
    masked_input_statement,
    sealed_shares_statement,
    survivor_list_statement,
    unmask_shares_statement,
)
from common.secagg.survivors import SurvivorList

BothShares = tuple[bytes, bytes]
"""A share of a site's self mask seed, and one of its mask key."""


def advertise_keys(context: SumContext, identity: Identity) -> tuple[SumSecrets, Keys]:
    """Fresh secrets, and what is told of them."""
    own = SumSecrets.generate()
    keys = sign_keys(context, own, identity)
    return own, Keys(run_id=context.run_id, track=context.track, sum_id=context.sum_id, keys=keys)


def share_keys(roster: Roster, own: SumSecrets, identity: Identity) -> tuple[BothShares, SealedShares]:
    """The site's shares of its own secrets, and those of all others, sealed."""
    site, context = identity.site_id, roster.context
    places = {"shares": len(roster.sites), "threshold": roster.threshold}
    pairs = zip(split(own.self_seed, **places), split(own.mask_key, **places), strict=True)
    shares = dict(zip(roster.sites, pairs, strict=True))
    kept = shares.pop(site)
    envelopes = {
        peer: seal(roster, own.envelope_key, sender=site, receiver=peer, shares=both)
        for peer, both in shares.items()
    }
    return kept, SealedShares(
        run_id=context.run_id,
        track=context.track,
        sum_id=context.sum_id,
        site_id=site,
        envelopes=envelopes,
        signature=identity.sign(sealed_shares_statement(roster, site, envelopes)),
    )


def mask_input(
    clear: Words,
    *,
    roster: Roster,
    members: Sequence[SiteId],
    transcript: bytes,
    own: SumSecrets,
    identity: Identity,
    bits: int,
) -> MaskedInput:
    """The site's vector, masked for the members of the transcript and packed to ``bits`` bits a word.

    ``clear`` is masked in place: a copy would be as large as the adapter.
    """
    site, context = identity.site_id, roster.context
    words = np.require(clear, dtype="<u4", requirements=["C", "W"])
    mask_words(words, roster=roster, members=members, transcript=transcript, site=site, own=own)
    packed = pack(words, bits)
    return MaskedInput(
        run_id=context.run_id,
        track=context.track,
        sum_id=context.sum_id,
        site_id=site,
        transcript=transcript,
        words=packed,
        signature=identity.sign(masked_input_statement(context, transcript, site, packed)),
    )


def sign_list(roster: Roster, transcript: bytes, named: SurvivorList, identity: Identity) -> ListSignature:
    """The site's word for a list."""
    context = roster.context
    statement = survivor_list_statement(context, transcript, named.survivors, named.dropouts)
    return ListSignature(
        run_id=context.run_id,
        track=context.track,
        sum_id=context.sum_id,
        site_id=identity.site_id,
        signature=identity.sign(statement),
    )


def unmask(
    roster: Roster,
    transcript: bytes,
    named: SurvivorList,
    shares: Mapping[SiteId, BothShares],
    identity: Identity,
) -> UnmaskShares:
    """Seed shares of the survivors and mask key shares of the dropouts; one of the two for each site."""
    site, context = identity.site_id, roster.context
    seeds = {peer: shares[peer][0] for peer in named.survivors}
    mask_keys = {peer: shares[peer][1] for peer in named.dropouts}
    statement = unmask_shares_statement(context, transcript, site, seeds, mask_keys)
    return UnmaskShares(
        run_id=context.run_id,
        track=context.track,
        sum_id=context.sum_id,
        site_id=site,
        seed_shares=seeds,
        mask_key_shares=mask_keys,
        signature=identity.sign(statement),
    )
