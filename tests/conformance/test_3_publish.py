"""Chapter 3.3: PUBLISH: flags, topic names, answers, overlapping subscriptions, flow control."""

from collections.abc import Callable

import pytest

from tidings.broker.codec.packets import Pingresp, Puback, Publish, Pubrec, Pubrel, Suback, Unsuback

from .wire import VERSIONS, Wire

clause = pytest.mark.clause


@clause("3.1.1 MQTT-3.3.1-1", "5.0 MQTT-3.3.1-1", "3.1.1 MQTT-3.3.1-3", "5.0 MQTT-3.3.1-3")
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_dup_is_set_on_redelivery_and_only_then(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    client.subscribe("t", qos=2)
    wire.connect("b", version).publish("t", b"x", qos=qos)
    assert client.expect(Publish).dup is False
    for _ in range(2):
        client.drop()
        client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
        assert client.expect(Publish).dup is True


@clause("3.1.1 MQTT-3.3.1-3", "5.0 MQTT-3.3.1-3", "3.1.1 MQTT-3.3.1-2", "5.0 MQTT-3.3.1-2")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [1, 2])
@VERSIONS
def test_dup_of_the_publisher_is_not_passed_on(wire: Wire, version: int, qos: int, granted: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=granted)
    wire.connect("b", version).publish("t", b"x", qos=qos, dup=True)
    message = client.expect(Publish)
    assert (message.dup, message.qos) == (False, min(qos, granted))


