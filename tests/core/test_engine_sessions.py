"""Sessions and wills across connections: take-over, wills with delay, session expiry, the bound on sessions."""

import pytest

from tidings.broker.codec.packets import Connack, Disconnect, Pingreq, Puback, Publish, Pubrec, Will
from tidings.broker.codec.reasons import ReasonCode
from tidings.broker.core.session import NEVER
from tidings.broker.core.window import DropReason

from ..conformance.wire import Peer, Wire


@pytest.fixture(params=[False, True], ids=["memory", "store"])
def wire(request: pytest.FixtureRequest) -> Wire:
    return Wire(keeps=request.param)


def watcher(wire: Wire, filter: str = "will/#") -> Peer:
    peer = wire.connect("watcher", keep_alive=0)
    peer.subscribe(filter, 1)
    return peer


# take-over


def test_second_connection_with_an_id_ends_the_first_and_goes_on_with_its_session(wire: Wire) -> None:
    first = wire.connect("c", session_expiry_interval=100)
    first.subscribe("t", 1)
    wire.connect("p").publish("t", b"1", 1)
    packet_id = first.messages()[0].packet_id
    second = wire.connect("c", clean_start=False, session_expiry_interval=100)
    first.assert_dropped(ReasonCode.SESSION_TAKEN_OVER)
    assert second.connack.session_present
    assert [(message.payload, message.dup, message.packet_id) for message in second.messages()] == [
        (b"1", True, packet_id)
    ]


def test_first_connection_that_is_lost_after_a_take_over_changes_nothing(wire: Wire) -> None:
    watching = watcher(wire)
    first = wire.connect("c", session_expiry_interval=100)
    second = wire.connect("c", clean_start=False, session_expiry_interval=100, will=Will("will/c", b"second"))
    first.drop()
    first.send(Disconnect())
    second.send(Pingreq())
    assert not second.closed
    assert watching.messages() == []
    assert wire.engine.sessions["c"].connection is not None


@pytest.mark.parametrize(
    ("clean", "delay_s", "published"),
    [(False, 0, True), (True, 0, True), (False, 60, False), (True, 60, True)],
    ids=["kept at once", "clean at once", "kept with delay", "clean with delay"],
)
def test_take_over_publishes_the_will_unless_the_session_goes_on_before_its_delay(
    wire: Wire, clean: bool, delay_s: int, published: bool
) -> None:
    watching = watcher(wire)
    will = Will("will/c", b"gone", properties={"will_delay_interval": delay_s})
    wire.connect("c", session_expiry_interval=1000, keep_alive=0, will=will)
    wire.connect("c", clean_start=clean, session_expiry_interval=1000, keep_alive=0)
    assert watching.payloads() == [b"gone"] * published
    wire.advance(2000)
    assert watching.payloads() == []


def test_client_that_comes_back_a_thousand_times_leaves_one_session_and_one_connection(wire: Wire) -> None:
    for _ in range(1_000):
        wire.connect("c", clean_start=False, session_expiry_interval=100)
    assert list(wire.engine.sessions) == ["c"]
    assert len(wire.engine.connections) == 1


# wills


@pytest.mark.parametrize("reason", [None, 0x00, 0x04, 0x80], ids=["lost", "normal", "with will", "error"])
def test_will_is_published_unless_the_client_says_goodbye_normally(wire: Wire, reason: int | None) -> None:
    watching = watcher(wire)
    client = wire.connect("c", will=Will("will/c", b"gone"))
    if reason is None:
        client.drop()
    else:
        client.send(Disconnect(reason))
    assert watching.payloads() == [b"gone"] * (reason != 0)


def test_will_is_published_when_the_client_breaks_the_rules_or_falls_silent(wire: Wire) -> None:
    watching = watcher(wire)
    wire.connect("c", will=Will("will/c", b"rules")).send("36 00")
    assert watching.payloads() == [b"rules"]
    wire.connect("c", keep_alive=10, will=Will("will/c", b"silent"))
    wire.advance(14.9)
    assert watching.payloads() == []
    wire.advance(0.2)
    assert watching.payloads() == [b"silent"]


def test_will_waits_for_its_delay_and_not_longer(wire: Wire) -> None:
    watching = watcher(wire)
    will = Will("will/c", b"gone", properties={"will_delay_interval": 30})
    wire.connect("c", session_expiry_interval=100, will=will).drop()
    wire.advance(29.9)
    assert watching.payloads() == []
    wire.advance(0.2)
    assert watching.payloads() == [b"gone"]
    wire.advance(200)
    assert watching.payloads() == []


