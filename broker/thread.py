"""A broker in a background thread, for programs and tests that are not asynchronous.

with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"])) as broker:
    client.connect("127.0.0.1", broker.port)
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

from .codec.properties import Properties
from .config import Config
from .core.message import Message
from .core.snapshot import SessionNumbers, Snapshot
from .errors import BrokerError
from .server import Broker, Subscription

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop there is here: uvloop's, or asyncio's own where uvloop does not run."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class BrokerThread:
    """``Broker`` with an event loop and a thread of its own. Methods may be called from any other thread."""

    def __init__(self, config: Config | None = None) -> None:
        self._broker = Broker(config)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tidings-broker", daemon=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and return once every listener accepts; raises what ``Broker.start`` raises."""
        if self._thread.ident is not None:
            raise BrokerError("this broker was started before; make a new one")
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Stop the broker and wait for its thread; raises what ``Broker.stop`` raises. Stopping twice is harmless."""
        if self._started.done() and self._started.exception() is None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped before
                self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @property
    def urls(self) -> list[str]:
        """One URL per listener."""
        return self._broker.urls

    @property
    def port(self) -> int:
        """The port of the first TCP listener."""
        return self._broker.port

    def publish(
        self,
        topic: str,
        payload: bytes | str = b"",
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """As ``Broker.publish``."""
        self._call(self._broker.publish(topic, payload, qos, retain, properties))

    @contextlib.contextmanager
    def subscribe(
        self, *filters: str, qos: int = 2, retained: bool = True, max_messages: int | None = None
    ) -> "Iterator[Callable[[float], Message]]":
        """As ``Broker.subscribe``; gives a function ``receive(timeout_s)`` that raises TimeoutError.

        With 0 it takes what is there and waits for nothing.
        """

        async def begin() -> Subscription:
            return self._broker.subscribe(*filters, qos=qos, retained=retained, max_messages=max_messages)

        async def following(timeout_s: float) -> Message:
            try:
                async with asyncio.timeout(timeout_s):
                    return await anext(subscription)
            except TimeoutError:
                raise TimeoutError(f"no message on {', '.join(filters)} within {timeout_s} s") from None
            except StopAsyncIteration:
                raise BrokerError("the broker has stopped") from None

        def receive(timeout_s: float) -> Message:
            return self._call(following(timeout_s))

        subscription = self._call(begin())
        try:
            yield receive
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the broker has stopped before
                self._loop.call_soon_threadsafe(subscription.close)

    def snapshot(self) -> Snapshot:
        """As ``Broker.snapshot``."""

        async def take() -> Snapshot:
            return self._broker.snapshot()

        return self._call(take())

    def session(self, client_id: str) -> SessionNumbers | None:
        """As ``Broker.session``."""

        async def take() -> SessionNumbers | None:
            return self._broker.session(client_id)

        return self._call(take())

    def reload(self, config: Config | None = None) -> str:
        """As ``Broker.reload``."""

        async def read() -> str:
            return self._broker.reload(config)

        return self._call(read())

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        if not self._started.done():
            raise BrokerError("the broker is not running; use it inside 'with BrokerThread() as broker:'")
        return self._started.result()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException as error:
            work.close()
            if isinstance(error, RuntimeError):  # the loop is closed
                raise BrokerError("the broker has stopped") from None
            raise
        try:
            return future.result()
        except CancelledError:
            raise BrokerError("the broker has stopped") from None
        except BaseException:
            future.cancel()  # Ctrl-C: the work is in the other thread, which must end it
            raise

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._broker.start()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(asyncio.get_running_loop())
        await self._stopping.wait()
        try:
            await self._broker.stop()
        except BaseException as error:
            self._failure = error  # for ``stop`` to raise
