"""A token bucket that is told the time: how long to pause so that a rate is kept over more than a second.

It never refuses anything: whoever overdraws it waits until it is paid back.
"""

from typing import Final

BURST_S: Final = 1.0  # what may come at once, in seconds of the rate


class Rate:
    """``per_s`` units a second."""

    __slots__ = ("_paid_until", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self._paid_until = 0.0

    def spend(self, units: float, now: float) -> float:
        """``units`` were used at ``now``; seconds to pause, 0 = none."""
        self._paid_until = max(self._paid_until, now - BURST_S) + units / self.per_s
        return max(0.0, self._paid_until - now)
