"""What clients may do, as a gate decides it: at once, later, remembered, and forgotten."""

from collections import Counter
from typing import Any

import pytest

from tidings.broker.codec.packets import (
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsubscribe,
    Will,
)
from tidings.broker.codec.reasons import ReasonCode
from tidings.broker.core.ports import Accepted, Action, Identity, Queued, Refused, TurnedAway, Withdrawn
from tidings.broker.core.rights import MAX_ASKED
from tidings.broker.core.window import DropReason

from ..conformance.wire import VERSIONS, Peer, Wire
from .gate import ListGate

PUBLISH, SUBSCRIBE, RECEIVE = Action.PUBLISH, Action.SUBSCRIBE, Action.RECEIVE


def gated(gate: ListGate | None = None, **options: Any) -> tuple[Wire, ListGate]:
    wire = Wire(**options)
    gate = gate or ListGate()
    wire.engine.gate = gate
    return wire, gate


def dropped(wire: Wire) -> int:
    return wire.engine.stats.dropped.get(DropReason.NOT_AUTHORIZED, 0)


# who is it


def test_gate_learns_what_connect_said() -> None:
    wire, gate = gated()
    peer = wire.open(5)
    will = Will("w", b"gone")
    peer.send(Connect("c", 5, False, 30, "u", b"secret", will, {"authentication_method": "M"}))
    [identity] = gate.identities
    assert (identity.client_id, identity.user, identity.version, identity.clean_start) == ("c", "u", 5, False)
    assert (identity.keep_alive_s, identity.will, identity.method, identity.data) == (30, will, "M", None)
    assert identity.peer.startswith("peer:")
    assert identity.password is None, "kept after it was looked at"
    assert "secret" not in repr(identity)


@VERSIONS
def test_while_the_gate_thinks_the_client_waits_and_nothing_is_lost(version: int) -> None:
    wire, gate = gated(ListGate([None]))
    gate.default = True
    peer = wire.open(version)
    peer.send(Connect("c", version), Subscribe(1, [SubscribeFilter("t")]))
    peer.send(Publish("t", b"1"), Pingreq())
    assert peer.receive() == []
    assert wire.engine.sessions == {}
    gate.decide(wire.engine, Accepted(), wire.now)
    assert [type(packet) for packet in peer.receive()] == [Connack, Suback, Publish, Pingresp]


def test_client_that_is_refused_late_leaves_nothing_behind() -> None:
    wire, gate = gated(ListGate([None]))
    peer = wire.open()
    peer.send(Connect("c"), Publish("t", b"never"))
    gate.decide(wire.engine, Refused(ReasonCode.BANNED, "go away"), wire.now)
    assert peer.expect(Connack) == Connack(False, ReasonCode.BANNED, {"reason_string": "go away"})
    assert (wire.engine.sessions, wire.engine.connections) == ({}, set())
    assert gate.gone == gate.identities


def test_decision_that_comes_too_late_changes_nothing() -> None:
    wire, gate = gated(ListGate([None]))
    peer = wire.open()
    peer.send(Connect("c"))
    wire.advance(wire.config.connect_timeout_s)
    assert peer.closed
    assert gate.gone == gate.identities
    assert wire.engine.stats.turned_away == {TurnedAway.AUTHENTICATION: 1}
    gate.decide(wire.engine, Accepted(), wire.now)
    gate.allow(wire.engine, PUBLISH, "t")
    assert wire.engine.sessions == {}


def test_nobody_is_taken_over_by_a_client_that_is_not_let_in() -> None:
    wire, gate = gated()
    first = wire.connect("c")
    gate.answers = [None]
    second = wire.open()
    second.send(Connect("c"))
    assert not first.closed
    gate.decide(wire.engine, Refused(), wire.now)
    assert not first.closed
    gate.answers = [None]
    third = wire.open()
    third.send(Connect("c"))
    gate.decide(wire.engine, Accepted(), wire.now)
    assert first.closed
    assert third.expect(Connack).reason == 0


