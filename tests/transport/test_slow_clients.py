"""Clients that do not read, read slowly, or send too fast, over real sockets."""

import asyncio

import pytest

from tidings.broker import Broker
from tidings.broker.codec.packets import MQTT_5_0, Connack, Connect, Puback, Publish, Suback, Subscribe, SubscribeFilter
from tidings.broker.core.ports import PauseReason
from tidings.broker.core.window import DropReason
from tidings.broker.transport import link as link_module
from tidings.broker.transport import links as links_module

from ..raw_client import LOOPS, RawClient, links_of, run, serve, soon, until

KIB = b"x" * 1024
BUFFER_BYTES = 4096


@pytest.fixture(params=list(LOOPS))
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def subscribe(client: RawClient, filter: str, policy: str, qos: int = 0) -> None:
    asked = {"user_property": [("tidings-policy", policy)]}
    client.send(Subscribe(1, [SubscribeFilter(filter, qos)], asked))  # type: ignore[arg-type]
    assert (await client.expect(Suback)).reasons == [qos]


async def flood(broker: Broker, topics: list[str], rounds: int) -> None:
    for number in range(rounds):
        for topic in topics:
            await broker.publish(topic, b"%06d" % number + KIB)
        await asyncio.sleep(0)


def test_a_slow_client_with_latest_costs_one_message_per_topic_and_gets_the_last_values(loop: str) -> None:
    async def main() -> None:
        async with serve(outbox_high_bytes=16_384) as broker:
            slow = await RawClient.connect(broker.urls[0], "slow", buffer_bytes=BUFFER_BYTES)
            await subscribe(slow, "#", "latest")
            topics = [f"t/{number}" for number in range(20)]
            await flood(broker, topics, 200)
            shot = broker.snapshot()
            assert shot.queued_messages <= len(topics)
            assert shot.stats.dropped[DropReason.CONFLATED] > 1_000
            transport = links_of(broker)["slow"]._transport
            assert transport is not None
            assert transport.get_write_buffer_size() <= 3 * link_module.SHORT_BYTES, "it cannot be replaced any more"
            last: dict[str, bytes] = {}
            before = 0
            while set(last.values()) != {b"000199"} or len(last) < len(topics):
                message = await slow.expect(Publish)
                last[message.topic] = message.payload[:6]
                before += 1
            # What was under way when the first was read is old; behind it come the newest.
            assert before < 250
            slow.abort()

    run(main(), loop)


def test_a_frozen_client_is_cut_off_and_one_that_reads_a_little_is_not(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LINGER_S", 0.1)

    async def main() -> None:
        async with serve(outbox_high_bytes=16_384, max_blocked_s=0.3, max_queued_messages=50) as broker:
            url = broker.urls[0]
            frozen = await RawClient.connect(url, "frozen", buffer_bytes=BUFFER_BYTES)
            slow = await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES)
            for client in (frozen, slow):
                await subscribe(client, "#", "all")
            stop = asyncio.Event()

            async def read_a_little() -> None:
                while not stop.is_set():
                    await slow.receive()
                    await asyncio.sleep(0.01)

            async def publish() -> None:
                while not stop.is_set():
                    await flood(broker, ["t"], 20)
                    await asyncio.sleep(0.005)

            tasks = [asyncio.create_task(read_a_little()), asyncio.create_task(publish())]
            await until(lambda: "frozen" not in links_of(broker))
            assert "slow" in links_of(broker)
            assert broker.snapshot().stats.cut_off == {0x97: 1}
            stop.set()
            await asyncio.gather(*tasks)
            for client in (frozen, slow):
                client.abort()

    run(main(), loop)


def test_publishers_that_fill_the_memory_wait_and_those_that_do_not_go_on(loop: str) -> None:
    async def main() -> None:
        # large against one read of a socket, so that the marks at 80, 90 and 100 % are met one after the other
        options = {"memory_budget_bytes": 8_000_000, "memory_pause_s": 60, "outbox_high_bytes": 4096}
        async with serve(**options) as broker:
            url = broker.urls[0]
            slow = await RawClient.connect(url, "slow", buffer_bytes=BUFFER_BYTES, receive_maximum=1)
            await subscribe(slow, "full/#", "all", 1)
            publisher = await RawClient.connect(url, "publisher")
            other = await RawClient.connect(url, "other")

            async def publish() -> None:
                for number in range(1, 2501):
                    publisher.send(Publish("full/a", 4 * KIB, 1, packet_id=number))
                    await asyncio.sleep(0)

            task = asyncio.create_task(publish())
            await until(lambda: links_of(broker)["publisher"].paused is PauseReason.MEMORY)
            used = broker.snapshot().memory_bytes
            assert 7_200_000 <= used <= 8_000_000
            other.send(Publish("free/a", 4 * KIB, 1, packet_id=1))
            await other.expect(Puback)  # it adds nothing to what waits
            assert broker.snapshot().stats.dropped == {}

            taken = 0
            while taken < 2500:
                message = await slow.expect(Publish)
                slow.send(Puback(message.packet_id))
                taken += 1
            await task
            await until(lambda: broker.snapshot().memory_bytes == 0)
            shot = broker.snapshot()
            assert shot.stats.dropped == {}
            assert shot.stats.paused[PauseReason.MEMORY] >= 1
            assert shot.stats.paused[PauseReason.WINDOW] >= 1
            for client in (slow, publisher, other):
                client.abort()

    run(main(), loop)


