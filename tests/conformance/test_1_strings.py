"""Chapter 1: how strings, string pairs and variable byte integers look on the wire, in and out."""

from collections.abc import Callable

import pytest

from tidings.broker.codec.packets import Publish

from .wire import VERSIONS, Wire, frame

BAD_UTF8 = [
    pytest.param("eda080", id="surrogate U+D800"),
    pytest.param("edbfbf", id="surrogate U+DFFF"),
    pytest.param("61edb08062", id="surrogate in the middle"),
    pytest.param("c328", id="bad continuation"),
    pytest.param("e282", id="truncated character"),
    pytest.param("c0af", id="overlong slash"),
    pytest.param("f4908080", id="above U+10FFFF"),
    pytest.param("ff", id="no UTF-8 at all"),
]
BAD_STRINGS = [*BAD_UTF8, pytest.param("00", id="U+0000"), pytest.param("610062", id="U+0000 in the middle")]

CONNECTS = [
    pytest.param(4, "10 L s:MQTT 04 02 003c b:{}", id="3.1.1 client id"),
    pytest.param(4, "10 L s:MQTT 04 06 003c s:a b:{} s:bye", id="3.1.1 will topic"),
    pytest.param(4, "10 L s:MQTT 04 82 003c s:a b:{}", id="3.1.1 user name"),
    pytest.param(5, "10 L s:MQTT 05 02 003c 00 b:{}", id="5.0 client id"),
    pytest.param(5, "10 L s:MQTT 05 06 003c 00 s:a 00 b:{} s:bye", id="5.0 will topic"),
    pytest.param(5, "10 L s:MQTT 05 82 003c 00 s:a b:{}", id="5.0 user name"),
    pytest.param(5, "10 L s:MQTT 05 02 003c P 15 b:{} . s:a", id="5.0 authentication method"),
    pytest.param(5, "10 L s:MQTT 05 02 003c P 26 b:{} s:v . s:a", id="5.0 user property name"),
    pytest.param(5, "10 L s:MQTT 05 02 003c P 26 s:n b:{} . s:a", id="5.0 user property value"),
    pytest.param(5, "10 L s:MQTT 05 06 003c 00 s:a P 03 b:{} . s:t s:bye", id="5.0 will content type"),
    pytest.param(5, "10 L s:MQTT 05 06 003c 00 s:a P 08 b:{} . s:t s:bye", id="5.0 will response topic"),
]
PACKETS = [
    pytest.param(4, "30 L b:{} 78", id="3.1.1 PUBLISH topic"),
    pytest.param(4, "82 L 0001 b:{} 00", id="3.1.1 SUBSCRIBE filter"),
    pytest.param(4, "a2 L 0001 b:{}", id="3.1.1 UNSUBSCRIBE filter"),
    pytest.param(5, "30 L b:{} 00 78", id="5.0 PUBLISH topic"),
    pytest.param(5, "30 L s:t P 03 b:{} . 78", id="5.0 PUBLISH content type"),
    pytest.param(5, "30 L s:t P 08 b:{} . 78", id="5.0 PUBLISH response topic"),
    pytest.param(5, "82 L 0001 00 b:{} 00", id="5.0 SUBSCRIBE filter"),
    pytest.param(5, "a2 L 0001 00 b:{}", id="5.0 UNSUBSCRIBE filter"),
    pytest.param(5, "e0 L 00 P 1f b:{} .", id="5.0 DISCONNECT reason string"),
]
PAIRS = [
    pytest.param("30 L s:t P 26 b:{} s:v . 78", id="PUBLISH user property name"),
    pytest.param("30 L s:t P 26 s:n b:{} . 78", id="PUBLISH user property value"),
    pytest.param("82 L 0001 P 26 s:n b:{} . s:t 00", id="SUBSCRIBE user property value"),
    pytest.param("40 L 0001 00 P 26 b:{} s:v .", id="PUBACK user property name"),
    pytest.param("e0 L 00 P 26 b:{} s:v .", id="DISCONNECT user property name"),
]


