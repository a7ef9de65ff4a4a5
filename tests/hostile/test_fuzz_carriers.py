"""Mutated traffic on every way in: TLS, WebSocket, PROXY headers and SCRAM, changed at each of their layers.

Whoever is dropped is dropped without an error of ours, nothing of it stays, and others notice nothing.
"""

import asyncio
import base64
import gc
import logging
import random
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from scramp import ScramClient

from tidings.broker import Broker
from tidings.broker.access.users import MIN_ROUNDS, new_user, put_user
from tidings.broker.codec import Decoder, encode
from tidings.broker.codec.packets import Auth, Connect, Packet
from tidings.broker.codec.properties import Properties
from tidings.broker.transport.link import LINGER_S, Link
from tidings.broker.transport.websocket import WebSocket

from ..raw_client import run, serve, soon, until
from ..transport.listeners.certificates import Authority
from .test_fuzz import Conversation, exchange

HOST = "127.0.0.1"
AT_ONCE = 20
SECONDS = 15.0
LEAST = 300  # conversations, however slow the machine is
MAX_GROWTH_BYTES = 200 << 20  # of the process, our own ends of the connections included
WAYS = ("tcp", "tls", "ws", "wss", "tcp+proxy", "tls+proxy", "ws+proxy", "wss+proxy")
METHOD = "SCRAM-SHA-256"
V2 = b"\r\n\r\n\0\r\nQUIT\n"

Change = Callable[[bytes], bytes]


