"""Every counter counts what it says, and ``$SYS`` says what was counted."""

import pytest

from tidings.broker.codec.packets import Pingreq, Publish, Pubrel, Suback, Subscribe, SubscribeFilter
from tidings.broker.codec.reasons import ReasonCode

from ..conformance.wire import Peer, Wire

INTERVAL_S = 10


@pytest.fixture
def wire() -> Wire:
    return Wire(keeps=False, sys_interval_s=INTERVAL_S)


def values(peer: Peer) -> dict[str, str]:
    """What the ``$SYS`` messages that arrived say, by the rest of their topics."""
    return {message.topic.removeprefix("$SYS/broker/"): message.payload.decode() for message in peer.messages()}


def test_members_of_a_shared_subscription_get_each_update_once(wire: Wire) -> None:
    members = [wire.connect(name, keep_alive=0) for name in "ab"]
    for member in members:
        member.subscribe("$share/g/$SYS/broker/uptime")
    wire.advance(4 * INTERVAL_S)
    uptimes = [value for member in members for value in values(member).values()]
    assert len(uptimes) == 2  # of each member's updates only the last is in the dict
    total = sum(wire.engine.sessions[name].window.sent for name in "ab")
    assert total == 5


def test_what_it_says_is_what_happened(wire: Wire) -> None:
    watcher = wire.connect("watcher", keep_alive=0)
    subscriber = wire.connect("subscriber", session_expiry_interval=1000)
    subscriber.subscribe("t", 1)
    publisher = wire.connect("publisher", keep_alive=0)
    publisher.publish("t", b"12345", 1)
    subscriber.drop()
    publisher.publish("t", b"6789", 1)
    publisher.publish("t", b"lost", 0)
    publisher.publish("kept", b"x" * 50, 0, True)
    gone = wire.connect("gone", session_expiry_interval=1)
    gone.drop()
    wire.advance(INTERVAL_S + 1)
    watcher.subscribe("$SYS/#")
    seen = values(watcher)
    assert seen["clients/connected"] == "2"
    assert seen["clients/disconnected"] == "1"
    assert seen["clients/total"] == "3"
    assert seen["clients/expired"] == "1"
    assert seen["clients/maximum"] == "4"
    assert seen["publish/messages/received"] == "4"
    assert seen["publish/bytes/received"] == str(5 + 4 + 4 + 50)
    assert seen["publish/messages/sent"] == "1"
    assert seen["publish/bytes/sent"] == "5"
    assert seen["publish/messages/dropped"] == "1"
    assert seen["$SYS/tidings/dropped/offline"] == "1"
    assert seen["messages/received"] == str(4 + 1 + 4)  # CONNECT, SUBSCRIBE, PUBLISH
    assert seen["messages/sent"] == str(4 + 1 + 2 + 1)  # CONNACK, SUBACK, PUBACK, PUBLISH
    assert float(seen["load/publish/received/1min"]) > float(seen["load/publish/received/15min"]) > 0


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_packets_and_payload_bytes_are_counted_where_they_leave(version: int, qos: int) -> None:
    wire = Wire(keeps=False)
    clients = [wire.connect(name, version) for name in ("publisher", "fast", "slow")]
    publisher, fast, slow = clients
    sent = received = 3  # CONNACK, CONNECT
    for client in (fast, slow):
        client.subscribe("t", qos)
    slow.stop_reading()
    for _ in range(3):  # in one piece: a run
        publisher.send(*(Publish("t", b"12345678", qos, packet_id=number if qos else 0) for number in (1, 2, 3)))
        publisher.send(*(Pubrel(number) for number in (1, 2, 3) if qos == 2))
    slow.read_again()
    publisher.send(Pingreq())
    stats = wire.engine.stats
    sent += 2 + sum(len(client.receive()) for client in clients)
    received += 2 + 9 * (1 + (qos == 2)) + 1
    assert stats.packets_sent == sent
    assert stats.packets_received == received
    assert stats.messages_received == 9
    assert stats.messages_sent == 18
    assert stats.payload_bytes_received == 9 * 8
    assert stats.payload_bytes_sent == 18 * 8


def test_exactly_once_messages_count_once_against_receive_maximum_while_the_store_writes() -> None:
    wire = Wire(receive_maximum=10)
    client = wire.connect("c", session_expiry_interval=100)
    wire.connect("keeper", session_expiry_interval=100).subscribe("t", 2)
    wire.store_is_slow = True
    for qos in (2, 2, 1):
        for _ in range(3):
            client.publish("t", b"", qos)
    assert not client.closed
    client.publish("t", b"", 1)
    client.publish("t", b"", 1)
    client.assert_dropped(ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)


def test_filter_that_stands_in_a_subscribe_many_times_brings_retained_messages_once() -> None:
    wire = Wire()
    publisher = wire.connect("p")
    for number in range(3):
        publisher.publish(f"t/{number}", b"x", 0, True)
    client = wire.connect("c")
    client.send(Subscribe(1, [SubscribeFilter("t/+", 0)] * 1_000 + [SubscribeFilter("t/1", 0)]))
    suback, *messages = client.receive()
    assert isinstance(suback, Suback)
    assert suback.reasons == [0] * 1_001
    assert [message.topic for message in messages if isinstance(message, Publish)] == ["t/0", "t/1", "t/2", "t/1"]
