"""gmqtt, which speaks MQTT by itself, against ``tidings broker``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import gmqtt
import pytest
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

HOST = "127.0.0.1"
TIMEOUT_S = 10
VERSIONS = {"3.1.1": MQTTv311, "5.0": MQTTv50}

Message = tuple[str, bytes, int, dict[str, Any]]


class Client:
    """A gmqtt client with its messages in a queue. ``told``: the properties of CONNACK."""

    def __init__(self, client_id: str, **options: Any) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.suback: asyncio.Queue[list[int]] = asyncio.Queue()
        self.told: dict[str, Any] = {}
        self.session_present = False
        self.ended = asyncio.Event()
        self.client = gmqtt.Client(client_id, **options)
        self.client.set_config({"reconnect_retries": 0})
        self.client.on_connect = self._on_connect
        self.client.on_message = self._on_message
        self.client.on_subscribe = lambda client, mid, granted, properties: self.suback.put_nowait(list(granted))
        self.client.on_disconnect = lambda client, packet, exc=None: self.ended.set()

    def _on_connect(self, client: gmqtt.Client, flags: int, code: int, properties: dict[str, Any]) -> None:
        assert code == 0
        self.session_present = bool(flags & 1)
        self.told = properties

    async def _on_message(
        self, client: gmqtt.Client, topic: str, payload: bytes, qos: int, properties: dict[str, Any]
    ) -> int:
        self.messages.put_nowait((topic, payload, qos, properties))
        return 0

    async def subscribe(self, filter: str, qos: int, **options: Any) -> list[int]:
        self.client.subscribe(filter, qos, **options)
        async with asyncio.timeout(TIMEOUT_S):
            return await self.suback.get()

    async def take(self, count: int) -> list[Message]:
        async with asyncio.timeout(TIMEOUT_S):
            return [await self.messages.get() for _ in range(count)]


@asynccontextmanager
async def connected(port: int, client_id: str, version: str = "5.0", **options: Any) -> AsyncIterator[Client]:
    client = Client(client_id, **options)
    await client.client.connect(HOST, port, version=VERSIONS[version])
    try:
        yield client
    finally:
        await client.client.disconnect()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_arrive_once_and_in_order(port: int, name: str, topic: str, version: str, qos: int) -> None:
    async def run() -> None:
        async with connected(port, f"{name}r", version) as receiver, connected(port, f"{name}s", version) as sender:
            assert await receiver.subscribe(f"{topic}/#", qos) == [qos]
            for number in range(50):
                sender.client.publish(f"{topic}/a", bytes([number]), qos)
            received = await receiver.take(50)
            sender.client.publish(f"{topic}/end", b"", qos)
            (last,) = await receiver.take(1)
        assert [each[:3] for each in received] == [(f"{topic}/a", bytes([number]), qos) for number in range(50)]
        assert last[0] == f"{topic}/end"

    asyncio.run(run())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_retained_message_waits_for_newcomers(port: int, name: str, topic: str, version: str) -> None:
    async def run() -> None:
        async with connected(port, name, version) as client:
            client.client.publish(topic, b"kept", 0, retain=True)
            await client.subscribe(topic, 1)
            ((_, payload, _, properties),) = await client.take(1)
        assert (payload, properties["retain"]) == (b"kept", 1)

    asyncio.run(run())


def test_a_session_keeps_what_comes_while_its_client_is_away(port: int, name: str, topic: str) -> None:
    kept: dict[str, Any] = {"clean_session": False, "session_expiry_interval": 60}

    async def run() -> None:
        async with connected(port, name, **kept) as client:
            await client.subscribe(topic, 2)
        async with connected(port, f"{name}s") as sender:
            await sender.subscribe(f"{topic}/+", 1)
            for number in range(20):
                sender.client.publish(topic, bytes([number]), 1 + number % 2)
            sender.client.publish(f"{topic}/end", b"", 1)
            await sender.take(1)
        async with connected(port, name, **kept) as client:
            assert client.session_present
            received = await client.take(20)
        # Order holds for messages of one topic and one QoS: 5.0 section 4.6.
        for qos in (1, 2):
            mine = [each[1] for each in received if each[2] == qos]
            assert mine == [bytes([number]) for number in range(20) if 1 + number % 2 == qos]

    asyncio.run(run())


def test_properties_are_passed_on_as_they_were_given(port: int, name: str, topic: str) -> None:
    told = {
        "content_type": "text/plain",
        "response_topic": "r/t",
        "correlation_data": b"7",
        "message_expiry_interval": 600,
    }

    async def run() -> None:
        async with connected(port, name) as client:
            assert client.told["topic_alias_maximum"][0] > 0
            await client.subscribe(topic, 1, subscription_identifier=5)
            client.client.publish(topic, b"x", 1, user_property=[("b", "1"), ("a", "2"), ("b", "3")], **told)
            ((_, _, _, properties),) = await client.take(1)
        assert properties["user_property"] == [("b", "1"), ("a", "2"), ("b", "3")]
        assert properties["subscription_identifier"] == [5]
        assert properties["correlation_data"] == [b"7"]

    asyncio.run(run())


def test_the_will_is_published_when_the_second_connection_takes_over(port: int, name: str, topic: str) -> None:
    will = gmqtt.Message(topic, b"gone", qos=1, will_delay_interval=0)

    async def run() -> None:
        async with connected(port, f"{name}w") as watcher, connected(port, name, will_message=will) as first:
            await watcher.subscribe(topic, 1)
            async with connected(port, name):
                ((_, payload, qos, _),) = await watcher.take(1)
                async with asyncio.timeout(TIMEOUT_S):
                    await first.ended.wait()
        assert (payload, qos) == (b"gone", 1)

    asyncio.run(run())
