"""Chapters 3.10 and 3.11: UNSUBSCRIBE and UNSUBACK."""

import pytest

from tidings.broker.codec.packets import Puback, Pubrec, Pubrel, Suback, Unsuback

from .wire import SMALL_SIZES, VERSIONS, Wire, frame

clause = pytest.mark.clause


@clause("3.1.1 MQTT-3.10.1-1", "5.0 MQTT-3.10.1-1")
@pytest.mark.parametrize("first", ["a0", "a1", "a3", "a4", "a6", "aa", "af"])
@VERSIONS
def test_unsubscribe_with_other_flags_than_0010_closes_the_connection(wire: Wire, version: int, first: str) -> None:
    client = wire.connect("a", version)
    client.send(f"{first} L 0001 {'' if version < 5 else '00'} s:t")
    client.assert_dropped(0x81)


@clause("3.1.1 MQTT-3.10.3-2", "5.0 MQTT-3.10.3-2", "3.1.1 MQTT-4.8.0-1", "5.0 MQTT-4.13.1-1")
@pytest.mark.parametrize(
    ("version", "packet"),
    [
        pytest.param(4, "a2 02 0001", id="3.1.1 no filter"),
        pytest.param(5, "a2 03 0001 00", id="5.0 no filter"),
        pytest.param(4, "a2 L 0001 0004 61", id="3.1.1 filter cut short"),
        pytest.param(5, "a2 L 0001 00 0004 61", id="5.0 filter cut short"),
        pytest.param(5, "a2 L 0001 P 0b 01 . s:t", id="5.0 subscription identifier"),
    ],
)
def test_malformed_unsubscribe_closes_the_connection(wire: Wire, version: int, packet: str) -> None:
    client = wire.connect("a", version)
    client.send(packet)
    client.assert_dropped(0x81, 0x82, 0x8F)


@clause("3.1.1 MQTT-3.10.4-4", "3.1.1 MQTT-3.10.4-5", "5.0 MQTT-3.10.4-4", "5.0 MQTT-3.10.4-5")
@VERSIONS
def test_unsubscribe_is_answered_whether_it_deletes_anything_or_not(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("t")
    empty = "" if version < 5 else "00"
    client.send(f"a2 L 0007 {empty} s:t")
    assert client.receive_bytes() == frame("b0 02 0007" if version < 5 else "b0 04 0007 00 00")
    client.send(f"a2 L 0008 {empty} s:t")
    assert client.receive_bytes() == frame("b0 02 0008" if version < 5 else "b0 04 0008 00 11")


@clause("3.1.1 MQTT-3.10.4-1", "5.0 MQTT-3.10.4-1")
@VERSIONS
def test_only_the_filter_that_is_equal_in_every_character_is_deleted(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("a/+")
    client.unsubscribe("a/b", "a/#", "a/+/", "A/+", "a/", "+/+", "/a/+", "a/+ ")
    publisher = wire.connect("b")
    publisher.publish("a/b", b"x")
    assert client.payloads() == [b"x"]
    client.unsubscribe("a/+")
    publisher.publish("a/b", b"x")
    assert client.receive() == []


@clause("3.1.1 MQTT-3.10.4-1", "5.0 MQTT-3.10.4-1", "3.1.1 MQTT-3.10.4-2", "5.0 MQTT-3.10.4-2")
@VERSIONS
def test_overlapping_subscriptions_stay(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    for filter in ("t", "+", "#"):
        client.subscribe(filter)
    publisher = wire.connect("b")
    for filter in ("t", "+"):
        client.unsubscribe(filter)
        publisher.publish("t", b"x")
        assert client.payloads() == [b"x"]
    client.unsubscribe("#")
    publisher.publish("t", b"x")
    assert client.receive() == []


@clause("3.1.1 MQTT-3.10.4-2", "5.0 MQTT-3.10.4-2")
@pytest.mark.parametrize("qos", [0, 1, 2])
@VERSIONS
def test_nothing_new_is_delivered_after_unsubscribe(wire: Wire, version: int, qos: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    client.subscribe("t", qos=qos)
    client.unsubscribe("t")
    publisher = wire.connect("b")
    publisher.publish("t", b"x", qos=qos)
    assert client.receive() == []
    client.drop()
    publisher.publish("t", b"x", qos=qos)
    assert wire.connect("a", version, clean_start=False, session_expiry_interval=100).receive() == []


@clause("3.1.1 MQTT-3.10.4-3", "5.0 MQTT-3.10.4-3")
@VERSIONS
def test_delivery_under_way_is_completed_after_unsubscribe(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=1)
    publisher.publish("t", b"2", qos=2)
    one, two = client.messages()
    client.unsubscribe("t")
    client.send(Puback(one.packet_id), Pubrec(two.packet_id))
    assert client.receive() == [Pubrel(two.packet_id)]


@clause("3.1.1 MQTT-3.10.4-3", "5.0 MQTT-3.10.4-3", "3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.4.0-1")
@VERSIONS
def test_delivery_under_way_survives_unsubscribe_and_reconnection(wire: Wire, version: int) -> None:
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    client.subscribe("t", qos=2)
    publisher = wire.connect("b")
    publisher.publish("t", b"1", qos=1)
    publisher.publish("t", b"2", qos=2)
    sent = client.messages()
    client.unsubscribe("t")
    client.drop()
    client = wire.connect("a", version, clean_start=False, session_expiry_interval=100)
    assert [(m.packet_id, m.payload, m.dup) for m in client.messages()] == [
        (message.packet_id, message.payload, True) for message in sent
    ]


@clause("3.1.1 MQTT-3.10.4-6", "5.0 MQTT-3.10.4-6", "5.0 MQTT-3.11.3-1", "5.0 MQTT-3.11.3-2")
@VERSIONS
def test_several_filters_are_answered_once_in_their_order(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("a")
    client.subscribe("c/#")
    client.send(f"a2 L 0009 {'' if version < 5 else '00'} s:a s:b s:c/# s:a")
    assert client.receive() == [Unsuback(9, [] if version < 5 else [0x00, 0x11, 0x00, 0x11])]
    publisher = wire.connect("b")
    publisher.publish("a", b"x")
    publisher.publish("c/d", b"x")
    assert client.receive() == []


@clause("5.0 MQTT-3.11.2-1", "5.0 MQTT-3.11.2-2", "5.0 MQTT-3.1.2-24")
@pytest.mark.parametrize("size", SMALL_SIZES)
def test_unsuback_fits_the_clients_maximum_packet_size(wire: Wire, size: int) -> None:
    client = wire.connect("a", maximum_packet_size=size)
    client.send("a2 L 0001 00 s:nothing")
    data = client.receive_bytes()
    assert data[0] == 0xB0
    assert data[-1] == 0x11
    assert len(data) <= size


@clause("5.0 MQTT-3.10.4-1")
def test_shared_subscription_is_deleted_by_its_full_filter(wire: Wire) -> None:
    client = wire.connect("a")
    client.subscribe("$share/g/t")
    assert client.unsubscribe("t", "$share/h/t", "$share/g/t").reasons == [0x11, 0x11, 0x00]
    wire.connect("b").publish("t", b"x")
    assert client.receive() == []


@clause("3.1.1 MQTT-2.3.1-7", "5.0 MQTT-2.2.1-6")
@VERSIONS
def test_answers_come_in_the_order_of_the_requests(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    empty = "" if version < 5 else "00"
    client.send(f"82 L 0001 {empty} s:t 00", f"a2 L 0002 {empty} s:t", f"82 L 0003 {empty} s:t 00")
    assert [type(packet) for packet in client.receive()] == [Suback, Unsuback, Suback]
