"""What a broker that is started again does with what its store kept: sessions, wills and expiry, at the right time."""

from typing import Any

import pytest

from tidings.broker import Config, Message
from tidings.broker.codec.packets import Connect, Disconnect, Puback, Publish, Subscribe, SubscribeFilter, Will
from tidings.broker.core.connection import Connection
from tidings.broker.core.engine import Engine
from tidings.broker.core.ports import PauseReason
from tidings.broker.core.window import DropReason
from tidings.broker.store.memory import MemoryStore

from .outbox import ListOutbox

START = 1_000_000.0


class Sink:
    """An outbox that never fills up."""

    full = False
    held = 0
    waits = False

    def __init__(self) -> None:
        self.sent = b""

    def send(self, data: bytes) -> None:
        self.sent += data

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        self.sent += data

    def hold(self, batch: int) -> None:
        """Nothing is held back here."""

    def release(self, batch: int) -> None:
        """Nothing is held back here."""

    def go_on(self, reason: PauseReason) -> None:
        pass

    def shorten(self) -> None:
        """It is as short as can be."""

    def close(self) -> None:
        """Nothing to close."""


class Broker:
    """An engine and a store that outlives it."""

    def __init__(self, **options: Any) -> None:
        self.config = Config(sys_interval_s=0, **options)
        self.store = MemoryStore()
        self.now = START
        self._start()

    def _start(self) -> None:
        self.engine = Engine(self.config, self.now, lambda: "made", keeps=True)
        self.engine.restore(self.store.load(), self.store.load_retained(), self.now)
        self.store.start(self)
        self.engine.tick(self.now)
        self.settle()

    def restart_after(self, seconds: float) -> None:
        """Crash with everything on the disk, and come back."""
        self.settle()
        self.store.crash()
        self.now += seconds
        self._start()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.engine.tick(self.now)
        self.settle()

    def settle(self) -> None:
        while self.engine.changes:
            self.store.write(*self.engine.take_changes())
            self.store.commit()

    def durable(self, batch: int) -> None:
        self.engine.durable(batch)

    def refill(self, window: Any, entries: Any) -> None:
        self.engine.refill(window, entries, self.now)

    def store_trouble(self, trouble: str) -> None:
        raise AssertionError(trouble)

    def client(self, client_id: str, expiry_s: int = 100, will: Will | None = None) -> Connection:
        connection = self.engine.connect(Sink(), client_id, self.now)
        properties: Any = {"session_expiry_interval": expiry_s} if expiry_s else {}
        packet = Connect(client_id, 5, False, 0, will=will, properties=properties)
        self.engine.handle(connection, [packet], self.now)
        self.settle()
        return connection

    def subscriber(self, client_id: str, filter: str) -> None:
        connection = self.client(client_id)
        self.engine.handle(connection, [Subscribe(1, [SubscribeFilter(filter, 1)]), Disconnect()], self.now)
        self.settle()

    def waiting(self, client_id: str) -> int:
        return self.engine.sessions[client_id].window.waiting


def test_a_session_ends_when_its_time_is_over_also_while_the_broker_is_down() -> None:
    broker = Broker()
    broker.subscriber("short", "t")
    broker.restart_after(99)
    assert "short" in broker.engine.sessions
    broker.restart_after(2)
    assert broker.engine.sessions == {}
    assert broker.store.sessions == {}


def test_the_time_of_a_client_that_was_connected_at_the_crash_begins_with_the_restart() -> None:
    broker = Broker()
    broker.client("c")
    broker.restart_after(1_000)
    assert "c" in broker.engine.sessions
    broker.advance(99)
    assert "c" in broker.engine.sessions
    broker.advance(2)
    assert "c" not in broker.engine.sessions


