"""Deliveries in production form: the decoder hands out messages and runs; receivers differ in version and pace."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.broker.codec import Decoder, encode
from tidings.broker.codec.packets import Connack, Disconnect, Puback, Pubcomp, Publish, Pubrec, Pubrel
from tidings.broker.core.message import Message
from tidings.broker.core.ports import TurnedAway
from tidings.broker.core.window import DropReason

from ..conformance.wire import Peer, Wire

VERSIONS = (3, 4, 5)


class FastPeer(Peer):
    """A peer whose bytes the broker reads as the transport does."""

    def __init__(self, wire: Wire, version: int) -> None:
        super().__init__(wire, version)
        self._server = Decoder(
            max_packet_size=wire.config.max_packet_size_bytes,
            max_connect_size=wire.config.max_connect_size_bytes,
            topics=wire.topics,
            publish=Message,
            runs=True,
        )


class FastWire(Wire):
    def open(self, version: int = 5) -> FastPeer:
        return FastPeer(self, version)


@pytest.fixture(params=[False, True], ids=["memory", "store"])
def wire(request: pytest.FixtureRequest) -> FastWire:
    return FastWire(keeps=request.param)


def stream(version: int, *messages: tuple[str, bytes, int]) -> bytes:
    """PUBLISH packets one after the other, with packet ids from 1."""
    data = b""
    for number, (topic, payload, qos) in enumerate(messages, 1):
        data += encode(Publish(topic, payload, qos, packet_id=number if qos else 0), version)
    return data


def burst(count: int, topic: str = "t", qos: int = 0) -> list[tuple[str, bytes, int]]:
    return [(topic, b"%06d" % number, qos) for number in range(count)]


def payloads(count: int) -> list[bytes]:
    return [b"%06d" % number for number in range(count)]


# QoS 0 in bulk


@pytest.mark.parametrize("version", VERSIONS)
def test_bulk_reaches_receivers_of_every_version_and_grant(wire: FastWire, version: int) -> None:
    receivers = {}
    for out in VERSIONS:
        for qos in (0, 1, 2):
            receivers[out, qos] = wire.connect(f"r{out}{qos}", out)
            receivers[out, qos].subscribe("+", qos)
    tagged = wire.connect("tagged")
    tagged.subscribe("t", identifier=7)
    publisher = wire.connect("p", version)
    publisher.send(stream(version, *burst(50)))
    for peer in receivers.values():
        messages = peer.messages()
        assert [message.payload for message in messages] == payloads(50)
        assert {(message.topic, message.qos, message.retain) for message in messages} == {("t", 0, False)}
    assert [message.properties for message in tagged.messages()] == [{"subscription_identifier": [7]}] * 50
    stats = wire.engine.snapshot(wire.now).stats
    assert stats.messages_received == 50
    assert stats.messages_sent == 50 * 10
    assert stats.payload_bytes_received == 300
    assert stats.payload_bytes_sent == 3_000
    assert stats.packets_received == 50 + 11 + 10


@pytest.mark.parametrize("version", VERSIONS)
def test_bulk_waits_for_a_slow_receiver_and_reaches_the_others_at_once(wire: FastWire, version: int) -> None:
    slow, fast = wire.connect("slow", 5), wire.connect("fast", 4)
    for peer in (slow, fast):
        peer.subscribe("t", 1)
    slow.stop_reading()
    publisher = wire.connect("p", version)
    publisher.send(stream(version, *burst(20)))
    assert fast.payloads() == payloads(20)
    assert slow.messages() == []
    assert wire.engine.snapshot(wire.now).queued_messages == 20
    slow.read_again()
    assert slow.payloads() == payloads(20)
    assert wire.engine.snapshot(wire.now).queued_bytes == 0


def test_bulk_to_a_client_that_is_away_is_counted_as_dropped(wire: FastWire) -> None:
    away = wire.connect("away", session_expiry_interval=100)
    away.subscribe("t", 2)
    away.drop()
    publisher = wire.connect("p")
    publisher.send(stream(5, *burst(20)))
    assert wire.engine.stats.dropped == {DropReason.OFFLINE: 20}
    back = wire.connect("away", clean_start=False, session_expiry_interval=100)
    assert back.connack.session_present
    assert back.messages() == []


def test_bulk_to_a_client_that_is_away_is_queued_if_the_broker_is_told_to() -> None:
    wire = FastWire(queue_qos0_offline=True, max_queued_messages=15)
    away = wire.connect("away", 4, clean_start=False)
    away.subscribe("t", 0)
    away.drop()
    wire.connect("p").send(stream(5, *burst(20)))
    back = wire.connect("away", 4, clean_start=False)
    assert back.payloads() == payloads(20)[5:]
    assert wire.engine.stats.dropped == {DropReason.QUEUE_FULL: 5}


def test_bulk_does_not_come_back_to_a_no_local_subscriber(wire: FastWire) -> None:
    loner, echo = wire.connect("loner"), wire.connect("echo")
    loner.subscribe("t", no_local=True)
    echo.subscribe("t")
    loner.send(stream(5, *burst(10)))
    assert loner.messages() == []
    assert echo.payloads() == payloads(10)
    echo.send(stream(5, *burst(10)))
    assert (loner.payloads(), echo.payloads()) == (payloads(10), payloads(10))


def test_bulk_is_spread_over_a_shared_subscription(wire: FastWire) -> None:
    members = [wire.connect(f"m{number}") for number in range(4)]
    for member in members:
        member.subscribe("$share/g/t", 1)
    wire.connect("p").send(stream(5, *burst(40)))
    got = [member.payloads() for member in members]
    assert [len(each) for each in got] == [10] * 4
    assert sorted(payload for each in got for payload in each) == payloads(40)


def test_bulk_to_the_brokers_own_topics_goes_nowhere() -> None:
    wire = FastWire()
    watcher = wire.connect("watcher")
    watcher.subscribe("$SYS/#")
    publisher = wire.connect("p")
    publisher.send(stream(5, *burst(10, "$SYS/broker/uptime")))
    assert watcher.messages() == []
    assert not publisher.closed


def test_bulk_with_a_small_packet_size_and_aliases(wire: FastWire) -> None:
    small = wire.connect("small", maximum_packet_size=60, topic_alias_maximum=3)
    small.subscribe("+")
    topic = "a topic of some length"
    wire.connect("p", 4).send(stream(4, *burst(5, topic)))
    messages = small.messages()
    assert [message.payload for message in messages] == payloads(5)
    assert [message.topic for message in messages] == [topic, "", "", "", ""]


# topic aliases out


@pytest.mark.parametrize("qos", [0, 1])
def test_alias_of_a_message_that_was_too_large_is_not_used(wire: FastWire, qos: int) -> None:
    small = wire.connect("small", maximum_packet_size=60, topic_alias_maximum=3)
    small.subscribe("#", 1)
    topic = "a topic of some length"
    publisher = wire.connect("p")
    publisher.send(stream(5, (topic, b"x" * 100, qos), (topic, b"fits", qos), (topic, b"too", qos)))
    first, second = small.messages()
    assert (first.topic, first.payload, first.properties) == (topic, b"fits", {"topic_alias": 1})
    assert (second.topic, second.payload, second.properties) == ("", b"too", {"topic_alias": 1})
    assert wire.engine.stats.dropped == {DropReason.TOO_LARGE: 1}


@given(st.lists(st.tuples(st.sampled_from(["t", "topic/two", "a/third/topic"]), st.integers(0, 50), st.integers(0, 2))))
@settings(deadline=None, max_examples=60)
def test_client_that_takes_aliases_and_small_packets_can_always_tell_the_topic(
    messages: list[tuple[str, int, int]],
) -> None:
    wire = FastWire(keeps=False)
    small = wire.connect("small", maximum_packet_size=40, topic_alias_maximum=2)
    small.subscribe("#", 2)
    publisher = wire.connect("p")
    known: dict[int, str] = {}
    got: list[tuple[str, bytes]] = []
    sent: list[tuple[str, bytes]] = []
    due: list[tuple[str, bytes]] = []  # some others fit too once their topic has an alias
    for number, (topic, length, qos) in enumerate(messages):
        payload = b"%03d" % number + b"x" * length
        publisher.publish(topic, payload, qos)
        bare = encode(Publish(topic, payload, qos, packet_id=1 if qos else 0), 5)
        sent.append((topic, payload))
        if len(bare) <= 40:
            due.append((topic, payload))
        for message in small.messages():
            alias = message.properties.get("topic_alias")
            if message.topic and alias:
                known[alias] = message.topic
            assert alias is None or alias in known, "an alias that the client was never told"
            got.append((message.topic or known[alias or 0], message.payload))
            small.finish(message)
    assert [each for each in got if each in due] == due
    assert got == [each for each in sent if each in got]


# order


SIZES = st.integers(1, 12)


@given(
    st.lists(st.tuples(st.sampled_from("tu"), st.integers(0, 2), SIZES), max_size=12),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 3), max_size=12),
)
@settings(deadline=None, max_examples=100)
def test_order_is_kept_however_qos_and_topics_alternate(
    bursts: list[tuple[str, int, int]], receive_maximum: int, keeps: bool, slow_store: bool, pauses: list[int]
) -> None:
    """Per topic and QoS in the order sent, with a narrow window, a store that lags and a client that stops reading."""
    wire = FastWire(keeps=keeps)
    client = wire.connect("c", session_expiry_interval=100, receive_maximum=receive_maximum)
    client.subscribe("#", 2)
    publisher = wire.connect("p", session_expiry_interval=100)
    wire.store_is_slow = slow_store
    got: list[Publish] = []
    sent: list[tuple[str, int, bytes]] = []
    number = packet_id = 0

    def take() -> None:
        for packet in client.receive():
            if isinstance(packet, Publish):
                got.append(packet)
                if packet.qos == 1:
                    client.send(Puback(packet.packet_id))
                elif packet.qos == 2:
                    client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                client.send(Pubcomp(packet.packet_id))

    for step, (topic, qos, count) in enumerate(bursts):
        data = b""
        for _ in range(count):
            number += 1
            packet_id += qos > 0
            payload = b"%05d" % number
            data += encode(Publish(topic, payload, qos, packet_id=packet_id if qos else 0), 5)
            sent.append((topic, qos, payload))
        publisher.send(data)
        what = pauses[step] if step < len(pauses) else 0
        if what == 1:
            client.stop_reading()
        elif what == 2:
            client.read_again()
            take()
        elif what == 3:
            wire.store_is_slow = False
            wire.settle()
            wire.store_is_slow = slow_store
    wire.store_is_slow = False
    wire.settle()
    client.read_again()
    for _ in range(len(sent) * 4 + 4):
        take()
    for topic in "tu":
        for qos in (0, 1, 2):
            assert [packet.payload for packet in got if (packet.topic, packet.qos) == (topic, qos)] == [
                payload for each, level, payload in sent if (each, level) == (topic, qos)
            ]
    assert not any(packet.dup for packet in got)
    shot = wire.engine.snapshot(wire.now)
    assert (shot.queued_messages, shot.queued_bytes, shot.inflight_messages) == (0, 0, 0)
    assert wire.engine.stats.dropped == {}


def test_reconnection_repeats_what_was_in_flight_before_what_waited(wire: FastWire) -> None:
    client = wire.connect("c", session_expiry_interval=100, receive_maximum=3)
    client.subscribe("t", 2)
    publisher = wire.connect("p")
    publisher.send(stream(5, *[("t", b"%d" % number, 1 + number % 2) for number in range(6)]))
    first = client.messages()
    assert [message.payload for message in first] == [b"0", b"1", b"2"]
    client.drop()
    back = wire.connect("c", clean_start=False, session_expiry_interval=100, receive_maximum=4)
    again = back.messages()
    assert [(message.payload, message.dup, message.packet_id) for message in again[:3]] == [
        (message.payload, True, message.packet_id) for message in first
    ]
    assert [(message.payload, message.dup) for message in again[3:]] == [(b"3", False)]


# deadlines


@pytest.mark.parametrize("version", [None, 3, 4, 5])
def test_connection_without_a_connect_is_closed_in_time(wire_with: Callable[..., Wire], version: int | None) -> None:
    wire = wire_with(connect_timeout_s=7)
    peer = wire.open()
    late = wire.open(version or 5)
    if version is not None:
        connect = encode(wire.connect_packet("late", version), version)
        late.send(connect[:5])
        wire.advance(6)
        late.send(connect[5:])
        [connack] = late.receive()
        assert isinstance(connack, Connack)
    wire.advance(6.9 if version is None else 0.9)
    assert not peer.closed
    wire.advance(0.2)
    assert peer.closed
    assert late.closed is (version is None)
    assert peer.receive() == []
    assert len(wire.engine.connections) == (version is not None)
    assert wire.engine.stats.turned_away == {TurnedAway.CONNECT: 1 + (version is None)}


@pytest.fixture
def wire_with() -> Callable[..., Wire]:
    return FastWire


def test_bytes_that_make_no_packet_do_not_keep_a_client_alive(wire: FastWire) -> None:
    client = wire.connect("c", keep_alive=10)
    publish = encode(Publish("t", b"x" * 100), 5)
    for number in range(14):
        client.send(publish[number : number + 1])
        wire.advance(1)
    assert not client.closed
    wire.advance(1.5)
    assert client.closed
    [goodbye] = client.receive()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x8D


def test_any_packet_keeps_a_client_alive_for_one_and_a_half_keep_alives(wire: FastWire) -> None:
    client = wire.connect("c", keep_alive=10)
    for number in range(20):
        wire.advance(14.9)
        assert not client.closed
        client.send(stream(5, *burst(1 + number % 3)))
    wire.advance(15.1)
    assert client.closed


def test_next_deadline_is_never_later_than_what_is_due(wire_with: Callable[..., Any]) -> None:
    wire: Wire = wire_with(sys_interval_s=0)
    clients = [wire.connect(f"c{number}", keep_alive=number + 1) for number in range(10)]
    for number, client in enumerate(clients):
        due = wire.now + 1.5
        at = wire.engine.next_deadline()
        assert at is not None
        assert at <= due + 1.5 * number
        wire.advance(1.5 * (number + 1) - (wire.now - 1_700_000_000.0))
        assert client.closed
        assert all(not other.closed for other in clients[number + 1 :])
