"""The load scenarios that are more than a stream of messages: idle connections, retained messages, queues.

Each is a function of (load, target) like ``load.run``, and puts what only it measures into ``Measured.numbers``. Where
bystanders matter, a probe runs beside. More of them are in ``load_slow`` and ``load_storm``.
"""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Final

from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe

from .load import Window, account, drain
from .load_flow import Flow, Publisher, Subscriber, topic_of
from .load_plan import Counts, Load, LoadError, Measured, Target, count, memory_kb
from .load_probe import Probe, add_faults, probe_numbers
from .load_sockets import Connection, Generator
from .load_wire import ACK_BYTES, Tally, frame_bounds

SETTLE_S: Final = 0.5
SPARE_FILES: Final = 64
_AREA: Final = 1000  # retained topics that one look-up finds

Scene = Callable[[Generator, Load], Measured]


def scene(play: Scene) -> Callable[[Load, Target], Measured]:
    """Give ``play`` a generator, and close that afterwards."""

    @wraps(play)
    def run(load: Load, target: Target) -> Measured:
        allow_files(load.subscribers + load.publishers + SPARE_FILES)
        generator = Generator(target, load.version, every_latency=True, frame_bytes=load.size_bytes + 64)
        gc.disable()
        try:
            return play(generator, load)
        finally:
            gc.enable()
            generator.close_all()

    return run


def allow_files(wanted: int) -> None:
    """Let this process, and those it starts, open ``wanted`` files.

    Raises:
        LoadError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise LoadError(f"needs {wanted} open files and 'ulimit -Hn' allows {hard}: ask for fewer connections")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Idler(Connection):
    """Subscribes to a topic of its own and waits."""

    __slots__ = ("topic_filter",)

    def __init__(self, generator: Generator, index: int) -> None:
        super().__init__(generator, f"bench-idle-{index}")
        self.topic_filter = f"idle/{index:06}"

    def filters(self) -> Sequence[SubscribeFilter]:
        return (SubscribeFilter(self.topic_filter),)


def forget(connections: Sequence[Connection]) -> None:
    """End the sessions that these have left in the broker, so that it is as it was before."""
    for connection in connections:
        connection.persistent = False
        if connection.fd >= 0:
            connection.reset()
    with suppress(LoadError):  # everything has been measured
        connections[0].generator.open_all(connections)


def growth_bytes(pid: int, before_kb: int | None) -> float | None:
    """Resident memory that the broker has gained, once it is quiet."""
    now_kb = memory_kb(pid, "VmRSS")
    return None if now_kb is None or before_kb is None else 1024.0 * (now_kb - before_kb)


@scene
def connect(generator: Generator, load: Load) -> Measured:
    """``subscribers`` connections with one subscription each: how fast they are let in, and what one occupies."""
    pid = generator.target.pid
    generator.open_all([Idler(generator, 0)])  # so that what the broker loads once is not counted
    time.sleep(SETTLE_S)
    before_kb = memory_kb(pid, "VmRSS")
    idlers = [Idler(generator, 1 + i) for i in range(load.subscribers)]
    window = Window(generator, [])
    generator.open_all(idlers, at_once=load.window)
    measured = window.close()
    for idler in idlers:
        count(measured.latency_us, (idler.opened_ns - idler.started_ns) // 1000)
    measured.numbers["connections_per_s"] = load.subscribers / measured.seconds
    time.sleep(SETTLE_S)
    grown = growth_bytes(pid, before_kb)
    if grown is not None:
        measured.numbers["kb_per_connection"] = grown / 1024 / load.subscribers
    generator.check()
    for idler in idlers:
        idler.reset()
    return measured


class Feeder(Connection):
    """Publishes ready frames at QoS 1, ``window`` unacknowledged at most; frame i is ``make(i)``."""

    __slots__ = ("_amount", "_make", "_window", "acked", "sent")

    def __init__(self, generator: Generator, make: Callable[[int], bytes], amount: int, window: int) -> None:
        super().__init__(generator, "bench-feeder")
        self.runs = {0x40: (b"\x40\x02", ACK_BYTES, self._on_pubacks)}
        self._make = make
        self._amount = amount
        self._window = window
        self.sent = self.acked = 0

    def feed(self, within_s: float) -> float:
        """Send everything, wait for the last acknowledgement; returns the seconds it took."""
        started = time.monotonic()
        self._more()
        while self.acked < self._amount:
            self.generator.turn(1.0)
            self.generator.check()
            if time.monotonic() - started > within_s:
                raise LoadError(
                    f"only {self.acked} of {self._amount} messages were acknowledged within {within_s:.0f} s"
                )
        return time.monotonic() - started

    def frame(self, data: bytes, body_at: int) -> bytes:
        if data[0] >> 4 == 4:
            return self._on_pubacks(bytearray(data), 0, 1)
        return super().frame(data, body_at)

    def _more(self) -> None:
        until = min(self._amount, self.acked + self._window)
        if until > self.sent:
            self.send(b"".join(map(self._make, range(self.sent, until))))
            self.sent = until

    def _on_pubacks(self, data: bytearray, start: int, found: int) -> bytes:
        self.acked += found
        self._more()
        return b""


def _retained_topic(index: int) -> str:
    return f"retained/{index // _AREA:06}/{index % _AREA:06}"


class Looker(Connection):
    """Subscribes to one area of retained topics after another, and times until all of the area's messages came."""

    __slots__ = ("_got", "_version", "_wanted", "asked_ns", "done_ns")

    def __init__(self, generator: Generator, load: Load, wanted: int) -> None:
        super().__init__(generator, "bench-looker")
        self._version = load.version
        self._wanted = wanted
        self._got = 0
        self.asked_ns = self.done_ns = 0
        frame = encode(Publish(_retained_topic(0), bytes(load.size_bytes), retain=True), load.version)
        body_at, stride = frame_bounds(memoryview(frame), 0, len(frame))
        self.runs = {0x31: (frame[:body_at], stride, self._on_publishes)}

    def look(self, area: int) -> None:
        """Ask for an area."""
        self._got = 0
        self.done_ns = 0
        self.asked_ns = time.monotonic_ns()
        self.send(encode(Subscribe(1, [SubscribeFilter(f"retained/{area:06}/+")]), self._version))

    def leave(self, area: int) -> None:
        """Unsubscribe from it."""
        self.send(encode(Unsubscribe(2, [f"retained/{area:06}/+"]), self._version))

    def frame(self, data: bytes, body_at: int) -> bytes:
        kind = data[0] >> 4
        if kind == 3:
            return self._on_publishes(bytearray(data), 0, 1)
        return super().frame(data, body_at) if kind == 2 else b""

    def _on_publishes(self, data: bytearray, start: int, found: int) -> bytes:
        self._got += found
        if self._got >= self._wanted:
            self.done_ns = time.monotonic_ns()
        return b""