@pytest.mark.parametrize(("delay_s", "due"), [(0, True), (50, False)])
def test_the_will_of_a_client_that_was_connected_at_the_crash_goes_out(delay_s: int, due: bool) -> None:
    broker = Broker()
    broker.subscriber("watcher", "gone")
    broker.client("mortal", will=Will("gone", b"bye", 1, properties={"will_delay_interval": delay_s}))
    broker.restart_after(1)
    assert broker.waiting("watcher") == due
    broker.advance(51)
    assert broker.waiting("watcher") == 1
    broker.restart_after(1)
    assert broker.waiting("watcher") == 1, "a will goes out once"


def test_a_will_that_waited_for_its_delay_goes_out_on_time_after_a_restart() -> None:
    broker = Broker()
    broker.subscriber("watcher", "gone")
    mortal = broker.client("mortal", will=Will("gone", b"bye", 1, properties={"will_delay_interval": 50}))
    broker.engine.disconnected(mortal, broker.now)
    broker.restart_after(30)
    assert broker.waiting("watcher") == 0
    broker.advance(21)
    assert broker.waiting("watcher") == 1


def test_a_session_that_was_to_end_with_its_connection_does_not_come_back() -> None:
    broker = Broker()
    broker.subscriber("c", "t")
    broker.client("c", expiry_s=0)  # it had been kept until now
    broker.restart_after(1)
    assert broker.engine.sessions == {}
    assert broker.store.sessions == {}


def _sent(connection: Connection) -> list[tuple[bytes, bool]]:
    """Payload and DUP of each PUBLISH to ``connection`` since the last question."""
    assert isinstance(connection.outbox, ListOutbox)
    return [(packet.payload, packet.dup) for packet in connection.outbox.packets() if isinstance(packet, Publish)]


def _receiver(broker: Broker) -> Connection:
    """Client "c" with a session, subscribed to "t"."""
    connection = broker.engine.connect(ListOutbox(), "c", broker.now)
    connect = Connect("c", 5, False, 0, properties={"session_expiry_interval": 100})
    broker.engine.handle(connection, [connect], broker.now)
    broker.engine.handle(connection, [Subscribe(1, [SubscribeFilter("t", 1)])], broker.now)
    broker.settle()
    connection.outbox.full = False  # it was while CONNACK waited
    broker.engine.writable(connection, broker.now)
    broker.settle()
    return connection


def _publish(broker: Broker, *payloads: bytes) -> None:
    for payload in payloads:
        broker.engine.publish([Message("t", payload, 1)], broker.now)
    broker.settle()


def test_after_a_crash_whatever_a_connected_client_is_owed_may_have_been_sent() -> None:
    """Its acknowledgements may have been lost in the crash, and then more was sent than is in flight at a time."""
    broker = Broker(max_inflight=1)
    connection = _receiver(broker)
    _publish(broker, b"1", b"2")
    broker.engine.handle(connection, [Puback(2)], broker.now)  # the store does not hear of it
    assert _sent(connection) == [(b"1", False), (b"2", False)]
    broker.engine.changes.clear()
    broker.restart_after(1)
    connection = _receiver(broker)
    broker.engine.handle(connection, [Puback(2)], broker.now)
    assert _sent(connection) == [(b"1", True), (b"2", True)]


def test_what_may_have_been_sent_before_a_crash_is_not_dropped_as_too_old_or_one_too_many() -> None:
    broker = Broker(max_inflight=1, max_queued_messages=3)
    _receiver(broker)
    broker.engine.publish([Message("t", b"old", 1, expires_at=broker.now + 5)], broker.now)
    _publish(broker, b"1", b"2")
    broker.restart_after(6)
    _publish(broker, b"3", b"4", b"5")
    connection = _receiver(broker)
    for packet_id in range(2, 7):
        broker.engine.handle(connection, [Puback(packet_id)], broker.now)
        broker.settle()
    assert _sent(connection) == [
        (b"old", True),
        (b"1", True),
        (b"2", True),
        (b"3", False),
        (b"4", False),
        (b"5", False),
    ]
    assert not broker.engine.stats.dropped