@clause("3.1.1 MQTT-3.3.1-2", "5.0 MQTT-3.3.1-2", "3.1.1 MQTT-4.3.1-1", "5.0 MQTT-4.3.1-1")
@VERSIONS
def test_qos_0_messages_have_dup_0(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t", qos=2)
    wire.connect("b", version).publish("t", b"x", qos=0)
    message = client.expect(Publish)
    assert (message.dup, message.qos, message.packet_id) == (False, 0, 0)


@clause("3.1.1 MQTT-3.3.1-4", "5.0 MQTT-3.3.1-4", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize("first", ["36", "37", "3e", "3f"])
@VERSIONS
def test_qos_3_closes_the_connection(wire: Wire, version: int, first: str) -> None:
    client = wire.connect("a", version)
    client.send(f"{first} L s:t 0001 {'' if version < 5 else '00'} 78")
    client.assert_dropped(0x81)


@clause("3.1.1 MQTT-3.3.2-2", "3.1.1 MQTT-4.7.1-1", "5.0 MQTT-3.3.2-2", "5.0 MQTT-4.7.0-1")
@pytest.mark.parametrize("topic", ["+", "#", "a/+", "a/#", "+/a", "a/+/b", "a+", "a#b", "/#"])
@pytest.mark.parametrize("qos", ["30", "32", "34"])
@VERSIONS
def test_wildcard_in_a_topic_name_closes_the_connection(wire: Wire, version: int, qos: str, topic: str) -> None:
    client = wire.connect("a", version)
    packet_id = "" if qos == "30" else "0001"
    client.send(f"{qos} L s:{topic} {packet_id} {'' if version < 5 else '00'} 78")
    client.assert_dropped(0x81, 0x82, 0x90)


@clause("3.1.1 MQTT-4.7.3-1", "5.0 MQTT-4.7.3-1", "3.1.1 MQTT-3.3.2-1", "5.0 MQTT-3.3.2-1")
@pytest.mark.parametrize(
    ("version", "packet"),
    [
        pytest.param(4, "30 L 0000 78", id="3.1.1 empty"),
        pytest.param(5, "30 L 0000 00 78", id="5.0 empty without alias"),
        pytest.param(4, "30 00", id="3.1.1 missing"),
        pytest.param(5, "30 00", id="5.0 missing"),
        pytest.param(4, "30 L 0005 61 62", id="3.1.1 longer than the packet"),
        pytest.param(5, "30 L 0005 61 62", id="5.0 longer than the packet"),
    ],
)
def test_publish_without_a_topic_name_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82, 0x90)


@clause("3.1.1 MQTT-3.3.2-3", "5.0 MQTT-3.3.2-3", "3.1.1 MQTT-4.5.0-1", "5.0 MQTT-4.5.0-1")
@VERSIONS
def test_message_goes_to_matching_subscriptions_with_its_topic(wire: Wire, version: int) -> None:
    client, other = wire.connect("a", version), wire.connect("b", version)
    client.subscribe("x/+/z")
    other.subscribe("x/y")
    wire.connect("c").publish("x/y/z", b"1")
    message = client.expect(Publish)
    assert (message.topic, message.payload) == ("x/y/z", b"1")
    assert other.receive() == []


@clause("3.1.1 MQTT-3.3.4-1", "5.0 MQTT-3.3.4-1", "5.0 MQTT-4.3.2-4", "5.0 MQTT-4.3.3-8")
@VERSIONS
def test_publish_is_answered_as_its_qos_asks(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    wire.connect("b").subscribe("t")
    client.publish("t", b"0")
    assert client.receive() == []
    client.publish("t", b"1", qos=1, packet_id=7)
    assert client.receive() == [Puback(7)]
    client.publish("t", b"2", qos=2, packet_id=8)
    assert client.receive() == [Pubrec(8)]


@clause("3.1.1 MQTT-3.3.5-1", "5.0 MQTT-3.3.4-2")
@pytest.mark.parametrize("published", [0, 1, 2])
@VERSIONS
def test_overlapping_subscriptions_deliver_at_the_highest_qos(wire: Wire, version: int, published: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t/+", qos=0)
    client.subscribe("t/x", qos=2)
    client.subscribe("#", qos=1)
    wire.connect("b").publish("t/x", b"1", qos=published)
    assert max(message.qos for message in client.messages()) == published


@clause("5.0 MQTT-3.3.4-3", "5.0 MQTT-3.3.4-4")
def test_one_copy_carries_the_identifiers_of_all_matching_subscriptions(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("t/+", identifier=1)
    client.subscribe("t/x", identifier=268_435_455)
    client.subscribe("#")
    client.subscribe("other", identifier=4)
    wire.connect("b").publish("t/x", b"1")
    assert sorted(client.expect(Publish).properties["subscription_identifier"]) == [1, 268_435_455]


@clause("5.0 MQTT-3.3.4-3")
def test_identifiers_stay_with_their_subscriptions_across_connections(wire: Wire) -> None:
    client = wire.connect("a", session_expiry_interval=100)
    client.subscribe("t", qos=1, identifier=9)
    client.drop()
    wire.connect("b").publish("t", b"1", qos=1)
    client = wire.connect("a", clean_start=False, session_expiry_interval=100)
    assert client.expect(Publish).properties["subscription_identifier"] == [9]


@clause("5.0 MQTT-3.3.4-3", "5.0 MQTT-3.8.4-3")
def test_subscribing_again_replaces_the_identifier(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("t", identifier=1)
    client.subscribe("t", identifier=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1")
    assert client.expect(Publish).properties["subscription_identifier"] == [2]
    client.subscribe("t")
    publisher.publish("t", b"1")
    assert "subscription_identifier" not in client.expect(Publish).properties


@clause("5.0 MQTT-3.3.4-6")
def test_subscription_identifier_from_a_client_is_a_protocol_error(wire: Wire) -> None:
    client = wire.connect("a")
    client.send("30 L s:t P 0b 01 . 78")
    client.assert_dropped(0x82)


@clause("5.0 MQTT-3.3.4-7")
@pytest.mark.parametrize("quota", [1, 2, 10])
def test_client_beyond_the_servers_receive_maximum_is_closed(wire_with: Callable[..., Wire], quota: int) -> None:
    client = wire_with(receive_maximum=quota).connect("a")
    assert client.connack.properties["receive_maximum"] == quota
    for number in range(quota):
        client.publish("t", b"x", qos=2, packet_id=number + 1)
    assert not client.closed
    assert len(client.receive()) == quota
    client.publish("t", b"x", qos=2, packet_id=quota + 1)
    client.assert_dropped(0x93)


@clause("5.0 MQTT-3.3.4-7")
def test_finished_messages_free_the_servers_receive_maximum(wire_with: Callable[..., Wire]) -> None:
    client = wire_with(receive_maximum=2).connect("a")
    for number in range(1, 20):
        client.publish("t", b"x", qos=2, packet_id=number)
        client.send(Pubrel(number))
        client.publish("t", b"x", qos=1, packet_id=number + 100)
    assert not client.closed


@clause("5.0 MQTT-3.3.4-9", "5.0 MQTT-4.9.0-1", "5.0 MQTT-4.9.0-2")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("quota", [1, 2, 5])
def test_server_keeps_to_the_clients_receive_maximum(wire: Wire, quota: int, qos: int) -> None:
    client = wire.connect("a", receive_maximum=quota)
    client.subscribe("t", qos=qos)
    publisher = wire.connect("b")
    for number in range(12):
        publisher.publish("t", b"%d" % number, qos=qos)
    received: list[bytes] = []
    waiting = client.messages()
    while waiting:
        assert len(waiting) <= quota
        message = waiting.pop(0)
        received.append(message.payload)
        client.finish(message)
        waiting += client.messages()
    assert received == [b"%d" % number for number in range(12)]


@clause("5.0 MQTT-3.3.4-9", "5.0 MQTT-4.9.0-2")
def test_pubrec_alone_does_not_free_the_quota(wire: Wire) -> None:
    client = wire.connect("a", receive_maximum=1)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=2)
    publisher.publish("t", b"2", qos=2)
    first = client.expect(Publish)
    client.send(Pubrec(first.packet_id))
    assert client.receive() == [Pubrel(first.packet_id)]
    client.send(f"70 02 {first.packet_id:04x}")
    assert client.expect(Publish).payload == b"2"


@clause("5.0 MQTT-3.3.4-9", "5.0 MQTT-4.9.0-2")
@pytest.mark.parametrize(("qos", "first"), [(1, "40"), (2, "50")], ids=["PUBACK", "PUBREC"])
def test_refusal_frees_the_quota(wire: Wire, qos: int, first: str) -> None:
    client = wire.connect("a", receive_maximum=1)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=qos)
    publisher.publish("t", b"2", qos=qos)
    client.send(f"{first} 03 {client.expect(Publish).packet_id:04x} 83")
    assert client.expect(Publish).payload == b"2"


@clause("5.0 MQTT-4.9.0-1", "5.0 MQTT-3.3.4-9")
def test_receive_maximum_starts_anew_with_each_connection(wire: Wire) -> None:
    client = wire.connect("a", session_expiry_interval=100, receive_maximum=2)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b")
    for number in range(5):
        publisher.publish("t", b"%d" % number, qos=1)
    assert client.payloads() == [b"0", b"1"]
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100, receive_maximum=3)
    assert client.payloads() == [b"0", b"1", b"2"]
    client.drop()
    client = wire.connect("a", clean_start=False, session_expiry_interval=100, receive_maximum=1)
    assert client.payloads() == [b"0"]


@clause("5.0 MQTT-3.3.4-10", "5.0 MQTT-4.9.0-3")
def test_other_packets_are_answered_while_the_quota_is_used_up(wire: Wire) -> None:
    client = wire.connect("a", receive_maximum=1)
    client.subscribe("t", qos=1)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=1)
    publisher.publish("t", b"2", qos=1)
    client.expect(Publish)
    client.send("c0 00", "82 L 0031 00 s:u 00", "a2 L 0032 00 s:u", "32 L s:v 0033 00 78", "34 L s:v 0034 00 78")
    kinds = [type(packet) for packet in client.receive()]
    assert set(kinds) == {Pingresp, Suback, Unsuback, Puback, Pubrec}


@clause("5.0 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-25")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_message_too_large_for_the_client_is_skipped_as_if_delivered(wire: Wire, qos: int) -> None:
    client = wire.connect("a", maximum_packet_size=40, receive_maximum=1)
    client.subscribe("t", qos=qos)
    publisher = wire.connect("b")
    publisher.publish("t", bytes(100), qos=qos)
    publisher.publish("t", b"small", qos=qos)
    assert client.expect(Publish).payload == b"small"


@clause("5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("qos", [0, 1])
def test_message_of_exactly_the_maximum_packet_size_is_sent(wire: Wire, qos: int) -> None:
    client = wire.connect("a", maximum_packet_size=50)
    client.subscribe("t", qos=qos)
    publisher = wire.connect("b")
    overhead = 2 + 3 + (2 if qos else 0) + 1
    publisher.publish("t", bytes(50 - overhead + 1), qos=qos)
    publisher.publish("t", bytes(50 - overhead), qos=qos)
    assert len(client.receive_bytes()) == 50


@clause("5.0 MQTT-3.1.2-24", "5.0 MQTT-3.1.2-25")
def test_retained_message_too_large_for_the_client_is_not_sent(wire: Wire) -> None:
    wire.connect("b").publish("t", bytes(100), retain=True)
    client = wire.connect("a", maximum_packet_size=40)
    client.subscribe("t")
    assert client.receive() == []


@clause("5.0 MQTT-3.1.2-24")
def test_suback_and_unsuback_keep_to_the_maximum_packet_size(wire: Wire) -> None:
    client = wire.connect("a", maximum_packet_size=40)
    filters = " ".join(f"s:filter/{number} 00" for number in range(60))
    client.send(f"82 L 0001 00 {filters}")
    assert len(client.receive_bytes()) <= 40


@clause("3.1.1 MQTT-3.3.5-2")
@pytest.mark.parametrize("qos", [1, 2])
def test_publish_that_is_not_allowed_is_acknowledged_or_closes(wire: Wire, qos: int) -> None:
    watcher = wire.connect("watcher", 4)
    watcher.subscribe("$SYS/#", qos=2)
    client = wire.connect("a", 4)
    client.publish("$SYS/broker/version", b"mine", qos=qos, packet_id=5)
    assert client.closed or client.receive() == [Puback(5) if qos == 1 else Pubrec(5)]
    assert watcher.receive() == []


@clause("5.0 MQTT-3.4.2-1", "5.0 MQTT-3.5.2-1")
@pytest.mark.parametrize("qos", [1, 2])
def test_publish_that_is_not_allowed_is_answered_with_a_reason(wire: Wire, qos: int) -> None:
    client = wire.connect("a")
    client.publish("$SYS/broker/version", b"mine", qos=qos, packet_id=5)
    assert client.receive() == [Puback(5, 0x87) if qos == 1 else Pubrec(5, 0x87)]
