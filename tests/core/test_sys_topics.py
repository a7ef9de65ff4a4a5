"""The numbers that Mosquitto users look for: the topics under $SYS, their values, and the load averages."""

from math import exp

import pytest

from tidings.broker.core.ports import TurnedAway
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.sys_topics import LOAD_MINUTES, Loads

from ..conformance.wire import Peer, Wire

EXPECTED = {
    "version", "uptime", "clients/total", "clients/connected", "clients/active", "clients/disconnected",
    "clients/inactive", "clients/expired", "clients/maximum", "messages/received", "messages/sent", "messages/stored",
    "store/messages/count", "store/messages/bytes", "publish/messages/received", "publish/messages/sent",
    "publish/messages/dropped", "publish/bytes/received", "publish/bytes/sent", "bytes/received", "bytes/sent",
    "retained messages/count", "subscriptions/count",
}  # fmt: skip
EXPECTED_LOADS = {
    f"load/{name}/{minutes}min"
    for name in (
        "messages/received", "messages/sent", "publish/received", "publish/sent", "bytes/received", "bytes/sent",
        "connections",
    )
    for minutes in (1, 5, 15)
}  # fmt: skip


def read(peer: Peer) -> dict[str, str]:
    """What arrived under $SYS/broker, the last value of each topic."""
    prefix = "$SYS/broker/"
    return {each.topic.removeprefix(prefix): each.payload.decode() for each in peer.messages()}


def test_who_was_turned_away_is_counted_by_reason() -> None:
    wire = Wire(sys_interval_s=10, connect_timeout_s=5)
    watcher = wire.connect("watcher", keep_alive=0)
    wire.open()
    wire.open()
    wire.engine.stats.turn_away(TurnedAway.FULL)  # as the transport does
    wire.advance(10)
    watcher.subscribe("$SYS/tidings/turned-away/#")
    values = {each.topic.rpartition("/")[2]: each.payload for each in watcher.messages()}
    assert values == {"no-connect": b"2", "max-connections": b"1"}


def test_the_topics_are_there_with_the_values_of_the_moment() -> None:
    wire = Wire(sys_interval_s=10)
    wire.advance(0)
    watcher = wire.connect("watcher", keep_alive=0)
    away = wire.connect("away", session_expiry_interval=15)
    away.subscribe("t", 1)
    away.drop()
    publisher = wire.connect("p", keep_alive=0)
    publisher.publish("t", b"12345", 1)
    publisher.publish("r", b"123", retain=True)
    publisher.publish("t", b"lost")
    wire.advance(10)
    watcher.subscribe("$SYS/broker/#")
    values = read(watcher)
    assert set(values) == EXPECTED | EXPECTED_LOADS
    assert values["version"].startswith("tidings version ")
    assert values["uptime"] == "10 seconds"
    wanted = {
        "clients/total": 3, "clients/connected": 2, "clients/active": 2, "clients/disconnected": 1,
        "clients/inactive": 1, "clients/expired": 0, "clients/maximum": 3, "publish/messages/received": 3,
        "publish/messages/sent": 0, "publish/messages/dropped": 1, "publish/bytes/received": 12,
        "publish/bytes/sent": 0, "subscriptions/count": 1,
    }  # fmt: skip
    assert {name: int(values[name]) for name in wanted} == wanted
    assert int(values["messages/received"]) == 3 + 1 + 3  # CONNECT, SUBSCRIBE, PUBLISH
    assert int(values["messages/sent"]) == 3 + 1 + 1  # CONNACK, SUBACK, PUBACK
    watcher.send("c0 00")
    watcher.receive()
    wire.advance(10)
    values = read(watcher)
    assert (values["clients/expired"], values["clients/disconnected"], values["clients/total"]) == ("1", "0", "2")
    assert "subscriptions/count" not in values  # one came, one went
    assert values["uptime"] == "20 seconds"


def test_what_did_not_change_is_not_sent_again() -> None:
    wire = Wire(sys_interval_s=10)
    wire.advance(0)
    watcher = wire.connect("watcher", keep_alive=0)
    wire.advance(10)
    watcher.subscribe("$SYS/broker/clients/#")
    assert len(read(watcher)) == 7
    wire.advance(10)
    assert read(watcher) == {}


def test_no_sys_topics_where_they_are_off_and_none_for_wildcards() -> None:
    off = Wire(sys_interval_s=0)
    watcher = off.connect("watcher", keep_alive=0)
    watcher.subscribe("$SYS/#")
    off.advance(1_000)
    assert watcher.messages() == []
    on = Wire(sys_interval_s=1)
    watcher = on.connect("watcher", keep_alive=0)
    watcher.subscribe("#")
    watcher.subscribe("+/broker/uptime")
    on.advance(5)
    assert watcher.messages() == []


@pytest.mark.parametrize("minutes", LOAD_MINUTES)
def test_load_average_of_a_steady_stream_comes_to_its_rate_per_minute(minutes: int) -> None:
    stats, loads = Stats(), Loads()
    key = "publish/received", minutes
    for _ in range(6 * minutes):  # one time constant
        stats.messages_received += 50
        loads.update(stats, 10.0)
    assert loads.averages[key] == pytest.approx(300 * (1 - exp(-1)))
    for _ in range(60 * minutes):
        stats.messages_received += 50
        loads.update(stats, 10.0)
    assert loads.averages[key] == pytest.approx(300, rel=1e-3)
    for _ in range(6 * minutes):
        loads.update(stats, 10.0)
    assert loads.averages[key] == pytest.approx(300 * exp(-1), rel=1e-3)
    assert loads.averages["connections", minutes] == 0


def test_snapshot_follows_queues_and_what_is_in_flight() -> None:
    wire = Wire()
    client = wire.connect("c", receive_maximum=2, session_expiry_interval=100)
    client.subscribe("t", 1)
    publisher = wire.connect("p")
    for _ in range(5):
        publisher.publish("t", b"x" * 10, 1)
    shot = wire.engine.snapshot(wire.now)
    assert (shot.inflight_messages, shot.queued_messages) == (2, 3)
    assert shot.queued_bytes >= 3 * 11
    for message in client.messages():
        client.finish(message)
    for message in client.messages():
        client.finish(message)
    [last] = client.messages()
    client.finish(last)
    shot = wire.engine.snapshot(wire.now)
    assert (shot.inflight_messages, shot.queued_messages, shot.queued_bytes) == (0, 0, 0)
    assert shot.stats.messages_sent == 5


def test_the_longest_turn_is_told_for_each_interval_and_for_ever() -> None:
    wire = Wire(sys_interval_s=10)
    watcher = wire.connect("watcher", keep_alive=0)
    wire.advance(0)
    watcher.subscribe("$SYS/tidings/loop/#")
    watcher.receive()
    told = []
    for longest_s in (0.0125, 0.003):
        wire.engine.longest_turn_s = longest_s
        wire.advance(10)
        told.append({each.topic.rpartition("/")[2]: each.payload for each in watcher.messages()})
    assert told[0] == {"longest-turn-ms": b"12.50", "longest-turn-ever-ms": b"12.50"}
    assert told[1] == {"longest-turn-ms": b"3.00"}
