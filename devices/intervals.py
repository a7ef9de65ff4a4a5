"""A set of whole numbers as sorted ranges: memory grows with the gaps, not with the numbers.

A consumer that receives 1, 2, 3, … without a gap costs one range, for ever.

Invariant: ranges are sorted, do not overlap and do not touch; both ends belong to them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """A set of ints >= 0. Equal sets compare equal."""

    __slots__ = ("_count", "_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._count = 0
        for low, high in ranges:
            self.add_range(low, high)

    def add(self, number: int) -> bool:
        """Put ``number`` in; False if it was there."""
        ends = self._ends
        if not ends or number > ends[-1] + 1:
            self._starts.append(number)
            ends.append(number)
        elif number == ends[-1] + 1:
            ends[-1] = number
        elif number in self:
            return False
        else:
            self.add_range(number, number)
            return True
        self._count += 1
        return True

    def add_range(self, low: int, high: int) -> None:
        """Put ``low`` to ``high`` in, both included; nothing if ``low > high``."""
        if low > high:
            return
        starts, ends = self._starts, self._ends
        first = bisect_right(ends, low - 2)  # the first range that overlaps or touches from below
        last = bisect_right(starts, high + 1)  # one past the last that does from above
        if first < last:
            low = min(low, starts[first])
            high = max(high, ends[last - 1])
        gone = sum(ends[i] - starts[i] + 1 for i in range(first, last))
        starts[first:last] = [low]
        ends[first:last] = [high]
        self._count += high - low + 1 - gone

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number <= self._ends[index]

    def __len__(self) -> int:
        """How many numbers, not how many ranges."""
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Intervals({list(self.ranges())})"

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges (low, high), ascending."""
        return zip(self._starts, self._ends, strict=True)

    def range_count(self) -> int:
        """How many ranges: the measure of its memory."""
        return len(self._starts)

    def union(self, other: "Intervals") -> "Intervals":
        return Intervals(sorted([*self.ranges(), *other.ranges()]))

    def difference(self, other: "Intervals") -> "Intervals":
        """What is here and not in ``other``."""
        result = Intervals()
        for low, high in self.ranges():
            index = bisect_right(other._ends, low - 1)
            while low <= high:
                if index == len(other._starts) or other._starts[index] > high:
                    result.add_range(low, high)
                    break
                result.add_range(low, other._starts[index] - 1)
                low = other._ends[index] + 1
                index += 1
        return result

    def intersection(self, other: "Intervals") -> "Intervals":
        return self.difference(self.difference(other))
