"""The property table, and reading and writing by it."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as Independent

from tidings.broker import codec
from tidings.broker.codec.packets import PacketType
from tidings.broker.codec.properties import (
    BINARY,
    BYTE,
    NO_PROPERTIES,
    PAIR,
    TABLE,
    TOPIC,
    U16,
    U32,
    UTF8,
    VARINT,
    WILL,
    Properties,
    Spec,
    decode_properties,
    encode_properties,
)
from tidings.broker.errors import MalformedPacket, ProtocolError

from . import strategies
from .frames import frame

clause = pytest.mark.clause

PLACES = [WILL, *(kind for kind in PacketType if kind not in (PacketType.PINGREQ, PacketType.PINGRESP))]
CASES = [(spec, place) for spec in TABLE for place in spec.places]


def case_id(value: Any) -> str:
    return value.name if isinstance(value, Spec) else PacketType(value).name if value else "WILL"


def example_of(spec: Spec) -> Any:
    examples = {
        BYTE: 1,
        U16: 0x0102,
        U32: 0x01020304,
        VARINT: 300,
        UTF8: "é",
        TOPIC: "r/t",
        BINARY: b"\0",
        PAIR: ("k", "v"),
    }
    return examples[spec.type]


def raw_of(spec: Spec) -> bytes:
    return bytes((spec.identifier,)) + spec.type.write(example_of(spec))


def decode(raw: bytes, place: int) -> Properties:
    properties, at = decode_properties(b"\xff" + raw + b"\xff", 1, 1 + len(raw), place)
    assert at == 1 + len(raw)
    return properties


def test_the_table_agrees_with_an_independent_one() -> None:
    theirs: Any = Independent(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    by_identifier = {identifier: name for name, identifier in theirs.names.items()}
    assert len(TABLE) == 27
    for spec in TABLE:
        kind, places = theirs.properties[spec.identifier]
        assert by_identifier[spec.identifier].lower() == spec.name.replace("_", " ")
        assert {WILL if place == PacketTypes.WILLMESSAGE else place for place in places} == set(spec.places)
        alike = {
            "Byte": [BYTE],
            "Two Byte Integer": [U16],
            "Four Byte Integer": [U32],
            "Variable Byte Integer": [VARINT],
        }
        alike |= {"UTF-8 Encoded String": [UTF8, TOPIC], "Binary Data": [BINARY], "UTF-8 String Pair": [PAIR]}
        assert spec.type in alike[theirs.types[kind]]


def test_the_mapping_names_each_property_of_the_table_with_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the source says: compiled, a module no longer knows what is in a list."""
    name = "tidings.broker.codec.source"
    loader = SourceFileLoader(name, str(Path(str(codec.__file__)).with_name("properties.py")))
    spec_of_source = spec_from_loader(name, loader)
    assert spec_of_source is not None
    source = module_from_spec(spec_of_source)
    monkeypatch.setitem(sys.modules, name, source)
    loader.exec_module(source)
    hints = get_type_hints(source.Properties)
    assert set(hints) == {spec.name for spec in TABLE}
    for spec in TABLE:
        listed = list[int] if spec.type is VARINT else list[tuple[str, str]]
        assert hints[spec.name] == (listed if spec.listed else spec.type.python)


@clause("5.0 MQTT-3.3.2-13", "5.0 MQTT-3.3.2-19")
@pytest.mark.parametrize(("spec", "place"), CASES, ids=case_id)
def test_every_property_is_read_and_written_where_it_may_stand(spec: Spec, place: int) -> None:
    value = example_of(spec)
    properties: Any = {spec.name: [value] if spec.listed else value}
    raw = encode_properties(properties, place)
    assert raw == bytes((len(raw_of(spec)),)) + raw_of(spec)
    assert decode(raw, place) == properties


@pytest.mark.parametrize("place", PLACES, ids=case_id)
def test_no_property_stands_where_it_may_not(place: int) -> None:
    for spec in TABLE:
        if place in spec.places:
            continue
        with pytest.raises(MalformedPacket, match="may not stand here"):
            decode(bytes((len(raw_of(spec)),)) + raw_of(spec), place)
        with pytest.raises(ValueError, match="may not stand here"):
            encode_properties({spec.name: example_of(spec)}, place)  # type: ignore[misc]


@pytest.mark.parametrize(("spec", "place"), CASES, ids=case_id)
def test_a_property_stands_twice_only_where_it_may_repeat(spec: Spec, place: int) -> None:
    raw = bytes((2 * len(raw_of(spec)),)) + 2 * raw_of(spec)
    if place in spec.repeats:
        assert list(decode(raw, place).values()) == [[example_of(spec)] * 2]
        return
    with pytest.raises(ProtocolError, match="stands twice") as refused:
        decode(raw, place)
    assert refused.value.reason == 0x82
    if spec.listed:
        with pytest.raises(ValueError, match="may have one value here"):
            encode_properties({spec.name: [example_of(spec)] * 2}, place)  # type: ignore[misc]


