"""What plugins are told, and what they can do through their context."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tidings.broker import Broker
from tidings.broker.codec.packets import Disconnect, Puback, Publish, Suback, Subscribe, SubscribeFilter, Unsubscribe

from ..raw_client import run, until
from .samples import ANONYMOUS, Diary, Hand, enter, hosting, path, plugin, will_on

T = TypeVar("T")

LIFE = ["broker_pre_start", "broker_post_start"]
CLIENT = ["broker_client_connected", "broker_client_subscribed", "broker_client_unsubscribed"]


async def drained(broker: Broker) -> Diary:
    """The diary, once everything that happened is in it."""
    assert broker._plugins is not None
    await broker._plugins._bridge.run(broker._plugins.events.drain(), 5)
    diary: Diary = plugin(broker, Diary)
    return diary


async def inside(broker: Broker, work: Callable[[Any], Awaitable[T]]) -> T:
    """What ``work`` does with the context of a plugin, in the plugins' thread."""
    assert broker._plugins is not None

    async def call() -> T:
        return await work(plugin(broker, Hand).context)

    return await broker._plugins._bridge.run(call(), 5)


def test_events_of_a_life_come_in_order_with_what_belongs_to_them() -> None:
    async def scene() -> None:
        only = {
            "only": [*LIFE, *CLIENT, "broker_message_received", "broker_client_disconnected", "broker_pre_shutdown"]
        }
        async with hosting(ANONYMOUS, {path(Diary): only}) as broker:
            client = await enter(broker, "u", client_id="c", will=will_on("w"))
            await client.subscribe("t", 1)
            client.send(Publish("t", b"hello", 1, True, packet_id=7), Unsubscribe(2, ["t"]), Disconnect())
            await client.rest()
            client.abort()
            diary = await drained(broker)
            names = [name for name, _ in diary.entries]
            assert names == [
                *LIFE,
                "broker_client_connected",
                "broker_client_subscribed",
                "broker_message_received",
                "broker_client_unsubscribed",
                "broker_client_disconnected",
            ]
            [connected] = diary.of("broker_client_connected")
            session = connected["client_session"]
            assert (connected["client_id"], session.client_id, session.username) == ("c", "c", "u")
            assert (session.will_flag, session.will_topic, session.will_qos, session.will_retain) == (
                True,
                "w",
                1,
                True,
            )
            assert session.remote_address == "127.0.0.1"
            assert session.is_anonymous
            assert session.transitions.state == "disconnected"
            assert diary.of("broker_client_subscribed") == [{"client_id": "c", "topic": "t", "qos": 1}]
            [received] = diary.of("broker_message_received")
            message = received["message"]
            assert (message.topic, message.data, message.qos, message.retain) == ("t", b"hello", 1, True)
            assert message.publish_packet.retain_flag
        assert diary.entries[-1][0] == "broker_pre_shutdown"

    run(scene())


def test_messages_that_are_refused_were_received_all_the_same() -> None:
    async def scene() -> None:
        diary = {path(Diary): {"only": ["broker_message_received", "broker_message_broadcast"]}}
        taboo = "amqtt.plugins.topic_checking.TopicTabooPlugin"
        async with hosting(ANONYMOUS, taboo, diary) as broker, await enter(broker, "u") as client:
            assert await client.publish("prohibited") == 0x87
            assert await client.publish("allowed") == 0x10
            entries = (await drained(broker)).entries
            told = [(name.rpartition("_")[2], values["message"].topic) for name, values in entries]
            assert told == [("received", "prohibited"), ("received", "allowed"), ("broadcast", "allowed")]

    run(scene())


def test_retained_messages_and_those_for_who_is_away() -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS, {path(Diary): {"only": ["broker_retained_message"]}}) as broker:
            away = await enter(broker, "u", client_id="away", properties={"session_expiry_interval": 99})
            await away.subscribe("t", 1)
            away.send(Disconnect())
            await away.rest()
            away.abort()
            async with await enter(broker, "u") as client:
                client.send(Publish("t", b"1", 1, True, packet_id=1), Publish("t", b"", 0, True))
                await client.expect(Puback)
                entries = (await drained(broker)).of("broker_retained_message")
            told = [(entry["client_id"], bytes(entry["retained_message"].data)) for entry in entries]
            assert told == [(None, b"1"), ("away", b"1"), (None, b"")]

    run(scene())


def test_packets_are_seen_in_both_directions_without_the_password() -> None:
    async def scene() -> None:
        only = {"only": ["mqtt_packet_received", "mqtt_packet_sent"]}
        async with (
            hosting(ANONYMOUS, {path(Diary): only}) as broker,
            await enter(broker, "u", "secret", client_id="c") as client,
        ):
            await client.subscribe("t")
            client.send(*(Publish("t", b"%d" % number) for number in range(3)))
            for _ in range(3):
                await client.message()
            entries = (await drained(broker)).entries
            for way, expected in {
                "received": ["ConnectPacket", "SubscribePacket", *["PublishPacket"] * 3],
                "sent": ["ConnackPacket", "SubackPacket", *["PublishPacket"] * 3],
            }.items():
                packets = [values["packet"] for name, values in entries if name.endswith(way)]
                assert [type(packet).__name__ for packet in packets] == expected
                assert all(packet.bytes_length >= 2 for packet in packets)
            assert "secret" not in repr(entries)
            assert entries[-1][1]["session"].client_id == "c"

    run(scene())


