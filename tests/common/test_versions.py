import pytest

from common.errors import ProtocolTooOldError, SettingsError, UnsupportedSchemaError
from common.versions import SPOKEN, ProtocolRange, negotiate
from common.wire import SCHEMA


def spoken(oldest: int, newest: int) -> ProtocolRange:
    return ProtocolRange(oldest=oldest, newest=newest)


def test_the_newest_version_that_both_speak_is_taken() -> None:
    assert negotiate(spoken(2, 5), spoken(1, 4)) == 4
    assert negotiate(spoken(2, 5), spoken(3, 9)) == 5
    assert negotiate(spoken(3, 3), spoken(3, 3)) == 3
    assert negotiate(SPOKEN, SPOKEN) == SCHEMA


def test_an_old_protocol_version_is_refused() -> None:
    with pytest.raises(ProtocolTooOldError, match="speaks up to 2, 3 is the oldest spoken here"):
        negotiate(spoken(3, 5), spoken(1, 2))


def test_a_newer_protocol_version_is_refused() -> None:
    with pytest.raises(UnsupportedSchemaError, match="protocol: schema 6 is newer than 5"):
        negotiate(spoken(3, 5), spoken(6, 7))


@pytest.mark.parametrize(("oldest", "newest"), [(0, 1), (3, 2), (-1, -1)])
def test_a_range_that_is_none_is_refused(oldest: int, newest: int) -> None:
    with pytest.raises(SettingsError):
        spoken(oldest, newest)
