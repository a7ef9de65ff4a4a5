"""Publishers wait before memory runs out: first for their acknowledgements, then unread; and who pays in the end."""

import pytest

from tidings.broker import Config
from tidings.broker.codec.packets import (
    MQTT_5_0,
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
    Subscribe,
    SubscribeFilter,
)
from tidings.broker.codec.properties import Properties
from tidings.broker.core.engine import Engine
from tidings.broker.core.ports import PauseReason
from tidings.broker.core.window import DropReason

from .outbox import ListOutbox

BUDGET = 100_000
KIB = b"x" * 1_000


def make(**options: object) -> Engine:
    values = {"sys_interval_s": 0, "memory_budget_bytes": BUDGET, "memory_pause_s": 5, **options}
    return Engine(Config.model_validate(values), 0.0, lambda: "x")


class Client:
    """One connection."""

    def __init__(self, engine: Engine, client_id: str, properties: Properties | None = None) -> None:
        self.engine = engine
        self.outbox = ListOutbox()
        self.connection = engine.connect(self.outbox, "peer", 0.0)
        self.send(Connect(client_id, MQTT_5_0, False, properties=properties or {}))
        (connack,) = self.outbox.packets()
        assert isinstance(connack, Connack)
        self.connack = connack

    def send(self, *packets: object) -> None:
        self.engine.handle(self.connection, packets, 0.0)  # type: ignore[arg-type]

    def subscribe(self, filter: str, qos: int = 1) -> None:
        self.send(Subscribe(1, [SubscribeFilter(filter, qos)]))
        self.outbox.packets()

    def publish(self, topic: str, first: int, count: int = 1, qos: int = 1) -> None:
        self.send(*(Publish(topic, KIB, qos, packet_id=number) for number in range(first, first + count)))

    def acked(self) -> list[int]:
        return [packet.packet_id for packet in self.outbox.packets() if isinstance(packet, Puback | Pubrec)]

    def leave(self) -> None:
        self.engine.disconnected(self.connection, 0.0)


def fill(engine: Engine, part: float) -> None:
    """Owe this part of the budget to somebody who is away and subscribed to ``full``."""
    away, feeder = Client(engine, "away", {"session_expiry_interval": 60}), Client(engine, "feeder")
    away.subscribe("full")
    away.leave()
    number = 0
    while engine.budget.used_bytes < part * BUDGET:
        number += 1
        feeder.publish("full", number)
    feeder.leave()