def test_will_is_not_published_if_the_client_is_back_before_its_delay(wire: Wire) -> None:
    watching = watcher(wire)
    will = Will("will/c", b"gone", properties={"will_delay_interval": 30})
    wire.connect("c", session_expiry_interval=100, will=will).drop()
    wire.advance(29)
    wire.connect("c", clean_start=False, keep_alive=0, session_expiry_interval=100)
    wire.advance(1000)
    assert watching.payloads() == []


@pytest.mark.parametrize("expiry_s", [0, 10])
def test_will_is_published_at_the_end_of_the_session_if_that_comes_before_its_delay(wire: Wire, expiry_s: int) -> None:
    watching = watcher(wire)
    will = Will("will/c", b"gone", properties={"will_delay_interval": 30})
    wire.connect("c", session_expiry_interval=expiry_s, will=will).drop()
    assert watching.payloads() == [b"gone"] * (expiry_s == 0)
    wire.advance(expiry_s - 0.1 if expiry_s else 0)
    assert watching.payloads() == []
    wire.advance(100)
    assert watching.payloads() == [b"gone"] * (expiry_s > 0)
    assert "c" not in wire.engine.sessions


def test_clean_start_publishes_the_will_that_waits(wire: Wire) -> None:
    watching = watcher(wire)
    will = Will("will/c", b"gone", properties={"will_delay_interval": 30})
    wire.connect("c", session_expiry_interval=100, will=will).drop()
    wire.connect("c", clean_start=True)
    assert watching.payloads() == [b"gone"]


def test_lifetime_of_a_will_begins_when_it_is_published(wire: Wire) -> None:
    watching = wire.connect("watcher", session_expiry_interval=1000)
    watching.subscribe("will/#", 1)
    watching.drop()
    will = Will(
        "will/c",
        b"gone",
        1,
        retain=True,
        properties={
            "will_delay_interval": 30,
            "message_expiry_interval": 60,
            "content_type": "text/plain",
            "user_property": [("b", "2"), ("a", "1"), ("b", "2")],
        },
    )
    wire.connect("c", session_expiry_interval=100, will=will).drop()
    wire.advance(30 + 40)
    watching = wire.connect("watcher", clean_start=False, session_expiry_interval=1000)
    (message,) = watching.messages()
    assert message.properties == {
        "message_expiry_interval": 20,
        "content_type": "text/plain",
        "user_property": [("b", "2"), ("a", "1"), ("b", "2")],
    }
    wire.advance(19)
    newcomer = wire.connect("newcomer")
    newcomer.subscribe("will/#")
    assert [(message.payload, message.retain) for message in newcomer.messages()] == [(b"gone", True)]
    wire.advance(2)
    newcomer.subscribe("will/#")
    assert newcomer.messages() == []


def test_wills_that_come_due_in_a_late_tick_go_out_in_their_order(wire: Wire) -> None:
    watching = watcher(wire)
    for name, delay_s in (("late", 50), ("early", 10), ("middle", 30)):
        will = Will("will/" + name, name.encode(), properties={"will_delay_interval": delay_s})
        wire.connect(name, session_expiry_interval=100, will=will).drop()
    wire.now += 60
    wire.engine.tick(wire.now)
    wire.settle()
    assert watching.payloads() == [b"early", b"middle", b"late"]


def test_stop_says_goodbye_and_keeps_wills_for_sessions_that_are_away(wire: Wire) -> None:
    away = wire.connect("away", session_expiry_interval=1000)
    away.subscribe("will/#", 1)
    away.drop()
    client = wire.connect("c", will=Will("will/c", b"gone", 1))
    old = wire.connect("old", version=4)
    wire.engine.stop(wire.now)
    client.assert_dropped(ReasonCode.SERVER_SHUTTING_DOWN)
    old.assert_dropped()
    assert wire.engine.connections == set()
    assert wire.engine.sessions["away"].window.queued == 1


# session expiry


def test_session_ends_when_its_time_is_over_and_not_before(wire: Wire) -> None:
    client = wire.connect("c", session_expiry_interval=100)
    client.subscribe("t", 1)
    client.drop()
    wire.connect("p", keep_alive=0).publish("t", b"1", 1)
    wire.advance(99.9)
    assert "c" in wire.engine.sessions
    assert wire.engine.snapshot(wire.now).clients_expired == 0
    wire.advance(0.2)
    assert "c" not in wire.engine.sessions
    assert wire.engine.snapshot(wire.now).clients_expired == 1
    assert wire.engine.topics.count == 0
    assert wire.engine.stats.dropped == {DropReason.SESSION_ENDED: 1}
    assert not wire.connect("c", clean_start=False).connack.session_present


