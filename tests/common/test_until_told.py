import os
import signal

import pytest

from common.until_told import TOLD_BY, until_told


@pytest.mark.parametrize("number", TOLD_BY)
def test_a_signal_sets_the_event_and_the_old_handler_comes_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with until_told() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) is before
