"""What a link does for its client, and against it: alike over TCP and Unix sockets, on asyncio's loop and uvloop's."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from tidings.broker import Broker
from tidings.broker.codec import encode
from tidings.broker.codec.packets import (
    MQTT_5_0,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscribeFilter,
)
from tidings.broker.core.message import Message
from tidings.broker.core.ports import PauseReason
from tidings.broker.transport import link as link_module
from tidings.broker.transport.link import Link
from tidings.broker.transport.links import TURN

from ..raw_client import RawClient, links_of, run, serve, until
from .conftest import Carrier

SMALL = {"outbox_high_bytes": 4096, "outbox_max_bytes": 8192}
BUFFER_BYTES = 4096  # of the kernel, for clients that are to be slow
KERNEL_BYTES = 1_000_000  # more than the kernel takes for a client that does not read, once ``narrow`` was called
FLOOD = 1000  # packets that one write brings
MALFORMED = b"\xff\x00"

Scene = Callable[[Broker, str], Awaitable[None]]


def play(carrier: Carrier, scene: Scene, **options: object) -> None:
    """Run ``scene`` with a broker and its URL."""

    async def main() -> None:
        async with serve(carrier.url, **options) as broker:
            await scene(broker, broker.urls[0])

    run(main(), carrier.loop)


def narrow(link: Link) -> Link:
    """Let the kernel take little from the broker for this client."""
    assert link._transport is not None
    link._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    return link


async def publish(broker: Broker, topic: str, count: int, payload: bytes) -> None:
    """In slices, so that links are flushed in between."""
    for _ in range(count):
        await broker.publish(topic, payload)
        await asyncio.sleep(0)


def test_packets_that_arrive_in_one_read_are_answered_in_order(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.open(url) as client:
            client.send(
                Connect("one", MQTT_5_0),
                Subscribe(7, [SubscribeFilter("a/b", 1)]),
                Publish("a/b", b"x", 1, packet_id=9),
                Pingreq(),
            )
            await client.expect(Connack)
            assert (await client.expect(Suback)).packet_id == 7
            rest = [await client.receive() for _ in range(3)]
            assert sorted(type(packet).__name__ for packet in rest) == ["Pingresp", "Puback", "Publish"]
            answers = [packet for packet in rest if not isinstance(packet, Publish)]
            assert answers == [Puback(9), Pingresp()]

    play(carrier, scene)


def test_packets_that_arrive_byte_by_byte_are_the_same_packets(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.open(url) as client:
            data = b"".join(
                encode(packet, MQTT_5_0)
                for packet in (
                    Connect("bytewise", MQTT_5_0),
                    Subscribe(7, [SubscribeFilter("a/b", 0)]),
                    Publish("a/b", b"x" * 200),
                    Pingreq(),
                )
            )
            seen = broker.snapshot().stats.bytes_received
            for at in range(len(data)):
                client.send(data[at : at + 1])
                await until(lambda at=at: broker.snapshot().stats.bytes_received > seen + at)  # type: ignore[misc]
            await client.expect(Connack)
            await client.expect(Suback)
            assert await client.expect(Publish) == Publish("a/b", b"x" * 200)
            await client.expect(Pingresp)

    play(carrier, scene)


def test_a_client_that_does_not_read_is_owed_no_more_than_its_bounds_while_others_go_on(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        slow = await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES)
        quick = await RawClient.connect(url, "quick")
        async with slow, quick:
            assert await slow.subscribe("flood") == 0
            assert await quick.subscribe("flood") == 0
            link = narrow(links_of(broker)["slow"])
            payload = b"x" * 60_000
            count = KERNEL_BYTES // len(payload) + 100
            for number in range(count):
                await broker.publish("flood", payload)
                assert len((await quick.message()).payload) == len(payload), number
            transport = link._transport
            assert transport is not None
            assert link.full
            # one turn's worth beyond the mark, and a message
            limit = (TURN + 1) * SMALL["outbox_high_bytes"] + 2 * len(payload)
            assert transport.get_write_buffer_size() <= limit
            snapshot = broker.snapshot()
            assert 0 < snapshot.queued_messages <= 20
            assert sum(snapshot.stats.dropped.values()) > 0
            # It is not lost: once it reads, it gets what its queue kept, the newest among it.
            await broker.publish("flood", b"last")
            while (await slow.message()).payload != b"last":
                pass

    play(carrier, scene, max_queued_messages=20, **SMALL)


def test_a_client_that_reads_again_gets_all_that_was_queued_in_order(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES) as slow:
            await slow.subscribe("flood", 1)
            link = narrow(links_of(broker)["slow"])
            payload = b"x" * 60_000
            count = KERNEL_BYTES // len(payload) + 20
            for number in range(count):
                await broker.publish("flood", b"%06d" % number + payload, 1)
            assert link.full
            for number in range(count):
                assert (await slow.message()).payload[:6] == b"%06d" % number
            await until(lambda: broker.snapshot().inflight_messages == 0)
            assert not link.full
            assert broker.snapshot().stats.dropped == {}

    play(carrier, scene, **SMALL)


def test_a_client_that_never_reads_its_answers_is_not_read_from_until_it_does(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        writer = await RawClient.connect(url, "writer", buffer_bytes=BUFFER_BYTES)
        other = await RawClient.connect(url, "other")
        async with writer, other:
            link = narrow(links_of(broker)["writer"])
            flood = encode(Pingreq(), MQTT_5_0) * FLOOD
            sent = 0
            while link.paused is None:
                writer.send(flood)
                sent += 1
                assert await other.publish("a") in (0, 0x10)
                assert sent < 100_000
            assert link.paused is PauseReason.OUTBOX
            transport = link._transport
            assert transport is not None
            waiting = transport.get_write_buffer_size()
            assert waiting > SMALL["outbox_max_bytes"]
            received = broker.snapshot().stats.bytes_received
            for _ in range(50):
                writer.send(flood)
                await asyncio.sleep(0)
            assert transport.get_write_buffer_size() == waiting
            assert broker.snapshot().stats.bytes_received == received, "it is still read from"
            for _ in range((sent + 50) * FLOOD):
                await writer.expect(Pingresp)
            assert link.paused is None
            writer.send(Pingreq())
            await writer.expect(Pingresp)

    play(carrier, scene, **SMALL)


def test_a_closed_connection_lingers_until_its_last_bytes_are_taken(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES) as slow:
            await slow.subscribe("flood")
            link = narrow(links_of(broker)["slow"])
            await publish(broker, "flood", KERNEL_BYTES // 60_000, b"x" * 60_000)
            assert link.full
            slow.send(MALFORMED)
            await until(lambda: broker.snapshot().clients_connected == 0)
            assert link in links_of(broker).values()
            packets = await slow.rest()
            assert isinstance(packets[-1], Disconnect)
            assert packets[-1].reason == 0x81
            await until(lambda: not links_of(broker))

    play(carrier, scene, outbox_high_bytes=4096)


def test_a_closed_connection_whose_peer_never_reads_is_aborted(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LINGER_S", 0.05)

    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES) as slow:
            await slow.subscribe("flood")
            link = narrow(links_of(broker)["slow"])
            await publish(broker, "flood", KERNEL_BYTES // 60_000, b"x" * 60_000)
            assert link.full
            slow.send(MALFORMED)
            await until(lambda: not links_of(broker), "the link stays open for a peer that does not read")

    play(carrier, scene, outbox_high_bytes=4096)


def test_connections_over_the_limit_are_closed_and_their_places_free_again_later(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(broker: Broker, url: str) -> None:
        first = await RawClient.connect(url, "first")
        second = await RawClient.connect(url, "second")
        async with first, second:
            async with await RawClient.open(url) as third:
                assert await third.rest() == []
            assert "2 connections are open, as many as allowed" in caplog.text
            first.send(Pingreq())
            await first.expect(Pingresp)
            second.abort()
            await until(lambda: len(links_of(broker)) == 1)
            async with await RawClient.connect(url, "fourth"):
                assert broker.snapshot().clients_connected == 2

    play(carrier, scene, max_connections=2)


def test_an_internal_error_costs_the_client_that_met_it_its_connection_and_nobody_else_anything(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    class Bug:
        """Is told about messages, and fails at one."""

        def received(self, client_id: str, messages: Sequence[Message], may: bool) -> None:
            if messages[0].topic == "bomb":
                raise RuntimeError("a bug")

    async def scene(broker: Broker, url: str) -> None:
        victim = await RawClient.connect(url, "victim")
        witness = await RawClient.connect(url, "witness")
        assert broker._engine is not None
        broker._engine.message_watcher = cast(Any, Bug())
        async with victim, witness:
            await witness.subscribe("a")
            victim.send(Publish("a", b"before"), Publish("bomb", b"", properties={"content_type": "x"}))
            assert await victim.refusal() == 0x83
            assert (await witness.message()).payload == b"before"
            witness.send(Pingreq())
            await witness.expect(Pingresp)
            assert broker.snapshot().clients_connected == 1

    play(carrier, scene)
    assert [record.levelname for record in caplog.records if "internal error while" in record.message] == ["ERROR"]
    assert "RuntimeError: a bug" in caplog.text


def test_half_closing_its_side_ends_the_connection_after_what_was_sent_before_is_done(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        watcher = broker.subscribe("a")
        async with await RawClient.connect(url, "half") as client:
            client.send(Publish("a", b"x"))
            client.writer.write_eof()
            assert (await anext(watcher)).payload == b"x"
            assert await client.rest() == []

    play(carrier, scene)


def test_a_lost_connection_is_logged_with_the_client_that_had_it(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tidings.broker")

    async def scene(broker: Broker, url: str) -> None:
        client = await RawClient.connect(url, "gone")
        client.abort()
        await until(lambda: not links_of(broker))

    play(carrier, scene)
    assert "disconnected: <connected 'gone' from " in caplog.text
    assert "connection lost" in caplog.text


def test_answers_that_wait_for_the_disk_fill_the_outbox_until_they_leave(carrier: Carrier) -> None:
    async def scene(broker: Broker, url: str) -> None:
        async with await RawClient.connect(url, "one") as client:
            link = links_of(broker)["one"]
            batch = link._links.durable + 1_000
            answer = encode(Puback(1), MQTT_5_0)
            held_bytes = 0
            while not link.full:
                link.send_after(answer, batch)
                held_bytes += len(answer)
                assert held_bytes <= TURN * SMALL["outbox_high_bytes"] + len(answer)
            link.release(batch)
            await client.expect(Puback)
            await until(lambda: not link.full)

    play(carrier, scene, **SMALL)
