"""Bystanders: a pair at 1,000 messages/s whose latency shows what others suffer from what a scenario does.

They are a process of their own, so that it is the broker they wait for and not the load generator.
"""

import contextlib
import gc
import time
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection as Pipe
from types import TracebackType
from typing import Final, Self

from .load import Timetable, Window, account, drain
from .load_flow import Flow, Publisher, Subscriber
from .load_plan import Counts, Load, LoadError, Measured, Target, quantile_ms
from .load_sockets import Generator
from .load_wire import Tally

RATE: Final = 1000.0
TOPIC: Final = "probe/000000"  # as long as the topics of topic_of, and heard by nobody else
_START_S: Final = 60.0
_GLANCE_S: Final = 0.02  # between two looks whether somebody wants the figures


class Probe:
    """The pair, while its block lasts. Raises LoadError if the broker does not let it in, or cuts it off."""

    def __init__(self, load: Load, target: Target) -> None:
        pair = Load("pairs", 1, 1, qos=0, version=load.version, size_bytes=load.size_bytes, rate=RATE)
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(pair, target, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def take(self) -> Measured:
        """What the pair has seen since it was asked last. Faults are those of the whole time."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        return self._answer()

    def quiet(self, seconds: float) -> Measured:
        """What the pair sees in the next ``seconds``."""
        self.take()
        time.sleep(seconds)
        return self.take()

    def _answer(self) -> Measured:
        try:
            answer = self._pipe.recv() if self._pipe.poll(_START_S) else LoadError("the probe does not answer")
        except (EOFError, OSError):
            answer = LoadError("the probe has died")
        if isinstance(answer, LoadError):
            raise answer
        found: Measured = answer
        return found


def probe_numbers(before: Counts, during: Counts) -> dict[str, float]:
    """What bystanders saw while nothing happened, and while it did."""
    return {
        "probe_quiet_p99_ms": quantile_ms(before, 0.99),
        "probe_p99_ms": quantile_ms(during, 0.99),
        "probe_max_ms": quantile_ms(during, 1.0),
    }


def add_faults(measured: Measured, probe: Measured) -> Measured:
    """``measured`` with the faults of the probe, and without its work among that of others."""
    for name in ("lost", "duplicated", "reordered", "misrouted"):
        setattr(measured, name, getattr(measured, name) + getattr(probe, name))
    if measured.seconds:
        measured.others_cores = max(0.0, measured.others_cores - probe.generator_cpu_s / measured.seconds)
    return measured


def _serve(load: Load, target: Target, pipe: Pipe) -> None:
    """The process: say when the pair is connected, then what it has seen, for each item that comes, until the end."""
    with contextlib.suppress(EOFError, OSError):  # nobody listens any more
        try:
            _run(load, target, pipe)
        except LoadError as error:
            pipe.send(error)


def _run(load: Load, target: Target, pipe: Pipe) -> None:
    generator = Generator(target, load.version, every_latency=True)
    flow = Flow(1, 0)
    flow.publishers = [Publisher(generator, flow, 0, TOPIC, load)]
    flow.tallies = [Tally(0, 1)]
    subscriber = Subscriber(generator, flow, 0, TOPIC, flow.tallies[0], load)
    subscriber.client_id, flow.publishers[0].client_id = "bench-probe-sub", "bench-probe-pub"
    gc.disable()
    try:
        generator.open_all([subscriber])
        generator.open_all(flow.publishers)
        pipe.send(Measured())
        timetable, window = Timetable([flow], RATE), Window(generator, [flow])
        while True:
            until = time.monotonic() + _GLANCE_S
            while (now := time.monotonic()) < until:
                generator.turn(max(0.0, min(timetable.send_due(), until - now)))
            generator.check()
            if pipe.poll():
                pipe.recv()
                measured = replace(window.close(), lag_us=timetable.lag_us)
                drain(generator, 1.0, [flow])
                pipe.send(account(measured, [flow]))
                timetable, window = Timetable([flow], RATE), Window(generator, [flow])
    finally:
        generator.close_all()
