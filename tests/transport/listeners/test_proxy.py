"""The PROXY protocol: headers of both versions byte by byte, and listeners that insist on one."""

import ipaddress
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.transport.proxy import MAX_BYTES, V2, Proxied, ProxyError, parse

from .conftest import Serve
from .streams import PROXY_LINE, Closed, Stream

IP_4 = ipaddress.ip_address("203.0.113.7").packed + ipaddress.ip_address("192.0.2.1").packed
IP_6 = ipaddress.ip_address("2001:db8::7").packed + ipaddress.ip_address("2001:db8::1").packed
PORTS = (40_000).to_bytes(2, "big") + (1883).to_bytes(2, "big")


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2 + bytes((command, family)) + len(body).to_bytes(2, "big") + body


GOOD = {
    PROXY_LINE: "203.0.113.7:40000",
    b"PROXY TCP6 2001:db8::7 2001:DB8:0::1 1 65535\r\n": "2001:db8::7:1",
    b"PROXY UNKNOWN\r\n": "",
    b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n": "",
    v2(0x21, 0x11, IP_4 + PORTS): "203.0.113.7:40000",
    v2(0x21, 0x11, IP_4 + PORTS + b"\x04\x00\x03abc"): "203.0.113.7:40000",
    v2(0x21, 0x21, IP_6 + PORTS): "2001:db8::7:40000",
    v2(0x21, 0x31, bytes(216)): "",
    v2(0x21, 0x00, b""): "",
    v2(0x20, 0x00, b""): "",
    v2(0x20, 0xFF, b"whatever"): "",
}

BAD = {
    b"\x10\x0c": "no PROXY protocol header",
    b"GET /": "no PROXY protocol header",
    b"proxy TCP4": "no PROXY protocol header",
    V2[:11] + b"\r": "no PROXY protocol header",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 40000\r\n": "neither TCP4, TCP6 nor UNKNOWN",
    b"PROXY TCP4 203.0.113.7  192.0.2.1 40000 1\r\n": "neither TCP4, TCP6 nor UNKNOWN",
    b"PROXY UDP4 203.0.113.7 192.0.2.1 40000 1\r\n": "neither TCP4, TCP6 nor UNKNOWN",
    b"PROXY TCP4 203.0.113.07 192.0.2.1 40000 1\r\n": "wrong address",
    b"PROXY TCP4 203.0.113.\xff 192.0.2.1 40000 1\r\n": "wrong address",
    b"PROXY TCP4 2001:db8::7 192.0.2.1 40000 1\r\n": "wrong address",
    b"PROXY TCP6 fe80::1%eth0 ::1 40000 1\r\n": "wrong address",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 040 1\r\n": "wrong port",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 1 65536\r\n": "wrong port",
    b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 1\r\n": "wrong port",
    b"PROXY TCP4 " + b"1" * 96: "more than 107 bytes",
    v2(0x11, 0x11, IP_4 + PORTS): "unknown version or command 0x11",
    v2(0x22, 0x11, IP_4 + PORTS): "unknown version or command 0x22",
    v2(0x21, 0x12, IP_4 + PORTS): "unknown address family 0x12",
    v2(0x21, 0x11, IP_4): "too short for its addresses",
    v2(0x21, 0x11, bytes(MAX_BYTES)): f"{MAX_BYTES} are allowed",
}


@pytest.mark.parametrize("header", GOOD, ids=repr)
def test_a_header_is_read_once_it_is_complete_and_no_further(header: bytes) -> None:
    assert parse(header + b"\x10more") == Proxied(len(header), GOOD[header])
    assert [parse(header[:length]) for length in range(len(header))] == [None] * len(header)


@pytest.mark.parametrize("header", BAD, ids=repr)
def test_a_wrong_header_is_refused_with_its_reason(header: bytes) -> None:
    with pytest.raises(ProxyError, match=BAD[header]):
        parse(header)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21\x11", V2 + b"\x21\x21\x00\x24"]), st.binary())
def test_any_bytes_are_a_header_the_beginning_of_one_or_refused(start: bytes, rest: bytes) -> None:
    try:
        found = parse(start + rest)
    except ProxyError:
        return
    assert found is None or found.length <= len(start + rest)


@pytest.mark.parametrize("kind", ["tcp", "tls", "ws", "wss"])
def test_the_client_is_known_by_the_address_that_the_proxy_tells(
    serve: Serve, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    with caplog.at_level(logging.INFO):
        serve(f"{kind}+proxy").client("somebody")
    assert [each for each in caplog.messages if "203.0.113.7:40000" in each and "somebody" in each]


def test_a_header_may_come_byte_by_byte_with_the_first_packet_behind_it(serve: Serve) -> None:
    served = serve("tcp+proxy")
    stream = served.opened.enter_context(Stream(served.url))
    data = v2(0x21, 0x21, IP_6 + PORTS)
    for number in range(len(data) - 1):
        stream.raw.sendall(data[number : number + 1])
    stream.raw.sendall(data[-1:] + bytes.fromhex("10 0d 00044d515454 04 02 003c 0001 61"))
    assert stream.receive(4) == bytes.fromhex("20 02 0000")


@pytest.mark.parametrize("first", [b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01a", b"PROXY TCP4 nonsense\r\n"])
def test_a_connection_without_a_right_header_is_closed(serve: Serve, first: bytes) -> None:
    served = serve("tcp+proxy")
    stream = served.opened.enter_context(Stream(served.url))
    stream.send(first)
    with pytest.raises(Closed):
        stream.receive(1)
    served.client("good").ping()


def test_a_header_where_none_is_expected_is_refused(serve: Serve) -> None:
    served = serve("tcp")
    stream = served.opened.enter_context(Stream(served.url, proxied=True))
    with pytest.raises(Closed):
        stream.connect("a")


def test_a_client_that_leaves_before_its_header_is_complete_does_no_harm(serve: Serve) -> None:
    served = serve("tcp+proxy")
    for part in (b"", b"PROXY", V2[:5]):
        stream = Stream(served.url)
        stream.raw.sendall(part)
        stream.vanish()
    served.client("good").ping()
