"""Chapters 4.4 to 4.6: what is sent again after a reconnection, and in which order messages arrive."""

from typing import Any

import pytest

from tidings.broker.codec.packets import Connack, Pubcomp, Publish, Pubrec, Pubrel

from .wire import VERSIONS, Peer, Wire

clause = pytest.mark.clause


def reconnected(wire: Wire, client_id: str, version: int, **options: Any) -> Peer:
    return wire.connect(client_id, version, clean_start=False, session_expiry_interval=10_000, **options)


@clause("3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1", "3.1.1 MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_unacknowledged_messages_are_sent_again_in_order_with_their_ids(wire: Wire, version: int, qos: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    for number in range(5):
        publisher.publish("t", b"%d" % number, qos=qos)
    sent = client.messages()
    client.finish(sent[1])
    client.finish(sent[3])
    client.receive()
    client.drop()
    client = reconnected(wire, "a", version)
    assert [(m.packet_id, m.payload, m.qos, m.dup) for m in client.messages()] == [
        (sent[index].packet_id, sent[index].payload, qos, True) for index in (0, 2, 4)
    ]


@clause("5.0 MQTT-4.4.0-1", "3.1.1 MQTT-4.4.0-1")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_nothing_is_sent_again_while_the_connection_lasts(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version, keep_alive=0)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=qos)
    client.expect(Publish)
    wire.advance(86_400)
    assert client.receive() == []


@clause("3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1", "3.1.1 MQTT-4.6.0-6")
@VERSIONS
def test_messages_sent_before_come_ahead_of_messages_that_waited(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=1)
    publisher.publish("t", b"2", qos=1)
    client.messages()
    client.drop()
    publisher.publish("t", b"3", qos=1)
    publisher.publish("t", b"4", qos=1)
    client = reconnected(wire, "a", version)
    publisher.publish("t", b"5", qos=1)
    assert [(m.payload, m.dup) for m in client.messages()] == [
        (b"1", True), (b"2", True), (b"3", False), (b"4", False), (b"5", False)
    ]  # fmt: skip


@clause("3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1")
@VERSIONS
def test_takeover_counts_as_a_reconnection(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=1)
    wire.connect("b").publish("t", b"x", qos=1)
    first = client.expect(Publish)
    again = reconnected(wire, "a", version).expect(Publish)
    assert (again.packet_id, again.payload, again.dup) == (first.packet_id, b"x", True)


@clause("3.1.1 MQTT-4.6.0-6", "3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1")
@VERSIONS
def test_pubrels_are_sent_in_the_order_of_the_pubrecs(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    for number in range(4):
        publisher.publish("t", b"%d" % number, qos=2)
    ids = [message.packet_id for message in client.messages()]
    order = [ids[2], ids[0], ids[3], ids[1]]
    client.send(*[Pubrec(packet_id) for packet_id in order])
    assert client.receive() == [Pubrel(packet_id) for packet_id in order]
    client.drop()
    client = reconnected(wire, "a", version)
    assert client.receive() == [Pubrel(packet_id) for packet_id in order]


@clause("3.1.1 MQTT-3.2.0-1", "5.0 MQTT-3.2.0-1")
@VERSIONS
def test_connack_comes_before_anything_that_is_sent_again(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=2)
    client.send(Pubrec(client.expect(Publish).packet_id))
    publisher.publish("t", b"2", qos=2)
    client.drop()
    wire.store_is_slow = True
    client = wire.open(version)
    client.send(wire.connect_packet("a", version, clean_start=False, session_expiry_interval=10_000))
    publisher.publish("t", b"3", qos=0)
    wire.store_is_slow = False
    wire.settle()
    first, *others = client.receive()
    assert isinstance(first, Connack)
    assert sorted(type(packet).__name__ for packet in others) == ["Publish", "Publish", "Pubrel"]


@clause("3.1.1 MQTT-4.5.0-1", "5.0 MQTT-4.5.0-1")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_every_matching_client_gets_the_message(wire: Wire, version: int, qos: int) -> None:
    clients = [wire.connect(f"client {number}", version) for number in range(20)]
    for number, client in enumerate(clients):
        client.subscribe(("t/x", "t/+", "#")[number % 3], qos=2)
    wire.connect("b").publish("t/x", b"x", qos=qos)
    assert [client.payloads() for client in clients] == [[b"x"]] * 20


@clause("3.1.1 MQTT-4.6.0-5", "3.1.1 MQTT-4.6.0-6", "5.0 MQTT-4.6.0-5", "5.0 MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_messages_of_a_topic_and_qos_arrive_in_the_order_of_their_publisher(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("#", qos=2)
    one, two = wire.connect("one"), wire.connect("two")
    for number in range(50):
        one.publish("t", b"one %d" % number, qos=qos)
        two.publish("t", b"two %d" % number, qos=qos)
        one.publish("u", b"other", qos=2 - qos)
    received = [message.payload for message in client.messages() if message.topic == "t"]
    for name in (b"one", b"two"):
        assert [payload for payload in received if payload.startswith(name)] == [
            b"%s %d" % (name, n) for n in range(50)
        ]


@clause("3.1.1 MQTT-4.6.0-5", "3.1.1 MQTT-4.6.0-6", "5.0 MQTT-4.6.0-5", "5.0 MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_order_holds_for_a_client_that_stops_reading_for_a_while(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    for number in range(30):
        if number == 10:
            client.stop_reading()
        if number == 20:
            client.read_again()
        publisher.publish("t", b"%d" % number, qos=qos)
    assert client.payloads() == [b"%d" % number for number in range(30)]


@clause("3.1.1 MQTT-4.6.0-6", "5.0 MQTT-4.6.0-5")
@VERSIONS
def test_order_holds_across_a_reconnection(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version, receive_maximum=3)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b")
    seen: list[bytes] = []
    for number in range(40):
        publisher.publish("t", b"%02d" % number, qos=1)
        if number % 10 == 5:
            client.drop()
        if number % 10 == 8:
            client = reconnected(wire, "a", version, receive_maximum=3)
        for message in client.messages() if not client.closed else ():
            seen.append(message.payload)
            if number % 3:
                client.finish(message)
    client.drop()
    client = reconnected(wire, "a", version, receive_maximum=3)
    while messages := client.messages():
        for message in messages:
            seen.append(message.payload)
            client.finish(message)
    once = list(dict.fromkeys(seen))
    assert once == [b"%02d" % number for number in range(40)]


@clause("3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1", "3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-11")
@VERSIONS
def test_clients_pubrel_sent_again_is_answered_each_time(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.publish("t", b"x", qos=2, packet_id=9)
    client.receive()
    client.send(Pubrel(9))
    assert client.receive() == [Pubcomp(9)]
    client.drop()
    client = reconnected(wire, "a", version)
    client.send(Pubrel(9))
    assert client.expect(Pubcomp).packet_id == 9
