import pytest

from common.errors import (
    BadFileError,
    BadMessageError,
    DigestMismatchError,
    FederationError,
    SettingsError,
    SiteRefusedError,
    TooFewSurvivorsError,
    UnsupportedSchemaError,
)

EXAMPLES = [
    (
        UnsupportedSchemaError("plan", 3, 1),
        "plan: schema 3 is newer than 1, the newest this version reads",
    ),
    (DigestMismatchError("answers", "ab", "cd"), "answers: expected digest cd, got ab"),
    (TooFewSurvivorsError(4, 2, 3), "Round 4: 2 sites survived, 3 needed"),
    (SiteRefusedError("alpha", "plan not approved"), "Site alpha refused: plan not approved"),
    (BadMessageError("no magic"), "Bad message: no magic"),
    (BadFileError("a/b.json", "no JSON"), "a/b.json: no JSON"),
    (SettingsError("rounds", 0, "a whole number >= 1"), "rounds: expected a whole number >= 1, got 0"),
]


@pytest.mark.parametrize(("error", "message"), EXAMPLES)
def test_an_error_says_its_line(error: FederationError, message: str) -> None:
    assert str(error) == message
    assert isinstance(error, FederationError)


@pytest.mark.parametrize(
    "error",
    [BadMessageError("two\nlines " * 200), SiteRefusedError("a", "x\ny"), SettingsError("k", "x\ny", "z")],
)
def test_a_message_stays_one_line_of_bearable_length(error: FederationError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400


def test_a_settings_error_is_a_value_error_and_the_others_are_not() -> None:
    for error, _ in EXAMPLES:
        assert isinstance(error, ValueError) == isinstance(error, SettingsError)


def test_a_settings_error_is_named_from_the_outside() -> None:
    error = SettingsError("rounds", 0, "a whole number >= 1").under("training").under("plan")
    assert str(error) == "plan.training.rounds: expected a whole number >= 1, got 0"