@scene
def retained(generator: Generator, load: Load) -> Measured:
    """``amount`` retained messages, then ten wildcard look-ups a second that find 1,000 (or all) of them each.

    Latency is from SUBSCRIBE to the last of these messages.
    """
    pid = generator.target.pid
    areas = max(1, load.amount // _AREA)
    hits = min(load.amount, _AREA)

    def make(index: int) -> bytes:
        packet = Publish(_retained_topic(index), bytes(load.size_bytes), 1, retain=True, packet_id=index % 65535 + 1)
        return encode(packet, load.version)

    feeder = Feeder(generator, make, load.amount, load.window)
    looker = Looker(generator, load, hits)
    generator.open_all([feeder, looker])
    time.sleep(SETTLE_S)
    before_kb = memory_kb(pid, "VmRSS")
    took = feeder.feed(within_s=120.0)
    grown = growth_bytes(pid, before_kb)
    with Probe(load, generator.target) as probe:
        quiet = probe.quiet(load.warmup_s)
        window = Window(generator, [])  # the probe is no load
        lookups: Counts = {}
        area, next_at = 0, time.monotonic()
        until = next_at + load.seconds
        while (now := time.monotonic()) < until:
            if looker.done_ns:
                count(lookups, (looker.done_ns - looker.asked_ns) // 1000)
                looker.leave(area)
                looker.asked_ns = looker.done_ns = 0
                area = (area + 1) % areas
            if not looker.asked_ns and now >= next_at:
                looker.look(area)
                next_at += 0.1
            generator.turn(max(0.0, min(until, next_at if next_at > now else until) - now))
            generator.check()
        measured = window.close()
        during = probe.take()
    if not lookups:
        raise LoadError(f"no look-up of {hits} retained messages was answered in full within {load.seconds:.0f} s")
    measured.latency_us, measured.lag_us = lookups, during.lag_us
    measured.numbers = {"stored_per_s": load.amount / took, **probe_numbers(quiet.latency_us, during.latency_us)}
    if grown is not None:
        measured.numbers["bytes_per_retained"] = grown / load.amount
    return add_faults(measured, during)


@scene
def offline_queue(generator: Generator, load: Load) -> Measured:
    """``subscribers`` sessions go offline, ``amount`` messages queue up for each, all come back at once."""
    pid = generator.target.pid
    flow = Flow(load.subscribers, load.amount)
    flow.publishers = [Publisher(generator, flow, 0, topic_of(0), load)]
    flow.tallies = [Tally(0, 1) for _ in range(load.subscribers)]
    subscribers = [
        Subscriber(generator, flow, i, "bench/+", tally, load, persistent=True) for i, tally in enumerate(flow.tallies)
    ]
    generator.open_all(subscribers)
    generator.open_all(flow.publishers)
    for subscriber in subscribers:
        subscriber.send(encode(Disconnect(), load.version))
        subscriber.close()
    time.sleep(SETTLE_S)
    before_kb = memory_kb(pid, "VmRSS")
    publisher = flow.publishers[0]
    started = time.monotonic()
    while publisher.acked < load.amount:
        room = min(publisher.window - (publisher.sent - publisher.acked), publisher.batch.capacity)
        room = min(room, load.amount - publisher.sent)
        if room > 0:
            publisher.publish(room, time.monotonic_ns())
        generator.turn(1.0)
        generator.check()
        if time.monotonic() - started > 120:
            raise LoadError(f"only {publisher.acked} of {load.amount} messages were acknowledged within 120 s")
    took = time.monotonic() - started
    grown = growth_bytes(pid, before_kb)
    window = Window(generator, [flow])
    for subscriber in subscribers:
        subscriber.open()
    drain(generator, 60.0, [flow])
    measured = window.close()
    if flow.owed:
        measured.seconds -= 1.0  # drain has waited for a second in vain
    owed = load.amount * load.subscribers
    measured.numbers = {"queued_per_s": owed / took, "sessions_lost": sum(not s.session_present for s in subscribers)}
    if grown is not None:
        measured.numbers["bytes_per_queued"] = grown / owed
    generator.check()
    account(measured, [flow])
    forget(subscribers)
    return measured
