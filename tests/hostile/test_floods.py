"""Much of everything: connections, levels, filters, properties, messages that nobody reads. Memory stays bounded."""

import asyncio
import re
import resource

import pytest

from tidings.broker.codec import encode
from tidings.broker.codec.packets import MQTT_5_0, Pingreq, Puback, Publish, Suback, Subscribe, SubscribeFilter
from tidings.broker.config import Config
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant, Topics
from tidings.broker.core.window import Window
from tidings.broker.transport.links import TURN

from ..conformance.wire import Wire
from ..raw_client import RawClient, links_of, run, serve, until

CONNECTIONS = 2000
LONGEST = "x" * 65_535
DEEPEST = "/".join("x" * 10_000)


def test_two_thousand_connections_that_send_nothing_are_not_noticed_by_others() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * CONNECTIONS + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * CONNECTIONS + 200), hard))

    async def main() -> None:
        async with serve(connect_timeout_s=60) as broker, await RawClient.connect(broker.urls[0], "good") as good:
            flood = [await RawClient.open(broker.urls[0]) for _ in range(CONNECTIONS)]
            await until(lambda: broker._links is not None and len(broker._links.open) == CONNECTIONS + 1)
            await good.subscribe("good")
            for number in range(100):
                good.send(Publish("good", b"%d" % number))
                assert (await good.message()).payload == b"%d" % number
            for client in flood:
                client.abort()
            await until(lambda: broker._links is not None and len(broker._links.open) == 1)

    run(main())


# topics


@pytest.mark.parametrize("version", [4, 5])
def test_a_topic_of_65535_bytes_is_a_topic(version: int) -> None:
    wire = Wire()
    client = wire.connect("long", version)
    assert client.subscribe(LONGEST) == 0
    client.publish(LONGEST, b"x", retain=True)
    assert client.messages() == [Publish(LONGEST, b"x")]
    other = wire.connect("other", version)
    assert other.subscribe("#") == 0
    assert other.messages() == [Publish(LONGEST, b"x", retain=True)]


@pytest.mark.parametrize("filter", [DEEPEST, DEEPEST + "/#", "/".join("+" * 10_000), "$share/g/" + DEEPEST])
def test_a_filter_of_too_many_levels_is_refused_and_the_client_stays(filter: str) -> None:
    wire = Wire()
    new, old = wire.connect("new", 5), wire.connect("old", 4)
    assert new.subscribe(filter) == 0x8F
    assert old.subscribe(filter) == 0x80
    assert (new.closed, old.closed) == (False, False)
    assert wire.engine.topics.count == 0


@pytest.mark.parametrize("retain", [False, True])
def test_a_topic_of_too_many_levels_is_refused_and_reaches_nobody(retain: bool) -> None:
    wire = Wire()
    everything = wire.connect("everything")
    everything.subscribe("#")
    client = wire.connect("deep")
    client.publish(DEEPEST, b"x", qos=1, retain=retain, packet_id=3)
    assert client.receive() == [Puback(3, 0x90)]
    for version in (4, 5):
        wire.connect(f"deep {version}", version).publish(DEEPEST, b"x", retain=retain)
    assert everything.messages() == []
    assert len(wire.engine.retained) == 0


def test_what_is_refused_is_not_repeated_at_length() -> None:
    """A reason string must fit a packet, and the log is not for what clients write."""
    wire = Wire()
    client = wire.connect("a")
    for filter in (
        "$share/" + LONGEST[7:],
        "\u200b" * 20_000 + "#",
        "#" + LONGEST[1:],
        "$share/" + "\U000e0001" * 16_000,
    ):
        assert client.subscribe(filter) == 0x8F
    client.send(Subscribe(1, [SubscribeFilter("$share/" + "\U000e0001" * 16_000, 0)]))
    suback = client.expect(Suback)
    assert len(suback.properties.get("reason_string", "")) < 1000


def test_what_is_refused_is_logged_in_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tidings.broker")
    wire = Wire()
    client = wire.connect("i" * 60_000)
    client.subscribe("#" + LONGEST[1:])
    client.subscribe("$share/" + "\U000e0001" * 16_000)
    client.publish("a/" + LONGEST[2:] + "", b"x", qos=1, retain=True)
    client.send("30 L " + "s:" + "a/#" + "b" * 60_000 + " 00")
    wire.connect("i" * 60_000 + "\n\x1b[2J").send("00 00")
    for record in caplog.records:
        message = record.getMessage()
        assert len(message) < 2000, message[:200]
        assert not re.search(r"[\n\x1b]", message), message[:200]


