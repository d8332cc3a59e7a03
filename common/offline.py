"""Nothing is fetched and nothing is reported while the program runs.

The libraries below would otherwise ask a server for a newer model, or report their use. They read these
variables when they are first imported, so a program's first act is to call `stay_offline`; no reader has to
set anything.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType

OFFLINE: Mapping[str, str] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
)


def stay_offline() -> None:
    """Tell every library that could reach out not to; processes started later inherit it."""
    os.environ.update(OFFLINE)
