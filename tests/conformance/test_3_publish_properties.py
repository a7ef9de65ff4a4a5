"""Chapter 3.3.2.3: the properties of PUBLISH."""

from typing import Any

import pytest

from tidings.broker.codec.packets import Publish

from .wire import VERSIONS, Peer, Wire

clause = pytest.mark.clause


@pytest.fixture
def publisher(wire: Wire) -> Peer:
    return wire.connect("publisher", keep_alive=0)


@pytest.fixture
def subscriber(wire: Wire) -> Peer:
    client = wire.connect("subscriber", keep_alive=0)
    client.subscribe("t/#", qos=2)
    return client


FORWARDED = [
    pytest.param("payload_format_indicator", 0, marks=clause("5.0 MQTT-3.3.2-4"), id="payload format 0"),
    pytest.param("payload_format_indicator", 1, marks=clause("5.0 MQTT-3.3.2-4"), id="payload format 1"),
    pytest.param("response_topic", "answers/é", marks=clause("5.0 MQTT-3.3.2-15"), id="response topic"),
    pytest.param("correlation_data", b"\x00\xff\x00", marks=clause("5.0 MQTT-3.3.2-16"), id="correlation data"),
    pytest.param("correlation_data", b"", marks=clause("5.0 MQTT-3.3.2-16"), id="empty correlation data"),
    pytest.param("content_type", "application/json", marks=clause("5.0 MQTT-3.3.2-20"), id="content type"),
    pytest.param("content_type", "", marks=clause("5.0 MQTT-3.3.2-20"), id="empty content type"),
    pytest.param("user_property", [("k", "v")], marks=clause("5.0 MQTT-3.3.2-17"), id="user property"),
    pytest.param("user_property", [("", "")], marks=clause("5.0 MQTT-3.3.2-17"), id="empty user property"),
    pytest.param(
        "user_property",
        [("b", "1"), ("a", "1"), ("b", "0"), ("b", "1")],
        marks=clause("5.0 MQTT-3.3.2-17", "5.0 MQTT-3.3.2-18"),
        id="user properties in order",
    ),
]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize(("name", "value"), FORWARDED)
def test_property_is_forwarded_unaltered(publisher: Peer, subscriber: Peer, name: str, value: object, qos: int) -> None:
    properties: dict[str, Any] = {name: value}
    publisher.publish("t/x", b"payload", qos=qos, **properties)
    assert subscriber.expect(Publish).properties == properties


@pytest.mark.parametrize(("name", "value"), FORWARDED)
def test_property_is_kept_with_queued_and_retained_messages(
    wire: Wire, publisher: Peer, name: str, value: object
) -> None:
    properties: dict[str, Any] = {name: value}
    away = wire.connect("away", session_expiry_interval=100)
    away.subscribe("t/x", qos=1)
    away.drop()
    publisher.publish("t/x", b"payload", qos=1, retain=True, **properties)
    away = wire.connect("away", clean_start=False, session_expiry_interval=100)
    assert away.expect(Publish).properties == properties
    late = wire.connect("late")
    late.subscribe("t/x")
    assert late.expect(Publish).properties == properties


@clause("5.0 MQTT-3.3.2-4", "5.0 MQTT-3.3.2-17")
def test_subscriber_before_version_5_gets_the_message_without_properties(wire: Wire, publisher: Peer) -> None:
    client = wire.connect("a", 4)
    client.subscribe("t/x")
    publisher.publish("t/x", b"payload", payload_format_indicator=1, user_property=[("k", "v")])
    assert client.expect(Publish).payload == b"payload"


@clause("5.0 MQTT-3.3.2-13", "5.0 MQTT-3.3.2-14")
@pytest.mark.parametrize("topic", ["+", "#", "a/+", "a/#", "a/+/b"])
def test_wildcard_in_a_response_topic_closes_the_connection(publisher: Peer, topic: str) -> None:
    publisher.send(f"30 L s:t/x P 08 s:{topic} . 78")
    publisher.assert_dropped(0x81, 0x82, 0x90)


