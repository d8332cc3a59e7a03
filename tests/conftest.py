"""What every test shares: property tests without a clock and with the same examples each time."""

from hypothesis import settings

# A shared machine stalls now and then; an example that takes long is no failure. The same examples each time,
# so that a red suite is red for everybody.
settings.register_profile("consilium", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("consilium")
