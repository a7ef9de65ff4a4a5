"""aiomqtt against ``tidings broker``."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST = "127.0.0.1"
TIMEOUT_S = 10
VERSIONS = {
    "3.1": aiomqtt.ProtocolVersion.V31,
    "3.1.1": aiomqtt.ProtocolVersion.V311,
    "5.0": aiomqtt.ProtocolVersion.V5,
}


@asynccontextmanager
async def connected(port: int, version: str = "5.0", **options: Any) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client(HOST, port, protocol=VERSIONS[version], timeout=TIMEOUT_S, **options) as client:
        yield client


async def take(client: aiomqtt.Client, count: int) -> list[aiomqtt.Message]:
    found: list[aiomqtt.Message] = []
    async with asyncio.timeout(TIMEOUT_S):
        while len(found) < count:
            found.append(await anext(client.messages))
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_arrive_once_and_in_order(port: int, topic: str, version: str, qos: int) -> None:
    async def run() -> None:
        async with connected(port, version) as sender, connected(port, version) as receiver:
            await receiver.subscribe(f"{topic}/#", qos)
            for number in range(50):
                await sender.publish(f"{topic}/a", bytes([number]), qos)
            await sender.publish(f"{topic}/end", b"", qos)
            received = await take(receiver, 51)
        assert [(each.payload, each.qos) for each in received[:50]] == [(bytes([number]), qos) for number in range(50)]
        assert received[50].topic.value == f"{topic}/end"

    asyncio.run(run())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_newcomer_gets_the_retained_messages_that_match(port: int, topic: str, version: str) -> None:
    async def run() -> None:
        async with connected(port, version) as client:
            for name in ("a/temp", "b/temp", "b/humidity"):
                await client.publish(f"{topic}/{name}", name, 1, retain=True)
            await client.subscribe(f"{topic}/+/temp", 1)
            received = await take(client, 2)
        assert {(each.topic.value, each.payload, each.retain) for each in received} == {
            (f"{topic}/{name}", name.encode(), True) for name in ("a/temp", "b/temp")
        }

    asyncio.run(run())


@pytest.mark.parametrize("version", VERSIONS)
def test_many_clients_at_once_lose_nothing(port: int, topic: str, version: str) -> None:
    async def publish(number: int) -> None:
        async with connected(port, version) as client:
            await asyncio.gather(*(client.publish(f"{topic}/{number}", bytes([each]), 1) for each in range(20)))

    async def run() -> None:
        async with connected(port, version, max_concurrent_outgoing_calls=100) as receiver:
            await receiver.subscribe(f"{topic}/+", 1)
            await asyncio.gather(*(publish(number) for number in range(20)))
            received = await take(receiver, 400)
        for number in range(20):
            mine = [each.payload for each in received if each.topic.value == f"{topic}/{number}"]
            assert mine == [bytes([each]) for each in range(20)]

    asyncio.run(run())


def test_a_session_keeps_what_comes_while_its_client_is_away(port: int, topic: str, name: str) -> None:
    kept = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    kept.SessionExpiryInterval = 60
    options: dict[str, Any] = {"identifier": name, "clean_start": False, "properties": kept}

    async def run() -> None:
        async with connected(port, **options) as client:
            await client.subscribe(topic, 2)
        async with connected(port) as sender:
            for number in range(20):
                await sender.publish(topic, bytes([number]), 2)
        async with connected(port, **options) as client:
            received = await take(client, 20)
        assert [each.payload for each in received] == [bytes([number]) for number in range(20)]

    asyncio.run(run())


def test_properties_and_the_will_are_passed_on(port: int, topic: str) -> None:
    told = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
    told.UserProperty = [("b", "1"), ("a", "2")]
    will = aiomqtt.Will(topic, b"gone", 1, properties=told)

    async def run() -> None:
        async with connected(port) as watcher:
            await watcher.subscribe(topic, 1)
            async with connected(port, will=will) as client:
                sock: Any = client._client.socket()
                sock.shutdown(socket.SHUT_RDWR)
                with pytest.raises(aiomqtt.MqttError):
                    await take(client, 1)
            (message,) = await take(watcher, 1)
        received: Any = message.properties
        assert (message.payload, received.UserProperty) == (b"gone", [("b", "1"), ("a", "2")])

    asyncio.run(run())
