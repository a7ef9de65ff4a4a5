"""Mutated conversations against a real broker over sockets, while a client that behaves goes on undisturbed."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest

from tidings.broker import Broker
from tidings.broker.codec import encode
from tidings.broker.codec.packets import (
    MQTT_5_0,
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscribeFilter,
    Unsubscribe,
    Will,
)
from tidings.broker.codec.properties import Properties

from ..raw_client import RawClient, run, serve, soon, until

AT_ONCE = 20
CONVERSATIONS = 50  # at least, however slow the machine is
EXCHANGES = 10
TOPICS = ("t", "t/a", "t/a/b", "u", "/", "t/" + "x" * 300)
FILTERS = ("#", "t/#", "t/+", "+", "$share/g/#", "$share/g/t/a", "$SYS/#", *TOPICS)


class Conversation:
    """One client's bytes: legal traffic, of which some is changed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.version = chance.choice((3, 4, 5))

    def pieces(self) -> Iterator[bytes]:
        """What to write, cut anywhere."""
        chance = self._chance
        data = bytearray()
        for packet in [self._connect(), *(self._packet() for _ in range(chance.randrange(30)))]:
            data += encode(packet, self.version)
        spared = chance.choice((0, len(encode(self._connect(), self.version))))  # so that some come past their CONNECT
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            self._mutate(data, spared)
        at = 0
        while at < len(data):
            size = chance.choice((1, 2, 10, 100, 1000, 100_000))
            yield bytes(data[at : at + size])
            at += size

    def _mutate(self, data: bytearray, spared: int) -> None:
        chance = self._chance
        at = chance.randrange(min(spared, len(data)), len(data) + 1)
        match chance.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(data):
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del data[at : at + chance.randrange(1, 10)]
            case 3:
                data[at:at] = chance.randbytes(chance.randrange(1, 10))
            case _:
                data[at:at] = data[at : at + chance.randrange(1, 200)] * chance.randrange(1, 3)

    def _connect(self) -> Connect:
        chance = self._chance
        properties: dict[str, Any] = {"session_expiry_interval": chance.choice((0, 1, 100, 0xFFFFFFFF))}
        if chance.random() < 0.3:
            properties["receive_maximum"] = chance.choice((1, 2, 65_535))
        if chance.random() < 0.3:
            properties["maximum_packet_size"] = chance.choice((1, 20, 100, 1_000_000))
        if chance.random() < 0.3:
            properties["topic_alias_maximum"] = chance.choice((0, 1, 65_535))
        will = Will(chance.choice(TOPICS), b"w", chance.randrange(3), chance.random() < 0.5)
        return Connect(
            f"fuzz-{chance.randrange(40)}",
            self.version,
            chance.random() < 0.5,
            chance.choice((0, 1, 60)),
            will=will if chance.random() < 0.5 else None,
            properties=self._of_5_0(**properties),
        )

    def _packet(self) -> Packet:
        chance = self._chance
        packet_id = chance.choice((1, 2, 3, 100, 65_535))
        match chance.randrange(14):
            case 0 | 1:
                filters = [
                    SubscribeFilter(chance.choice(FILTERS), chance.randrange(3)) for _ in range(chance.randrange(1, 4))
                ]
                return Subscribe(packet_id, filters, self._of_5_0(subscription_identifier=[7]))
            case 2:
                return Unsubscribe(packet_id, [chance.choice(FILTERS)])
            case 3:
                return Puback(packet_id)
            case 4:
                return Pubrec(packet_id)
            case 5:
                return Pubrel(packet_id)
            case 6:
                return Pubcomp(packet_id)
            case 7:
                return Pingreq()
            case 8 if chance.random() < 0.2:
                return Disconnect()
            case 9 if self.version == MQTT_5_0 and chance.random() < 0.2:
                return Auth(0, {"authentication_method": "m"})
            case _:
                properties: dict[str, Any] = {"user_property": [("k", "v")] * chance.randrange(3)}
                if chance.random() < 0.3:
                    properties["topic_alias"] = chance.randrange(1, 4)
                if chance.random() < 0.3:
                    properties["message_expiry_interval"] = chance.randrange(3)
                qos = chance.randrange(3)
                return Publish(
                    chance.choice(TOPICS),
                    chance.randbytes(chance.choice((0, 10, 3000))),
                    qos,
                    chance.random() < 0.3,
                    packet_id=packet_id if qos else 0,
                    properties=self._of_5_0(**properties),
                )

    def _of_5_0(self, **properties: Any) -> Properties:
        return cast(Properties, properties if self.version == MQTT_5_0 else {})


