"""A histogram of microseconds in the manner of HdrHistogram: buckets of constant relative width, merged without loss.

The library ``hdrhistogram`` allots all buckets at once (tens of kilobytes), which is right for one histogram and too
much for one per (publisher, topic, consumer). This one keeps only the buckets that were hit, so a flow with ten
messages costs ten entries.

1. Values below 256 µs are exact; above, a bucket is 1/128 of its value wide at most and is reported by its highest
   value, so that a percentile is never too good by rounding.
2. ``minimum`` and ``maximum`` are exact. Negative values (clocks of different machines) count as 0.
"""

from collections.abc import Iterable
from typing import Final

_SUB_BITS: Final = 8

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9)


class Histogram:
    """Counts of values in microseconds."""

    __slots__ = ("buckets", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0
        self.minimum = 0
        self.maximum = 0

    def record(self, value: int) -> None:
        """Count ``value`` (µs)."""
        if value < 0:
            value = 0
        if self.count == 0 or value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        self.count += 1
        self.total += value
        shift = value.bit_length() - _SUB_BITS
        key = value if shift <= 0 else (shift << _SUB_BITS) + (value >> shift)
        self.buckets[key] = self.buckets.get(key, 0) + 1

    def merge(self, other: "Histogram") -> None:
        """Add the counts of ``other``; the result is that of one histogram which saw all values."""
        if other.count == 0:
            return
        self.minimum = other.minimum if self.count == 0 else min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.count += other.count
        self.total += other.total
        for key, count in other.buckets.items():
            self.buckets[key] = self.buckets.get(key, 0) + count

    def percentile(self, percent: float) -> int:
        """The value (µs) that ``percent`` of the values do not exceed; 0 if there are none."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Iterable[float]) -> list[int]:
        """Several percentiles, ascending, from one walk through the buckets."""
        wanted = [max(1, -int(-self.count * percent // 100)) for percent in percents]
        found: list[int] = []
        seen = 0
        for key in sorted(self.buckets):
            seen += self.buckets[key]
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(min(_highest(key), self.maximum))
        return found + [self.maximum] * (len(wanted) - len(found))

    def count_above(self, value: int) -> int:
        """How many values are above ``value`` (µs), to the width of a bucket."""
        return sum(count for key, count in self.buckets.items() if _highest(key) > value)

    def summary_ms(self) -> dict[str, float] | None:
        """``{"p50": …, "p90": …, "p99": …, "p99.9": …, "max": …}`` in milliseconds; None if nothing was counted."""
        if self.count == 0:
            return None
        names = [f"p{percent:g}" for percent in PERCENTILES]
        values = [round(value / 1000, 3) for value in self.percentiles(PERCENTILES)]
        return {**dict(zip(names, values, strict=True)), "max": round(self.maximum / 1000, 3)}


def _highest(key: int) -> int:
    """The largest value of a bucket: a key is 256 times the shift plus the value's eight leading bits."""
    shift, leading = key >> _SUB_BITS, key & ((1 << _SUB_BITS) - 1)
    return ((leading + 1) << shift) - 1
