"""The window against a model that only counts: every message has one fate, and what was sent is never dropped."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tidings.broker import Config
from tidings.broker.codec import Decoder
from tidings.broker.codec.packets import NO_PROPERTIES, Packet, Publish, Pubrel
from tidings.broker.codec.properties import Properties
from tidings.broker.core.message import Message, Run
from tidings.broker.core.ports import Acked, Batch
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant
from tidings.broker.core.window import MAX_PACKET_ID, DropReason, Window
from tidings.broker.errors import ProtocolError

from .outbox import ListOutbox

MAX_MESSAGES = 6
MAX_BYTES = 2_000
REFUSED = 0x80
GRANTS = [Grant(qos=qos) for qos in range(3)]  # shared, so that neighbours in the queue leave together


class Recorder(ListOutbox):
    """Also notes what it was handed, whether or not it leaves before the connection ends."""

    def __init__(self, durable: int) -> None:
        super().__init__()
        self.durable = durable
        self.handed: list[Packet] = []

    def send(self, data: bytes) -> None:
        super().send(data)
        self.handed += read(data)

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        self.handed += read(data)
        self.waiting.append((batch, data))
        self.release(self.durable)

    def release(self, batch: int) -> None:
        self.durable = batch
        while self.waiting and self.waiting[0][0] <= batch:
            self.sent.append(self.waiting.pop(0)[1])


def read(data: bytes) -> list[Packet]:
    """The packets in ``data``, which must be whole."""
    decoder = Decoder(side="client", version=5)
    packets = decoder.feed(data)
    assert decoder.error is None
    assert decoder.waiting == 0
    return packets


class WindowModel(RuleBasedStateMachine):
    """Messages are numbered in their payloads. ``owed`` is what was handed over and is not finished, in its order."""

    @initialize(keep_qos0=st.booleans(), keeps=st.booleans())
    def begin(self, keep_qos0: bool, keeps: bool) -> None:
        self.config = Config(max_queued_messages=MAX_MESSAGES, max_queued_bytes=MAX_BYTES, queue_qos0_offline=keep_qos0)
        self.stats = Stats()
        self.window = Window("w", self.config, self.stats)
        self.window.keeps = keeps
        self.now = 100.0
        self.batch = 0
        self.durable = 0
        self.numbers = 0
        self.last = 0  # highest number handed over
        self.arrived: list[tuple[int, bool]] = []  # number and DUP as the client saw them on this connection
        self.handed: list[tuple[int, bool]] = []  # and as the outbox was given them
        self.owed: dict[int, int] = {}  # number → packet id
        self.again: list[int] = []  # numbers to be sent again on this connection
        self.seen: dict[int, Publish] = {}  # packet id → what the client has and did not answer
        self.released: list[int] = []  # packet ids of which the client sent PUBREC
        self.released_at_attach = 0
        self.fates: Counter[str] = Counter()
        self.attach(3, False)

    @property
    def outbox(self) -> Recorder:
        assert isinstance(self.window.outbox, Recorder)
        return self.window.outbox

    def connected(self) -> bool:
        return self.window.outbox is not None

    @rule(
        topic=st.sampled_from("ab"),
        qos=st.integers(0, 2),
        granted=st.integers(0, 2),
        lengths=st.lists(st.sampled_from([6, 6, 6, 900]), min_size=1, max_size=5),
        life_s=st.sampled_from([None, None, None, 2.0]),
    )
    def deliver(self, topic: str, qos: int, granted: int, lengths: list[int], life_s: float | None) -> None:
        batch = 0
        if qos == 2:
            batch = self.batch = self.batch + 1
        expires_at = None if life_s is None else self.now + life_s
        messages = []
        for length in lengths if life_s is None else lengths[:1]:
            self.numbers += 1
            payload = b"%06d" % self.numbers + b"x" * (length - 6)
            messages.append(Message(topic, payload, qos, expires_at=expires_at, batch=batch))
        self.window.deliver(Run(messages, self.now), GRANTS[granted])
        self.look()

    @rule(data=st.data(), refuse=st.integers(0, 9).map(lambda each: each == 0))
    def answer(self, data: st.DataObject, refuse: bool) -> None:
        """The client acknowledges something that it has seen, in any order."""
        if not self.connected() or not self.seen:
            return
        packet_id = data.draw(st.sampled_from(sorted(self.seen)))
        packet = self.seen.pop(packet_id)
        number = int(packet.payload[:6])
        del self.owed[number]
        if packet.qos == 1:
            assert self.window.on_puback(packet_id) is not None
            if refuse:
                self.window.refused()
            self.fates["refused" if refuse else "acknowledged"] += 1
        else:
            assert self.window.on_pubrec(packet_id, REFUSED if refuse else 0)
            if refuse:
                self.fates["refused"] += 1
            else:
                self.released.append(packet_id)
        self.pump()

    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        if not self.connected() or not self.released:
            return
        packet_id = data.draw(st.sampled_from(self.released))
        self.released.remove(packet_id)
        assert self.window.on_pubcomp(packet_id)
        self.fates["acknowledged"] += 1
        self.pump()

    @rule(packet_id=st.integers(1, 40))
    def answer_out_of_turn(self, packet_id: int) -> None:
        """Ids that are not in use, and the wrong kind of answer: nothing is finished by them."""
        entry = self.window.inflight.get(packet_id)
        if entry is None:
            assert self.window.on_puback(packet_id) is None
            assert self.window.on_pubrec(packet_id, 0) is (packet_id in self.released)
            if packet_id not in self.released:
                assert not self.window.on_pubcomp(packet_id)
        elif min(entry[0].qos, entry[1].qos) == 1:
            with pytest.raises(ProtocolError):
                self.window.on_pubrec(packet_id, 0)
        else:
            with pytest.raises(ProtocolError):
                self.window.on_puback(packet_id)

    @rule(full=st.booleans())
    def stuff(self, full: bool) -> None:
        if self.connected():
            self.outbox.full = full
            if not full:
                self.pump()

    @rule()
    def become_durable(self) -> None:
        self.durable = self.batch
        if self.connected():
            self.outbox.release(self.durable)
            self.look()

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(connected)
    @rule()
    def detach(self) -> None:
        self.window.detach()
        self.seen.clear()
        self.arrived.clear()
        self.handed.clear()
        self.again = list(self.owed)

    @precondition(lambda self: not self.connected())
    @rule(limit=st.integers(1, 6), full=st.booleans())
    def attach(self, limit: int, full: bool) -> None:
        outbox = Recorder(self.durable)
        outbox.full = full
        self.released_at_attach = len(self.released)
        self.window.attach(outbox, 5, limit)
        self.window.resume(self.now)
        assert outbox.handed[: len(self.released)] == [Pubrel(packet_id) for packet_id in self.released]
        self.look()

    def pump(self) -> None:
        self.window.pump(self.now)
        self.look()

    def look(self) -> None:
        """Take in what was handed to the outbox and what reached the client."""
        if not self.connected():
            return
        outbox = self.outbox
        for packet in outbox.handed:
            if not isinstance(packet, Publish):
                continue
            number = int(packet.payload[:6])
            self.handed.append((number, packet.dup))
            if packet.dup:
                assert self.again.pop(0) == number, "not in the order of the first time"
                assert self.owed[number] == packet.packet_id, "another packet id than before"
                continue
            assert not self.again, "overtook what is to be sent again"
            assert number > self.last, "out of order"
            self.last = number
            if packet.qos:
                self.owed[number] = packet.packet_id
            else:
                self.fates["sent at QoS 0"] += 1
        outbox.handed.clear()
        for packet in outbox.packets():
            if isinstance(packet, Publish):
                self.arrived.append((int(packet.payload[:6]), packet.dup))
                if packet.qos:
                    assert packet.packet_id not in self.seen
                    self.seen[packet.packet_id] = packet
        assert self.arrived == self.handed[: len(self.arrived)], "one overtook another on its way to the client"

    @invariant()
    def bounds_hold(self) -> None:
        window = self.window
        assert window.queued <= MAX_MESSAGES
        assert window.queued_bytes <= MAX_BYTES
        assert window.queued_bytes >= 0
        assert (window.queued_bytes == 0) is (window.queued == 0)
        limit = max(window.limit, self.released_at_attach)
        assert len(window.inflight) + len(window.released) <= limit

    @invariant()
    def every_message_has_one_fate(self) -> None:
        window = self.window
        dropped = sum((window.dropped or {}).values())
        assert self.stats.dropped == (window.dropped or {})
        assert (window.dropped or {}).get(DropReason.REFUSED, 0) == self.fates["refused"]
        finished = self.fates["acknowledged"] + self.fates["sent at QoS 0"]
        assert self.numbers == finished + dropped + window.waiting

    @invariant()
    def what_was_sent_is_in_flight_until_it_is_answered(self) -> None:
        window = self.window
        assert list(window.released) == self.released
        unfinished = set(self.owed.values())
        assert len(unfinished) == len(self.owed), "one packet id for two messages"
        if self.connected():
            waiting = {self.owed[number] for number in self.again}
            assert set(window.inflight) == unfinished - waiting
        assert window.waiting == window.queued + len(self.owed) + len(self.released)

    def teardown(self) -> None:
        """Everything that is owed arrives in the end."""
        if not hasattr(self, "window"):
            return
        if self.connected():
            self.detach()
        self.durable = self.batch
        queued = self.window.queued
        before = dict(self.window.dropped or {})
        known = set(self.owed)
        self.attach(6, False)
        for _ in range(1_000):
            if not self.seen and not self.released:
                break
            for packet_id, packet in list(self.seen.items()):
                del self.seen[packet_id]
                number = int(packet.payload[:6])
                known.discard(number)
                del self.owed[number]
                if packet.qos == 1:
                    self.window.on_puback(packet_id)
                else:
                    self.window.on_pubrec(packet_id, 0)
                    self.window.on_pubcomp(packet_id)
            for packet_id in self.released:
                self.window.on_pubcomp(packet_id)
            self.released.clear()
            self.pump()
        assert known == set()
        assert (self.window.waiting, self.window.queued_bytes) == (0, 0)
        lost = Counter(self.window.dropped or {}) - Counter(before)
        assert set(lost) <= {DropReason.EXPIRED}
        assert lost[DropReason.EXPIRED] <= queued


WindowModel.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestWindowModel = WindowModel.TestCase


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_window_model_for_long() -> None:
    run_state_machine_as_test(WindowModel, settings=settings(max_examples=2_000, stateful_step_count=80, deadline=None))


# single cases


def attached(limit: int = 10, **options: int) -> tuple[Window, ListOutbox]:
    window = Window("w", Config(max_queued_messages=100_000), Stats())
    window.keeps = True
    outbox = ListOutbox()
    window.attach(outbox, 5, limit, **options)
    return window, outbox


def run(*payloads: bytes, topic: str = "t", qos: int = 1) -> Run:
    return Run([Message(topic, payload, qos) for payload in payloads], 0.0)


def publishes(outbox: ListOutbox) -> list[Publish]:
    packets = outbox.packets()
    assert all(isinstance(packet, Publish) for packet in packets)
    return [packet for packet in packets if isinstance(packet, Publish)]


def cycle_ids(window: Window, outbox: ListOutbox, count: int) -> None:
    """Deliver and acknowledge ``count`` messages."""
    while count:
        size = min(count, 1_000)
        window.deliver(Run([Message("t", b"", 1)] * size, 0.0), Grant(qos=1))
        for packet in publishes(outbox):
            assert window.on_puback(packet.packet_id) is not None
        count -= size


@pytest.mark.parametrize("queued", [False, True], ids=["at once", "from the queue"])
def test_packet_id_that_an_old_message_holds_is_waited_for(queued: bool) -> None:
    window, outbox = attached(limit=2_000)
    window.deliver(run(b"old"), Grant(qos=1))
    [old] = publishes(outbox)
    cycle_ids(window, outbox, MAX_PACKET_ID - 2)
    window.deliver(run(b"last before"), Grant(qos=1))
    [last] = publishes(outbox)
    outbox.full = queued
    window.deliver(run(b"same id", b"next"), Grant(qos=1))
    outbox.full = False
    window.pump(0.0)
    assert publishes(outbox) == []  # 5.0 [MQTT-2.2.1-4]: the id is in use
    assert window.queued == 2
    window.deliver(run(b"QoS 0 stays in line", qos=0), Grant(qos=1))
    assert publishes(outbox) == []
    assert window.on_puback(last.packet_id) is not None
    window.pump(0.0)
    assert publishes(outbox) == []
    assert window.on_puback(old.packet_id) is not None
    window.pump(0.0)
    same, following, qos0 = publishes(outbox)
    assert (same.payload, same.packet_id) == (b"same id", old.packet_id)
    assert (following.payload, following.packet_id) == (b"next", old.packet_id % MAX_PACKET_ID + 1)
    assert qos0.payload == b"QoS 0 stays in line"


@pytest.mark.parametrize("durable", [False, True])
def test_many_acknowledgements_at_once(durable: bool) -> None:
    """What was delivered and what is not known is passed over; one for a QoS 2 message ends it there."""
    window, outbox = attached(limit=2_000)
    window.changes = Batch() if durable else None
    window.deliver(run(b"1", b"2", b"3"), Grant(qos=1))
    window.deliver(run(b"twice", qos=2), Grant(qos=2))
    window.deliver(run(b"4"), Grant(qos=2))
    outbox.release(10)
    one, two, three, twice, four = range(2, 7)
    window.on_pubacks([two, 999, one, two])
    assert list(window.inflight) == [three, twice, four]
    with pytest.raises(ProtocolError, match=f"packet id {twice}"):
        window.on_pubacks([four, twice, three])
    assert list(window.inflight) == [three, twice]
    assert window.inflight_bytes == sum(message.size for message, _, _ in window.inflight.values())
    acked = [change.seq for change in window.changes or () if isinstance(change, Acked)]
    assert acked == ([2, 1, 5] if durable else [])


def test_run_that_meets_a_held_packet_id_goes_out_up_to_it() -> None:
    window, outbox = attached(limit=2_000)
    window.deliver(run(b"old"), Grant(qos=1))
    [old] = publishes(outbox)
    cycle_ids(window, outbox, MAX_PACKET_ID - 3)
    window.deliver(run(b"1", b"2", b"3", b"4"), Grant(qos=1))
    assert [packet.payload for packet in publishes(outbox)] == [b"1", b"2"]
    window.on_puback(old.packet_id)
    window.pump(0.0)
    assert [packet.payload for packet in publishes(outbox)] == [b"3", b"4"]


def test_packet_id_of_an_unfinished_qos_2_delivery_is_waited_for() -> None:
    window, outbox = attached(limit=2_000)
    window.deliver(run(b"old", qos=2), Grant(qos=2))
    [old] = publishes(outbox)
    assert window.on_pubrec(old.packet_id, 0)
    cycle_ids(window, outbox, MAX_PACKET_ID - 1)
    window.deliver(run(b"new"), Grant(qos=1))
    assert publishes(outbox) == []
    assert window.on_pubcomp(old.packet_id)
    window.pump(0.0)
    assert [packet.packet_id for packet in publishes(outbox)] == [old.packet_id]


def test_packet_ids_are_never_0_and_all_are_used() -> None:
    window, outbox = attached(limit=MAX_PACKET_ID)
    for _ in range(66):
        window.deliver(Run([Message("t", b"", 1)] * 1_000, 0.0), Grant(qos=1))
    assert {packet.packet_id for packet in publishes(outbox)} == set(range(1, MAX_PACKET_ID + 1))
    assert len(window.inflight) == MAX_PACKET_ID
    assert window.queued == 66_000 - MAX_PACKET_ID


def test_qos_0_goes_out_while_the_window_is_full() -> None:
    window, outbox = attached(limit=1)
    window.deliver(run(b"1"), Grant(qos=1))
    window.deliver(run(b"0", qos=0), Grant(qos=1))
    assert [packet.payload for packet in publishes(outbox)] == [b"1", b"0"]


def test_long_queue_goes_out_in_slices_that_stop_when_the_outbox_is_full() -> None:
    window, outbox = attached(limit=1_000)
    outbox.full = True
    window.deliver(run(*[b"%03d" % number + b"x" * 10_000 for number in range(50)]), Grant(qos=1))

    class Filling(ListOutbox):
        def send(self, data: bytes) -> None:
            super().send(data)
            self.full = True

    window.detach()
    filling = Filling()
    window.attach(filling, 5, 1_000)
    window.resume(0.0)
    first = publishes(filling)
    assert 1 <= len(first) < 10
    while window.queued:
        filling.full = False
        window.pump(0.0)
        first += publishes(filling)
    assert [int(packet.payload[:3]) for packet in first] == list(range(50))


def test_message_too_large_for_the_client_is_counted_and_makes_room() -> None:
    window, outbox = attached(limit=1, max_packet_size=50)
    window.deliver(run(b"x" * 100, b"small", b"y" * 100), Grant(qos=1))
    [packet] = publishes(outbox)
    assert packet.payload == b"small"
    window.on_puback(packet.packet_id)
    window.pump(0.0)
    assert publishes(outbox) == []
    assert window.dropped == {DropReason.TOO_LARGE: 2}
    assert window.waiting == 0


def test_too_large_for_the_new_connection_is_given_up_though_it_was_sent_before() -> None:
    window, outbox = attached()
    window.deliver(run(b"x" * 100, b"small"), Grant(qos=1))
    assert len(publishes(outbox)) == 2
    window.detach()
    outbox = ListOutbox()
    window.attach(outbox, 5, 10, max_packet_size=50)
    window.resume(0.0)
    assert [(packet.payload, packet.dup) for packet in publishes(outbox)] == [(b"small", True)]
    assert window.dropped == {DropReason.TOO_LARGE: 1}


@pytest.mark.parametrize("qos", [0, 1])
def test_alias_counts_as_known_only_once_it_was_sent(qos: int) -> None:
    window, outbox = attached(max_packet_size=60, alias_maximum=2)
    topic = "a/rather/long/topic"
    window.deliver(run(b"x" * 60, topic=topic, qos=qos), Grant(qos=1))
    assert publishes(outbox) == []
    window.deliver(run(b"1", b"2", topic=topic, qos=qos), Grant(qos=1))
    first, second = publishes(outbox)
    assert (first.topic, first.properties) == (topic, {"topic_alias": 1})
    assert (second.topic, second.properties) == ("", {"topic_alias": 1})
    window.deliver(run(b"3", topic="other/topic", qos=qos), Grant(qos=1))
    [third] = publishes(outbox)
    assert (third.topic, third.properties) == ("other/topic", {"topic_alias": 2})


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("named", [False, True])
def test_message_that_fits_only_without_an_alias_goes_without(qos: int, named: bool) -> None:
    window, outbox = attached(max_packet_size=30, alias_maximum=2)
    if named:
        window.deliver(run(b"", topic="t", qos=qos), Grant(qos=1))
        publishes(outbox)
    bare = 2 + 2 + 1 + (2 if qos else 0) + 1
    window.deliver(run(b"x" * (30 - bare), topic="t", qos=qos), Grant(qos=1))
    [packet] = publishes(outbox)
    assert (packet.topic, packet.properties) == ("t", {})
    assert window.dropped is None


def test_aliases_are_forgotten_with_the_connection() -> None:
    window, outbox = attached(alias_maximum=5)
    window.deliver(run(b"1", b"2"), Grant(qos=1))
    assert [packet.topic for packet in publishes(outbox)] == ["t", ""]
    window.detach()
    outbox = ListOutbox()
    window.attach(outbox, 5, 10, alias_maximum=5)
    window.resume(0.0)
    assert [(packet.topic, packet.dup) for packet in publishes(outbox)] == [("t", True), ("", True)]


def test_qos_0_is_not_kept_for_a_client_that_is_away() -> None:
    window, outbox = attached()
    outbox.full = True
    window.deliver(run(b"0", b"0", qos=0), Grant(qos=1))
    window.deliver(run(b"1", qos=1), Grant(qos=1))
    window.detach()
    assert window.dropped == {DropReason.OFFLINE: 2}
    window.deliver(run(b"0", qos=0), Grant(qos=1))
    window.deliver(run(b"0", qos=1), Grant(qos=0))
    assert window.dropped == {DropReason.OFFLINE: 4}
    assert (window.queued, window.queued_bytes) == (1, Message("t", b"1", 1).size)


def test_subscriber_in_process_is_woken_and_takes_in_order() -> None:
    window = Window("w", Config(max_queued_messages=3), Stats())
    woken: list[int] = []
    window.wake = lambda: woken.append(1)
    window.deliver(run(b"1", b"2", qos=0), Grant(qos=0))
    window.deliver(Run([Message("t", b"3", expires_at=5.0)], 0.0), Grant(qos=0))
    window.deliver(run(b"4", qos=1), Grant(qos=1))
    assert len(woken) == 3
    assert window.dropped == {DropReason.QUEUE_FULL: 1}
    taken = [window.take(6.0), window.take(6.0), window.take(6.0)]
    assert [message and message.payload for message in taken] == [b"2", b"4", None]
    assert window.dropped == {DropReason.QUEUE_FULL: 1, DropReason.EXPIRED: 1}
    assert (window.queued, window.queued_bytes) == (0, 0)


def test_end_counts_what_was_owed() -> None:
    window, outbox = attached(limit=2)
    window.deliver(run(b"1", b"2", b"3", b"4", qos=2), Grant(qos=2))
    assert window.on_pubrec(publishes(outbox)[0].packet_id, 0)
    window.end()
    assert window.dropped == {DropReason.SESSION_ENDED: 4}
    assert (window.waiting, window.queued_bytes) == (0, 0)


@pytest.mark.parametrize("version", [4, 5])
def test_what_waited_leaves_as_it_would_have_at_once(version: int) -> None:
    config, grant = Config(), Grant(qos=2, retain_as_published=True)
    at_once, in_parts = Window("w", config, Stats()), Window("w", config, Stats())
    direct, queued = ListOutbox(version), ListOutbox(version)
    direct.durable = queued.durable = 1
    at_once.attach(direct, version, 65_535)
    in_parts.attach(queued, version, 4)
    at_once.seq = in_parts.seq = MAX_PACKET_ID - 12  # so that packet ids begin anew on the way
    number = 0
    special: Properties = {"content_type": "x"}
    for topic, count, qos, retain, properties in (
        ("a", 5, 1, False, NO_PROPERTIES),
        ("a", 3, 2, False, NO_PROPERTIES),
        ("b", 2, 1, True, NO_PROPERTIES),
        ("a", 1, 1, False, special),
        ("a", 4, 1, False, NO_PROPERTIES),
        ("a", 2, 0, False, NO_PROPERTIES),
        ("b", 6, 2, False, NO_PROPERTIES),
    ):
        payloads = [b"%d" % (number + i) * (1 + i % 2) for i in range(count)]
        number += count
        for window in (at_once, in_parts):
            batch = 1 if qos == 2 else 0
            messages = [Message(topic, each, qos, retain, properties=properties, batch=batch) for each in payloads]
            window.deliver(Run(messages, 0.0), grant)
    while in_parts.waiting:
        for packet_id, entry in list(in_parts.inflight.items()):
            if entry[0].qos == 2:
                in_parts.on_pubrec(packet_id)
                in_parts.on_pubcomp(packet_id)
            else:
                in_parts.on_puback(packet_id)
        in_parts.pump(0.0)
    assert b"".join(queued.sent) == b"".join(direct.sent)
    assert (in_parts.seq, in_parts.sent, in_parts.queued_bytes, in_parts.inflight_bytes) == (at_once.seq, 23, 0, 0)
    assert in_parts.charged == 0
