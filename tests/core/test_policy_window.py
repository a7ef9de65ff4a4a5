"""Delivery policies in the window, against a model that only counts and a store that only remembers."""

from collections import Counter
from collections.abc import Sequence

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
from tidings.broker.codec.packets import Packet, Publish
from tidings.broker.core.budget import SLACK_BYTES, Budget
from tidings.broker.core.deadlines import Deadlines
from tidings.broker.core.message import Message, Run
from tidings.broker.core.ports import Acked, Batch, Queued, Released, Wanted, Withdrawn
from tidings.broker.core.queue import DropReason
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant
from tidings.broker.core.window import Entry, Window
from tidings.broker.policy import parse_policy

from .outbox import ListOutbox

PERIOD_S = 2.0
POLICIES = ["all", "latest", "latest; tell-missed", "sample=0.5", "all; overflow=drop-newest"]
POLICIES += ["all; overflow=drop-oldest", "all; overflow=disconnect"]
TOPICS = "abcd"
MAX_MESSAGES = 9
MAX_BYTES = 2_500
MAX_INFLIGHT_BYTES = 900


class Notes(ListOutbox):
    """An outbox that notes what it is handed, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.handed: list[Packet] = []
        self.durable = 1 << 60

    def send(self, data: bytes) -> None:
        decoder = Decoder(side="client", version=5)
        self.handed += decoder.feed(data)
        assert decoder.error is None
        assert not decoder.waiting


class Policies(RuleBasedStateMachine):
    """Messages are numbered in their payloads. Each topic has one policy, unless ``subscribe`` gives it another."""

    @initialize(
        policies=st.tuples(*[st.sampled_from(POLICIES)] * len(TOPICS)), durable=st.booleans(), limit=st.integers(1, 4)
    )
    def begin(self, policies: Sequence[str], durable: bool, limit: int) -> None:
        config = Config(
            max_queued_messages=MAX_MESSAGES,
            max_queued_bytes=MAX_BYTES,
            max_memory_messages=4,
            max_memory_bytes=1_500,
            max_inflight_bytes=MAX_INFLIGHT_BYTES,
            queue_qos0_offline=True,
        )
        self.deadlines = Deadlines()
        self.budget = Budget(config, self.deadlines)
        self.window = Window("w", config, Stats(), self.budget)
        self.window.keeps = True
        self.durable = durable
        if durable:
            self.window.changes = Batch()
        self.owed: dict[int, Entry] = {}  # what the store has
        self.slices: list[list[Entry]] = []  # answers of the store that are under way
        self.grants = {topic: Grant(2, policy=parse_policy(text)) for topic, text in zip(TOPICS, policies, strict=True)}
        self.limit = limit
        self.now = 100.0
        self.numbers = 0
        self.delivered = 0
        self.first_sent = 0
        self.sent_and_dropped = 0
        self.sent: set[int] = set()
        self.sent_seq = 0
        self.newest: dict[str, int] = {}
        self.highest: Counter[tuple[str, int]] = Counter()  # order is promised per topic and QoS
        self.since = 0  # the policies hold for numbers above this
        self.sent_at: dict[str, float] = {}
        self.told = 0
        self.attach()

    def connected(self) -> bool:
        return self.window.outbox is not None

    @property
    def outbox(self) -> Notes:
        assert isinstance(self.window.outbox, Notes)
        return self.window.outbox

    def newest_only(self, topic: str) -> bool:
        policy = self.grants[topic].policy
        return policy is not None and policy.period_s is not None

    @rule(
        topic=st.sampled_from(TOPICS), qos=st.integers(0, 2), count=st.integers(1, 4), size=st.sampled_from([6, 6, 400])
    )
    def deliver(self, topic: str, qos: int, count: int, size: int) -> None:
        messages = []
        for _ in range(count):
            self.numbers += 1
            messages.append(Message(topic, b"%06d" % self.numbers + b"x" * (size - 6), qos))
        self.newest[topic] = self.numbers
        self.delivered += count
        self.window.deliver(Run(messages, self.now), self.grants[topic])
        self.look()

    @precondition(connected)
    @rule()
    def acknowledge(self) -> None:
        window = self.window
        for packet_id, (message, grant, _) in list(window.inflight.items()):
            if min(message.qos, grant.qos) == 1:
                window.on_puback(packet_id)
            else:
                window.on_pubrec(packet_id, 0)
                self.note()
                window.on_pubcomp(packet_id)
        for packet_id in list(window.released):
            window.on_pubcomp(packet_id)
        window.pump(self.now)
        self.look()

    @precondition(connected)
    @rule(full=st.booleans())
    def writable(self, full: bool) -> None:
        self.outbox.full = full
        self.window.pump(self.now)
        self.look()

    @rule(seconds=st.sampled_from([0.5, 1.9, 2.0, 7.0]))
    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (due := self.deadlines.next()) is not None and due <= end:
            self.now = max(self.now, due)
            self.deadlines.run(self.now)
            self.look()
        self.now = end

    @precondition(connected)
    @rule()
    def detach(self) -> None:
        self.window.detach()
        self.note()

    @precondition(lambda self: not self.connected())
    @rule()
    def attach(self) -> None:
        self.window.attach(Notes(), 5, self.limit)
        self.window.resume(self.now)
        self.look()

    @rule(topic=st.sampled_from(TOPICS), text=st.sampled_from(POLICIES))
    def subscribe(self, topic: str, text: str) -> None:
        self.window.regroup()
        self.grants[topic] = Grant(2, policy=parse_policy(text))
        self.sent_at.clear()  # a change of subscriptions lets go what is held
        self.since = self.numbers
        self.note()

    @precondition(lambda self: self.slices)
    @rule()
    def answer(self) -> None:
        self.window.refill(self.slices.pop(0), self.now)
        self.look()

    @rule(level=st.integers(0, 1_500))
    def shed(self, level: int) -> None:
        window = self.window
        sent = {seq for _, _, seq in [*window.inflight.values(), *(window.resend or ())]}
        window.shed(level)
        self.note()
        if window.outbox is not None and window in self.budget.cut_off:
            self.detach()
            window.shed(level)
            self.note()
        left = {seq for _, _, seq in [*window.inflight.values(), *(window.resend or ())]} | self.owed.keys()
        self.sent_and_dropped += len(sent - left)
        self.budget.cut_off.clear()
        assert window.queued_bytes + window.inflight_bytes <= level or window.outbox is not None

    def sent_and_in_the_store(self) -> int:
        """Messages that were sent, were not acknowledged, and are only in the store now."""
        window = self.window
        if window.spill is None:
            return 0
        ours = {seq for _, _, seq in [*(window.resend or ()), *window.inflight.values()]}
        return sum(int(message.payload[:6]) in self.sent for message, _, seq in self.owed.values() if seq not in ours)

    def note(self) -> None:
        """Do what a store does."""
        changes = self.window.changes
        if changes is None:
            return
        for change in changes:
            if isinstance(change, Queued):
                for seq, message in enumerate(change.messages, change.seq):
                    assert seq not in self.owed, "owed twice under one number"
                    self.owed[seq] = (message, change.grant, seq)
            elif isinstance(change, Acked | Withdrawn):
                for seq, message in enumerate(change.messages, change.seq):
                    assert self.owed.pop(seq)[0] is message
            elif isinstance(change, Released):
                assert self.owed.pop(change.seq)[0] is change.message
            elif isinstance(change, Wanted):
                later = [entry for seq, entry in sorted(self.owed.items()) if seq > change.seq]
                self.slices.append(later[: change.count])
        changes.clear()

    def look(self) -> None:
        self.note()
        if not self.connected():
            return
        handed, self.outbox.handed = self.outbox.handed, []
        for packet in handed:
            if not isinstance(packet, Publish) or packet.dup:
                continue
            if packet.qos:
                self.sent_seq = max(self.sent_seq, packet.packet_id - 1)
            number = int(packet.payload[:6])
            topic = packet.topic
            assert number not in self.sent, "sent again without DUP"
            self.sent.add(number)
            self.first_sent += 1
            if self.newest_only(topic):
                assert number > self.highest[topic, packet.qos], "an older value after a newer one"
                policy = self.grants[topic].policy
                if policy is not None and policy.period_s and number > self.since:
                    before = self.sent_at.get(topic)
                    assert before is None or self.now >= before + policy.period_s, "faster than the rate"
                    self.sent_at[topic] = self.now
            self.highest[topic, packet.qos] = max(self.highest[topic, packet.qos], number)
            for name, value in packet.properties.get("user_property", ()):
                assert name == "tidings-missed"
                assert int(value) > 0
                self.told += int(value)

    @invariant()
    def every_message_has_one_fate(self) -> None:
        dropped = sum((self.window.dropped or {}).values())
        twice = self.sent_and_dropped + self.sent_and_in_the_store()
        assert self.delivered == self.first_sent + dropped + self.window.queued - twice

    @invariant()
    def bounds_hold(self) -> None:
        window = self.window
        if not (
            window.spill is not None and window.spill.asked
        ):  # what only the store has is read before it is dropped
            # What was in flight and is left to the store waits beside what the bound is for.
            assert window.queued - self.sent_and_in_the_store() <= MAX_MESSAGES
        assert window.queued_bytes <= MAX_BYTES
        entries = [*(window.queue or ()), *(window.latest or ())]
        assert window.queued_bytes == sum(entry[0].size for entry in entries)
        sent = [*window.inflight.values(), *(window.resend or ())]
        assert window.inflight_bytes == sum(entry[0].size for entry in sent)
        assert window.inflight_bytes <= MAX_INFLIGHT_BYTES or len(sent) == 1
        assert self.budget.used_bytes == window.charged
        assert abs(window.charged - window.queued_bytes - window.inflight_bytes) <= SLACK_BYTES

    @invariant()
    def one_message_waits_per_topic(self) -> None:
        topics = [message.topic for message, _, _ in self.window.latest or ()]
        assert len(topics) == len(set(topics))

    @invariant()
    def what_the_store_has_is_what_is_owed(self) -> None:
        window = self.window
        if not self.durable:
            return
        entries = [*(window.queue or ()), *(window.latest or ()), *(window.resend or ()), *window.inflight.values()]
        ours = {seq: message for message, _, seq in entries if seq}
        assert len(ours) == sum(1 for entry in entries if entry[2]), "one number for two messages"
        spilled = window.spill.count if window.spill is not None else 0
        assert {seq: self.owed[seq][0] for seq in ours} == ours
        assert len(self.owed) == len(ours) + spilled

    @invariant()
    def what_a_client_that_is_away_got_is_known_by_its_number(self) -> None:
        window = self.window
        if self.durable and not self.connected():
            assert window.sent_seq >= self.sent_seq
            if window.latest is None:
                assert all(seq > window.sent_seq for _, _, seq in window.queue or () if seq)

    @invariant()
    def what_was_missed_is_told_once(self) -> None:
        assert self.told + self.window.missed <= self.delivered

    def teardown(self) -> None:
        """A client that catches up has the last value of each topic, whatever was skipped."""
        if not hasattr(self, "window"):
            return
        if not self.connected():
            self.attach()
        lost = {reason.value for reason in self.window.dropped or {}} & {"queue-full", "memory-budget"}
        for _ in range(60):
            self.outbox.full = False
            self.window.pump(self.now)
            self.look()
            self.acknowledge()
            while self.slices:
                self.answer()
            self.wait(PERIOD_S)
        assert self.window.queued == 0
        assert not self.owed
        if not lost:
            for topic, newest in self.newest.items():
                if self.newest_only(topic):
                    assert max(self.highest[topic, qos] for qos in (0, 1, 2)) == newest, "the last value did not arrive"
        assert self.deadlines.next() is None or self.window.latest is None


TestPolicies = Policies.TestCase
TestPolicies.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_policies_for_long() -> None:
    run_state_machine_as_test(Policies, settings=settings(max_examples=2_000, stateful_step_count=80, deadline=None))


# single cases


def replay(limit: int, steps: str) -> None:
    """Take ``steps`` in a durable session, each the name of a rule and its arguments; the model looks after each."""
    model = Policies()
    model.begin(["all"] * len(TOPICS), durable=True, limit=limit)
    for step in steps.split("; "):
        name, *words = step.split()
        getattr(model, name)(*(int(word) if word.isdigit() else word for word in words))
        model.every_message_has_one_fate()
        model.bounds_hold()
        model.one_message_waits_per_topic()
        model.what_the_store_has_is_what_is_owed()
        model.what_a_client_that_is_away_got_is_known_by_its_number()
        model.what_was_missed_is_told_once()
    model.teardown()


def test_newest_value_that_waits_again_is_not_ahead_of_what_a_slice_brings() -> None:
    replay(
        1,
        "deliver a 1 1 6; shed 0; attach; deliver a 1 1 6; detach; subscribe a latest; answer; attach; deliver a 1 1 6;"
        " detach; subscribe b all",
    )


def test_newest_value_that_waits_again_is_not_in_flight_beside_what_a_slice_brings() -> None:
    replay(
        4,
        "deliver a 1 4 6; shed 0; attach; detach; subscribe c latest; deliver c 1 1 400; subscribe a all; attach;"
        " answer",
    )


def test_newest_value_does_not_take_the_place_of_one_that_came_before_what_only_the_store_has() -> None:
    replay(
        1,
        "detach; deliver a 1 1 6; shed 0; subscribe a latest; deliver a 1 1 6; subscribe a all; deliver b 1 4 6;"
        " deliver a 1 1 6; subscribe a latest; attach; answer; deliver a 1 1 6",
    )


def test_message_that_was_sent_and_dropped_for_memory_still_counts_as_sent() -> None:
    replay(2, "deliver a 1 4 6; deliver a 0 2 6; deliver a 1 1 6; acknowledge; shed 207; answer; shed 0")


def test_newest_value_waits_too_when_qos_0_overtakes_what_only_the_store_has() -> None:
    replay(1, "deliver a 1 1 6; shed 0; deliver b 2 1 6; subscribe b latest; deliver b 2 1 6; deliver a 0 2 6")


def test_older_value_goes_before_what_a_slice_brings_of_its_topic() -> None:
    replay(
        1,
        "detach; deliver a 1 1 6; shed 0; subscribe b latest; deliver b 1 1 6; subscribe b all; deliver b 1 1 6;"
        " subscribe b latest",
    )


def test_what_is_over_the_bound_after_the_newest_values_went_is_read_from_the_store() -> None:
    config = Config(max_queued_messages=3, max_memory_messages=2, queue_qos0_offline=True)
    window = Window("w", config, Stats())
    window.keeps = True
    window.changes = Batch()
    window.deliver(Run([Message("a", b"", 1) for _ in range(6)], 0.0), Grant(1))
    window.deliver(Run([Message("b", b"", 0)], 0.0), Grant(0, policy=parse_policy("latest")))
    assert (window.queued, window.dropped) == (4, {DropReason.QUEUE_FULL: 3})  # two from memory, and the value
    assert [change.seq for change in window.changes if isinstance(change, Wanted)] == [2]


def test_a_newest_value_that_was_sent_before_an_older_message_counts_as_sent() -> None:
    window = Window("w", Config(), Stats())
    window.keeps = True
    window.changes = Batch()
    window.attach(Notes(), 5, 1)
    window.deliver(Run([Message("first", b"", 1)], 0.0), Grant(1))
    newest, every = Grant(1, policy=parse_policy("latest")), Grant(1)
    for topic, grant in (("a", newest), ("b", every), ("b", every), ("c", newest)):
        window.deliver(Run([Message(topic, b"", 1)], 0.0), grant)
    for packet_id in (2, 3, 4):
        window.on_puback(packet_id)
        window.pump(0.0)
    assert [(message.topic, seq) for message, _, seq in window.inflight.values()] == [("c", 5)]
    window.detach()
    assert window.queue is not None
    assert [(message.topic, seq) for message, _, seq in window.queue] == [("b", 4)]
    assert window.sent_seq == 5


def test_newest_value_waits_for_what_was_in_flight_and_is_only_in_the_store_now() -> None:
    window = Window("w", Config(max_inflight_bytes=MAX_INFLIGHT_BYTES), Stats())
    window.keeps = True
    window.changes = Batch()
    window.attach(Notes(), 5, 10)
    sent = Message("a", bytes(400), 1)
    window.deliver(Run([sent], 0.0), Grant(1))
    window.detach()
    window.shed(0)
    outbox = Notes()
    window.attach(outbox, 5, 10)
    window.resume(0.0)
    window.deliver(Run([Message("b", bytes(400), 1)], 0.0), Grant(1, policy=parse_policy("latest")))
    window.deliver(Run([Message("c", b"", 0)], 0.0), Grant(1))
    assert [packet.topic for packet in outbox.handed if isinstance(packet, Publish)] == ["c"]
    window.refill([(sent, Grant(1), 1)], 0.0)
    window.pump(0.0)
    assert [packet.topic for packet in outbox.handed if isinstance(packet, Publish)] == ["c", "a"]  # one fits
    window.on_puback(2)
    window.pump(0.0)
    assert [packet.topic for packet in outbox.handed if isinstance(packet, Publish)] == ["c", "a", "b"]
