"""MQTT over WebSocket (RFC 6455): to the socket a protocol, to the link a transport.

The handshake is parsed and answered by the ``websockets`` library; frames are read here, since the library hands a
frame over when all of it has come, and clients put any number of packets into one.

1. A frame's payload goes on as it arrives: only a frame's head or a control frame waits, 139 bytes at most.
2. Frames mean nothing to MQTT: packets may share one or be spread over several, `5.0 [MQTT-6.0.0-2]`.
3. Nothing reaches the link before the handshake is through, nor after a close frame in either direction.
"""

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final, cast

from websockets.datastructures import Headers, MultipleValuesError
from websockets.exceptions import ProtocolError as WebSocketError
from websockets.frames import Close, CloseCode, Opcode
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from .endpoint import Endpoint
from .handshakes import Handshakes
from .link import LINGER_S, peer_name

try:
    from websockets.speedups import apply_mask
except ImportError:  # no compiler where it was installed
    from websockets.utils import apply_mask

log: Final = logging.getLogger("tidings.broker")

MAX_HANDSHAKE_BYTES: Final = 16_384  # what web servers commonly take for a request's head
# The first of these that a client offers: the second is what clients of MQTT 3.1 offer, and no others.
SUBPROTOCOLS: Final = [Subprotocol("mqtt"), Subprotocol("mqttv3.1")]
HANDSHAKE_HEADERS: Final = ("sec-websocket-", "upgrade", "connection", "host", "origin")
END_OF_HEAD: Final = b"\r\n\r\n"
MAX_CONTROL_BYTES: Final = 125

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_CONT, _TEXT, _BINARY, _CLOSE, _PING, _PONG = (int(opcode) for opcode in Opcode)