async def converse(url: str, chance: random.Random) -> None:
    """Hold one conversation; read some, all or none of what comes back, and end it in any way."""
    conversation = Conversation(chance)
    reader, writer = await asyncio.open_connection(*url.removeprefix("tcp://").split(":"))
    with suppress(ConnectionError):
        for piece in conversation.pieces():
            if writer.is_closing():
                break
            writer.write(piece)
            await soon(writer.drain())
            if chance.random() < 0.2:
                await asyncio.sleep(0)
        if chance.random() < 0.5:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await reader.read(10_000)
    if chance.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(broker: Broker, url: str, enough: asyncio.Event, done: asyncio.Event) -> None:
    """Messages from one client to another and to this process until ``done``; each must come, in order, once."""
    inside = broker.subscribe("control/#")
    count = 0
    async with (
        await RawClient.connect(url, "control sender") as sender,
        await RawClient.connect(url, "control receiver", 4) as receiver,
    ):
        await receiver.subscribe("control/#", 1)
        while not done.is_set():
            for qos in (0, 1):
                payload = b"%d" % count
                if qos:
                    assert await sender.publish("control/1", payload) == 0
                else:
                    sender.send(Publish("control/0", payload))
                message = await receiver.message()
                assert (message.topic, message.payload) == (f"control/{qos}", payload)
                assert (await soon(anext(inside))).payload == payload
                count += 1
            if count >= EXCHANGES:
                enough.set()
            await asyncio.sleep(0.001)
    assert (inside.dropped, inside.waiting) == (0, 0)


async def fuzz(seed: int, seconds: float, data_dir: Path | None) -> None:
    """Attack for ``seconds``, and for as long after that as it takes to hold enough conversations and exchanges."""
    async with serve(data_dir=data_dir, sys_interval_s=1, max_queued_messages=1000, durability="os") as broker:
        url = broker.urls[0]
        loop = asyncio.get_running_loop()
        enough, done = asyncio.Event(), asyncio.Event()
        control = asyncio.create_task(exchange(broker, url, enough, done))
        until_s = loop.time() + seconds
        held = 0

        async def attack(number: int) -> None:
            nonlocal held
            chance = random.Random(f"{seed} {number}")
            while (loop.time() < until_s or held < CONVERSATIONS or not enough.is_set()) and not control.done():
                await converse(url, chance)
                held += 1

        try:
            await asyncio.gather(*(attack(number) for number in range(AT_ONCE)))
        finally:
            done.set()
        await control
        await until(lambda: broker.snapshot().clients_connected == 0, "clients that left are still there")
        snapshot = broker.snapshot()
        assert snapshot.clients_disconnected <= 2000
        assert snapshot.queued_messages <= 1000 * snapshot.clients_disconnected


def check(seed: int, seconds: float, data_dir: Path | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "tidings.broker")
    run(fuzz(seed, seconds, data_dir))
    wrong = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert [record.getMessage() for record in wrong] == [], wrong[0].exc_text


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "store"])
def test_mutated_conversations_disturb_nobody(kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(1, 1.0, tmp_path if kept else None, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True], ids=["memory", "store"])
def test_mutated_conversations_disturb_nobody_for_long(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(random.randrange(2**32), 10.0, tmp_path if kept else None, caplog)
