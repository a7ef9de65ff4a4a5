"""Clients that play for time: they must not be waited for longer than the limits say, and cost no one else anything."""

import asyncio
from collections.abc import Callable

import pytest

from tidings.broker.codec import encode
from tidings.broker.codec.packets import MQTT_5_0, Connack, Connect, Pingreq, Publish, Will
from tidings.broker.core.deadlines import COMPACT_FROM

from ..conformance.wire import Wire
from ..raw_client import RawClient, run, serve

CONNECT = encode(Connect("slow", MQTT_5_0, properties={"user_property": [("k", "v" * 500)]}), MQTT_5_0)


def drip(wire: Wire, data: bytes, every_s: float) -> float:
    """Send ``data`` byte by byte; the seconds after which the broker had enough of it."""
    peer = wire.open()
    start = wire.now
    for at in range(len(data)):
        wire.advance(every_s)
        if peer.closed:
            return wire.now - start
        peer.send(data[at : at + 1])
    raise AssertionError("it took everything")


def test_a_connect_that_never_ends_is_given_up_however_it_drips() -> None:
    wire = Wire(connect_timeout_s=10)
    assert drip(wire, CONNECT, 0.25) == pytest.approx(10, abs=0.25)
    assert wire.engine.connections == set()
    assert wire.engine.sessions == {}


def test_a_connection_that_sends_nothing_is_given_up() -> None:
    wire = Wire(connect_timeout_s=10)
    silent, connected = wire.open(), wire.connect("quick", keep_alive=0)
    wire.advance(9.9)
    assert not silent.closed
    wire.advance(0.2)
    assert silent.closed
    assert silent.receive() == []
    assert not connected.closed


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "dripping"])
def test_the_same_over_a_socket_in_real_time(drips: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            serve(connect_timeout_s=0.15) as broker,
            await RawClient.connect(broker.urls[0], "good") as good,
            await RawClient.open(broker.urls[0]) as slow,
        ):
            ended = asyncio.ensure_future(slow.rest())
            at = 0
            while not ended.done():
                if drips:
                    slow.send(CONNECT[at : at + 1])
                    at += 1
                await good.publish("a")
                await asyncio.sleep(0.005)
                assert at < len(CONNECT)
            assert await ended == []
            assert broker.snapshot().clients_connected == 1

    run(main())
    assert "no CONNECT in time" in caplog.text


def test_a_half_open_connection_is_found_by_its_keep_alive_and_its_will_published() -> None:
    wire = Wire()
    watcher = wire.connect("watcher", keep_alive=0)
    watcher.subscribe("will")
    client = wire.connect("half", keep_alive=20, will=Will("will", b"gone"))
    for _ in range(5):
        wire.advance(25)
        client.send(Pingreq())
        client.receive()
    wire.advance(29.9)
    assert not client.closed
    wire.advance(0.2)
    client.assert_dropped(0x8D)
    assert watcher.payloads() == [b"gone"]


def test_part_of_a_packet_is_no_sign_of_life() -> None:
    wire = Wire()
    client = wire.connect("half", keep_alive=10)
    data = encode(Publish("a", b"x" * 100), MQTT_5_0)
    for at in range(0, 20):
        wire.advance(1)
        client.send(data[at : at + 1])
    client.assert_dropped(0x8D)


def test_a_client_that_wants_no_keep_alive_gets_the_brokers() -> None:
    wire = Wire(max_keep_alive_s=30)
    client = wire.connect("half", keep_alive=0)
    assert client.connack.properties["server_keep_alive"] == 30
    wire.advance(44)
    assert not client.closed
    wire.advance(2)
    client.assert_dropped(0x8D)


@pytest.mark.parametrize("make", [lambda wire, n: wire.open(), lambda wire, n: wire.connect(f"{n}", keep_alive=10)])
def test_thousands_of_them_end_together_and_leave_nothing(make: Callable[[Wire, int], object]) -> None:
    wire = Wire(connect_timeout_s=15)
    peers = [make(wire, number) for number in range(3_000)]
    assert len(wire.engine.connections) == len(peers)
    wire.advance(20)
    assert wire.engine.connections == set()
    assert wire.engine.sessions == {}


def test_a_session_that_is_taken_over_again_and_again_stays_one() -> None:
    wire = Wire()
    first = wire.connect("same", keep_alive=0, session_expiry_interval=60)
    for _ in range(1000):
        wire.connect("same", keep_alive=0, clean_start=False, session_expiry_interval=60)
    assert first.closed
    assert len(wire.engine.sessions) == len(wire.engine.connections) == 1


def test_the_heap_of_deadlines_stays_in_proportion_to_what_is_waited_for() -> None:
    wire = Wire()
    for number in range(3000):
        client = wire.connect("same", keep_alive=60, session_expiry_interval=1_000_000 - number)
        client.drop()
    assert len(wire.engine.deadlines) <= 2 * COMPACT_FROM


def test_a_connack_is_the_first_thing_that_is_sent_however_slow_the_store_is() -> None:
    wire = Wire()
    wire.store_is_slow = True
    client = wire.open()
    client.send(wire.connect_packet("one", MQTT_5_0, session_expiry_interval=60), Pingreq())
    assert client.receive() == []
    wire.store_is_slow = False
    wire.settle()
    assert isinstance(client.receive()[0], Connack)