def test_packet_logger_writes_only_where_somebody_looks(caplog: pytest.LogCaptureFixture) -> None:
    packet_logger = "amqtt.plugins.logging_amqtt.PacketLoggerPlugin"

    async def scene() -> None:
        async with hosting(ANONYMOUS, packet_logger) as broker, await enter(broker, "u", client_id="c"):
            assert broker._plugins is not None
            assert (broker._plugins.events.tap is not None) is (level == logging.DEBUG)
            await broker._plugins._bridge.run(broker._plugins.events.drain(), 5)

    for level in (logging.INFO, logging.DEBUG):
        caplog.clear()
        with caplog.at_level(level, "amqtt.broker.plugins"):
            run(scene())
        assert ("ConnackPacket" in caplog.text) is (level == logging.DEBUG)


def test_callbacks_that_never_end_are_given_up_and_events_beyond_the_bound_are_dropped() -> None:
    async def scene() -> None:
        diary = {path(Diary): {"only": ["broker_message_received"], "hang": True}}
        options: dict[str, Any] = {
            "max_plugin_calls": 2,
            "max_plugin_events": 5,
            "plugin_timeout_s": 0.05,
            "sys_interval_s": 0.2,
        }
        async with hosting(ANONYMOUS, diary, **options) as broker, await enter(broker, "u") as client:
            for number in range(30):
                client.send(Publish("t", b"%d" % number))
            assert await client.publish("t") == 0x10
            untold = broker.snapshot().stats.untold
            assert untold >= 20
            await client.subscribe("$SYS/tidings/plugins/#")
            assert int((await client.message()).payload) >= untold
            told: Diary = plugin(broker, Diary)
            await until(lambda: len(told.entries) >= 4)

    run(scene())


# the context


def test_context_broadcasts_at_the_qos_of_each_subscriber() -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS, Hand) as broker, await enter(broker, "u") as client:
            await client.subscribe("a/#", 1)
            await client.subscribe("$SYS/x")
            await inside(broker, lambda context: context.broadcast_message("a/b", b"1"))
            await inside(broker, lambda context: context.broadcast_message("a/b", b"2", 0))
            await inside(broker, lambda context: context.broadcast_message("$SYS/x", b"3"))
            got = [await client.message() for _ in range(3)]
            assert [(each.topic, each.payload, each.qos) for each in got] == [
                ("a/b", b"1", 1),
                ("a/b", b"2", 0),
                ("$SYS/x", b"3", 0),
            ]

    run(scene())


def test_context_retains_and_shows_what_is_retained() -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS, Hand) as broker, await enter(broker, "u") as client:
            await inside(broker, lambda context: context.retain_message("a/b", b"kept"))
            client.send(Publish("c", b"theirs", 0, True), Subscribe(1, [SubscribeFilter("a/#")]))
            await client.expect(Suback)
            assert (await client.message()).payload == b"kept"

            async def look(context: Any) -> None:
                kept = context.retained_messages
                assert {topic: kept[topic].data for topic in kept} == {"a/b": b"kept", "c": b"theirs"}
                assert len(kept) == 2
                del kept["a/b"]
                assert "a/b" not in kept
                kept["d"] = kept["c"]

            await inside(broker, look)
            await inside(broker, lambda context: context.retain_message("c", b""))
            assert broker._engine is not None
            assert [message.topic for message in broker._engine.retained] == ["d"]

    run(scene())


def test_context_shows_sessions_and_subscriptions_and_makes_some() -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS, Hand) as broker, await enter(broker, "u", client_id="here") as client:
            await client.subscribe("a/#", 1)

            async def look(context: Any) -> None:
                assert [session.client_id for session in context.sessions] == ["here"]
                assert context.get_session("here").username == "u"
                assert context.get_session("nobody") is None
                await context.add_subscription("later", None, None)
                await context.add_subscription("later", "b/#", 1)
                await context.add_subscription("later", "wrong/#/", 1)
                filters = {
                    filter: [(s.client_id, qos) for s, qos in of] for filter, of in context.subscriptions.items()
                }
                assert filters == {"a/#": [("here", 1)], "b/#": [("later", 1)]}
                assert context.get_session("later").transitions.state == "disconnected"

            await inside(broker, look)
            assert await client.publish("b/1", b"waits") == 0
            later = await enter(broker, "u", client_id="later", clean_start=False)
            assert (await later.message()).payload == b"waits"
            later.abort()

    run(scene())


def test_context_works_where_the_broker_has_stopped() -> None:
    async def scene() -> Any:
        async with hosting(ANONYMOUS, Hand) as broker:
            return plugin(broker, Hand).context

    context = run(scene())
    with pytest.raises(Exception, match=r"stopped|closed"):
        asyncio.run(context.broadcast_message("t", b""))
