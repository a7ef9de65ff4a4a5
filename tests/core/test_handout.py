"""Many retained messages for one subscription: all of them arrive, and nobody else waits for that."""

from tidings.broker.codec.packets import Publish, Subscribe, SubscribeFilter, Unsubscribe
from tidings.broker.core.handout import SLICE
from tidings.broker.core.message import Message

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
