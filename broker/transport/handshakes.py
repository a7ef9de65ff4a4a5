"""Connections that have not come as far as MQTT yet: PROXY header, TLS and WebSocket handshakes under way.

Each has a time limit, and there is a limit for all of them together, at which further ones wait in the kernel. So a
crowd that comes back at once is served in turn, and a flood of half-made connections, each of which makes room for
another after its fair share of time, can neither fill the memory nor hold the established ones up.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from ..core.ports import TurnedAway
from ..core.snapshot import Stats

STOPPED: Final = "the broker stops"
FAIR_SHARE: Final = 0.2  # of its time limit that a handshake gets although others wait


class _Entry(NamedTuple):
    cut_off: Callable[[str], None]
    timer: asyncio.TimerHandle
    began_at: float


class Handshakes:
    """The handshakes of one broker. ``owner`` is any object that stands for one of them."""

    def __init__(self, max_count: int, limit_s: float, stats: Stats) -> None:
        self._stats = stats
        self._max_count = max_count
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._stopped = False
        self._open: dict[object, _Entry] = {}  # the oldest first
        self._waiting: list[Callable[[], None]] = []
        self._wake_at: asyncio.TimerHandle | None = None

    def use(self, max_count: int, limit_s: float) -> None:
        """Hold those that begin from now on to other limits."""
        self._max_count = max_count
        self._limit_s = limit_s

    def __len__(self) -> int:
        return len(self._open)

    def __bool__(self) -> bool:
        return bool(self._open)

    @property
    def is_full(self) -> bool:
        """Whether as many as allowed are under way."""
        return len(self._open) >= self._max_count

    def room(self, again: Callable[[], None]) -> bool:
        """Whether another one may begin, if need be in place of the oldest. If not, ``again`` is called when to ask."""
        if not self.is_full:
            return True
        owner, oldest = next(iter(self._open.items()))
        wait_s = oldest.began_at + FAIR_SHARE * self._limit_s - self._loop.time()
        if wait_s <= 0:
            self._cut(owner, f"it is the oldest of {self._max_count} handshakes, and others wait")
            return True
        self._waiting.append(again)
        if self._wake_at is None:
            self._wake_at = self._loop.call_later(wait_s, self._wake)
        return False

    def begin(self, owner: object, cut_off: Callable[[str], None]) -> None:
        """From now on ``owner`` has its time; ``cut_off`` ends it and is told why. After ``stop``, at once."""
        if self._stopped:
            cut_off(STOPPED)
            return
        timer = self._loop.call_later(self._limit_s, self._cut, owner, f"no handshake within {self._limit_s:g} s")
        self._open[owner] = _Entry(cut_off, timer, self._loop.time())

    def end(self, owner: object) -> None:
        """``owner`` is through, or gone."""
        entry = self._open.pop(owner, None)
        if entry is not None:
            entry.timer.cancel()
            self._wake()

    def stop(self) -> None:
        """End all of them, and any that an event under way still begins."""
        self._stopped = True
        self._waiting.clear()
        self._wake()
        for owner in list(self._open):
            self._cut(owner, STOPPED)

    def _cut(self, owner: object, why: str) -> None:
        if not self._stopped:
            self._stats.turn_away(TurnedAway.HANDSHAKE)
        entry = self._open[owner]
        self.end(owner)
        entry.cut_off(why)

    def _wake(self) -> None:
        if self._wake_at is not None:
            self._wake_at.cancel()
            self._wake_at = None
        waiting, self._waiting = self._waiting, []
        for again in waiting:
            again()
