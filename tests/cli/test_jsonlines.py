"""JSON lines: what is dumped comes back as it was, and what cannot be published is refused with a reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes

from tidings.cli.jsonlines import Publication, dump, parse
from tidings.cli.properties import add, new, pairs

DEFAULT = Publication("default", b"", 1, True)

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
topics = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
properties = st.fixed_dictionaries(
    {},
    optional={
        "payload-format-indicator": st.integers(0, 1),
        "message-expiry-interval": st.integers(0, 0xFFFF_FFFF),
        "content-type": text,
        "response-topic": text,
        "correlation-data": st.binary(max_size=20),
        "user-property": st.lists(st.tuples(text, text), min_size=1, max_size=4),
        "subscription-identifier": st.lists(st.integers(1, 268_435_455), min_size=1, max_size=2),
        "topic-alias": st.integers(1, 0xFFFF),
    },
)


@given(topics, st.binary(max_size=40) | text.map(str.encode), st.integers(0, 2), st.booleans(), properties)
def test_a_dumped_message_is_one_line_and_is_parsed_back(
    topic: str, payload: bytes, qos: int, retain: bool, given_properties: dict[str, Any]
) -> None:
    message = MQTTMessage(9, topic.encode())
    message.payload, message.qos, message.retain, message.properties = payload, qos, retain, new(PacketTypes.PUBLISH)
    for name, value in given_properties.items():
        for each in value if isinstance(value, list) else [value]:
            add(message.properties, name, each)
    line = dump(message, 1_795_485_675_191_301_999)
    assert b"\n" not in line
    found = parse(line, DEFAULT)
    assert (found.topic, found.payload, found.qos, found.retain) == (topic, payload, qos, retain)
    of_arrival = ("topic-alias", "subscription-identifier")
    assert pairs(found.properties) == [pair for pair in pairs(message.properties) if pair[0] not in of_arrival]


def test_a_line_leaves_out_what_the_command_line_says() -> None:
    assert parse(b'{"payload": "x"}', DEFAULT) == Publication("default", b"x", 1, True)
    assert parse(b'{"topic": "t", "qos": 0, "retain": false}', DEFAULT) == Publication("t", b"", 0, False)


def test_a_line_without_a_topic_needs_a_default_one() -> None:
    with pytest.raises(ValueError, match="no topic; give 'topic' or -t"):
        parse(b'{"payload": "x"}', Publication("", b""))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"", "not JSON: Expecting value at column 1"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "too deep"),
        (b"[]", "not a JSON object"),
        (b'{"qo": 1}', "'qo' is no member"),
        (b'{"topic": ""}', "no topic"),
        (b'{"topic": 3}', "no topic"),
        (b'{"topic": "a/+"}', "wildcard"),
        (b'{"topic": "a\\u0000"}', "null character"),
        (b'{"topic": "\\ud800"}', "not UTF-8"),
        (b'{"qos": 3}', "qos is 0, 1 or 2, not 3"),
        (b'{"qos": true}', "qos is 0, 1 or 2, not True"),
        (b'{"qos": [1]}', "qos is 0, 1 or 2"),
        (b'{"retain": 2}', "retain is 0 or 1, not 2"),
        (b'{"payload": {"a": 1}}', "payload is a string"),
        (b'{"payload": "\\ud800"}', "payload_base64 is for bytes"),
        (b'{"payload": "x", "payload_base64": "eA=="}', "exclude each other"),
        (b'{"payload_base64": "?"}', "payload_base64 is not base64"),
        (b'{"payload_base64": 1}', "payload_base64 is not base64"),
        (b'{"properties": []}', "properties is an object"),
        (b'{"properties": {"foo": 1}}', "no property 'foo'"),
        (b'{"properties": {"reason-string": "x"}}', "reason-string is not a property of Publish"),
        (b'{"properties": {"content-type": 1}}', "content-type is a string"),
        (b'{"properties": {"message-expiry-interval": "1"}}', "message-expiry-interval is a whole number"),
        (b'{"properties": {"message-expiry-interval": 4294967296}}', "0 to 4,294,967,295"),
        (b'{"properties": {"payload-format-indicator": 2}}', "must be 0 or 1"),
        (b'{"properties": {"user-properties": {"a": "b"}}}', "list of"),
        (b'{"properties": {"user-properties": ["ab"]}}', "list of"),
        (b'{"properties": {"user-properties": [["a"]]}}', "pair of strings"),
        (b'{"properties": {"user-properties": [["a", 1]]}}', "pair of strings"),
        (b'{"properties": {"correlation-data": 1}}', "correlation-data is a string"),
        (b'{"properties": {"correlation-data": "a", "correlation-data_base64": "eA=="}}', "given twice"),
    ],
)
def test_a_line_that_is_no_message_is_refused_with_a_reason(line: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=r"(?s).+") as caught:
        parse(line, DEFAULT)
    assert problem in str(caught.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | text, lambda x: st.lists(x) | st.dictionaries(text, x)
    )
)
def test_any_json_is_a_message_or_refused(value: Any) -> None:
    for members in (
        value,
        {"topic": "t", "payload": value},
        {"topic": "t", "properties": value},
        {"topic": "t", "qos": value},
    ):
        try:
            assert isinstance(parse(json.dumps(members).encode(), DEFAULT), Publication)
        except ValueError:
            continue
