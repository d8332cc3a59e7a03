"""Secure aggregation beside Flower's SecAgg+ and beside the least that masking can cost.

A client's work is to make integers of a vector and mask them for ``n`` sites; the server's is to add ``n``
masked vectors and to take the masks off, nobody lost. The floor is ``n`` keystreams of AES-256-CTR, each
added as it is made, and for the server ``n`` additions more: what no protocol with these masks can go below.
Serialization is in Flower's client time, where its protocol has it; what ours adds to masking and unmasking,
hashing and signing a vector at the site and checking it at the coordinator, is given on its own
(``client_sign_s``, ``server_verify_s``).

Masks are made by as many threads as there are processors, ours and the floor's alike; Flower's functions
use one. ``one_thread_floor_s`` is the client's floor with one.

``ratio_to_flower`` is the smaller of client's and server's gain, ``ratio_to_floor`` the larger of their
costs. Memory is the coordinator's peak while it adds up, of a sum of 100 sites to that of few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.fixedpoint import WORD_BITS, FixedPoint, Words, add_words
from common.ids import RunId, SiteId
from common.pki import Identity
from common.ranges import processors
from common.secagg.keys import Roster, SumContext, SumSecrets, seed_hash, sign_keys
from common.secagg.masks import BLOCK_WORDS, add_masks, mask_words, unmask_sum
from common.secagg.packing import pack, packed_size, unpack
from common.secagg.sharing import recover, split
from common.secagg.statements import masked_input_statement
from simulations.benchmarks import _flower_secagg as flower
from simulations.benchmarks._coordinator_memory import FEWEST_SITES, memory_of_round, memory_of_sum
from simulations.benchmarks._measure import in_turns, parser, positive, report

MANY_SITES = 100
PACKED_BITS = 20
TOPIC = bytes(32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser("secure_aggregation", __doc__)
    options.add_argument("--sites", type=positive, default=5, help="n; default %(default)s")
    options.add_argument("--size", type=positive, default=10**7, help="d; default %(default)s")
    options.add_argument("--memory-size", type=positive, default=10**6, help="d of the memory's turns")
    options.add_argument("--many", type=positive, default=MANY_SITES, help="sites of the larger sum")
    chosen = options.parse_args(arguments)
    values = {
        **measure(chosen.sites, chosen.size, chosen.repeats),
        **measure_memory(chosen.memory_size, chosen.many),
    }
    report(f"Secure sum of {chosen.sites} x {chosen.size} values", values, as_json=chosen.json)


@dataclass(frozen=True, kw_only=True)
class Ours:
    """Sites with keys and shares, as they stand when the work begins."""

    roster: Roster
    secrets: dict[SiteId, SumSecrets]
    identities: dict[SiteId, Identity]
    seed_shares: dict[SiteId, tuple[bytes, ...]]
    fixed_point: FixedPoint

    @classmethod
    def make(cls, sites: int) -> Ours:
        """``sites`` of them."""
        names = [SiteId(f"site-{i:03d}") for i in range(sites)]
        context = SumContext(run_id=RunId("benchmark"), track="t", sum_id=1, plan_digest="0" * 64)
        identities = {name: Identity.generate(name) for name in names}
        secrets = {name: SumSecrets.generate() for name in names}
        entries = tuple(sign_keys(context, secrets[name], identities[name]) for name in names)
        roster = Roster(context=context, entries=entries)
        shares = {
            name: split(secrets[name].self_seed, shares=sites, threshold=roster.threshold) for name in names
        }
        return cls(
            roster=roster,
            secrets=secrets,
            identities=identities,
            seed_shares=shares,
            fixed_point=FixedPoint.for_sum(max_abs=1.0, terms=sites),
        )

    @property
    def transcript(self) -> bytes:
        """Of all sites."""
        return self.roster.transcript(self.roster.sites, TOPIC)

    def mask(self, site: SiteId, vector: NDArray[np.float32]) -> Words:
        """The site's work."""
        words = self.fixed_point.encode(vector)
        mask_words(
            words,
            roster=self.roster,
            members=self.roster.sites,
            transcript=self.transcript,
            site=site,
            own=self.secrets[site],
        )
        return words

    def sign(self, site: SiteId, words: Words) -> bytes:
        """What the site does beyond masking."""
        statement = masked_input_statement(self.roster.context, self.transcript, site, words)
        return self.identities[site].sign(statement)

    def unmask(self, uploads: Sequence[Words]) -> Words:
        """The server's work: the sum, the seeds from a threshold of shares, the masks taken off."""
        total = np.zeros_like(uploads[0])
        for words in uploads:
            add_words(total, words)
        seeds = {site: self._seed(site) for site in self.roster.sites}
        unmask_sum(total, roster=self.roster, transcript=self.transcript, seeds=seeds, lost_mask_keys={})
        return total

    def verify(self, uploads: Sequence[Words], signatures: Sequence[bytes]) -> None:
        """What the server does beyond it."""
        for site, words, signature in zip(self.roster.sites, uploads, signatures, strict=True):
            statement = masked_input_statement(self.roster.context, self.transcript, site, words)
            self.identities[site].public().verify(statement, signature, "masked input")

    def _seed(self, site: SiteId) -> bytes:
        commitment = self.roster.entry(site).seed_hash
        places = dict(enumerate(self.seed_shares[site][: self.roster.threshold], start=1))
        found = recover(
            places,
            self.roster.threshold,
            lambda made: seed_hash(self.roster.context, site, made) == commitment,
        )
        assert found is not None  # all shares are right
        return found[0]