def test_above_the_first_mark_a_publisher_that_adds_waits_for_its_acknowledgements_and_for_nothing_else() -> None:
    engine = make()
    fill(engine, 0.805)
    publisher, other = Client(engine, "p"), Client(engine, "other")
    publisher.publish("nobody", 1)
    assert publisher.acked() == [1]  # it adds nothing
    publisher.publish("full", 2, 2)
    publisher.publish("full", 4, qos=2)
    publisher.publish("nobody", 5)
    assert publisher.acked() == []
    publisher.send(Pingreq())
    assert publisher.outbox.packets() == [Pingresp()]
    other.publish("nobody", 1)
    assert other.acked() == [1]
    assert not engine.budget.full
    assert engine.stats.paused == {PauseReason.WINDOW: 1}
    assert engine.sessions["p"].paused == {PauseReason.WINDOW: 1}
    engine.sessions["away"].window.shed(BUDGET // 2)
    engine.tick(0.0)
    assert publisher.acked() == [2, 3, 4, 5]
    publisher.publish("full", 6)
    assert publisher.acked() == [6]


def test_acknowledgements_are_held_back_for_no_longer_than_the_pause() -> None:
    engine = make()
    fill(engine, 0.805)
    publisher = Client(engine, "p")
    publisher.publish("full", 1)
    engine.tick(4.9)
    assert publisher.acked() == []
    engine.tick(5.0)
    assert publisher.acked() == [1]
    assert engine.budget.used_bytes <= 0.6 * BUDGET


def test_a_client_whose_acknowledgements_are_held_back_can_still_empty_its_own_queue() -> None:
    """What it publishes waits for itself: it is read, so that its window opens, and it is sent PUBREL."""
    engine = make()
    both = Client(engine, "both", {"receive_maximum": 1})
    both.subscribe("loop", 2)
    sent = 0
    while not engine.budget.pressed:
        sent += 1
        both.publish("loop", sent, qos=2)
    acked = both.outbox.packets()
    both.publish("loop", sent + 1, qos=2)
    assert not both.outbox.sent
    taken = 0
    unread = [packet for packet in acked if isinstance(packet, Publish)]
    held_back = 0
    while unread:
        for packet in unread:
            if isinstance(packet, Publish):
                both.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                taken += 1
                both.send(Pubcomp(packet.packet_id))
            elif isinstance(packet, Pubrec):
                held_back += 1
        unread = both.outbox.packets()  # type: ignore[assignment]
    assert (taken, held_back) == (sent + 1, 1)
    assert engine.stats.dropped == {}


def test_the_second_mark_lasts_until_the_low_one() -> None:
    engine = make()
    fill(engine, 0.905)
    assert engine.budget.full
    window = engine.sessions["away"].window
    window.shed(int(0.7 * BUDGET))
    engine.tick(0.0)
    assert engine.budget.full
    window.shed(int(0.59 * BUDGET))
    engine.tick(0.0)
    assert not engine.budget.full


def test_clients_that_come_while_memory_is_short_are_told_a_low_receive_maximum() -> None:
    engine = make(receive_maximum=500)
    assert Client(engine, "before").connack.properties["receive_maximum"] == 500
    fill(engine, 0.805)
    late = Client(engine, "late")
    assert late.connack.properties["receive_maximum"] == 100
    late.send(*(Publish("full", b"", 1, packet_id=number) for number in range(1, 101)))
    assert late.acked() == []
    assert not late.outbox.closed  # as many as it may
    assert engine.budget.pressed
    late.publish("full", 101)
    (goodbye,) = late.outbox.packets()
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x93


def test_what_was_under_way_before_does_not_count_against_a_lower_receive_maximum() -> None:
    engine = make(receive_maximum=500)
    early = Client(engine, "early", {"session_expiry_interval": 60})
    early.publish("nobody", 1, 120, qos=2)
    early.leave()
    fill(engine, 0.805)
    again = Client(engine, "early", {"session_expiry_interval": 60})
    again.publish("nobody", 1_000, 100, qos=2)
    assert not again.outbox.closed
    again.publish("nobody", 1_100, qos=2)
    assert again.outbox.closed


@pytest.mark.parametrize("expiry_s", [0, 60])
@pytest.mark.parametrize("qos", [1, 2])
def test_who_has_most_under_way_is_cut_off_when_memory_is_used_up(expiry_s: int, qos: int) -> None:
    engine = make()
    light, heavy = Client(engine, "light"), Client(engine, "heavy", {"session_expiry_interval": expiry_s})
    light.subscribe("light", qos)
    heavy.subscribe("heavy", qos)
    publisher = Client(engine, "p")
    publisher.publish("light", 1, 10, qos)
    number = 10
    while not heavy.outbox.closed:
        number += 1
        publisher.publish("heavy", number, qos=qos)
        assert engine.budget.used_bytes <= BUDGET
    goodbye = heavy.outbox.packets()[-1]
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x97
    assert not light.outbox.closed
    assert len(engine.sessions["light"].window.inflight) == 10
    assert ("heavy" in engine.sessions) == bool(expiry_s)
    if expiry_s:
        number += 1  # the session stays, and pays again
        while not (dropped := engine.sessions["heavy"].window.dropped):
            publisher.publish("heavy", number, qos=qos)
        assert set(dropped) == {DropReason.MEMORY}


def test_a_message_over_the_bound_of_bytes_in_flight_is_in_flight_alone() -> None:
    engine = make(max_inflight_bytes=3_000, memory_budget_bytes=1_000_000)
    client, publisher = Client(engine, "c"), Client(engine, "p")
    client.subscribe("#")
    publisher.send(*(Publish("t", b"x" * size, 1, packet_id=size) for size in (1_000, 1_001, 1_002, 5_000, 10)))
    seen = []
    while packets := [packet for packet in client.outbox.packets() if isinstance(packet, Publish)]:
        seen.append([len(packet.payload) for packet in packets])
        client.send(*(Puback(packet.packet_id) for packet in packets))
    assert seen == [[1_000, 1_001], [1_002], [5_000], [10]]
