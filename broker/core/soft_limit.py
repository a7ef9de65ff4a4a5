"""How much may wait for one client for how long, before it is cut off: it reads, but too slowly.

A client is over the limit while more than ``limit_bytes`` wait for it in memory. What brings it below, if only for a
moment, or ends its connection, starts its time anew. What only the store has does not count: it takes no memory, and
who comes back to much of it is not to be cut off for that.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Config
    from .budget import Budget
    from .deadlines import Place
    from .queue import Queue


class SoftLimit:
    """The limit for all clients of one broker; ``budget`` tells it who has how much."""

    __slots__ = ("_budget", "_new", "_since", "due_at", "limit_bytes", "limit_s", "place")

    def __init__(self, config: "Config", budget: "Budget") -> None:
        self._budget = budget
        self._new: dict[Queue, None] = {}
        self._since: dict[Queue, float] = {}  # in the order of time
        self.due_at: float | None = None
        self.place: Place | None = None
        self.use(config)

    def use(self, config: "Config") -> None:
        """Hold clients to ``config`` from now on."""
        self.limit_s = config.soft_limit_s
        self.limit_bytes = config.soft_limit_bytes if config.soft_limit_s else 0
        """0 = there is none."""
        self._watch()

    def look(self, window: "Queue") -> bool:
        """Whether ``window`` has gone over the limit just now, so that ``begin`` must be called in this turn."""
        if self.limit_bytes and window.charged > self.limit_bytes and window.outbox is not None:
            if window not in self._since:
                self._new[window] = None
                return True
        else:
            self._new.pop(window, None)
            self._since.pop(window, None)
        return False

    def begin(self, now: float) -> None:
        """The time of those that went over the limit begins."""
        if self._new:
            self._since |= dict.fromkeys(self._new, now)
            self._new.clear()
            if self.due_at is None:
                self._watch()

    def on_due(self, now: float) -> None:
        """The time of the first of them may be up."""
        if self._budget.recount is not None:
            self._budget.recount()
        since = self._since
        while since:
            window, began = next(iter(since.items()))
            if began + self.limit_s > now:
                break
            del since[window]
            if 0 < self.limit_bytes < window.charged:
                text = f"more than {self.limit_bytes} bytes waited for it for {self.limit_s:g} s"
                self._budget.disconnect(window, text)
        self._watch()

    def _watch(self) -> None:
        began = next(iter(self._since.values()), None)
        self._budget.deadlines.set(self, None if began is None else began + self.limit_s)
