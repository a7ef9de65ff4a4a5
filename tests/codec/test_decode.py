"""The stream: packets out of any pieces, limits, the fast path, and an error once and for all."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.codec import (
    NO_PROPERTIES,
    Connect,
    Decoder,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscribeFilter,
    TopicTable,
    encode,
)
from tidings.broker.codec.packets import AckRun, PublishRun
from tidings.broker.core.message import Message
from tidings.broker.errors import MalformedPacket, PacketTooLarge, ProtocolError, UnsupportedVersion

from . import strategies
from .examples import EXAMPLES, Example, Side, example_id
from .frames import frame

clause = pytest.mark.clause
CONNECT_4 = frame("10 * s'MQTT' 04 02 003c s'c'")
CONNECT_5 = frame("10 * s'MQTT' 05 02 003c [] s'c'")


def decode(
    raw: bytes, version: int | None = None, side: Side = "server", **limits: Any
) -> tuple[list[Packet], Decoder]:
    decoder = Decoder(version=version, side=side, **limits)
    return decoder.feed(raw), decoder


def refused(raw: bytes, version: int | None = None, side: Side = "server", **limits: Any) -> ProtocolError:
    """The error for ``raw``, which must be the same byte by byte."""
    packets, decoder = decode(raw, version, side, **limits)
    assert packets == []
    assert decoder.error is not None
    slow = Decoder(version=version, side=side, **limits)
    for at in range(len(raw)):
        assert slow.feed(raw[at : at + 1]) == []
    assert slow.error is not None
    assert (type(slow.error), slow.error.reason) == (type(decoder.error), decoder.error.reason)
    return decoder.error


@pytest.mark.parametrize("example", EXAMPLES, ids=example_id)
def test_packets_are_read_as_the_standard_writes_them(example: Example) -> None:
    packets, decoder = decode(frame(example.line), example.version, example.side)
    assert decoder.error is None
    assert packets == [example.packet]
    assert decoder.waiting == 0


@given(strategies.connections, st.data())
def test_any_packets_come_back_however_the_stream_is_cut(
    drawn: tuple[int, Side, list[Packet]], data: st.DataObject
) -> None:
    version, side, packets = drawn
    raw = b"".join(encode(packet, version) for packet in packets)
    decoder = Decoder(version=None if side == "server" else version, side=side)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    received: list[Packet] = []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        received += decoder.feed(raw[start:stop])
    assert decoder.error is None
    assert received == packets
    assert decoder.waiting == 0


@given(strategies.connections)
def test_any_packets_come_back_byte_by_byte(drawn: tuple[int, Side, list[Packet]]) -> None:
    version, side, packets = drawn
    raw = b"".join(encode(packet, version) for packet in packets)
    decoder = Decoder(version=None if side == "server" else version, side=side)
    received: list[Packet] = []
    for at in range(len(raw)):
        received += decoder.feed(raw[at : at + 1])
    assert (received, decoder.error, decoder.waiting) == (packets, None, 0)


@pytest.mark.parametrize(("raw", "version"), [(CONNECT_4, 4), (CONNECT_5, 5)])
def test_a_server_learns_the_version_from_connect_and_uses_it_in_the_same_read(raw: bytes, version: int) -> None:
    subscribe = Subscribe(
        1, [SubscribeFilter("a", 1)], {"subscription_identifier": [9]} if version == 5 else NO_PROPERTIES
    )
    publish = Publish("a", b"x", 1, packet_id=2)
    packets, decoder = decode(raw + encode(subscribe, version) + encode(publish, version) + encode(Puback(3), version))
    assert packets == [Connect("c", version), subscribe, publish, Puback(3)]
    assert decoder.version == version


@clause("3.1.1 MQTT-3.1.0-1", "5.0 MQTT-3.1.0-1")
@pytest.mark.parametrize(
    "line", ["c0 00", "30 * s'a' 'x'", "40 02 0001", "82 * 0001 s'a' 00", "20 02 0000", "f0 00", "00 00"]
)
def test_a_server_takes_nothing_before_connect(line: str) -> None:
    error = refused(frame(line))
    assert error.reason == 0x82
    assert "first packet" in str(error)


@pytest.mark.parametrize(
    "raw", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"SSH-2.0-OpenSSH\r\n"]
)
def test_other_protocols_are_refused_at_their_first_bytes(raw: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(raw[:5]) == []
    assert decoder.error is not None


def test_reserved_flags_of_connect_are_malformed() -> None:
    assert refused(b"\x11" + CONNECT_4[1:]).reason == 0x81


def test_the_version_of_a_bad_connect_is_known_so_that_it_can_be_answered() -> None:
    packets, decoder = decode(frame("10 * s'MQTT' 05 03 0000 [] s'c'"))
    assert (packets, decoder.version) == ([], 5)
    assert isinstance(decoder.error, MalformedPacket)


def test_an_unsupported_version_leaves_the_version_unknown() -> None:
    packets, decoder = decode(frame("10 * s'MQTT' 09 02 0000 s'c'"))
    assert (packets, decoder.version) == ([], None)
    assert isinstance(decoder.error, UnsupportedVersion)
    assert decoder.error.level == 9


def test_a_second_connect_is_handed_on_and_does_not_change_the_version() -> None:
    packets, decoder = decode(CONNECT_4 + CONNECT_5 + encode(Publish("a", b"x"), 4))
    assert packets == [Connect("c", 4), Connect("c", 5), Publish("a", b"x")]
    assert decoder.version == 4


def test_the_packets_before_a_bad_one_are_delivered_and_nothing_after_it() -> None:
    good = encode(Publish("a", b"x"), 4)
    packets, decoder = decode(good + good + frame("36 * s'a' 0001") + good, version=4)
    assert packets == [Publish("a", b"x"), Publish("a", b"x")]
    error = decoder.error
    assert isinstance(error, MalformedPacket)
    assert decoder.feed(good) == []
    assert decoder.error is error
    assert decoder.waiting == 0


def test_feeding_nothing_changes_nothing() -> None:
    decoder = Decoder(version=4)
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\xc0") == []
    assert decoder.feed(b"") == []
    assert decoder.waiting == 1
    assert decoder.feed(b"\x00") == [Pingreq()]


# limits


def test_a_packet_of_exactly_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    for size in (20, 127 + 2, 128 + 3, 200, 16_383 + 3, 16_384 + 4, 20_000):
        payload = bytes(size - 5 - (1 if size > 129 else 0) - (1 if size > 16_386 else 0))
        raw = encode(Publish("a", payload), 4)
        assert len(raw) == size
        packets, decoder = decode(raw, version=4, max_packet_size=size)
        assert packets == [Publish("a", payload)]
        assert decoder.error is None
        assert isinstance(refused(raw, version=4, max_packet_size=size - 1), PacketTooLarge)


def test_a_packet_over_the_limit_is_refused_as_soon_as_its_length_is_read() -> None:
    decoder = Decoder(version=4, max_packet_size=1000)
    assert decoder.feed(b"\x30\xff\xff\xff") == []
    assert decoder.error is None
    assert decoder.feed(b"\x7f") == []
    assert isinstance(decoder.error, PacketTooLarge)
    assert decoder.error.reason == 0x95
    assert decoder.waiting == 0


def test_before_connect_the_smaller_limit_applies_and_afterwards_the_larger() -> None:
    long_id = Connect("c" * 100, 4)
    assert isinstance(refused(encode(long_id, 4), max_connect_size=80), PacketTooLarge)
    large = Publish("a", bytes(500))
    packets, decoder = decode(CONNECT_4 + encode(large, 4), max_connect_size=80, max_packet_size=600)
    assert packets == [Connect("c", 4), large]
    packets, decoder = decode(encode(long_id, 4), max_connect_size=1000, max_packet_size=80)
    assert isinstance(decoder.error, PacketTooLarge)


def test_a_remaining_length_of_five_bytes_is_malformed_as_soon_as_four_are_there() -> None:
    decoder = Decoder(version=4)
    assert decoder.feed(b"\x30\x80\x80\x80") == []
    assert (decoder.error, decoder.waiting) == (None, 4)
    decoder.feed(b"\x80")
    assert isinstance(decoder.error, MalformedPacket)


def test_padded_remaining_lengths_are_read() -> None:
    raw = bytes.fromhex("4082000007") + bytes.fromhex("408280000008") + bytes.fromhex("3084800000016178")
    packets, decoder = decode(raw + encode(Puback(9), 4), version=4)
    assert decoder.error is None
    assert packets == [Puback(7), Puback(8), Publish("a", b"x"), Puback(9)]


def test_what_waits_is_counted_and_bounded() -> None:
    decoder = Decoder(version=4)
    raw = encode(Publish("a", bytes(1000)), 4)
    for at in range(0, 900, 100):
        decoder.feed(raw[at : at + 100])
        assert decoder.waiting == at + 100
    assert decoder.feed(raw[900:] + b"\xc0") == [Publish("a", bytes(1000))]
    assert decoder.waiting == 1


def test_a_packet_that_may_not_arrive_is_refused_before_its_body_is_collected() -> None:
    decoder = Decoder(version=4)
    decoder.feed(b"\x90\xff\xff\x7f")
    assert isinstance(decoder.error, ProtocolError)


def test_a_large_packet_in_many_pieces_is_collected_in_linear_time() -> None:
    def seconds(size: int) -> float:
        raw = encode(Publish("a", bytes(size)), 4)
        pieces = [raw[at : at + 16] for at in range(0, len(raw), 16)]
        decoder = Decoder(version=4)
        started = time.process_time()
        received = [packet for piece in pieces for packet in decoder.feed(piece)]
        spent = time.process_time() - started
        assert len(received) == 1
        return spent

    # sixteen times the pieces: linear time is 16 times as long, quadratic 256 times
    assert min(seconds(1_600_000) for _ in range(2)) < 80 * min(seconds(100_000) for _ in range(3))


# PUBLISH and the acknowledgements, which have a path of their own


@clause("3.1.1 MQTT-3.3.1-4", "5.0 MQTT-3.3.1-4", "3.1.1 MQTT-3.3.1-2", "5.0 MQTT-3.3.1-2")
@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("first", ["36", "37", "3e", "3f", "38", "39"])
def test_qos_3_and_dup_at_qos_0_are_malformed(version: int, first: str) -> None:
    assert refused(frame(f"{first} * s'a' 0001 [] 'x'"), version).reason == 0x81


BAD_PUBLISHES: list[Any] = [
    pytest.param(4, "30 00", 0x81, id="empty"),
    pytest.param(4, "30 01 00", 0x81, id="half a topic length"),
    pytest.param(4, "30 03 0002 'a'", 0x81, id="topic cut"),
    pytest.param(5, "30 03 0001 'a'", 0x81, marks=clause("5.0 MQTT-2.2.2-1"), id="no property length"),
    pytest.param(5, "32 05 0001 'a' 0001", 0x81, id="no property length at QoS 1"),
    pytest.param(4, "32 04 0001 'a' 00", 0x81, id="half a packet id"),
    pytest.param(4, "32 03 0001 'a'", 0x81, marks=clause("3.1.1 MQTT-2.3.1-1"), id="no packet id"),
    pytest.param(4, "32 * s'a' 0000 'x'", 0x81, marks=clause("3.1.1 MQTT-2.3.1-1"), id="packet id 0"),
    pytest.param(5, "34 * s'a' 0000 [] 'x'", 0x81, marks=clause("5.0 MQTT-2.2.1-3"), id="packet id 0 in 5.0"),
    pytest.param(4, "30 * s'' 'x'", 0x82, marks=clause("3.1.1 MQTT-4.7.3-1"), id="no topic"),
    pytest.param(5, "30 * s'' [] 'x'", 0x82, marks=clause("5.0 MQTT-4.7.3-1"), id="no topic nor alias"),
    pytest.param(5, "30 * s'' [01 00] 'x'", 0x82, id="no topic nor alias among properties"),
    pytest.param(4, "30 * s'a/#' 'x'", 0x90, marks=clause("3.1.1 MQTT-3.3.2-2"), id="wildcard"),
    pytest.param(5, "30 * s'+' [] 'x'", 0x90, marks=clause("5.0 MQTT-3.3.2-2"), id="wildcard in 5.0"),
    pytest.param(5, "30 * s'+' [23 0001] 'x'", 0x90, marks=clause("5.0 MQTT-3.3.2-2"), id="wildcard with alias"),
    pytest.param(4, "30 * 0003 'a' 00 'b' 'x'", 0x81, marks=clause("3.1.1 MQTT-4.7.3-2"), id="U+0000"),
    pytest.param(4, "30 * 0001 ff 'x'", 0x81, marks=clause("3.1.1 MQTT-3.3.2-1"), id="no UTF-8"),
    pytest.param(5, "30 * 0001 ff [] 'x'", 0x81, marks=clause("5.0 MQTT-3.3.2-1"), id="no UTF-8 in 5.0"),
    pytest.param(5, "30 * s'a' [23 0000]", 0x94, marks=clause("5.0 MQTT-3.3.2-8"), id="alias 0"),
    pytest.param(
        5, "30 * s'a' [0b 01]", 0x82, marks=clause("5.0 MQTT-3.3.4-6"), id="subscription identifier from a client"
    ),
    pytest.param(5, "30 * s'a' 05 01 00", 0x81, id="properties cut"),
    pytest.param(5, "30 * s'a' ff", 0x81, id="property length cut"),
]


@pytest.mark.parametrize(("version", "line", "reason"), BAD_PUBLISHES)
def test_a_bad_publish_is_refused_whatever_follows_it(version: int, line: str, reason: int) -> None:
    raw = frame(line)
    assert refused(raw, version).reason == reason
    for rest in (b"\x00" * 8, b"\x01" * 8, b"\x7f" * 8, encode(Publish("a", b"x"), version)):
        packets, decoder = decode(raw + rest, version)
        assert packets == []
        assert decoder.error is not None
        assert decoder.error.reason == reason


def test_the_longest_topic_is_taken() -> None:
    topic = "t" * 65_535
    assert decode(encode(Publish(topic, b"x"), 4), version=4)[0] == [Publish(topic, b"x")]


def test_the_same_topic_is_the_same_string_across_decoders_that_share_a_table() -> None:
    table = TopicTable()
    raw = encode(Publish("dev/1/temp", b"x"), 4)
    five = encode(Publish("dev/1/temp", b"x", properties={"topic_alias": 1}), 5)
    names: list[str] = []
    for decoder, frames in ((Decoder(version=4, topics=table), raw * 2), (Decoder(version=5, topics=table), five * 2)):
        names += [packet.topic for packet in decoder.feed(frames) if isinstance(packet, Publish)]
    assert len(names) == 4
    assert len({id(name) for name in names}) == 1


def test_packets_without_properties_share_the_one_mapping() -> None:
    raw = b"".join(encode(packet, 5) for packet in (Publish("a"), Puback(1), Publish("a", b"", 1, packet_id=1)))
    packets, _ = decode(raw, version=5)
    assert len(packets) == 3
    assert all(packet.properties is NO_PROPERTIES for packet in packets if isinstance(packet, Publish | Puback))


@pytest.mark.parametrize("version", [3, 4, 5])
def test_runs_of_acknowledgements_of_all_kinds_keep_their_order(version: int) -> None:
    run: list[Packet] = [Puback(1), Puback(2), Pubrec(3), Pubrec(65535), Pubrel(4), Pubcomp(5), Pubcomp(6), Puback(7)]
    raw = b"".join(encode(packet, version) for packet in run)
    for cut in range(len(raw) + 1):
        decoder = Decoder(version=version)
        assert decoder.feed(raw[:cut]) + decoder.feed(raw[cut:]) == run
        assert decoder.error is None


@clause("3.1.1 MQTT-2.3.1-1")
@pytest.mark.parametrize("line", ["40 02 0000", "50 02 0000", "62 02 0000", "70 02 0000"])
def test_an_acknowledgement_of_packet_id_0_is_malformed_even_in_a_run(line: str) -> None:
    good = frame(line)[:2] + b"\x00\x01"
    packets, decoder = decode(good + frame(line) + good, version=4)
    assert len(packets) == 1
    assert isinstance(decoder.error, MalformedPacket)


@pytest.mark.parametrize("kind", [Puback, Pubrec, Pubrel, Pubcomp])
def test_acknowledgements_come_as_runs_if_asked_for(kind: type[Puback | Pubrec | Pubrel | Pubcomp]) -> None:
    other = Pubrel if kind is not Pubrel else Pubrec
    why = 0x80 if kind in (Puback, Pubrec) else 0x92
    raw = b"".join(encode(packet, 5) for packet in (kind(7), kind(9), kind(8), other(8), kind(1), kind(2, why)))
    packets, decoder = decode(raw + raw[:7], 5, runs=True)
    assert packets == [AckRun(kind, [7, 9, 8]), other(8), kind(1), kind(2, why), kind(7)]
    assert decoder.waiting == 3
    packets, decoder = decode(raw[:12] + raw[:2] + b"\0\0" + raw[:4], 4, runs=True)
    assert packets == [AckRun(kind, [7, 9, 8])]
    assert isinstance(decoder.error, MalformedPacket)


# packets that repeat topic and length


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("first", [0x30, 0x31, 0x32, 0x3B, 0x34])
@given(st.lists(st.sampled_from([b"", b"x", b"y", b"\0", b"long" * 40]), max_size=12), st.integers(0, 3), st.data())
def test_publishes_that_repeat_topic_and_length_come_one_by_one(
    version: int, first: int, payloads: list[bytes], extra: int, data: st.DataObject
) -> None:
    qos, retain, dup = first >> 1 & 3, bool(first & 1), bool(first & 8)
    packets: list[Packet] = [
        Publish("a/b", payload, qos, retain, dup, number if qos else 0) for number, payload in enumerate(payloads, 1)
    ]
    if version == 5 and packets:  # one that breaks the run by its properties, and has the same length without
        packets.insert(extra, Publish("a/b", b"x", qos, retain, dup, 99 if qos else 0, {"payload_format_indicator": 1}))
    raw = b"".join(encode(packet, version) for packet in packets)
    cut = data.draw(st.integers(0, len(raw)))
    decoder = Decoder(version=version)
    assert decoder.feed(raw[:cut]) + decoder.feed(raw[cut:]) == packets
    assert (decoder.error, decoder.waiting) == (None, 0)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_at_qos_0_they_come_as_runs_if_asked_for(version: int) -> None:
    run = [encode(Publish("a/b", payload), version) for payload in (b"one", b"two", b"six")]
    other = [encode(Publish("a/b", b"four"), version), encode(Publish("a/b", b"one", retain=True), version)]
    first = [encode(Publish("a/b", b""), version)]  # tells that this peer repeats its topic
    packets, decoder = decode(b"".join(first + run + other + other[:1] + run[:1]) + run[0][:-1], version, runs=True)
    assert packets == [
        Publish("a/b"),
        PublishRun("a/b", b"".join(run), len(run[0]), len(run[0]) - 3),
        Publish("a/b", b"four"),
        Publish("a/b", b"one", retain=True),
        Publish("a/b", b"four"),
        Publish("a/b", b"one"),
    ]
    assert isinstance(packets[1], PublishRun)
    assert (packets[1].count, packets[1].payloads()) == (3, [b"one", b"two", b"six"])
    assert decoder.waiting == len(run[0]) - 1


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("version", [3, 4, 5])
def test_runs_of_qos_1_and_2_bring_their_packet_ids(version: int, qos: int) -> None:
    def publish(packet_id: int, payload: bytes = b"one", dup: bool = False) -> Publish:
        return Publish("a/b", payload, qos, False, dup, packet_id)

    packets = [publish(9), publish(7), publish(300), publish(65_535), publish(8, b"four"), publish(1, dup=True)]
    raw = [encode(packet, version) for packet in packets]
    received, decoder = decode(b"".join(raw) + raw[0][:-1], version, runs=True)
    run = received[1]
    assert isinstance(run, PublishRun)
    assert received == [packets[0], run, *packets[4:]]
    assert (run.count, run.qos, list(run.packet_ids), run.payloads()) == (3, qos, [7, 300, 65_535], [b"one"] * 3)
    assert run.packets() == packets[1:4]
    assert decoder.waiting == len(raw[0]) - 1


@pytest.mark.parametrize("spoilt", [1, 2, 3])
def test_a_run_ends_before_what_is_wrong_or_has_properties(spoilt: int) -> None:
    good = encode(Publish("a", b"four", 1, packet_id=1), 5)
    no_id = good.replace(b"a\x00\x01", b"a\x00\x00")
    other = encode(Publish("a", b"xy", 1, packet_id=1, properties={"payload_format_indicator": 1}), 5)
    for bad in (no_id, other):
        raw = b"".join([good, *[good] * spoilt, bad, good])
        one_by_one, slow = decode(raw, 5)
        received, fast = decode(raw, 5, runs=True)
        assert [each for run in received for each in (run.packets() if isinstance(run, PublishRun) else [run])] == (
            one_by_one
        )
        assert (type(fast.error), fast.waiting) == (type(slow.error), slow.waiting)


@clause("3.1.1 MQTT-2.3.1-1", "5.0 MQTT-2.2.1-3")
@pytest.mark.parametrize("version", [4, 5])
def test_a_packet_id_of_0_is_malformed_even_in_a_run(version: int) -> None:
    good = encode(Publish("a", b"x", 1, packet_id=1), version)
    bad = good.replace(b"a\x00\x01", b"a\x00\x00")
    packets, decoder = decode(good + good + bad + good, version)
    assert packets == [Publish("a", b"x", 1, packet_id=1)] * 2
    assert isinstance(decoder.error, MalformedPacket)


@pytest.mark.parametrize("qos", [0, 1])
def test_properties_end_a_run_though_the_length_is_the_same(qos: int) -> None:
    plain = Publish("a", b"four", qos, packet_id=qos)
    other = Publish("a", b"xy", qos, packet_id=qos, properties={"payload_format_indicator": 1})
    assert len(encode(plain, 5)) == len(encode(other, 5))
    packets: list[Packet] = [plain, plain, plain, other, plain, plain]
    assert decode(b"".join(encode(packet, 5) for packet in packets), 5)[0] == packets


def test_a_publish_may_be_of_a_class_of_ones_own() -> None:
    raw = encode(Publish("a", b"x"), 5) + 2 * encode(Publish("a", b"x", 1, packet_id=1), 5)
    raw += encode(Publish("a", b"x", properties={"topic_alias": 1}), 5)
    packets, _ = decode(raw, 5, publish=Message)
    assert [type(packet) for packet in packets] == [Message] * 4


# using it


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"side": "client"}, "needs the version"),
        ({"side": "peer"}, "side is 'peer'"),
        ({"version": 6}, "version is 6"),
    ],
)
def test_a_decoder_that_cannot_work_is_not_made(arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Decoder(**arguments)


@pytest.mark.parametrize("version", [3, 4, 5])
@given(
    st.binary(min_size=2, max_size=140), st.sampled_from([0x30, 0x31, 0x32, 0x35, 0x40, 0x50, 0x62, 0x70]), st.data()
)
def test_a_short_packet_alone_in_its_read_is_read_as_it_is_among_others(
    version: int, body: bytes, first: int, data: st.DataObject
) -> None:
    if data.draw(st.booleans()):  # a name that may be in the table, and fits
        name = data.draw(st.sampled_from([b"a/b", b"t", b"#"]))
        body = bytes((0, len(name))) + name + body[2:]
    packet = bytes((first, len(body) & 0x7F)) + body
    alone, among = (Decoder(version=version, max_packet_size=100) for _ in range(2))
    known = encode(Publish("a/b", b""), version)
    before = alone.feed(known)
    received = alone.feed(packet)
    assert before + received == among.feed(known + packet)
    assert repr(alone.error) == repr(among.error)
    assert alone.waiting == among.waiting
