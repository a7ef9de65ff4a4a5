"""Chapter 3.1: when a will is published, and when not."""

import pytest

from tidings.broker.codec.packets import Publish, Will

from .wire import Peer, Wire

clause = pytest.mark.clause


@pytest.fixture(params=[4, 5], ids=["3.1.1", "5.0"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def watcher(wire: Wire, version: int) -> Peer:
    watcher = wire.connect("watcher", version, keep_alive=0)
    watcher.subscribe("w/#", qos=2)
    return watcher


@clause("3.1.1 MQTT-3.1.2-8", "5.0 MQTT-3.1.2-7", "5.0 MQTT-3.1.2-8")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_will_is_published_when_the_connection_is_lost(wire: Wire, version: int, watcher: Peer, qos: int) -> None:
    client = wire.connect("a", version, will=Will("w/a", b"bye", qos))
    assert watcher.receive() == []
    client.drop()
    message = watcher.expect(Publish)
    assert (message.topic, message.payload, message.qos, message.retain) == ("w/a", b"bye", qos, False)


@clause("3.1.1 MQTT-3.1.2-8", "5.0 MQTT-3.1.2-8")
@pytest.mark.parametrize("packet", ["ff ff ff ff ff", "36 03 0001 74", "10 00"], ids=["garbage", "QoS 3", "CONNECT"])
def test_will_is_published_after_a_protocol_error(wire: Wire, version: int, watcher: Peer, packet: str) -> None:
    client = wire.connect("a", version, will=Will("w/a", b"bye"))
    client.send(packet)
    assert client.closed
    assert watcher.expect(Publish).payload == b"bye"


@clause("3.1.1 MQTT-3.1.2-8", "3.1.1 MQTT-3.1.4-2", "5.0 MQTT-3.1.2-8")
def test_will_is_published_on_take_over_of_a_session_that_ends(wire: Wire, version: int, watcher: Peer) -> None:
    wire.connect("a", version, will=Will("w/a", b"bye"))
    wire.connect("a", version)
    assert watcher.expect(Publish).payload == b"bye"


@clause("3.1.1 MQTT-3.1.2-8", "3.1.1 MQTT-3.1.2-10", "3.1.1 MQTT-3.14.4-3", "5.0 MQTT-3.1.2-10", "5.0 MQTT-3.14.4-3")
def test_normal_disconnection_discards_the_will(wire: Wire, version: int, watcher: Peer) -> None:
    client = wire.connect("a", version, will=Will("w/a", b"bye"))
    client.send("e0 00")
    assert client.closed
    wire.advance(10_000)
    assert watcher.receive() == []


@clause("3.1.1 MQTT-3.1.2-10", "5.0 MQTT-3.1.2-10")
def test_will_is_published_once(wire: Wire, version: int, watcher: Peer) -> None:
    wire.connect("a", version, clean_start=False, session_expiry_interval=100, will=Will("w/a", b"bye")).drop()
    assert watcher.expect(Publish).payload == b"bye"
    wire.connect("a", version, clean_start=False, session_expiry_interval=100).drop()
    wire.advance(1_000)
    assert watcher.receive() == []


@clause("3.1.1 MQTT-3.1.2-12", "3.1.1 MQTT-3.1.2-11", "5.0 MQTT-3.1.2-7")
def test_no_will_without_the_will_flag(wire: Wire, version: int, watcher: Peer) -> None:
    wire.connect("a", version, will=Will("w/a", b"bye")).send("e0 00")
    wire.connect("a", version).drop()
    wire.advance(10_000)
    assert watcher.receive() == []


@clause("3.1.1 MQTT-3.1.2-16", "5.0 MQTT-3.1.2-14", "3.1.1 MQTT-3.3.1-12", "5.0 MQTT-3.3.1-8")
def test_will_without_retain_is_not_retained(wire: Wire, version: int, watcher: Peer) -> None:
    wire.connect("a", version, will=Will("w/a", b"bye", retain=False)).drop()
    assert watcher.expect(Publish).retain is False
    late = wire.connect("late", version)
    late.subscribe("w/a")
    assert late.receive() == []


@clause("3.1.1 MQTT-3.1.2-17", "5.0 MQTT-3.1.2-15")
def test_will_with_retain_is_retained(wire: Wire, version: int, watcher: Peer) -> None:
    wire.connect("a", version, will=Will("w/a", b"bye", retain=True)).drop()
    assert watcher.expect(Publish).payload == b"bye"
    late = wire.connect("late", version)
    late.subscribe("w/a")
    message = late.expect(Publish)
    assert (message.payload, message.retain) == (b"bye", True)


# from here on 5.0 alone: will properties


@pytest.fixture
def watcher5(wire: Wire) -> Peer:
    watcher = wire.connect("watcher", keep_alive=0)
    watcher.subscribe("w/#", qos=2)
    return watcher


@clause("5.0 MQTT-3.1.2-8")
def test_will_is_published_when_its_delay_passed(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 30})
    wire.connect("a", session_expiry_interval=100, will=will).drop()
    wire.advance(29)
    assert watcher5.receive() == []
    wire.advance(2)
    assert watcher5.expect(Publish).payload == b"bye"


@clause("5.0 MQTT-3.1.2-8")
def test_will_is_published_when_the_session_ends_before_the_delay(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 1000})
    wire.connect("a", session_expiry_interval=10, will=will).drop()
    wire.advance(9)
    assert watcher5.receive() == []
    wire.advance(2)
    assert watcher5.expect(Publish).payload == b"bye"
    wire.advance(2000)
    assert watcher5.receive() == []


