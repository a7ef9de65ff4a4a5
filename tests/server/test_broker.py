"""``Broker`` inside a program: starting, stopping, publishing and subscribing without a socket."""

import asyncio
import gc
from contextlib import suppress
from typing import Any

import pytest

from tidings.broker import Broker, BrokerError, Config, ConfigError, Message
from tidings.broker.codec.packets import Disconnect, Publish, Will
from tidings.broker.core.handout import SLICE
from tidings.broker.server import Subscription

from ..raw_client import RawClient, links_of, run, serve, soon, until


async def drain(subscription: Subscription) -> list[bytes]:
    """What is in the queue now."""
    return [(await anext(subscription)).payload for _ in range(subscription.waiting)]


# life


def test_a_broker_serves_clients_inside_async_with_and_nobody_after_it() -> None:
    async def main() -> None:
        async with serve() as broker:
            url = broker.urls[0]
            assert url == f"tcp://127.0.0.1:{broker.port}"
            async with await RawClient.connect(url, "one") as client:
                assert broker.snapshot().clients_connected == 1
                await client.subscribe("a")
        with pytest.raises(ConnectionRefusedError):
            await RawClient.open(url)

    run(main())


def test_start_and_stop_do_the_same_by_hand_and_stopping_twice_does_no_harm(config: Config) -> None:
    async def main() -> None:
        broker = Broker(config)
        await broker.stop()
        await broker.start()
        async with await RawClient.connect(broker.urls[0], "one") as client:
            await broker.stop()
            assert await client.refusal() == 0x8B
        await broker.stop()

    run(main())


def test_a_broker_is_started_once_only(config: Config) -> None:
    async def main() -> None:
        async with Broker(config) as broker:
            with pytest.raises(BrokerError, match="started before"):
                await broker.start()
            async with await RawClient.connect(broker.urls[0], "still served"):
                pass

    run(main())


def test_a_broker_that_does_not_run_says_so(config: Config) -> None:
    async def main() -> None:
        broker = Broker(config)
        for use in (lambda: broker.subscribe("a"), broker.snapshot, lambda: broker.port):
            with pytest.raises(BrokerError):
                use()
        with pytest.raises(BrokerError, match="async with Broker"):
            await broker.publish("a")

    run(main())


def test_two_brokers_in_one_loop_know_nothing_of_one_another() -> None:
    async def main() -> None:
        async with serve() as one, serve() as two:
            assert one.port != two.port
            here, there = one.subscribe("#"), two.subscribe("#")
            async with await RawClient.connect(one.urls[0], "same"), await RawClient.connect(two.urls[0], "same"):
                await one.publish("a", b"1")
                assert (await drain(here), await drain(there)) == ([b"1"], [])
                assert one.snapshot().clients_connected == two.snapshot().clients_connected == 1
            await one.stop()
            await two.publish("a", b"2")
            assert await drain(there) == [b"2"]

    run(main())


def test_a_broker_without_listeners_serves_its_own_process() -> None:
    async def main() -> None:
        async with Broker(Config(listeners=[])) as broker:
            messages = broker.subscribe("a")
            await broker.publish("a", b"x")
            assert (await anext(messages)).payload == b"x"
            with pytest.raises(BrokerError, match="no TCP listener"):
                _ = broker.port

    run(main())


def test_time_goes_on_in_a_broker_without_listeners() -> None:
    async def main() -> None:
        async with Broker(Config(listeners=[], sys_interval_s=0.02)) as broker:
            messages = broker.subscribe("$SYS/broker/publish/messages/received", retained=False)
            await broker.publish("a", b"x")
            assert (await soon(anext(messages))).payload == b"1"

    run(main())


def test_a_wrong_option_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError):
        Broker(Config(listeners=["tcp://0.0.0.0:0"]))
    with pytest.raises(ValueError, match="unknown_option"):
        Config.model_validate({"unknown_option": 1})


# stopping


def test_a_stop_says_goodbye_to_5_0_clients_and_only_closes_on_older_ones() -> None:
    async def main() -> None:
        async with serve() as broker:
            url = broker.urls[0]
            clients = [await RawClient.connect(url, f"v{version}", version) for version in (3, 4, 5)]
            silent = await RawClient.open(url)
            stopping = asyncio.create_task(broker.stop())
            ends = await asyncio.gather(*(client.rest() for client in [*clients, silent]))
            assert [len(packets) for packets in ends] == [0, 0, 1, 0]
            (goodbye,) = ends[2]
            assert isinstance(goodbye, Disconnect)
            assert goodbye.reason == 0x8B
            await stopping
            for client in [*clients, silent]:
                client.abort()

    run(main())


