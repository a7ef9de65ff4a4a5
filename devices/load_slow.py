"""The load scenario ``slow-consumer``: what one who does not read, and one who reads slowly, cost the others.

The fast ones are measured alone and beside the two, all in one round and at one rate, in an order that lets a drift of
the machine cancel out. Two stretches alone that follow one another tell how far two equal ones are apart.
"""

import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from tidings.broker.policy import PROPERTY

from .load import Timetable, Window, account, closed_loop, drain
from .load_flow import Flow, Subscriber, build
from .load_plan import Counts, Load, LoadError, Measured, count, memory_kb, quantile_ms
from .load_scenes import scene
from .load_sockets import Generator
from .load_wire import STAMP, Tally

_SMALL_BUFFER_BYTES: Final = 4096
_LARGE_BUFFER_BYTES: Final = 1 << 20
_SLOW_SHARE: Final = 0.01  # of the rate
_HALF: Final = 0.5
_TURNS: Final = 4
_CALIBRATE_S: Final = 1.0
_OUTSTANDING: Final = 200  # messages under way while the capacity is measured: far fewer than any broker's bounds
_LOOK_S: Final = 0.1  # between two looks at the broker's memory


class Aside(Subscriber):
    """One of the two: it may be cut off, and what it gets does not count for the fast ones.

    Its kernel keeps little, so that what it does not read is soon the broker's to keep.
    """

    __slots__ = ("cut", "got")

    def __init__(self, generator: Generator, index: int, load: Load) -> None:
        super().__init__(generator, Flow(1, 0), index, "bench/+", Tally(0, load.publishers), load)
        self.cut = False
        self.got = 0
        self.receive_bytes = _SMALL_BUFFER_BYTES

    def lost(self, why: str) -> None:
        self.cut = True
        self.close()

    def frame(self, data: bytes, body_at: int) -> bytes:
        if data[0] >> 4 == 14:
            self.cut = True
            return b""
        return super().frame(data, body_at)

    def wake_up(self) -> None:
        """Read whatever there is from now on."""
        if self.fd >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGE_BUFFER_BYTES)
            self.thaw()

    def _took(self, data: bytearray, stamp_at: int, found: int, stride: int) -> None:
        self.got += found
        self.tally.take_run(data, stamp_at, found, stride)