@clause("5.0 MQTT-3.1.2-8")
def test_delayed_will_of_a_session_without_expiry_is_published_at_once(wire: Wire, watcher5: Peer) -> None:
    wire.connect("a", will=Will("w/a", b"bye", properties={"will_delay_interval": 1000})).drop()
    assert watcher5.expect(Publish).payload == b"bye"


@clause("5.0 MQTT-3.1.2-8")
def test_delayed_will_is_published_when_a_clean_start_ends_the_session(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 1000})
    wire.connect("a", session_expiry_interval=5000, will=will).drop()
    wire.connect("a", clean_start=True)
    assert watcher5.expect(Publish).payload == b"bye"
    wire.advance(6000)
    assert watcher5.receive() == []


@clause("5.0 MQTT-3.1.3-9", "5.0 MQTT-3.1.2-8")
def test_reconnection_before_the_delay_stops_the_will(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 30})
    wire.connect("a", session_expiry_interval=100, will=will).drop()
    wire.advance(29)
    wire.connect("a", clean_start=False, session_expiry_interval=100, keep_alive=0)
    wire.advance(1000)
    assert watcher5.receive() == []


@clause("5.0 MQTT-3.1.3-9", "5.0 MQTT-3.1.2-8")
def test_take_over_of_a_kept_session_stops_the_delayed_will(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 30})
    wire.connect("a", session_expiry_interval=100, will=will)
    wire.connect("a", clean_start=False, session_expiry_interval=100, keep_alive=0)
    wire.advance(1000)
    assert watcher5.receive() == []


@clause("5.0 MQTT-3.1.2-8")
def test_disconnect_with_will_publishes_it(wire: Wire, watcher5: Peer) -> None:
    client = wire.connect("a", will=Will("w/a", b"bye"))
    client.send("e0 01 04")
    assert client.closed
    assert watcher5.expect(Publish).payload == b"bye"


@clause("5.0 MQTT-3.1.2-8", "5.0 MQTT-3.14.4-3")
@pytest.mark.parametrize("reason", ["80", "81", "83", "93", "97"])
def test_disconnect_with_an_error_publishes_the_will(wire: Wire, watcher5: Peer, reason: str) -> None:
    client = wire.connect("a", will=Will("w/a", b"bye"))
    client.send(f"e0 01 {reason}")
    assert client.closed
    assert watcher5.expect(Publish).payload == b"bye"


@clause("5.0 MQTT-3.1.2-10", "5.0 MQTT-3.14.4-3")
def test_disconnect_discards_a_delayed_will_for_good(wire: Wire, watcher5: Peer) -> None:
    will = Will("w/a", b"bye", properties={"will_delay_interval": 5})
    wire.connect("a", session_expiry_interval=100, will=will).send("e0 00")
    wire.advance(1000)
    assert watcher5.receive() == []


@clause("5.0 MQTT-3.1.3-10", "5.0 MQTT-3.3.2-17", "5.0 MQTT-3.3.2-18")
def test_will_keeps_its_user_properties_in_order(wire: Wire, watcher5: Peer) -> None:
    pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("", ""), ("a", "0")]
    wire.connect("a", will=Will("w/a", b"bye", properties={"user_property": pairs})).drop()
    assert watcher5.expect(Publish).properties["user_property"] == pairs


@clause("5.0 MQTT-3.3.2-4", "5.0 MQTT-3.3.2-15", "5.0 MQTT-3.3.2-16", "5.0 MQTT-3.3.2-20", "5.0 MQTT-3.3.2-6")
def test_will_is_published_with_its_properties(wire: Wire, watcher5: Peer) -> None:
    will = Will(
        "w/a",
        b"bye",
        properties={
            "will_delay_interval": 10,
            "payload_format_indicator": 1,
            "message_expiry_interval": 60,
            "content_type": "text/plain",
            "response_topic": "r",
            "correlation_data": b"\x00\x01",
        },
    )
    wire.connect("a", session_expiry_interval=100, will=will).drop()
    wire.advance(11)
    assert watcher5.expect(Publish).properties == {
        "payload_format_indicator": 1,
        "message_expiry_interval": 60,
        "content_type": "text/plain",
        "response_topic": "r",
        "correlation_data": b"\x00\x01",
    }