def test_a_stop_lets_clients_take_what_is_under_way() -> None:
    async def main() -> None:
        async with serve(stop_timeout_s=10) as broker, await RawClient.connect(broker.urls[0], "one") as client:
            await client.subscribe("a")
            for number in range(1000):
                await broker.publish("a", b"%d" % number)
            _, packets = await asyncio.gather(broker.stop(), client.rest())
            payloads = [packet.payload for packet in packets if isinstance(packet, Publish)]
            assert payloads == [b"%d" % number for number in range(1000)]
            assert isinstance(packets[-1], Disconnect)

    run(main())


def test_a_stop_waits_for_a_client_that_never_reads_no_longer_than_configured() -> None:
    async def main() -> None:
        async with (
            serve(stop_timeout_s=0.1) as broker,
            await RawClient.connect(broker.urls[0], "stuck", buffer_bytes=4096) as stuck,
        ):
            await stuck.subscribe("a")
            while not links_of(broker)["stuck"].full:
                await broker.publish("a", b"x" * 200_000)
                await asyncio.sleep(0)
            before = asyncio.get_running_loop().time()
            await broker.stop()
            assert asyncio.get_running_loop().time() - before < 4, "LINGER_S, not stop_timeout_s"
            assert links_of(broker) == {}

    run(main())


def test_a_stop_publishes_no_wills_of_clients_that_it_sends_away() -> None:
    async def main() -> None:
        async with serve() as broker:
            wills = broker.subscribe("will")
            will = Will("will", b"died", properties={"will_delay_interval": 5})
            async with await RawClient.connect(broker.urls[0], "one", will=will, session_expiry_interval=60):
                await broker.stop()
            assert [message async for message in wills] == []

    run(main())


# publishing


def test_what_is_published_in_process_reaches_network_clients_with_its_properties() -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "one") as client:
            await client.subscribe("a/#", 1)
            properties: Any = {"content_type": "text/plain", "user_property": [("k", "1"), ("k", "2")]}
            properties["message_expiry_interval"] = 60
            await broker.publish("a/b", "grüße", qos=1, properties=properties)
            message = await client.message()
            assert (message.topic, message.payload, message.qos) == ("a/b", "grüße".encode(), 1)
            assert message.properties == properties
            await until(lambda: broker.snapshot().inflight_messages == 0)

    run(main())


def test_what_network_clients_publish_is_received_in_process() -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "one") as client:
            messages = broker.subscribe("dev/+/temp")
            assert await client.publish("dev/7/temp", b"21.5") == 0
            message = await anext(messages)
            assert isinstance(message, Message)
            assert (message.topic, message.payload, message.qos, message.sender) == ("dev/7/temp", b"21.5", 1, "one")

    run(main())


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "#", "a\0b", "x" * 65_536, "/" * 200, "$SYS/x", "$share/g/a"])
def test_a_topic_that_cannot_be_published_to_is_a_value_error(topic: str) -> None:
    async def main() -> None:
        async with serve() as broker:
            everything = broker.subscribe("#")
            with pytest.raises(ValueError, match="topic"):
                await broker.publish(topic, b"x")
            assert everything.waiting == 0

    run(main())


@pytest.mark.parametrize(
    "filter", ["", "a#", "#/a", "a+/b", "$share", "$share/g", "$share//a", "/" * 200, "x" * 65_536, "a\0b"]
)
def test_a_filter_that_cannot_be_subscribed_to_is_a_value_error(filter: str) -> None:
    async def main() -> None:
        async with serve() as broker:
            with pytest.raises(ValueError, match=r"filter|subscription|wildcard|#"):
                broker.subscribe("fine", filter)
            assert broker.snapshot().subscriptions == 0

    run(main())


@pytest.mark.parametrize("qos", [-1, 3, "1", None])
def test_a_qos_that_mqtt_does_not_have_is_a_value_error(qos: Any) -> None:
    async def main() -> None:
        async with serve() as broker:
            with pytest.raises(ValueError, match="qos"):
                await broker.publish("a", b"x", qos=qos)
            with pytest.raises(ValueError, match="qos"):
                broker.subscribe("a", qos=qos)

    run(main())