def change(chance: random.Random, rate: float) -> Change:
    """Something that changes bytes now and then."""

    def mutate(data: bytes) -> bytes:
        if not data or chance.random() >= rate:
            return data
        changed = bytearray(data)
        at = chance.randrange(len(changed))
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice((0, 0x0A, 0x0D, 0x2C, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at : at + chance.randrange(1, 20)]
            case 3:
                changed[at:at] = chance.randbytes(chance.randrange(1, 20))
            case _:
                changed[at:at] = changed[at : at + chance.randrange(1, 3_000)] * chance.randrange(1, 5)
        return bytes(changed)

    return mutate


class Wire:
    """A connection by one of ``WAYS`` whose bytes are changed: ``outer`` as they go out, ``inner`` inside of TLS."""

    def __init__(self, way: str, url: str, trusting: ssl.SSLContext, chance: random.Random) -> None:
        self._way = way
        self._url = urlsplit(url)
        self._chance = chance
        layer = chance.choice(("none", "outer", "inner", "frame", "packets"))
        rate = chance.choice((0.05, 0.3, 1.0))
        self._outer, self._inner, self._frame, self._packets = (
            change(chance, rate if layer == each else 0.0) for each in ("outer", "inner", "frame", "packets")
        )
        self._tls: ssl.SSLObject | None = None
        if way.startswith(("tls", "wss")):
            self._from, self._to = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = trusting.wrap_bio(self._from, self._to, server_hostname=HOST)
        self._websocket = way.startswith("ws")
        self.name = ""  # by which the broker's log knows this end
        self.ended = False  # by the broker

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(HOST, self._url.port)
        own = self._writer.get_extra_info("sockname")
        self.name = f"{HOST}:{own[1]}"
        if "proxy" in self._way:
            await self._write(self._proxy_header(own[1]))
        if self._tls is not None:
            await self._shake_hands()
        if self._websocket:
            await self._send(self._frame(self._request()))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += await self._receive()

    def _proxy_header(self, port: int) -> bytes:
        """One that names our own address."""
        if self._chance.random() < 0.5:
            return f"PROXY TCP4 {HOST} {HOST} {port} 1883\r\n".encode()
        addresses = bytes((127, 0, 0, 1, 127, 0, 0, 1)) + port.to_bytes(2, "big") + b"\x07\x5b"
        more = self._chance.randbytes(self._chance.choice((0, 0, 30)))
        return V2 + b"\x21\x11" + (len(addresses) + len(more)).to_bytes(2, "big") + addresses + more

    def _request(self) -> bytes:
        key = base64.b64encode(self._chance.randbytes(16)).decode()
        lines = [
            "GET /mqtt HTTP/1.1",
            f"Host: {HOST}:{self._url.port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Protocol: mqtt",
        ]
        return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()

    async def _shake_hands(self) -> None:
        assert self._tls is not None
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                self._from.write(await self._read())
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        """Send packets, in frames where there are any."""
        data = self._packets(data)
        if self._websocket:
            data = b"".join(self._frame(each) for each in self._frames(data))
        await self._send(data)

    def _frames(self, data: bytes) -> Iterator[bytes]:
        chance = self._chance
        at = 0
        while at < len(data):
            if chance.random() < 0.1:
                yield masked(chance.choice((0x89, 0x8A)), chance.randbytes(chance.randrange(126)))
            size = chance.choice((1, 10, 200, 70_000))
            yield masked(0x82, data[at : at + size])
            at += size

    async def _send(self, data: bytes) -> None:
        data = self._inner(data)
        if self._tls is None:
            await self._write(data)
        elif data:
            self._tls.write(data)
            await self._flush()

    async def _flush(self) -> None:
        await self._write(self._to.read())

    async def _write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionError
        self._writer.write(self._outer(data))
        await soon(self._writer.drain())

    async def receive(self) -> bytes:
        """What came, without frames: whatever is no binary frame from the broker is left out."""
        data = await self._receive()
        if not self._websocket:
            return data
        payload = b""
        while len(data) > 1:
            size, head = data[1], 2
            if size == 126:
                size, head = int.from_bytes(data[2:4], "big"), 4
            payload += data[head : head + size] if data[0] == 0x82 else b""
            data = data[head + size :]
        return payload

    async def _receive(self) -> bytes:
        while self._tls is not None:
            try:
                data = self._tls.read(65_536)
            except ssl.SSLWantReadError:
                self._from.write(await self._read())
            else:
                if not data:
                    raise EOFError  # the broker said goodbye, and will close
                return data
        return await self._read()

    async def _read(self) -> bytes:
        async with asyncio.timeout(0.3):
            data = await self._reader.read(65_536)
        if not data:
            self.ended = True
            raise EOFError
        return data

    async def close(self) -> None:
        """End the connection in any way, if the broker has not; see first whether it has."""
        with suppress(EOFError, TimeoutError, ConnectionError):
            async with asyncio.timeout(0.5):  # others' messages may come without end
                while not self.ended:
                    await self._read()
        self._writer.transport.abort()


def masked(first: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    if size > 0xFFFF:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes((first,)) + length + bytes(4) + payload  # a mask of zeros


async def scram(wire: Wire, chance: random.Random) -> None:
    """Log in by SCRAM-SHA-256, with messages that are changed."""
    alter = change(chance, 0.5)
    client = ScramClient([METHOD], chance.choice(("sam", "nobody")), chance.choice(("right", "wrong")))

    def message(data: str) -> Any:
        return {"authentication_method": METHOD, "authentication_data": alter(data.encode())}

    async def packet() -> Packet:
        decoder = Decoder(side="client", version=5)
        while True:
            if packets := decoder.feed(await wire.receive()):
                return packets[0]
            if decoder.error is not None:
                raise EOFError

    await wire.send(encode(Connect("s", properties=cast(Properties, message(client.get_client_first()))), 5))
    for reason in (0x18, 0x19):
        answer = await packet()
        if not isinstance(answer, Auth):
            return
        final = "c=biws,r=x,p=AAAA"
        with suppress(Exception):  # it is a client for servers that keep to the protocol
            client.set_server_first(answer.properties["authentication_data"].decode())
            final = client.get_client_final()
        await wire.send(encode(Auth(reason, cast(Properties, message(final))), 5))


async def converse(wire: Wire, chance: random.Random) -> None:
    with suppress(EOFError, TimeoutError, ConnectionError, ssl.SSLError):
        await wire.open()
        if chance.random() < 0.25:
            await scram(wire, chance)
        else:
            for piece in Conversation(chance).pieces():
                await wire.send(piece)
    await wire.close()


@asynccontextmanager
async def served(folder: Path, **options: Any) -> AsyncIterator[tuple[Broker, Authority]]:
    """A broker with a listener for each of ``WAYS``, in their order, and users."""
    authority = Authority(folder)
    files = authority.sign("server", "localhost", HOST)._asdict()
    passwords = folder / "passwords"
    put_user(passwords, new_user("sam", "right", scram=True, rounds=MIN_ROUNDS))
    listeners = [
        {
            "url": f"{way.partition('+')[0]}://{HOST}:0",
            "proxy_protocol": "proxy" in way,
            **(files if way.startswith(("tls", "wss")) else {}),
        }
        for way in WAYS
    ]
    async with serve(*cast(Any, listeners), password_file=passwords, allow_anonymous=True, **options) as broker:
        yield broker, authority


async def fuzz(seed: int, folder: Path) -> tuple[Counter[str], set[str]]:
    """How many conversations there were by each way, and the names of those that the broker ended."""
    limits = {"max_handshakes": 30, "connect_timeout_s": 2, "max_queued_messages": 1000, "max_session_expiry_s": 5}
    counts: Counter[str] = Counter()
    dropped: set[str] = set()
    async with served(folder, **limits) as (broker, authority):
        enough, done = asyncio.Event(), asyncio.Event()
        control = asyncio.create_task(exchange(broker, broker.urls[0], enough, done))
        end = time.monotonic() + SECONDS
        before = resident_bytes()
        assert broker._handshakes is not None
        assert broker._links is not None

        async def attack(number: int) -> None:
            chance = random.Random(f"{seed} {number}")
            while (time.monotonic() < end or counts.total() < LEAST or not enough.is_set()) and not control.done():
                index = chance.randrange(len(WAYS))
                wire = Wire(WAYS[index], broker.urls[index], authority.trusting(), chance)
                await converse(wire, chance)
                counts[WAYS[index]] += 1
                if wire.ended and "proxy" not in WAYS[index]:  # a changed header names somebody else
                    dropped.add(wire.name)
                assert len(broker._handshakes or ()) <= limits["max_handshakes"]
                assert len(broker._links.open if broker._links else ()) <= AT_ONCE + 10

        try:
            await asyncio.gather(*(attack(number) for number in range(AT_ONCE)))
        finally:
            done.set()
        await control
        assert resident_bytes() - before < MAX_GROWTH_BYTES
        links = broker._links
        await until(lambda: not links.open and not len(broker._handshakes or ()), "something of them stays")
        await asyncio.sleep(LINGER_S + 0.1)  # what remembers that a peer is to take its last bytes
        gc.collect()
        assert sum(isinstance(each, Link | WebSocket) for each in gc.get_objects()) == 0
    return counts, dropped


def forget_arguments(record: logging.LogRecord) -> bool:
    """What was logged would keep connections alive otherwise."""
    record.msg, record.args = record.getMessage(), None
    return True


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_changed_bytes_on_every_way_in_are_answered_or_dropped_and_nothing_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tidings.broker")
    caplog.handler.addFilter(forget_arguments)
    counts, dropped = run(fuzz(random.randrange(2**32), tmp_path))
    assert set(counts) == set(WAYS)
    assert len(dropped) > LEAST / 10
    bad = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert [record.getMessage() for record in bad] == [], bad[0].exc_text