def test_a_client_that_ignores_its_closed_window_is_not_read_from_either(loop: str) -> None:
    """What is held back for it waits in memory too, and is bounded by what it may leave unread."""

    async def main() -> None:
        options = {"memory_budget_bytes": 1_000_000, "memory_pause_s": 60, "outbox_max_bytes": 8_192}
        async with serve(**options) as broker:
            url = broker.urls[0]
            slow = await RawClient.connect(url, "slow", receive_maximum=1)
            await subscribe(slow, "full/#", "all", 1)
            rude = await RawClient.connect(url, "rude", version=4)  # it knows no Receive Maximum
            while broker.snapshot().memory_bytes < 810_000:
                await broker.publish("full/a", KIB, qos=1)
            await asyncio.sleep(0.01)  # the end of this turn sees it
            rude.send(Publish("full/a", b"", 1, packet_id=1))  # it adds to what waits
            topics = ("free/a", "free/b")
            rude.send(*(Publish(topics[number % 2], b"", 1, packet_id=number) for number in range(2, 201)))
            await until(lambda: links_of(broker)["rude"].paused is PauseReason.MEMORY)
            shot = broker.snapshot()
            assert shot.memory_bytes < 900_000, "it is not for the second mark"
            assert shot.stats.paused == {PauseReason.WINDOW: 1, PauseReason.MEMORY: 1}
            rude.send(Publish("free/a", b"", 1, packet_id=201))
            while broker.snapshot().memory_bytes > 600_000:
                slow.send(Puback((await slow.expect(Publish)).packet_id))
            assert [(await rude.expect(Puback)).packet_id for _ in range(201)] == list(range(1, 202))
            for client in (slow, rude):
                client.abort()

    run(main(), loop)


def test_a_client_that_fills_its_own_queue_is_read_again_after_the_pause(loop: str) -> None:
    """It waits for itself: only what it sends, its acknowledgements, can empty its queue."""

    async def main() -> None:
        options = {"memory_budget_bytes": 2_000_000, "memory_pause_s": 0.2, "outbox_high_bytes": 4096}
        async with serve(**options) as broker:
            client = await RawClient.connect(broker.urls[0], "self", receive_maximum=1)
            await subscribe(client, "t", "all", 1)
            for number in range(1, 2501):
                client.send(Publish("t", KIB, 1, packet_id=number))
            await until(lambda: links_of(broker)["self"].paused is PauseReason.MEMORY)
            client.send(Publish("end", b"", 1, packet_id=5000))
            while True:
                packet = await client.receive()
                if isinstance(packet, Puback) and packet.packet_id == 5000:
                    break
                if isinstance(packet, Publish):
                    client.send(Puback(packet.packet_id))
            assert broker.snapshot().memory_bytes <= 2_000_000
            client.abort()

    run(main(), loop)


@pytest.mark.parametrize("option", [{"max_messages_per_s": 200.0}, {"max_bytes_per_s": 3_000.0}])
def test_a_client_over_its_rate_is_read_later_and_loses_nothing(loop: str, option: dict[str, float]) -> None:
    async def main() -> None:
        async with serve(**option) as broker:
            client = await RawClient.connect(broker.urls[0], "fast")
            begin = asyncio.get_running_loop().time()
            for first in (1, 151):
                for number in range(first, first + 150):
                    client.send(Publish("t", b"12345678", 1, packet_id=number))
                await until(lambda last=first + 149: broker.snapshot().stats.messages_received >= last)  # type: ignore[misc]
            for number in range(1, 301):
                assert (await client.expect(Puback)).packet_id == number
            client.send(Publish("t", b"", 1, packet_id=999))
            await client.expect(Puback)
            assert asyncio.get_running_loop().time() - begin > 0.2  # 300 at 200 a second, of which 200 may come at once
            assert broker.snapshot().stats.paused[PauseReason.RATE] >= 1
            client.abort()

    run(main(), loop)


