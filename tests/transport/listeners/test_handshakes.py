"""Half-made connections: each has its time, all together their number, and the established ones notice nothing."""

import socket
import threading
import time
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest

from tidings.broker.core.ports import TurnedAway

from .conftest import Serve, Served
from .streams import TIMEOUT_S, Closed

# Each stops short of a point that the broker waits for.
HALF_MADE = {
    "tls": b"\x16\x03\x01\x02\x00\x01",
    "wss": b"\x16\x03\x01\x02\x00\x01",
    "ws": b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgr",
    "tcp+proxy": b"PROXY TCP4 203.0",
    "ws+proxy": b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 1883\r\nGET ",
    "tls+proxy": b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 1883\r\n\x16\x03",
}


def half_made(served: Served, kind: str) -> socket.socket:
    parts = urlsplit(served.url)
    sock = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)
    sock.sendall(HALF_MADE[kind])
    return sock


def wait_for_end(sock: socket.socket) -> None:
    with suppress(ConnectionResetError):
        assert sock.recv(1) == b""


@pytest.mark.parametrize("kind", HALF_MADE)
@pytest.mark.parametrize("silent", [True, False], ids=["silent", "half"])
def test_a_handshake_that_does_not_go_on_is_cut_off(serve: Serve, kind: str, silent: bool) -> None:
    served = serve(kind, connect_timeout_s=0.3)
    with ExitStack() as stack:
        began = time.monotonic()
        if silent:
            parts = urlsplit(served.url)
            sock = stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S))
        else:
            sock = stack.enter_context(half_made(served, kind))
        wait_for_end(sock)
        assert 0.2 < time.monotonic() - began < TIMEOUT_S / 2
    assert served.broker.snapshot().stats.turned_away == {TurnedAway.HANDSHAKE: 1}


@pytest.mark.parametrize("kind", ["tls", "ws", "tcp+proxy"])
def test_a_byte_now_and_then_does_not_prolong_a_handshake(serve: Serve, kind: str) -> None:
    served = serve(kind, connect_timeout_s=0.3)
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=0.02) as sock:
        began = time.monotonic()
        ended = False
        while not ended and time.monotonic() - began < TIMEOUT_S:
            for byte in HALF_MADE[kind][:-1]:
                try:
                    sock.sendall(bytes([byte]))
                    ended = sock.recv(1) == b""
                except TimeoutError:
                    continue
                except ConnectionError:
                    ended = True
                if ended:
                    break
            else:
                continue
        assert ended
        assert time.monotonic() - began < TIMEOUT_S / 2


@pytest.mark.parametrize("kind", HALF_MADE)
def test_a_flood_of_half_made_ones_makes_room_long_before_its_time_is_up(serve: Serve, kind: str) -> None:
    served = serve(kind, max_handshakes=20, connect_timeout_s=5)
    established = served.client("established")
    with ExitStack() as stack:
        flood = [stack.enter_context(half_made(served, kind)) for _ in range(30)]
        began = time.monotonic()
        established.ping()
        assert time.monotonic() - began < 0.9, "it waited until the first of the flood were cut off"
        served.client("another").ping()  # one fifth of their time is theirs, then others get their turn
        assert time.monotonic() - began < 4
        established.ping()
        for sock in flood[:10]:
            wait_for_end(sock)


@pytest.mark.parametrize("kind", ["tls", "ws"])
def test_a_crowd_beyond_the_limit_is_served_in_turn_and_nobody_is_cut_off(serve: Serve, kind: str) -> None:
    served = serve(kind, max_handshakes=2)
    crowd = [threading.Thread(target=lambda: served.client().ping()) for _ in range(30)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert served.broker.snapshot().clients_connected == 30


def test_a_stop_does_not_wait_for_handshakes(serve: Serve) -> None:
    for kind in HALF_MADE:
        served = serve(kind, stop_timeout_s=5)
        with half_made(served, kind) as sock:
            began = time.monotonic()
            served.broker.stop()
            assert time.monotonic() - began < 4
            wait_for_end(sock)


def test_connections_beyond_those_allowed_are_closed_after_the_handshake(serve: Serve) -> None:
    served = serve("wss", max_connections=1)
    first = served.client("a")
    with pytest.raises(Closed):
        served.client("b")
    first.ping()
