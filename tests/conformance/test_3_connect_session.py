"""Chapter 3.1, 3.2 and 4.1: Clean Start, session present, and how long a session lives."""

from collections.abc import Callable
from typing import Any

import pytest

from tidings.broker.codec.packets import Publish

from .wire import VERSIONS, Wire

clause = pytest.mark.clause

KEPT = 100  # session expiry of 5.0 clients in seconds; with 3.1.1 Clean Session 0 alone keeps the session


@clause("3.1.1 MQTT-3.1.2-4", "3.1.1 MQTT-3.2.2-3", "5.0 MQTT-3.1.2-6", "5.0 MQTT-3.2.2-3")
@VERSIONS
def test_first_connection_without_clean_start_makes_a_new_session(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    assert not client.connack.session_present


@clause(
    "3.1.1 MQTT-3.1.2-4", "3.1.1 MQTT-3.2.2-2", "3.1.1 MQTT-3.1.4-3",
    "5.0 MQTT-3.1.2-5", "5.0 MQTT-3.1.2-23", "5.0 MQTT-3.2.2-3", "5.0 MQTT-3.1.4-4",
)  # fmt: skip
@VERSIONS
def test_reconnection_without_clean_start_resumes_the_session(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    client.subscribe("t", qos=1)
    client.drop()
    again = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    assert again.connack.session_present
    wire.connect("b").publish("t", b"x", qos=1)
    assert again.expect(Publish).payload == b"x"


@clause(
    "3.1.1 MQTT-3.1.2-6", "3.1.1 MQTT-3.2.2-1", "3.1.1 MQTT-3.1.4-3",
    "5.0 MQTT-3.1.2-4", "5.0 MQTT-3.2.2-2", "5.0 MQTT-3.1.4-4",
)  # fmt: skip
@VERSIONS
def test_clean_start_discards_the_session(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    client.subscribe("t", qos=1)
    client.drop()
    publisher = wire.connect("b")
    publisher.publish("t", b"missed", qos=1)
    clean = wire.connect("a", version, clean_start=True, session_expiry_interval=KEPT)
    assert not clean.connack.session_present
    publisher.publish("t", b"new", qos=1)
    assert clean.receive() == []


@clause("3.1.1 MQTT-3.1.2-6")
def test_clean_session_lasts_as_long_as_its_connection(wire: Wire) -> None:
    client = wire.connect("a", 4, clean_start=True)
    client.subscribe("t", qos=1)
    client.drop()
    wire.connect("b").publish("t", b"x", qos=1)
    again = wire.connect("a", 4, clean_start=False)
    assert not again.connack.session_present
    assert again.receive() == []


@clause("3.1.1 MQTT-3.1.2-6", "3.1.1 MQTT-3.1.4-3", "5.0 MQTT-3.1.2-4")
@VERSIONS
def test_clean_start_discards_the_session_of_a_connected_client(wire: Wire, version: int) -> None:
    first = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    first.subscribe("t", qos=1)
    second = wire.connect("a", version, clean_start=True, session_expiry_interval=KEPT)
    assert not second.connack.session_present
    wire.connect("b").publish("t", b"x", qos=1)
    assert second.receive() == []


@clause("3.1.1 MQTT-3.1.2-5", "3.1.1 MQTT-4.5.0-1", "5.0 MQTT-4.5.0-1", "5.0 MQTT-3.1.2-23")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_messages_for_an_offline_session_are_stored(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    client.subscribe("t", qos=2)
    client.drop()
    publisher = wire.connect("b")
    for number in range(3):
        publisher.publish("t", b"%d" % number, qos=qos)
    again = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    messages = again.messages()
    assert [(message.payload, message.qos, message.dup) for message in messages] == [
        (b"0", qos, False), (b"1", qos, False), (b"2", qos, False)
    ]  # fmt: skip


@clause("3.1.1 MQTT-3.1.2-4", "3.1.1 MQTT-3.1.2-5", "5.0 MQTT-3.1.2-23")
@VERSIONS
def test_session_is_kept_after_a_normal_disconnection(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    client.send("e0 00")
    wire.advance(KEPT - 1)
    again = wire.connect("a", version, clean_start=False, session_expiry_interval=KEPT)
    assert again.connack.session_present


@clause("5.0 MQTT-4.1.0-2")
@pytest.mark.parametrize("expiry", [1, 60, 86_400])
def test_session_is_discarded_when_its_expiry_interval_passed(wire: Wire, expiry: int) -> None:
    client = wire.connect("a", session_expiry_interval=expiry)
    client.subscribe("t", qos=1)
    client.drop()
    wire.advance(expiry + 1)
    assert not wire.connect("a", clean_start=False).connack.session_present


@clause("5.0 MQTT-4.1.0-2")
@pytest.mark.parametrize("properties", [{}, {"session_expiry_interval": 0}], ids=["absent", "0"])
def test_session_without_expiry_interval_ends_with_its_connection(wire: Wire, properties: dict[str, Any]) -> None:
    wire.connect("a", **properties).drop()
    assert not wire.connect("a", clean_start=False).connack.session_present


@clause("5.0 MQTT-3.1.2-23")
def test_session_expiry_of_all_ones_never_expires(wire_with: Callable[..., Wire]) -> None:
    wire = wire_with(max_session_expiry_s=0xFFFF_FFFF)
    wire.connect("a", session_expiry_interval=0xFFFF_FFFF).drop()
    wire.advance(40 * 86_400)
    assert wire.connect("a", clean_start=False).connack.session_present


@clause("5.0 MQTT-4.1.0-2")
def test_server_that_shortens_the_expiry_interval_says_so(wire_with: Callable[..., Wire]) -> None:
    wire = wire_with(max_session_expiry_s=60)
    client = wire.connect("a", session_expiry_interval=1000)
    assert client.connack.properties["session_expiry_interval"] == 60
    client.drop()
    wire.advance(61)
    assert not wire.connect("a", clean_start=False).connack.session_present


@clause("5.0 MQTT-4.1.0-2")
def test_disconnect_can_shorten_the_expiry_interval(wire: Wire) -> None:
    client = wire.connect("a", session_expiry_interval=1000)
    client.send("e0 L 00 P 11 00000005 .")
    wire.advance(6)
    assert not wire.connect("a", clean_start=False).connack.session_present


@clause("5.0 MQTT-4.13.1-1")
def test_disconnect_cannot_give_an_expiry_interval_to_a_session_without_one(wire: Wire) -> None:
    client = wire.connect("a")
    client.send("e0 L 00 P 11 00000005 .")
    client.assert_dropped(0x82)


@clause("3.1.1 MQTT-4.1.0-1", "3.1.1 MQTT-4.1.0-2", "5.0 MQTT-4.1.0-1")
@VERSIONS
def test_session_lasts_while_the_connection_is_open(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=True, keep_alive=0, session_expiry_interval=1)
    client.subscribe("t", qos=1)
    wire.advance(1_000_000)
    wire.connect("b").publish("t", b"x", qos=1)
    assert client.expect(Publish).payload == b"x"


@clause("5.0 MQTT-4.1.0-1", "5.0 MQTT-4.1.0-2", "3.1.1 MQTT-4.1.0-1")
def test_expiry_starts_anew_at_each_disconnection(wire: Wire) -> None:
    client = wire.connect("a", session_expiry_interval=10)
    for _ in range(3):
        client.drop()
        wire.advance(8)
        client = wire.connect("a", clean_start=False, session_expiry_interval=10)
        assert client.connack.session_present
        wire.advance(8)


@clause("3.1.1 MQTT-3.1.2-7")
@pytest.mark.parametrize("clean_start", [True, False])
def test_retained_messages_outlive_the_session(wire: Wire, clean_start: bool) -> None:
    client = wire.connect("a", 4, clean_start=clean_start)
    client.publish("t", b"kept", retain=True)
    client.drop()
    wire.connect("a", 4, clean_start=True).send("e0 00")
    other = wire.connect("b", 4)
    other.subscribe("t")
    assert other.expect(Publish).payload == b"kept"