def test_retained_messages_are_bounded_in_number_and_bytes() -> None:
    wire = Wire(max_retained_messages=100, max_retained_bytes=100_000)
    client = wire.connect("hoarder")
    refused = 0
    for number in range(200):
        client.publish(f"t/{number}", b"x" * 10, qos=1, retain=True)
        refused += client.expect(Puback).reason == 0x97
    assert (len(wire.engine.retained), refused) == (100, 100)
    other = wire.connect("other")
    other.publish("t/0", b"x" * 200_000, qos=1, retain=True)
    assert other.expect(Puback).reason == 0x97
    assert wire.engine.retained.bytes <= 100_000


# filters


class Counting(str):
    """The name of a level that counts how often a look into the tree finds it."""

    __slots__ = ()
    asked = 0

    def __eq__(self, other: object) -> bool:
        Counting.asked += 1
        return super().__eq__(other)

    __hash__ = str.__hash__


def count_nodes(topics: Topics) -> int:
    """Every node of the tree; from now on looking at one is counted."""
    nodes = [topics._root]
    for node in nodes:
        if node.plus is not None:
            nodes.append(node.plus)
        if node.children is not None:
            nodes += node.children.values()
            node.children = {Counting(level): child for level, child in node.children.items()}
    return len(nodes)


def explosion(depth: int) -> list[str]:
    """Every filter of ``depth`` levels of a or +: the frontier of a/a/a/… doubles at each level."""
    filters = [""]
    for _ in range(depth):
        filters = [f"{filter}/{level}" for filter in filters for level in "a+"]
    return [filter[1:] for filter in filters]


def test_filters_that_explode_cost_no_more_than_their_nodes() -> None:
    topics = Topics(1000)
    window = Window("a", Config(), Stats())
    filters = explosion(13)
    for filter in filters:
        topics.subscribe(filter, window, Grant())
    assert len(filters) == 8192
    nodes = count_nodes(topics)
    assert nodes < 2**14
    Counting.asked = 0
    route = topics.match("/".join("a" * 13))
    assert [windows for _, windows in route.groups] == [[window]]
    assert nodes / 3 < Counting.asked <= nodes
    for topic in ("/".join("a" * 12), "/".join("a" * 200), "b"):
        Counting.asked = 0
        topics.match(topic)
        assert Counting.asked <= nodes


def test_a_topic_that_was_looked_up_is_not_looked_up_again() -> None:
    topics = Topics(1000)
    topics.subscribe("+/#", Window("a", Config(), Stats()), Grant())
    count_nodes(topics)
    topics.match("a/b/c")
    Counting.asked = 0
    topics.match("a/b/c")
    assert Counting.asked == 0


def test_ten_thousand_wildcards_of_one_client_give_it_each_message_once() -> None:
    wire = Wire()
    client = wire.connect("greedy")
    filters = [*explosion(13), *(f"+/{number}/#" for number in range(2000))]
    client.send(Subscribe(1, [SubscribeFilter(filter, 0) for filter in filters]))
    reasons = client.expect(Suback).reasons
    assert [reasons.count(reason) for reason in (0, 0x97)] == [10_000, len(filters) - 10_000]
    wire.connect("good").publish("/".join("a" * 13), b"x")
    assert client.payloads() == [b"x"]
    client.drop()
    assert wire.engine.topics.count == 0


def test_filters_that_are_long_or_deep_are_bounded_together() -> None:
    wire = Wire()
    deep, long = wire.connect("deep"), wire.connect("long")
    for filter in explosion(13):
        deep.send(Subscribe(1, [SubscribeFilter(filter + "/+" * 186, 0)]))
    reasons = [packet.reasons[0] for packet in deep.receive() if isinstance(packet, Suback)]
    granted = reasons.count(0)
    assert reasons == [0] * granted + [0x97] * (8192 - granted)
    assert 500 < granted < 1000
    assert count_nodes(wire.engine.topics) < 200_000
    assert long.subscribe(LONGEST) == 0
    for number in range(100):
        long.send(Subscribe(1, [SubscribeFilter(f"{number:05d}{LONGEST[5:]}", 0)]))
    assert 0x97 in [packet.reasons[0] for packet in long.receive() if isinstance(packet, Suback)]
    assert wire.connect("other").subscribe("#") == 0
    for filter in explosion(13)[:granted]:
        deep.unsubscribe(filter + "/+" * 186)
    assert deep.subscribe("a/" * 199) == 0


