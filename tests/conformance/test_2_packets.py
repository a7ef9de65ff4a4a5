"""Chapter 2: fixed header flags, packet types, packet ids and the property length."""

import pytest

from tidings.broker.codec.packets import (
    Connack,
    Packet,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Unsuback,
)

from .wire import VERSIONS, Wire, frame

WRONG_FLAGS = [
    pytest.param("41 02 0001", id="PUBACK 0001"),
    pytest.param("48 02 0001", id="PUBACK 1000"),
    pytest.param("52 02 0001", id="PUBREC 0010"),
    pytest.param("72 02 0001", id="PUBCOMP 0010"),
    pytest.param("c1 00", id="PINGREQ 0001"),
    pytest.param("c2 00", id="PINGREQ 0010"),
    pytest.param("e1 00", id="DISCONNECT 0001"),
    pytest.param("e8 00", id="DISCONNECT 1000"),
]
NOT_FROM_CLIENTS = [
    pytest.param("00 00", id="type 0"),
    pytest.param("20 02 0000", id="CONNACK"),
    pytest.param("20 03 000000", id="CONNACK 5.0"),
    pytest.param("90 03 0001 00", id="SUBACK"),
    pytest.param("b0 02 0001", id="UNSUBACK"),
    pytest.param("d0 00", id="PINGRESP"),
]
ZERO_PACKET_ID = [
    pytest.param(4, "32 L s:t 0000 78", id="3.1.1 PUBLISH QoS 1"),
    pytest.param(4, "34 L s:t 0000 78", id="3.1.1 PUBLISH QoS 2"),
    pytest.param(4, "82 L 0000 s:t 00", id="3.1.1 SUBSCRIBE"),
    pytest.param(4, "a2 L 0000 s:t", id="3.1.1 UNSUBSCRIBE"),
    pytest.param(5, "32 L s:t 0000 00 78", id="5.0 PUBLISH QoS 1"),
    pytest.param(5, "34 L s:t 0000 00 78", id="5.0 PUBLISH QoS 2"),
    pytest.param(5, "82 L 0000 00 s:t 00", id="5.0 SUBSCRIBE"),
    pytest.param(5, "a2 L 0000 00 s:t", id="5.0 UNSUBSCRIBE"),
]


@pytest.mark.clause("3.1.1 MQTT-2.2.2-1", "3.1.1 MQTT-2.2.2-2", "5.0 MQTT-2.1.3-1")
@pytest.mark.parametrize("packet", WRONG_FLAGS)
@VERSIONS
def test_wrong_reserved_flags_close_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81)


@pytest.mark.clause("3.1.1 MQTT-2.2.2-2", "5.0 MQTT-2.1.3-1")
@pytest.mark.parametrize("first", ["11", "12", "18"])
@pytest.mark.parametrize(("version", "rest"), [(4, "L s:MQTT 04 02 003c s:a"), (5, "L s:MQTT 05 02 003c 00 s:a")])
def test_wrong_connect_flags_close_the_connection(wire: Wire, version: int, first: str, rest: str) -> None:
    client = wire.open(version)
    client.send(f"{first} {rest}")
    client.assert_refused(0x81)


@pytest.mark.clause("3.1.1 MQTT-2.2.2-1", "5.0 MQTT-2.1.3-1")
@VERSIONS
def test_packets_of_the_server_have_the_reserved_flags_as_listed(wire: Wire, version: int) -> None:
    client = wire.open(version)
    client.send(wire.connect_packet("a", version))
    first_bytes: dict[type[Packet], int] = {Connack: client.receive_bytes()[0]}
    for sent, kind in [
        (frame("82 L 0001 s:t 02") if version < 5 else frame("82 L 0001 00 s:t 02"), Suback),
        (frame("a2 L 0002 s:u") if version < 5 else frame("a2 L 0002 00 s:u"), Unsuback),
        (frame("c0 00"), Pingresp),
        (frame("32 L s:x 0003 78") if version < 5 else frame("32 L s:x 0003 00 78"), Puback),
        (frame("34 L s:x 0004 78") if version < 5 else frame("34 L s:x 0004 00 78"), Pubrec),
        (frame("62 02 0004"), Pubcomp),
    ]:
        client.send(sent)
        first_bytes[kind] = client.receive_bytes()[0]
    wire.connect("b", version).publish("t", b"x", qos=2)
    message = client.expect(Publish)
    client.send(frame(f"50 02 {message.packet_id:04x}"))
    first_bytes[Pubrel] = client.receive_bytes()[0]
    assert first_bytes == {
        Connack: 0x20, Suback: 0x90, Unsuback: 0xB0, Pingresp: 0xD0,
        Puback: 0x40, Pubrec: 0x50, Pubrel: 0x62, Pubcomp: 0x70,
    }  # fmt: skip


@pytest.mark.clause("3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize("packet", NOT_FROM_CLIENTS)
@VERSIONS
def test_packet_that_only_servers_send_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82)


@pytest.mark.clause("3.1.1 MQTT-4.8.0-1")
def test_auth_does_not_exist_before_version_5(wire: Wire) -> None:
    client = wire.connect("a", 4)
    client.send("f0 00")
    client.assert_dropped()


