"""The client's protocol, played packet by packet under a virtual clock."""

import asyncio
from typing import Any

import pytest

from tidings.broker.codec import (
    Connack,
    Connect,
    Disconnect,
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
    Will,
)
from tidings.devices.client import Client, State
from tidings.devices.clock import VirtualClock
from tidings.devices.ports import ClientOptions

from .peer import Notes, PaperWire, Peer


class Stage:
    """A client, its owner and its broker."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.peer = Peer()
        self.notes = Notes()
        options.setdefault("session_s", 60)
        self.client = Client(ClientOptions("one", **options), self.notes, self.clock, self.peer, jitter_key=1)

    def online(self, **connack: Any) -> Connect:
        self.client.start()
        return self.peer.accept(**connack)

    def again(self, *, session_present: bool) -> Connect:
        """Lose the connection, wait out the back-off, connect once more."""
        self.peer.drop()
        self.clock.advance(61)
        return self.peer.accept(session_present=session_present)


def publishes(stage: Stage) -> list[tuple[str, int, bool]]:
    return [(one.topic, one.packet_id, one.dup) for one in stage.peer.take() if isinstance(one, Publish)]


def test_connect_says_who_it_is_and_leaves_a_will() -> None:
    stage = Stage(will=Will("status", b"gone", 1, True), username="u", password=b"p", keep_alive_s=30)
    connect = stage.online()
    assert (connect.client_id, connect.username, connect.password, connect.keep_alive) == ("one", "u", b"p", 30)
    assert connect.will == Will("status", b"gone", 1, True)
    assert connect.properties["session_expiry_interval"] == 60
    assert stage.notes.online == [False]


@pytest.mark.parametrize(("version", "first", "later"), [(5, True, False), (4, False, False)])
def test_only_the_first_connection_starts_clean(version: int, first: bool, later: bool) -> None:
    stage = Stage(version=version)
    assert stage.online().clean_start is first
    assert stage.again(session_present=True).clean_start is later


def test_without_a_session_every_connection_starts_clean() -> None:
    stage = Stage(session_s=0)
    assert stage.online().clean_start
    assert stage.again(session_present=False).clean_start


def test_qos_0_is_sent_now_or_refused() -> None:
    stage = Stage()
    assert not stage.client.publish("a", b"1", 0)
    stage.online()
    assert stage.client.publish("a", b"1", 0, token="t")
    assert publishes(stage) == [("a", 0, False)]
    assert stage.notes.written == [("t", False)]
    stage.client.link_writable(False)
    assert not stage.client.publish("a", b"1", 0)


@pytest.mark.parametrize("reason", [0, 0x10, 0x97])
def test_qos_1_is_over_with_its_puback(reason: int) -> None:
    stage = Stage()
    stage.online()
    assert stage.client.publish("a", b"1", 1, token="t")
    assert stage.client.unacknowledged == 1
    stage.peer.say(Puback(1, reason))
    assert stage.notes.acknowledged == [("t", reason)]
    assert stage.client.unacknowledged == 0


def test_qos_2_is_over_with_its_pubcomp() -> None:
    stage = Stage()
    stage.online()
    stage.client.publish("a", b"1", 2, token="t")
    stage.peer.take()
    stage.peer.say(Pubrec(1))
    assert stage.peer.take() == [Pubrel(1)]
    assert stage.notes.acknowledged == []
    stage.peer.say(Pubcomp(1))
    assert stage.notes.acknowledged == [("t", 0)]


def test_a_repeated_pubrel_that_the_broker_does_not_know_any_more_means_complete() -> None:
    stage = Stage()
    stage.online()
    stage.client.publish("a", b"1", 2, token="t")
    stage.peer.say(Pubrec(1))
    stage.again(session_present=True)
    assert stage.peer.take()[-1] == Pubrel(1)
    stage.peer.say(Pubcomp(1, 0x92))
    assert stage.notes.acknowledged == [("t", 0)]
    assert stage.client.unacknowledged == 0


def test_a_first_pubrel_that_the_broker_does_not_know_is_an_error_of_one_of_us() -> None:
    stage = Stage()
    stage.online()
    stage.client.publish("a", b"1", 2, token="t")
    stage.peer.say(Pubrec(1))
    stage.peer.say(Pubcomp(1, 0x92))
    assert stage.notes.acknowledged == [("t", 0x92)]


def test_qos_2_refused_by_pubrec_is_over() -> None:
    stage = Stage()
    stage.online()
    stage.client.publish("a", b"1", 2, token="t")
    stage.peer.take()
    stage.peer.say(Pubrec(1, 0x97))
    assert stage.notes.acknowledged == [("t", 0x97)]
    assert stage.peer.take() == []


@pytest.mark.clause("5.0 MQTT-3.3.4-7")
def test_no_more_than_the_servers_receive_maximum_is_outstanding() -> None:
    stage = Stage(window_count=10)
    stage.online(receive_maximum=2)
    for index in range(4):
        assert stage.client.publish(f"t{index}", b"", 1)
    assert [topic for topic, _, _ in publishes(stage)] == ["t0", "t1"]
    stage.peer.say(Puback(1))
    assert [topic for topic, _, _ in publishes(stage)] == ["t2"]


def test_a_full_queue_refuses_and_is_awaited() -> None:
    async def scenario() -> None:
        stage = Stage(window_count=1, queue_count=2)
        stage.online()
        assert [stage.client.publish("t", b"", 1) for _ in range(4)] == [True, True, True, False]
        assert not stage.client.accepts(1)
        waiting = asyncio.ensure_future(stage.client.ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        stage.peer.say(Puback(1))
        async with asyncio.timeout(1):
            await waiting
        assert stage.client.publish("t", b"", 1)

    asyncio.run(scenario())


def test_what_waits_for_a_connection_is_sent_in_order_once_there_is_one() -> None:
    stage = Stage()
    for index in range(3):
        assert stage.client.publish(f"t{index}", b"", 1)
    stage.online()
    assert publishes(stage) == [("t0", 1, False), ("t1", 2, False), ("t2", 3, False)]


@pytest.mark.clause("5.0 MQTT-4.4.0-1", "3.1.1 MQTT-4.4.0-1", "5.0 MQTT-4.6.0-1")
@pytest.mark.parametrize("version", [4, 5])
def test_unacknowledged_messages_are_repeated_first_with_the_same_ids_and_dup(version: int) -> None:
    stage = Stage(version=version)
    stage.online()
    for index, qos in enumerate((1, 2, 1, 2)):
        stage.client.publish(f"t{index}", b"", qos, token=index)
    stage.peer.say(Puback(1), Pubrec(2))
    stage.peer.take()
    stage.peer.drop()
    stage.client.publish("new", b"", 1)
    stage.clock.advance(61)
    stage.peer.accept(session_present=True)
    sent = stage.peer.take()
    assert sent[0] == Pubrel(2)
    rest = [(one.topic, one.packet_id, one.dup) for one in sent[1:] if isinstance(one, Publish)]
    assert rest == [("t2", 3, True), ("t3", 4, True), ("new", 5, False)]
    assert (2, True) in stage.notes.written


def test_a_forgotten_session_gets_qos_1_anew_and_qos_2_not_at_all() -> None:
    stage = Stage()
    stage.online()
    stage.client.publish("one", b"", 1, token="one")
    stage.client.publish("two", b"", 2, token="two")
    stage.peer.take()
    stage.again(session_present=False)
    assert publishes(stage) == [("one", 3, False)]
    assert stage.notes.written[-1] == ("one", True)
    stage.peer.say(Puback(3))
    assert stage.client.unacknowledged == 0


def test_what_is_published_anew_goes_before_what_was_waiting() -> None:
    stage = Stage(window_count=2)
    stage.online()
    for topic in ("one", "two", "three"):
        stage.client.publish(topic, b"", 1)
    stage.peer.take()
    stage.again(session_present=False)
    stage.peer.say(Puback(3), Puback(4))
    assert [topic for topic, _, _ in publishes(stage)] == ["one", "two", "three"]


def test_packet_ids_in_use_are_skipped() -> None:
    stage = Stage(window_count=65535)
    stage.online()
    stage.client.publish("first", b"", 1)
    stage.peer.take()
    stage.client._last_id = 65535
    stage.client.publish("second", b"", 1)
    assert publishes(stage) == [("second", 2, False)]


def test_messages_are_acknowledged_and_all_answers_leave_in_one_write() -> None:
    stage = Stage()
    stage.online()
    stage.peer.say(Publish("a", qos=0), Publish("b", qos=1, packet_id=7), Publish("c", qos=2, packet_id=8), Pubrel(8))
    assert len(stage.peer.wire.writes) == 1
    assert stage.peer.take() == [Puback(7), Pubrec(8), Pubcomp(8)]
    assert [message.topic for message in stage.notes.messages] == ["a", "b", "c"]


@pytest.mark.clause("5.0 MQTT-4.3.3-10")
def test_a_repeated_qos_2_message_is_answered_and_not_delivered_again() -> None:
    stage = Stage()
    stage.online()
    stage.peer.say(Publish("c", qos=2, packet_id=8))
    stage.again(session_present=True)
    stage.peer.say(Publish("c", qos=2, packet_id=8, dup=True))
    assert stage.peer.take() == [Pubrec(8)]
    assert len(stage.notes.messages) == 1
    stage.peer.say(Pubrel(8), Publish("d", qos=2, packet_id=8))
    assert len(stage.notes.messages) == 2


def test_an_unknown_pubrel_is_answered_with_packet_identifier_not_found() -> None:
    stage = Stage()
    stage.online()
    stage.peer.say(Pubrel(9))
    assert stage.peer.take() == [Pubcomp(9, 0x92)]


def test_an_owner_may_acknowledge_later() -> None:
    stage = Stage()
    stage.notes.at_once = False
    stage.online()
    stage.peer.say(Publish("b", qos=1, packet_id=7), Publish("c", qos=2, packet_id=8))
    assert stage.peer.take() == []
    for message in stage.notes.messages:
        stage.client.acknowledge(message)
    assert stage.peer.take() == [Puback(7), Pubrec(8)]


def test_reading_stops_and_goes_on_when_asked() -> None:
    stage = Stage()
    stage.online()
    stage.client.pause_reading()
    assert not stage.peer.wire.reading
    stage.client.resume_reading()
    assert stage.peer.wire.reading


def test_subscribe_reports_what_was_granted() -> None:
    stage = Stage()
    stage.online()
    stage.client.subscribe([SubscribeFilter("a/#", 1), SubscribeFilter("b", 2)])
    (subscribe,) = stage.peer.take()
    assert isinstance(subscribe, Subscribe)
    stage.peer.say(Suback(subscribe.packet_id, [1, 0x87]))
    assert stage.notes.granted == [[1, 0x87]]


def test_a_quiet_client_pings_and_leaves_a_broker_that_does_not_answer() -> None:
    stage = Stage(keep_alive_s=10)
    stage.online()
    stage.clock.advance(5)
    assert stage.peer.take() == [Pingreq()]
    stage.peer.say(Pingresp())
    stage.clock.advance(5)
    assert stage.peer.take() == [Pingreq()]
    assert stage.client.online
    stage.clock.advance(16)
    assert not stage.client.online
    assert stage.notes.offline == ["the broker did not answer pings"]


def test_the_servers_keep_alive_rules() -> None:
    stage = Stage(keep_alive_s=100)
    stage.online(server_keep_alive=4)
    stage.clock.advance(2)
    assert stage.peer.take() == [Pingreq()]


def test_a_client_that_does_not_read_keeps_pinging_and_stays() -> None:
    stage = Stage(keep_alive_s=10)
    stage.online()
    stage.client.pause_reading()
    stage.clock.advance(100)
    assert stage.client.online
    assert len(stage.peer.take()) == 20


def test_a_broker_that_says_nothing_is_left_after_a_while() -> None:
    stage = Stage()
    stage.client.start()
    stage.client.link_up(PaperWire())
    stage.clock.advance(19.9)
    assert stage.client.state is State.GREETING
    stage.clock.advance(0.2)
    assert stage.notes.offline == ["no CONNACK within 20 s"]


def test_back_off_grows_with_full_jitter_and_ends_at_its_maximum() -> None:
    stage = Stage(backoff_first_s=1.0, backoff_max_s=8.0)
    stage.client.start()
    waits = []
    for _ in range(40):
        dials = stage.peer.dials
        stage.client.link_failed("refused")
        before = stage.clock.now()
        while stage.peer.dials == dials:
            stage.clock.advance(0.01)
        waits.append(stage.clock.now() - before)
    assert waits[0] <= 1.01
    assert waits[1] <= 2.01
    assert max(waits) <= 8.01
    assert max(waits) > 6
    assert min(waits[5:]) < 2
    assert len(set(waits)) > 30


def test_two_clients_do_not_come_back_together() -> None:
    waits = []
    for key in (1, 2):
        clock, peer = VirtualClock(), Peer()
        client = Client(ClientOptions("x"), Notes(), clock, peer, jitter_key=key)
        client.start()
        client.link_failed("refused")
        while peer.dials == 1:
            clock.advance(0.001)
        waits.append(clock.now())
    assert waits[0] != waits[1]


@pytest.mark.parametrize(
    ("version", "reason", "tries_again"), [(5, 0x87, False), (5, 0x88, True), (4, 5, False), (4, 3, True)]
)
def test_a_refusal_is_final_or_not_as_its_reason_says(version: int, reason: int, tries_again: bool) -> None:
    stage = Stage(version=version)
    stage.online(reason=reason)
    stage.clock.advance(100)
    assert (stage.peer.dials > 1) is tries_again
    assert bool(stage.notes.gone) is not tries_again


def test_a_client_that_was_taken_over_does_not_fight_for_its_id() -> None:
    stage = Stage()
    stage.online()
    stage.peer.say(Disconnect(0x8E))
    stage.clock.advance(1000)
    assert stage.peer.dials == 1
    assert "another client uses this client id" in stage.notes.gone[0]


def test_a_broker_that_breaks_the_protocol_is_told_and_left() -> None:
    stage = Stage()
    stage.online()
    assert stage.peer.client is not None
    stage.peer.client.feed(b"\x30\x02\x00\x05")
    assert [type(packet) for packet in stage.peer.take()] == [Disconnect]
    assert stage.peer.wire.closed == "closed"
    assert "broke the protocol" in stage.notes.offline[0]
    stage.clock.advance(100)
    assert stage.peer.dials == 2


def test_a_second_connack_breaks_the_protocol() -> None:
    stage = Stage()
    stage.online()
    stage.peer.say(Connack())
    assert not stage.client.online


def test_stopping_says_goodbye_and_gives_the_session_up() -> None:
    stage = Stage()
    stage.online()
    stage.client.stop()
    assert stage.peer.take() == [Disconnect(0, {"session_expiry_interval": 0})]
    stage.clock.advance(1000)
    assert stage.peer.dials == 1


def test_a_pause_keeps_the_session_and_lasts_until_start() -> None:
    stage = Stage()
    stage.online()
    stage.client.pause(abrupt=False)
    assert stage.peer.take() == [Disconnect()]
    stage.clock.advance(1000)
    assert stage.peer.dials == 1
    stage.client.start()
    assert not stage.peer.accept(session_present=True).clean_start


def test_a_cut_says_nothing_and_comes_back_by_itself() -> None:
    stage = Stage()
    stage.online()
    stage.client.cut()
    assert stage.peer.take() == []
    assert stage.peer.wire.closed == "aborted"
    stage.clock.advance(61)
    assert stage.peer.dials == 2


def test_a_link_that_stands_too_late_is_dropped() -> None:
    stage = Stage()
    stage.client.start()
    stage.client.stop()
    wire = PaperWire()
    stage.client.link_up(wire)
    assert wire.closed == "aborted"
    assert wire.writes == []


def test_held_messages_leave_in_one_write() -> None:
    stage = Stage()
    stage.online()
    stage.client.hold()
    stage.client.publish("a", b"", 0)
    stage.client.publish("b", b"", 1)
    assert stage.peer.wire.writes == []
    stage.client.release()
    assert len(stage.peer.wire.writes) == 1


def test_a_full_socket_makes_messages_wait() -> None:
    stage = Stage()
    stage.online()
    stage.client.link_writable(False)
    stage.client.publish("a", b"", 1)
    assert publishes(stage) == []
    stage.client.link_writable(True)
    assert publishes(stage) == [("a", 1, False)]
