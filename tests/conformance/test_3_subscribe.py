"""Chapters 3.8 and 3.9: SUBSCRIBE and SUBACK."""

from collections.abc import Callable

import pytest

from tidings.broker.codec.packets import Publish, Suback

from .wire import SMALL_SIZES, VERSIONS, Wire

clause = pytest.mark.clause

MALFORMED = [
    pytest.param(4, "82 02 0001", marks=clause("3.1.1 MQTT-3.8.3-3"), id="3.1.1 no filter"),
    pytest.param(4, "82 L 0001 s:t", marks=clause("3.1.1 MQTT-3.8.3-3"), id="3.1.1 no QoS"),
    pytest.param(4, "82 L 0001 s:t 00 s:u", marks=clause("3.1.1 MQTT-3.8.3-3"), id="3.1.1 second without QoS"),
    pytest.param(4, "82 L 0001 s:t 03", marks=clause("3.1.1 MQTT-3.8.3-4"), id="3.1.1 QoS 3"),
    pytest.param(4, "82 L 0001 s:t 04", marks=clause("3.1.1 MQTT-3.8.3-4"), id="3.1.1 reserved bit 2"),
    pytest.param(4, "82 L 0001 s:t 80", marks=clause("3.1.1 MQTT-3.8.3-4"), id="3.1.1 reserved bit 7"),
    pytest.param(4, "82 L 0001 s:ok 00 s:t 40", marks=clause("3.1.1 MQTT-3.8.3-4"), id="3.1.1 second malformed"),
    pytest.param(4, "82 L 0001 0000 00", marks=clause("3.1.1 MQTT-4.7.3-1"), id="3.1.1 empty filter"),
    pytest.param(5, "82 03 0001 00", marks=clause("5.0 MQTT-3.8.3-2"), id="5.0 no filter"),
    pytest.param(5, "82 L 0001 00 s:t", marks=clause("5.0 MQTT-3.8.3-2"), id="5.0 no options"),
    pytest.param(5, "82 L 0001 00 s:t 03", marks=clause("5.0 MQTT-3.8.3-5"), id="5.0 QoS 3"),
    pytest.param(5, "82 L 0001 00 s:t 30", marks=clause("5.0 MQTT-3.8.3-5"), id="5.0 retain handling 3"),
    pytest.param(5, "82 L 0001 00 s:t 40", marks=clause("5.0 MQTT-3.8.3-5"), id="5.0 reserved bit 6"),
    pytest.param(5, "82 L 0001 00 s:t 80", marks=clause("5.0 MQTT-3.8.3-5"), id="5.0 reserved bit 7"),
    pytest.param(5, "82 L 0001 00 s:$share/g/t 04", marks=clause("5.0 MQTT-3.8.3-4"), id="5.0 no local and shared"),
    pytest.param(5, "82 L 0001 00 0000 00", marks=clause("5.0 MQTT-4.7.3-1"), id="5.0 empty filter"),
    pytest.param(5, "82 L 0001 P 0b 00 . s:t 00", marks=clause("5.0 MQTT-4.13.1-1"), id="5.0 identifier 0"),
    pytest.param(5, "82 L 0001 P 0b 01 0b 02 . s:t 00", marks=clause("5.0 MQTT-4.13.1-1"), id="5.0 two identifiers"),
]


@clause("3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize(("version", "packet"), MALFORMED)
def test_malformed_subscribe_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82, 0x8F)


@clause("3.1.1 MQTT-3.8.1-1", "5.0 MQTT-3.8.1-1")
@pytest.mark.parametrize("first", ["80", "81", "83", "84", "86", "8a", "8f"])
@VERSIONS
def test_subscribe_with_other_flags_than_0010_closes_the_connection(wire: Wire, version: int, first: str) -> None:
    client = wire.connect("a", version)
    client.send(f"{first} L 0001 {'' if version < 5 else '00'} s:t 00")
    client.assert_dropped(0x81)


@clause("3.1.1 MQTT-3.8.4-1", "3.1.1 MQTT-3.8.4-5", "5.0 MQTT-3.8.4-1", "5.0 MQTT-3.8.4-6", "5.0 MQTT-3.8.4-7")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_subscribe_is_answered_with_the_qos_granted(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version)
    assert client.subscribe("t", qos=qos) == qos


