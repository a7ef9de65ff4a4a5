"""Packets to bytes: as the standard writes them, and what cannot be written named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.codec import (
    NO_PROPERTIES,
    PACKET_ID,
    Auth,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    ReasonCode,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
    Will,
    encode,
    puback,
    pubcomp,
    publish_parts,
    pubrec,
    pubrel,
)
from tidings.broker.codec.encode import publish_run
from tidings.broker.codec.packets import AckRun, PublishRun

from . import strategies
from .examples import EXAMPLES, Example, Side, example_id
from .frames import frame

clause = pytest.mark.clause


@clause("3.1.1 MQTT-3.1.3-1", "5.0 MQTT-3.1.3-1")
@pytest.mark.parametrize("example", EXAMPLES, ids=example_id)
def test_packets_are_written_as_the_standard_writes_them(example: Example) -> None:
    assert encode(example.packet, example.version).hex(" ") == frame(example.line).hex(" ")


@given(strategies.connections)
def test_whatever_is_written_is_read_back_equal(drawn: tuple[int, Side, list[Packet]]) -> None:
    version, side, packets = drawn
    for packet in packets:
        decoder = Decoder(version=version, side=side)
        assert decoder.feed(encode(packet, version)) == [packet]
        assert decoder.error is None


@pytest.mark.parametrize("size", [0, 122, 123, 16_378, 16_379, 2_097_146, 2_097_147])
def test_remaining_lengths_take_the_fewest_bytes_at_every_boundary(size: int) -> None:
    raw = encode(Publish("abc", bytes(size)), 4)
    extra = (size + 5 > 127) + (size + 5 > 16_383) + (size + 5 > 2_097_151)
    assert len(raw) == size + 7 + extra
    assert Decoder(version=4).feed(raw) == [Publish("abc", bytes(size))]


# what a version does not have


def test_properties_are_left_out_before_5_0() -> None:
    found: Any = {"user_property": [("a", "b")]}
    will = Will("w", b"", properties={"will_delay_interval": 1})
    pairs: list[tuple[Packet, Packet]] = [
        (Connect("c", 4, will=will, properties=found), Connect("c", 4, will=Will("w"))),
        (Connack(properties=found), Connack()),
        (Publish("a", properties=found), Publish("a")),
        (Puback(1, properties=found), Puback(1)),
        (Subscribe(1, [SubscribeFilter("a", 1, True, True, 2)], found), Subscribe(1, [SubscribeFilter("a", 1)])),
        (Suback(1, [0], found), Suback(1, [0])),
        (Unsubscribe(1, ["a"], found), Unsubscribe(1, ["a"])),
        (Unsuback(1, [0], found), Unsuback(1)),
        (Disconnect(0x8B, found), Disconnect()),
    ]
    for full, bare in pairs:
        assert encode(full, 4) == encode(bare, 4)


@clause("3.1.1 MQTT-3.3.5-2")
@pytest.mark.parametrize("version", [3, 4])
def test_before_5_0_an_acknowledgement_is_positive_whatever_its_reason(version: int) -> None:
    assert encode(Puback(1, ReasonCode.NOT_AUTHORIZED), version) == b"\x40\x02\x00\x01"
    assert encode(Pubrec(1, ReasonCode.QUOTA_EXCEEDED), version) == b"\x50\x02\x00\x01"


@clause("3.1.1 MQTT-3.9.3-2")
def test_before_5_0_a_refused_subscription_is_0x80_whatever_its_reason() -> None:
    reasons = [0, 1, 2, int(ReasonCode.NOT_AUTHORIZED), int(ReasonCode.TOPIC_FILTER_INVALID)]
    assert encode(Suback(1, reasons), 4)[4:] == b"\x00\x01\x02\x80\x80"


def test_mqtt_3_1_has_no_session_present() -> None:
    assert encode(Connack(True), 3) == b"\x20\x02\x00\x00"
    assert encode(Connack(True), 4) == b"\x20\x02\x01\x00"


@pytest.mark.parametrize("packet", [Puback(1), Pubrec(1), Pubrel(1), Pubcomp(1), Disconnect(), Auth()])
def test_success_without_properties_takes_the_short_form_in_5_0(packet: Packet) -> None:
    assert encode(packet, 5)[1] == (0 if isinstance(packet, Disconnect | Auth) else 2)


def test_reason_codes_may_be_given_as_members() -> None:
    assert encode(Puback(1, ReasonCode.NO_MATCHING_SUBSCRIBERS), 5) == b"\x40\x03\x00\x01\x10"


# what cannot be written

BAD: list[Any] = [
    (Pingreq(), 6, "version is 6"),
    (Connect("c", 4), 5, "CONNECT of version 4"),
    (Connect("c" * 65_536, 4), 4, "over the limit of 65535"),
    (Connect("\0", 4), 4, r"U\+0000"),
    (Connect("\ud800", 4), 4, "surrogate"),
    (Connect("c", 4, keep_alive=65_536), 4, "keep_alive is 65536"),
    (Connect("c", 4, keep_alive=-1), 4, "keep_alive is -1"),
    (Connect("c", 4, password=b"x"), 4, "needs MQTT 5.0"),
    (Connect("c", 4, username="u", password=bytes(65_536)), 4, "over the limit of 65535"),
    (Connect("c", 4, will=Will("w", qos=3)), 4, "QoS is 3"),
    (Connect("c", 4, will=Will("w/#")), 4, "wildcard"),
    (Connect("c", 4, will=Will("w", bytes(65_536))), 4, "over the limit of 65535"),
    (Connect("c", 5, properties={"topic_alias": 1}), 5, "'topic_alias' may not stand here"),
    (Connect("c", 5, properties={"authentication_data": b""}), 5, "without authentication_method"),
    (Connack(False, 6), 4, "no return code"),
    (Connack(False, 0x87), 4, "CONNACK_RETURN_CODE"),
    (Connack(True, 0x87), 5, "no session present"),
    (Connack(False, 0x04), 5, r"CONNACK: reason Disconnect with will message \(0x04\)"),
    (Connack(properties={"authentication_data": b""}), 5, "without authentication_method"),
    (Publish(""), 4, "topic name is empty"),
    (Publish(""), 5, "topic name is empty"),
    (Publish("", properties={"topic_alias": 1}), 4, "topic name is empty"),
    (Publish("a/+"), 4, "wildcard"),
    (Publish("+", properties={"topic_alias": 1}), 5, "wildcard"),
    (Publish("a" * 65_536), 4, "over the limit of 65535"),
    (Publish("a", qos=3, packet_id=1), 4, "QoS is 3"),
    (Publish("a", dup=True), 4, "DUP at QoS 0"),
    (Publish("a", packet_id=1), 4, "packet id at QoS 0"),
    (Publish("a", qos=1), 4, "packet id 0"),
    (Publish("a", qos=1, packet_id=65_536), 4, "packet id 65536"),
    (Publish("a", properties={"topic_alias": 0}), 5, "topic_alias is 0"),
    (Puback(0), 4, "packet id 0"),
    (Puback(1, 0x92), 5, "PUBACK: reason"),
    (Pubrel(1, 0x10), 5, "PUBREL: reason"),
    (Subscribe(1, []), 4, "no topic filter"),
    (Subscribe(1, [SubscribeFilter("")]), 4, "topic filter is empty"),
    (Subscribe(1, [SubscribeFilter("a", 3)]), 4, "QoS is 3"),
    (Subscribe(1, [SubscribeFilter("a", retain_handling=3)]), 5, "retain_handling is 3"),
    (Subscribe(1, [SubscribeFilter("$share/g/a", no_local=True)]), 5, "no local"),
    (Subscribe(0, [SubscribeFilter("a")]), 5, "packet id 0"),
    (Suback(1, []), 4, "no reason code"),
    (Suback(1, [3]), 4, "SUBACK: reason"),
    (Unsubscribe(1, []), 4, "no topic filter"),
    (Unsubscribe(1, [""]), 4, "topic filter is empty"),
    (Unsuback(1), 5, "no reason code"),
    (Unsuback(1, [1]), 5, "UNSUBACK: reason"),
    (Disconnect(0x10), 5, "DISCONNECT: reason"),
    (Auth(), 4, "AUTH needs MQTT 5.0"),
    (Auth(0x18), 5, "no authentication method"),
    (Auth(0x01, {"authentication_method": "M"}), 5, "AUTH: reason"),
]


@pytest.mark.parametrize(("packet", "version", "what"), BAD)
def test_a_packet_that_cannot_be_written_is_named(packet: Packet, version: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        encode(packet, version)


def test_a_packet_over_the_largest_length_is_not_written() -> None:
    huge = bytes(268_435_456)  # which the system gives, but nobody touches
    with pytest.raises(ValueError, match=r"body of 268435459 bytes is over the limit of 268435455"):
        encode(Publish("a", huge), 4)
    with pytest.raises(ValueError, match="variable byte integer"):
        publish_parts("a", huge, 0, False, NO_PROPERTIES, 4)


def test_pings_are_two_bytes_in_every_version() -> None:
    for version in (3, 4, 5):
        assert encode(Pingreq(), version) == b"\xc0\x00"
        assert encode(Pingresp(), version) == b"\xd0\x00"


# the parts that many receivers share


@given(strategies.publishes(5, "client"))
def test_parts_of_a_publish_make_the_same_frame_as_the_whole(publish: Publish) -> None:
    for version in (3, 4, 5):
        if version != 5 and not publish.topic:
            continue
        head, tail = publish_parts(
            publish.topic, publish.payload, publish.qos, publish.retain, publish.properties, version
        )
        if publish.dup:
            head = bytes((head[0] | 0x08,)) + head[1:]
        packet_id = PACKET_ID[publish.packet_id] if publish.qos else b""
        assert head + packet_id + tail == encode(publish, version)


def test_parts_do_not_copy_a_payload_that_stands_alone() -> None:
    payload = bytes(1000)
    for version, qos in ((4, 0), (4, 1), (5, 0)):
        assert publish_parts("a", payload, qos, False, NO_PROPERTIES, version)[1] is payload


def test_parts_refuse_a_topic_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        publish_parts("a" * 65_536, b"", 0, False, NO_PROPERTIES, 4)


@given(st.lists(st.binary(max_size=3) | st.just(bytes(200)), max_size=8), strategies.qualities, st.booleans())
def test_parts_of_many_payloads_equal_the_parts_of_each(payloads: list[bytes], qos: int, retain: bool) -> None:
    heads: dict[int, bytes] = {}
    for version in (3, 4, 5, 4):
        wanted = [publish_parts("a/b", payload, qos, retain, NO_PROPERTIES, version) for payload in payloads]
        pieces = publish_run("a/b", payloads, qos, retain, version, heads)
        assert list(zip(pieces[0::3], pieces[2::3], strict=True)) == wanted
        assert pieces[1::3] == [b""] * len(payloads)


def test_heads_that_are_remembered_are_told_apart_and_bounded() -> None:
    heads: dict[int, bytes] = {}
    for size in range(300):
        for qos, retain, version in ((0, False, 4), (1, False, 4), (2, True, 4), (0, False, 5), (2, False, 5)):
            run = publish_run("t", [bytes(size)], qos, retain, version, heads)
            assert (run[0], run[2]) == publish_parts("t", bytes(size), qos, retain, NO_PROPERTIES, version)
            assert len(heads) < 100


def test_a_run_of_acknowledgements_is_written_as_each_of_them() -> None:
    for kind in (Puback, Pubrec, Pubrel, Pubcomp):
        assert encode(AckRun(kind, [1, 65_535]), 5) == encode(kind(1), 5) + encode(kind(65_535), 5)
    with pytest.raises(ValueError, match="packet id 0"):
        encode(AckRun(Puback, [1, 0]), 4)


def test_a_run_is_written_for_any_version() -> None:
    frames = encode(Publish("a", b"x"), 4) + encode(Publish("a", b"y"), 4)
    run = PublishRun("a", frames, len(frames) // 2, len(frames) // 2 - 1)
    assert encode(run, 4) == frames
    assert encode(run, 5) == encode(Publish("a", b"x"), 5) + encode(Publish("a", b"y"), 5)


@given(strategies.packet_ids)
def test_the_short_acknowledgements_equal_the_encoded_ones(packet_id: int) -> None:
    for version in (3, 4, 5):
        assert puback(packet_id) == encode(Puback(packet_id), version)
        assert pubrec(packet_id) == encode(Pubrec(packet_id), version)
        assert pubrel(packet_id) == encode(Pubrel(packet_id), version)
        assert pubcomp(packet_id) == encode(Pubcomp(packet_id), version)


def test_there_is_a_two_byte_form_of_every_packet_id() -> None:
    assert len(PACKET_ID) == 65_536
    assert all(PACKET_ID[value] == value.to_bytes(2, "big") for value in (0, 1, 255, 256, 65_535))
