from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from common.secagg import sharing
from common.secagg.reference import plain_join, plain_split
from common.secagg.sharing import MAX_TRIES, PRIME, SECRET_SIZE, SHARE_SIZE, join, recover, split
from tests.common.secagg.fixed import secret, tells

SECRETS = st.binary(min_size=SECRET_SIZE, max_size=SECRET_SIZE)
NUMBERS = st.integers(0, PRIME - 1)


@st.composite
def splits(draw: st.DrawFn) -> tuple[bytes, int, dict[int, bytes]]:
    """A secret, a threshold, and the shares by place."""
    made, shares = draw(SECRETS), draw(st.integers(1, 8))
    threshold = draw(st.integers(1, shares))
    values = split(made, shares=shares, threshold=threshold)
    return made, threshold, dict(enumerate(values, 1))


def drawn_from(monkeypatch: pytest.MonkeyPatch, numbers: Iterator[int]) -> None:
    monkeypatch.setattr(sharing.secrets, "randbelow", lambda below: next(numbers))


def chosen(shares: Mapping[int, bytes], places: tuple[int, ...]) -> dict[int, bytes]:
    return {place: shares[place] for place in places}


@given(example=splits(), data=st.data())
def test_any_threshold_of_the_shares_gives_the_secret(
    example: tuple[bytes, int, dict[int, bytes]], data: st.DataObject
) -> None:
    made, threshold, shares = example
    assert {len(share) for share in shares.values()} == {SHARE_SIZE}
    for places in combinations(shares, threshold):
        assert join(chosen(shares, places)) == made
    # More of them do too, in any order.
    places = tuple(data.draw(st.permutations(list(shares))))
    assert join(chosen(shares, places)) == made


@given(made=SECRETS, coefficients=st.lists(NUMBERS, max_size=6), more=st.integers(1, 4))
def test_shares_are_the_reference_s_at_the_same_coefficients(
    made: bytes, coefficients: list[int], more: int
) -> None:
    threshold = len(coefficients) + 1
    shares = len(coefficients) + more
    with pytest.MonkeyPatch.context() as patch:
        drawn_from(patch, iter(coefficients))
        assert list(split(made, shares=shares, threshold=threshold)) == plain_split(
            made, coefficients, shares
        )


@given(shares=st.dictionaries(st.integers(1, 300), NUMBERS, min_size=1, max_size=8))
def test_joining_is_the_reference_s_neville_scheme(shares: dict[int, int]) -> None:
    given_shares = {place: number.to_bytes(SHARE_SIZE, "big") for place, number in shares.items()}
    value = plain_join(given_shares)
    expected = value.to_bytes(SECRET_SIZE, "big") if value < 2**256 else None
    assert join(given_shares) == expected


def test_what_is_no_secret_of_32_bytes_joins_to_none() -> None:
    assert join({1: (2**256 - 1).to_bytes(SHARE_SIZE, "big")}) == b"\xff" * 32
    assert join({1: (2**256).to_bytes(SHARE_SIZE, "big")}) is None
    assert join({1: b"\xff" * SHARE_SIZE}) == ((2**528 - 1) % PRIME).to_bytes(32, "big")


@given(example=splits(), other=SECRETS)
def test_one_share_too_few_fits_every_secret(
    example: tuple[bytes, int, dict[int, bytes]], other: bytes
) -> None:
    _, threshold, shares = example
    assume(threshold > 1)
    few = chosen(shares, tuple(shares)[: threshold - 1])
    # The polynomial through these shares and the other secret, which is one of degree threshold - 1.
    through = {**few, 0: other.rjust(SHARE_SIZE, b"\0")}
    at = {place: plain_join(through, at=place).to_bytes(SHARE_SIZE, "big") for place in range(1, 9)}
    assert chosen(at, tuple(few)) == few
    assert join(chosen(at, tuple(range(1, threshold + 1)))) == other


@pytest.mark.parametrize("places", [(0,), (2,), (0, 1), (1, 3)])
def test_fewer_than_threshold_shares_are_independent_of_the_secret(
    places: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All polynomials of a field small enough to try them all: threshold 3, 4 shares, numbers modulo 7.
    small = 7
    monkeypatch.setattr(sharing, "PRIME", small)
    drawn_from(monkeypatch, iter([number for _ in range(small) for pair in pairs(small) for number in pair]))
    seen: dict[int, Counter[tuple[bytes, ...]]] = {}
    whole: dict[int, Counter[tuple[bytes, ...]]] = {}
    for value in range(small):
        made = [split(value.to_bytes(32, "big"), shares=4, threshold=3) for _ in pairs(small)]
        seen[value] = Counter(tuple(shares[place] for place in places) for shares in made)
        whole[value] = Counter(shares[:3] for shares in made)
    assert all(counts == seen[0] for counts in seen.values())
    # The test would notice: a threshold of them depends on the secret.
    assert whole[0] != whole[1]


def pairs(small: int) -> list[tuple[int, int]]:
    return list(product(range(small), repeat=2))


def test_shares_are_drawn_anew_each_time() -> None:
    made = secret("same")
    first, second = (split(made, shares=3, threshold=2) for _ in range(2))
    assert not set(first) & set(second)


def test_with_a_threshold_of_one_each_share_is_the_secret() -> None:
    assert split(secret("open"), shares=2, threshold=1) == (secret("open").rjust(SHARE_SIZE, b"\0"),) * 2


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="Expected a secret of 32 bytes"):
        split(bytes(size), shares=3, threshold=2)


