"""A client's end of a connection over each kind of listener, as bytes out and bytes in."""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from ...conformance.wire import frame

TIMEOUT_S = 10
PROXY_LINE = b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 1883\r\n"


class Closed(Exception):
    """The broker has ended the connection."""


class Stream:
    """One connection to the listener ``url``; ``tls`` for tls:// and wss://; ``proxied``: with a PROXY line first."""

    def __init__(self, url: str, tls: ssl.SSLContext | None = None, proxied: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            self.raw = socket.socket(socket.AF_UNIX)
            self.raw.settimeout(TIMEOUT_S)
            self.raw.connect(parts.path)
        else:
            self.raw = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)
            self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._websocket: ClientProtocol | None = None
        try:
            if proxied:
                self.raw.sendall(PROXY_LINE)
            if parts.scheme in ("tls", "wss"):
                assert tls is not None
                self.raw = tls.wrap_socket(self.raw, server_hostname=parts.hostname)
            if parts.scheme in ("ws", "wss"):
                self._websocket = self._upgrade(url)
        except BaseException:
            self.raw.close()
            raise

    def _upgrade(self, url: str) -> ClientProtocol:
        websocket = ClientProtocol(parse_uri(url), subprotocols=[Subprotocol("mqtt")], max_size=None)
        websocket.send_request(websocket.connect())
        with _closed():
            self.raw.sendall(b"".join(websocket.data_to_send()))
            while websocket.state is State.CONNECTING:
                piece = self.raw.recv(65_536)
                if not piece:
                    raise Closed
                websocket.receive_data(piece)
        if websocket.handshake_exc is not None:
            raise websocket.handshake_exc
        websocket.events_received()  # the broker's answer, and no frame: it has nothing to say yet
        return websocket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        with _closed():
            if self._websocket is not None:
                self._websocket.send_binary(data)
                data = b"".join(self._websocket.data_to_send())
            self.raw.sendall(data)

    def receive(self, count: int) -> bytes:
        """Exactly ``count`` bytes; raises Closed."""
        while len(self._received) < count:
            with _closed():
                piece = self.raw.recv(1 << 20)
                if not piece:
                    raise Closed
                self._received += piece if self._websocket is None else self._unpack(self._websocket, piece)
        data = bytes(self._received[:count])
        del self._received[:count]
        return data

    def _unpack(self, websocket: ClientProtocol, data: bytes) -> bytes:
        """What the frames in ``data`` carry; a close frame is answered."""
        websocket.receive_data(data)
        self.raw.sendall(b"".join(websocket.data_to_send()))
        payloads = []
        for event in websocket.events_received():
            assert isinstance(event, Frame)
            assert event.opcode in (Opcode.BINARY, Opcode.CLOSE), event
            if event.opcode is Opcode.BINARY:
                payloads.append(bytes(event.data))
        return b"".join(payloads)

    def connect(self, client_id: str = "", will_topic: str = "") -> None:
        """Be accepted as a client of MQTT 3.1.1; with a will if it has a topic."""
        will = f"s:{will_topic} s:gone" if will_topic else ""
        self.send(frame(f"10 L s:MQTT 04 {'06' if will else '02'} 003c s:{client_id} {will}"))
        assert self.receive(4) == frame("20 02 0000")

    def subscribe(self, filter: str, qos: int = 0) -> None:
        self.send(frame(f"82 L 0001 s:{filter} 0{qos}"))
        assert self.receive(5) == frame(f"90 03 0001 0{qos}")

    def ping(self) -> None:
        self.send(b"\xc0\x00")
        assert self.receive(2) == b"\xd0\x00"

    def vanish(self) -> None:
        """Reset the connection without a word."""
        self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.raw.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        self.raw.close()


@contextlib.contextmanager
def _closed() -> Iterator[None]:
    try:
        yield
    except (InvalidState, ssl.SSLError, ConnectionError):
        raise Closed from None
