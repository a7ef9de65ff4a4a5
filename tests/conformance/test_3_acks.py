"""Chapters 3.4 to 3.7: PUBACK, PUBREC, PUBREL, PUBCOMP as packets."""

import pytest

from tidings.broker.codec.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel

from .wire import SMALL_SIZES, VERSIONS, Wire

clause = pytest.mark.clause

ACK_REASONS = {0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}


@clause("3.1.1 MQTT-3.6.1-1", "5.0 MQTT-3.6.1-1")
@pytest.mark.parametrize("first", ["60", "61", "63", "64", "66", "6a", "6f"])
@VERSIONS
def test_pubrel_with_other_flags_than_0010_closes_the_connection(wire: Wire, version: int, first: str) -> None:
    client = wire.connect("a", version)
    client.publish("t", b"x", qos=2, packet_id=1)
    client.receive()
    client.send(f"{first} 02 0001")
    client.assert_dropped(0x81)


@clause("5.0 MQTT-3.4.2-1", "5.0 MQTT-3.5.2-1", "5.0 MQTT-3.6.2-1", "5.0 MQTT-3.7.2-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize(
    ("first", "reason"),
    [
        pytest.param(first, reason, id=f"{name} {reason}")
        for first, name, reasons in (
            ("40", "PUBACK", ("01", "11", "7f", "81", "92", "ff")),
            ("50", "PUBREC", ("01", "11", "7f", "81", "92", "ff")),
            ("62", "PUBREL", ("01", "10", "80", "91", "ff")),
            ("70", "PUBCOMP", ("01", "10", "80", "91", "ff")),
        )
        for reason in reasons
    ],
)
def test_reason_code_that_is_not_listed_closes_the_connection(wire: Wire, first: str, reason: str) -> None:
    client = wire.connect("a")
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=1 if first == "40" else 2)
    packet_id = client.expect(Publish).packet_id
    client.send(f"{first} 03 {packet_id:04x} {reason}")
    client.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-3.4.2-1", "5.0 MQTT-3.5.2-1")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("topic", ["heard", "unheard", "$SYS/x"])
def test_publish_is_answered_with_a_listed_reason_code(wire: Wire, topic: str, qos: int) -> None:
    wire.connect("listener").subscribe("heard")
    client = wire.connect("a")
    client.publish(topic, b"x", qos=qos, packet_id=1)
    (answer,) = client.receive()
    assert isinstance(answer, Puback | Pubrec)
    assert answer.reason in ACK_REASONS
    assert (answer.reason < 0x80) is (topic != "$SYS/x")


@clause("5.0 MQTT-3.6.2-1", "5.0 MQTT-3.7.2-1")
def test_unknown_packet_ids_are_answered_with_packet_identifier_not_found(wire: Wire) -> None:
    client = wire.connect("a")
    client.send("62 02 1234")
    assert client.receive() == [Pubcomp(0x1234, 0x92)]
    client.send("50 02 1234")
    assert client.receive() == [Pubrel(0x1234, 0x92)]


@clause("3.1.1 MQTT-4.3.3-2")
def test_pubrel_for_an_unknown_packet_id_is_completed_before_version_5(wire: Wire) -> None:
    client = wire.connect("a", 4)
    client.send("62 02 1234")
    assert client.receive() == [Pubcomp(0x1234)]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param("32 L s:nobody 0001 00 78", id="PUBACK", marks=clause("5.0 MQTT-3.4.2-2", "5.0 MQTT-3.4.2-3")),
        pytest.param("32 L s:$SYS/x 0001 00 78", id="PUBACK 87", marks=clause("5.0 MQTT-3.4.2-2", "5.0 MQTT-3.4.2-3")),
        pytest.param("34 L s:nobody 0001 00 78", id="PUBREC", marks=clause("5.0 MQTT-3.5.2-2", "5.0 MQTT-3.5.2-3")),
        pytest.param("34 L s:$SYS/x 0001 00 78", id="PUBREC 87", marks=clause("5.0 MQTT-3.5.2-2", "5.0 MQTT-3.5.2-3")),
        pytest.param("50 02 0099", id="PUBREL", marks=clause("5.0 MQTT-3.6.2-2", "5.0 MQTT-3.6.2-3")),
        pytest.param("62 02 0099", id="PUBCOMP", marks=clause("5.0 MQTT-3.7.2-2", "5.0 MQTT-3.7.2-3")),
    ],
)
@clause("5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("size", SMALL_SIZES)
def test_acknowledgement_fits_the_clients_maximum_packet_size(wire: Wire, size: int, packet: str) -> None:
    client = wire.connect("a", maximum_packet_size=size)
    client.send(packet)
    assert 0 < len(client.receive_bytes()) <= size


@clause("5.0 MQTT-2.2.1-5", "5.0 MQTT-4.13.1-1", "3.1.1 MQTT-4.8.0-1")
@pytest.mark.parametrize(
    ("version", "packet"),
    [
        pytest.param(4, "40 03 0001 00", id="3.1.1 PUBACK with a byte too many"),
        pytest.param(4, "40 01 00", id="3.1.1 PUBACK with a byte too few"),
        pytest.param(4, "50 00", id="3.1.1 empty PUBREC"),
        pytest.param(4, "62 03 0001 00", id="3.1.1 PUBREL with a byte too many"),
        pytest.param(4, "70 01 00", id="3.1.1 PUBCOMP with a byte too few"),
        pytest.param(5, "40 01 00", id="5.0 PUBACK with a byte too few"),
        pytest.param(5, "40 L 0001 00 00 00", id="5.0 PUBACK with a byte too many"),
        pytest.param(5, "50 L 0001 00 P 11 00000001 .", id="5.0 PUBREC with another packet's property"),
        pytest.param(5, "62 L 0001 00 P 1f s:a 1f s:b .", id="5.0 PUBREL with two reason strings"),
        pytest.param(5, "70 L 0001 00 05 1f", id="5.0 PUBCOMP with cut properties"),
    ],
)
def test_malformed_acknowledgement_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-3.4.2-1", "5.0 MQTT-3.5.2-1")
def test_acknowledgements_with_reason_strings_and_user_properties_are_understood(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=1)
    packet_id = client.expect(Publish).packet_id
    client.send(f"40 L {packet_id:04x} 00 P 1f s:fine 26 s:k s:v .")
    publisher.publish("t", b"2", qos=2)
    packet_id = client.expect(Publish).packet_id
    client.send(f"50 L {packet_id:04x} 10 P 1f s:fine 26 s:k s:v .")
    assert client.expect(Pubrel).packet_id == packet_id
    client.send(f"70 L {packet_id:04x} 92 P 1f s:odd .")
    assert not client.closed


@clause("3.1.1 MQTT-4.3.2-1", "5.0 MQTT-4.3.2-3", "3.1.1 MQTT-4.3.3-1", "5.0 MQTT-4.3.3-3")
@pytest.mark.parametrize(("qos", "wrong"), [(1, Pubrec), (2, Puback)])
@VERSIONS
def test_answer_of_the_wrong_kind_does_not_acknowledge(
    wire: Wire, version: int, qos: int, wrong: type[Pubrec] | type[Puback]
) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    client.subscribe("t", qos=2)
    wire.connect("b").publish("t", b"x", qos=qos)
    client.send(wrong(client.expect(Publish).packet_id))
    client.drop()
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    assert client.payloads() == [b"x"]