@pytest.mark.clause(
    "3.1.1 MQTT-1.5.3-1", "3.1.1 MQTT-1.5.3-2", "3.1.1 MQTT-3.1.3-4", "3.1.1 MQTT-3.1.3-10", "3.1.1 MQTT-3.1.3-11",
    "5.0 MQTT-1.5.4-1", "5.0 MQTT-1.5.4-2", "5.0 MQTT-3.1.3-4", "5.0 MQTT-3.1.3-11", "5.0 MQTT-3.1.3-12",
)  # fmt: skip
@pytest.mark.parametrize("text", BAD_STRINGS)
@pytest.mark.parametrize(("version", "packet"), CONNECTS)
def test_connect_with_a_bad_string_is_refused(wire: Wire, version: int, packet: str, text: str) -> None:
    client = wire.open(version)
    client.send(packet.format(text))
    client.assert_refused(0x81, 0x85)


@pytest.mark.clause(
    "3.1.1 MQTT-1.5.3-1", "3.1.1 MQTT-1.5.3-2", "3.1.1 MQTT-3.3.2-1", "3.1.1 MQTT-3.8.3-1", "3.1.1 MQTT-3.10.3-1",
    "3.1.1 MQTT-4.7.3-2",
    "5.0 MQTT-1.5.4-1", "5.0 MQTT-1.5.4-2", "5.0 MQTT-3.3.2-1", "5.0 MQTT-3.3.2-13", "5.0 MQTT-3.3.2-19",
    "5.0 MQTT-3.8.3-1", "5.0 MQTT-3.10.3-1", "5.0 MQTT-4.7.3-2",
)  # fmt: skip
@pytest.mark.parametrize("text", BAD_STRINGS)
@pytest.mark.parametrize(("version", "packet"), PACKETS)
def test_packet_with_a_bad_string_closes_the_connection(wire: Wire, version: int, packet: str, text: str) -> None:
    client = wire.connect("a", version)
    client.send(packet.format(text))
    client.assert_dropped(0x81, 0x82, 0x90, 0x8F)


@pytest.mark.clause("5.0 MQTT-1.5.7-1")
@pytest.mark.parametrize("text", BAD_STRINGS)
@pytest.mark.parametrize("packet", PAIRS)
def test_user_property_with_a_bad_string_closes_the_connection(wire: Wire, packet: str, text: str) -> None:
    client = wire.connect("a")
    client.send(packet.format(text))
    client.assert_dropped(0x81, 0x82)


@pytest.mark.clause("3.1.1 MQTT-1.5.3-3", "5.0 MQTT-1.5.4-3")
@VERSIONS
def test_byte_order_mark_is_part_of_the_topic(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.subscribe("\ufefft")
    client.publish("t", b"without")
    client.publish("\ufefft", b"with")
    message = client.expect(Publish)
    assert (message.topic, message.payload) == ("\ufefft", b"with")


@pytest.mark.clause("5.0 MQTT-1.5.5-1")
@pytest.mark.parametrize(
    ("size", "header"),
    [(127, "30 7f"), (128, "30 8001"), (16383, "30 ff7f"), (16384, "30 808001"), (2097152, "30 80808001")],
)
@VERSIONS
def test_remaining_length_is_sent_in_the_fewest_bytes(
    wire_with: Callable[..., Wire], version: int, size: int, header: str
) -> None:
    wire = wire_with(max_packet_size_bytes=4_000_000)
    client = wire.connect("a", version)
    client.subscribe("t")
    client.publish("t", bytes(size - (3 if version < 5 else 4)))
    assert client.receive_bytes().startswith(frame(header + " 0001 74"))


@pytest.mark.clause("5.0 MQTT-4.13.1-1", "3.1.1 MQTT-4.8.0-1")
@VERSIONS
def test_remaining_length_of_five_bytes_is_malformed(wire: Wire, version: int) -> None:
    client = wire.connect("a", version)
    client.send("30 ffffffff01")
    client.assert_dropped(0x81)