@pytest.mark.clause("3.1.1 MQTT-2.3.1-1", "5.0 MQTT-2.2.1-3")
@pytest.mark.parametrize(("version", "packet"), ZERO_PACKET_ID)
def test_packet_id_0_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82)


@pytest.mark.clause("3.1.1 MQTT-2.3.1-1", "3.1.1 MQTT-2.3.1-4", "5.0 MQTT-2.2.1-4")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_unfinished_messages_have_distinct_packet_ids_other_than_0(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=qos)
    publisher = wire.connect("b", version)
    for number in range(20):
        publisher.publish("t", b"%d" % number, qos=qos)
    packet_ids = {message.packet_id for message in client.messages()}
    assert len(packet_ids) == 20
    assert 0 not in packet_ids


@pytest.mark.slow
@pytest.mark.clause("3.1.1 MQTT-2.3.1-4", "5.0 MQTT-2.2.1-4")
@VERSIONS
def test_packet_id_in_use_is_not_given_out_again_when_the_numbers_wrap_around(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b", version)
    publisher.publish("t", b"kept", qos=1)
    kept = client.expect(Publish).packet_id
    sent = received = 0
    for _ in range(132):
        for _ in range(500):
            publisher.publish("t", b"x", qos=1, packet_id=1)
        publisher.receive()
        sent += 500
        for message in client.messages():
            assert message.packet_id not in (0, kept)
            received += 1
            client.send(Puback(message.packet_id))
    client.send(Puback(kept))
    while messages := client.messages():
        received += len(messages)
        client.send(*[Puback(message.packet_id) for message in messages])
    assert received == sent > 65_535


@pytest.mark.clause("3.1.1 MQTT-2.3.1-5", "5.0 MQTT-2.2.1-2")
@pytest.mark.parametrize(("version", "expected"), [(4, "30 L s:t 78"), (5, "30 L s:t 00 78")])
def test_qos_0_publish_has_no_packet_id(wire: Wire, version: int, expected: str) -> None:
    client = wire.connect("a", version)
    client.subscribe("t")
    wire.connect("b").publish("t", b"x")
    assert client.receive_bytes() == frame(expected)


@pytest.mark.clause(
    "3.1.1 MQTT-2.3.1-6", "3.1.1 MQTT-2.3.1-7", "3.1.1 MQTT-3.8.4-2", "3.1.1 MQTT-3.10.4-4",
    "5.0 MQTT-2.2.1-5", "5.0 MQTT-2.2.1-6", "5.0 MQTT-3.8.4-2", "5.0 MQTT-3.10.4-5",
)  # fmt: skip
@pytest.mark.parametrize("packet_id", [1, 0x0100, 0xFFFF])
@VERSIONS
def test_answers_carry_the_packet_id_of_what_they_answer(wire: Wire, version: int, packet_id: int) -> None:
    client = wire.connect("a", version)
    number, empty = f"{packet_id:04x}", "" if version < 5 else "00"
    client.send(f"82 L {number} {empty} s:t 00")
    assert client.expect(Suback).packet_id == packet_id
    client.send(f"a2 L {number} {empty} s:t")
    assert client.expect(Unsuback).packet_id == packet_id
    client.send(f"32 L s:x {number} {empty} 78")
    assert client.expect(Puback).packet_id == packet_id
    client.send(f"34 L s:x {number} {empty} 78")
    assert client.expect(Pubrec).packet_id == packet_id
    client.send(f"62 02 {number}")
    assert client.expect(Pubcomp).packet_id == packet_id


@pytest.mark.clause("3.1.1 MQTT-2.3.1-6", "5.0 MQTT-2.2.1-5")
@VERSIONS
def test_pubrel_of_the_server_carries_the_packet_id_of_its_publish(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=2)
    packet_id = client.expect(Publish).packet_id
    client.send(Pubrec(packet_id))
    assert client.expect(Pubrel).packet_id == packet_id


@pytest.mark.clause("5.0 MQTT-2.2.2-1")
def test_packets_without_properties_have_property_length_0(wire: Wire) -> None:
    client = wire.connect("a")
    client.send("82 L 0001 00 s:t 00")
    assert client.receive_bytes() == frame("90 04 0001 00 00")
    client.send("30 L s:t 00 78")
    assert client.receive_bytes() == frame("30 L s:t 00 78")
    client.send("a2 L 0002 00 s:t")
    assert client.receive_bytes() == frame("b0 04 0002 00 00")


@pytest.mark.clause("5.0 MQTT-2.2.2-1")
@pytest.mark.parametrize(
    "packet",
    [
        pytest.param("30 L s:t", id="PUBLISH"),
        pytest.param("32 L s:t 0001", id="PUBLISH QoS 1"),
        pytest.param("82 L 0001 s:t 00", id="SUBSCRIBE"),
        pytest.param("a2 L 0001 s:t", id="UNSUBSCRIBE"),
        pytest.param("30 L s:t 05 01 00", id="length beyond the packet"),
        pytest.param("30 L s:t 01 01 00", id="length cuts a property"),
    ],
)
def test_missing_or_wrong_property_length_is_malformed(wire: Wire, packet: str) -> None:
    client = wire.connect("a")
    client.send(packet)
    client.assert_dropped(0x81, 0x82)
