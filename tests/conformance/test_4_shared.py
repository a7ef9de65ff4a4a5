"""Chapter 4.8.2: shared subscriptions."""

import pytest

from tidings.broker.codec.packets import Puback, Publish, Pubrec, Pubrel, Suback

from .wire import Peer, Wire

clause = pytest.mark.clause


@pytest.fixture
def publisher(wire: Wire) -> Peer:
    return wire.connect("publisher", keep_alive=0)


@clause("5.0 MQTT-4.8.2-1", "5.0 MQTT-4.8.2-2")
@pytest.mark.parametrize(
    "filter", ["$share/g/t", "$share/g/t/#", "$share/g//t", "$share/g/+", "$share/$/t", "$share/g/#"]
)
def test_shared_subscription_is_granted(wire: Wire, filter: str) -> None:
    assert wire.connect("a").subscribe(filter, qos=1) == 1


@clause("5.0 MQTT-4.8.2-1", "5.0 MQTT-4.8.2-2")
@pytest.mark.parametrize(
    "filter",
    [
        "$share",
        "$share/",
        "$share/g",
        "$share/g/",
        "$share//t",
        "$share/+/t",
        "$share/#/t",
        "$share/g+/t",
        "$share/g/#/t",
    ],
)
def test_illegal_shared_subscription_is_refused(wire: Wire, filter: str) -> None:
    client = wire.connect("a")
    client.send(f"82 L 0001 00 s:{filter} 00")
    if client.closed:
        client.assert_dropped(0x81, 0x82, 0x8F)
    else:
        assert client.expect(Suback).reasons == [0x8F]


@clause("5.0 MQTT-4.8.2-1", "5.0 MQTT-3.3.2-3")
def test_each_message_goes_to_one_member_of_each_group_and_to_every_other_subscriber(
    wire: Wire, publisher: Peer
) -> None:
    groups = {name: [wire.connect(f"{name}{number}") for number in range(3)] for name in ("g", "h")}
    for name, members in groups.items():
        for member in members:
            member.subscribe(f"$share/{name}/t/+")
    plain = wire.connect("plain")
    plain.subscribe("t/+")
    sent = [b"%d" % number for number in range(30)]
    for payload in sent:
        publisher.publish("t/x", payload)
    assert plain.payloads() == sent
    for members in groups.values():
        received = [member.payloads() for member in members]
        assert all(received)
        assert sorted((payload for payloads in received for payload in payloads), key=int) == sent


@clause("5.0 MQTT-4.8.2-3", "5.0 MQTT-3.8.4-8")
@pytest.mark.parametrize("published", [0, 1, 2])
def test_message_has_at_most_the_qos_granted_to_the_member_that_gets_it(
    wire: Wire, publisher: Peer, published: int
) -> None:
    members = {qos: wire.connect(f"qos {qos}") for qos in (0, 1, 2)}
    for qos, member in members.items():
        member.subscribe("$share/g/t", qos=qos)
    for _ in range(12):
        publisher.publish("t", b"x", qos=published)
    received = {qos: [message.qos for message in member.messages()] for qos, member in members.items()}
    assert sum(map(len, received.values())) == 12
    assert all(set(seen) <= {min(qos, published)} for qos, seen in received.items())


@clause("5.0 MQTT-4.8.2-4")
def test_qos_2_delivery_broken_off_is_completed_with_the_same_member(wire: Wire, publisher: Peer) -> None:
    one = wire.connect("one", session_expiry_interval=1000)
    one.subscribe("$share/g/t", qos=2)
    publisher.publish("t", b"x", qos=2)
    packet_id = one.expect(Publish).packet_id
    two = wire.connect("two")
    two.subscribe("$share/g/t", qos=2)
    one.drop()
    assert two.receive() == []
    one = wire.connect("one", clean_start=False, session_expiry_interval=1000)
    message = one.expect(Publish)
    assert (message.payload, message.packet_id, message.dup) == (b"x", packet_id, True)
    one.send(Pubrec(packet_id))
    assert one.receive() == [Pubrel(packet_id)]


@clause("5.0 MQTT-4.8.2-4")
def test_qos_2_delivery_broken_off_after_pubrec_is_completed_with_the_same_member(wire: Wire, publisher: Peer) -> None:
    one = wire.connect("one", session_expiry_interval=1000)
    one.subscribe("$share/g/t", qos=2)
    publisher.publish("t", b"x", qos=2)
    packet_id = one.expect(Publish).packet_id
    one.send(Pubrec(packet_id))
    two = wire.connect("two")
    two.subscribe("$share/g/t", qos=2)
    one.drop()
    one = wire.connect("one", clean_start=False, session_expiry_interval=1000)
    assert one.receive() == [Pubrel(packet_id)]
    assert two.receive() == []


