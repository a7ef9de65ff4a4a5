"""Retained messages against a dict."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tidings.broker.core.message import Message
from tidings.broker.core.retained import NODE_BYTES, Retained
from tidings.broker.core.topics import matches

MAX_MESSAGES = 6
MAX_BYTES = 4_500
LEVELS = ("a", "b", "", "$SYS", "$x")
TOPICS = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from((*LEVELS, "+", "+")), min_size=1, max_size=4))
    if draw(st.booleans()):
        levels[-1] = "#"
    return "/".join(levels) or "a"


class RetainedModel(RuleBasedStateMachine):
    """A dict knows what each topic has; time stands still until told to move."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.retained = Retained(MAX_MESSAGES, MAX_BYTES)
        self.model: dict[str, Message] = {}

    @rule(topic=TOPICS, length=st.sampled_from([1, 1, 10, 600]), life_s=st.sampled_from([None, None, 1.0, 5.0]))
    def set(self, topic: str, length: int, life_s: float | None) -> None:
        message = Message(topic, b"x" * length, expires_at=None if life_s is None else self.now + life_s)
        after = self.model | {topic: message}
        fits = len(after) <= MAX_MESSAGES and weight(after) <= MAX_BYTES
        assert self.retained.set(message) is fits
        if fits:
            self.model = after

    @rule(topic=TOPICS)
    def set_empty(self, topic: str) -> None:
        assert self.retained.set(Message(topic)) is True
        self.model.pop(topic, None)

    @rule(topic=TOPICS)
    def remove(self, topic: str) -> None:
        assert self.retained.remove(topic) is (topic in self.model)
        self.model.pop(topic, None)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        gone = {topic for topic, message in self.model.items() if expired(message, self.now)}
        assert sorted(self.retained.sweep(self.now)) == sorted(gone)
        for topic in gone:
            del self.model[topic]

    @rule(filter=filters())
    def look_up(self, filter: str) -> None:
        found = list(self.retained.matching(filter, self.now))
        assert len(found) == len({id(message) for message in found})
        expected = {
            topic: message
            for topic, message in self.model.items()
            if matches(filter, topic) and not expired(message, self.now)
        }
        assert {message.topic: message for message in found} == expected

    @rule(topic=TOPICS)
    def get(self, topic: str) -> None:
        assert self.retained.get(topic) is self.model.get(topic)

    @invariant()
    def counts(self) -> None:
        assert len(self.retained) == len(self.model) <= MAX_MESSAGES
        assert self.retained.bytes == weight(self.model) <= MAX_BYTES
        assert {message.topic: message for message in self.retained} == self.model

    def teardown(self) -> None:
        for topic in list(self.model):
            self.retained.remove(topic)
        assert_empty(self.retained)


def weight(kept: dict[str, Message]) -> int:
    """Bytes of the messages and of every level of their topics."""
    nodes = {tuple(topic.split("/")[:depth]) for topic in kept for depth in range(1, topic.count("/") + 2)}
    return sum(message.size for message in kept.values()) + NODE_BYTES * len(nodes)


def expired(message: Message, now: float) -> bool:
    return message.expires_at is not None and message.expires_at <= now


def assert_empty(retained: Retained) -> None:
    assert (len(retained), retained.bytes, list(retained)) == (0, 0, [])
    assert not retained._root.children
    assert not retained._expiring
    assert retained.sweep(float("inf")) == []


RetainedModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRetainedModel = RetainedModel.TestCase


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_retained_model_for_long() -> None:
    run_state_machine_as_test(
        RetainedModel, settings=settings(max_examples=1_000, stateful_step_count=80, deadline=None)
    )


@given(st.sets(TOPICS, max_size=12), filters(), st.lists(st.tuples(st.integers(0, 12), TOPICS, st.booleans())))
@settings(deadline=None)
def test_a_search_finds_once_who_was_there_all_the_time(
    kept: set[str], filter: str, changes: list[tuple[int, str, bool]]
) -> None:
    retained = Retained(100, 100_000)
    for topic in kept:
        assert retained.set(Message(topic, b"x"))
    found: list[str] = []
    touched: set[str] = set()
    for step, message in enumerate(retained.search(filter)):
        if message is not None:
            found.append(message.topic)
        for at, topic, remove in changes:
            if at == step:
                touched.add(topic)
                if remove:
                    retained.remove(topic)
                else:
                    assert retained.set(Message(topic, b"y"))
    assert len(set(found)) == len(found) or touched
    assert {topic for topic in kept if matches(filter, topic)} - touched <= set(found)
    assert all(matches(filter, topic) for topic in found)


@given(st.dictionaries(TOPICS, st.binary(min_size=1, max_size=3), max_size=12), filters())
@settings(deadline=None)
def test_wildcards_find_what_looking_at_every_topic_finds(kept: dict[str, bytes], filter: str) -> None:
    retained = Retained(100, 100_000)
    for topic, payload in kept.items():
        assert retained.set(Message(topic, payload))
    found = {message.topic: message.payload for message in retained.matching(filter, 0.0)}
    assert found == {topic: payload for topic, payload in kept.items() if matches(filter, topic)}


def test_a_replacement_counts_once() -> None:
    retained = Retained(1, 1_300)
    for length in (1, 700, 3):
        assert retained.set(Message("t", b"x" * length))
    [kept] = retained
    assert (len(kept.payload), retained.bytes) == (3, weight({"t": kept}))


def test_what_does_not_fit_leaves_the_old_message() -> None:
    retained = Retained(10, 1_000)
    assert retained.set(Message("t", b"old"))
    assert not retained.set(Message("t", b"x" * 2_000))
    assert [message.payload for message in retained] == [b"old"]


def test_the_last_message_of_a_topic_decides_when_it_expires() -> None:
    retained = Retained(10, 10_000)
    retained.set(Message("t", b"1", expires_at=5.0))
    retained.set(Message("t", b"2"))
    assert retained.sweep(100.0) == []
    retained.set(Message("t", b"3", expires_at=200.0))
    assert [message.payload for message in retained.matching("#", 199.0)] == [b"3"]
    assert list(retained.matching("#", 200.0)) == []
    assert retained.sweep(200.0) == ["t"]
    assert_empty(retained)


def test_removing_an_inner_level_leaves_what_is_below_and_beside() -> None:
    retained = Retained(10, 10_000)
    for topic in ("a", "a/b", "a/b/c", "a/d"):
        retained.set(Message(topic, b"x"))
    retained.remove("a/b")
    assert {message.topic for message in retained.matching("#", 0.0)} == {"a", "a/b/c", "a/d"}
    retained.remove("a/b/c")
    assert {message.topic for message in retained.matching("a/#", 0.0)} == {"a", "a/d"}
    retained.remove("a")
    retained.remove("a/d")
    assert_empty(retained)


@pytest.mark.parametrize("topic", ["/".join("x" * 5_000), "/" * 5_000, "x" * 65_535])
def test_deep_and_long_topics_come_and_go(topic: str) -> None:
    retained = Retained(10, 10_000_000)
    assert retained.set(Message(topic, b"x"))
    assert [message.topic for message in retained.matching("#", 0.0)] == [topic]
    assert retained.remove(topic)
    assert_empty(retained)


def test_messages_come_in_the_order_in_which_their_topics_were_made() -> None:
    retained = Retained(100, 100_000)
    topics = [f"a/{number}" for number in range(20)]
    for topic in topics:
        retained.set(Message(topic, b"x"))
    assert [message.topic for message in retained.matching("a/+", 0.0)] == topics
