"""A client that sends whatever bytes a test wants over a real socket, and brokers for it to send them to.

It answers nothing by itself and reads only when asked to, so that tests decide how slow or how wrong it is. What the
broker sends is read by a decoder in the client's role: anything that no server may send fails the test that met it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar, cast

import uvloop

from tidings.broker import Broker, Config
from tidings.broker.codec import Decoder, encode
from tidings.broker.codec.packets import (
    MQTT_5_0,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscribeFilter,
    Will,
)
from tidings.broker.codec.properties import Properties
from tidings.broker.transport.link import Link

TIMEOUT_S = 10.0  # no test waits that long unless it fails
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

P = TypeVar("P", bound=Packet)
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], loop: str = "uvloop") -> T:
    """Run ``work`` on a new event loop of the kind named."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(work)


@asynccontextmanager
async def serve(*listeners: str, **options: Any) -> AsyncIterator[Broker]:
    """A broker on a free port of 127.0.0.1, unless ``listeners`` say otherwise; ``$SYS`` is off."""
    settings = {
        "listeners": list(listeners) or ["tcp://127.0.0.1:0"],
        "sys_interval_s": 0,
        "stop_timeout_s": 1,
        **options,
    }
    async with Broker(Config.model_validate(settings)) as broker:
        yield broker


def links_of(broker: Broker) -> dict[str, Link]:
    """The open links of ``broker`` by client id; the one place where tests look at them."""
    assert broker._links is not None
    return {link.connection.client_id if link.connection is not None else "": link for link in list(broker._links.open)}


async def until(holds: Callable[[], bool], what: str = "it did not happen") -> None:
    """Let the loop turn, and sockets bring what they have, until ``holds``."""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.001)


async def soon(work: Awaitable[T]) -> T:
    """The result of ``work``, which may be late only in a test that fails."""
    async with asyncio.timeout(TIMEOUT_S):
        return await work


class RawClient:
    """One connection. ``url`` as ``Broker.urls`` has them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int) -> None:
        self.reader = reader
        self.writer = writer
        self.version = version
        self.connack = Connack()
        self._decoder = Decoder(side="client", version=version)
        self._packets: list[Packet] = []

    @classmethod
    async def open(cls, url: str, version: int = MQTT_5_0, *, buffer_bytes: int = 0) -> Self:
        """A connection on which nothing was sent. ``buffer_bytes`` limits what the kernel takes for its reader."""
        scheme, _, rest = url.partition("://")
        sock = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        sock.setblocking(False)
        if buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        host, _, port = rest.rpartition(":")
        try:
            await asyncio.get_running_loop().sock_connect(sock, rest if scheme == "unix" else (host, int(port)))
        except OSError:
            sock.close()
            raise
        limit = buffer_bytes or 65_536
        if scheme == "unix":
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=limit)
        else:
            reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        return cls(reader, writer, version)

    @classmethod
    async def connect(
        cls,
        url: str,
        client_id: str,
        version: int = MQTT_5_0,
        *,
        clean_start: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        buffer_bytes: int = 0,
        **properties: Any,
    ) -> Self:
        """A client whose CONNECT was accepted."""
        client = await cls.open(url, version, buffer_bytes=buffer_bytes)
        client.send(
            Connect(client_id, version, clean_start, keep_alive, will=will, properties=cast(Properties, properties))
        )
        client.connack = await client.expect(Connack)
        assert client.connack.reason == 0
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.abort()

    def abort(self) -> None:
        """Lose the connection."""
        self.writer.transport.abort()

    def send(self, *items: Packet | bytes) -> None:
        """Send packets or bytes in one piece, without waiting for anything."""
        self.writer.write(b"".join(item if isinstance(item, bytes) else encode(item, self.version) for item in items))

    async def receive(self) -> Packet:
        """The next packet. EOFError when the broker closed the connection."""
        while not self._packets:
            try:
                data = await soon(self.reader.read(65_536))
            except ConnectionError:
                data = b""
            if not data:
                raise EOFError("the broker closed the connection")
            self._packets = list(self._decoder.feed(data))
            assert self._decoder.error is None, f"the broker sent {data[:64].hex(' ')}: {self._decoder.error}"
        return self._packets.pop(0)

    async def expect(self, kind: type[P]) -> P:
        """The next packet, which must be of this type."""
        packet = await self.receive()
        assert isinstance(packet, kind), packet
        return packet

    async def rest(self) -> list[Packet]:
        """Everything until the broker closes the connection."""
        packets: list[Packet] = []
        try:
            while True:
                packets.append(await self.receive())
        except EOFError:
            return packets

    async def refusal(self) -> int | None:
        """The reason with which the broker ends the connection, None if it says none. Nothing else may come."""
        packets = await self.rest()
        assert len(packets) <= 1, packets
        if not packets:
            return None
        assert isinstance(packets[0], Connack | Disconnect), packets
        return packets[0].reason

    async def subscribe(self, filter: str, qos: int = 0) -> int:
        """Subscribe; the reason code."""
        self.send(Subscribe(1, [SubscribeFilter(filter, qos)]))
        (reason,) = (await self.expect(Suback)).reasons
        return reason

    async def publish(self, topic: str, payload: bytes = b"", packet_id: int = 1) -> int:
        """Publish at QoS 1 and wait for the acknowledgement; its reason code."""
        self.send(Publish(topic, payload, 1, packet_id=packet_id))
        puback = await self.expect(Puback)
        assert puback.packet_id == packet_id
        return puback.reason

    async def message(self) -> Publish:
        """The next message; at QoS 1 it is acknowledged."""
        message = await self.expect(Publish)
        if message.qos == 1:
            self.send(Puback(message.packet_id))
        return message