@clause("5.0 MQTT-3.3.2-8")
@pytest.mark.parametrize(
    ("line", "place", "reason"),
    [
        ("[01 02]", PacketType.PUBLISH, 0x82),
        ("[0b 00]", PacketType.SUBSCRIBE, 0x82),
        ("[17 02]", PacketType.CONNECT, 0x82),
        ("[19 ff]", PacketType.CONNECT, 0x82),
        ("[21 0000]", PacketType.CONNECT, 0x82),
        ("[23 0000]", PacketType.PUBLISH, 0x94),
        ("[24 02]", PacketType.CONNACK, 0x82),
        ("[25 02]", PacketType.CONNACK, 0x82),
        ("[27 00000000]", PacketType.CONNECT, 0x82),
        ("[28 02]", PacketType.CONNACK, 0x82),
        ("[29 02]", PacketType.CONNACK, 0x82),
        ("[2a 02]", PacketType.CONNACK, 0x82),
    ],
)
def test_values_outside_their_range_are_refused_both_ways(line: str, place: int, reason: int) -> None:
    raw = frame(line)
    with pytest.raises(ProtocolError) as refused:
        decode(raw, place)
    assert refused.value.reason == reason
    spec = next(spec for spec in TABLE if spec.identifier == raw[1])
    value, _ = spec.type.read(raw, 2, len(raw))
    with pytest.raises(ValueError, match=rf"{spec.name} is {value}, not"):
        encode_properties({spec.name: [value] if spec.listed else value}, place)  # type: ignore[misc]


@clause("5.0 MQTT-3.3.2-14")
def test_a_response_topic_is_a_topic_name() -> None:
    with pytest.raises(ProtocolError) as refused:
        decode(frame("[08 s'a/#']"), PacketType.PUBLISH)
    assert refused.value.reason == 0x90
    with pytest.raises(ValueError, match=r"response_topic: topic name .* wildcard"):
        encode_properties({"response_topic": "a/+"}, WILL)


@pytest.mark.parametrize(
    "line", ["", "80", "05 26 s'a'", "02 21 00", "03 1f 0005", "03 1700", "01 21", "01 00", "01 ff", "01 80"]
)
def test_properties_that_break_off_or_are_none_are_malformed(line: str) -> None:
    raw = frame(line)
    for rest in (b"", b"\0", b"a" * 8):  # of the packet, which is not theirs
        with pytest.raises(MalformedPacket):
            decode_properties(raw + rest, 0, len(raw), PacketType.CONNECT)


@clause("5.0 MQTT-3.3.2-18")
def test_user_properties_keep_their_order_and_repetitions() -> None:
    pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("b", "0")]
    assert decode(encode_properties({"user_property": pairs}, PacketType.CONNECT), PacketType.CONNECT) == {
        "user_property": pairs
    }


@clause("5.0 MQTT-2.2.2-1")
def test_no_properties_are_one_zero_byte_and_one_shared_mapping() -> None:
    assert encode_properties({}, PacketType.PUBLISH) == b"\0"
    assert decode(b"\0", PacketType.PUBLISH) is NO_PROPERTIES
    assert encode_properties({"user_property": []}, PacketType.PUBLISH) == b"\0"


def test_lengths_above_127_take_two_bytes() -> None:
    properties: Properties = {"reason_string": "x" * 200}
    raw = encode_properties(properties, PacketType.CONNACK)
    assert raw[:2] == b"\xcb\x01"
    assert decode(raw, PacketType.CONNACK) == properties


@pytest.mark.parametrize(
    ("properties", "what"),
    [
        ({"receive_maximum": "10"}, "receive_maximum must be int, not '10'"),
        ({"receive_maximum": True}, "receive_maximum must be int, not True"),
        ({"receive_maximum": 65_536}, "receive_maximum is 65536, not 1 to 65535"),
        ({"topic_alias_maximum": 65_536}, "topic_alias_maximum: 65536 is not in 0 to 65535"),
        ({"session_expiry_interval": -1}, "session_expiry_interval: -1 is not in"),
        ({"authentication_method": b"X"}, "authentication_method must be str"),
        ({"authentication_method": "\0"}, "authentication_method: a string contains"),
        ({"authentication_data": "X"}, "authentication_data must be bytes"),
        ({"authentication_data": bytes(65_536)}, "authentication_data: a field of 65536 bytes"),
        ({"user_property": ("a", "b")}, "user_property must be a list"),
        ({"user_property": ["ab"]}, "user_property must be tuple"),
        ({"colour": 1}, "'colour' may not stand here"),
    ],
)
def test_what_cannot_be_written_is_named(properties: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        encode_properties(properties, PacketType.CONNECT)


@given(st.sampled_from(PLACES).flatmap(lambda place: st.tuples(st.just(place), strategies.properties(place))))
def test_any_properties_come_back(drawn: tuple[int, Properties]) -> None:
    place, properties = drawn
    assert decode(encode_properties(properties, place), place) == properties
