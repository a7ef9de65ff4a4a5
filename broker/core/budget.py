"""The memory that waiting messages may take in the whole broker, and who has to give some back.

Every window says how many bytes wait in it (``charge``): queued, in flight, and in its connection. Above the high
mark publishers that add to it get no acknowledgements (``pressed``), above the next one they are not read from
(``full``), until it is below the low mark again. If that takes longer than ``pause_s``, or the budget itself is used
up, the heaviest pay: every window is cut to one and the same level, which leaves the lighter ones untouched.

1. After ``Engine.relieve`` no more than ``limit_bytes`` wait, and nobody is held up for longer than ``pause_s`` on end.
2. A message that waits for several sessions counts for each of them, though memory holds it once.
3. A session may have ``SLACK_BYTES`` in flight that are not told, so that most deliveries cost nothing here.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .deadlines import Deadlines, Place
from .soft_limit import SoftLimit

if TYPE_CHECKING:
    from ..config import Config
    from .queue import Queue

STOP: Final = 0.9  # of the budget
HIGH: Final = 0.8
LOW: Final = 0.6
SLACK_BYTES: Final = 4_096


class Budget:
    """One broker's. ``attention`` asks for a call of ``relieve`` before the next turn."""

    __slots__ = (
        "_windows",
        "attention",
        "cut_off",
        "deadlines",
        "due_at",
        "full",
        "high_bytes",
        "limit_bytes",
        "low_bytes",
        "pause_s",
        "place",
        "pressed",
        "recount",
        "soft_limit",
        "stop_bytes",
        "used_bytes",
    )

    def __init__(self, config: "Config", deadlines: Deadlines | None = None) -> None:
        self.limit_bytes = config.memory_budget_bytes
        self.stop_bytes = int(self.limit_bytes * STOP)
        self.high_bytes = int(self.limit_bytes * HIGH)
        self.low_bytes = int(self.limit_bytes * LOW)
        self.pause_s = config.memory_pause_s
        self.deadlines = deadlines if deadlines is not None else Deadlines()
        self.used_bytes = 0
        self.pressed = False  # publishers that add to it are to wait for their acknowledgements
        self.full = False  # and they are not read from
        self.attention = False
        self.cut_off: dict[Queue, str] = {}
        """Windows whose clients are to be disconnected, and why."""
        self.recount: Callable[[], None] | None = None
        """Has those charge again who may have less by now."""
        self._windows: dict[Queue, int] = {}
        self.soft_limit = SoftLimit(config, self)
        self.due_at: float | None = None
        self.place: Place | None = None

    def charge(self, window: "Queue", size_bytes: int) -> None:
        """``size_bytes`` wait in ``window`` now."""
        self.used_bytes += size_bytes - self._windows.get(window, 0)
        if size_bytes:
            self._windows[window] = size_bytes
        else:
            self._windows.pop(window, None)
        if self.soft_limit.limit_bytes:
            self.look(window)
        used = self.used_bytes
        if used > self.limit_bytes or (used <= self.low_bytes if self.pressed else used > self.high_bytes):
            self.attention = True
        self.full = used > self.stop_bytes or (self.full and used > self.low_bytes)

    def look(self, window: "Queue") -> None:
        """More or less waits in ``window``, or its client came or went: it may be over the soft limit now, or not."""
        if self.soft_limit.look(window):
            self.attention = True

    def disconnect(self, window: "Queue", why: str) -> None:
        """Ask for the end of the connection of ``window``."""
        self.cut_off[window] = why
        self.attention = True

    def relieve(self, now: float) -> None:
        """Keep to the budget. Whom it concerns is told by ``pressed``, ``full`` and ``cut_off``."""
        if self.recount is not None:
            self.recount()
        self.soft_limit.begin(now)
        if self.used_bytes > self.limit_bytes:
            self._shed(self.high_bytes)
        pressed = self.used_bytes > (self.low_bytes if self.pressed or self.full else self.high_bytes)
        if pressed != self.pressed:
            self.pressed = pressed
            self.deadlines.set(self, now + self.pause_s if pressed else None)
        self.attention = bool(self.cut_off)

    def on_due(self, now: float) -> None:
        """Publishers have waited long enough for the others to catch up."""
        if self.recount is not None:
            self.recount()
        self._shed(self.low_bytes)
        self.relieve(now)

    def _shed(self, target_bytes: int) -> None:
        level = self._level(target_bytes)
        for window in [window for window, size_bytes in self._windows.items() if size_bytes > level]:
            window.shed(level)

    def _level(self, target_bytes: int) -> int:
        """The size in bytes to which the heaviest windows must be cut to bring the sum down to ``target_bytes``."""
        sizes = sorted(self._windows.values(), reverse=True)
        over = self.used_bytes - target_bytes
        if over <= 0:
            return sizes[0] if sizes else 0
        for count, (size, following) in enumerate(zip(sizes, [*sizes[1:], 0], strict=True), 1):
            gain = (size - following) * count
            if gain >= over:
                return size - -(-over // count)
            over -= gain
        return 0
