import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.secagg.packing import pack, packed_size, unpack
from common.secagg.reference import plain_pack

LENGTHS = range(201)
BITS = range(16, 33)
VECTORS = arrays(np.uint32, st.integers(0, 100), elements=st.integers(0, 2**32 - 1))


@pytest.mark.parametrize("bits", BITS)
def test_every_length_comes_back_as_it_was_packed(bits: int) -> None:
    generator = np.random.default_rng(bits)
    for length in LENGTHS:
        words = generator.integers(0, 1 << bits, size=length, dtype=np.uint32)
        packed = pack(words, bits)
        assert packed.dtype == np.uint32
        assert packed.shape == (packed_size(length, bits),)
        np.testing.assert_array_equal(unpack(packed, bits, length), words)


@given(words=VECTORS, bits=st.sampled_from(BITS))
def test_packed_words_are_the_reference_s_bit_by_bit(words: np.ndarray, bits: int) -> None:
    assert pack(words, bits).tolist() == plain_pack(words.tolist(), bits)


@given(words=VECTORS, bits=st.sampled_from(BITS))
def test_the_lowest_bits_of_every_word_are_kept_and_the_argument_is_not_changed(
    words: np.ndarray, bits: int
) -> None:
    before = words.copy()
    kept = unpack(pack(words, bits), bits, len(words))
    np.testing.assert_array_equal(kept, before & np.uint32((1 << bits) - 1))
    np.testing.assert_array_equal(words, before)


@given(words=VECTORS, mask=st.integers(0, 2**32 - 1), bits=st.sampled_from(BITS))
def test_a_mask_comes_off_modulo_two_to_the_bits(words: np.ndarray, mask: int, bits: int) -> None:
    masked = unpack(pack(words + np.uint32(mask), bits), bits, len(words))
    lowest = np.uint32((1 << bits) - 1)
    np.testing.assert_array_equal((masked - np.uint32(mask)) & lowest, words & lowest)


def test_a_million_words_of_20_bits_take_two_and_a_half_bytes_each_within_a_thousandth() -> None:
    size = 4 * packed_size(10**6, 20)
    assert abs(size / 10**6 - 2.5) <= 0.001 * 2.5
    assert 4 * pack(np.zeros(10**6, dtype=np.uint32), 20).size == size


def test_words_of_32_bits_are_left_as_they_are() -> None:
    words = np.arange(5, dtype=np.uint32)
    assert pack(words, 32) is words
    assert unpack(words, 32, 5) is words
    assert packed_size(5, 32) == 5


def test_a_packing_that_a_reader_can_follow() -> None:
    # 33 words make planes of 2: words 0 and 1, then 2 and 3, ... The first plane has the low half of row 0,
    # the second plane its high half.
    words = np.zeros(33, dtype=np.uint32)
    words[:4] = 0xA, 0xB, 0xC, 0xD
    packed = pack(words, 16).reshape(16, 2)
    assert packed[0].tolist() == [0x000C000A, 0x000D000B]
    assert not packed[1:].any()


@pytest.mark.parametrize("bits", [-1, 0, 1, 15, 33, 64])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    words = np.zeros(3, dtype=np.uint32)
    for use in (
        lambda: pack(words, bits),
        lambda: unpack(words, bits, 3),
        lambda: packed_size(3, bits),
    ):
        with pytest.raises(ValueError, match="Expected bits between 16 and 32"):
            use()


@pytest.mark.parametrize("bits", [16, 20, 31, 32])
@pytest.mark.parametrize("length", [1, 32, 33, 100])
def test_packed_words_of_another_number_are_refused(bits: int, length: int) -> None:
    size = packed_size(length, bits)
    for wrong in (0, size - 1, size + 1, 2 * size):
        with pytest.raises(ValueError, match=f"Expected {size} packed words, got {wrong}"):
            unpack(np.zeros(wrong, dtype=np.uint32), bits, length)
