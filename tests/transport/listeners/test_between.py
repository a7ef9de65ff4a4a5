"""WebSocket between a transport and a link that only take notes: what it passes on, and what it ends by itself."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from websockets.frames import Opcode as Op

from tidings.broker import Config
from tidings.broker.core.snapshot import Stats
from tidings.broker.transport import websocket as module
from tidings.broker.transport.endpoint import Endpoint
from tidings.broker.transport.handshakes import Handshakes
from tidings.broker.transport.websocket import WebSocket

from ...raw_client import soon
from .test_websocket import CONNECT, masked, request


class Socket(asyncio.Transport):
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.told: list[Any] = []
        self.waiting_bytes = 0
        self.aborted = asyncio.Event()

    def write(self, data: Any) -> None:
        self.told.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.waiting_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.told.append(("limits", high, low))

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")
        self.aborted.set()


class Notes:
    """A link that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.told.append((name, *args))


class Between:
    """A WebSocket whose handshake is through."""

    def __init__(self) -> None:
        self.handshakes = Handshakes(5, 60, Stats())
        self.link = Notes()
        self.socket = Socket()
        self.websocket = WebSocket(
            cast(asyncio.Protocol, self.link), Endpoint("ws://127.0.0.1:0"), self.handshakes, Config().outbox_max_bytes
        )
        self.websocket.connection_made(self.socket)
        self.websocket.data_received(request())
        assert self.link.told == [("connection_made", self.websocket)]
        assert len(self.handshakes) == 0
        self.link.told.clear()
        self.socket.told.clear()


def test_what_the_transport_says_reaches_the_link() -> None:
    async def run() -> None:
        between = Between()
        websocket = between.websocket
        websocket.pause_writing()
        websocket.resume_writing()
        websocket.data_received(masked(Op.BINARY, CONNECT))
        assert websocket.eof_received() is False
        websocket.connection_lost(None)
        assert between.link.told == [
            ("pause_writing",),
            ("resume_writing",),
            ("data_received", CONNECT),
            ("connection_lost", None),
        ]

    asyncio.run(run())


def test_what_the_link_says_reaches_the_transport() -> None:
    async def run() -> None:
        between = Between()
        websocket, told = between.websocket, between.socket.told
        websocket.set_write_buffer_limits(high=7)
        websocket.pause_reading()
        websocket.pause_reading()
        websocket.resume_reading()
        websocket.resume_reading()
        for size in (125, 126, 65_535, 65_536):
            websocket.write(bytes(size))
        between.socket.waiting_bytes = 9
        assert websocket.get_write_buffer_size() == 9
        assert websocket.get_extra_info("peername") == ("192.0.2.1", 5)
        assert not websocket.is_closing()
        websocket.abort()
        assert websocket.is_closing()
        websocket.write(b"late")
        heads = ["827d", "827e007e", "827effff", "827f0000000000010000"]
        sizes = (125, 126, 65_535, 65_536)
        frames = [bytes.fromhex(head) + bytes(size) for head, size in zip(heads, sizes, strict=True)]
        assert told == [("limits", 7, None), "pause", "resume", *frames, "abort"]

    asyncio.run(run())


def test_a_close_reads_again_so_that_the_answer_can_come() -> None:
    async def run() -> None:
        between = Between()
        between.websocket.pause_reading()
        between.websocket.close()
        between.websocket.close()
        assert between.socket.told == ["pause", b"\x88\x02\x03\xe8", "resume"]
        between.websocket.data_received(masked(Op.BINARY, b"late") + masked(Op.CLOSE, b"\x03\xe8"))
        assert between.socket.told[3:] == ["close"]
        assert between.link.told == []

    asyncio.run(run())


def test_a_peer_that_takes_no_answer_to_its_close_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0)

    async def run() -> None:
        between = Between()
        between.websocket.data_received(masked(Op.CLOSE, b""))
        assert between.socket.told == [b"\x88\x02\x03\xe8", "close"]
        await soon(between.socket.aborted.wait())
        assert between.socket.told[2:] == ["abort"]

    asyncio.run(run())


def test_what_arrived_before_a_wrong_frame_counts() -> None:
    async def run() -> None:
        between = Between()
        between.websocket.data_received(masked(Op.BINARY, CONNECT) + masked(Op.TEXT, b"x"))
        assert between.link.told == [("data_received", CONNECT)]

    asyncio.run(run())


def test_a_handshake_that_begins_after_the_stop_ends_at_once() -> None:
    async def run() -> None:
        handshakes = Handshakes(5, 60, Stats())
        ended: list[str] = []
        handshakes.begin("early", ended.append)
        handshakes.stop()
        handshakes.begin("late", ended.append)
        handshakes.end("early")
        assert ended == ["the broker stops"] * 2
        assert len(handshakes) == 0

    asyncio.run(run())
