"""The load scenarios that are more than a stream of messages: idle connections, retained messages, queues, storms.

Each is a function of (load, target) like ``load.run``, and puts what only it measures into ``Measured.numbers``. Where
bystanders matter, a probe runs beside: one pair at 1,000 messages/s whose latency shows what the others suffer.
"""

import gc
import resource
import socket
import struct
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Final

from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe

from .load import Timetable, Window, account, drain
from .load_flow import Flow, Publisher, Subscriber, topic_of
from .load_plan import Counts, Load, LoadError, Measured, Target, count, memory_kb
from .load_sockets import Connection, Generator
from .load_wire import ACK_BYTES, Tally, frame_bounds

_PROBE: Final = Load("pairs", 1, 1, qos=0, rate=1000.0)
_PROBE_TOPIC: Final = "probe/000000"  # as long as the topics of topic_of, and heard by nobody else
_SETTLE_S: Final = 0.5
_SPARE_FILES: Final = 64
_AREA: Final = 1000  # retained topics that one look-up finds
_SLEEPERS_BUFFER_BYTES: Final = 4096
_AWAKE_BUFFER_BYTES: Final = 1 << 20
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, which leaves no TIME_WAIT behind

Scene = Callable[[Generator, Load], Measured]


def _scene(play: Scene) -> Callable[[Load, Target], Measured]:
    @wraps(play)
    def run(load: Load, target: Target) -> Measured:
        allow_files(load.subscribers + load.publishers + _SPARE_FILES)
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

    def reset(self) -> None:
        """Vanish like a client whose network fails."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()


class Probe:
    """A pair of bystanders: a flow, a timetable, and the latencies since the last ``take``."""

    def __init__(self, generator: Generator, load: Load) -> None:
        pair = Load("pairs", 1, 1, qos=0, version=load.version, size_bytes=load.size_bytes, rate=_PROBE.rate)
        self._generator = generator
        self.flow = Flow(1, 0)
        self.flow.publishers = [Publisher(generator, self.flow, 0, _PROBE_TOPIC, pair)]
        self.flow.tallies = [Tally(0, 1)]
        generator.open_all([Subscriber(generator, self.flow, 0, _PROBE_TOPIC, self.flow.tallies[0], pair)])
        generator.open_all(self.flow.publishers)
        self._timetable = Timetable([self.flow], _PROBE.rate or 1.0)

    def turn(self, until: float = float("inf")) -> None:
        """One turn of the loop with the probe's messages sent as they fall due; not longer than ``until``."""
        wait = min(self._timetable.send_due(), until - time.monotonic(), 0.05)
        self._generator.turn(max(0.0, wait))

    def run(self, seconds: float) -> Counts:
        """Only the probe, for so long; its latencies."""
        self._generator.latency_us.clear()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.turn(until)
        return dict(self._generator.latency_us)


def _percentile_ms(counts: Counts, share: float) -> float:
    wanted, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value / 1000
    return 0.0


def _probe_numbers(before: Counts, during: Counts) -> dict[str, float]:
    return {
        "probe_quiet_p99_ms": _percentile_ms(before, 0.99),
        "probe_p99_ms": _percentile_ms(during, 0.99),
        "probe_max_ms": _percentile_ms(during, 1.0),
    }


def _growth_bytes(pid: int, before_kb: int | None) -> float | None:
    """Resident memory that the broker has gained, once it is quiet."""
    now_kb = memory_kb(pid, "VmRSS")
    return None if now_kb is None or before_kb is None else 1024.0 * (now_kb - before_kb)


