"""Field types: limits, truncation, and text that is no text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.codec import wire
from tidings.broker.errors import MalformedPacket, ProtocolError

from . import strategies
from .frames import varint

clause = pytest.mark.clause

READERS = [
    wire.read_varint,
    wire.read_byte,
    wire.read_u16,
    wire.read_u32,
    wire.read_binary,
    wire.read_string,
    wire.read_pair,
    wire.read_topic_name,
    wire.read_packet_id,
]


@clause("5.0 MQTT-1.5.5-1")
@given(st.one_of(st.integers(0, wire.MAX_VARINT), st.sampled_from([0, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152])))
def test_variable_byte_integers_are_written_in_the_fewest_bytes_and_read_back(value: int) -> None:
    raw = wire.write_varint(value)
    assert raw == varint(value)
    assert wire.read_varint(b"\xff" + raw + b"\xff", 1, 1 + len(raw)) == (value, 1 + len(raw))
    assert wire.length_end(raw + b"\x00", 0, len(raw) + 1) == len(raw)


@pytest.mark.parametrize("value", [-1, wire.MAX_VARINT + 1])
def test_numbers_that_no_variable_byte_integer_holds_are_not_written(value: int) -> None:
    with pytest.raises(ValueError, match="variable byte integer"):
        wire.write_varint(value)


def test_a_padded_variable_byte_integer_is_read() -> None:
    assert wire.read_varint(b"\x82\x80\x00", 0, 3) == (2, 3)


def test_a_variable_byte_integer_of_five_bytes_is_malformed() -> None:
    with pytest.raises(MalformedPacket, match="longer than four"):
        wire.read_varint(b"\x80\x80\x80\x80\x01", 0, 5)
    assert wire.length_end(b"\x80\x80\x80\x80\x01", 0, 5) == 4


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80\x80", b"\xff\xff\xff"])
def test_a_length_that_has_not_arrived_has_no_end(raw: bytes) -> None:
    assert wire.length_end(raw, 0, len(raw)) == 0


@pytest.mark.parametrize("read", READERS)
@given(raw=st.binary(max_size=12), end=st.integers(0, 12))
def test_readers_never_look_past_the_end_nor_raise_anything_else(read: object, raw: bytes, end: int) -> None:
    assert callable(read)
    end = min(end, len(raw))
    outcomes = []
    for rest in (b"", b"\x00" * 20, b"\x7f" * 20):
        try:
            outcomes.append(read(raw[:end] + rest, 0, end))
        except ProtocolError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize(
    ("write", "read", "highest"),
    [
        (wire.write_byte, wire.read_byte, 0xFF),
        (wire.write_u16, wire.read_u16, 0xFFFF),
        (wire.write_u32, wire.read_u32, 0xFFFF_FFFF),
    ],
)
def test_integers_reach_to_their_limits_and_not_beyond(write: object, read: object, highest: int) -> None:
    assert callable(write)
    assert callable(read)
    for value in (0, 1, highest):
        raw = write(value)
        assert read(raw, 0, len(raw)) == (value, len(raw))
    for value in (-1, highest + 1):
        with pytest.raises(ValueError, match="not in 0 to"):
            write(value)


@given(st.binary(max_size=300))
def test_binary_data_comes_back(value: bytes) -> None:
    raw = wire.write_binary(value)
    assert wire.read_binary(raw, 0, len(raw)) == (value, len(raw))


@clause("5.0 MQTT-1.5.7-1")
@given(strategies.texts, strategies.texts)
def test_strings_and_pairs_come_back(one: str, other: str) -> None:
    raw = wire.write_pair((one, other))
    assert wire.read_pair(raw, 0, len(raw)) == ((one, other), len(raw))
    assert wire.read_string(raw, 0, len(raw))[0] == one


@clause("5.0 MQTT-4.7.3-3", "3.1.1 MQTT-4.7.3-3")
def test_strings_and_binary_data_end_at_65535_bytes() -> None:
    assert len(wire.write_string("é" * 32_767)) == 65_536
    assert wire.write_binary(bytes(65_535))[:2] == b"\xff\xff"
    for too_long in ("é" * 32_768, "a" * 65_536):
        with pytest.raises(ValueError, match="over the limit of 65535"):
            wire.write_string(too_long)
    with pytest.raises(ValueError, match="over the limit of 65535"):
        wire.write_binary(bytes(65_536))


@clause("5.0 MQTT-1.5.4-1", "3.1.1 MQTT-1.5.3-1", "5.0 MQTT-1.5.4-2", "3.1.1 MQTT-1.5.3-2")
@clause("5.0 MQTT-4.7.3-2", "3.1.1 MQTT-4.7.3-2")
@pytest.mark.parametrize(
    "raw",
    [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x00b"],
    ids=["no lead byte", "cut", "overlong", "surrogate", "last surrogate", "above U+10FFFF", "cut in three", "U+0000"],
)
def test_text_that_is_not_strict_utf_8_is_malformed(raw: bytes) -> None:
    packed = wire.write_binary(raw)
    for read in (wire.read_string, wire.read_topic_name):
        with pytest.raises(MalformedPacket):
            read(packed, 0, len(packed))
    with pytest.raises(MalformedPacket):
        wire.TopicTable()[packed]


@clause("5.0 MQTT-1.5.4-3", "3.1.1 MQTT-1.5.3-3")
def test_a_byte_order_mark_is_kept_wherever_it_stands() -> None:
    packed = wire.write_string("\ufeffa\ufeff")
    assert packed == b"\x00\x07\xef\xbb\xbfa\xef\xbb\xbf"
    assert wire.read_string(packed, 0, len(packed))[0] == "\ufeffa\ufeff"
    assert wire.TopicTable()[packed] == "\ufeffa\ufeff"


@pytest.mark.parametrize(("text", "what"), [("a\0", "U\\+0000"), ("a\ud800", "surrogate at character 1")])
def test_text_that_the_wire_cannot_hold_is_not_written(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        wire.write_string(text)


@clause("5.0 MQTT-4.7.0-1", "3.1.1 MQTT-4.7.1-1", "5.0 MQTT-4.7.3-1", "3.1.1 MQTT-4.7.3-1")
@pytest.mark.parametrize(("topic", "reason"), [("", 0x82), ("#", 0x90), ("a/+", 0x90), ("a#b", 0x90)])
def test_topic_names_have_a_character_and_no_wildcard(topic: str, reason: int) -> None:
    packed = wire.write_string(topic)
    for read in (lambda: wire.read_topic_name(packed, 0, len(packed)), lambda: wire.TopicTable()[packed]):
        with pytest.raises(ProtocolError) as refused:
            read()
        assert refused.value.reason == reason
    with pytest.raises(ValueError, match="topic name"):
        wire.write_topic_name(topic)


@pytest.mark.parametrize("packet_id", [-1, 0, 65_536])
def test_packet_ids_outside_1_to_65535_are_not_written(packet_id: int) -> None:
    with pytest.raises(ValueError, match="not in 1 to 65535"):
        wire.write_packet_id(packet_id)


@clause("3.1.1 MQTT-2.3.1-1")
def test_packet_id_0_is_malformed() -> None:
    assert wire.read_packet_id(wire.write_packet_id(1), 0, 2) == (1, 2)
    with pytest.raises(MalformedPacket, match="packet id is 0"):
        wire.read_packet_id(b"\0\0", 0, 2)


def test_a_known_topic_is_the_same_string_each_time() -> None:
    table = wire.TopicTable()
    raw = wire.write_string("dev/1/temp")
    assert table[raw] == "dev/1/temp"
    assert table[bytes(bytearray(raw))] is table[raw]


def test_the_topic_table_is_bounded_in_entries_and_in_bytes_of_each() -> None:
    table = wire.TopicTable()
    for number in range(wire.TopicTable.MAX_ENTRIES + 10):
        assert table[wire.write_string(f"t/{number}")] == f"t/{number}"
        assert len(table) <= wire.TopicTable.MAX_ENTRIES
    long = wire.write_string("x" * wire.TopicTable.MAX_BYTES)
    assert table[long] == "x" * wire.TopicTable.MAX_BYTES
    assert long not in table