@pytest.mark.parametrize(
    "properties",
    [
        pytest.param("01 02", id="payload format 2"),
        pytest.param("01 00 01 00", id="payload format twice"),
        pytest.param("02 00000001 02 00000001", id="message expiry twice"),
        pytest.param("03 s:a 03 s:a", id="content type twice"),
        pytest.param("08 s:a 08 s:a", id="response topic twice"),
        pytest.param("09 b:00 09 b:00", id="correlation data twice"),
        pytest.param("23 0001 23 0001", id="topic alias twice"),
        pytest.param("11 00000001", id="session expiry"),
        pytest.param("1f s:why", id="reason string"),
        pytest.param("7f 00", id="unknown property"),
    ],
)
@clause("5.0 MQTT-4.13.1-1")
def test_property_that_may_not_stand_in_publish_closes_the_connection(publisher: Peer, properties: str) -> None:
    publisher.send(f"30 L s:t/x P {properties} . 78")
    publisher.assert_dropped(0x81, 0x82)


@clause("5.0 MQTT-3.3.2-6")
@pytest.mark.parametrize("qos", [1, 2])
def test_expiry_interval_shrinks_by_the_time_spent_waiting(wire: Wire, publisher: Peer, qos: int) -> None:
    client = wire.connect("a", session_expiry_interval=1000)
    client.subscribe("t/x", qos=2)
    client.drop()
    publisher.publish("t/x", b"x", qos=qos, message_expiry_interval=100)
    wire.advance(40)
    client = wire.connect("a", clean_start=False, session_expiry_interval=1000)
    assert client.expect(Publish).properties == {"message_expiry_interval": 60}


@clause("5.0 MQTT-3.3.2-6")
def test_expiry_interval_of_a_message_that_did_not_wait_is_forwarded(publisher: Peer, subscriber: Peer) -> None:
    publisher.publish("t/x", b"x", message_expiry_interval=100)
    assert subscriber.expect(Publish).properties == {"message_expiry_interval": 100}


@clause("5.0 MQTT-3.3.2-5")
def test_message_that_expired_while_waiting_is_not_delivered(wire: Wire, publisher: Peer) -> None:
    client = wire.connect("a", session_expiry_interval=1000)
    client.subscribe("t/x", qos=1)
    client.drop()
    publisher.publish("t/x", b"short", qos=1, message_expiry_interval=10)
    publisher.publish("t/x", b"long", qos=1, message_expiry_interval=100)
    publisher.publish("t/x", b"ever", qos=1)
    wire.advance(50)
    client = wire.connect("a", clean_start=False, session_expiry_interval=1000)
    assert client.payloads() == [b"long", b"ever"]


@clause("5.0 MQTT-3.3.2-5", "5.0 MQTT-3.3.4-9")
def test_message_that_expired_behind_a_full_window_is_not_delivered(wire: Wire, publisher: Peer) -> None:
    client = wire.connect("a", receive_maximum=1, keep_alive=0)
    client.subscribe("t/x", qos=1)
    publisher.publish("t/x", b"first", qos=1)
    publisher.publish("t/x", b"short", qos=1, message_expiry_interval=10)
    publisher.publish("t/x", b"last", qos=1)
    first = client.expect(Publish)
    wire.advance(11)
    client.finish(first)
    assert client.payloads() == [b"last"]


@clause("5.0 MQTT-3.3.2-12", "5.0 MQTT-3.3.2-9")
def test_every_alias_up_to_the_servers_maximum_is_accepted(publisher: Peer, subscriber: Peer) -> None:
    maximum = publisher.connack.properties["topic_alias_maximum"]
    assert maximum > 0
    for alias in range(1, maximum + 1):
        publisher.publish(f"t/{alias}", b"named", topic_alias=alias)
    for alias in range(1, maximum + 1):
        publisher.send(f"30 L 0000 P 23 {alias:04x} . 78")
    topics = [message.topic for message in subscriber.messages()]
    assert topics == [f"t/{alias}" for alias in range(1, maximum + 1)] * 2


@clause("5.0 MQTT-3.3.2-12")
def test_alias_can_be_given_to_another_topic(publisher: Peer, subscriber: Peer) -> None:
    publisher.publish("t/one", b"1", topic_alias=1)
    publisher.publish("t/two", b"2", topic_alias=1)
    publisher.send("30 L 0000 P 23 0001 . 33")
    assert [(m.topic, m.payload) for m in subscriber.messages()] == [
        ("t/one", b"1"), ("t/two", b"2"), ("t/two", b"3")
    ]  # fmt: skip