def test_two_clients_wait_each_for_their_own_decision() -> None:
    wire, gate = gated(ListGate([None, None]))
    peers = [wire.open(), wire.open()]
    for number, peer in enumerate(peers):
        peer.send(Connect(f"c{number}"))
    gate.decide(wire.engine, Accepted(), wire.now, number=1)
    assert peers[0].receive() == []
    assert peers[1].expect(Connack).reason == 0


# publishing


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_message_that_may_not_be_published_reaches_nobody(version: int, qos: int, late: bool) -> None:
    wire, gate = gated()
    reader, writer = wire.connect("reader"), wire.connect("writer", version)
    reader.subscribe("#", 2)
    gate.rules[PUBLISH, "no"] = None if late else False
    writer.send(Publish("no", b"x", qos, packet_id=1 if qos else 0), Publish("yes", b"y"))
    if late:
        assert reader.payloads() == []
        assert writer.receive() == []
        gate.allow(wire.engine, PUBLISH, "no", False, wire.now)
        wire.settle()
    code = 0x87 if version == 5 else 0
    assert writer.receive() == {0: [], 1: [Puback(1, code)], 2: [Pubrec(1, code)]}[qos]
    assert reader.payloads() == [b"y"]
    assert wire.engine.stats.not_authorized == {PUBLISH: 1}
    if qos == 2 and version == 4:
        writer.send(Pubrel(1))
        assert writer.receive() == [Pubcomp(1)]
        assert reader.payloads() == []


def test_message_that_may_not_be_published_is_not_retained() -> None:
    wire, gate = gated()
    writer = wire.connect("writer")
    gate.rules[PUBLISH, "no"] = False
    writer.send(Publish("no", b"x", retain=True))
    assert len(wire.engine.retained) == 0


def test_bulk_of_messages_waits_and_goes_in_one_piece() -> None:
    wire, gate = gated()
    reader, writer = wire.connect("reader"), wire.connect("writer")
    reader.subscribe("t")
    gate.rules[PUBLISH, "t"] = None
    writer.send(*(Publish("t", b"%d" % number) for number in range(5)))
    writer.send(Publish("t", b"5"), Publish("u"))
    assert reader.payloads() == []
    gate.allow(wire.engine, PUBLISH, "t", True, wire.now)
    assert reader.payloads() == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert gate.questions.count((PUBLISH, "t")) == 1


def test_repetition_at_qos_2_is_answered_while_the_rest_is_refused() -> None:
    wire, gate = gated(decision_lifetime_s=1)
    writer = wire.connect("writer")
    writer.send(Publish("t", b"x", 2, packet_id=1))
    wire.advance(2)
    gate.rules[PUBLISH, "t"] = False
    writer.send(Publish("t", b"x", 2, dup=True, packet_id=1), Publish("t", b"y", 2, packet_id=2))
    assert writer.receive() == [Pubrec(1, 0x10), Pubrec(1), Pubrec(2, 0x87)]


def test_topic_alias_is_asked_by_its_topic() -> None:
    wire, gate = gated()
    writer = wire.connect("writer")
    gate.rules[PUBLISH, "secret"] = False
    writer.send(Publish("secret", b"", 1, packet_id=1, properties={"topic_alias": 1}))
    writer.send(Publish("", b"", 1, packet_id=2, properties={"topic_alias": 1}))
    assert writer.receive() == [Puback(1, 0x87), Puback(2, 0x87)]


@VERSIONS
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_will_that_may_not_be_published_is_refused_at_connect(version: int, late: bool) -> None:
    wire, gate = gated()
    gate.rules[PUBLISH, "w"] = None if late else False
    peer = wire.open(version)
    peer.send(Connect("c", version, will=Will("w")))
    if late:
        assert peer.receive() == []
        gate.allow(wire.engine, PUBLISH, "w", False, wire.now)
    assert peer.expect(Connack).reason == (0x87 if version == 5 else 5)
    assert peer.closed
    assert wire.engine.sessions == {}