@clause("5.0 MQTT-4.8.2-5")
@pytest.mark.parametrize("how", ["expiry", "clean start"])
def test_qos_2_delivery_of_a_session_that_ended_goes_to_nobody_else(wire: Wire, publisher: Peer, how: str) -> None:
    one = wire.connect("one", session_expiry_interval=10)
    one.subscribe("$share/g/t", qos=2)
    publisher.publish("t", b"x", qos=2)
    one.expect(Publish)
    two = wire.connect("two", keep_alive=0)
    two.subscribe("$share/g/t", qos=2)
    one.drop()
    if how == "expiry":
        wire.advance(11)
    else:
        assert wire.connect("one", clean_start=True).receive() == []
    assert two.receive() == []


@clause("5.0 MQTT-4.8.2-6", "5.0 MQTT-4.4.0-2")
@pytest.mark.parametrize(("qos", "kind"), [(1, Puback), (2, Pubrec)])
def test_message_that_a_member_refuses_goes_to_nobody_else(
    wire: Wire, publisher: Peer, qos: int, kind: type[Puback] | type[Pubrec]
) -> None:
    one = wire.connect("one", session_expiry_interval=1000)
    one.subscribe("$share/g/t", qos=2)
    publisher.publish("t", b"x", qos=qos)
    two = wire.connect("two")
    two.subscribe("$share/g/t", qos=2)
    one.send(kind(one.expect(Publish).packet_id, 0x83))
    assert two.receive() == []
    one.drop()
    assert two.receive() == []


@clause("5.0 MQTT-3.3.1-9", "5.0 MQTT-4.8.2-1")
def test_shared_subscription_is_sent_no_retained_messages(wire: Wire, publisher: Peer) -> None:
    publisher.publish("t", b"kept", retain=True)
    client = wire.connect("a")
    client.subscribe("$share/g/t")
    assert client.receive() == []


@clause("5.0 MQTT-3.3.4-3")
def test_message_to_a_member_carries_its_own_subscription_identifier(wire: Wire, publisher: Peer) -> None:
    members = {number: wire.connect(f"member {number}") for number in (1, 2)}
    for number, member in members.items():
        member.subscribe("$share/g/t", identifier=number)
    for _ in range(4):
        publisher.publish("t", b"x")
    for number, member in members.items():
        assert {tuple(m.properties["subscription_identifier"]) for m in member.messages()} <= {(number,)}


@clause("5.0 MQTT-4.5.0-1", "5.0 MQTT-3.3.4-9")
def test_member_with_room_is_preferred_to_one_whose_window_is_full(wire: Wire, publisher: Peer) -> None:
    full = wire.connect("full", receive_maximum=1)
    free = wire.connect("free")
    for member in (full, free):
        member.subscribe("$share/g/t", qos=1)
    for number in range(10):
        publisher.publish("t", b"%d" % number, qos=1)
    assert len(full.messages()) == 1
    assert len(free.messages()) == 9


@clause("5.0 MQTT-4.5.0-1")
def test_unacknowledged_qos_1_message_of_a_member_that_leaves_goes_to_another(wire: Wire, publisher: Peer) -> None:
    one = wire.connect("one")
    one.subscribe("$share/g/t", qos=1)
    publisher.publish("t", b"x", qos=1)
    one.expect(Publish)
    two = wire.connect("two")
    two.subscribe("$share/g/t", qos=1)
    one.drop()
    assert two.payloads() == [b"x"]


@clause("5.0 MQTT-3.3.4-3", "5.0 MQTT-3.3.4-5")
def test_copies_for_a_shared_and_a_plain_subscription_carry_each_its_own_identifier(
    wire: Wire, publisher: Peer
) -> None:
    client = wire.connect("a")
    client.subscribe("$share/g/t/+", identifier=1)
    client.subscribe("$share/h/+/x", identifier=2)
    client.subscribe("t/x", identifier=3)
    client.subscribe("#", identifier=4)
    publisher.publish("t/x", b"1")
    copies = [sorted(each.properties["subscription_identifier"]) for each in client.messages()]
    assert sorted(copies) == [[1], [2], [3, 4]]
