"""Chapters 4.2 (5.0) and 7.1.1 (3.1.1): the protocol over a real TCP connection, whatever pieces it arrives in."""

import socket

import pytest

from tidings.broker import BrokerThread, Config

from .wire import frame

clause = pytest.mark.clause


def read(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, f"closed after {len(data)} of {count} bytes"
        data += piece
    return bytes(data)


@clause("3.1.1 MQTT-7.1.1-1", "5.0 MQTT-4.2.0-1")
def test_tcp_carries_the_stream_in_order_and_whole_in_both_directions() -> None:
    payload = bytes(range(256)) * 2_000
    requests = frame("10 L s:MQTT 04 02 003c s:a") + frame("82 L 0001 s:t 00")
    publish = frame(f"30 L s:t {payload.hex()}")
    with (
        BrokerThread(Config(listeners=["tcp://127.0.0.1:0"])) as broker,
        socket.create_connection(("127.0.0.1", broker.port), timeout=20) as connection,
    ):
        for number in range(len(requests)):
            connection.sendall(requests[number : number + 1])
        assert read(connection, 9) == frame("20 02 0000 90 03 0001 00")
        for start in range(0, len(publish), 1_000):
            connection.sendall(publish[start : start + 1_000])
        assert read(connection, len(publish)) == publish
        connection.sendall(frame("e0 00"))
        assert connection.recv(1) == b""
