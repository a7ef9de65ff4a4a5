"""Whole runs over sockets: the fleet against our broker and Mosquitto, and against brokers that cheat."""

import asyncio
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tidings.broker.codec import Publish
from tidings.devices import Fleet, FleetError, Report, Scenario, Snapshot
from tidings.devices.link import need_files

from .stage import scenario

Spoiled = Callable[[str, Callable[[Publish], list[Publish]]], AbstractAsyncContextManager[str]]

ALL = {"all": {"filters": ["dev/#"]}}
SINE = {"wave": "sine", "low": 0, "high": 9, "period": "2s"}


def sensors(**changes: Any) -> dict[str, Any]:
    return {"sensor": {"count": 10, "every": "100ms", "qos": 1, "measurements": {"t": SINE}, **changes}}


def run(plan: Scenario, url: str, on_progress: Callable[[Snapshot], None] | None = None) -> Report:
    return asyncio.run(Fleet(plan, url).run(on_progress, 0.2))


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_message_of_every_device_arrives_once(broker_url: str, version: str, qos: int) -> None:
    plan = scenario(
        **{"for": "500ms"},
        version=version,
        devices=sensors(qos=qos),
        consumers={"all": {"filters": ["dev/#"], "qos": qos}, "state": {"filters": ["status/+"]}},
    )
    report = run(plan, broker_url)
    assert report.holds, report.reasons
    everything, state = report.consumers
    assert everything.owed == everything.delivered > 30
    assert (everything.lost, everything.duplicated, everything.reordered, everything.foreign) == (0, 0, 0, 0)
    assert state.delivered == 20
    assert everything.latency.count == everything.delivered
    assert (report.clients, report.outstanding) == (12, 0)
    assert report.skipped == 0 or qos == 0


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_a_durable_consumer_that_was_away_gets_what_it_missed(broker_url: str, version: str) -> None:
    away = {"filters": ["dev/#"], "qos": 1, "session": "60s", "offline": [{"at": "200ms", "for": "300ms"}]}
    plan = scenario(**{"for": "700ms"}, version=version, devices=sensors(), consumers={"away": away})
    for _ in range(2):  # the second run must not find what the first one left behind
        report = run(plan, broker_url)
        assert report.holds, report.reasons
        (consumer,) = report.consumers
        assert consumer.reconnects == 1
        assert consumer.owed == consumer.delivered > 50
        assert consumer.latency.maximum > 200_000


def test_a_clean_consumer_that_was_away_is_owed_less(broker_url: str) -> None:
    away = {"filters": ["dev/#"], "qos": 1, "offline": [{"at": "300ms", "for": "500ms"}]}
    plan = scenario(**{"for": "1200ms"}, devices=sensors(), consumers={"away": away, "there": {"filters": ["dev/#"]}})
    report = run(plan, broker_url)
    assert report.holds, report.reasons
    assert report.consumers[0].owed < report.consumers[1].owed - 30


def test_slow_consumers_and_groups_get_everything_in_the_end(broker_url: str) -> None:
    plan = scenario(
        **{"for": "1s"},
        devices=sensors(),
        consumers={
            "slow": {"filters": ["dev/#"], "rate": "20/s", "receive_maximum": 10},
            "group": {"filters": ["dev/#"], "share": "g", "count": 3},
            "many": {"filters": ["status/#"], "count": 2},
        },
    )
    backlogs: list[int] = []
    report = run(plan, broker_url, lambda now: backlogs.append(now.consumers[0].backlog))
    assert report.holds, report.reasons
    assert [one.name for one in report.consumers] == ["slow", "group", "many-1", "many-2"]
    assert report.consumers[0].delivered == report.consumers[1].delivered > 80
    assert max(backlogs) > 30