def measure(sites: int, size: int, repeats: int) -> dict[str, float | int | str]:
    """Times, ratios and bytes."""
    ours, theirs = Ours.make(sites), flower.make_clients(sites)
    vector = np.random.default_rng(0).uniform(-0.1, 0.1, size).astype(np.float32)
    uploads = [ours.mask(site, vector) for site in ours.roster.sites]
    signatures = [ours.sign(site, words) for site, words in zip(ours.roster.sites, uploads, strict=True)]
    flower_uploads = [flower.mask(client, vector) for client in theirs]
    answers = flower.ask_for_shares(theirs)
    first, keys = ours.roster.sites[0], [bytes([i + 1]) * 32 for i in range(sites)]
    scratch = np.zeros(size, dtype=np.uint32)
    packed = pack(uploads[0], PACKED_BITS)

    def floor_server() -> None:
        for words in uploads:
            np.add(scratch, words, out=scratch)
        add_masks(scratch, minus=keys)

    seconds = in_turns(
        {
            "client_mask_s": lambda: ours.mask(first, vector),
            "floor_client_mask_s": lambda: add_masks(scratch, plus=keys),
            "flower_client_mask_s": lambda: flower.mask(theirs[0], vector),
            "server_unmask_s": lambda: ours.unmask(uploads),
            "floor_server_unmask_s": floor_server,
            "flower_server_unmask_s": lambda: flower.without_masks(
                flower.server_sum(flower_uploads), answers
            ),
            "one_thread_floor_s": lambda: add_masks(scratch, plus=keys, threads=1),
            "client_sign_s": lambda: ours.sign(first, uploads[0]),
            "server_verify_s": lambda: ours.verify(uploads, signatures),
            "pack_s": lambda: pack(uploads[0], PACKED_BITS),
            "unpack_s": lambda: unpack(packed, PACKED_BITS, size),
        },
        repeats,
    )
    error = _error(ours, uploads, vector)
    return {
        "n": sites,
        "d": size,
        "processors": processors(),
        **seconds,
        **_ratios(seconds),
        **_bytes(size, flower_uploads[0]),
        **error,
    }


def measure_memory(size: int, many: int) -> dict[str, float | int | str]:
    """The coordinator's peak memory, few sites beside many."""
    few_sum, many_sum = memory_of_sum(2, size), memory_of_sum(many, size)
    few_round, many_round = (memory_of_round(n, size, "memory") for n in (FEWEST_SITES, many))
    few_grid, many_grid = (memory_of_round(n, size, "grid") for n in (FEWEST_SITES, many))
    return {
        "memory_d": size,
        "memory_n": many,
        "sum_peak_bytes": many_sum,
        "memory_ratio": many_sum / few_sum,
        "round_peak_bytes": many_round,
        "round_memory_ratio": many_round / few_round,
        "grid_peak_bytes": many_grid,
        "grid_memory_ratio": many_grid / few_grid,
    }


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    client, server = seconds["client_mask_s"], seconds["server_unmask_s"]
    to_flower = seconds["flower_client_mask_s"] / client, seconds["flower_server_unmask_s"] / server
    to_floor = client / seconds["floor_client_mask_s"], server / seconds["floor_server_unmask_s"]
    return {
        "client_ratio_to_flower": to_flower[0],
        "server_ratio_to_flower": to_flower[1],
        "client_ratio_to_floor": to_floor[0],
        "server_ratio_to_floor": to_floor[1],
        "ratio_to_flower": min(to_flower),
        "ratio_to_floor": max(to_floor),
    }


def _bytes(size: int, flower_upload: flower.Upload) -> dict[str, float | int | str]:
    full, packed = packed_size(size, WORD_BITS), packed_size(size, PACKED_BITS)
    return {
        "bytes_up": 4 * full,
        "bytes_up_packed": 4 * packed,
        "flower_bytes_up": flower.bytes_up(flower_upload),
        "bytes_per_value": 4 * full / size,
        "bits_per_value_packed": 32 * packed / size,
        "flower_bytes_per_value": flower.bytes_up(flower_upload) / size,
    }


def _error(ours: Ours, uploads: Sequence[Words], vector: NDArray[np.float32]) -> dict[str, float]:
    """How far the unmasked sum is from the plain one: the work that was timed was right."""
    total = ours.fixed_point.decode(ours.unmask(uploads))
    plain = len(uploads) * vector.astype(np.float64)
    return {"max_abs_error": float(np.abs(total - plain).max()), "block_words": BLOCK_WORDS}


if __name__ == "__main__":
    main()
