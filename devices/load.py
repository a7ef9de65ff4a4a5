"""The load generator: many lean MQTT connections in one thread, cheap enough not to be the limit of what it measures.

It runs in a process of its own, apart from the broker. Invariants:

1. A publisher never has more than ``window`` messages unacknowledged, nor a flow more than ``backlog`` messages per
   publisher undelivered, so that no broker wins by dropping, or by queueing without bound.
2. Every message is checked: lost, duplicated, reordered, misrouted. Latency counts from the intended send time; of
   every message if the load has a rate, else of the oldest message of each read.
3. What the generator itself spent, and how late it was, is part of the result.
"""

import gc
import time
from typing import Final

from .load_flow import Flow, build
from .load_plan import Counts, Load, Measured, Target, busy_seconds, count, cpu_seconds, memory_kb
from .load_sockets import Generator

_STALL_NS: Final = 1_000_000_000
# A broker that writes each message on its own would wake us for each. Looking only every 200 us lets what it wrote
# gather, and costs it nothing while enough is outstanding to keep it busy for longer than that. Measured, 10 -> 1 at
# QoS 1 with Mosquitto: from 9.9 to 4.6 us of the generator's CPU a message and no fewer messages; nor with tidings.
_PACE_NS: Final = 200_000
_AT_ONCE: Final = 100
_PACE_FROM_OUTSTANDING: Final = 400


def run(load: Load, target: Target) -> Measured:
    """Make the traffic, and say what came of it.

    Raises:
        LoadError: the broker cannot be reached, refuses, or closes a connection.
    """
    generator = Generator(target, load.version, load.rate is not None, frame_bytes=load.size_bytes + 64)
    gc.disable()  # nothing here makes cycles by the message
    try:
        flows, subscribers = build(generator, load)
        generator.open_all(subscribers)
        generator.open_all(publisher for flow in flows for publisher in flow.publishers)
        if load.rate is None:
            measured = closed_loop(generator, load, flows)
        else:
            measured = _open_loop(generator, load, load.rate, flows)
        drain(generator, load.drain_s, flows)
        generator.check()
        return account(measured, flows)
    finally:
        gc.enable()
        generator.close_all()


class Window:
    """The counters at the start of the measured window; ``close`` gives what has been added since."""

    def __init__(self, generator: Generator, flows: list[Flow]) -> None:
        self._generator, self._flows = generator, flows
        generator.latency_us.clear()
        generator.turn_max_ns = 0
        self._sent = sum(flow.sent for flow in flows)
        self._delivered = sum(flow.delivered for flow in flows)
        self._broker_cpu = cpu_seconds(generator.target.pid)
        self._busy = busy_seconds()
        self._cpu = time.process_time()
        self._time = time.monotonic()

    def close(self) -> Measured:
        """End of the measured window."""
        seconds = time.monotonic() - self._time
        generator_cpu = time.process_time() - self._cpu
        busy = busy_seconds() - self._busy
        pid = self._generator.target.pid
        broker_cpu = cpu_seconds(pid)
        if broker_cpu is not None and self._broker_cpu is not None:
            broker_cpu -= self._broker_cpu
        return Measured(
            seconds=seconds,
            sent=sum(flow.sent for flow in self._flows) - self._sent,
            delivered=sum(flow.delivered for flow in self._flows) - self._delivered,
            latency_us=dict(self._generator.latency_us),
            generator_cpu_s=generator_cpu,
            generator_turn_max_ms=self._generator.turn_max_ns / 1e6,
            broker_cpu_s=broker_cpu,
            broker_peak_kb=memory_kb(pid, "VmHWM"),
            others_cores=max(0.0, busy - generator_cpu - (broker_cpu or 0.0)) / seconds,
        )


def drain(generator: Generator, within_s: float, flows: list[Flow]) -> None:
    """Wait for what is still on its way, until nothing has come for a second or ``within_s`` is over."""
    now = moved = time.monotonic()
    deadline = now + within_s
    owed = sum(flow.owed for flow in flows)
    while owed > 0 and now < deadline and now - moved < 1.0:
        generator.turn(0.1)
        now, before, owed = time.monotonic(), owed, sum(flow.owed for flow in flows)
        if owed != before:
            moved = now


