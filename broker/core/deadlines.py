"""The one heap of the broker: what is due when.

Every timed item has at most one deadline, and moving it later costs nothing: its place in the heap stays where it is
and is looked at again when it comes up. One that is not needed any more lets go of its item, so that nothing of a
client that left waits here for a keep-alive of hours; and such places are removed before they outnumber the others.
So memory follows the items there are, however often clients come and go.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

COMPACT_FROM: Final = 1_000  # dead places below this are not worth a look


class Timed(Protocol):
    """What can be due. ``due_at`` and ``place`` belong to ``Deadlines``; they begin as None."""

    due_at: float | None  # engine time in seconds; None = never
    place: "Place | None"  # in the heap; None = it has none

    def on_due(self, now: float) -> None:
        """The deadline has come and is cleared; set the next one here if there is one."""


class Place:
    """When to look at an item again. Without ``item`` it is dead: there is another one, or no deadline."""

    __slots__ = ("at", "item")

    def __init__(self, at: float, item: Timed) -> None:
        self.at = at
        self.item: Timed | None = item


class Deadlines:
    """A heap of timed items; those due at the same moment come in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Place]] = []
        self._number = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def __bool__(self) -> bool:  # see ``Latest``
        return bool(self._heap)

    def set(self, item: Timed, at: float | None) -> None:
        """``item`` is due at ``at`` and at no other time; None = never."""
        item.due_at = at
        place = item.place
        if place is not None:
            if at is not None and at >= place.at:
                return
            item.place = place.item = None
            self._died()
        if at is not None:
            item.place = place = Place(at, item)
            self._number += 1
            heappush(self._heap, (at, self._number, place))

    def next(self) -> float | None:
        """When something may be due; None = nothing ever."""
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Call ``on_due`` of everything that is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, _, place = heappop(heap)
            item = place.item
            if item is None:
                self._dead -= 1
                continue
            item.place = None
            due_at = item.due_at
            if due_at is not None and due_at > at:  # it was moved later; its turn comes in the order of time
                self.set(item, due_at)
            else:
                item.due_at = None
                item.on_due(now)

    def _died(self) -> None:
        self._dead += 1
        if self._dead > COMPACT_FROM and self._dead * 2 > len(self._heap):
            self._heap[:] = [each for each in self._heap if each[2].item is not None]
            heapify(self._heap)
            self._dead = 0


class Regular:
    """What is done again and again, every ``interval_s`` seconds after it was done last."""

    def __init__(self, deadlines: Deadlines, action: Callable[[float], None], interval_s: float) -> None:
        self.due_at: float | None = None
        self.place: Place | None = None
        self._deadlines = deadlines
        self._action = action
        self._interval_s = interval_s

    def on_due(self, now: float) -> None:
        self._action(now)
        self._deadlines.set(self, now + self._interval_s)
