"""Chapter 6: MQTT in WebSocket frames, on a real connection."""

from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.connection import Connection
from websockets.typing import Subprotocol

from tidings.broker import BrokerThread, Config

from .wire import frame

clause = pytest.mark.clause
TIMEOUT_S = 10
CONNECT = frame("10 L s:MQTT 04 02 003c s:a")
CONNACK = frame("20 02 0000")


@pytest.fixture
def connection() -> Iterator[Connection]:
    """A WebSocket connection on which no packet was sent."""
    with (
        BrokerThread(Config(listeners=["ws://127.0.0.1:0"], stop_timeout_s=1)) as broker,
        connect(broker.urls[0], subprotocols=[Subprotocol("mqtt")], compression=None, ping_interval=None) as opened,
    ):
        yield opened


def receive(connection: Connection, count: int) -> bytes:
    """Bytes from as many binary frames as it takes."""
    data = b""
    while len(data) < count:
        message = connection.recv(timeout=TIMEOUT_S)
        assert isinstance(message, bytes), "a frame that is not binary"
        data += message
    return data


@clause("3.1.1 MQTT-6.0.0-1", "5.0 MQTT-6.0.0-1")
def test_packets_are_answered_in_binary_frames(connection: Connection) -> None:
    connection.send(CONNECT)
    assert receive(connection, 4) == CONNACK


@clause("3.1.1 MQTT-6.0.0-1", "5.0 MQTT-6.0.0-1")
@pytest.mark.parametrize("text", ["", "hello", CONNECT.decode("ascii")])
def test_a_text_frame_closes_the_connection(connection: Connection, text: str) -> None:
    connection.send(text)
    with pytest.raises(ConnectionClosed) as ended:
        connection.recv(timeout=TIMEOUT_S)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1003


@clause("3.1.1 MQTT-6.0.0-2", "5.0 MQTT-6.0.0-2")
@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_frames_may_hold_parts_of_packets_or_several(connection: Connection, size: int) -> None:
    publish = frame(f"30 L s:t {bytes(range(256)).hex()}")
    packets = CONNECT + frame("82 L 0001 s:t 00") + publish + publish + b"\xc0\x00"
    for start in range(0, len(packets), size):
        connection.send(packets[start : start + size])
    expected = CONNACK + frame("90 03 0001 00") + publish + publish + b"\xd0\x00"
    assert receive(connection, len(expected)) == expected


@clause("3.1.1 MQTT-6.0.0-2", "5.0 MQTT-6.0.0-2")
def test_packets_may_be_spread_over_the_frames_of_one_message(connection: Connection) -> None:
    connection.send(CONNECT[index : index + 1] for index in range(len(CONNECT)))
    assert receive(connection, 4) == CONNACK


@clause("3.1.1 MQTT-6.0.0-4", "5.0 MQTT-6.0.0-4")
def test_the_subprotocol_is_mqtt_whatever_else_is_offered() -> None:
    offered = [Subprotocol(name) for name in ("soap", "mqttv3.1", "mqtt")]
    with (
        BrokerThread(Config(listeners=["ws://127.0.0.1:0"], stop_timeout_s=1)) as broker,
        connect(broker.urls[0], subprotocols=offered, compression=None) as opened,
    ):
        assert opened.subprotocol == "mqtt"
