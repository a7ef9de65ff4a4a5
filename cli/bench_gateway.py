"""The server of ``tidings bench push-vs-poll``: a broker, and the same events over plain HTTP, in a process of its own.

It stands for the gateway that a REST system would have: it hears the devices through the embedded broker and keeps
their latest events. Four ways out; paths end in ``/<device>?after=N`` where N is the last event that the client has:

    GET /events    what is new at once; 204 if nothing is                       polling
    GET /wait      what is new, or the next event when it comes                 long polling
    GET /stream    every event from now on, as text/event-stream                server-sent events
    (MQTT)         every event from now on                                      push

The HTTP side is written as lean as the broker's (no framework, keep-alive, a dozen header bytes), which favours HTTP.
It serves the consumers of the bench and nobody else: other requests are answered with 404 and the connection is closed.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from typing import Final, cast

from tidings.broker import Broker, Config
from tidings.broker.thread import new_event_loop

KEPT_EVENTS: Final = 1000
TOPIC: Final = "devices/{}"


class Feed:
    """One device's latest events and those who wait for the next: callables that take (number, payload)."""

    def __init__(self) -> None:
        self.count = 0
        self.events: deque[tuple[int, bytes]] = deque(maxlen=KEPT_EVENTS)
        self.once: list[Callable[[], None]] = []
        self.streams: list[Callable[[int, bytes], None]] = []

    def add(self, payload: bytes) -> None:
        """A new event: kept, and given to those who wait."""
        self.count += 1
        self.events.append((self.count, payload))
        waiting, self.once = self.once, []
        for wake in waiting:
            wake()
        for send in self.streams:
            send(self.count, payload)

    def after(self, number: int) -> bytes:
        """The events after that number, as a JSON object, or nothing."""
        if number >= self.count:
            return b""
        found = [payload for count, payload in self.events if count > number]
        return b'{"last":%d,"events":[%s]}' % (self.count, b",".join(found))


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection; requests are answered in order, one at a time."""

    def __init__(self, feeds: dict[str, Feed]) -> None:
        self._feeds = feeds
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self._leave: Callable[[], None] = _nothing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while b"\r\n\r\n" in self._rest:
            head, _, self._rest = self._rest.partition(b"\r\n\r\n")
            self._answer(head.split(b"\r\n", 1)[0].split(b" "))

    def _answer(self, request: list[bytes]) -> None:
        path, _, query = (request[1] if len(request) == 3 else b"").partition(b"?after=")
        _, _, rest = path.partition(b"/")
        kind, _, device = rest.partition(b"/")
        feed = self._feeds.get(device.decode("ascii", "replace"))
        if feed is None or not query.isdigit() or request[0] != b"GET":
            self._write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            if self._transport is not None:
                self._transport.close()
        elif kind == b"stream":
            self._stream(feed)
        elif kind == b"wait" and int(query) >= feed.count:
            self._wait(feed, int(query))
        else:
            self._write_events(feed, int(query))

    def _write_events(self, feed: Feed, after: int) -> None:
        body = feed.after(after)
        if body:
            self._write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
        else:
            self._write(b"HTTP/1.1 204 No Content\r\n\r\n")

    def _wait(self, feed: Feed, after: int) -> None:
        def wake() -> None:
            self._leave = _nothing
            self._write_events(feed, after)

        feed.once.append(wake)
        self._leave = lambda: feed.once.remove(wake)

    def _stream(self, feed: Feed) -> None:
        self._write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

        def send(number: int, payload: bytes) -> None:
            self._write(b"id: %d\ndata: %s\n\n" % (number, payload))

        feed.streams.append(send)
        self._leave = lambda: feed.streams.remove(send)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _nothing() -> None:
    pass


def serve(devices: int, pipe: Pipe) -> None:
    """Run the gateway until the other end of the pipe closes.

    It sends (MQTT port, HTTP port) when it is ready, then its CPU seconds so far for each item that it is sent.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_serve(devices, pipe))


async def _serve(devices: int, pipe: Pipe) -> None:
    loop = asyncio.get_running_loop()
    feeds = {str(i): Feed() for i in range(devices)}
    ended = asyncio.Event()

    def on_pipe() -> None:
        try:
            pipe.recv()
            pipe.send(time.process_time())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            ended.set()

    async with Broker(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0)) as broker:
        http = await loop.create_server(lambda: HttpConnection(feeds), "127.0.0.1", 0)
        subscription = broker.subscribe(TOPIC.format("+"))

        async def collect() -> None:
            async for message in subscription:
                feeds[message.topic.rpartition("/")[2]].add(message.payload)

        collector = asyncio.create_task(collect())
        pipe.send((broker.port, http.sockets[0].getsockname()[1]))
        loop.add_reader(pipe.fileno(), on_pipe)
        await ended.wait()
        subscription.close()
        await collector
        http.close()


def event(device: int, number: int, time_ns: int) -> bytes:
    """What a device says: its reading, and when it happened."""
    reading = {"device": device, "number": number, "time_ns": time_ns, "temperature_c": 20 + number % 7}
    return json.dumps(reading, separators=(",", ":")).encode()
