"""Many retained messages for one subscription: all of them arrive, and nobody else waits for that."""

import pytest

from tidings.broker.codec.packets import Puback, Publish, Subscribe, SubscribeFilter, Unsubscribe
from tidings.broker.core.handout import LARGE_BYTES, SLICE
from tidings.broker.core.message import Message
from tidings.broker.core.retained import EFFORT

from ..conformance.wire import Peer, Wire

COUNT = 3 * SLICE


def retain(wire: Wire, count: int) -> None:
    for number in range(count):
        assert wire.engine.retained.set(Message(f"t/{number}", b"x", retain=True))


def topics(client: Peer) -> list[str]:
    return [packet.topic for packet in client.receive() if isinstance(packet, Publish)]


def test_they_come_in_slices_and_all_of_them() -> None:
    wire = Wire(max_queued_messages=SLICE, max_inflight=10)
    retain(wire, COUNT)
    client = wire.connect("a", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#")]))
    got = topics(client)
    assert len(got) == SLICE
    for _ in range(COUNT):
        wire.advance(0.03)
        got += topics(client)
    assert sorted(got) == sorted(f"t/{number}" for number in range(COUNT))


def test_large_messages_take_more_of_a_slice() -> None:
    wire = Wire()
    for number in range(SLICE):
        assert wire.engine.retained.set(Message(f"t/{number}", bytes(4 * LARGE_BYTES), retain=True))
    client = wire.connect("a", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#")]))
    turns = [len(topics(client))]
    while sum(turns) < SLICE:
        due = wire.engine.next_deadline()
        assert due is not None
        wire.engine.tick(due)
        turns.append(len(topics(client)))
    assert turns == [SLICE // 5] * 5


def test_many_filters_of_one_subscribe_share_the_slice() -> None:
    wire = Wire()
    retain(wire, SLICE)
    client = wire.connect("a", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#"), SubscribeFilter("t/+"), SubscribeFilter("#")]))
    assert len(topics(client)) == SLICE
    wire.advance(0.03)
    assert len(topics(client)) >= SLICE


def test_what_is_left_ends_with_the_subscription() -> None:
    wire = Wire()
    retain(wire, COUNT)
    client = wire.connect("a", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#")]), Unsubscribe(2, ["t/#"]))
    assert len(topics(client)) == SLICE
    wire.advance(1)
    assert topics(client) == []


def test_a_client_that_does_not_read_is_not_sent_more_than_it_can_queue() -> None:
    wire = Wire(max_queued_messages=SLICE)
    retain(wire, COUNT)
    client = wire.connect("a", 5)
    client.stop_reading()
    client.send(Subscribe(1, [SubscribeFilter("t/#")]))
    for _ in range(50):
        wire.advance(0.03)
    assert not wire.engine.stats.dropped


def payloads(client: Peer, topic: str) -> list[tuple[bytes, bool]]:
    return [
        (packet.payload, packet.retain)
        for packet in client.receive()
        if isinstance(packet, Publish) and packet.topic == topic
    ]


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("place", [0, COUNT - 1])  # among those that are given out at once, or last
def test_nothing_newer_overtakes_a_retained_message(place: int, qos: int) -> None:
    wire = Wire(max_inflight=10)
    retain(wire, COUNT)
    client, publisher = wire.connect("a", 5), wire.connect("p", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#", qos), SubscribeFilter("+/+", qos)]))
    topic = f"t/{place}"
    publisher.send(Publish(topic, b"newer", qos, packet_id=qos), Publish(topic, b"newest", qos, packet_id=2 * qos))
    got: list[tuple[bytes, bool]] = []
    for _ in range(COUNT):
        wire.advance(0.03)
        for packet in client.receive():
            if isinstance(packet, Publish):
                got += [(packet.payload, packet.retain)] if packet.topic == topic else []
                if packet.qos:
                    client.send(Puback(packet.packet_id))
    assert got == [(b"x", True), (b"x", True), (b"newer", False), (b"newest", False)]


def test_what_is_replaced_meanwhile_comes_as_it_is_published() -> None:
    wire = Wire()
    retain(wire, COUNT)
    client, publisher = wire.connect("a", 5), wire.connect("p", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/#")]))
    topic = f"t/{COUNT - 1}"
    publisher.send(Publish(topic, b"newer", retain=True))
    got: list[tuple[bytes, bool]] = []
    for _ in range(10):
        wire.advance(0.03)
        got += payloads(client, topic)
    assert got == [(b"newer", False)]


def test_clients_that_ask_at_the_same_time_share_the_slices_of_a_turn() -> None:
    wire = Wire()
    retain(wire, COUNT)
    clients = [wire.connect(f"c{number}", 5) for number in range(10)]
    for client in clients:
        client.send(Subscribe(1, [SubscribeFilter("t/#")]))
    total = sum(len(topics(client)) for client in clients)
    assert total == SLICE
    while total < 10 * COUNT:
        due = wire.engine.next_deadline()
        assert due is not None
        wire.engine.tick(due)
        turn = [len(topics(client)) for client in clients]
        assert 0 < sum(turn) <= SLICE
        total += sum(turn)


def test_a_search_in_vain_does_not_hold_up_the_turn() -> None:
    wire = Wire()
    retain(wire, EFFORT * SLICE * 3)
    assert wire.engine.retained.set(Message("t/7/found", b"x", retain=True))
    client = wire.connect("a", 5)
    client.send(Subscribe(1, [SubscribeFilter("t/+/+")]))
    turns = 0
    while not topics(client):
        wire.advance(0.01)
        turns += 1
        assert turns < 10
    assert turns == 0  # it is among the first
    assert wire.engine.next_deadline() is not None
    client.send(Subscribe(2, [SubscribeFilter("t/+/none")]))
    for _ in range(10):
        wire.advance(0.01)
    assert topics(client) == []
    assert wire.engine.sessions["a"].window.lookups is None