# subscribing


@VERSIONS
@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_each_filter_is_decided_on_its_own(version: int, late: bool) -> None:
    wire, gate = gated()
    peer = wire.connect("c", version)
    answers = {"no": False, "yes": True, "shared/#": False}
    gate.rules = {(SUBSCRIBE, filter): None if late else may for filter, may in answers.items()}
    filters = ["no", "yes", "wrong/#/", "$share/g/shared/#"]
    peer.send(Subscribe(1, [SubscribeFilter(filter, 1) for filter in filters]), Pingreq())
    if late:
        for filter, may in answers.items():
            assert peer.receive() == []
            gate.allow(wire.engine, SUBSCRIBE, filter, may, wire.now)
    suback, pong = peer.receive()
    assert isinstance(suback, Suback)
    assert suback.reasons == ([0x87, 1, 0x8F, 0x87] if version == 5 else [0x80, 1, 0x80, 0x80])
    assert pong == Pingresp()
    assert set(wire.engine.sessions["c"].subscriptions) == {"yes"}
    assert wire.engine.stats.not_authorized == {SUBSCRIBE: 2}


def test_session_does_not_hand_subscriptions_to_somebody_who_may_not_have_them() -> None:
    wire, gate = gated()
    owner = wire.connect("c", clean_start=False, session_expiry_interval=99)
    owner.subscribe("mine", 1)
    owner.subscribe("everybody", 1)
    owner.drop()
    writer = wire.connect("writer")
    gate.rules = {(SUBSCRIBE, "mine"): None, (SUBSCRIBE, "everybody"): True}
    other = wire.open()
    other.send(Connect("c", clean_start=False, properties={"session_expiry_interval": 99}))
    assert other.receive() == []
    gate.allow(wire.engine, SUBSCRIBE, "mine", False, wire.now)
    wire.settle()
    assert other.expect(Connack).session_present
    writer.send(Publish("mine"), Publish("everybody"))
    assert [message.topic for message in other.messages()] == ["everybody"]


# receiving


def pair(**options: Any) -> tuple[Wire, ListGate, Peer, Peer]:
    """A reader of everything at QoS 1, and a writer."""
    wire, gate = gated(**options)
    reader = wire.connect("reader", session_expiry_interval=99, clean_start=False)
    reader.subscribe("#", 1)
    return wire, gate, reader, wire.connect("writer")


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_delivery_that_is_not_allowed_does_not_happen_and_is_counted(late: bool) -> None:
    wire, gate, reader, writer = pair()
    gate.rules[RECEIVE, "no"] = None if late else False
    writer.send(Publish("no", b"1", 1, packet_id=1), Publish("no", b"2"), Publish("yes", b"3"))
    if late:
        assert reader.payloads() == []
        gate.allow(wire.engine, RECEIVE, "no", False, wire.now, number=0)
    assert reader.payloads() == [b"3"]
    assert dropped(wire) == 2
    assert writer.receive() == [Puback(1)], "the publisher need not know"


def test_while_one_receiver_is_in_doubt_the_others_get_theirs_and_it_keeps_its_order() -> None:
    wire, gate, reader, writer = pair()
    gate.rules[RECEIVE, "t"] = None
    writer.send(Publish("t", b"1", 1, packet_id=1))
    other = wire.connect("other")
    other.subscribe("#")
    gate.rules[RECEIVE, "t"] = True
    writer.send(Publish("t", b"2", 1, packet_id=2), Publish("u", b"3"), Publish("t", b"4"))
    assert other.payloads() == [b"2", b"3", b"4"]
    assert reader.payloads() == []
    reader.send(Pingreq())
    assert reader.expect(Pingresp) == Pingresp()
    gate.allow(wire.engine, RECEIVE, "t", True, wire.now, number=0)
    assert reader.payloads() == [b"1", b"2", b"3", b"4"]


