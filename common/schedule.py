"""How a rate of learning goes over a run; site and coordinator count rounds alike."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]

WARM_UP_SHARE = 0.05
LAST_FACTOR = 0.05


def rate_factor(schedule: Schedule, done: int, total: int) -> float:
    """What a rate is multiplied by after ``done`` of ``total`` rounds or steps, above 0 and at most 1.

    ``cosine`` rises evenly over the first twentieth and falls as half a cosine to a twentieth.
    """
    if not 0 <= done < total:
        raise ValueError(f"Expected 0 <= done < total, got {done} of {total}")
    if schedule == "constant":
        return 1.0
    warm_up = max(1, round(WARM_UP_SHARE * total))
    if done < warm_up:
        return (done + 1) / warm_up
    fallen = (done - warm_up) / (total - warm_up)
    return LAST_FACTOR + (1 - LAST_FACTOR) * (0.5 + 0.5 * math.cos(math.pi * fallen))
