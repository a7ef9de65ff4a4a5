"""WebSocket: who gets through the handshake, and frames of every kind, on raw sockets."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tidings.broker import BrokerThread, Config, Listener
from tidings.broker.transport.endpoint import Endpoint

from ...conformance.wire import frame
from .conftest import HOST, Serve
from .streams import TIMEOUT_S

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # to KEY, RFC 6455 section 1.3
CONNECT = frame("10 L s:MQTT 04 02 003c s:")
CONNACK = frame("20 02 0000")
PING, PONG = b"\xc0\x00", b"\xd0\x00"


def request(path: str = "/", **changes: str | None) -> bytes:
    headers: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "mqtt",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def masked(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


class Raw:
    """A client of bytes."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)
        self._received = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self) -> str:
        """The head of the broker's answer."""
        while b"\r\n\r\n" not in self._received:
            self._fill()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head.decode()

    def rest(self) -> bytes:
        """All that comes until the broker closes."""
        while True:
            try:
                piece = self.socket.recv(65_536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                return self._received
            self._received += piece

    def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame, which is short."""
        while len(self._received) < 2 or len(self._received) < 2 + self._received[1]:
            self._fill()
        first, size = self._received[:2]
        assert first & 0xF0 == 0x80
        assert size < 126
        payload = self._received[2 : 2 + size]
        self._received = self._received[2 + size :]
        return first & 0x0F, payload

    def _fill(self) -> None:
        piece = self.socket.recv(65_536)
        assert piece, f"closed after {self._received!r}"
        self._received += piece


Open = Callable[[], Raw]


@pytest.fixture
def knock(serve: Serve) -> Iterator[Callable[..., Raw]]:
    """Send a request to a listener with settings; the client."""
    with ExitStack() as stack:

        def run(data: bytes, **changes: Any) -> Raw:
            raw = Raw(serve("ws", changes).url)
            stack.enter_context(raw.socket)
            raw.send(data)
            return raw

        yield run


@pytest.fixture
def opened(knock: Callable[..., Raw]) -> Raw:
    """A client whose CONNECT was accepted."""
    raw = knock(request())
    raw.head()
    raw.send(masked(Opcode.BINARY, CONNECT))
    assert raw.frame() == (2, CONNACK)
    return raw


def test_the_handshake_selects_mqtt_and_no_extension(knock: Callable[..., Raw]) -> None:
    offered = {"Sec_WebSocket_Protocol": "mqttv3.1, mqtt", "Sec_WebSocket_Extensions": "permessage-deflate"}
    head = knock(request(**offered)).head()
    status, *lines = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert headers["sec-websocket-accept"] == ACCEPT.lower()
    assert headers["sec-websocket-protocol"] == "mqtt"
    assert headers["upgrade"] == "websocket"
    assert "sec-websocket-extensions" not in headers


def test_a_client_of_mqtt_3_1_gets_the_subprotocol_of_its_time(knock: Callable[..., Raw]) -> None:
    assert "Sec-WebSocket-Protocol: mqttv3.1" in knock(request(Sec_WebSocket_Protocol="mqttv3.1")).head()


def test_a_handshake_may_come_byte_by_byte_with_a_frame_behind_it(knock: Callable[..., Raw]) -> None:
    raw = knock(b"")
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = request()
    for number in range(len(data) - 1):
        raw.send(data[number : number + 1])
    raw.send(data[-1:] + masked(Opcode.BINARY, CONNECT))
    assert raw.head().startswith("HTTP/1.1 101 ")
    assert raw.frame() == (2, CONNACK)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (request(Sec_WebSocket_Protocol=None), 400, "missing subprotocol"),
        (request(Sec_WebSocket_Protocol="soap, xmpp"), 400, "expected one of mqtt"),
        (request(Sec_WebSocket_Key=None), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Key="short"), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Key="\xff" * 24), 400, "expected ASCII in Sec-WebSocket-Key"),
        (request(Upgrade="\xff websocket"), 400, "expected ASCII in Upgrade"),
        (request(Connection="\xff Upgrade"), 400, "expected ASCII in Connection"),
        (request(Sec_WebSocket_Version="8"), 400, "Sec-WebSocket-Version"),
        (request(Upgrade=None), 426, "WebSocket"),
        (request(Connection="close"), 426, "WebSocket"),
        (request(Host=None), 400, "expected one Host"),
        (request(Content_Length="5"), 400, "expected a WebSocket handshake"),
        (request().replace(b"GET", b"PUT"), 400, "expected a WebSocket handshake"),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "expected a WebSocket handshake"),
        (b"\x10\x0d\x00\x04MQTT", 400, "expected a WebSocket handshake"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, "expected a WebSocket handshake"),
        (request(Cookie="x" * 20_000), 431, "at most 16384 bytes"),
        (b"GET /" + b"x" * 20_000, 431, "at most 16384 bytes"),
        (request(Origin="https://evil.example"), 403, "pages of 'https://evil.example' may not connect"),
    ],
)
def test_a_wrong_handshake_is_refused_with_a_reason(
    knock: Callable[..., Raw], data: bytes, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = knock(data)
    assert raw.head().startswith(f"HTTP/1.1 {status} ")
    assert words in raw.rest().decode()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("path", "status"), [("/mqtt", 101), ("/mqtt?a=b", 101), ("/", 404), ("/mqtt/", 404)])
def test_the_path_of_the_url_is_the_only_one(serve: Serve, path: str, status: int) -> None:
    raw = Raw(serve("ws", {"url": f"ws://{HOST}:0/mqtt"}).url)
    with raw.socket:
        raw.send(request(path))
        assert raw.head().startswith(f"HTTP/1.1 {status} ")


LOCAL, PUBLIC = "ws://127.0.0.1:8083", "ws://192.0.2.1:8083"


@pytest.mark.parametrize(
    ("url", "origins", "origin", "host", "welcome"),
    [
        (LOCAL, [], None, "evil.example", True),  # not a browser
        (LOCAL, [], "http://localhost:8083", "localhost:8083", True),
        (LOCAL, [], "HTTP://Localhost:8083", "localhost:8083", True),
        (LOCAL, [], "http://[::1]:8083", "[::1]:8083", True),
        (LOCAL, [], "http://localhost:3000", "localhost:8083", False),
        (LOCAL, [], "http://evil.example:8083", "evil.example:8083", False),  # a name that was turned to 127.0.0.1
        (LOCAL, [], "null", "localhost:8083", False),
        (LOCAL, [], "http://[", "localhost:8083", False),
        (PUBLIC, [], "https://a.example", "a.example", True),
        (PUBLIC, [], "https://b.example", "a.example", False),
        (PUBLIC, [], "https://", "", False),
        (LOCAL, ["https://a.example/"], "https://a.example", "localhost", True),
        (LOCAL, ["https://a.example"], "http://a.example", "localhost", False),
        (LOCAL, ["https://a.example"], "https://a.example.evil.example", "localhost", False),
        (LOCAL, ["https://a.example"], "http://localhost:8083", "localhost:8083", False),
        (LOCAL, ["https://a.example"], None, "localhost", True),
        (LOCAL, ["*"], "null", "localhost", True),
    ],
)
def test_pages_may_connect_to_where_they_came_from_or_as_listed(
    url: str, origins: list[str], origin: str | None, host: str, welcome: bool
) -> None:
    assert Endpoint(Listener(url=url, origins=origins)).admits(origin, host) is welcome


def test_pings_are_answered_even_between_the_parts_of_a_message(opened: Raw) -> None:
    opened.send(masked(Opcode.PONG, b"nobody asked") + masked(Opcode.BINARY, PING[:1], fin=False))
    opened.send(masked(Opcode.PING, b"x" * 125) + masked(Opcode.CONT, b"", fin=False))
    opened.send(masked(Opcode.CONT, PING[1:]))
    assert opened.frame() == (10, b"x" * 125)
    assert opened.frame() == (2, PONG)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(masked(Opcode.TEXT, PING), 1003, id="text"),
        pytest.param(masked(Opcode.TEXT, b"", fin=False), 1003, id="the start of a text"),
        pytest.param(b"\x82\x02" + PING, 1002, id="no mask"),
        pytest.param(b"\xc2\x80\0\0\0\0", 1002, id="a reserved bit"),
        pytest.param(b"\x83\x80\0\0\0\0", 1002, id="a reserved data opcode"),
        pytest.param(b"\x8b\x80\0\0\0\0", 1002, id="a reserved control opcode"),
        pytest.param(masked(Opcode.CONT, b""), 1002, id="a continuation of nothing"),
        pytest.param(
            masked(Opcode.BINARY, PING, fin=False) + masked(Opcode.BINARY, PING), 1002, id="a message within a message"
        ),
        pytest.param(b"\x09\x80\0\0\0\0", 1002, id="a ping in parts"),
        pytest.param(b"\x89\xfe\0\x7e", 1002, id="a ping of 126 bytes"),
        pytest.param(b"\x82\xff\xff\0\0\0\0\0\0\0\0\0\0\0", 1002, id="more than 2^63 bytes"),
        pytest.param(b"\x88\x81\0\0\0\0\x03", 1002, id="half a close code"),
        pytest.param(masked(Opcode.CLOSE, b"\x03\xed"), 1002, id="1005, which is never sent"),
        pytest.param(masked(Opcode.CLOSE, b"\x03\xe8\xff"), 1002, id="a reason that is not UTF-8"),
        pytest.param(masked(Opcode.CLOSE, b""), 1000, id="close without a code"),
        pytest.param(masked(Opcode.CLOSE, b"\x03\xe9bye"), 1001, id="going away"),
        pytest.param(masked(Opcode.CLOSE, b"\x0f\xa0"), 4000, id="a code of the application's own"),
    ],
)
def test_the_broker_answers_with_a_close_frame_and_closes(opened: Raw, data: bytes, code: int) -> None:
    opened.send(data)
    rest = opened.rest()
    if rest:  # bytes of ours that it has not read may have torn its answer away
        assert (rest[0], int.from_bytes(rest[2:4], "big")) == (0x88, code)
        assert len(rest) == 2 + rest[1]


def test_nothing_after_a_close_frame_counts(opened: Raw) -> None:
    opened.send(masked(Opcode.CLOSE, b"") + masked(Opcode.BINARY, PING))
    assert re.fullmatch(rb"\x88\x02\x03\xe8", opened.rest())


def test_the_broker_closes_with_a_close_frame_and_waits_for_the_answer(opened: Raw) -> None:
    opened.send(masked(Opcode.BINARY, b"\xe0\x00"))
    assert opened.frame() == (8, b"\x03\xe8")
    opened.send(masked(Opcode.BINARY, PING))  # too late: has no effect
    opened.send(masked(Opcode.CLOSE, b"\x03\xe8"))
    assert opened.rest() == b""


def test_pings_whose_answers_nobody_reads_end_the_connection(serve: Serve) -> None:
    raw = Raw(serve("ws", outbox_high_bytes=1024, outbox_max_bytes=2048).url)
    with raw.socket:
        raw.send(request())
        raw.head()
        with pytest.raises(ConnectionError):
            raw.send(masked(Opcode.PING, b"x" * 125) * 1_000_000)


@pytest.fixture(scope="module")
def shared() -> Iterator[str]:
    """The URL of a broker for many examples."""
    with BrokerThread(Config(listeners=[f"ws://{HOST}:0"], sys_interval_s=0)) as broker:
        yield broker.urls[0]


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 200), max_size=40), pieces=st.lists(st.integers(1, 400), max_size=40))
def test_frames_and_reads_may_cut_packets_anywhere(shared: str, sizes: list[int], pieces: list[int]) -> None:
    message = frame(f"30 L s:t {bytes(range(256)).hex() * 4}")
    packets = CONNECT + frame("82 L 0001 s:t 00") + message * 3 + PING
    data, at = b"", 0
    for size in sizes:
        data += masked(Opcode.CONT if at else Opcode.BINARY, packets[at : at + size], fin=False) if size else b""
        at += size
    data += masked(Opcode.CONT if data else Opcode.BINARY, packets[at:])
    raw = Raw(shared)
    with raw.socket:
        raw.send(request())
        raw.head()
        at = 0
        for piece in pieces:
            raw.send(data[at : at + piece])
            at += piece
        raw.send(data[at:])
        raw.send(masked(Opcode.BINARY, b"\xe0\x00") + masked(Opcode.CLOSE, b"\x03\xe8"))
        received, rest = b"", raw.rest()
        while rest[:1] == b"\x82":
            size, start = rest[1], 2
            if size == 126:
                size, start = int.from_bytes(rest[2:4], "big"), 4
            received += rest[start : start + size]
            rest = rest[start + size :]
    assert received == CONNACK + frame("90 03 0001 00") + message * 3 + PONG
    assert rest == b"\x88\x02\x03\xe8"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([PING, b"\x82\x82\0\0\0\0", b"\x89\x80\0\0\0\0"]))))
def test_any_bytes_end_in_frames_and_a_close_and_hurt_nobody_else(shared: str, pieces: list[bytes]) -> None:
    raw = Raw(shared)
    with raw.socket:
        raw.send(request() + b"".join(pieces))
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.head().startswith("HTTP/1.1 101 ")
        raw.rest()
