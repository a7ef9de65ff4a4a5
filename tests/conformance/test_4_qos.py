"""Chapter 4.3: the delivery protocols of QoS 1 and QoS 2, with the server as sender and as receiver."""

from typing import Any

import pytest

from tidings.broker.codec.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel

from .wire import VERSIONS, Peer, Wire

clause = pytest.mark.clause


def reconnected(wire: Wire, client_id: str, version: int, **options: Any) -> Peer:
    return wire.connect(client_id, version, clean_start=False, session_expiry_interval=10_000, **options)


@clause("3.1.1 MQTT-4.3.1-1", "5.0 MQTT-4.3.1-1")
@VERSIONS
def test_qos_0_is_sent_once_and_not_repeated(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t")
    wire.connect("b").publish("t", b"x")
    message = client.expect(Publish)
    assert (message.qos, message.dup) == (0, False)
    client.drop()
    assert reconnected(wire, "a", version).receive() == []


# the server as sender


@clause(
    "3.1.1 MQTT-4.3.2-1", "3.1.1 MQTT-4.3.3-1",
    "5.0 MQTT-4.3.2-1", "5.0 MQTT-4.3.2-2", "5.0 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-2",
)  # fmt: skip
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_each_message_is_sent_with_its_qos_dup_0_and_an_id_of_its_own(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    for _ in range(10):
        publisher.publish("t", b"x", qos=qos)
    messages = client.messages()
    assert [(message.qos, message.dup) for message in messages] == [(qos, False)] * 10
    assert len({message.packet_id for message in messages} - {0}) == 10


@clause("3.1.1 MQTT-4.3.2-1", "5.0 MQTT-4.3.2-3", "3.1.1 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-3")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_message_is_owed_until_it_is_acknowledged(wire: Wire, version: int, qos: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=qos)
    packet_id = client.expect(Publish).packet_id
    for _ in range(3):
        client.drop()
        client = reconnected(wire, "a", version)
        message = client.expect(Publish)
        assert (message.payload, message.qos, message.packet_id) == (b"x", qos, packet_id)
    client.finish(message)
    client.drop()
    assert reconnected(wire, "a", version).receive() == []


@clause("3.1.1 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-4")
@pytest.mark.parametrize(
    ("version", "reason"), [(4, ""), (5, ""), (5, "00"), (5, "10")], ids=["3.1.1", "5.0", "5.0 00", "5.0 10"]
)
def test_pubrec_is_answered_with_pubrel(wire: Wire, version: int, reason: str) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=2)
    packet_id = client.expect(Publish).packet_id
    client.send(f"50 L {packet_id:04x} {reason}")
    assert client.receive() == [Pubrel(packet_id)]


@clause("3.1.1 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-4")
@VERSIONS
def test_repeated_pubrec_is_answered_again(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=2)
    packet_id = client.expect(Publish).packet_id
    client.send(Pubrec(packet_id), Pubrec(packet_id))
    assert client.receive() == [Pubrel(packet_id)] * 2


@clause("3.1.1 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-5", "5.0 MQTT-4.3.3-6", "3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1")
@VERSIONS
def test_pubrel_is_owed_until_pubcomp_and_the_publish_is_not_sent_again(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=2)
    packet_id = client.expect(Publish).packet_id
    client.send(Pubrec(packet_id))
    assert client.receive() == [Pubrel(packet_id)]
    for _ in range(2):
        client.drop()
        client = reconnected(wire, "a", version)
        assert client.receive() == [Pubrel(packet_id)]
    client.send(Pubcomp(packet_id))
    client.drop()
    assert reconnected(wire, "a", version).receive() == []


@clause("5.0 MQTT-4.3.3-7")
def test_message_that_was_sent_does_not_expire(wire: Wire) -> None:
    client = reconnected(wire, "a", 5)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=2, message_expiry_interval=5)
    packet_id = client.expect(Publish).packet_id
    client.drop()
    wire.advance(60)
    client = reconnected(wire, "a", 5)
    message = client.expect(Publish)
    assert (message.payload, message.packet_id) == (b"x", packet_id)
    client.send(Pubrec(packet_id))
    assert client.receive() == [Pubrel(packet_id)]


@clause("5.0 MQTT-4.4.0-2")
@pytest.mark.parametrize(("qos", "first"), [(1, "40"), (2, "50")], ids=["PUBACK", "PUBREC"])
@pytest.mark.parametrize("reason", ["80", "83", "87", "97"])
def test_refused_message_is_not_sent_again(wire: Wire, qos: int, first: str, reason: str) -> None:
    client = reconnected(wire, "a", 5)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=qos)
    client.send(f"{first} 03 {client.expect(Publish).packet_id:04x} {reason}")
    assert client.receive() == []
    client.drop()
    assert reconnected(wire, "a", 5).receive() == []


# the server as receiver


@clause("3.1.1 MQTT-4.3.2-2", "5.0 MQTT-4.3.2-5", "5.0 MQTT-4.3.2-4")
@pytest.mark.parametrize("dup", [False, True])
@VERSIONS
def test_after_puback_the_same_packet_id_is_a_new_message(wire: Wire, version: int, dup: bool) -> None:
    watcher = wire.connect("watcher")
    watcher.subscribe("t")
    client = wire.connect("a", version)
    for payload in (b"1", b"1", b"2"):
        client.publish("t", payload, qos=1, packet_id=5, dup=dup)
        assert client.receive() == [Puback(5)]
    assert watcher.payloads() == [b"1", b"1", b"2"]


