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
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tidings.broker.core.ports import Acked, Change, StoreEvents, Wanted
from tidings.broker.core.window import Entry, Window
from tidings.broker.store.memory import MemoryStore


class LateStore(MemoryStore):
    """``reports``: what the writer has to tell and the event loop has not heard yet."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: deque[Callable[[], None]] = deque()
        self._told: StoreEvents | None = None
        self._flushed: dict[str, Any] | None = None  # the sessions as of the last flush, if they have changed since

    def start(self, events: StoreEvents) -> None:
        """From now on ``events`` is told what is reported."""
        self._told = events
        super().start(self)

    def commit(self, count: int | None = None) -> None:
        """One transaction of the writer. ``report`` tells of it."""
        taken = len(self.pending) if count is None else min(count, len(self.pending))
        if not taken:
            return
        if any(_needs_flush(self.pending[index][1]) for index in range(taken)):
            self._flushed = None
        elif self._flushed is None:
            self._flushed = {
                client_id: replace(kept, owed=dict(kept.owed), released=set(kept.released), incoming=set(kept.incoming))
                for client_id, kept in self.sessions.items()
            }
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

    # what the writer tells

    def durable(self, batch: int) -> None:
        assert self._told is not None
        self.reports.append(partial(self._told.durable, batch))

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        assert self._told is not None
        self.reports.append(partial(self._told.refill, window, entries))

    def store_trouble(self, trouble: str) -> None:
        raise AssertionError(trouble)


def _needs_flush(changes: list[Change]) -> bool:
    return not all(isinstance(change, Acked | Wanted) for change in changes)