@pytest.mark.parametrize(
    "properties",
    [
        {"topic_alias": 1},
        {"subscription_identifier": [1]},
        {"no_such": 1},
        {"message_expiry_interval": -1},
        {"message_expiry_interval": 2**32},
        {"message_expiry_interval": "soon"},
        {"content_type": 5},
        {"content_type": "x" * 65_536},
        {"response_topic": "a/+"},
        {"payload_format_indicator": 2},
        {"user_property": [("k",)]},
        {"user_property": [("k", 5)]},
        {"user_property": [("k", "1", "2")]},
        {"user_property": "k"},
        {"correlation_data": "text"},
    ],
    ids=str,
)
def test_a_property_that_a_message_cannot_have_is_a_value_error_and_hurts_no_subscriber(properties: Any) -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "one") as client:
            await client.subscribe("a")
            with pytest.raises(ValueError, match=next(iter(properties))):
                await broker.publish("a", b"x", properties=properties)
            await broker.publish("a", b"fine")
            assert (await client.message()).payload == b"fine"

    run(main())


def test_subscribing_to_nothing_is_a_value_error() -> None:
    async def main() -> None:
        async with serve() as broker:
            with pytest.raises(ValueError, match="at least one"):
                broker.subscribe()

    run(main())


def test_a_queue_of_no_messages_is_a_value_error() -> None:
    async def main() -> None:
        async with serve() as broker:
            with pytest.raises(ValueError, match="max_messages"):
                broker.subscribe("a", max_messages=0)

    run(main())


# subscribing


def test_a_queue_keeps_the_newest_and_counts_what_it_drops() -> None:
    async def main() -> None:
        async with serve() as broker:
            few, many = broker.subscribe("a", max_messages=3), broker.subscribe("a")
            for number in range(10):
                await broker.publish("a", b"%d" % number, qos=number % 3)
            assert (few.waiting, few.dropped) == (3, 7)
            assert await drain(few) == [b"7", b"8", b"9"]
            assert (many.waiting, many.dropped) == (10, 0)
            assert sum(broker.snapshot().stats.dropped.values()) == 7

    run(main())


def test_a_queue_has_the_bound_in_bytes_of_a_network_client() -> None:
    async def main() -> None:
        async with serve(max_queued_bytes=10_000) as broker:
            messages = broker.subscribe("a")
            for _ in range(20):
                await broker.publish("a", b"x" * 4000)
            assert (messages.waiting, messages.dropped) == (2, 18)

    run(main())


def test_retained_messages_come_first_unless_they_are_not_wanted() -> None:
    async def main() -> None:
        async with serve() as broker:
            await broker.publish("a/1", b"old", retain=True)
            await broker.publish("a/2", b"gone", retain=True)
            await broker.publish("a/2", b"", retain=True)
            wanted, unwanted = broker.subscribe("a/#"), broker.subscribe("a/#", retained=False)
            shared = broker.subscribe("$share/g/a/#")
            await broker.publish("a/1", b"new")
            assert await drain(wanted) == [b"old", b"new"]
            assert await drain(unwanted) == [b"new"]
            assert await drain(shared) == [b"new"]

    run(main())


def test_many_retained_messages_come_one_slice_a_turn_in_order_and_none_is_dropped() -> None:
    async def main() -> None:
        async with serve() as broker:
            for number in range(3 * SLICE):
                await broker.publish(f"a/{number}", b"old", retain=True)
            messages = broker.subscribe("a/#")
            assert 0 < messages.waiting <= SLICE
            await broker.publish(f"a/{3 * SLICE - 1}", b"new")  # what was retained there goes first
            got = [await soon(anext(messages)) for _ in range(3 * SLICE + 1)]
            last = [message.payload for message in got if message.topic == f"a/{3 * SLICE - 1}"]
            assert last == [b"old", b"new"]
            assert len({message.topic for message in got}) == 3 * SLICE
            few = broker.subscribe("a/#", max_messages=10)
            assert few.waiting <= 10
            assert len({(await soon(anext(few))).topic for _ in range(3 * SLICE)}) == 3 * SLICE
            for subscription in (messages, few):
                assert (subscription.waiting, subscription.dropped) == (0, 0)

    run(main())


