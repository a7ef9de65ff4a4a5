"""Wire forms of runs against the encoder, one PUBLISH at a time; and what a queued message weighs."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.broker import Config
from tidings.broker.codec import Decoder, encode
from tidings.broker.codec.packets import NO_PROPERTIES, Publish, PublishRun
from tidings.broker.codec.properties import Properties
from tidings.broker.core.message import OVERHEAD_BYTES, Message, Run, WireRun
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant
from tidings.broker.core.window import Window

NOW = 1000.0
TOPICS = st.text("abc/é", min_size=1, max_size=40)
PAYLOADS = st.binary(max_size=200) | st.sampled_from([b"", b"x" * 127, b"x" * 16_384])
IDENTIFIERS = st.sampled_from([(), (1,), (1, 268_435_455), (200, 7, 7)])
PROPERTIES: st.SearchStrategy[Properties] = st.fixed_dictionaries(
    {},
    optional={
        "payload_format_indicator": st.just(1),
        "content_type": st.text("abc", max_size=5),
        "response_topic": st.just("r/t"),
        "correlation_data": st.binary(max_size=5),
        "user_property": st.lists(st.tuples(st.text("kv", max_size=3), st.text("kv", max_size=3)), max_size=3),
    },
).map(lambda each: each if each else NO_PROPERTIES)  # type: ignore[arg-type, return-value]
VERSIONS = st.sampled_from([3, 4, 5])


def expected(
    message: Message, version: int, qos: int, keep_retain: bool, identifiers: tuple[int, ...], packet_id: int
) -> bytes:
    """What the encoder makes of the delivery."""
    properties: Properties = message.properties.copy()
    if message.expires_at is not None:
        properties["message_expiry_interval"] = int(message.expires_at - NOW)
    if identifiers:
        properties["subscription_identifier"] = list(identifiers)
    retain = keep_retain and message.retain
    return encode(
        Publish(message.topic, message.payload, qos, retain, False, packet_id if qos else 0, properties), version
    )


@st.composite
def runs(draw: st.DrawFn) -> list[Message]:
    """One message with anything, or several that differ in payload alone."""
    topic, qos, retain = draw(TOPICS), draw(st.integers(0, 2)), draw(st.booleans())
    if draw(st.booleans()):
        expires_at = draw(st.none() | st.integers(1, 2**32 - 1).map(lambda seconds: NOW + seconds))
        return [Message(topic, draw(PAYLOADS), qos, retain, properties=draw(PROPERTIES), expires_at=expires_at)]
    return [Message(topic, payload, qos, retain) for payload in draw(st.lists(PAYLOADS, min_size=1, max_size=5))]


Form = tuple[int, int, bool, tuple[int, ...]]
FORMS = st.lists(st.tuples(VERSIONS, st.integers(0, 2), st.booleans(), IDENTIFIERS), min_size=1, max_size=6)


@given(runs(), FORMS, st.integers(1, 65_535))
@settings(deadline=None)
def test_pieces_and_frames_of_a_run_are_what_the_encoder_writes(
    messages: list[Message], forms: list[Form], packet_id: int
) -> None:
    run = Run(messages, NOW)
    run.heads = {}
    assert (run.count, run.topic, run.qos) == (len(messages), messages[0].topic, messages[0].qos)
    assert run.payload_bytes == sum(len(message.payload) for message in messages)
    for version, qos, keep_retain, identifiers in forms:  # in any order: one form must not leak into another
        wanted = [expected(each, version, qos, keep_retain, identifiers, packet_id) for each in messages]
        between = packet_id.to_bytes(2, "big") if qos else b""
        pieces = run.pieces(version, qos, keep_retain, identifiers).copy()
        assert pieces[1::3] == [b""] * len(messages)
        pieces[1::3] = [between] * len(messages)
        assert b"".join(pieces) == b"".join(wanted)
        wanted = [expected(each, version, 0, keep_retain, identifiers, 0) for each in messages]
        assert run.frames(version, keep_retain, identifiers) == b"".join(wanted)


@given(runs(), FORMS)
@settings(deadline=None)
def test_one_message_alone_has_the_same_form(messages: list[Message], forms: list[Form]) -> None:
    for version, qos, keep_retain, identifiers in forms:
        for message in messages:
            head, tail = message.parts(version, qos, keep_retain and message.retain, identifiers, NOW)
            between = b"\x12\x34" if qos else b""
            assert head + between + tail == expected(message, version, qos, keep_retain, identifiers, 0x1234)


@given(TOPICS, st.integers(0, 200), st.integers(1, 6), VERSIONS, FORMS)
@settings(deadline=None)
def test_a_run_from_the_wire_is_what_the_encoder_writes(
    topic: str, length: int, count: int, version: int, forms: list[Form]
) -> None:
    payloads = [bytes([number]) * length for number in range(count)]
    stream = [encode(Publish(topic, payload), version) for payload in payloads]
    wire = PublishRun(topic, b"".join(stream), len(stream[0]), len(stream[0]) - length)
    run = WireRun(wire, version, "sender", NOW)
    messages = [Message(topic, payload) for payload in payloads]
    assert (run.count, run.qos, run.payload_bytes) == (count, 0, length * count)
    for out, _, keep_retain, identifiers in forms:
        wanted = b"".join(expected(each, out, 0, keep_retain, identifiers, 0) for each in messages)
        assert run.frames(out, keep_retain, identifiers) == wanted
    assert [(each.topic, each.payload, each.qos, each.sender) for each in run.messages] == [
        (topic, payload, 0, "sender") for payload in payloads
    ]
    assert run.messages is run.messages


@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_decoder_brings_runs_that_are_passed_on_unchanged(version: int) -> None:
    decoder = Decoder(publish=Message, runs=True, version=version)
    stream = b"".join(encode(Publish("t", b"%06d" % number), version) for number in range(100))
    packets = decoder.feed(stream)
    assert decoder.error is None
    passed_on = b""
    for packet in packets:
        if isinstance(packet, PublishRun):
            passed_on += WireRun(packet, version, "", NOW).frames(version, False, ())
        else:
            assert isinstance(packet, Message)
            passed_on += encode(Publish(packet.topic, packet.payload), version)
    assert passed_on == stream
    assert any(isinstance(packet, PublishRun) for packet in packets)


def test_forms_are_made_once() -> None:
    run = Run([Message("t", b"x", 1)], NOW)
    assert run.pieces(5, 1, False, ()) is run.pieces(5, 1, False, ())
    assert run.frames(4, False, ()) is run.frames(4, False, ())


@pytest.mark.parametrize(("left_s", "sent"), [(10.0, 10), (9.5, 10), (0.2, 1), (0.0, 0), (-3.0, 0)])
def test_remaining_lifetime_is_rounded_up_and_never_negative(left_s: float, sent: int) -> None:
    message = Message("t", b"", expires_at=NOW + left_s)
    assert message.outgoing((), NOW) == {"message_expiry_interval": sent}


def test_properties_of_a_delivery_are_its_own() -> None:
    message = Message("t", b"", properties={"content_type": "a"}, expires_at=NOW + 5)
    message.outgoing((3,), NOW)
    assert message.properties == {"content_type": "a"}


def weigh(make: Callable[[int], Message], count: int) -> float:
    """Bytes that a message waiting in a queue takes beside its payload, as Python counts them."""
    window = Window("w", Config(max_queued_messages=100_000, max_queued_bytes=2**31), Stats())
    window.keeps = True
    grant = Grant(qos=1)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(count):
        window.deliver(Run([make(number)], NOW), grant)
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert window.queued == count
    return used / count


def test_flat_charge_is_what_a_queued_message_costs() -> None:
    topic = "a/b/c"
    measured = weigh(lambda number: Message(topic, b"%020d" % number, 1), 5_000) - 20
    assert OVERHEAD_BYTES / 2 < measured < OVERHEAD_BYTES * 2


def test_properties_weigh_about_what_they_cost() -> None:
    def make(number: int) -> Message:
        pairs = [(f"name-{number}-{pair}", f"value-{number}-{pair}") for pair in range(20)]
        return Message("t", b"", 1, properties={"user_property": pairs, "content_type": f"type {number}"})

    charged = make(1234).size
    measured = weigh(make, 500)
    assert charged / 2 < measured < charged * 2


@given(st.binary(max_size=100), TOPICS, PROPERTIES)
def test_size_counts_payload_topic_and_properties(payload: bytes, topic: str, properties: Properties) -> None:
    bare = Message(topic, b"").size
    assert Message(topic, payload).size == bare + len(payload)
    assert Message(topic + "x" * 50, b"").size == bare + 50
    assert Message(topic, payload, properties=properties).size >= bare + len(payload)
    assert (Message(topic, payload, properties=properties).size > bare + len(payload)) is bool(properties)
