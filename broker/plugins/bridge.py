"""Two event loops, one in a thread of its own, and how one has something done in the other.

Plugins run in the thread, so that one that computes or blocks, as those for LDAP and password files do, takes time from
nobody but other plugins. The broker never waits for the thread; the thread may wait for the broker.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..errors import BrokerError

log = logging.getLogger("tidings.broker")

T = TypeVar("T")


class Bridge:
    """Made in the broker's loop. ``loop`` is the thread's, from ``start`` to ``stop``."""

    def __init__(self) -> None:
        self.broker_loop = asyncio.get_running_loop()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_log)
        self._thread = threading.Thread(target=self._run, name="tidings-plugins", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(asyncio.sleep(0))  # transports that were closed now close their sockets
            self.loop.close()

    async def stop(self, timeout_s: float) -> None:
        """End the thread; one that blocks for longer is left behind."""
        if not self._thread.is_alive():
            self.loop.close()
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        await asyncio.to_thread(self._thread.join, timeout_s)
        if self._thread.is_alive():
            log.error("a plugin blocks; its thread is left behind")

    # from the broker

    async def run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """Have ``work`` done by the thread. Raises TimeoutError, and cancels it, when it takes too long."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        async with asyncio.timeout(timeout_s):
            return await asyncio.wrap_future(future)

    def post(self, call: Callable[..., object], *args: object) -> None:
        """Call something in the thread, some time soon."""
        self.loop.call_soon_threadsafe(call, *args)

    # from the thread

    def tell(self, call: Callable[..., object], *args: object) -> None:
        """Call something in the broker's loop, some time soon."""
        try:
            self.broker_loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # it is closed
            log.debug("a plugin came too late")

    def ask(self, call: Callable[[], T]) -> T:
        """What ``call`` returns in the broker's loop. The thread waits for it."""
        if threading.current_thread() is not self._thread:
            return call()
        return self._asked(call).result()

    def asking(self, call: Callable[[], T]) -> Awaitable[T]:
        """The same, for coroutines."""
        return asyncio.wrap_future(self._asked(call))

    def _asked(self, call: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def answer() -> None:
            try:
                result = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self.broker_loop.call_soon_threadsafe(answer)
        except RuntimeError:
            raise BrokerError("the broker has stopped") from None
        return future


def _log(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("a plugin failed: %s", error if error is not None else context["message"], exc_info=error)