def test_promises_hold_through_cuts_freezes_and_bursts(broker_url: str) -> None:
    plan = scenario(
        **{"for": "1500ms"},
        devices={**sensors(), **{"exact": {**sensors()["sensor"], "qos": 2}}},
        consumers={
            "one": {"filters": ["dev/#"], "qos": 1, "session": "60s"},
            "two": {"filters": ["dev/#"], "qos": 2, "session": "60s"},
        },
        faults=[
            {"kind": "cut", "who": "sensor", "every": "400ms", "share": 0.5, "for": "100ms"},
            {"kind": "cut", "who": "exact", "at": "1s", "for": "200ms"},
            {"kind": "cut", "who": "two", "at": "700ms", "for": "300ms"},
            {"kind": "freeze", "who": "one", "at": "300ms", "for": "700ms"},
            {"kind": "burst", "who": "sensor", "at": "500ms", "messages": 20},
        ],
    )
    report = run(plan, broker_url)
    assert report.holds, report.reasons
    assert report.disconnects["cut"] >= 10
    assert report.consumers[0].delivered > 400
    assert not any(flow.duplicated for flow in report.flows if flow.qos == 2)


@pytest.mark.parametrize("version", ["3.1.1", "5.0"])
def test_the_operators_commands_are_answered(broker_url: str, version: str) -> None:
    plan = scenario(
        **{"for": "1s"},
        version=version,
        devices=sensors(every="10s"),
        commands=[
            {"send": "ping", "to": "sensor", "every": "50ms"},
            {"send": "set", "to": "sensor", "at": "200ms", "interval": "50ms"},
            {"send": "read", "to": "sensor", "at": "100ms"},
        ],
    )
    report = run(plan, broker_url)
    assert report.holds, report.reasons
    ping = report.commands["ping to sensor"]
    assert ping.answered == ping.sent >= 15
    assert (ping.refused, ping.unanswered) == (0, 0)
    assert report.commands["set to sensor"].answered == 1
    assert report.published > 10 + ping.sent


def test_a_unix_socket_is_as_good_as_tcp(tmp_path: Path) -> None:
    from tidings.broker import Broker, Config

    async def both() -> Report:
        async with Broker(Config(listeners=[f"unix://{tmp_path}/b.sock"], sys_interval_s=0)):
            plan = scenario(**{"for": "300ms"}, devices=sensors(), consumers=ALL)
            return await Fleet(plan, f"unix://{tmp_path}/b.sock").run()

    report = asyncio.run(both())
    assert report.holds
    assert report.consumers[0].delivered > 10


# -- brokers that cheat


def spoil_every(count: int, spoil: Callable[[Publish], list[Publish]]) -> Callable[[Publish], list[Publish]]:
    """Spoil every so-many-th telemetry message."""
    seen = 0

    def change(message: Publish) -> list[Publish]:
        nonlocal seen
        if not message.topic.startswith("dev/"):
            return [message]
        seen += 1
        return spoil(message) if seen % count == 0 else [message]

    return change


def swapped() -> Callable[[Publish], list[Publish]]:
    """Hold one telemetry message of the first device back until its next one has gone."""
    held: list[Publish] = []

    def change(message: Publish) -> list[Publish]:
        if message.topic != "dev/sensor-0001/t":
            return [message]
        if not held:
            held.append(message)
            return []
        first, held[:] = held[0], [message] if len(held) > 1 else [message, message]
        return [] if len(held) == 1 else [message, first]

    return change


def changed(message: Publish) -> list[Publish]:
    return [
        Publish(
            message.topic, message.payload.replace(b'"value":', b'"vAlue":'), message.qos, packet_id=message.packet_id
        )
    ]


def elsewhere(message: Publish) -> list[Publish]:
    return [Publish("elsewhere", message.payload, message.qos, packet_id=message.packet_id)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_every(20, lambda message: []), "acknowledged and never delivered at QoS 1"),
        (spoil_every(20, lambda message: [message, message]), "delivered twice with no reconnect to explain it"),
        (swapped(), "out of order"),
        (spoil_every(20, changed), "arrived with changed bytes"),
        (spoil_every(20, elsewhere), "arrived that no filter asked for"),
    ],
    ids=["lost", "duplicated", "reordered", "corrupted", "misrouted"],
)
def test_a_broker_that_cheats_is_found_out(
    own_url: str, spoiled: Spoiled, spoil: Callable[[Publish], list[Publish]], words: str
) -> None:
    async def both() -> Report:
        async with spoiled(own_url, spoil) as url:
            plan = scenario(**{"for": "1s"}, drain="500ms", devices=sensors(), consumers=ALL)
            return await Fleet(plan, url).run()

    report = asyncio.run(both())
    assert not report.holds
    assert any(words in reason for reason in report.reasons), report.reasons
    assert json.dumps(report.to_json())
    assert any("DOES NOT HOLD" in line for line in report.lines())