@clause("3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-8", "5.0 MQTT-4.3.3-10")
@pytest.mark.parametrize("dup", [False, True])
@VERSIONS
def test_repetition_before_pubrel_is_acknowledged_and_not_passed_on(wire: Wire, version: int, dup: bool) -> None:
    watcher = wire.connect("watcher")
    watcher.subscribe("t", qos=2)
    client = wire.connect("a", version)
    client.publish("t", b"1", qos=2, packet_id=5)
    for _ in range(3):
        client.publish("t", b"1", qos=2, packet_id=5, dup=dup)
    assert client.receive() == [Pubrec(5)] * 4
    assert watcher.payloads() == [b"1"]


@clause("3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-10")
@VERSIONS
def test_repetition_in_the_same_read_is_not_passed_on(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher")
    watcher.subscribe("t", qos=2)
    client = wire.connect("a", version)
    one, two = (Publish("t", payload, 2, packet_id=packet_id) for payload, packet_id in ((b"1", 5), (b"2", 6)))
    client.send(one, one, two, one, two)
    answers = client.receive()
    assert sorted(packet.packet_id for packet in answers if isinstance(packet, Pubrec)) == [5, 5, 5, 6, 6]
    assert watcher.payloads() == [b"1", b"2"]


@clause("3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-10", "3.1.1 MQTT-3.1.2-4", "5.0 MQTT-3.1.2-5")
@VERSIONS
def test_repetition_after_a_reconnection_is_not_passed_on(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher", keep_alive=0)
    watcher.subscribe("t", qos=2)
    client = reconnected(wire, "a", version)
    client.publish("t", b"1", qos=2, packet_id=5)
    client.drop()
    wire.advance(100)
    client = reconnected(wire, "a", version)
    client.publish("t", b"1", qos=2, packet_id=5, dup=True)
    assert client.receive() == [Pubrec(5)]
    client.send(Pubrel(5))
    assert client.receive() == [Pubcomp(5)]
    assert watcher.payloads() == [b"1"]


@clause("3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-11", "5.0 MQTT-4.3.3-12")
@pytest.mark.parametrize("dup", [False, True])
@VERSIONS
def test_after_pubcomp_the_same_packet_id_is_a_new_message(wire: Wire, version: int, dup: bool) -> None:
    watcher = wire.connect("watcher")
    watcher.subscribe("t", qos=2)
    client = wire.connect("a", version)
    for payload in (b"1", b"1", b"2"):
        client.publish("t", payload, qos=2, packet_id=5, dup=dup)
        client.send(Pubrel(5))
        assert client.receive() == [Pubrec(5), Pubcomp(5)]
    assert watcher.payloads() == [b"1", b"1", b"2"]


@clause("3.1.1 MQTT-4.3.3-2", "5.0 MQTT-4.3.3-11")
@VERSIONS
def test_pubrel_that_arrives_after_a_reconnection_is_completed(wire: Wire, version: int) -> None:
    client = reconnected(wire, "a", version)
    client.publish("t", b"1", qos=2, packet_id=5)
    assert client.receive()
    client.drop()
    client = reconnected(wire, "a", version)
    client.send(Pubrel(5))
    assert client.receive() == [Pubcomp(5)]


@clause("5.0 MQTT-4.3.3-9")
def test_after_a_refusing_pubrec_the_same_packet_id_is_a_new_message(wire: Wire) -> None:
    watcher = wire.connect("watcher")
    watcher.subscribe("t", qos=2)
    client = wire.connect("a")
    client.publish("$SYS/refused", b"1", qos=2, packet_id=5)
    assert client.receive() == [Pubrec(5, 0x87)]
    client.publish("t", b"2", qos=2, packet_id=5)
    assert client.receive() == [Pubrec(5)]
    assert watcher.payloads() == [b"2"]


@clause("5.0 MQTT-4.3.3-13")
def test_exchange_goes_on_after_the_message_expired(wire: Wire) -> None:
    client = wire.connect("a", keep_alive=0)
    client.publish("t", b"x", qos=2, packet_id=5, message_expiry_interval=1)
    client.receive()
    wire.advance(10)
    client.publish("t", b"x", qos=2, packet_id=5, message_expiry_interval=1, dup=True)
    client.send(Pubrel(5))
    assert client.receive() == [Pubrec(5), Pubcomp(5)]


@clause("3.1.1 MQTT-2.3.1-3", "5.0 MQTT-2.2.1-3")
@VERSIONS
def test_packet_ids_of_the_two_directions_are_independent(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"in", qos=2)
    message = client.expect(Publish)
    client.publish("t", b"own", qos=2, packet_id=message.packet_id)
    own, answer = sorted(client.receive(), key=lambda packet: isinstance(packet, Pubrec))
    assert answer == Pubrec(message.packet_id)
    assert isinstance(own, Publish)
    assert own.packet_id != message.packet_id
    client.send(Pubrel(message.packet_id))
    assert client.receive() == [Pubcomp(message.packet_id)]
    client.send(Pubrec(message.packet_id))
    assert client.receive() == [Pubrel(message.packet_id)]
