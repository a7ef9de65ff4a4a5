"""Chapters 3.12 to 3.15: PINGREQ, DISCONNECT, AUTH."""

import pytest

from tidings.broker.codec.packets import Disconnect, Pingresp, Publish, Will

from .wire import SMALL_SIZES, VERSIONS, Wire, frame

clause = pytest.mark.clause

DISCONNECT_REASONS = {
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, *range(0x93, 0xA3)
}  # fmt: skip


@clause("3.1.1 MQTT-3.12.4-1", "5.0 MQTT-3.12.4-1")
@VERSIONS
def test_every_pingreq_is_answered(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send("c0 00", "c0 00", "c0 00")
    assert client.receive() == [Pingresp()] * 3


@clause("3.1.1 MQTT-3.14.1-1", "5.0 MQTT-3.14.1-1")
@pytest.mark.parametrize("first", ["e1", "e2", "e4", "e8", "ef"])
@VERSIONS
def test_disconnect_with_reserved_bits_set_is_an_error(wire: Wire, version: int, first: str) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("w")
    client = wire.connect("a", version, will=Will("w", b"bye"))
    client.send(f"{first} 00")
    client.assert_dropped(0x81)
    assert watcher.expect(Publish).payload == b"bye"


@clause("3.1.1 MQTT-3.14.1-1", "3.1.1 MQTT-4.8.0-1")
def test_disconnect_before_version_5_is_empty(wire: Wire) -> None:
    client = wire.connect("a", 4)
    client.send("e0 01 00")
    client.assert_dropped()


@clause("5.0 MQTT-3.14.2-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize("reason", ["01", "03", "10", "7f", "84", "85", "91", "92", "a3", "ff"])
def test_disconnect_with_a_reason_that_is_not_listed_is_an_error(wire: Wire, reason: str) -> None:
    client = wire.connect("a")
    client.send(f"e0 01 {reason}")
    client.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-3.14.2-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize("properties", ["11 00000000 11 00000000", "1f s:a 1f s:b", "0b 01", "7f 00"])
def test_disconnect_with_a_property_that_may_not_stand_there_is_an_error(wire: Wire, properties: str) -> None:
    client = wire.connect("a", session_expiry_interval=10)
    client.send(f"e0 L 00 P {properties} .")
    client.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-3.14.4-1", "5.0 MQTT-3.14.4-2", "3.1.1 MQTT-3.14.4-1", "3.1.1 MQTT-3.14.4-2")
@VERSIONS
def test_server_closes_after_the_clients_disconnect_and_takes_nothing_more(wire: Wire, version: int) -> None:
    watcher = wire.connect("watcher", version)
    watcher.subscribe("t")
    client = wire.connect("a", version)
    publish = frame("30 L s:t 78" if version < 5 else "30 L s:t 00 78")
    client.send(frame("e0 00") + publish)
    assert client.closed
    assert client.receive_bytes() == b""
    assert watcher.receive() == []


@clause("5.0 MQTT-3.14.4-1", "5.0 MQTT-3.14.4-2", "5.0 MQTT-3.14.2-1", "5.0 MQTT-3.14.2-2", "5.0 MQTT-4.13.2-1")
@pytest.mark.parametrize("packet", ["36 00", "f0 00", "10 00", "00 00", "30 L s:+ 00", "82 02 0001", "d0 00"])
def test_disconnect_is_the_servers_last_packet_with_a_listed_reason(wire: Wire, packet: str) -> None:
    client = wire.connect("a", session_expiry_interval=100)
    client.subscribe("t", qos=1)
    client.send("c0 00", packet, "c0 00")
    wire.connect("b").publish("t", b"x", qos=1)
    client.send("c0 00")
    assert client.closed
    pong, disconnect = client.receive()
    assert pong == Pingresp()
    assert isinstance(disconnect, Disconnect)
    assert disconnect.reason in DISCONNECT_REASONS - {0x00, 0x04}
    assert "session_expiry_interval" not in disconnect.properties


@clause("5.0 MQTT-3.14.2-3", "5.0 MQTT-3.14.2-4", "5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("size", SMALL_SIZES)
@pytest.mark.parametrize("packet", ["36 00", "10 00", "30 L s:+ 00"])
def test_disconnect_fits_the_clients_maximum_packet_size(wire: Wire, size: int, packet: str) -> None:
    client = wire.connect("a", maximum_packet_size=size)
    client.send(packet)
    data = client.receive_bytes()
    assert data[0] == 0xE0
    assert len(data) <= size


@clause("5.0 MQTT-3.14.0-1", "5.0 MQTT-3.2.0-1")
@pytest.mark.parametrize("slow", [False, True], ids=["", "while the store is slow"])
@pytest.mark.parametrize("packet", ["36 00", "10 00", "00 00"])
def test_no_disconnect_before_the_connack(wire: Wire, slow: bool, packet: str) -> None:
    wire.store_is_slow = slow
    client = wire.open()
    client.send(wire.connect_packet("a", 5, session_expiry_interval=100), packet)
    assert client.closed
    kinds = [type(one).__name__ for one in client.receive()]
    assert kinds in (["Connack", "Disconnect"], ["Connack"], [])


@clause("5.0 MQTT-3.14.0-1", "5.0 MQTT-3.2.0-1")
def test_take_over_while_the_store_is_slow_sends_no_disconnect_before_the_connack() -> None:
    wire = Wire(keeps=True)
    wire.store_is_slow = True
    client = wire.open()
    client.send(wire.connect_packet("a", 5, session_expiry_interval=100))
    assert client.receive_bytes() == b""
    wire.open().send(wire.connect_packet("a", 5, session_expiry_interval=100))
    assert client.closed
    kinds = [type(one).__name__ for one in client.receive()]
    assert kinds in (["Connack", "Disconnect"], ["Connack"], [])


@clause("5.0 MQTT-3.15.1-1")
@pytest.mark.parametrize("first", ["f1", "f2", "f4", "f8", "ff"])
def test_auth_with_reserved_bits_set_closes_the_connection(wire: Wire, first: str) -> None:
    client = wire.connect("a")
    client.send(f"{first} 00")
    client.assert_dropped(0x81)


@clause("5.0 MQTT-3.15.2-1")
@pytest.mark.parametrize("reason", ["01", "17", "1a", "80", "87", "ff"])
def test_auth_with_a_reason_that_is_not_listed_closes_the_connection(wire: Wire, reason: str) -> None:
    client = wire.connect("a")
    client.send(f"f0 L {reason} P 15 s:method .")
    client.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-4.12.0-7", "5.0 MQTT-4.12.1-1", "5.0 MQTT-4.12.1-2", "5.0 MQTT-4.12.0-6")
@pytest.mark.parametrize("packet", ["f0 00", "f0 L 18 P 15 s:method .", "f0 L 19 P 15 s:method 16 b:00 ."])
def test_auth_without_a_method_in_connect_closes_the_connection(wire: Wire, packet: str) -> None:
    client = wire.connect("a")
    client.send(packet)
    client.assert_dropped(0x82)


@clause("5.0 MQTT-4.12.0-1", "5.0 MQTT-4.12.0-4", "5.0 MQTT-3.1.4-2", "5.0 MQTT-4.13.2-1")
@pytest.mark.parametrize("data", ["", "16 b:00ff"], ids=["", "with data"])
def test_authentication_method_that_the_server_does_not_know_is_refused(wire: Wire, data: str) -> None:
    client = wire.open()
    client.send(f"10 L s:MQTT 05 02 003c P 15 s:SCRAM-SHA-1 {data} . s:a", "f0 L 18 P 15 s:SCRAM-SHA-1 .")
    client.assert_refused(0x8C)
