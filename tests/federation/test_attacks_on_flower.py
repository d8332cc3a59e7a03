"""Why Flower 1.41's SecAgg+ cannot be used: two attacks on it, and they succeed.

Both are the server's, with what Flower's own client code gives to it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from simulations.benchmarks import _flower_secagg as flower

# isort: split
from flwr.client.mod.secure_aggregation.secaggplus_mod import check_configs
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_mod, parameters_subtraction
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

MODULUS = flower.SETTINGS.modulus_range
TOLERANCE = 2 * flower.QUANTIZATION_STEP
LENGTH = 1000
# A pairwise seed is base64 text: the top bit of each of its bytes is zero, and so it is after the XOR.
TEXT_BITS = 0x7F7F7F7F
SEARCHED_BITS = 16


def drawn_vector() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=LENGTH).astype(np.float32)


def read_by_both_lists(
    victim: int, upload: flower.Upload, others: Sequence[flower.FlowerClient]
) -> NDArray[np.float64]:
    """The vector of ``victim``, from its upload and one request that names it as active and as dead.

    No client looks whether the lists meet: each answers with its share of the seed of the victim's self
    mask and with its share of the key behind the victim's pairwise masks.
    """
    request = flower.unmask_request(active=[victim, *(other.node for other in others)], dead=[victim])
    check_configs(Stage.UNMASK, request)
    answers = [flower.answer_unmask(other, request) for other in others]
    # In the order of the request, so that the victim's two come first and last.
    assert all(answer[0][0] == answer[-1][0] == victim for answer in answers)
    seed = combine_shares([answer[0][1] for answer in answers])
    key = combine_shares([answer[-1][1] for answer in answers])

    total = flower.server_sum([upload])
    total = parameters_subtraction(total, flower.expanded(seed, total))
    for other in others:
        pairwise_seed = generate_shared_key(bytes_to_private_key(key), bytes_to_public_key(other.state.pk1))
        total = flower.without_pairwise_mask(total, pairwise_seed, of=victim, towards=other.node)
    return flower.dequantized(parameters_mod(total, MODULUS), survivors=1)


def fold(seed: bytes) -> int:
    """What ``pseudo_rand_gen`` keeps of a seed: the XOR of its 32-bit words."""
    return int(np.bitwise_xor.reduce(np.frombuffer(seed, dtype="<u4")))


def seed_of(folded: int) -> bytes:
    """A 32-byte seed with this fold: as good as any other."""
    return folded.to_bytes(4, "little") + bytes(28)


def text_fold(bits: int) -> int:
    """The fold of a text seed out of its 28 free bits, seven a byte."""
    return sum(((bits >> 7 * byte) & 0x7F) << 8 * byte for byte in range(4))


def text_bits(folded: int) -> int:
    """The 28 free bits of a fold: the inverse of ``text_fold``."""
    return sum(((folded >> 8 * byte) & 0x7F) << 7 * byte for byte in range(4))


def find_fold(words: Sequence[int], candidates: Iterable[int]) -> int | None:
    """The candidate whose mask begins with ``words``. Two words leave one candidate of 2**28 in practice."""
    generator = np.random.RandomState()
    for candidate in candidates:
        generator.seed(candidate)
        if generator.randint(0, MODULUS - 1, len(words), dtype=np.int64).tolist() == list(words):
            return candidate
    return None


@pytest.mark.parametrize("number", range(5))
def test_a_request_with_a_victim_in_both_lists_reads_its_vector(number: int) -> None:
    clients, vector = flower.make_clients(5), drawn_vector()
    uploads = [flower.mask(client, vector) for client in clients]
    victim, upload = clients.pop(number), uploads[number]
    stolen = read_by_both_lists(victim.node, upload, others=clients)
    np.testing.assert_allclose(stolen, vector, rtol=0, atol=TOLERANCE)
    # The upload alone says nothing of the kind.
    assert np.abs(flower.dequantized(flower.server_sum([upload]), survivors=1) - vector).mean() > 1


def test_seeds_with_the_same_fold_grow_the_same_mask() -> None:
    seed = bytes(range(0, 256, 8))
    rotated = seed[4:] + seed[:4]
    assert seed != rotated
    masks = [pseudo_rand_gen(one, MODULUS, [(LENGTH,)])[0] for one in (seed, rotated, seed_of(fold(seed)))]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])
    assert (masks[0] != pseudo_rand_gen(seed_of(fold(seed) ^ 1), MODULUS, [(LENGTH,)])[0]).any()


def test_a_pairwise_seed_keeps_28_bits() -> None:
    seeds = [seed for client in flower.make_clients(8) for seed in client.state.ss2_dict.values()]
    assert np.bitwise_or.reduce([fold(seed) for seed in seeds]) & ~TEXT_BITS == 0
    assert all(text_fold(text_bits(fold(seed))) == fold(seed) for seed in seeds)


def test_a_mask_found_by_search_reads_a_vector() -> None:
    """Between two sites, after a round that went as it should: the self mask is then the server's to know.

    The server also knows the first words under the pairwise mask: the weight, which travels in clear beside
    the upload, and values that are zero in every update. It tries folds until one gives those words.

    The search is bounded here: 12 of the 28 bits are given and 2**16 folds are tried. The full space is
    2**28 folds; at the 20 microseconds that a try takes here, that is 1.5 hours with NumPy on one core.
    """
    (site, other), vector = flower.make_clients(2), drawn_vector()
    vector[:3] = 0
    upload, _ = flower.mask(site, vector), flower.mask(other, vector)
    self_seed = combine_shares(list(flower.ask_for_shares([site, other]).shares_by_node[site.node]))
    total = flower.server_sum([upload])
    total = parameters_subtraction(total, flower.expanded(self_seed, total))

    weight, zero = flower.SETTINGS.quantization_range, flower.SETTINGS.quantization_range // 2
    known = np.array([weight, zero, zero, zero])
    # The site with the smaller id subtracts the mask.
    words = (known - np.concatenate([total[0], total[1][:3]])) % MODULUS
    truth = generate_shared_key(bytes_to_private_key(site.state.sk1), bytes_to_public_key(other.state.pk1))
    given = text_bits(fold(truth)) >> SEARCHED_BITS << SEARCHED_BITS
    found = find_fold(words.tolist(), (text_fold(given | low) for low in range(2**SEARCHED_BITS)))

    assert found == fold(truth)
    total = flower.without_pairwise_mask(total, seed_of(found), of=site.node, towards=other.node)
    stolen = flower.dequantized(parameters_mod(total, MODULUS), survivors=1)
    np.testing.assert_allclose(stolen, vector, rtol=0, atol=TOLERANCE)
    assert find_fold(words.tolist(), [found ^ 1]) is None