def test_loss_at_qos_0_breaks_the_promise_only_if_asked(own_url: str, spoiled: Spoiled) -> None:
    async def both(expect: dict[str, float]) -> Report:
        async with spoiled(own_url, spoil_every(10, lambda message: [])) as url:
            plan = scenario(
                **{"for": "1s"}, devices=sensors(), consumers={"all": {"filters": ["dev/#"], "qos": 0}}, expect=expect
            )
            return await Fleet(plan, url).run()

    report = asyncio.run(both({}))
    assert report.holds
    assert report.consumers[0].lost_qos0 > 2
    assert not asyncio.run(both({"qos0_loss_max": 0.0})).holds


# -- beginnings and ends


def test_the_same_seed_publishes_the_same_bytes(own_url: str) -> None:
    from tidings.devices.ledger import Ledger

    def payloads(seed: int) -> set[bytes]:
        seen: set[bytes] = set()
        receive = Ledger.receive

        def note(self: Ledger, account: Any, member: str, topic: str, payload: bytes, **rest: Any) -> None:
            seen.add(payload)
            receive(self, account, member, topic, payload, **rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "receive", note)
            plan = scenario(**{"for": "500ms"}, seed=seed, devices=sensors(jitter=0.5), consumers=ALL)
            assert run(plan, own_url).holds
        return seen

    first = payloads(5)
    assert len(first) > 30
    assert payloads(5) == first
    assert payloads(6).isdisjoint(first)


def test_stopping_early_drains_and_reports(own_url: str) -> None:
    async def both() -> Report:
        fleet = Fleet(scenario(**{"for": "1h"}, devices=sensors(), consumers=ALL), own_url)

        def stop_after_some(now: Snapshot) -> None:
            if now.published > 50:
                fleet.stop()

        async with asyncio.timeout(20):
            return await fleet.run(stop_after_some, 0.05)

    report = asyncio.run(both())
    assert report.interrupted
    assert report.holds
    assert report.consumers[0].delivered > 20
    assert "verdict: holds (interrupted)" in list(report.lines())


def test_snapshots_show_the_phases_and_rates(own_url: str) -> None:
    seen: list[Snapshot] = []
    plan = scenario(**{"for": "1s"}, devices=sensors(), consumers=ALL)
    report = run(plan, own_url, seen.append)
    assert {"running", "done"} <= {now.phase for now in seen}
    middle = next(now for now in seen if now.elapsed_s > 0.5)
    assert (middle.devices, middle.devices_online, middle.duration_s) == (10, 10, 1.0)
    assert 10 < middle.published_per_s < 1000
    assert seen[-1].consumers[0].received == report.consumers[0].received
    assert seen[-1].consumers[0].p99_ms is not None


def test_no_broker_is_said_in_one_line() -> None:
    with pytest.raises(FleetError, match=r"cannot connect to mqtt://127\.0\.0\.1:1: connection refused"):
        run(scenario(devices=sensors()), "mqtt://127.0.0.1:1")
    with pytest.raises(FleetError, match="cannot connect to unix:///nowhere: no such file or directory"):
        run(scenario(devices=sensors()), "unix:///nowhere")


def test_a_server_that_is_no_broker_is_noticed() -> None:
    async def both() -> None:
        async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(slam, "127.0.0.1", 0)
        async with server:
            plan = scenario(devices=sensors(), consumers={"all": {"filters": ["#"]}})
            fleet = Fleet(plan, f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await fleet.run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidings.devices.fleet._READY_S", 0.5)
        with pytest.raises(FleetError, match="all could not connect and subscribe within 1 s: "):
            asyncio.run(both())


@pytest.fixture
def few_files() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_files")
def test_the_limit_of_open_files_is_raised_or_explained() -> None:
    need_files(500)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 500
    with pytest.raises(FleetError, match=r"100000000 connections need .* open files and this process may have"):
        need_files(100_000_000)
