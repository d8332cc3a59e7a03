"""What every test shares: property tests without a clock and with the same examples each time."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A shared machine stalls now and then; an example that takes long is no failure. The same examples each time,
# so that a red suite is red for everybody.
settings.register_profile("consilium", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("consilium")

# One of two processes takes a file of tests at a time: the longest first, or one waits for them alone.
LONGEST = (
    "simulations/trial/test_trial.py",
    "federation/test_operation_lists.py",
    "simulations/test_compare.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture(autouse=True)
def a_log_that_a_test_set_up_ends_with_it() -> Iterator[None]:
    # A daemon sends its log to standard error, which is another stream in the next test.
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if (one.get_name() or "").startswith("consilium")]:
        root.removeHandler(handler)
