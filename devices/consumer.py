"""A simulated consumer: fast, slow, away for a while, frozen, or one of a shared group.

A slow consumer takes ``rate`` messages a second and acknowledges each when it has dealt with it; while it has any to
deal with it does not read its socket, so the broker feels it. A frozen one keeps its connection and does not read at
all.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tidings.broker.codec import MQTT_5_0, NO_PROPERTIES, Properties, Publish, SubscribeFilter
from tidings.broker.policy import PROPERTY

from .client import State
from .clock import Timer
from .ledger import Account
from .ports import ClientOptions
from .publisher import Run
from .scenario import ConsumerSpec


class Consumer:
    """One connection that receives. Several of a group share one ``Account``."""

    __slots__ = (
        "_account",
        "_frozen",
        "_on_ready",
        "_pending",
        "_spec",
        "_timer",
        "catching_up",
        "client",
        "name",
        "ready",
        "run",
    )

    def __init__(
        self,
        name: str,
        spec: ConsumerSpec,
        account: Account,
        client_id: str,
        run: Run,
        on_ready: Callable[[], None],
    ) -> None:
        self.name = name
        self.run = run
        self.ready = False
        """Subscribed at least once, or refused."""
        self.catching_up = False
        """At the end of a run a slow consumer takes what is left as fast as it comes."""
        self._spec = spec
        self._account = account
        self._on_ready = on_ready
        self._pending: deque[Publish] = deque()
        self._timer: Timer | None = None
        self._frozen = False
        options = ClientOptions(
            client_id=client_id,
            version=spec.version,
            session_s=int(spec.session),
            keep_alive_s=int(spec.keep_alive),
            receive_maximum=spec.receive_maximum,
            max_packet_bytes=16 << 20,
        )
        self.client = run.client(options, self)

    # -- what the fleet asks for

    def begin(self) -> None:
        self.client.start()

    def leave(self) -> None:
        """Say goodbye; the session stays as long as it was asked to."""
        self.client.pause(abrupt=False)

    def come_back(self) -> None:
        if self.client.state is State.IDLE:
            self.client.start()

    def freeze(self) -> None:
        self._frozen = True
        self.client.pause_reading()

    def thaw(self) -> None:
        if self._frozen:
            self._frozen = False
            if not self._pending:
                self.client.resume_reading()

    def catch_up(self) -> None:
        """From now on take everything as fast as it comes."""
        self.catching_up = True
        self.thaw()
        self.come_back()
        if self._timer is not None:
            self._timer.cancel()
        while self._pending:
            self._deal_with(self._pending.popleft())
        self.client.resume_reading()

    # -- Owner

    def on_online(self, session_present: bool) -> None:
        self.run.connects += 1
        account = self._account
        if self.client.connects > 1:
            account.reconnects += 1
            if self._spec.session and not session_present:
                account.sessions_lost += 1
        if session_present:
            self.run.ledger.resumed(account, self.name)
        else:
            group = "" if self._spec.share is None else f"$share/{self._spec.share}/"
            properties: Properties = NO_PROPERTIES
            if self._spec.policy is not None and self._spec.version == MQTT_5_0:
                properties = {"user_property": [(PROPERTY, self._spec.policy)]}
            filters = [SubscribeFilter(group + topic_filter, qos) for topic_filter, qos in self._spec.wanted]
            self.client.subscribe(filters, properties)

    def on_offline(self, reason: str) -> None:
        self.run.note_offline(reason)
        self._frozen = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # What was not acknowledged comes again on the next connection, and QoS 0 was ours once it was read.
        for message in self._pending:
            if message.qos == 0:
                self._enter(message)
        self._pending.clear()
        self.run.ledger.left(self._account, self.name)

    def on_gone(self, reason: str) -> None:
        self.run.gone[self.name] = reason
        self._set_ready()

    def on_subscribed(self, granted: Sequence[int]) -> None:
        self.run.ledger.subscribed(self._account, self.name, granted)
        self._set_ready()

    def on_message(self, message: Publish) -> bool:
        if self._spec.rate is None or self.catching_up:
            self._enter(message)
            return True
        self._pending.append(message)
        if len(self._pending) == 1:
            self.client.pause_reading()
            self._next(self.run.clock.now())
        return False

    def on_written(self, token: Any, again: bool) -> None:
        """Consumers publish nothing."""

    def on_acknowledged(self, token: Any, reason: int) -> None:
        """Consumers publish nothing."""

    # -- dealing with messages

    def _next(self, after: float) -> None:
        rate = self._spec.rate
        assert rate is not None
        # From when the last one was due, not from now: a late timer must not make it slower than it is meant to be.
        due = max(after + 1.0 / rate, self.run.clock.now() - 1.0)
        self._timer = self.run.clock.call_at(due, self._deal_with_one, due)

    def _deal_with_one(self, due: float) -> None:
        self._timer = None
        if self._pending:
            self._deal_with(self._pending.popleft())
        if self._pending:
            self._next(due)
        elif not self._frozen:
            self.client.resume_reading()

    def _deal_with(self, message: Publish) -> None:
        self._enter(message)
        self.client.acknowledge(message)

    def _enter(self, message: Publish) -> None:
        self.run.ledger.receive(
            self._account, self.name, message.topic, message.payload, retain=message.retain, now_us=self.run.now_us()
        )

    def _set_ready(self) -> None:
        if not self.ready:
            self.ready = True
            self._on_ready()
