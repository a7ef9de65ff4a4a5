"""The one heap of the broker: what is due when.

Every timed item has at most one deadline, and moving it later costs nothing: its entry in the heap stays where it is
and is looked at again when it comes up. Entries of items that have no deadline any more are removed before they
outnumber the others, so memory follows the items there are, however often clients come and go.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

COMPACT_FROM: Final = 1_000  # dead entries below this are not worth a look


class Timed(Protocol):
    """What can be due. ``due_at`` and ``entry_at`` belong to ``Deadlines``; they begin as None."""

    due_at: float | None  # engine time in seconds; None = never
    entry_at: float | None  # where the item's entry stands in the heap; None = it has none

    def on_due(self, now: float) -> None:
        """The deadline has come and is cleared; set the next one here if there is one."""


class Deadlines:
    """A heap of timed items; those due at the same moment come in the order in which they were set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._number = 0
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, item: Timed, at: float | None) -> None:
        """``item`` is due at ``at`` and at no other time; None = never."""
        item.due_at = at
        if at is None:
            if item.entry_at is not None:
                self._died()
        elif item.entry_at is None or at < item.entry_at:
            superseded = item.entry_at is not None
            item.entry_at = at
            self._number += 1
            heappush(self._heap, (at, self._number, item))
            if superseded:
                self._died()

    def next(self) -> float | None:
        """When something may be due; None = nothing ever."""
        return self._heap[0][0] if self._heap else None

    def run(self, now: float) -> None:
        """Call ``on_due`` of everything that is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            entry_at, _, item = heappop(heap)
            if item.entry_at != entry_at:  # the item has another entry in force
                self._dead = max(0, self._dead - 1)
                continue
            item.entry_at = None
            due_at = item.due_at
            if due_at is None:
                self._dead = max(0, self._dead - 1)
            elif due_at > entry_at:  # it was moved later; its turn comes in the order of time
                self.set(item, due_at)
            else:
                item.due_at = None
                item.on_due(now)

    def _died(self) -> None:
        self._dead += 1
        if self._dead > COMPACT_FROM and self._dead * 2 > len(self._heap):
            self._compact()

    def _compact(self) -> None:
        kept: list[tuple[float, int, Timed]] = []
        for entry in self._heap:
            item = entry[2]
            if item.entry_at != entry[0]:
                continue
            if item.due_at is None:
                item.entry_at = None
            else:
                kept.append(entry)
        heapify(kept)
        self._heap[:] = kept
        self._dead = 0


class Regular:
    """What is done again and again, every ``interval_s`` seconds after it was done last."""

    def __init__(self, deadlines: Deadlines, action: Callable[[float], None], interval_s: float) -> None:
        self.due_at: float | None = None
        self.entry_at: float | None = None
        self._deadlines = deadlines
        self._action = action
        self._interval_s = interval_s

    def on_due(self, now: float) -> None:
        self._action(now)
        self._deadlines.set(self, now + self._interval_s)