def test_time_away_begins_anew_with_each_departure(wire: Wire) -> None:
    for _ in range(3):
        client = wire.connect("c", clean_start=False, session_expiry_interval=100)
        client.drop()
        wire.advance(99)
    assert wire.connect("c", clean_start=False).connack.session_present


def test_goodbye_may_change_the_time_away(wire: Wire) -> None:
    wire.connect("a", session_expiry_interval=100).send(Disconnect(properties={"session_expiry_interval": 10}))
    wire.connect("b", session_expiry_interval=100).send(Disconnect(properties={"session_expiry_interval": 0}))
    assert list(wire.engine.sessions) == ["a"]
    wire.advance(11)
    assert list(wire.engine.sessions) == []


def test_session_without_end_stays() -> None:
    wire = Wire(max_session_expiry_s=NEVER)
    wire.connect("c", session_expiry_interval=NEVER).drop()
    assert wire.engine.sessions["c"].expires_at is None
    wire.advance(86_400)
    assert wire.connect("c", clean_start=False).connack.session_present


def test_longest_expiry_is_announced_and_kept_to() -> None:
    wire = Wire(max_session_expiry_s=50)
    client = wire.connect("c", session_expiry_interval=1000)
    assert client.connack.properties["session_expiry_interval"] == 50
    client.drop()
    wire.connect("old", version=4, clean_start=False).drop()
    wire.advance(51)
    assert wire.engine.sessions == {}


def test_new_sessions_are_refused_over_the_bound_and_known_ones_come_back() -> None:
    wire = Wire(max_sessions=2)
    wire.connect("a", session_expiry_interval=100).drop()
    wire.connect("b", session_expiry_interval=100)
    refused = wire.open()
    refused.send(wire.connect_packet("c", 5))
    refused.assert_refused(ReasonCode.QUOTA_EXCEEDED)
    assert wire.connect("a", clean_start=False, session_expiry_interval=100).connack.session_present
    wire.connect("a", clean_start=True)
    assert sorted(wire.engine.sessions) == ["a", "b"]


def test_unfinished_messages_survive_several_departures_in_order(wire: Wire) -> None:
    client = wire.connect("c", session_expiry_interval=100, receive_maximum=2)
    client.subscribe("t", 2)
    publisher = wire.connect("p", keep_alive=0)
    for number in range(6):
        publisher.publish("t", b"%d" % number, 1 + number % 2)
    client.receive()
    for _ in range(3):
        client.drop()
        client = wire.connect("c", clean_start=False, session_expiry_interval=100, receive_maximum=2)
        assert [(message.payload, message.dup) for message in client.messages()] == [(b"0", True), (b"1", True)]
    window = wire.engine.sessions["c"].window
    first, second = sorted(window.inflight)
    client.send(Puback(first), Pubrec(second))
    arrived = client.receive()
    assert [packet.payload for packet in arrived if isinstance(packet, Publish)] == [b"2"]
    client.drop()
    client = wire.connect("c", clean_start=False, session_expiry_interval=100, receive_maximum=2)
    released, *others = client.receive()
    assert type(released).__name__ == "Pubrel"
    assert [(packet.payload, packet.dup) for packet in others if isinstance(packet, Publish)] == [(b"2", True)]


# limits of what is said


def test_connack_that_the_client_cannot_take_ends_the_connection_before_anything_else_is_said(wire: Wire) -> None:
    for size in range(1, 14):
        client = wire.open()
        client.send(wire.connect_packet("c", 5, maximum_packet_size=size, session_expiry_interval=10))
        packets = client.receive()
        if packets:
            assert isinstance(packets[0], Connack), (size, packets)
        assert client.closed


def test_reason_strings_that_quote_the_peer_stay_short(wire: Wire) -> None:
    client = wire.connect("c")
    assert client.subscribe("a+" * 32_767) == ReasonCode.TOPIC_FILTER_INVALID
    client = wire.open()
    client.send(wire.connect_packet("c", 5, will=Will("$SYS/" + "é" * 32_000, b"")))
    (connack,) = client.receive()
    assert isinstance(connack, Connack)
    assert connack.reason == ReasonCode.NOT_AUTHORIZED
    assert len(connack.properties["reason_string"]) <= 300