def test_receiver_in_doubt_about_many_topics_gets_them_all_in_order() -> None:
    wire, gate, reader, writer = pair()
    topics = [f"t{number}" for number in range(3 * MAX_ASKED)]
    gate.rules = {(RECEIVE, topic): None for topic in topics}
    writer.send(*(Publish(topic) for topic in topics))
    assert len([action for action, _ in gate.questions if action is RECEIVE]) == MAX_ASKED
    for topic in topics:
        gate.allow(wire.engine, RECEIVE, topic, True, wire.now, number=0)
    assert [message.topic for message in reader.messages()] == topics


def test_retained_messages_and_wills_are_deliveries_too() -> None:
    wire, gate = gated()
    writer = wire.connect("writer", will=Will("no/will"))
    writer.send(Publish("no/kept", b"1", retain=True), Publish("yes/kept", b"2", retain=True))
    gate.rules = {(RECEIVE, "no/kept"): False, (RECEIVE, "no/will"): False}
    reader = wire.connect("reader")
    reader.send(Subscribe(1, [SubscribeFilter("#")]))
    suback, *messages = reader.receive()
    assert isinstance(suback, Suback)
    assert [message.topic for message in messages if isinstance(message, Publish)] == ["yes/kept"]
    writer.drop()
    assert reader.payloads() == []
    assert dropped(wire) == 2


def test_what_waited_for_somebody_else_is_not_given_to_who_comes_back() -> None:
    wire, gate, reader, writer = pair(decision_lifetime_s=0)
    writer.send(Publish("secret", b"sent", 1, packet_id=1))
    assert reader.payloads() == [b"sent"]
    reader.drop()
    writer.send(Publish("secret", b"queued", 1, packet_id=2), Publish("open", b"queued", 1, packet_id=3))
    gate.rules[RECEIVE, "secret"] = False
    back = wire.connect("reader", session_expiry_interval=99, clean_start=False)
    assert [message.topic for message in back.messages()] == ["open"]
    assert wire.engine.sessions["reader"].window.waiting == 1, "only the open one is owed"


@pytest.mark.parametrize("late", [False, True], ids=["at once", "later"])
def test_shared_subscription_passes_over_members_that_may_not_receive(late: bool) -> None:
    wire, gate = gated()
    members = [wire.connect(f"m{number}", session_expiry_interval=99) for number in range(2)]
    for member in members:
        member.subscribe("$share/g/t", 1)
    writer = wire.connect("writer")
    wire.store_is_slow = True
    identity = gate.identities[0]
    answer = None if late else False
    rules = gate.may

    def may(who: Identity, action: Action, topic: str, now: float) -> bool | None:
        return answer if who is identity and action is RECEIVE else rules(who, action, topic, now)

    gate.may = may  # type: ignore[method-assign, assignment]
    writer.send(*(Publish("t", b"%d" % number, 1, packet_id=number + 1) for number in range(4)))
    if late:
        answer = False
        gate.allow(wire.engine, RECEIVE, "t", False, wire.now, number=0)
    assert members[0].payloads() == []
    assert sorted(members[1].payloads()) == [b"0", b"1", b"2", b"3"]
    assert dropped(wire) == 0
    queued = Counter(change.client_id for change in wire.engine.changes if isinstance(change, Queued))
    withdrawn = Counter(change.client_id for change in wire.engine.changes if isinstance(change, Withdrawn))
    assert (withdrawn, queued["m0"] > 0) == (Counter({"m0": queued["m0"]}), late)


def test_shared_message_that_no_member_may_have_is_counted() -> None:
    wire, gate = gated()
    wire.connect("m").subscribe("$share/g/t", 1)
    gate.rules[RECEIVE, "t"] = False
    wire.connect("writer").send(Publish("t"))
    assert dropped(wire) == 1


