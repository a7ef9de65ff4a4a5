"""Chapters 4.8 (3.1.1), 4.13 (5.0) and 7: errors, and working with clients that know nothing of us."""

from collections.abc import Callable

import pytest

from tidings.broker.codec.packets import Connack, Puback, Pubcomp, Publish, Pubrec, Pubrel

from .wire import VERSIONS, Wire

clause = pytest.mark.clause


@clause("3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1", "5.0 MQTT-4.13.2-1")
@VERSIONS
def test_error_of_one_client_leaves_the_others_alone(wire: Wire, version: int) -> None:
    others = [wire.connect(f"other {number}", version) for number in range(3)]
    for other in others:
        other.subscribe("t")
    client = wire.connect("a", version)
    client.send("ff ff ff ff ff ff")
    client.assert_dropped(0x81)
    others[0].publish("t", b"x")
    assert [other.payloads() for other in others] == [[b"x"]] * 3


@clause("3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1")
@VERSIONS
def test_packets_before_the_error_are_served(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("t")
    client = wire.connect("a", version)
    client.send("30 L s:t 31" if version < 5 else "30 L s:t 00 31", "36 00", "30 L s:t 00 32")
    client.assert_dropped(0x81)
    assert watcher.payloads() == [b"1"]


@clause("3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1", "5.0 MQTT-3.2.2-15")
@VERSIONS
def test_packet_above_the_servers_maximum_size_closes_the_connection(
    wire_with: Callable[..., Wire], version: int
) -> None:
    wire = wire_with(max_packet_size_bytes=1000)
    client = wire.connect("a", version)
    if version == 5:
        assert client.connack.properties["maximum_packet_size"] == 1000
    client.publish("t", bytes(900))
    assert not client.closed
    client.publish("t", bytes(1000))
    client.assert_dropped(0x95)


@clause("3.1.1 MQTT-4.8.0-2")
@pytest.mark.parametrize("qos", [1, 2])
def test_message_that_the_server_has_no_room_for_closes_the_connection(
    wire_with: Callable[..., Wire], qos: int
) -> None:
    wire = wire_with(max_retained_messages=1)
    client = wire.connect("a", 4)
    client.publish("one", b"x", qos=1, retain=True)
    client.expect(Puback)
    client.publish("two", b"x", qos=qos, retain=True)
    client.assert_dropped()


@clause("3.1.1 MQTT-4.8.0-2", "3.1.1 MQTT-3.2.2-4", "3.1.1 MQTT-3.2.2-5", "5.0 MQTT-3.2.2-7", "5.0 MQTT-3.1.4-2")
@VERSIONS
def test_connection_that_the_server_has_no_room_for_is_refused(wire_with: Callable[..., Wire], version: int) -> None:
    wire = wire_with(max_sessions=1)
    wire.connect("a", version)
    client = wire.open(version)
    client.send(wire.connect_packet("b", version))
    assert client.closed
    connack = client.expect(Connack)
    assert (connack.session_present, connack.reason) == (False, 3 if version < 5 else 0x97)


@clause("3.1.1 MQTT-7.0.0-2")
@pytest.mark.parametrize("version", [3, 4, 5], ids=["3.1", "3.1.1", "5.0"])
def test_client_that_uses_no_extension_gets_everything_the_standard_promises(wire: Wire, version: int) -> None:
    one, two = wire.connect("one", version), wire.connect("two", version)
    assert one.subscribe("t/+", qos=2) == 2
    for qos in (0, 1, 2):
        packet_id = two.publish("t/x", b"%d" % qos, qos=qos)
        assert two.receive() == [[], [Puback(packet_id)], [Pubrec(packet_id)]][qos]
        if qos == 2:
            two.send(Pubrel(packet_id))
            assert two.receive() == [Pubcomp(packet_id)]
        message = one.expect(Publish)
        assert (message.topic, message.payload, message.qos) == ("t/x", b"%d" % qos, qos)
        one.finish(message)
        assert one.receive() == []