@pytest.mark.parametrize(("shares", "threshold"), [(3, 0), (3, 4), (0, 0), (2, -1)])
def test_a_threshold_that_no_shares_can_meet_is_refused(shares: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="Expected 1 <= threshold <= shares"):
        split(secret("any"), shares=shares, threshold=threshold)


@given(example=splits(), data=st.data())
def test_wrong_shares_do_not_matter_while_a_threshold_of_right_ones_is_left(
    example: tuple[bytes, int, dict[int, bytes]], data: st.DataObject
) -> None:
    made, threshold, shares = example
    wrong = data.draw(st.sets(st.sampled_from(list(shares)), max_size=len(shares) - threshold))
    damaged = shares | {place: data.draw(NUMBERS).to_bytes(SHARE_SIZE, "big") for place in wrong}
    found = recover(damaged, threshold, made.__eq__)
    assert found is not None
    assert found[0] == made
    assert join({place: damaged[place] for place in found[1]}) == made


@given(example=splits(), data=st.data())
def test_with_fewer_right_shares_than_the_threshold_nothing_is_recovered(
    example: tuple[bytes, int, dict[int, bytes]], data: st.DataObject
) -> None:
    made, threshold, shares = example
    right = data.draw(st.integers(0, threshold - 1))
    damaged = {
        place: share if place <= right else bytes([share[0] ^ 1]) + share[1:]
        for place, share in shares.items()
    }
    # Wrong ones that happen to lie on one polynomial through the secret are none of these.
    assume(all(join(chosen(damaged, places)) != made for places in combinations(damaged, threshold)))
    assert recover(damaged, threshold, made.__eq__) is None


@given(example=splits())
def test_too_few_shares_are_not_even_tried(example: tuple[bytes, int, dict[int, bytes]]) -> None:
    made, threshold, shares = example
    few = chosen(shares, tuple(shares)[: threshold - 1])
    asked: list[bytes] = []
    assert recover(few, threshold, lambda value: bool(asked.append(value))) is None
    assert not asked
    assert recover(few, threshold, made.__eq__) is None


def test_a_secret_is_only_what_the_commitment_accepts() -> None:
    shares = dict(enumerate(split(secret("a"), shares=4, threshold=3), 1))
    assert recover(shares, 3, secret("a").__eq__) == (secret("a"), (1, 2, 3))
    assert recover(shares, 3, secret("b").__eq__) is None


def test_the_first_shares_are_tried_first_and_the_caller_orders_them() -> None:
    shares = dict(enumerate(split(secret("a"), shares=40, threshold=27), 1))
    # Two wrong ones among forty: found at random once, and at once the next time.
    damaged = {**shares, 1: bytes(SHARE_SIZE), 2: bytes(SHARE_SIZE)}
    found = recover(damaged, 27, secret("a").__eq__)
    assert found is not None
    ordered = {place: damaged[place] for place in (*found[1], *damaged)}
    asked: list[bytes] = []
    recover(ordered, 27, lambda made: not asked.append(made) and made == secret("a"))
    assert len(asked) == 1


def test_a_try_is_bounded_however_many_shares_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, ...]] = []

    def no_secret(shares: Mapping[int, bytes]) -> None:
        tried.append(tuple(shares))
        assert len(tried) <= MAX_TRIES

    monkeypatch.setattr(sharing, "join", no_secret)
    shares = {place: bytes(SHARE_SIZE) for place in range(1, 41)}
    assert recover(shares, 27, lambda made: True) is None
    assert len(tried) == MAX_TRIES
    assert {len(places) for places in tried} == {27}
    # Where there are fewer sets than that, each has its turn.
    tried.clear()
    assert recover(chosen(shares, tuple(range(1, 13))), 9, lambda made: True) is None
    assert set(tried) == set(combinations(range(1, 13), 9))


def test_no_share_and_no_secret_is_told_by_a_refusal() -> None:
    made = secret("quiet") + b"\0"
    with pytest.raises(ValueError, match="got 33") as refused:
        split(made, shares=3, threshold=2)
    assert not tells(refused.value, made, made[:32])
