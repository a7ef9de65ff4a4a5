"""The table of states and packet types, every pair of it, and what surrounds the table."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.broker import Config
from tidings.broker.codec import packets as all_packets
from tidings.broker.codec.packets import (
    AckRun,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
    Will,
)
from tidings.broker.core.connection import HANDLERS, Connection
from tidings.broker.core.engine import Engine
from tidings.broker.core.message import Message, forwarded
from tidings.broker.core.ports import Challenge
from tidings.broker.core.state import State

from ..conformance.wire import Wire
from .gate import ListGate
from .outbox import ListOutbox

CONNECT = Connect("c", 5, True, 60)
RUN = PublishRun("t", b"\x30\x04\x00\x01t\x00" * 3, 6, 6)
EXAMPLES: dict[type, Packet] = {
    Connect: CONNECT,
    Connack: Connack(),
    Publish: Publish("t", b"x"),
    Message: Message("t", b"x", 1, packet_id=9, properties={"content_type": "a"}),
    PublishRun: RUN,
    Puback: Puback(1),
    Pubrec: Pubrec(1),
    Pubrel: Pubrel(1),
    Pubcomp: Pubcomp(1),
    AckRun: AckRun(Pubrec, [1, 2]),
    Subscribe: Subscribe(1, [SubscribeFilter("a", 1)]),
    Suback: Suback(1, [0]),
    Unsubscribe: Unsubscribe(1, ["a"]),
    Unsuback: Unsuback(1, [0]),
    Pingreq: Pingreq(),
    Pingresp: Pingresp(),
    Disconnect: Disconnect(),
    Auth: Auth(),
}
ANSWERS: dict[type, list[Packet]] = {
    Publish: [],
    Message: [Puback(9, 0x10)],
    PublishRun: [],
    Puback: [],
    Pubrec: [Pubrel(1, 0x92)],
    Pubrel: [Pubcomp(1, 0x92)],
    Pubcomp: [],
    AckRun: [Pubrel(1, 0x92), Pubrel(2, 0x92)],
    Subscribe: [Suback(1, [1])],
    Unsubscribe: [Unsuback(1, [0x11])],
    Pingreq: [Pingresp()],
}
"""What a connected client gets for each packet that is legal and leaves it connected."""


def broker() -> Engine:
    return Engine(Config(sys_interval_s=0), 0.0, lambda: "made-up")


def open_connection(engine: Engine, state: State, version: int = 5) -> tuple[Connection, ListOutbox]:
    outbox = ListOutbox(version)
    connection = engine.connect(outbox, "peer", 0.0)
    if state is State.AUTHENTICATING:
        engine.gate = ListGate([Challenge()])
        engine.handle(connection, [replace(CONNECT, properties={"authentication_method": "m"})], 0.0)
    elif state is not State.CONNECTING:
        engine.handle(connection, [replace(CONNECT, version=version)], 0.0)
    if state is State.CLOSED:
        engine.disconnected(connection, 0.0)
    assert connection.state is state
    outbox.packets()
    return connection, outbox


def test_there_is_a_row_for_every_state_and_an_example_of_every_packet() -> None:
    assert set(HANDLERS) == set(State)
    assert set(EXAMPLES) == {*get_args(all_packets.Packet), Message}
    assert all(set(row) <= set(EXAMPLES) for row in HANDLERS.values())


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", State, ids=lambda state: state.value)
def test_every_packet_in_every_state(state: State, kind: type) -> None:
    engine = broker()
    connection, outbox = open_connection(engine, state)
    engine.handle(connection, [EXAMPLES[kind]], 1.0)
    said = outbox.packets()
    if state is State.CLOSED:
        assert said == []
        assert connection.state is State.CLOSED
    elif state is State.CONNECTING and kind is Connect:
        assert [type(packet) for packet in said] == [Connack]
        assert connection.state is State.CONNECTED
    elif state is State.CONNECTED and kind in ANSWERS:
        assert said == ANSWERS[kind]
        assert connection.state is State.CONNECTED
    elif state is State.CONNECTED and kind is Disconnect:
        assert said == []
        assert connection.state is State.CLOSED
    elif state is State.AUTHENTICATING:
        assert [packet.reason for packet in said if isinstance(packet, Connack)] == [0x82] * len(said)
        assert len(said) == (kind is not Disconnect)
        assert connection.state is State.CLOSED
    else:
        # before CONNECT nobody is told why, after it a DISCONNECT says it
        assert [packet.reason for packet in said if isinstance(packet, Disconnect)] == [0x82] * len(said)
        assert len(said) == (state is State.CONNECTED)
        assert connection.state is State.CLOSED
    assert outbox.closed is (connection.state is State.CLOSED)
    assert (connection in engine.connections) is (connection.state is not State.CLOSED)


@pytest.mark.parametrize("kind", [kind for kind in EXAMPLES if kind not in (Message, PublishRun, Connect)],
                         ids=lambda kind: kind.__name__)  # fmt: skip
def test_nothing_is_said_to_a_client_of_3_1_1_that_breaks_the_rules(kind: type) -> None:
    for state in (State.CONNECTING, State.CONNECTED):
        engine = broker()
        connection, outbox = open_connection(engine, state, version=4)
        engine.handle(connection, [EXAMPLES[kind]], 1.0)
        if connection.state is State.CLOSED:
            assert outbox.packets() == []
            assert outbox.closed


@given(st.lists(st.sampled_from(list(EXAMPLES)), max_size=8))
@settings(deadline=None)
def test_any_sequence_of_packets_leaves_the_engine_sound(kinds: list[type]) -> None:
    engine = broker()
    connection, outbox = open_connection(engine, State.CONNECTING)
    for kind in kinds:
        engine.handle(connection, [replace(EXAMPLES[kind])], 1.0)
        open_ = connection.state is not State.CLOSED
        assert (connection in engine.connections) is open_
        assert outbox.closed is not open_
        assert ("c" in engine.sessions) is (connection.state is State.CONNECTED)
    legal = connection.state is State.CONNECTED or not kinds
    after = kinds[1:]
    assert legal is (not kinds or (kinds[0] is Connect and all(kind in ANSWERS for kind in after)))
    engine.disconnected(connection, 2.0)
    assert (engine.sessions, engine.connections, engine.topics.count) == ({}, set(), 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Publish("t", b"x"),
        lambda: Message("t", b"x"),
        lambda: Message("t", b"x", properties={"content_type": "a"}),
        lambda: replace(RUN),
    ],
    ids=["PUBLISH", "run of messages", "with properties", "run from the wire"],
)
@pytest.mark.parametrize("last", [Disconnect(), Connack()], ids=["goodbye", "error"])
def test_what_comes_before_the_end_in_one_read_counts_and_what_follows_does_not(
    make: Callable[[], Packet], last: Packet
) -> None:
    engine = broker()
    watcher, seen = open_connection(engine, State.CONNECTING)
    engine.handle(watcher, [replace(CONNECT, client_id="watcher"), Subscribe(1, [SubscribeFilter("#")])], 0.0)
    connection, outbox = open_connection(engine, State.CONNECTED)
    seen.packets()
    first = make()
    engine.handle(connection, [first, last, make(), Pingreq()], 1.0)
    count = RUN.count if isinstance(first, PublishRun) else 1
    assert len([packet for packet in seen.packets() if isinstance(packet, Publish)]) == count
    assert not any(isinstance(packet, Pingresp) for packet in outbox.packets())


def test_connect_and_what_follows_it_in_one_read_are_answered_in_order() -> None:
    engine = broker()
    connection, outbox = open_connection(engine, State.CONNECTING)
    engine.handle(connection, [CONNECT, Subscribe(7, [SubscribeFilter("t", 1)]), Pingreq()], 0.0)
    engine.handle(connection, [EXAMPLES[Message], Pingreq()], 0.0)
    assert [type(packet) for packet in outbox.packets()][:3] == [Connack, Suback, Pingresp]
    assert connection.session is not None


def test_messages_without_properties_are_taken_together_and_keep_their_places() -> None:
    """A run ends where topic, QoS, RETAIN or anything else changes; nothing is lost or moved at its seams."""
    engine = broker()
    watcher, seen = open_connection(engine, State.CONNECTING)
    engine.handle(watcher, [replace(CONNECT, client_id="watcher"), Subscribe(1, [SubscribeFilter("#", 2)])], 0.0)
    connection, outbox = open_connection(engine, State.CONNECTED)
    seen.packets()
    t, u = "t", "u"
    items: list[Packet] = [
        Message(t, b"0", 0),
        Message(t, b"1", 1, packet_id=1),
        Message(t, b"2", 1, packet_id=2),
        Message(u, b"3", 1, packet_id=3),
        Message(t, b"4", 0),
        Message(t, b"5", 0, True),
        Pingreq(),
        Message(t, b"6", 0, properties={"content_type": "x"}),
        Message(t, b"7", 0),
        RUN,
        Message(t, b"8", 2, packet_id=4),
        Message(t, b"8", 2, packet_id=4, dup=True),
        Message(t, b"9", 2, packet_id=5),
        Pubrel(4),
    ]
    engine.handle(connection, items, 0.0)
    got = [(packet.payload, packet.qos) for packet in seen.packets() if isinstance(packet, Publish)]
    assert b" ".join(payload for payload, _ in got) == b"0 1 2 3 4 5 6 7    8 9"
    assert [qos for _, qos in got] == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2]
    ids = [getattr(packet, "packet_id", 0) for packet in outbox.packets()]
    assert sorted(ids) == [0, 1, 2, 3, 4, 4, 4, 5]
    assert [message.payload for message in engine.retained] == [b"5"]


def test_properties_that_travel_on_are_those_of_the_message_alone() -> None:
    will = Will("w", b"", properties={"will_delay_interval": 3, "message_expiry_interval": 2, "content_type": "x"})
    assert forwarded(will.properties) == {"content_type": "x"}
    assert forwarded({"topic_alias": 3, "subscription_identifier": [1]}) == {}
    kept = {
        "payload_format_indicator": 1,
        "response_topic": "r",
        "correlation_data": b"",
        "user_property": [("a", "b")],
    }
    assert forwarded(kept) == kept  # type: ignore[arg-type]


def test_a_connection_names_its_client_in_logs() -> None:
    engine = broker()
    connection, _ = open_connection(engine, State.CONNECTING)
    assert (connection.client_id, repr(connection)) == ("", "<connecting '' from peer>")
    connection, _ = open_connection(engine, State.CONNECTED)
    assert (connection.client_id, repr(connection)) == ("c", "<connected 'c' from peer>")


def test_a_second_connect_of_an_unknown_version_is_answered_in_the_version_of_the_first() -> None:
    wire = Wire()
    client = wire.connect("a", 5)
    client.send(bytes.fromhex("100c00044d5154540602003c0000"))
    client.assert_dropped(0x82)
    old = wire.connect("b", 4)
    old.send(bytes.fromhex("100c00044d5154540602003c0000"))
    old.assert_dropped()