@clause("5.0 MQTT-3.3.2-7")
def test_alias_does_not_outlive_its_connection(wire: Wire, subscriber: Peer) -> None:
    client = wire.connect("a", session_expiry_interval=100)
    client.publish("t/x", b"1", topic_alias=1)
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100)
    client.send("30 L 0000 P 23 0001 . 78")
    client.assert_dropped(0x82)
    assert subscriber.payloads() == [b"1"]


@clause("5.0 MQTT-3.3.2-7")
def test_alias_belongs_to_one_connection(publisher: Peer, wire: Wire) -> None:
    publisher.publish("t/x", b"1", topic_alias=1)
    other = wire.connect("other")
    other.send("30 L 0000 P 23 0001 . 78")
    other.assert_dropped(0x82)


@clause("5.0 MQTT-3.3.2-8")
@pytest.mark.parametrize("topic", ["s:t", "0000"])
def test_alias_0_closes_the_connection(publisher: Peer, topic: str) -> None:
    publisher.send(f"30 L {topic} P 23 0000 . 78")
    publisher.assert_dropped(0x94)


@clause("5.0 MQTT-3.3.2-9", "5.0 MQTT-3.2.2-17")
def test_alias_above_the_servers_maximum_closes_the_connection(publisher: Peer) -> None:
    maximum = publisher.connack.properties["topic_alias_maximum"]
    publisher.send(f"30 L s:t P 23 {maximum + 1:04x} . 78")
    publisher.assert_dropped(0x94)


@clause("5.0 MQTT-3.1.2-27", "5.0 MQTT-3.3.2-11")
@pytest.mark.parametrize("properties", [{}, {"topic_alias_maximum": 0}], ids=["absent", "0"])
def test_client_without_alias_maximum_gets_no_alias(wire: Wire, publisher: Peer, properties: dict[str, Any]) -> None:
    client = wire.connect("a", **properties)
    client.subscribe("t/#")
    for _ in range(3):
        publisher.publish("t/x", b"1")
    assert [(m.topic, m.properties) for m in client.messages()] == [("t/x", {})] * 3


@clause("5.0 MQTT-3.1.2-26", "5.0 MQTT-3.3.2-11", "5.0 MQTT-3.3.2-8")
@pytest.mark.parametrize("maximum", [1, 2, 10])
def test_aliases_of_the_server_keep_to_the_clients_maximum(wire: Wire, publisher: Peer, maximum: int) -> None:
    client = wire.connect("a", topic_alias_maximum=maximum)
    client.subscribe("t/#", qos=1)
    for number in range(40):
        publisher.publish(f"t/{number % 4}", b"x", qos=number % 2)
    known: dict[int, str] = {}
    topics = []
    for message in client.messages():
        alias = message.properties.get("topic_alias")
        if alias is not None:
            assert 1 <= alias <= maximum
            known[alias] = message.topic or known[alias]
        topics.append(message.topic or known[alias or 0])
    assert topics == [f"t/{number % 4}" for number in range(40)]


@clause("5.0 MQTT-3.3.2-7", "5.0 MQTT-3.1.2-26")
def test_aliases_of_the_server_start_anew_on_reconnection(wire: Wire, publisher: Peer) -> None:
    client = wire.connect("a", session_expiry_interval=100, topic_alias_maximum=5)
    client.subscribe("t/#", qos=1)
    publisher.publish("t/x", b"1", qos=1)
    publisher.publish("t/x", b"2", qos=1)
    assert len(client.messages()) == 2
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100, topic_alias_maximum=5)
    assert client.messages()[0].topic == "t/x"


@clause("5.0 MQTT-3.3.2-8", "5.0 MQTT-3.1.2-27")
@VERSIONS
def test_alias_of_the_publisher_is_not_forwarded(wire: Wire, publisher: Peer, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t/x")
    publisher.publish("t/x", b"1", topic_alias=3)
    publisher.send("30 L 0000 P 23 0003 . 32")
    assert [(m.topic, m.payload, m.properties) for m in client.messages()] == [("t/x", b"1", {}), ("t/x", b"2", {})]
