from collections.abc import Callable
from typing import Any

import pytest

from common import checks
from common.errors import SettingsError, UnsupportedSchemaError

PAIRS: list[tuple[Callable[[Any], None], list[Any], list[Any]]] = [
    (lambda got: checks.require_whole("k", got, 2), [2, 3], [1, 0, -1]),
    (lambda got: checks.require_positive("k", got), [1e-9, 1], [0, -1, float("nan")]),
    (lambda got: checks.require_within("k", got, 0, 1), [0, 0.5], [1, -0.1, float("nan")]),
    (lambda got: checks.require_line("k", got), ["a", "a b"], ["", " a", "a ", "a\nb", "a  b"]),
    (lambda got: checks.require_digest("k", got), ["0" * 64], ["0" * 63, "F" * 64]),
    (lambda got: checks.require_date("k", got), ["2026-02-28"], ["2026-02-30", "20260228", "2026-2-28", ""]),
    (lambda got: checks.require_once("k", got), [["a"], ["a", "b"]], [[], ["a", "a"]]),
    (lambda got: checks.require_schema("k", got, 2), [1, 2], [0, -1, None, True, "1", 1.0]),
]


@pytest.mark.parametrize(("check", "accepted", "refused"), PAIRS)
def test_a_check_accepts_what_fits_and_names_what_does_not(
    check: Callable[[Any], None], accepted: list[Any], refused: list[Any]
) -> None:
    for got in accepted:
        check(got)
    for got in refused:
        with pytest.raises(SettingsError, match=r"^k(\.schema)?: expected .*, got "):
            check(got)


def test_a_newer_schema_has_its_own_refusal() -> None:
    with pytest.raises(UnsupportedSchemaError, match="plan: schema 3 is newer than 2"):
        checks.require_schema("plan", 3, 2)