def test_what_came_while_a_client_was_away_is_sent_for_the_first_time_after_a_restart() -> None:
    """All that it had got before may come again, acknowledged or not, and says so."""
    broker = Broker()
    connection = _receiver(broker)
    _publish(broker, b"1", b"2", b"3")
    before = dict(broker.store.sessions["c"].owed)
    broker.engine.handle(connection, [Puback(3), Puback(4)], broker.now)
    assert _sent(connection) == [(b"1", False), (b"2", False), (b"3", False)]
    broker.engine.disconnected(connection, broker.now)
    _publish(broker, b"4")
    broker.store.sessions["c"].owed |= before  # acknowledgements are what a crash may take away
    broker.restart_after(1)
    assert _sent(_receiver(broker)) == [(b"1", True), (b"2", True), (b"3", True), (b"4", False)]


def test_an_expired_message_is_not_delivered_after_a_restart() -> None:
    broker = Broker()
    broker.subscriber("c", "t")
    kept = Message("t", b"kept", 1)
    broker.engine.publish([Message("t", b"late", 1, expires_at=broker.now + 5)], broker.now)
    broker.engine.publish([kept], broker.now)
    broker.restart_after(6)
    connection = broker.client("c")
    broker.settle()
    assert isinstance(connection.outbox, Sink)
    assert b"kept" in connection.outbox.sent
    assert b"late" not in connection.outbox.sent
    assert broker.engine.stats.dropped == {DropReason.EXPIRED: 1}


def test_an_expired_retained_message_leaves_the_store() -> None:
    broker = Broker()
    broker.engine.publish([Message("t", b"x", 1, True, expires_at=broker.now + 5)], broker.now)
    broker.settle()
    assert list(broker.store.retained) == ["t"]
    broker.advance(60)
    assert broker.store.retained == {}


def test_a_topic_of_level_memory_leaves_no_trace() -> None:
    broker = Broker(durability_by_filter={"volatile/#": "memory"})
    broker.subscriber("c", "#")
    broker.engine.publish([Message("volatile/1", b"x", 1, True)], broker.now)
    broker.engine.publish([Message("kept/1", b"x", 1, True)], broker.now)
    assert broker.waiting("c") == 2
    broker.restart_after(1)
    assert broker.waiting("c") == 1
    assert [message.topic for message in broker.engine.retained] == ["kept/1"]


def test_the_queue_bound_holds_for_what_only_the_store_has() -> None:
    broker = Broker(max_memory_messages=4, max_queued_messages=10)
    broker.subscriber("c", "t")
    for number in range(25):
        broker.engine.publish([Message("t", b"%d" % number, 1)], broker.now)
        broker.settle()
    assert broker.waiting("c") == 10
    assert len(broker.store.sessions["c"].owed) == 10
    broker.restart_after(1)
    for number in range(25, 40):
        broker.engine.publish([Message("t", b"%d" % number, 1)], broker.now)
        broker.settle()
    assert broker.waiting("c") == 10
    assert sorted(int(m.payload) for m, _ in broker.store.sessions["c"].owed.values()) == list(range(30, 40))


def test_a_qos_2_delivery_to_a_durable_session_leaves_only_once_its_packet_id_is_kept() -> None:
    broker = Broker()
    outbox = ListOutbox()
    connection = broker.engine.connect(outbox, "c", broker.now)
    connect = Connect("c", 5, False, 0, properties={"session_expiry_interval": 100})
    broker.engine.handle(connection, [connect, Subscribe(1, [SubscribeFilter("t", 2)])], broker.now)
    broker.settle()
    outbox.full = False  # it was while CONNACK waited
    outbox.packets()
    broker.engine.publish([Message("t", b"once", 2)], broker.now)  # its publisher has no session to remember it by
    assert outbox.packets() == []
    broker.settle()
    assert [type(packet) for packet in outbox.packets()] == [Publish]