@clause(
    "3.1.1 MQTT-3.8.4-4", "3.1.1 MQTT-3.8.4-5", "3.1.1 MQTT-3.9.3-1",
    "5.0 MQTT-3.8.4-5", "5.0 MQTT-3.8.4-6", "5.0 MQTT-3.9.3-1",
)  # fmt: skip
@VERSIONS
def test_several_filters_are_answered_once_in_their_order(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send(f"82 L 0001 {'' if version < 5 else '00'} s:a 02 s:b 00 s:c 01 s:d 00 s:e 02")
    assert client.receive() == [Suback(1, [2, 0, 1, 0, 2])]
    publisher = wire.connect("b")
    for topic in "abcde":
        publisher.publish(topic, b"x", qos=2)
    assert [(message.topic, message.qos) for message in client.messages()] == [
        ("a", 2), ("b", 0), ("c", 1), ("d", 0), ("e", 2)
    ]  # fmt: skip


@clause("3.1.1 MQTT-3.8.4-5", "3.1.1 MQTT-3.9.3-1", "3.1.1 MQTT-3.9.3-2", "5.0 MQTT-3.9.3-1", "5.0 MQTT-3.9.3-2")
@VERSIONS
def test_filter_that_fails_has_its_failure_in_its_place(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send(f"82 L 0001 {'' if version < 5 else '00'} s:a 01 s:b/#/c 01 s:d 02")
    suback = client.expect(Suback)
    assert suback.reasons == [1, 0x80 if version < 5 else 0x8F, 2]


@clause("3.1.1 MQTT-3.9.3-2", "5.0 MQTT-3.9.3-2", "5.0 MQTT-3.8.4-7")
@VERSIONS
def test_filter_beyond_the_servers_limit_fails_with_a_listed_code(wire_with: Callable[..., Wire], version: int) -> None:
    client = wire_with(max_subscriptions=1).connect("a", version)
    assert client.subscribe("one") == 0
    assert client.subscribe("two") == (0x80 if version < 5 else 0x97)
    assert client.subscribe("one", qos=1) == 1


@clause("3.1.1 MQTT-3.8.4-4", "5.0 MQTT-3.8.4-5")
@VERSIONS
def test_same_filter_twice_in_one_subscribe_counts_as_two(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send(f"82 L 0001 {'' if version < 5 else '00'} s:t 02 s:t 00")
    assert client.expect(Suback).reasons == [2, 0]
    wire.connect("b").publish("t", b"x", qos=2)
    assert client.expect(Publish).qos == 0


@clause("3.1.1 MQTT-3.8.4-3", "5.0 MQTT-3.8.4-3")
@pytest.mark.parametrize("filter", ["t", "t/+", "#"])
@VERSIONS
def test_subscribing_again_replaces_the_subscription(wire: Wire, version: int, filter: str) -> None:
    client = wire.connect("a", version)
    topic = "t" if filter == "t" else "t/x"
    publisher = wire.connect("b")
    for qos in (2, 0, 1):
        client.subscribe(filter, qos=qos)
        publisher.publish(topic, b"x", qos=2)
        message = client.expect(Publish)
        assert message.qos == qos
        client.finish(message)


@clause("3.1.1 MQTT-3.8.4-3", "5.0 MQTT-3.8.4-4")
@VERSIONS
def test_subscribing_again_loses_nothing_that_is_under_way(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100, receive_maximum=1)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b")
    for number in range(3):
        publisher.publish("t", b"%d" % number, qos=1)
    client.subscribe("t", qos=1)
    publisher.publish("t", b"3", qos=1)
    payloads = []
    while messages := client.messages():
        payloads += [message.payload for message in messages]
        for message in messages:
            client.finish(message)
    assert payloads == [b"0", b"1", b"2", b"3"]


@clause("3.1.1 MQTT-3.8.4-6", "5.0 MQTT-3.8.4-8")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
@VERSIONS
def test_message_is_delivered_at_the_lower_qos(wire: Wire, version: int, published: int, granted: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=granted)
    wire.connect("b").publish("t", b"x", qos=published)
    assert client.expect(Publish).qos == min(published, granted)


@clause("5.0 MQTT-3.8.3-3")
@pytest.mark.parametrize("filter", ["t", "+", "#"])
def test_no_local_keeps_a_clients_own_messages_from_it(wire: Wire, filter: str) -> None:
    client = wire.connect("a")
    client.subscribe(filter, no_local=True)
    client.publish("t", b"own")
    wire.connect("b").publish("t", b"other")
    assert client.payloads() == [b"other"]


@clause("5.0 MQTT-3.8.3-3")
def test_without_no_local_a_client_gets_its_own_messages(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("t")
    client.publish("t", b"own")
    assert client.payloads() == [b"own"]


@clause("5.0 MQTT-3.8.3-3")
def test_no_local_counts_by_client_id_across_connections(wire: Wire) -> None:
    client = wire.connect("a", session_expiry_interval=100)
    client.subscribe("t", qos=1, no_local=True)
    client.publish("t", b"own", qos=1)
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100)
    client.publish("t", b"own again", qos=1, packet_id=9)
    assert all(not isinstance(packet, Publish) for packet in client.receive())


@clause("5.0 MQTT-3.8.3-3", "5.0 MQTT-3.3.4-2", "5.0 MQTT-3.3.4-4")
def test_own_message_reaches_only_the_overlapping_subscription_without_no_local(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("t", qos=2, no_local=True, identifier=1)
    client.subscribe("+", qos=0, identifier=2)
    client.publish("t", b"own")
    message = client.expect(Publish)
    assert (message.qos, message.properties) == (0, {"subscription_identifier": [2]})
    client.publish("t", b"own", qos=1, packet_id=77)
    (message,) = [packet for packet in client.receive() if isinstance(packet, Publish)]
    assert (message.qos, message.properties) == (0, {"subscription_identifier": [2]})


@clause("5.0 MQTT-3.9.2-1", "5.0 MQTT-3.9.2-2", "5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("size", SMALL_SIZES)
def test_suback_leaves_its_reason_string_out_where_it_does_not_fit(wire: Wire, size: int) -> None:
    client = wire.connect("a", maximum_packet_size=size)
    client.send("82 L 0001 00 s:b/#/c 00")
    data = client.receive_bytes()
    assert data[0] == 0x90
    assert data[-1] == 0x8F
    assert len(data) <= size