def test_a_subscription_that_is_closed_gets_no_more_retained_messages() -> None:
    async def main() -> None:
        async with serve() as broker:
            for number in range(2 * SLICE):
                await broker.publish(f"a/{number}", b"x", retain=True)
            messages = broker.subscribe("a/#")
            waiting = messages.waiting
            messages.close()
            assert len([message async for message in messages]) == waiting <= SLICE

    run(main())


def test_overlapping_filters_of_one_subscription_give_each_message_once() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a/b", "a/+", "#", "a/b")
            await broker.publish("a/b", b"x")
            assert await drain(messages) == [b"x"]

    run(main())


def test_members_of_a_shared_subscription_share_and_a_busy_one_loses_nothing() -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "net") as client:
            one, two = broker.subscribe("$share/g/a"), broker.subscribe("$share/g/a")
            await client.subscribe("$share/g/a")
            for number in range(30):
                await broker.publish("a", b"%d" % number)
            mine = [*await drain(one), *await drain(two)]
            theirs = [(await client.message()).payload for _ in range(30 - len(mine))]
            assert sorted([*mine, *theirs]) == sorted(b"%d" % number for number in range(30))
            assert one.dropped == two.dropped == 0
            assert theirs

    run(main())


def test_what_a_closed_member_of_a_shared_subscription_had_not_taken_goes_to_the_others() -> None:
    async def main() -> None:
        async with serve() as broker:
            one, two = broker.subscribe("$share/g/a"), broker.subscribe("$share/g/a")
            for number in range(10):
                await broker.publish("a", b"%d" % number)
            one.close()
            assert sorted(await drain(two)) == sorted(b"%d" % number for number in range(10))
            assert [message async for message in one] == []

    run(main())


def test_closing_ends_the_iteration_after_what_was_in_the_queue() -> None:
    async def main() -> None:
        async with serve() as broker:
            async with broker.subscribe("a") as messages:
                await broker.publish("a", b"1")
                await broker.publish("a", b"2")
                messages.close()
                await broker.publish("a", b"3")
                assert [message.payload async for message in messages] == [b"1", b"2"]
                messages.close()
            assert broker.snapshot().subscriptions == 0

    run(main())


def test_closing_wakes_everybody_who_waits_for_a_message() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")

            async def consume() -> list[Message]:
                return [message async for message in messages]

            waiting = [asyncio.create_task(consume()) for _ in range(3)]
            await asyncio.sleep(0)
            messages.close()
            assert await soon(asyncio.gather(*waiting)) == [[], [], []]

    run(main())


def test_a_stop_ends_the_iteration_after_what_was_in_the_queue() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")
            await broker.publish("a", b"1")
        assert [message.payload async for message in messages] == [b"1"]

    run(main())


def test_an_abandoned_subscription_is_unsubscribed() -> None:
    async def main() -> None:
        async with serve() as broker:
            await broker.publish("a", b"x", retain=True)
            async for message in broker.subscribe("a", "b/+", "$share/g/c"):
                assert message.payload == b"x"
                assert broker.snapshot().subscriptions == 3
                break
            del message
            gc.collect()
            await until(lambda: broker.snapshot().subscriptions == 0)

    run(main())


def test_cancelling_a_wait_loses_no_message() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")
            received: list[bytes] = []
            for number in range(200):
                waiting = asyncio.create_task(anext(messages))
                if number % 3:
                    await asyncio.sleep(0)
                await broker.publish("a", b"%d" % number)
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    received.append((await waiting).payload)
            received += await drain(messages)
            assert received == [b"%d" % number for number in range(200)]

    run(main())


def test_a_subscriber_that_always_finds_a_message_leaves_the_loop_to_others() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")
            for _ in range(1000):
                await broker.publish("a", b"x")
            turns = 0

            async def turn() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(turn())
            for _ in range(1000):
                await anext(messages)
            assert turns >= 10
            task.cancel()

    run(main())


def test_an_expired_message_is_not_handed_over_and_counted() -> None:
    async def main() -> None:
        async with serve() as broker:
            messages = broker.subscribe("a")
            await broker.publish("a", b"stale", properties={"message_expiry_interval": 0})
            await broker.publish("a", b"fresh")
            assert (await anext(messages)).payload == b"fresh"
            assert messages.dropped == 1

    run(main())
