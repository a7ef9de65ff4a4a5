"""The load generator's sockets where MQTT comes in TLS or WebSocket: handshakes first, then bytes in and out as ever.

They look like non-blocking sockets to ``Connection``: ``send`` and ``recv_into`` say how many bytes of MQTT they took
or brought, and raise BlockingIOError. Handshakes block, so what they cost is no part of any figure. Nothing is checked
of the broker's certificate: this measures, and both ends are on one machine.
"""

import base64
import os
import socket
import ssl
from typing import Final, Literal

from .load_plan import LoadError, Target

Transport = Literal["tcp", "tls", "ws", "wss"]
HANDSHAKE_S: Final = 10.0
_RECORD_BYTES: Final = (
    16_384  # of TLS: with so much room a read leaves nothing behind in OpenSSL, which epoll cannot see
)
_BINARY, _CLOSE = 0x82, 0x8
_MASK: Final = bytes(4)  # masking with zeros costs nothing, and a broker has to unmask all the same


class TlsSocket:
    """A socket with TLS on it, whose handshake is through."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def close(self) -> None:
        self._sock.close()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        try:
            return self._sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None

    def recv_into(self, room: memoryview) -> int:
        got = 0
        while len(room) - got >= _RECORD_BYTES:
            try:
                count = self._sock.recv_into(room[got:])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except ssl.SSLEOFError:
                count = 0
            if not count:
                return got
            got += count
        if not got:
            raise BlockingIOError
        return got


class WebSocketSocket:
    """A socket, with or without TLS, with WebSocket on it: each ``send`` is a frame of its own."""

    def __init__(self, sock: socket.socket | TlsSocket) -> None:
        self._sock = sock
        self._head = b""  # of a frame, not sent yet
        self._owed = 0  # bytes of the last frame that are not sent yet
        self._rest = b""  # the beginning of a frame's head
        self._left = 0  # bytes of the current frame that have not come yet

    def fileno(self) -> int:
        return self._sock.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def close(self) -> None:
        self._sock.close()

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """What was not taken has to be sent first the next time: it belongs to a frame that has begun."""
        if not self._owed:
            self._owed = len(data)
            self._head = _head(len(data))
        view = memoryview(data)[: self._owed]
        head = self._head
        sent = self._sock.send(head + bytes(view) if head else view)
        self._head = head[sent:]
        sent = max(0, sent - len(head))
        self._owed -= sent
        if not sent:
            raise BlockingIOError
        return sent

    def recv_into(self, room: memoryview) -> int:
        kept = len(self._rest)
        room[:kept] = self._rest
        got = self._sock.recv_into(room[kept:])
        if not got:
            return 0
        at, end, out = 0, kept + got, 0
        self._rest = b""
        while at < end:
            if self._left:
                size = min(self._left, end - at)
                room[out : out + size] = room[at : at + size]
                at, out, self._left = at + size, out + size, self._left - size
                continue
            size = room[at + 1] if end - at > 1 else 126
            head = 4 if size == 126 else 10 if size == 127 else 2
            if end - at < head:
                self._rest = bytes(room[at:end])
                break
            if room[at] & 0x0F == _CLOSE:
                return out
            self._left = size if head == 2 else int.from_bytes(room[at + 2 : at + head], "big")
            at += head
        if not out:
            raise BlockingIOError
        return out


Socket = socket.socket | TlsSocket | WebSocketSocket


def wrap(sock: socket.socket, target: Target) -> Socket:
    """``sock``, which is on its way to ``target``, with what its transport puts on it. Raises LoadError."""
    if target.transport == "tcp":
        return sock
    carried: socket.socket | TlsSocket = sock
    try:
        sock.settimeout(HANDSHAKE_S)
        raw = sock
        if target.transport in ("tls", "wss"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            raw = context.wrap_socket(sock, server_hostname=target.host)
            carried = TlsSocket(raw)
        if target.transport in ("ws", "wss"):
            _upgrade(raw, target)
        raw.setblocking(False)
    except LoadError:
        sock.close()
        raise
    except OSError as error:
        sock.close()
        raise LoadError(f"no {target.transport} handshake with {target}: {error}") from None
    return WebSocketSocket(carried) if target.transport in ("ws", "wss") else carried


def _upgrade(sock: socket.socket, target: Target) -> None:
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        f"GET {target.ws_path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: mqtt\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):  # the broker has nothing to say before CONNECT
        piece = sock.recv(4096)
        if not piece:
            raise LoadError(f"{target} closed the connection instead of a WebSocket handshake")
        answer += piece
    status = answer.split(b"\r\n", 1)[0].decode(errors="replace")
    if " 101 " not in status:
        raise LoadError(f"{target} refused the WebSocket handshake: {status}")


def _head(size: int) -> bytes:
    if size < 126:
        return bytes((_BINARY, 0x80 | size)) + _MASK
    if size < 65_536:
        return bytes((_BINARY, 0xFE)) + size.to_bytes(2, "big") + _MASK
    return bytes((_BINARY, 0xFF)) + size.to_bytes(8, "big") + _MASK
