import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.ids import is_digest, run_id, site_id

# No deadline: another test may hold the processor.
few = settings(max_examples=30, deadline=None)


@few
@given(text=st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True))
def test_a_name_of_letters_digits_and_hyphens_is_accepted(text: str) -> None:
    assert site_id(text) == text
    assert run_id(text) == text


@pytest.mark.parametrize("text", ["", "-a", "A", "a_b", "a b", "a\n", "ä", "a/b", "a" * 41, "٣"])
def test_any_other_name_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="Expected a site id"):
        site_id(text)
    with pytest.raises(ValueError, match="Expected a run id") as caught:
        run_id(text)
    assert repr(text) in str(caught.value)


def test_a_digest_is_64_lower_case_hexadecimal_digits() -> None:
    assert is_digest("0123456789abcdef" * 4)
    for text in ("", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n"):
        assert not is_digest(text)