def test_connections_over_the_rate_of_their_address_are_served_in_turn(loop: str) -> None:
    async def main() -> None:
        async with serve(max_connects_per_s=20.0) as broker:
            clients = [await RawClient.open(broker.urls[0]) for _ in range(30)]
            begin = asyncio.get_running_loop().time()
            for number, client in enumerate(clients):
                client.send(Connect(f"c{number}", MQTT_5_0))
            for client in clients:
                assert (await client.expect(Connack)).reason == 0
            assert asyncio.get_running_loop().time() - begin > 0.3
            for client in clients:
                client.abort()

    run(main(), loop)


def test_clients_that_come_all_at_once_are_let_in_in_turn_between_the_turns_of_the_others(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "ADMITTED", 2)

    async def main() -> None:
        async with serve() as broker:
            here = await RawClient.connect(broker.urls[0], "here")
            crowd = [await RawClient.open(broker.urls[0]) for _ in range(40)]
            for number, client in enumerate(crowd):
                client.send(Connect(f"c{number}", MQTT_5_0))
            await asyncio.sleep(0)
            for client in crowd:  # most of which wait
                client.send(Publish("t", b"", 1, packet_id=1))
            here.send(Publish("t", b"", 1, packet_id=7))
            assert (await here.expect(Puback)).packet_id == 7
            crowd[30].abort()
            for client in [*crowd[:30], *crowd[31:]]:
                assert (await client.expect(Connack)).reason == 0
                assert (await client.expect(Puback)).packet_id == 1
            assert broker.snapshot().stats.paused[PauseReason.CROWD] >= 10
            for client in [here, *crowd]:
                client.abort()

    run(main(), loop)


def test_what_waits_in_connections_counts_as_memory(loop: str) -> None:
    async def main() -> None:
        async with serve(outbox_high_bytes=16_384, max_queued_bytes=1) as broker:
            frozen = await RawClient.connect(broker.urls[0], "frozen", buffer_bytes=BUFFER_BYTES)
            await subscribe(frozen, "#", "all")
            for _ in range(1_000):  # the kernel takes some megabytes first
                await flood(broker, ["t"], 20)
                if (
                    broker.snapshot().memory_bytes >= 16_384
                ):  # bytes for the socket: the queue holds one message at most
                    break
            else:
                pytest.fail("it never counted")
            frozen.abort()
            await until(lambda: broker.snapshot().memory_bytes == 0)
            half = await RawClient.connect(broker.urls[0], "half")
            half.send(b"\x30\xff\xff\x03\x00\x01t" + bytes(30_000))  # of 65,535 bytes
            await until(lambda: broker.snapshot().memory_bytes >= 30_000)
            half.abort()
            await until(lambda: broker.snapshot().memory_bytes == 0)

    run(main(), loop)


def test_a_subscriber_inside_the_process_gets_the_last_value_of_each_topic(loop: str) -> None:
    async def main() -> None:
        async with serve() as broker, broker.subscribe("#", policy="latest") as latest:
            for number in range(10):
                await broker.publish("a", str(number))
                await broker.publish("b", str(number))
            assert latest.waiting == 2
            got = [(await anext(latest)).payload for _ in range(2)]
            assert got == [b"9", b"9"]
            assert (latest.skipped, latest.dropped) == (18, 0)

    run(main(), loop)


def test_a_sample_arrives_when_its_slot_comes_without_anything_else_happening(loop: str) -> None:
    async def main() -> None:
        async with serve() as broker, broker.subscribe("#", policy="sample=10") as sample:
            clock = asyncio.get_running_loop().time
            for number in range(3):
                await broker.publish("a", str(number))
            assert (await anext(sample)).payload == b"2"
            begin = clock()
            await broker.publish("a", "3")
            assert (await soon(anext(sample))).payload == b"3"
            assert clock() - begin > 0.09

    run(main(), loop)


def test_a_subscriber_inside_the_process_is_told_of_a_policy_that_there_is_not() -> None:
    async def main() -> None:
        async with serve() as broker:
            for policy in ("newest", "all; overflow=disconnect", "all; overflow=spill", "latest; tell-missed"):
                with pytest.raises(ValueError, match="policy"):
                    broker.subscribe("a", policy=policy)
            with pytest.raises(ValueError, match="shared"):
                broker.subscribe("$share/g/a", policy="latest")

    run(main())
