"""Shared subscriptions: each message to one member, and nothing lost when members come and go (5.0 section 4.8.2)."""

from collections import Counter
from itertools import chain
from typing import Any

import pytest

from tidings.broker.codec.packets import Puback, Publish, Pubrec, Pubrel
from tidings.broker.core.topics import Grant
from tidings.broker.core.window import DropReason, Window

from ..conformance.wire import Peer, Wire

FILTER = "$share/g/job/#"


@pytest.fixture(params=[False, True], ids=["memory", "store"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return Wire(keeps=request.param)


@pytest.fixture
def publisher(wire: Wire) -> Peer:
    return wire.connect("publisher", keep_alive=0)


def member(wire: Wire, name: str, qos: int = 2, **options: Any) -> Peer:
    peer = wire.connect(
        name, clean_start=False, keep_alive=0, **{"session_expiry_interval": 1000, "receive_maximum": 10, **options}
    )
    if not peer.connack.session_present:
        peer.subscribe(FILTER, qos)
    return peer


def publish(publisher: Peer, count: int, qos: int = 1, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        publisher.publish("job/x", b"%d" % number, qos)
    publisher.receive()


def numbers(messages: list[Publish]) -> list[int]:
    return [int(message.payload) for message in messages]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one_member_in_turn(wire: Wire, publisher: Peer, qos: int) -> None:
    members = [member(wire, name, qos) for name in "abc"]
    publish(publisher, 9, qos)
    received = [numbers(peer.messages()) for peer in members]
    assert [len(one) for one in received] == [3, 3, 3]
    assert sorted(chain(*received)) == list(range(9))
    assert all(one == sorted(one) for one in received)


def test_groups_and_ordinary_subscriptions_each_get_their_own_copy(wire: Wire, publisher: Peer) -> None:
    first, second = member(wire, "a"), member(wire, "b")
    second.unsubscribe(FILTER)
    second.subscribe("$share/h/job/+", 1)
    first.subscribe("job/x", 0)
    publish(publisher, 1)
    assert Counter(message.qos for message in first.messages()) == {0: 1, 1: 1}
    assert len(second.messages()) == 1


def test_member_that_can_take_it_now_is_preferred(wire: Wire, publisher: Peer) -> None:
    busy = member(wire, "busy", receive_maximum=2)
    stuck = member(wire, "stuck")
    idle = member(wire, "idle")
    stuck.stop_reading()
    publish(publisher, 20)
    assert (len(busy.messages()), stuck.messages(), len(idle.messages())) == (2, [], 10)
    assert sum(wire.engine.sessions[name].window.queued for name in ("busy", "stuck", "idle")) == 8


@pytest.mark.parametrize("end", ["lost", "session ended"])
def test_what_a_leaving_member_has_not_acknowledged_goes_to_the_others(wire: Wire, publisher: Peer, end: str) -> None:
    expiry_s = 1000 if end == "lost" else 0
    leaving = member(wire, "leaving", session_expiry_interval=expiry_s, receive_maximum=2)
    publish(publisher, 5)
    acknowledged, _ = leaving.messages()
    leaving.send(Puback(acknowledged.packet_id))
    assert numbers(leaving.messages()) == [2]
    staying = member(wire, "staying")
    leaving.drop()
    assert numbers(staying.messages()) == [1, 2, 3, 4]
    again = member(wire, "leaving", session_expiry_interval=expiry_s)
    assert again.messages() == []
    assert wire.engine.sessions["leaving"].window.waiting == 0


def test_exactly_once_that_was_sent_stays_with_its_member_and_the_rest_goes_on(wire: Wire, publisher: Peer) -> None:
    leaving = member(wire, "leaving", receive_maximum=2)
    publish(publisher, 4, qos=2)
    begun, sent = leaving.messages()
    leaving.send(Pubrec(begun.packet_id))
    assert leaving.receive() == [Pubrel(begun.packet_id)]
    staying = member(wire, "staying")
    leaving.drop()
    assert numbers(staying.messages()) == [2, 3]
    again = member(wire, "leaving", receive_maximum=2)
    assert again.receive() == [Pubrel(begun.packet_id), Publish("job/x", b"1", 2, dup=True, packet_id=sent.packet_id)]


def test_what_was_refused_by_its_member_is_not_offered_to_another(wire: Wire, publisher: Peer) -> None:
    first, second = member(wire, "a"), member(wire, "b")
    publish(publisher, 2)
    for peer in (first, second):
        (message,) = peer.messages()
        peer.send(Puback(message.packet_id, 0x97))
        peer.drop()
    assert member(wire, "c").messages() == []
    assert wire.engine.stats.dropped.popitem()[1] == 2


def test_member_that_unsubscribes_keeps_what_was_sent_and_the_rest_goes_on(wire: Wire, publisher: Peer) -> None:
    leaving = member(wire, "leaving", receive_maximum=1)
    publish(publisher, 3)
    (sent,) = leaving.messages()
    staying = member(wire, "staying")
    leaving.unsubscribe(FILTER)
    assert numbers(staying.messages()) == [1, 2]
    leaving.drop()
    (again,) = member(wire, "leaving").messages()
    assert (again.payload, again.dup, again.packet_id) == (sent.payload, True, sent.packet_id)


def test_while_all_are_away_their_sessions_keep_the_messages(wire: Wire, publisher: Peer) -> None:
    for name in "ab":
        member(wire, name).drop()
    publish(publisher, 6)
    received = [numbers(member(wire, name).messages()) for name in "ab"]
    assert [len(one) for one in received] == [3, 3]
    assert sorted(chain(*received)) == list(range(6))


def test_what_waits_for_a_session_that_ends_goes_to_the_members_that_are_left(wire: Wire, publisher: Peer) -> None:
    member(wire, "short", session_expiry_interval=10).drop()
    publish(publisher, 3)
    member(wire, "long").drop()
    wire.advance(11)
    assert "short" not in wire.engine.sessions
    assert numbers(member(wire, "long").messages()) == [0, 1, 2]


def test_subscriber_inside_the_process_takes_over_and_is_not_left_out_while_it_is_busy(
    wire: Wire, publisher: Peer
) -> None:
    leaving = member(wire, "leaving", receive_maximum=1)
    publish(publisher, 3)
    local = Window("", wire.config, wire.engine.stats)
    local.wake = lambda: None
    wire.engine.topics.subscribe(FILTER, local, Grant(2))
    assert numbers(leaving.messages()) == [0]
    leaving.drop()
    publish(publisher, 3, begin=3)
    taken = []
    while (message := local.take(wire.now)) is not None:
        taken.append(int(message.payload))
    assert taken == list(range(6))


def test_remaining_lifetime_counts_on_when_a_message_changes_hands(wire: Wire, publisher: Peer) -> None:
    leaving = member(wire, "leaving", receive_maximum=1)
    for expiry_s in (100, 100, 20):
        publisher.publish("job/x", b"%d" % expiry_s, 1, message_expiry_interval=expiry_s)
    leaving.receive()
    wire.advance(30)
    staying = member(wire, "staying")
    leaving.drop()
    assert [message.properties for message in staying.messages()] == [{"message_expiry_interval": 70}] * 2
    assert wire.engine.stats.dropped == {DropReason.EXPIRED: 1}


def test_what_the_last_member_leaves_behind_is_counted(wire: Wire, publisher: Peer) -> None:
    member(wire, "only", session_expiry_interval=10).drop()
    publish(publisher, 3)
    wire.advance(11)
    assert wire.engine.stats.dropped == {DropReason.SESSION_ENDED: 3}


def test_no_message_is_lost_or_doubled_while_members_come_and_go(wire: Wire, publisher: Peer) -> None:
    received: Counter[int] = Counter()
    peers = {name: member(wire, name, receive_maximum=3) for name in "abcd"}
    for turn in range(60):
        publish(publisher, 5, begin=turn * 5)
        name = "abcd"[turn * 7 % 4]
        for other, peer in peers.items():
            if other != name:  # acknowledges some of what it gets
                for message in peer.messages()[: turn % 3 + 1]:
                    received[int(message.payload)] += 1
                    peer.send(Puback(message.packet_id))
        peers[name].drop()
        peers[name] = member(wire, name, receive_maximum=3)
    for _ in range(2):
        for name in peers:
            peers[name].drop()
            peers[name] = member(wire, name, receive_maximum=1000)
    for _ in range(2):
        for peer in peers.values():
            for message in peer.messages():
                received[int(message.payload)] += 1
                peer.send(Puback(message.packet_id))
    assert received == Counter(range(300))