def account(measured: Measured, flows: list[Flow]) -> Measured:
    """Add the faults of the whole run."""
    for flow in flows:
        sent = [publisher.sent for publisher in flow.publishers]
        measured.refused += sum(publisher.refused for publisher in flow.publishers)
        for tally in flow.tallies:
            measured.lost += tally.lost(sent)
            measured.duplicated += tally.duplicated
            measured.reordered += tally.reordered
            measured.misrouted += tally.strange
    return measured


def closed_loop(generator: Generator, load: Load, flows: list[Flow]) -> Measured:
    """Send as fast as windows and backlogs allow, for the load's warm-up and then the seconds that count."""
    for flow in flows:
        for publisher in flow.publishers:
            flow.wake(publisher)
    window: Window | None = None
    outstanding = load.publishers * (load.window if load.qos else load.backlog)
    pace_ns = _PACE_NS if outstanding >= _PACE_FROM_OUTSTANDING else 0
    stalls = 0
    now = moved = time.monotonic_ns()
    measure_from = now + int(load.warmup_s * 1e9)
    stop = 0
    while window is None or now < stop:
        if window is None and now >= measure_from:
            window = Window(generator, flows)
            stop = now + int(load.seconds * 1e9)  # from when it really began: a busy machine may come late
        if generator.awake:
            moved, awake, generator.awake = now, generator.awake, set()
            for flow in awake:
                flow.refill(now)
        generator.turn(0.0 if generator.awake else 0.05)
        if now - moved > _STALL_NS:
            generator.check()
            stalls, moved = stalls + 1, now
            for flow in flows:
                flow.write_off()
        left_ns = pace_ns - (time.monotonic_ns() - now)
        if left_ns > 0:
            time.sleep(left_ns / 1e9)
        now = time.monotonic_ns()
    measured = window.close()
    measured.stalls = stalls
    return measured


def _open_loop(generator: Generator, load: Load, rate: float, flows: list[Flow]) -> Measured:
    window: Window | None = None
    timetable = Timetable(flows, rate)
    measure_from = timetable.started_ns + int(load.warmup_s * 1e9)
    stop = 0
    now = timetable.started_ns
    while window is None or now < stop:
        if window is None and now >= measure_from:
            window = Window(generator, flows)
            stop = now + int(load.seconds * 1e9)
            timetable.lag_us.clear()
        generator.turn(min(timetable.send_due(), max(0, (stop or measure_from) - now) / 1e9), timetable.send_due)
        generator.check()
        now = time.monotonic_ns()
    measured = window.close()
    measured.lag_us = timetable.lag_us
    return measured


class Timetable:
    """An open loop: message m is due at start + m / rate, from the publishers in turn, whatever the broker does.

    ``lag_us`` counts how much later than that each message was handed to the socket.
    """

    def __init__(self, flows: list[Flow], rate: float) -> None:
        self._publishers = [publisher for flow in flows for publisher in flow.publishers]
        self._gap_ns = 1e9 / rate
        self._sent = 0
        self.lag_us: Counts = {}
        self.started_ns = time.monotonic_ns()

    def send_due(self) -> float:
        """Send what is due, and not more than a few at once; returns the seconds until the next message is."""
        publishers, gap_ns = self._publishers, self._gap_ns
        intended = self.started_ns + int(self._sent * gap_ns)
        for _ in range(_AT_ONCE):  # a rate that is too high must leave time for the rest of the loop
            now = time.monotonic_ns()
            if now < intended:
                break
            publishers[self._sent % len(publishers)].publish(1, intended)
            count(self.lag_us, (now - intended) // 1000)
            self._sent += 1
            intended = self.started_ns + int(self._sent * gap_ns)
        return max(0.0, (intended - now) / 1e9)
