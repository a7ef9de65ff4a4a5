"""What is counted for each session and each reason, who counts as heaviest, and what ``$SYS`` says of it."""

import json

from tidings.broker.codec.packets import Puback, Publish
from tidings.broker.core.engine import Engine
from tidings.broker.core.ports import PauseReason
from tidings.broker.core.queue import DropReason
from tidings.broker.core.snapshot import numbers

from .world import KIB, Client, World

INTERVAL_S = 10


def heaviest(engine: Engine, now: float = 0.0) -> list[str]:
    return [session.client_id for session in engine.snapshot(now).heaviest]


def test_the_heaviest_are_those_with_most_bytes_queued_in_flight_or_in_the_connection() -> None:
    world = World()
    queued, sent, blocked = (Client(world, name) for name in ("queued", "sent", "blocked"))
    queued.subscribe("q")
    queued.freeze()
    sent.subscribe("s", 1)
    world.publish("q", 2)
    world.publisher.send(*(Publish("s", KIB, 1, packet_id=number) for number in range(1, 5)))
    blocked.connection.weigh(3_000)
    shot = world.engine.snapshot(0.0)
    assert heaviest(world.engine) == ["sent", "blocked", "queued"]
    first, second, third = shot.heaviest
    assert (first.queued_bytes, first.inflight_messages, first.link_bytes) == (0, 4, 0)
    assert first.waiting_bytes == first.inflight_bytes > 4_000
    assert (second.queued_bytes, second.inflight_bytes, second.link_bytes) == (0, 0, 3_000)
    assert (third.queued_messages, third.inflight_bytes, third.link_bytes) == (2, 0, 0)
    assert third.waiting_bytes == third.queued_bytes > 2_000
    sent.send(*(Puback(number) for number in range(2, 6)))
    assert heaviest(world.engine) == ["blocked", "queued"]
    world.engine.disconnected(blocked.connection, 0.0)
    assert heaviest(world.engine) == ["queued"]


def test_ten_are_named_and_the_lightest_are_left_out() -> None:
    world = World()
    for number in range(15):
        client = Client(world, f"c{number}")
        client.connection.weigh(5_000 + number)
    assert heaviest(world.engine) == [f"c{number}" for number in range(14, 4, -1)]


def test_answers_that_are_held_back_count_until_they_are_let_go() -> None:
    world = World({"memory_budget_bytes": 100_000, "soft_limit_s": 0})
    away = Client(world, "away", 60)
    away.subscribe("full", 1)
    world.engine.disconnected(away.connection, 0.0)
    publisher = Client(world, "publisher")
    number = 0
    while not world.engine.budget.pressed:
        number += 1
        publisher.send(Publish("full", KIB, 1, packet_id=number))
    publisher.outbox.packets()
    assert publisher.connection.withheld_bytes == 0
    publisher.send(Publish("full", KIB, 1, packet_id=number + 1))
    assert publisher.outbox.packets() == []
    one_bytes = publisher.connection.withheld_bytes
    assert one_bytes > 4
    publisher.send(Publish("nobody", KIB, 1, packet_id=number + 2))
    assert publisher.connection.withheld_bytes > one_bytes
    world.wait_until(5)
    assert len(publisher.outbox.packets()) == 2
    assert publisher.connection.withheld_bytes == 0


def test_drops_pauses_and_cut_offs_are_counted_for_their_session_alone() -> None:
    world = World({"max_queued_messages": 3, "soft_limit_s": 0})
    slow, other = Client(world, "slow", 60), Client(world, "other")
    for client in (slow, other):
        client.subscribe("t")
    slow.freeze()
    world.publish("t", 5)
    slow.connection.pause(PauseReason.RATE, 0.0)
    slow.connection.pause(None, 0.0)
    slow.connection.pause(PauseReason.RATE, 0.0)
    again = Client(world, "slow", 60)
    again.send(Publish("", properties={"topic_alias": 1_000}))
    mine, theirs = (numbers(world.engine.sessions[name]) for name in ("slow", "other"))
    # QoS 0 is not kept for a client that is away
    assert mine.dropped == {DropReason.QUEUE_FULL: 2, DropReason.OFFLINE: 3}
    assert mine.paused == {PauseReason.RATE: 2}
    assert mine.cut_off == {0x8E: 1, 0x94: 1}, "taken over by itself, then an alias over our maximum"
    assert (theirs.dropped, theirs.paused, theirs.cut_off) == ({}, {}, {})
    assert world.engine.stats.cut_off == mine.cut_off


def test_sys_names_the_heaviest_with_what_happened_to_them() -> None:
    world = World({"sys_interval_s": INTERVAL_S, "max_queued_messages": 3, "soft_limit_s": 0})
    slow = Client(world, 'a/+ "odd" id', 60)
    slow.subscribe("t")
    slow.freeze()
    world.publish("t", 5)
    world.wait_until(INTERVAL_S)
    message = world.engine.retained.get("$SYS/tidings/heaviest")
    assert message is not None
    (told,) = json.loads(message.payload)
    assert told["client_id"] == 'a/+ "odd" id'
    assert (told["connected"], told["queued_messages"], told["dropped"]) == (True, 3, {"queue-full": 2})
    assert told["queued_bytes"] > 3_000
    assert (told["inflight_bytes"], told["link_bytes"], told["stored_bytes"]) == (0, 0, 0)
    assert (told["paused"], told["cut_off"]) == ({}, {})