def test_the_identifiers_of_thousands_of_subscriptions_come_with_each_message() -> None:
    wire = Wire()
    client = wire.connect("greedy")
    for number, filter in enumerate(explosion(12), 1):
        client.send(Subscribe(1, [SubscribeFilter(filter, 0)], {"subscription_identifier": [number]}))
    client.receive()
    wire.connect("good").publish("/".join("a" * 12), b"x")
    (message,) = client.messages()
    assert sorted(message.properties["subscription_identifier"]) == list(range(1, 4097))


# properties


def test_thousands_of_user_properties_arrive_in_order_and_count_as_memory() -> None:
    pairs = [(f"k{number % 7}", f"{number}") for number in range(5_000)]
    wire = Wire(keeps=False, max_queued_bytes=2_000_000)
    keeper = wire.connect("keeper", session_expiry_interval=1000)
    keeper.subscribe("a", 1)
    keeper.drop()
    reader = wire.connect("reader")
    reader.subscribe("a")
    sender = wire.connect("sender")
    for number in range(20):
        sender.publish("a", b"", qos=1, user_property=pairs)
        assert sender.expect(Puback).reason == 0, number
    messages = reader.messages()
    assert [message.properties["user_property"] for message in messages] == [pairs] * 20
    assert wire.engine.snapshot(wire.now).queued_bytes <= 2_000_000
    assert wire.engine.snapshot(wire.now).queued_messages < 5
    assert sum(wire.engine.stats.dropped.values()) > 15


# messages


def test_a_client_that_never_reads_holds_no_more_than_its_bounds_while_it_is_sent_to_and_causes_answers() -> None:
    limits = {
        "outbox_high_bytes": 16_384,
        "outbox_max_bytes": 200_000,
        "max_queued_messages": 50,
        "max_inflight": 20,
        "receive_maximum": 10,
    }

    async def main() -> None:
        async with (
            serve(**limits) as broker,
            await RawClient.connect(broker.urls[0], "stuck", buffer_bytes=4096) as stuck,
            await RawClient.connect(broker.urls[0], "good") as good,
        ):
            for filter, qos in (("flood/0", 0), ("flood/1", 1), ("flood/2", 2)):
                await stuck.subscribe(filter, qos)
            link = links_of(broker)["stuck"]
            transport = link._transport
            assert transport is not None
            data = encode(Publish("nobody", b"x", 1, packet_id=1), MQTT_5_0) + encode(Pingreq(), MQTT_5_0)
            for number in range(600):
                if stuck.writer.transport.get_write_buffer_size() < 100_000:
                    stuck.send(data * 100)
                await broker.publish(f"flood/{number % 3}", b"x" * 20_000, qos=number % 3)
                await good.publish("good")
                assert transport.get_write_buffer_size() <= 200_000 + (TURN + 1) * 16_384 + 3 * 20_100
            assert link.full
            snapshot = broker.snapshot()
            assert snapshot.inflight_messages <= 20
            assert snapshot.queued_messages <= 50
            assert snapshot.queued_bytes <= 50 * 21_000
            assert sum(snapshot.stats.dropped.values()) > 100
            await good.publish("good")

    run(main())


def test_a_client_that_publishes_more_than_it_may_have_under_way_is_cut_off() -> None:
    wire = Wire(receive_maximum=10)
    client = wire.connect("eager")
    client.send(*(Publish("a", b"x", 2, packet_id=number) for number in range(1, 20)))
    assert client.closed


def test_publishers_by_the_hundred_that_nobody_listens_to_leave_nothing() -> None:
    async def main() -> None:
        async with serve() as broker:

            async def publish(number: int) -> None:
                async with await RawClient.connect(broker.urls[0], f"p{number}") as client:
                    for count in range(10):
                        assert await client.publish(f"t/{number}/{count}", b"x" * 1000) == 0x10

            await asyncio.gather(*(publish(number) for number in range(200)))
            await until(lambda: broker.snapshot().clients_connected == 0)
            snapshot = broker.snapshot()
            assert (snapshot.queued_messages, snapshot.retained_messages, snapshot.subscriptions) == (0, 0, 0)

    run(main())
