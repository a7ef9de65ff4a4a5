"""A client for which too much waits for too long is cut off; nobody else is, and a durable session stays."""

import pytest

from tidings.broker.codec.packets import Disconnect, Puback, Publish
from tidings.broker.core.ports import Restored
from tidings.broker.core.session import SessionRecord
from tidings.broker.core.topics import Grant

from .world import KIB, LIMIT_BYTES, LIMIT_S, OVER, Client, World


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("expiry_s", [0, 60])
def test_who_stays_over_the_limit_for_too_long_is_cut_off_and_keeps_a_durable_session(
    expiry_s: int, version: int
) -> None:
    world = World()
    slow, light = Client(world, "slow", expiry_s, version), Client(world, "light")
    for client in (slow, light):
        client.subscribe(client.connection.client_id, 1)
        client.freeze()
    world.publish("light", OVER - 10)
    world.publish("slow", OVER)
    world.wait_until(LIMIT_S - 0.1)
    assert not slow.gone
    world.wait_until(LIMIT_S)
    assert slow.gone
    assert not light.gone
    goodbye = slow.outbox.packets()
    if version == 5:
        assert isinstance(goodbye[-1], Disconnect)
        assert goodbye[-1].reason == 0x97
        assert "20000 bytes waited" in goodbye[-1].properties["reason_string"]
    else:
        assert goodbye == []
    session = world.engine.sessions.get("slow")
    assert (session is not None) == bool(expiry_s)
    assert session is None or session.cut_off == {0x97: 1}
    assert world.engine.stats.cut_off == {0x97: 1}


def test_who_gets_below_the_limit_for_a_moment_has_all_its_time_again() -> None:
    world = World()
    slow = Client(world, "slow")
    slow.subscribe("#")
    slow.freeze()
    world.publish("t", OVER)
    world.wait_until(9)
    slow.catch_up()
    slow.freeze()
    world.publish("t", OVER)
    world.wait_until(18)
    assert not slow.gone
    world.wait_until(19)
    assert slow.gone


def test_the_time_of_each_begins_when_it_goes_over_the_limit() -> None:
    world = World()
    clients = [Client(world, name) for name in "abc"]
    for second, client in enumerate(clients):
        client.subscribe(client.connection.client_id)
        client.freeze()
        world.wait_until(second)
        world.publish(client.connection.client_id, OVER)
    clients[0].catch_up()
    world.wait_until(10.5)
    assert [client.gone for client in clients] == [False, False, False]
    world.wait_until(11)
    assert [client.gone for client in clients] == [False, True, False]
    world.wait_until(12)
    assert [client.gone for client in clients] == [False, True, True]


@pytest.mark.parametrize("back_at", [9.5, 100])
def test_who_is_away_is_not_too_slow_and_begins_anew_when_it_is_back(back_at: float) -> None:
    world = World()
    first = Client(world, "c", 3600)
    first.subscribe("#", 1)
    first.freeze()
    world.publish("t", OVER)
    world.publisher.send(*(Publish("t", KIB, 1, packet_id=number) for number in range(1, OVER + 1)))
    world.wait_until(9)
    world.engine.disconnected(first.connection, world.now)
    world.wait_until(back_at)
    again = Client(world, "c", 3600)  # nothing but its coming says that much waits
    world.wait_until(back_at + 9)
    assert not again.gone
    world.wait_until(back_at + 10)
    assert again.gone


def test_what_is_in_flight_and_what_is_under_way_count_as_waiting() -> None:
    world = World()
    slow, blocked = Client(world, "slow"), Client(world, "blocked")
    slow.subscribe("t", 1)
    world.publisher.send(*(Publish("t", KIB, 1, packet_id=number) for number in range(1, OVER + 1)))
    assert len(world.engine.sessions["slow"].window.inflight) == 5
    blocked.connection.weigh(LIMIT_BYTES + 1)
    world.wait_until(LIMIT_S)
    assert slow.gone
    assert blocked.gone


def test_who_took_it_all_since_the_last_look_is_not_cut_off() -> None:
    world = World()
    client = Client(world, "c")
    client.connection.weigh(LIMIT_BYTES + 1)
    world.wait_until(1)
    world.engine.budget.recount = lambda: client.connection.weigh(0)  # its socket took what there was
    world.wait_until(60)
    assert not client.gone


def test_what_only_the_store_has_does_not_count() -> None:
    world = World()
    record = SessionRecord("c", 3600, None, False, {"t": Grant(1)}, None, None, 0, 100)
    world.engine.restore([Restored(record, 100, 1_000_000, [], set(), 0)], [], 0.0)
    client = Client(world, "c", 3600)
    assert world.engine.sessions["c"].window.queued == 100
    world.wait_until(60)
    assert not client.gone


def test_without_a_limit_a_slow_client_stays_for_ever() -> None:
    world = World({"soft_limit_s": 0})
    slow = Client(world, "slow")
    slow.subscribe("#")
    slow.freeze()
    world.publish("t", OVER)
    world.wait_until(1e6)
    assert not slow.gone


@pytest.mark.parametrize(("change", "until"), [({"soft_limit_s": 5}, 5), ({"soft_limit_bytes": 50_000}, None)])
def test_a_limit_that_changes_holds_for_those_that_are_over_it(change: dict[str, int], until: float | None) -> None:
    world = World()
    slow = Client(world, "slow")
    slow.subscribe("#")
    slow.freeze()
    world.publish("t", OVER)
    world.wait_until(3)
    world.engine.budget.soft_limit.use(world.engine.config.model_copy(update=change))
    if until is None:
        world.wait_until(60)
        assert not slow.gone
    else:
        world.wait_until(until - 0.1)
        assert not slow.gone
        world.wait_until(until)
        assert slow.gone


def test_a_client_that_acknowledges_in_time_is_never_cut_off() -> None:
    world = World()
    client = Client(world, "c")
    client.subscribe("t", 1)
    for second in range(60):
        world.wait_until(second)
        world.publisher.send(*(Publish("t", KIB, 1, packet_id=number) for number in range(1, OVER + 1)))
        while packets := [packet for packet in client.outbox.packets() if isinstance(packet, Publish)]:
            client.send(*(Puback(packet.packet_id) for packet in packets))
    assert not client.gone
