"""The load generator against a broker of ours: tiny runs, checked for what they count and never for how fast."""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tidings.broker import BrokerThread, Config, Listener
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Publish
from tidings.cli.bench_certificate import write_certificate
from tidings.devices import load_scenes, load_slow, load_storm
from tidings.devices.load import run
from tidings.devices.load_flow import Flow, Publisher, build, topic_of
from tidings.devices.load_plan import Load, LoadError, Measured, Target, busy_seconds, cpu_seconds, memory_kb
from tidings.devices.load_sockets import Generator
from tidings.devices.load_transports import Transport
from tidings.devices.load_wire import STAMP

TINY = Load(warmup_s=0.02, seconds=0.1, drain_s=5.0)
FAULTS = ("lost", "duplicated", "reordered", "misrouted", "refused", "stalls")


class Mute(Publisher):
    """Its messages go nowhere."""

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        return True


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)) as broker:
        yield Target(port=broker.port, pid=os.getpid())


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time to settle: figures do not matter here."""
    for module in (load_scenes, load_storm):
        monkeypatch.setattr(module, "SETTLE_S", 0.02)
    monkeypatch.setattr(load_slow, "_CALIBRATE_S", 0.1)


def faults(measured: Measured) -> dict[str, int]:
    return {name: getattr(measured, name) for name in FAULTS if getattr(measured, name)}


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_message_of_a_closed_loop_arrives_once(target: Target, qos: int, version: int) -> None:
    measured = run(replace(TINY, shape="all", publishers=3, subscribers=2, qos=qos, version=version), target)
    assert measured.delivered > 0
    assert faults(measured) == {}
    assert sum(measured.latency_us.values()) > 0
    assert measured.broker_cpu_s is not None
    assert measured.broker_peak_kb is not None


@pytest.mark.parametrize("window", [1, 7])
def test_pairs_hear_only_their_own_publisher(target: Target, window: int) -> None:
    load = replace(TINY, shape="pairs", publishers=20, subscribers=20, qos=1, window=window, backlog=10 * window)
    measured = run(load, target)
    assert measured.delivered > 0
    assert faults(measured) == {}


def test_a_shared_subscription_gets_each_message_once(target: Target) -> None:
    measured = run(replace(TINY, shape="shared", publishers=2, subscribers=3, qos=1, version=5), target)
    assert measured.delivered > 0
    assert faults(measured) == {}


def test_an_open_loop_keeps_its_rate_and_takes_every_latency(target: Target) -> None:
    load = replace(TINY, shape="pairs", publishers=4, subscribers=4, qos=1, rate=2000.0, seconds=0.25)
    measured = run(load, target)
    assert faults(measured) == {}
    assert measured.sent == pytest.approx(500, rel=0.5)
    assert sum(measured.latency_us.values()) == measured.delivered
    assert sum(measured.lag_us.values()) > 0


def test_a_frame_of_another_form_than_expected_counts_and_is_acknowledged(target: Target) -> None:
    load = replace(TINY, qos=1, version=5)
    generator = Generator(target, 5)
    (flow,), (subscriber,) = build(generator, load)
    payload = STAMP.pack(0, 0, 1) + bytes(40)
    odd = encode(Publish("a/longer/topic", payload, 1, packet_id=513, properties={"content_type": "x"}), 5)
    assert subscriber.frame(odd, 2) == b"\x40\x02\x02\x01"
    assert (flow.delivered, flow.tallies[0].delivered) == (1, 1)
    again = encode(Publish("a/longer/topic", payload, 1, dup=True, packet_id=513), 5)
    subscriber.frame(again, 2)
    assert (flow.delivered, flow.tallies[0].duplicated) == (1, 1)
    generator.close_all()


def test_a_broker_that_drops_what_it_took_stalls_the_flow_until_it_is_written_off(target: Target) -> None:
    generator, load = Generator(target, 4), replace(TINY, qos=0, backlog=10)
    flow = Flow(1, load.backlog)
    publisher = Mute(generator, flow, 0, topic_of(0), load)
    flow.publishers = [publisher]
    flow.wake(publisher)
    for _ in range(5):
        flow.refill(0)
    assert flow.sent == 10
    flow.write_off()
    flow.refill(0)
    assert flow.sent == 20
    generator.close_all()


def test_large_payloads_span_many_reads(target: Target) -> None:
    measured = run(replace(TINY, shape="all", qos=1, size_bytes=300_000, window=3), target)
    assert measured.delivered > 0
    assert faults(measured) == {}


def test_messages_of_which_few_make_a_batch_fill_the_window_all_the_same(target: Target) -> None:
    generator = Generator(target, 4, frame_bytes=100_064)
    (flow,), subscribers = build(generator, replace(TINY, qos=1, size_bytes=100_000, window=20, backlog=200))
    generator.open_all([*subscribers, *flow.publishers])
    (publisher,) = flow.publishers
    assert publisher.batch.capacity == 1
    most = 0
    flow.wake(publisher)
    for _ in range(100):
        flow.refill(0)
        most = max(most, publisher.sent - publisher.acked)
        if publisher._out:  # the socket is full: only the broker can go on
            break
    assert most > 5
    generator.close_all()


@pytest.mark.parametrize("transport", ["tls", "ws", "wss"])
@pytest.mark.parametrize("size_bytes", [64, 100_000])
def test_what_carries_mqtt_changes_nothing(tmp_path: Path, transport: Transport, size_bytes: int) -> None:
    write_certificate(tmp_path)
    files = {"certfile": tmp_path / "server.crt", "keyfile": tmp_path / "server.key"} if transport != "ws" else {}
    listener = Listener.model_validate({"url": f"{transport}://127.0.0.1:0", **files})
    load = replace(TINY, shape="all", publishers=2, subscribers=2, qos=1, size_bytes=size_bytes, window=3)
    with BrokerThread(Config(listeners=[listener], sys_interval_s=0, stop_timeout_s=1)) as broker:
        measured = run(load, Target(port=broker.port, transport=transport))
    assert measured.delivered > 0
    assert faults(measured) == {}


@pytest.mark.parametrize("transport", ["tls", "ws"])
def test_a_handshake_that_fails_is_named(target: Target, transport: Transport) -> None:
    with pytest.raises(LoadError, match=r"handshake|closed the connection"):
        run(TINY, replace(target, transport=transport))


def test_a_port_where_nobody_listens_is_named() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.raises(LoadError, match="refused"):
        run(TINY, Target(port=port))


def test_a_refused_connection_is_reported() -> None:
    config = Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1, max_connections=1)
    with BrokerThread(config) as broker, pytest.raises(LoadError, match="bench-"):
        run(replace(TINY, shape="pairs", publishers=2, subscribers=2), Target(port=broker.port))


def test_idle_connections_are_counted_and_timed(target: Target) -> None:
    measured = load_scenes.connect(replace(TINY, publishers=0, subscribers=30, window=7), target)
    assert measured.numbers["connections_per_s"] > 0
    assert "kb_per_connection" in measured.numbers
    assert sum(measured.latency_us.values()) == 30


def test_more_connections_than_files_allowed_is_one_clear_line(target: Target) -> None:
    with pytest.raises(LoadError, match="ulimit"):
        load_scenes.connect(replace(TINY, subscribers=10**9), target)


@pytest.mark.parametrize("version", [4, 5])
def test_retained_lookups_are_timed_while_a_probe_runs(target: Target, version: int) -> None:
    measured = load_scenes.retained(replace(TINY, version=version, amount=40, seconds=0.3), target)
    assert sum(measured.latency_us.values()) >= 1
    assert faults(measured) == {}
    assert {"stored_per_s", "probe_quiet_p99_ms", "probe_p99_ms", "probe_max_ms"} <= set(measured.numbers)


@pytest.mark.parametrize(("qos", "version"), [(1, 4), (2, 5)])
def test_what_queued_for_sessions_that_were_away_arrives_once(target: Target, qos: int, version: int) -> None:
    load = replace(TINY, shape="all", qos=qos, version=version, publishers=1, subscribers=3, amount=150)
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)) as broker:
        measured = load_scenes.offline_queue(load, Target(port=broker.port))
    assert measured.delivered == 450
    assert measured.numbers["sessions_lost"] == 0
    assert faults(measured) == {}


@pytest.mark.parametrize(("version", "policy"), [(4, ""), (5, "latest")])
def test_fast_subscribers_get_everything_beside_a_frozen_and_a_slow_one(
    target: Target, version: int, policy: str
) -> None:
    load = replace(TINY, shape="all", subscribers=3, qos=1, version=version, policy=policy, rate=1000.0, seconds=0.4)
    measured = load_slow.slow_consumer(load, target)
    assert faults(measured) == {}
    numbers = measured.numbers
    assert numbers["healthy_got_percent"] > 50
    assert numbers["healthy_ratio"] > 0
    assert numbers["alone_ratio"] >= 1
    assert numbers["frozen_cut_off"] == 0
    assert numbers["frozen_got_percent"] == 100
    assert numbers["slow_period_ms"] == 100
    assert 2 <= numbers["slow_read"] <= 6  # of 500 that were published beside it
    assert numbers["slow_age_max_ms"] >= numbers["slow_age_p50_ms"] > 0
    assert len(measured.memory_mb) >= 2


def test_the_capacity_is_measured_where_no_rate_is_asked_for(target: Target) -> None:
    load = replace(TINY, shape="all", publishers=2, subscribers=2, qos=1, seconds=0.1)
    measured = load_slow.slow_consumer(load, target)
    assert faults(measured) == {}
    assert measured.numbers["rate_per_s"] > 0


@pytest.mark.parametrize(("version", "amount"), [(4, 5), (5, 0)])
def test_all_clients_come_back_from_a_storm_get_what_waited_and_leave_nothing(version: int, amount: int) -> None:
    load = replace(TINY, subscribers=20, qos=1, version=version, amount=amount)
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)) as broker:
        measured = load_storm.reconnect_storm(load, Target(port=broker.port))
        for _ in range(100):
            if not broker.snapshot().clients_disconnected:
                break
            time.sleep(0.02)
        assert broker.snapshot().clients_disconnected == 0
    assert faults(measured) == {}
    assert measured.delivered == 20 * amount
    assert sum(measured.latency_us.values()) == 20
    numbers = measured.numbers
    assert (numbers["not_served"], numbers["sessions_lost"]) == (0, 0)
    assert numbers["all_served_s"] >= numbers["all_back_s"] > 0
    assert {"probe_quiet_p99_ms", "probe_p99_ms", "probe_max_ms"} <= set(numbers)


def test_what_does_not_come_back_from_a_storm_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_storm, "_STALL_S", 0.2)
    config = Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1, max_queued_messages=2)
    with BrokerThread(config) as broker:
        measured = load_storm.reconnect_storm(replace(TINY, subscribers=3, qos=1, amount=5), Target(port=broker.port))
    assert faults(measured) == {"lost": 9}
    assert measured.numbers["not_served"] == 3


def test_a_process_that_is_gone_has_no_cpu_time_and_no_memory() -> None:
    assert cpu_seconds(2**22 + 1) is None
    assert memory_kb(2**22 + 1, "VmRSS") is None
    assert busy_seconds() > 0
