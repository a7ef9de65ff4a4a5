"""The load scenario ``reconnect-storm``: a crowd loses its network, messages wait for it, and all come back at once."""

import time
from collections.abc import Callable
from typing import Final

from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Publish

from .load import Window
from .load_flow import Flow, Subscriber, topic_of
from .load_plan import Load, Measured, count
from .load_probe import Probe, add_faults, probe_numbers
from .load_scenes import SETTLE_S, Feeder, forget, scene
from .load_sockets import Connection, Generator
from .load_wire import STAMP, Tally

_WITHIN_S: Final = 120.0
_STALL_S: Final = 10.0  # longer than TCP takes to repeat a SYN the third time
_SLICE: Final = 32  # connections begun between two looks at those that are open


class Returner(Subscriber):
    """Has a session that outlives its connection, and is served once it has everything that waited in it."""

    __slots__ = ("on_served", "opened", "served_ns", "wanted")

    def __init__(self, generator: Generator, flow: Flow, index: int, load: Load) -> None:
        super().__init__(generator, flow, index, topic_of(index), Tally(index, 1), load, persistent=True)
        self.wanted = load.amount
        self.opened = False
        self.served_ns = 0
        self.on_served: Callable[[Returner], None] | None = None

    def come_back(self, on_served: Callable[["Returner"], None]) -> None:
        """Connect again, and say when everything is there."""
        self.on_served = on_served
        self.on_open = Returner._on_open
        self.opened = False
        self.open()

    def _on_open(self: Connection) -> None:
        assert isinstance(self, Returner)
        self.opened = True
        self._look()

    def _took(self, data: bytearray, stamp_at: int, found: int, stride: int) -> None:
        tally = self.tally
        delivered = tally.delivered
        tally.take_run(data, stamp_at, found, stride)
        self.flow.delivered += tally.delivered - delivered
        self._look()

    def _look(self) -> None:
        if self.opened and self.on_served is not None and self.tally.delivered >= self.wanted:
            self.served_ns = time.monotonic_ns()
            self.on_served(self)
            self.on_served = None


@scene
def reconnect_storm(generator: Generator, load: Load) -> Measured:
    """``subscribers`` clients vanish, ``amount`` messages queue for each, and all connect again as fast as that goes.

    Latency is from a client's first SYN to the last message that waited for it.
    """
    flow = Flow(1, 0)
    clients = [Returner(generator, flow, i, load) for i in range(load.subscribers)]
    flow.tallies = [client.tally for client in clients]
    generator.open_all(clients)
    with Probe(load, generator.target) as probe:
        quiet = probe.quiet(load.warmup_s)
        for client in clients:
            client.reset()
        time.sleep(SETTLE_S)
        _queue(generator, load)
        flow.sent = load.subscribers * load.amount
        time.sleep(SETTLE_S)
        probe.take()
        window = Window(generator, [flow])
        served = _storm(generator, clients)
        measured = window.close()
        during = probe.take()
    started = clients[0].started_ns
    if served:
        measured.seconds = (max(client.served_ns for client in served) - started) / 1e9
    measured.latency_us, measured.lag_us = {}, during.lag_us
    for client in served:
        count(measured.latency_us, (client.served_ns - client.started_ns) // 1000)
    measured.numbers = {
        "all_back_s": (max(client.opened_ns for client in clients) - started) / 1e9,
        "all_served_s": measured.seconds,
        "sessions_lost": sum(not client.session_present for client in clients),
        "not_served": len(clients) - len(served),
        **probe_numbers(quiet.latency_us, during.latency_us),
    }
    for tally in flow.tallies:
        measured.lost += tally.lost([load.amount])
        measured.duplicated += tally.duplicated
        measured.reordered += tally.reordered
        measured.misrouted += tally.strange
    forget(clients)
    return add_faults(measured, during)


def _queue(generator: Generator, load: Load) -> None:
    """A message for each client in turn, until each is owed ``amount``."""
    clients, padding = load.subscribers, bytes(load.size_bytes - STAMP.size)

    def make(index: int) -> bytes:
        seq, client = divmod(index, clients)
        payload = STAMP.pack(client, seq, 0) + padding
        return encode(Publish(topic_of(client), payload, 1, packet_id=index % 65535 + 1), load.version)

    feeder = Feeder(generator, make, clients * load.amount, load.window)
    generator.open_all([feeder])
    feeder.feed(_WITHIN_S)


def _storm(generator: Generator, clients: list[Returner]) -> list[Returner]:
    """Let them come back, as fast as sockets can be opened; returns those who were served."""
    served: list[Returner] = []
    for i in range(0, len(clients), _SLICE):
        for client in clients[i : i + _SLICE]:
            client.come_back(served.append)
        generator.turn(0.0)
    before, moved = 0, time.monotonic()
    while len(served) < len(clients) and time.monotonic() - moved < _STALL_S:
        generator.turn(0.1)
        generator.check()
        if len(served) != before:
            before, moved = len(served), time.monotonic()
    return served
