"""Four sites whose secrets are made of their names, and what follows from them."""

import hashlib
import traceback
from dataclasses import replace

from common.canonical import labeled_digest
from common.ids import RunId, SiteId, site_id
from common.pki import Identity
from common.secagg.keys import KEYS_LABEL, Roster, SignedKeys, SumContext, SumSecrets, sign_keys

SITES = A, B, C, D = tuple(site_id(f"site-{letter}") for letter in "abcd")
CONTEXT = SumContext(run_id=RunId("run-1"), track="rare_disease", sum_id=7, plan_digest="5" * 64)
# One for each field, with that field alone changed.
OTHER_CONTEXTS = {
    "run_id": replace(CONTEXT, run_id=RunId("run-2")),
    "track": replace(CONTEXT, track="skin_condition"),
    "sum_id": replace(CONTEXT, sum_id=8),
    "plan_digest": replace(CONTEXT, plan_digest="6" * 64),
}
TOPIC = b"t" * 32

# Points whose multiple by any X25519 private key is zero (Bernstein, "Curve25519", section 3): orders 1, 2, 4
# and 8, and what is the same modulo 2**255 - 19.
SMALL_ORDER = [
    number.to_bytes(32, "little")
    for number in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
    )
]


def secret(*names: str) -> bytes:
    return hashlib.sha256("/".join(names).encode()).digest()


IDENTITIES = {site: Identity(site_id=site, private_key=secret(site, "identity")) for site in SITES}
APPROVED = {site: identity.public() for site, identity in IDENTITIES.items()}
SECRETS = {
    site: SumSecrets(
        mask_key=secret(site, "mask key"),
        envelope_key=secret(site, "envelope key"),
        self_seed=secret(site, "seed"),
    )
    for site in SITES
}


def signed_keys(site: SiteId, context: SumContext = CONTEXT, **other: bytes) -> SignedKeys:
    """A site's keys; ``other`` ones in their place are signed too, as a site that cheats would."""
    keys = replace(sign_keys(context, SECRETS[site], IDENTITIES[site]), **other)
    statement = labeled_digest(KEYS_LABEL, context.digest(), *keys.parts())
    return replace(keys, signature=IDENTITIES[site].sign(statement))


def roster(*sites: SiteId, context: SumContext = CONTEXT, **other: SignedKeys) -> Roster:
    """The roster of the sites, or of all; ``other`` keys by a site's letter."""
    made = (other.get(site[-1], signed_keys(site, context)) for site in sites or SITES)
    return Roster(context=context, entries=tuple(made))


def with_bit_flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def tells(value: object, *secrets: bytes) -> bool:
    """Whether text or repr of a value, or all that an exception would print, holds one of the secrets."""
    texts = [repr(value), str(value)]
    if isinstance(value, BaseException):
        texts += traceback.format_exception(value)
    text = "\n".join(texts)
    # A repr of bytes begins like this, and any longer one holds it.
    forms = [(item.hex(), repr(item)[2:-1], str(list(item))[1:-1]) for item in secrets]
    return any(form in text for some in forms for form in some)
