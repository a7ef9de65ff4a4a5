"""The store of the simulation: the reference store with a writer that is late, and a disk that forgets.

A batch goes through three moments, each chosen by the world: it is written (``write``), committed by the writer
(``commit``), and reported to the engine (``report``). A crash may come between any two of them.

What a crash may leave behind, which is every legal subset of what was not reported and nothing else:

1. What was reported stays, but for 3.
2. Of the rest a *prefix* of the batches stays. The log is written in order and a transaction counts only if its
   commit record is whole and so is everything before it: a later batch is never there without an earlier one. What was
   committed and not yet reported stays, with answers to questions lost on the way; what was not committed stays as far
   as the writer happened to come before the end (``keep``).
3. Acknowledgements of receivers alone are committed and reported without a flush. A power cut may take them away again,
   all that were committed since the last flush, and then nothing later is left either.
4. Those acknowledgements may also wait in memory while later batches are committed (``acked`` of ``commit``), but not
   longer than until PUBREL is owed instead of a message, another message comes under its number, or somebody asks.
   Any crash takes away what waits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tidings.broker.core.ports import Acked, Change, Queued, Released, SessionGone, StoreEvents, Wanted, Withdrawn
from tidings.broker.core.window import Entry, Window
from tidings.broker.store.memory import MemoryStore


class LateStore(MemoryStore):
    """``reports``: what the writer has to tell and the event loop has not heard yet."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: deque[Callable[[], None]] = deque()
        self._told: StoreEvents | None = None
        self._late: dict[str, list[Acked]] = {}  # acknowledgements that wait, by client
        self._waits = False
        self._flushed: dict[str, Any] | None = None  # the sessions as of the last flush, if they have changed since

    def start(self, events: StoreEvents) -> None:
        """From now on ``events`` is told what is reported."""
        self._told = events
        super().start(self)

    def commit(self, count: int | None = None, *, acked: bool = True) -> None:
        """One transaction of the writer. ``report`` tells of it. Without ``acked`` acknowledgements wait."""
        taken = len(self.pending) if count is None else min(count, len(self.pending))
        asked = any(isinstance(change, Wanted) for index in range(taken) for change in self.pending[index][1])
        self._waits = not acked and not asked
        if any(_needs_flush(self.pending[index][1]) for index in range(taken)):
            self._flushed = None
        elif self._flushed is None:
            self._flushed = {
                client_id: replace(kept, owed=dict(kept.owed), released=set(kept.released), incoming=set(kept.incoming))
                for client_id, kept in self.sessions.items()
            }
        if not self._waits:
            for client_id in list(self._late):
                self._apply_late(client_id)
        if taken:
            super().commit(taken)

    def report(self) -> None:
        """The event loop hears the next thing that the writer told."""
        if self.reports:
            self.reports.popleft()()

    def crash(self, keep: int = 0, *, power: bool = False) -> None:
        """The end of the process; ``power``: of the machine."""
        self.reports.clear()
        if power and self._flushed is not None:
            self.sessions = self._flushed
            keep = 0
        self._flushed = None
        super().crash(keep)
        self._late.clear()

    def _apply(self, change: Change) -> None:
        if isinstance(change, Acked) and self._waits:
            self._late.setdefault(change.client_id, []).append(change)
            return
        if isinstance(change, SessionGone):
            self._late.pop(change.client_id, None)
        elif isinstance(change, Released | Withdrawn) or (isinstance(change, Queued) and self._supposes(change)):
            self._apply_late(change.client_id)
        super()._apply(change)

    def _supposes(self, queued: Queued) -> bool:
        """Whether it comes under the number of a message whose acknowledgement waits."""
        numbers = range(queued.seq, queued.seq + len(queued.messages))
        return any(seq in numbers for late in self._late.get(queued.client_id, ()) for seq in _numbers(late))

    def _apply_late(self, client_id: str) -> None:
        for change in self._late.pop(client_id, ()):
            super()._apply(change)

    # what the writer tells

    def durable(self, batch: int) -> None:
        assert self._told is not None
        self.reports.append(partial(self._told.durable, batch))

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        assert self._told is not None
        self.reports.append(partial(self._told.refill, window, entries))

    def store_trouble(self, trouble: str) -> None:
        raise AssertionError(trouble)


def _numbers(acked: Acked) -> range:
    return range(acked.seq, acked.seq + len(acked.messages))


def _needs_flush(changes: list[Change]) -> bool:
    return not all(isinstance(change, Acked | Withdrawn | Wanted) for change in changes)