class Slow(Aside):
    """Takes a message, works on it for ``period_s``, acknowledges it, takes the next."""

    __slots__ = ("_answer", "_next_at", "age_us", "awake", "period_s")

    def __init__(self, generator: Generator, index: int, load: Load, period_s: float) -> None:
        super().__init__(generator, index, load)
        self.period_s = period_s
        self.awake = False
        self.age_us: Counts = {}
        self._answer = b""
        self._next_at = 0.0
        if load.version >= 5:
            self.connect_properties = {"receive_maximum": 1}
            if load.policy:
                self.subscribe_properties = {"user_property": [(PROPERTY, load.policy)]}

    def due(self, now: float) -> float:
        """Go on to the next message if it is time; returns the seconds until it is."""
        if now >= self._next_at and self.fd >= 0:
            if self._answer:
                answer, self._answer = self._answer, b""
                super().send(answer)
            self.thaw()
        return max(0.0, self._next_at - now)

    def wake_up(self) -> None:
        self.awake = True
        self.due(self._next_at)
        super().wake_up()

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        if self.awake or not self.opened_ns:
            return super().send(data)
        self._answer += bytes(data)
        return True

    def read(self) -> None:
        got = self.got
        self.read_bytes = 0 if self.awake else self.stride  # one message
        super().read()
        if self.got != got and not self.awake and self.fd >= 0:
            self.freeze()
            self._next_at = time.monotonic() + self.period_s

    def _took(self, data: bytearray, stamp_at: int, found: int, stride: int) -> None:
        super()._took(data, stamp_at, found, stride)
        if not self.awake:
            count(self.age_us, (time.monotonic_ns() - STAMP.unpack_from(data, stamp_at)[2]) // 1000)


class Stage:
    """The traffic at ``rate`` messages/s, in stretches that are measured on their own.

    Where the load names no rate it is half of what the fast ones get in a closed loop: what one who lags does to others
    depends on how busy the broker is, so each has its own. Figures of two brokers are then ratios, not milliseconds.
    """

    def __init__(self, generator: Generator, flow: Flow, load: Load) -> None:
        self._generator = generator
        self._flow = flow
        self._drain_s = load.drain_s
        self.rate = load.rate or _HALF * _capacity(generator, load, flow)

    def play(self, seconds: float, slow: Slow | None = None) -> Measured:
        """So many seconds of traffic, and everything that it brought delivered."""
        generator, flow = self._generator, self._flow
        timetable, window = Timetable([flow], self.rate), Window(generator, [flow])
        started = time.monotonic()
        until = look_at = started
        until += seconds
        memory_mb: list[tuple[float, float]] = []
        while (now := time.monotonic()) < until:
            wait_s = min(timetable.send_due(), until - now)
            if slow is not None:
                wait_s = min(wait_s, slow.due(now) or wait_s)
            if now >= look_at:
                look_at += _LOOK_S
                kb = memory_kb(generator.target.pid, "VmRSS")
                if kb is not None:
                    memory_mb.append((now - started, kb / 1024))
            generator.turn(max(0.0, wait_s), timetable.send_due)
            generator.check()
        measured = replace(window.close(), lag_us=timetable.lag_us, memory_mb=memory_mb)
        drain(generator, self._drain_s, [flow])
        return measured


@scene
def slow_consumer(generator: Generator, load: Load) -> Measured:
    """``subscribers`` fast ones with and without a frozen and a slow one beside, at half of what the broker can do.

    With and without take turns, as the machine changes more from one second to the next than these two ever do; then
    comes a long stretch with them.
    """
    (flow,), fast = build(generator, load)
    generator.open_all([*fast, *flow.publishers])
    stage = Stage(generator, flow, load)
    stage.play(load.warmup_s)
    lost = account(Measured(), [flow]).lost  # some brokers drop when they are as busy as they can be
    period_s = 1 / (_SLOW_SHARE * stage.rate)
    alone: list[Measured] = []
    beside: list[Measured] = []
    for i in range(_TURNS):
        if i % 2:
            alone.append(stage.play(load.seconds / _TURNS))
        frozen, slow = Aside(generator, load.subscribers, load), Slow(generator, load.subscribers + 1, load, period_s)
        sent = [publisher.sent for publisher in flow.publishers]
        for aside in (frozen, slow):
            aside.tally.expected[:] = sent
        generator.open_all([frozen, slow])
        frozen.freeze()
        beside.append(stage.play(load.seconds / _TURNS, slow))
        if i < _TURNS - 1:
            _leave([frozen, slow])
        if not i % 2:
            alone.append(stage.play(load.seconds / _TURNS))
    measured = stage.play(load.seconds, slow)
    memory_mb = measured.memory_mb
    read = slow.got
    for aside in (frozen, slow):
        aside.wake_up()
    _wait_for(generator, [frozen, slow])
    for stretch in (*alone, *beside):
        for value, times in stretch.lag_us.items():
            measured.lag_us[value] = measured.lag_us.get(value, 0) + times
    ratios = [_ratio(with_them, without) for without, with_them in zip(alone, beside, strict=True)]
    equals = [_ratio(one, other) for one, other in zip(alone[::2], alone[1::2], strict=True)]
    measured.numbers = {
        "rate_per_s": stage.rate,
        "healthy_before_p99_ms": statistics.median(map(p99_ms, alone)),
        "healthy_p99_ms": statistics.median(map(p99_ms, beside)),
        "healthy_ratio": statistics.median(ratios),
        "alone_ratio": max(max(ratio, 1 / ratio) for ratio in equals),
        "healthy_got_percent": 100.0 * measured.delivered / max(1, measured.sent * flow.fan),
        "frozen_cut_off": float(frozen.cut),
        "frozen_got_percent": 100.0 * frozen.tally.delivered / max(1, flow.sent - sum(sent)),
        "slow_read": float(read),
        "slow_period_ms": 1000 * slow.period_s,
    }
    if slow.age_us:
        measured.numbers["slow_age_p50_ms"] = quantile_ms(slow.age_us, 0.5)
        measured.numbers["slow_age_max_ms"] = quantile_ms(slow.age_us, 1.0)
    if memory_mb:
        half = len(memory_mb) // 2
        measured.numbers["grown_mb"] = max(mb for _, mb in memory_mb) - beside[0].memory_mb[0][1]
        measured.numbers["grown_late_mb"] = max(mb for _, mb in memory_mb[half:]) - memory_mb[half][1]
    _leave([frozen, slow])
    account(measured, [flow]).lost -= lost
    return measured


def p99_ms(measured: Measured) -> float:
    """What 99 % of the messages stayed below."""
    return quantile_ms(measured.latency_us, 0.99)


def _ratio(one: Measured, other: Measured) -> float:
    return max(0.001, p99_ms(one)) / max(0.001, p99_ms(other))


def _leave(asides: Sequence[Aside]) -> None:
    for aside in asides:
        if aside.fd >= 0:
            aside.reset()


def _capacity(generator: Generator, load: Load, flow: Flow) -> float:
    """Messages/s that the broker takes and delivers to the fast ones, as fast as their windows allow."""
    flow.backlog = max(1, _OUTSTANDING // len(flow.publishers))
    generator.every_latency = False
    found = closed_loop(generator, replace(load, warmup_s=0.3, seconds=_CALIBRATE_S), [flow])
    drain(generator, 60.0, [flow])
    generator.every_latency = True
    if not found.delivered:
        raise LoadError(f"nothing was delivered within {_CALIBRATE_S:g} s: there is no capacity to take half of")
    return found.delivered / flow.fan / found.seconds


def _wait_for(generator: Generator, asides: list[Aside]) -> None:
    """Until they have been sent nothing for half a second."""
    now = moved = time.monotonic()
    got = 0
    while now - moved < 0.5:
        generator.turn(0.1)
        now = time.monotonic()
        if got != (got := sum(aside.got for aside in asides)):
            moved = now
