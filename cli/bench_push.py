"""``tidings bench push-vs-poll``: what the push pattern is worth, measured.

The same device events, at the same instants, are consumed by HTTP polling at several intervals, by long polling, by
server-sent events and by MQTT; one way after the other, each with a fresh server. Freshness is the time from the event,
as planned, until the consumer has it. Requests, bytes and CPU are those of the steady state, without connecting; bytes
are those of HTTP and MQTT in both directions, without what TCP adds.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Final, Literal

import click

from tidings.broker.codec.decode import Decoder
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Connack, Connect, Publish, Subscribe, SubscribeFilter
from tidings.broker.thread import new_event_loop
from tidings.devices.load_plan import Counts, count, quantile_ms

from .bench_gateway import TOPIC, event, serve
from .bench_page import bar_plot, document, table_of
from .bench_result import aligned
from .exits import Failure
from .result_file import RESULT_FILE, takes_stdout, write_result

_SETTLE_S: Final = 0.3


@dataclass(frozen=True)
class Way:
    """One way of getting events. ``interval_s`` is for polling only."""

    name: str
    kind: Literal["events", "wait", "stream", "push"]
    interval_s: float = 0.0


@dataclass
class Consumed:
    """What one way cost and brought, all consumers together. ``cpu_s``: the server's; ``client_cpu_s``: theirs."""

    way: str
    consumers: int
    seconds: float = 0.0
    owed: int = 0
    received: int = 0
    requests: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    server_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    freshness_us: Counts = field(default_factory=dict)

    def take(self, payload: dict[str, int]) -> None:
        """An event has reached a consumer."""
        self.received += 1
        count(self.freshness_us, max(0, time.monotonic_ns() - payload["time_ns"]) // 1000)

    def per_consumer_minute(self, total: float) -> float:
        return total / self.consumers * 60 / self.seconds

    def figures(self) -> dict[str, float]:
        """The row of the table."""
        return {
            "fresh p50 ms": quantile_ms(self.freshness_us, 0.5),
            "fresh p99 ms": quantile_ms(self.freshness_us, 0.99),
            "requests/min": self.per_consumer_minute(self.requests),
            "bytes/min": self.per_consumer_minute(self.bytes_sent + self.bytes_received),
            "bytes/event": (self.bytes_sent + self.bytes_received) / max(1, self.received),
            "server cpu ms/min": self.per_consumer_minute(1000 * self.server_cpu_s),
            "client cpu ms/min": self.per_consumer_minute(1000 * self.client_cpu_s),
            "missing": float(self.owed - self.received),
        }


FORMS: Final = {
    "fresh p50 ms": ",.2f",
    "fresh p99 ms": ",.2f",
    "requests/min": ",.1f",
    "bytes/min": ",.0f",
    "bytes/event": ",.0f",
    "server cpu ms/min": ",.2f",
    "client cpu ms/min": ",.2f",
    "missing": ",.0f",
}


def plan(devices: int, rate: float, seconds: float, seed: int) -> list[tuple[float, int, int]]:
    """(time in s, device, number) of every event: a Poisson process for each device, the same for the same seed."""
    events = []
    for device in range(devices):
        source = random.Random(f"{seed}/{device}")
        at, number = source.expovariate(rate), 0
        while at < seconds:
            number += 1
            events.append((at, device, number))
            at += source.expovariate(rate)
    return sorted(events)


class Client:
    """A TCP connection whose bytes are counted."""

    def __init__(self, consumed: Consumed) -> None:
        self._consumed = consumed

    async def open(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def send(self, data: bytes) -> None:
        self._consumed.bytes_sent += len(data)
        self._writer.write(data)

    def get(self, kind: str, device: int, after: int) -> None:
        """An HTTP request as a small client would send it."""
        self._consumed.requests += 1
        head = f"GET /{kind}/{device}?after={after} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n"
        self.send(head.encode())

    async def head(self) -> dict[bytes, bytes]:
        """Status line and header fields of a response; the status is under an empty name."""
        data = await self._reader.readuntil(b"\r\n\r\n")
        self._consumed.bytes_received += len(data)
        status, *lines = data[:-4].split(b"\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in lines)
        fields[b""] = status.split(b" ")[1]
        return fields

    async def exactly(self, size: int) -> bytes:
        data = await self._reader.readexactly(size)
        self._consumed.bytes_received += size
        return data

    async def some(self) -> bytes:
        """Whatever has come; nothing at the end."""
        data = await self._reader.read(65536)
        self._consumed.bytes_received += len(data)
        return data


async def _fetch(client: Client, consumed: Consumed, kind: str, device: int, after: int) -> int:
    """One request for what is new; returns the number of the last event."""
    client.get(kind, device, after)
    fields = await client.head()
    if fields[b""] == b"204":
        return after
    body = json.loads(await client.exactly(int(fields[b"content-length"])))
    for payload in body["events"]:
        consumed.take(payload)
    last: int = body["last"]
    return last


async def _poll(client: Client, consumed: Consumed, way: Way, device: int, phase: float) -> None:
    """Ask on a fixed grid of ``interval_s`` that begins at ``phase`` of an interval."""
    loop = asyncio.get_running_loop()
    due, last = loop.time() + phase * way.interval_s, 0
    while True:
        await asyncio.sleep(due - loop.time())
        last = await _fetch(client, consumed, way.kind, device, last)
        due += way.interval_s


async def _long_poll(client: Client, consumed: Consumed, way: Way, device: int) -> None:
    last = 0
    while True:
        last = await _fetch(client, consumed, way.kind, device, last)


async def _lines(client: Client) -> AsyncIterator[bytes]:
    rest = b""
    while data := await client.some():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line


async def _stream(client: Client, consumed: Consumed, way: Way, device: int) -> None:
    client.get(way.kind, device, 0)
    await client.head()
    async for line in _lines(client):
        if line.startswith(b"data: "):
            consumed.take(json.loads(line[6:]))


async def _push(client: Client, consumed: Consumed, device: int, index: int) -> None:
    decoder = Decoder(version=5, side="client")
    consumed.requests += 1
    client.send(encode(Connect(f"consumer-{index}", 5, keep_alive=0), 5))
    while data := await client.some():
        for packet in decoder.feed(data):
            if isinstance(packet, Publish):
                consumed.take(json.loads(packet.payload))
            elif isinstance(packet, Connack):
                consumed.requests += 1
                client.send(encode(Subscribe(1, [SubscribeFilter(TOPIC.format(device))]), 5))


async def _publish(port: int, events: Sequence[tuple[float, int, int]], start_ns: int) -> None:
    """The devices: every event at its time, stamped with the time that was planned."""
    client = Client(Consumed("devices", 1))
    await client.open(port)
    client.send(encode(Connect("devices", 5, keep_alive=0), 5))
    await client.some()
    for at, device, number in events:
        time_ns = start_ns + int(at * 1e9)
        wait_ns = time_ns - time.monotonic_ns()
        if wait_ns > 0:
            await asyncio.sleep(wait_ns / 1e9)
        client.send(encode(Publish(TOPIC.format(device), event(device, number, time_ns)), 5))
    await client.close()


async def _consume(
    way: Way,
    ports: tuple[int, int],
    server_cpu_s: Callable[[], float],
    consumers: int,
    devices: int,
    events: Sequence[tuple[float, int, int]],
    seconds: float,
    tail_s: float,
) -> Consumed:
    """Open the consumers, let the devices speak for ``seconds``, wait until the last poll has come by."""
    consumed = Consumed(way.name, consumers)
    source = random.Random(0)
    followers = [len(range(device, consumers, devices)) for device in range(devices)]
    consumed.owed = sum(followers[device] for _, device, _ in events)
    async with contextlib.AsyncExitStack() as stack:
        tasks: list[asyncio.Task[None]] = []
        for i in range(consumers):
            client = Client(consumed)
            await client.open(ports[0] if way.kind == "push" else ports[1])
            stack.push_async_callback(client.close)
            tasks.append(asyncio.create_task(_work(client, consumed, way, i % devices, i, source.random())))
        await asyncio.sleep(_SETTLE_S)
        consumed.requests = consumed.bytes_sent = consumed.bytes_received = 0
        started, cpu, server_cpu = time.monotonic(), time.process_time(), server_cpu_s()
        await _publish(ports[0], events, time.monotonic_ns())
        await asyncio.sleep(max(0.0, started + seconds + tail_s - time.monotonic()))
        consumed.seconds = time.monotonic() - started
        consumed.client_cpu_s = time.process_time() - cpu
        consumed.server_cpu_s = server_cpu_s() - server_cpu
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        if ended:
            raise Failure(
                f"{way.name}: {len(ended)} consumers lost their connection: {results[tasks.index(ended[0])]!r}"
            )
    return consumed


def _work(
    client: Client, consumed: Consumed, way: Way, device: int, index: int, phase: float
) -> Coroutine[None, None, None]:
    """What one consumer does until it is cancelled."""
    if way.kind == "push":
        return _push(client, consumed, device, index)
    if way.kind == "stream":
        return _stream(client, consumed, way, device)
    if way.kind == "wait":
        return _long_poll(client, consumed, way, device)
    return _poll(client, consumed, way, device, phase)


@contextlib.contextmanager
def _gateway(devices: int) -> Iterator[tuple[tuple[int, int], Callable[[], float]]]:
    """The server in a process of its own: its ports for MQTT and HTTP, and how to ask for its CPU time."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(devices, theirs), daemon=True)
    process.start()
    theirs.close()

    def cpu_s() -> float:
        ours.send(None)
        used: float = ours.recv()
        return used

    try:
        if not ours.poll(20):
            raise Failure("the server of push-vs-poll did not start within 20 s")
        try:
            ports: tuple[int, int] = ours.recv()
        except EOFError:
            raise Failure("the server of push-vs-poll did not start") from None
        yield ports, cpu_s
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()


def ways(intervals_s: Sequence[float]) -> list[Way]:
    """Polling at each interval, then the ways that do not ask in vain."""
    return [
        *(Way(f"poll every {interval:g} s", "events", interval) for interval in intervals_s),
        Way("long polling", "wait"),
        Way("server-sent events", "stream"),
        Way("MQTT push", "push"),
    ]


@click.command("push-vs-poll")
@click.option("--consumers", type=click.IntRange(1), default=100, show_default=True, help="Each follows one device.")
@click.option("--devices", type=click.IntRange(1), default=20, show_default=True, help="Devices that have events.")
@click.option(
    "--rate",
    type=click.FloatRange(0.0, min_open=True),
    default=0.5,
    show_default=True,
    help="Events per second of one device, on average, at random.",
)
@click.option(
    "--interval",
    "intervals_s",
    type=click.FloatRange(0.0, min_open=True),
    multiple=True,
    default=(0.1, 1.0, 5.0),
    show_default=True,
    help="Seconds between two polls; may be repeated.",
)
@click.option(
    "--for",
    "seconds",
    type=click.FloatRange(0.0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that the devices speak, for each way in turn.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Same seed, same events.")
@click.option("--json", "json_file", type=RESULT_FILE, help="Write everything to this file; - is stdout.")
@click.option("--html", "html_file", type=RESULT_FILE, help="Write a page with plots to this file; - is stdout.")
def push_vs_poll(
    consumers: int,
    devices: int,
    rate: float,
    intervals_s: tuple[float, ...],
    seconds: float,
    seed: int,
    json_file: str | None,
    html_file: str | None,
) -> None:
    """Compare MQTT push with HTTP polling, long polling and server-sent events on the same device events.

    Figures are per consumer and minute. Exit codes: 0 measured, 1 not, 2 wrong option.
    """
    stdout_taken = takes_stdout(json_file, html_file)
    events = plan(devices, rate, seconds, seed)
    if not events:
        raise Failure(f"no event falls into {seconds:g} s at {rate:g} events/s: use a longer --for or a higher --rate")
    tail_s = max(intervals_s) + _SETTLE_S  # every way is watched until the slowest has the last event
    found = []
    for way in ways(intervals_s):
        click.echo(way.name, err=True)
        with _gateway(devices) as (ports, cpu_s), asyncio.Runner(loop_factory=new_event_loop) as runner:
            found.append(runner.run(_consume(way, ports, cpu_s, consumers, devices, events, seconds, tail_s)))
    about = f"{consumers} consumers, {devices} devices, {rate:g} events/s each, {seconds:g} s: {len(events)} events"
    head = ["way", *FORMS]
    rows = [[item.way, *(format(value, FORMS[name]) for name, value in item.figures().items())] for item in found]
    click.echo(about, err=stdout_taken)
    for line in aligned([head, *rows]):
        click.echo(line, err=stdout_taken)
    if json_file:
        report = {
            "format": "tidings-push-vs-poll/1",
            "about": about,
            "ways": [{**asdict(item), "figures": item.figures()} for item in found],
        }
        write_result(json_file, json.dumps(report, indent=1) + "\n")
    if html_file:
        plots = [
            bar_plot(f"{name}", [(item.way, [item.figures()[name]]) for item in found], FORMS[name], logarithmic=True)
            for name in ("fresh p50 ms", "fresh p99 ms", "bytes/min", "server cpu ms/min")
        ]
        write_result(html_file, document("Push versus poll", about, [table_of(head, rows), *plots]))
