"""Chapter 3.2: CONNACK."""

import pytest

from tidings.broker.codec.packets import Connack

from .wire import VERSIONS, Wire, frame

clause = pytest.mark.clause

# CONNECTs that the server rejects with a CONNACK, for the client id "a" or none
REJECTED = [
    pytest.param("10 L s:MQTT 04 00 003c 0000", id="3.1.1 empty client id without clean session"),
    pytest.param("10 L s:MQTT 02 02 003c s:a", id="unsupported level"),
    pytest.param("10 L s:MQTT 05 00 003c P 15 s:unknown . s:a", id="5.0 unknown authentication method"),
    pytest.param("10 L s:MQTT 06 00 003c 00 s:a", id="5.0 unsupported level"),
    pytest.param("10 L s:MQTT 05 04 003c 00 s:a 00 s:$SYS/x s:bye", id="5.0 will topic of the server"),
]
CONNACK_REASONS = {
    0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B,
    0x9C, 0x9D, 0x9F,
}  # fmt: skip


@clause("3.1.1 MQTT-3.2.0-1", "5.0 MQTT-3.2.0-1", "5.0 MQTT-3.2.0-2")
@VERSIONS
def test_connack_comes_first_and_once(wire: Wire, version: int) -> None:
    wire.connect("b").publish("t", b"x", retain=True)
    first = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    first.subscribe("t", qos=1)
    first.drop()
    wire.connect("c").publish("t", b"y", qos=1)
    client = wire.open(version)
    client.send(wire.connect_packet("a", version, clean_start=False), "c0 00")
    kinds = [type(packet).__name__ for packet in client.receive()]
    assert kinds[0] == "Connack"
    assert kinds.count("Connack") == 1
    assert "Publish" in kinds


@clause("5.0 MQTT-3.2.2-1", "3.1.1 MQTT-3.2.2-1", "3.1.1 MQTT-3.2.2-2", "3.1.1 MQTT-3.2.2-3", "5.0 MQTT-3.2.2-3")
@VERSIONS
def test_connect_acknowledge_flags_hold_session_present_and_nothing_else(wire: Wire, version: int) -> None:
    flags = []
    for clean_start in (True, False, True):
        client = wire.open(version)
        client.send(wire.connect_packet("a", version, clean_start=clean_start, session_expiry_interval=100))
        flags.append(client.receive_bytes()[2])
        client.drop()
    client = wire.open(version)
    client.send(wire.connect_packet("a", version, clean_start=False, session_expiry_interval=100))
    flags.append(client.receive_bytes()[2])
    # before 5.0 a clean session is gone with its connection, so the second and fourth find none or an old one
    assert flags == ([0, 0, 0, 0] if version < 5 else [0, 1, 0, 1])


@clause(
    "3.1.1 MQTT-3.2.2-4", "3.1.1 MQTT-3.2.2-5",
    "5.0 MQTT-3.2.2-6", "5.0 MQTT-3.2.2-7", "5.0 MQTT-3.2.2-8", "5.0 MQTT-4.13.2-1", "5.0 MQTT-3.14.0-1",
)  # fmt: skip
@pytest.mark.parametrize("packet", REJECTED)
def test_rejection_has_session_present_0_and_a_listed_code_and_closes(
    wire: Wire, request: pytest.FixtureRequest, packet: str
) -> None:
    wire.connect("a", session_expiry_interval=100).drop()
    v5 = "5.0" in request.node.callspec.id
    client = wire.open(5 if v5 else 4)
    client.send(packet)
    assert client.closed
    connack = client.expect(Connack)
    assert connack.session_present is False
    assert connack.reason in (CONNACK_REASONS - {0} if v5 else {1, 2, 3, 4, 5})


@clause("5.0 MQTT-3.2.2-6", "5.0 MQTT-3.1.4-2")
def test_rejected_connect_leaves_the_stored_session_alone(wire: Wire) -> None:
    wire.connect("a", session_expiry_interval=100).drop()
    client = wire.open(5)
    client.send("10 L s:MQTT 05 02 003c P 15 s:unknown . s:a")
    assert client.closed
    assert wire.connect("a", clean_start=False, session_expiry_interval=100).connack.session_present


@clause("5.0 MQTT-3.2.2-19", "5.0 MQTT-3.2.2-20", "5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("size", [5, 6, 8, 12, 20, 40])
def test_rejecting_connack_fits_the_clients_maximum_packet_size(wire: Wire, size: int) -> None:
    client = wire.open(5)
    client.send(f"10 L s:MQTT 05 02 003c P 15 s:unknown 27 {size:08x} . s:a")
    assert client.closed
    assert len(client.receive_bytes()) <= size


@clause("5.0 MQTT-3.1.2-24", "5.0 MQTT-3.2.2-19", "5.0 MQTT-3.2.2-20")
@pytest.mark.parametrize("size", [1, 4, 5, 10, 20, 30, 50, 100])
def test_accepting_connack_fits_the_clients_maximum_packet_size(wire: Wire, size: int) -> None:
    client = wire.open(5)
    client.send(f"10 L s:MQTT 05 02 003c P 27 {size:08x} . s:a")
    assert len(client.receive_bytes()) <= size


@clause("5.0 MQTT-4.12.0-6")
def test_client_without_authentication_method_is_told_none(wire: Wire) -> None:
    assert "authentication_method" not in wire.connect("a").connack.properties


@clause("3.1.1 MQTT-3.1.4-4", "3.1.1 MQTT-3.2.2-1")
def test_connack_before_version_5_has_two_bytes(wire: Wire) -> None:
    client = wire.open(4)
    client.send(wire.connect_packet("a", 4))
    assert client.receive_bytes() == frame("20 02 00 00")