@_scene
def connect(generator: Generator, load: Load) -> Measured:
    """``subscribers`` connections with one subscription each: how fast they are let in, and what one occupies."""
    pid = generator.target.pid
    generator.open_all([Idler(generator, 0)])  # so that what the broker loads once is not counted
    time.sleep(_SETTLE_S)
    before_kb = memory_kb(pid, "VmRSS")
    idlers = [Idler(generator, 1 + i) for i in range(load.subscribers)]
    window = Window(generator, [])
    generator.open_all(idlers, at_once=load.window)
    measured = window.close()
    for idler in idlers:
        count(measured.latency_us, (idler.opened_ns - idler.started_ns) // 1000)
    measured.numbers["connections_per_s"] = load.subscribers / measured.seconds
    time.sleep(_SETTLE_S)
    grown = _growth_bytes(pid, before_kb)
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


@_scene
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
    time.sleep(_SETTLE_S)
    before_kb = memory_kb(pid, "VmRSS")
    took = feeder.feed(within_s=120.0)
    grown = _growth_bytes(pid, before_kb)
    probe = Probe(generator, load)
    quiet = probe.run(1.0)
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
        probe.turn(until)
        generator.check()
    if not lookups:
        raise LoadError(f"no look-up of {hits} retained messages was answered in full within {load.seconds:.0f} s")
    measured = window.close()
    during, measured.latency_us = measured.latency_us, lookups
    measured.numbers = {"stored_per_s": load.amount / took, **_probe_numbers(quiet, during)}
    if grown is not None:
        measured.numbers["bytes_per_retained"] = grown / load.amount
    drain(generator, load.drain_s, [probe.flow])
    return account(measured, [probe.flow])


@_scene
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
    time.sleep(_SETTLE_S)
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
    grown = _growth_bytes(pid, before_kb)
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
    return account(measured, [flow])


class Sleeper(Subscriber):
    """A subscriber that stops reading, and may be cut off for it.

    Its kernel keeps little, so that what it does not read is soon the broker's to keep.
    """

    __slots__ = ("cut",)

    def __init__(
        self, generator: Generator, flow: Flow, index: int, topic_filter: str, tally: Tally, load: Load
    ) -> None:
        super().__init__(generator, flow, index, topic_filter, tally, load)
        self.cut = False
        self.receive_bytes = _SLEEPERS_BUFFER_BYTES

    def thaw(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _AWAKE_BUFFER_BYTES)
        super().thaw()

    def lost(self, why: str) -> None:
        self.cut = True
        self.close()

    def frame(self, data: bytes, body_at: int) -> bytes:
        if data[0] >> 4 == 14:
            self.cut = True
            return b""
        return super().frame(data, body_at)


@_scene
def slow_consumer(generator: Generator, load: Load) -> Measured:
    """One publisher at ``rate``, ``subscribers`` healthy ones and one that stops reading half-way."""
    flow = Flow(load.subscribers, load.backlog)
    flow.publishers = [Publisher(generator, flow, 0, topic_of(0), load)]
    flow.tallies = [Tally(0, 1) for _ in range(load.subscribers)]
    healthy = [Subscriber(generator, flow, i, "bench/+", tally, load) for i, tally in enumerate(flow.tallies)]
    aside = Flow(1, 0)
    sleeper = Sleeper(generator, aside, load.subscribers, "bench/+", Tally(0, 1), load)
    generator.open_all([*healthy, sleeper])
    generator.open_all(flow.publishers)
    timetable = Timetable([flow], load.rate or 1000.0)

    def go_on(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            generator.turn(min(timetable.send_due(), until - now))
            generator.check()

    go_on(load.warmup_s)
    window = Window(generator, [flow])
    go_on(load.seconds)
    before = window.close()
    before_kb = memory_kb(generator.target.pid, "VmRSS")
    sleeper.freeze()
    timetable.lag_us.clear()
    window = Window(generator, [flow])
    go_on(load.seconds)
    measured = window.close()
    measured.lag_us = timetable.lag_us
    grown = _growth_bytes(generator.target.pid, before_kb)
    measured.numbers = {
        "healthy_before_p99_ms": _percentile_ms(before.latency_us, 0.99),
        "healthy_p99_ms": _percentile_ms(measured.latency_us, 0.99),
        "healthy_max_ms": _percentile_ms(measured.latency_us, 1.0),
        "healthy_got_percent": 100.0 * measured.delivered / max(1, measured.sent * flow.fan),
    }
    if grown is not None:
        measured.numbers["grown_mb"] = grown / 1024 / 1024
    generator.latency_us.clear()
    if sleeper.fd >= 0:
        sleeper.thaw()
    drain(generator, load.drain_s, [flow])
    aside.sent = flow.sent
    drain(generator, load.drain_s, [aside])
    measured.numbers["frozen_cut_off"] = float(sleeper.cut)
    measured.numbers["frozen_got_percent"] = 100.0 * aside.delivered / max(1, flow.sent)
    return account(measured, [flow])


@_scene
def reconnect_storm(generator: Generator, load: Load) -> Measured:
    """``subscribers`` clients lose their network at once and all come back at once, again and again for ``seconds``.

    Latency is from a client's first SYN to its SUBACK.
    """
    idlers = [Idler(generator, i) for i in range(load.subscribers)]
    generator.open_all(idlers)
    probe = Probe(generator, load)
    quiet = probe.run(1.0)
    window = Window(generator, [])  # the probe is no load
    back: Counts = {}
    storms, away_s = 0, 0.0
    until = time.monotonic() + load.seconds
    pending = 0

    def on_open(connection: Connection) -> None:
        nonlocal pending
        pending -= 1
        count(back, (connection.opened_ns - connection.started_ns) // 1000)

    while storms == 0 or time.monotonic() < until:
        for idler in idlers:
            idler.reset()
        pending = len(idlers)
        started = time.monotonic()
        for idler in idlers:
            idler.on_open = on_open
            idler.open()
        while pending:
            probe.turn()
            generator.check()
            if time.monotonic() - started > 60:
                raise LoadError(f"{pending} of {load.subscribers} clients were not back after 60 s")
        storms += 1
        away_s += time.monotonic() - started
    measured = window.close()
    during, measured.latency_us = measured.latency_us, back
    measured.numbers = {
        "reconnects_per_s": storms * load.subscribers / away_s,
        "all_back_s": away_s / storms,
        **_probe_numbers(quiet, during),
    }
    drain(generator, load.drain_s, [probe.flow])
    for idler in idlers:
        idler.reset()
    return account(measured, [probe.flow])
