"""Consumers on a virtual clock: fast, slow, frozen and away."""

from typing import Any

import pytest

from tidings.broker.codec import Disconnect, Packet, Puback, Publish, Pubrec, Suback, Subscribe
from tidings.devices.consumer import Consumer
from tidings.devices.ledger import Account, Stream
from tidings.devices.scenario import ConsumerSpec
from tidings.devices.stamp import stamped

from .stage import EPOCH_US, Stage


class Listening(Stage):
    """One consumer of one stream."""

    def __init__(self, qos: int = 1, share: str | None = None, **spec: Any) -> None:
        super().__init__()
        self.spec = ConsumerSpec.model_validate({"filters": ["dev/#"], "qos": qos, "share": share, **spec})
        self.account: Account = self.run.ledger.account("c", self.spec.wanted, durable=self.spec.session > 0)
        self.stream: Stream = self.run.ledger.stream("a", "dev/a", qos)
        self.ready = 0
        self.consumer = Consumer("c", self.spec, self.account, "c", self.run, self._on_ready)
        self._id = 0

    def _on_ready(self) -> None:
        self.ready += 1

    def begin(self, *, session_present: bool = False) -> None:
        self.consumer.begin()
        self.accept(session_present=session_present)

    def accept(self, *, session_present: bool = False) -> list[Packet]:
        self.peers["c"].accept(session_present=session_present)
        packets = self.take("c")
        for packet in packets:
            if isinstance(packet, Subscribe):
                self.peers["c"].say(Suback(packet.packet_id, [one.qos for one in packet.filters]))
        return packets

    def send(self, count: int = 1, *, retain: bool = False) -> None:
        """So many messages sent, acknowledged and delivered, all in one read."""
        packets: list[Packet] = []
        for _ in range(count):
            self._id += 1
            sequence = self.stream.send()
            self.stream.acknowledge(sequence, True)
            payload = stamped(b"{}", "a", sequence, EPOCH_US + round(self.clock.now() * 1e6))
            qos = self.stream.qos
            packets.append(Publish("dev/a", payload, qos, retain, packet_id=self._id if qos else 0))
        self.peers["c"].say(*packets)


def test_it_subscribes_once_and_says_that_it_is_ready() -> None:
    stage = Listening(session="60s")
    stage.consumer.begin()
    (subscribe,) = stage.accept()
    assert isinstance(subscribe, Subscribe)
    assert [(one.filter, one.qos) for one in subscribe.filters] == [("dev/#", 1)]
    assert stage.ready == 1
    stage.peers["c"].drop()
    stage.clock.advance(61)
    assert stage.accept(session_present=True) == []
    assert (stage.ready, stage.account.reconnects, stage.account.sessions_lost) == (1, 1, 0)


def test_a_session_that_the_broker_forgot_is_noticed() -> None:
    stage = Listening(session="60s")
    stage.begin()
    stage.peers["c"].drop()
    stage.clock.advance(61)
    assert len(stage.accept(session_present=False)) == 1
    assert stage.account.sessions_lost == 1


def test_members_of_a_group_subscribe_together() -> None:
    stage = Listening(share="g")
    stage.consumer.begin()
    (subscribe,) = stage.accept()
    assert isinstance(subscribe, Subscribe)
    assert subscribe.filters[0].filter == "$share/g/dev/#"


def test_a_fast_one_takes_and_acknowledges_at_once() -> None:
    stage = Listening()
    stage.begin()
    stage.send(3)
    assert stage.take("c") == [Puback(1), Puback(2), Puback(3)]
    assert stage.account.backlog == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_slow_one_takes_its_rate_and_reads_nothing_meanwhile(qos: int) -> None:
    stage = Listening(qos=qos, rate="2/s")
    stage.begin()
    stage.send(5)
    assert not stage.peers["c"].wire.reading
    assert stage.account.received == 0
    for second in (1, 2):
        stage.clock.advance(1)
        assert stage.account.received == 2 * second
    stage.clock.advance(0.5)
    assert stage.account.received == 5
    assert stage.peers["c"].wire.reading
    kind = {0: type(None), 1: Puback, 2: Pubrec}[qos]
    assert [type(packet) for packet in stage.take("c")] == ([kind] * 5 if qos else [])
    assert stage.account.latency.maximum == 2_500_000


def test_a_slow_one_that_is_cut_off_does_not_take_twice_what_comes_again() -> None:
    stage = Listening(rate="1/s", session="60s")
    stage.begin()
    stage.send(3)
    stage.clock.advance(1)
    stage.peers["c"].drop()
    assert stage.account.received == 1
    stage.clock.advance(61)
    stage.accept(session_present=True)
    again = [Publish("dev/a", stamped(b"{}", "a", n, 0), 1, dup=True, packet_id=n) for n in (2, 3)]
    stage.peers["c"].say(*again)
    stage.clock.advance(3)
    (result,) = stage.run.ledger.results()
    assert (result.delivered, result.duplicated, result.broken) == (3, 0, [])


def test_a_slow_one_that_is_cut_off_keeps_what_it_read_at_qos_0() -> None:
    stage = Listening(qos=0, rate="1/s")
    stage.begin()
    stage.send(3)
    stage.peers["c"].drop()
    assert stage.account.received == 3


def test_at_the_end_a_slow_one_takes_the_rest_at_once() -> None:
    stage = Listening(rate="1/s")
    stage.begin()
    stage.send(5)
    stage.consumer.catch_up()
    assert stage.account.backlog == 0
    assert stage.peers["c"].wire.reading
    stage.send(2)
    assert len([one for one in stage.take("c") if isinstance(one, Puback)]) == 7


def test_a_frozen_one_reads_nothing_until_it_thaws() -> None:
    stage = Listening()
    stage.begin()
    stage.consumer.freeze()
    assert not stage.peers["c"].wire.reading
    stage.consumer.thaw()
    assert stage.peers["c"].wire.reading


def test_a_frozen_slow_one_does_not_start_reading_by_itself() -> None:
    stage = Listening(rate="10/s")
    stage.begin()
    stage.send(1)
    stage.consumer.freeze()
    stage.clock.advance(10)
    assert not stage.peers["c"].wire.reading
    stage.consumer.thaw()
    assert stage.peers["c"].wire.reading


def test_leaving_is_polite_and_lasts() -> None:
    stage = Listening()
    stage.begin()
    stage.consumer.leave()
    assert [type(one) for one in stage.take("c")] == [Disconnect]
    stage.clock.advance(1000)
    assert stage.peers["c"].dials == 1
    stage.consumer.come_back()
    assert stage.peers["c"].dials == 2
    stage.consumer.come_back()
    assert stage.peers["c"].dials == 2


def test_being_refused_ends_the_waiting_and_is_noted() -> None:
    stage = Listening()
    stage.consumer.begin()
    stage.peers["c"].accept(reason=0x87)
    assert stage.ready == 1
    assert "0x87" in stage.run.gone["c"]