def test_gate_that_fails_lets_nothing_through_and_hurts_nobody_else() -> None:
    wire, gate, reader, writer = pair()

    def broken(who: Identity, action: Action, topic: str, now: float) -> bool | None:
        if action is RECEIVE:
            raise RuntimeError("a bug")
        return True

    gate.may = broken  # type: ignore[method-assign, assignment]
    writer.send(Publish("t", b"1", 1, packet_id=1))
    assert writer.receive() == [Puback(1)]
    assert reader.payloads() == []
    assert dropped(wire) == 1


# remembering


def test_decision_holds_for_its_lifetime() -> None:
    wire, gate, reader, writer = pair(decision_lifetime_s=10)
    for _ in range(3):
        writer.send(Publish("t"))
        wire.advance(3)
    assert gate.questions.count((PUBLISH, "t")) == gate.questions.count((RECEIVE, "t")) == 1
    wire.advance(2)
    gate.rules[PUBLISH, "t"] = False
    writer.send(Publish("t", b"late"))
    assert b"late" not in reader.payloads()


def test_decisions_are_bounded_and_the_oldest_goes() -> None:
    wire, gate = gated(max_decisions=3)
    writer = wire.connect("writer")
    long = [f"{number}" * 300 for number in range(9)]
    for topic in ["a", "b", "c", "d", *long, "d", "c", "b", "a"]:
        writer.send(Publish(topic))
    asked = [topic for action, topic in gate.questions if action is PUBLISH]
    assert asked == ["a", "b", "c", "d", *long, "a"]


@pytest.mark.parametrize("lifetime_s", [0, 30])
def test_more_filters_than_are_remembered_are_decided_all_the_same(lifetime_s: float) -> None:
    wire, gate = gated(max_decisions=2, decision_lifetime_s=lifetime_s)
    peer = wire.connect("c")
    gate.default = None
    filters = [f"f{number}" for number in range(150)] + ["l" * 300 + str(number) for number in range(9)]
    peer.send(Subscribe(1, [SubscribeFilter(filter) for filter in filters]))
    most = 0
    for number, filter in enumerate(filters):
        most = max(most, len(gate.questions) - number)
        wire.advance(1)
        gate.allow(wire.engine, SUBSCRIBE, filter, True, wire.now)
    assert most == MAX_ASKED
    assert peer.expect(Suback).reasons == [0] * len(filters)
    assert len(gate.questions) == len(filters)


def test_forgetting_asks_anew_even_what_is_under_way() -> None:
    wire, gate = gated()
    peer = wire.connect("c")
    gate.rules[PUBLISH, "t"] = None
    peer.send(Publish("t", b"", 1, packet_id=1))
    wire.engine.forget()
    gate.rules[PUBLISH, "t"] = False
    gate.allow(wire.engine, PUBLISH, "t", True, wire.now)  # by the rules before
    assert peer.receive() == [Puback(1, 0x87)]
    gate.rules[PUBLISH, "t"] = True
    [connection] = wire.engine.connections
    wire.engine.forget(connection.identity)
    peer.send(Publish("t", b"", 1, packet_id=2))
    assert peer.receive() == [Puback(2, 0x10)]


def test_answers_that_nobody_waits_for_are_ignored() -> None:
    wire, gate = gated()
    peer = wire.connect("c")
    gate.allow(wire.engine, PUBLISH, "t", False, wire.now)
    gate.decide(wire.engine, Refused(), wire.now)
    peer.send(Publish("t", b"", 1, packet_id=1))
    assert peer.receive() == [Puback(1, 0x10)]
    gate.default = None
    peer.send(Publish("u", b"", 1, packet_id=2))
    identity = gate.identities[0]
    peer.drop()
    wire.engine.allowed(identity, PUBLISH, "u", True, wire.now)
    assert wire.engine.connections == set()


def test_client_that_waits_can_be_cut_off() -> None:
    wire, gate = gated()
    peer = wire.connect("c")
    gate.default = None
    peer.send(Publish("t", b"", 1, packet_id=1), Unsubscribe(2, ["x"]))
    wire.engine.stop(wire.now)
    assert peer.closed
    packets: list[Packet] = peer.receive()
    assert len(packets) == 1
