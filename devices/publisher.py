"""What devices, replayed devices and the operator share: a client whose messages are stamped and entered in the ledger.

A ``Run`` is what all parts of one run have in common. Times given to publishers are *intended* times, in seconds since
the start of the run; the stamp and the ledger use those, so that lateness of any kind shows up as latency and never
hides.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tidings.broker.codec import NO_PROPERTIES, Properties, Publish, TopicTable

from .client import Client, State
from .clock import Clock
from .histogram import Histogram
from .ledger import Ledger, Stream
from .ports import ClientOptions
from .stamp import stamped
from .streams import stream_key

Token = tuple[Stream, int, int]
"""Stream, sequence number and intended time in µs of a message on its way."""


@dataclass(slots=True)
class Run:
    """One run of a scenario. ``zero`` is its start on the clock, ``epoch_us`` what the scenario's clock showed then."""

    clock: Clock
    ledger: Ledger
    dial: Callable[[Client], None]
    seed: int
    epoch_us: int
    zero: float = 0.0
    end_s: float | None = None
    username: str | None = None
    password: bytes | None = None
    topics: TopicTable = field(default_factory=TopicTable)
    published: int = 0
    skipped: int = 0
    """Messages never sent: no connection at QoS 0, or the device's own queue full."""
    connects: int = 0
    disconnects: dict[str, int] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    """Clients that the broker refused for good, and why."""
    send_lag: Histogram = field(default_factory=Histogram)
    """From the intended time of a message to its being written, for clients that were connected then."""

    def elapsed(self) -> float:
        """Seconds since the start of the run."""
        return self.clock.now() - self.zero

    def now_us(self) -> int:
        return self.epoch_us + round(self.elapsed() * 1e6)

    def time_us(self, time_s: float) -> int:
        """The scenario's time at ``time_s`` since the start."""
        return self.epoch_us + round(time_s * 1e6)

    def iso_time(self, time_s: float) -> str:
        stamp = datetime.fromtimestamp(self.time_us(time_s) // 1000 / 1000, UTC)
        return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def client(self, options: ClientOptions, owner: Any) -> Client:
        """A client for one part of the run, with the run's credentials, clock and dialer."""
        options.username, options.password = self.username, self.password
        key = stream_key(self.seed, "client", options.client_id)
        return Client(options, owner, self.clock, self.dial, jitter_key=key, topics=self.topics)

    def note_offline(self, reason: str) -> None:
        self.disconnects[reason] = self.disconnects.get(reason, 0) + 1


def to_json(body: dict[str, Any]) -> bytes:
    """A JSON object as compact UTF-8."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class Publisher:
    """A named client that publishes. Subclasses say what it does when it is online and when messages come."""

    __slots__ = ("client", "closing", "name", "run")

    def __init__(self, name: str, run: Run, options: ClientOptions) -> None:
        self.name = name
        self.run = run
        self.closing = False
        self.client = run.client(options, self)

    def send(
        self,
        topic: str,
        body: bytes,
        qos: int,
        time_s: float,
        *,
        retain: bool = False,
        properties: Properties = NO_PROPERTIES,
    ) -> bool:
        """Publish ``body``, a JSON object, meant for ``time_s``. False if it could not even be queued: not in the
        ledger."""
        run = self.run
        if not self.client.accepts(qos):
            run.skipped += 1
            return False
        stream = run.ledger.stream(self.name, topic, qos)
        sequence = stream.send()
        at_us = run.time_us(time_s)
        run.published += 1
        payload = stamped(body, self.name, sequence, at_us)
        self.client.publish(topic, payload, qos, retain=retain, token=(stream, sequence, at_us), properties=properties)
        return True

    def finish(self) -> None:
        """Begin nothing new; come back, if away, to send what still waits."""
        self.closing = True
        if self.client.state is State.IDLE:
            self.client.start()

    # -- Owner

    def on_online(self, session_present: bool) -> None:
        self.run.connects += 1

    def on_offline(self, reason: str) -> None:
        self.run.note_offline(reason)

    def on_gone(self, reason: str) -> None:
        self.run.gone[self.name] = reason

    def on_subscribed(self, granted: Sequence[int]) -> None:
        if any(code >= 0x80 for code in granted):
            self.run.note_offline(f"a subscription of a device was refused with 0x{max(granted):02x}")

    def on_message(self, message: Publish) -> bool:
        return True

    def on_written(self, token: Token, again: bool) -> None:
        stream, sequence, at_us = token
        if again:
            stream.resumed = True
            return
        late_us = self.run.now_us() - at_us
        stream.wrote(sequence, late_us)
        self.run.send_lag.record(late_us)

    def on_acknowledged(self, token: Token, reason: int) -> None:
        stream, sequence, _ = token
        stream.acknowledge(sequence, reason < 0x80)
