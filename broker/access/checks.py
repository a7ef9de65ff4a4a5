"""Passwords waiting to be checked, which is slow on purpose: a few at a time, and each address in its turn.

1. No more than ``WORKERS`` are checked at once, in threads; argon2 takes 64 MiB and a core for each.
2. Whoever sends many waits behind himself: the addresses that wait take turns.
3. What waits is bounded; above that an attempt is not taken.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol

log: Final = logging.getLogger("tidings.broker")

WORKERS: Final = 2
MAX_WAITING: Final = 2_000

Submit = Callable[[Callable[[], bool], Callable[[bool], None]], None]
"""Does the first somewhere else, then hands what it returned to the second, in the thread that called."""


class Attempt(Protocol):
    """A password that is to be checked."""

    address: str

    def start(self) -> bool:
        """Its turn has come. False: it has been decided without a check, or has to wait for some reason of its own."""

    def check(self) -> bool:
        """Whether the password is right; called in a thread."""

    def done(self, right: bool) -> None:
        """The check is over."""


class Checks:
    """The passwords of one broker that wait to be checked."""

    def __init__(self, submit: Submit, max_waiting: int = MAX_WAITING) -> None:
        self._submit = submit
        self._max_waiting = max_waiting
        self._queues: OrderedDict[str, OrderedDict[Attempt, None]] = OrderedDict()  # whose turn is next comes first
        self._waiting = 0
        self._running = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, attempt: Attempt) -> bool:
        """Check ``attempt`` when its turn comes; False if there is no room for it."""
        if self._waiting >= self._max_waiting:
            return False
        self._queues.setdefault(attempt.address, OrderedDict())[attempt] = None
        self._waiting += 1
        self._go_on()
        return True

    def drop(self, attempt: Attempt) -> None:
        """Nobody waits for ``attempt`` any more. A check that has begun is finished for nobody."""
        queue = self._queues.get(attempt.address)
        if queue is not None and attempt in queue:
            self._take(attempt.address, queue, attempt)

    def _take(self, address: str, queue: "OrderedDict[Attempt, None]", attempt: Attempt) -> None:
        del queue[attempt]
        self._waiting -= 1
        if not queue:
            del self._queues[address]

    def _go_on(self) -> None:
        while self._running < WORKERS and self._queues:
            address, queue = next(iter(self._queues.items()))
            attempt = next(iter(queue))
            self._queues.move_to_end(address)
            self._take(address, queue, attempt)
            if attempt.start():
                self._running += 1
                self._submit(attempt.check, lambda right, attempt=attempt: self._done(attempt, right))  # type: ignore[misc]

    def _done(self, attempt: Attempt, right: bool) -> None:
        self._running -= 1
        try:
            attempt.done(right)
        finally:
            self._go_on()


class Threads:
    """``Submit`` for an event loop: works in ``WORKERS`` threads, hands over in the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="tidings-password")

    def submit(self, work: Callable[[], bool], done: Callable[[bool], None]) -> None:
        """See ``Submit``. Work that fails has found nothing right."""

        def hand_over(future: "Future[bool]") -> None:
            error = future.exception()
            if error is not None:
                log.error("internal error while checking a password", exc_info=error)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(done, error is None and future.result())

        self._pool.submit(work).add_done_callback(hand_over)

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False)