class WebSocket(asyncio.Protocol):
    """One connection between a socket's transport and ``link``, which gets this object as its transport."""

    __slots__ = (
        "_closing",
        "_endpoint",
        "_fragmented",
        "_handshakes",
        "_left",
        "_link",
        "_mask",
        "_max_bytes",
        "_open",
        "_paused",
        "_peer",
        "_rest",
        "_transport",
    )

    def __init__(
        self, link: asyncio.Protocol, endpoint: Endpoint, handshakes: Handshakes, max_bytes: int, peer: str = ""
    ) -> None:
        """``max_bytes`` may wait for a peer that causes answers and does not read them."""
        self._link = link
        self._endpoint = endpoint
        self._handshakes = handshakes
        self._max_bytes = max_bytes
        self._peer = peer
        self._transport: asyncio.Transport
        self._open = False  # the handshake is through
        self._closing = False  # a close frame or a refusal was sent, or the connection was aborted
        self._paused = False
        self._rest = b""  # the beginning of a handshake or of a frame
        self._left = 0  # bytes of the current frame's payload that have not come yet
        self._mask = b""
        self._fragmented = False  # a message goes on in the next data frame

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._peer = self._peer or peer_name(transport)
        self._handshakes.begin(self, self._cut_off)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self._open:
            self._read_frames(data)
        elif not self._closing:
            self._read_handshake(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._handshakes.end(self)
        if self._open:
            self._link.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._open:
            self._link.pause_writing()

    def resume_writing(self) -> None:
        if self._open:
            self._link.resume_writing()

    # what the link calls

    def write(self, data: bytes) -> None:
        """Send ``data`` as one binary frame, `5.0 [MQTT-6.0.0-1]`."""
        if not self._closing:
            self._transport.write(_head(_BINARY, len(data)) + data)

    def close(self) -> None:
        """Send a close frame; the connection ends when the peer has answered it, or by ``abort``."""
        self._send_close(CloseCode.NORMAL_CLOSURE)

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    # the handshake

    def _read_handshake(self, data: bytes) -> None:
        end = data.find(END_OF_HEAD) + len(END_OF_HEAD)
        if not data.startswith(b"GET "[: len(data)]):
            self._refuse(HTTPStatus.BAD_REQUEST, "expected a WebSocket handshake")
        elif end > MAX_HANDSHAKE_BYTES or (end < len(END_OF_HEAD) and len(data) > MAX_HANDSHAKE_BYTES):
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a handshake has at most {MAX_HANDSHAKE_BYTES} bytes"
            )
        elif end < len(END_OF_HEAD):
            self._rest = data
        else:
            # 5.0 [MQTT-6.0.0-4]: the sub-protocol is mqtt; a client that offers none that we know gets 400
            http = ServerProtocol(subprotocols=SUBPROTOCOLS, logger=log)
            http.receive_data(data[:end])
            request = next(iter(http.events_received()), None)
            if not isinstance(request, Request):
                self._refuse(HTTPStatus.BAD_REQUEST, "expected a WebSocket handshake")
                return
            why = self._why_not(request)
            if why is not None:
                self._refuse(*why)
                return
            response = http.accept(request)
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                self._reject(response, str(http.handshake_exc))
                return
            self._transport.write(response.serialize())
            self._handshakes.end(self)
            self._open = True
            self._link.connection_made(cast(asyncio.BaseTransport, self))
            if end < len(data):
                self._read_frames(data[end:])

    def _why_not(self, request: Request) -> tuple[HTTPStatus, str] | None:
        path = request.path.partition("?")[0]
        wanted = self._endpoint.address.path
        if wanted and path != wanted:
            return HTTPStatus.NOT_FOUND, f"nothing is at {path[:80]!r}"
        try:
            origin, host = request.headers.get("Origin"), request.headers["Host"]
        except (KeyError, MultipleValuesError):
            return HTTPStatus.BAD_REQUEST, "expected one Host and at most one Origin"
        for name, value in request.headers.raw_items():  # the library cannot answer what it cannot write
            if not value.isascii() and name.lower().startswith(HANDSHAKE_HEADERS):
                return HTTPStatus.BAD_REQUEST, f"expected ASCII in {name}"
        if not self._endpoint.admits(origin, host):
            return HTTPStatus.FORBIDDEN, f"pages of {str(origin)[:80]!r} may not connect; see the listener's origins"
        return None

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        body = f"{why}\n".encode()
        headers = Headers({"Connection": "close", "Content-Type": "text/plain; charset=utf-8"})
        headers["Content-Length"] = str(len(body))
        self._reject(Response(status.value, status.phrase, headers, body), why)

    def _reject(self, response: Response, why: str) -> None:
        log.info("refusing %s: %s", self._peer, why)
        self._closing = True
        self._transport.write(response.serialize())
        self._transport.close()

    def _cut_off(self, why: str) -> None:
        log.info("refusing %s: %s", self._peer, why)
        self.abort()

    # frames

    def _read_frames(self, data: bytes) -> None:
        pieces: list[bytes] = []
        at, end = 0, len(data)
        closing: tuple[int, str] | None = None
        while closing is None:
            left = self._left
            if left:
                piece = data[at : at + left]
                if not piece:
                    break
                pieces.append(apply_mask(piece, self._mask))
                at += len(piece)
                self._left = left = left - len(piece)
                if left:  # the next piece begins somewhere in the mask
                    turn = len(piece) & 3
                    self._mask = self._mask[turn:] + self._mask[:turn]
                continue
            if end - at < 2:
                break
            first, size = data[at], data[at + 1] & 0x7F
            opcode = first & 0x0F
            wrong = self._why_wrong(first, data[at + 1])
            if wrong is not None:
                closing = wrong
                break
            head = 2 if size < 126 else 4 if size == 126 else 10
            if end - at < head + 4:
                break
            if head > 2:
                size = int.from_bytes(data[at + 2 : at + head], "big")
                if size >> 63:
                    closing = CloseCode.PROTOCOL_ERROR, "a frame's length has its first bit set"
                    break
            mask = data[at + head : at + head + 4]
            if opcode < _CLOSE:
                at += head + 4
                self._left, self._mask = size, mask
                self._fragmented = not first & _FIN
                continue
            if end - at < head + 4 + size:
                break
            at += head + 4 + size
            closing = self._on_control(opcode, apply_mask(data[at - size : at], mask))
        if closing is None:  # or what follows means nothing
            self._rest = data[at:]
        if pieces and not self._closing:
            self._link.data_received(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        if closing is not None:
            self._end(*closing)

    def _why_wrong(self, first: int, second: int) -> tuple[int, str] | None:
        """What is wrong with the first two bytes of a frame, as a close code and words."""
        opcode = first & 0x0F
        if first & _RESERVED or opcode not in (_CONT, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            return CloseCode.PROTOCOL_ERROR, f"a frame that begins with 0x{first:02x}"
        if not second & 0x80:
            return CloseCode.PROTOCOL_ERROR, "a frame without a mask"
        if opcode == _TEXT:
            # 5.0 [MQTT-6.0.0-1]: any data frame that is not binary ends the connection
            return CloseCode.UNSUPPORTED_DATA, "a text frame"
        if opcode >= _CLOSE:
            if not first & _FIN or second & 0x7F > MAX_CONTROL_BYTES:
                return CloseCode.PROTOCOL_ERROR, "a control frame that is fragmented or too long"
        elif (opcode == _CONT) != self._fragmented:
            return CloseCode.PROTOCOL_ERROR, "a message within another, or the continuation of none"
        return None

    def _on_control(self, opcode: int, payload: bytes) -> tuple[int, str] | None:
        if opcode == _PING:
            if not self._closing:
                self._transport.write(_head(_PONG, len(payload)) + payload)
                if self._transport.get_write_buffer_size() > self._max_bytes:
                    log.info("%s: closing: it sends pings and does not read the answers", self._peer)
                    self.abort()
            return None
        if opcode == _PONG:
            return None
        try:
            code = Close.parse(payload).code
        except (WebSocketError, UnicodeDecodeError):
            return CloseCode.PROTOCOL_ERROR, "a wrong close frame"
        return (CloseCode.NORMAL_CLOSURE if code == CloseCode.NO_STATUS_RCVD else code), ""

    def _end(self, code: int, why: str) -> None:
        """The peer's close frame came, or it broke the rules: answer and end. RFC 6455 7.1.1: the server ends first."""
        if why:
            log.info("%s: closing: it sent %s", self._peer, why)
        self._send_close(code, why)
        self._transport.close()
        # A peer that does not read would keep the connection, and what is buffered for it, for ever.
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.abort)

    def _send_close(self, code: int, why: str = "") -> None:
        if self._closing:
            return
        payload = Close(code, why).serialize()
        self._transport.write(_head(_CLOSE, len(payload)) + payload)
        self._closing = True
        self.resume_reading()  # or the answer would never come


def _head(opcode: int, size: int) -> bytes:
    if size < 126:
        return bytes((_FIN | opcode, size))
    if size < 65_536:
        return bytes((_FIN | opcode, 126)) + size.to_bytes(2, "big")
    return bytes((_FIN | opcode, 127)) + size.to_bytes(8, "big")
