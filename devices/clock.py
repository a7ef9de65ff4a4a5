"""Time for a fleet: one heap of things to do, driven by the event loop or, in tests, by hand.

A fleet has thousands of next things to do (publish, ping, reconnect, read on). They all stand in one heap with one
timer, instead of one sleeping task each.

1. Times are seconds on the clock's own scale, which never runs backwards; 0 is when the clock was made.
2. Timers run in the order of their times, and those of equal time in the order in which they were set.
3. A timer that raises does not take the others with it: the error goes to ``on_error``.
"""

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

from .histogram import Histogram


class Timer:
    """One entry of a clock's heap. ``cancel`` may be called at any time, also after it ran."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None
        self.args = ()


class Clock(Protocol):
    """What fleets, devices and clients know of time."""

    def now(self) -> float:
        """Seconds since the clock was made."""
        ...

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        """Run ``callback(*args)`` at ``when``, or as soon as possible if that has passed."""
        ...


class _Heap:
    """The heap both clocks share. Cancelled timers are dropped when they come up."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def add(self, timer: Timer) -> None:
        heapq.heappush(self._entries, (timer.when, next(self._order), timer))

    def next_time(self) -> float | None:
        while self._entries and self._entries[0][2].callback is None:
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else None

    def pop_due(self, now: float) -> Timer | None:
        when = self.next_time()
        if when is None or when > now:
            return None
        return heapq.heappop(self._entries)[2]


class RealClock:
    """The event loop's time. ``lag`` is how late timers ran, in microseconds: the generator's own honesty."""

    # Turns of the loop stay short when thousands of timers are due: sockets get their turn between slices.
    SLICE_COUNT = 200

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._zero = time.monotonic()
        self._heap = _Heap()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")
        self.lag = Histogram()

    def now(self) -> float:
        return time.monotonic() - self._zero  # the loop's own time has whole milliseconds on uvloop

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(when, callback, args)
        self._heap.add(timer)
        if when < self._armed_for:
            self._arm(when)
        return timer

    def close(self) -> None:
        """Run nothing more."""
        self._heap = _Heap()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._armed_for = float("inf")

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = when
        self._handle = self._loop.call_later(max(0.0, when - self.now()), self._run)

    def _run(self) -> None:
        self._handle = None
        self._armed_for = float("-inf")  # nothing set while timers run needs to arm: _run does at its end
        now = self.now()
        for _ in range(self.SLICE_COUNT):
            timer = self._heap.pop_due(now)
            if timer is None:
                break
            self.lag.record(int((now - timer.when) * 1e6))
            _run_timer(timer, self._on_error)
        self._armed_for = float("inf")
        when = self._heap.next_time()
        if when is not None:
            self._arm(when)

    def _on_error(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "a fleet timer failed", "exception": error})


class VirtualClock:
    """Time that moves only when told. ``advance(60)`` runs a minute's timers at once, each at its own ``now()``."""

    def __init__(self) -> None:
        self._now = 0.0
        self._heap = _Heap()

    def now(self) -> float:
        return self._now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(when, callback, args)
        self._heap.add(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``, running what falls due on the way. Errors of timers come out of here."""
        end = self._now + seconds
        while (timer := self._heap.pop_due(end)) is not None:
            self._now = max(self._now, timer.when)
            _run_timer(timer, None)
        self._now = end


def _run_timer(timer: Timer, on_error: Callable[[Exception], None] | None) -> None:
    callback, args = timer.callback, timer.args
    timer.cancel()
    if callback is None:
        return
    if on_error is None:
        callback(*args)
        return
    try:
        callback(*args)
    except Exception as error:
        on_error(error)
