"""Delivery policies as text, merged, chosen and kept, and what a SUBSCRIBE is answered."""

import re
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tidings.broker import Config
from tidings.broker.codec.packets import MQTT_5_0, Connect, Disconnect, Publish, Suback, Subscribe, SubscribeFilter
from tidings.broker.codec.properties import Properties
from tidings.broker.config import PolicyRule
from tidings.broker.core.engine import Engine
from tidings.broker.core.message import Message, Run
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant, matches
from tidings.broker.core.window import DropReason, Window
from tidings.broker.errors import ProtocolError
from tidings.broker.policy import Overflow, Policy, choose, covers, merged, parse_policy
from tidings.broker.store.rows import decode_grant, encode_grant

from .outbox import ListOutbox

policies = st.builds(
    Policy,
    st.one_of(st.none(), st.just(0.0), st.sampled_from([0.2, 1.0, 4.0])),
    tell_missed=st.booleans(),
) | st.builds(Policy, overflow=st.sampled_from([None, *Overflow]), tell_missed=st.booleans())


@given(policies)
def test_a_policy_reads_back_as_it_was_written(policy: Policy) -> None:
    assert (parse_policy(str(policy)) or Policy()) == policy


@given(policies)
def test_a_store_keeps_the_policy_of_a_grant(policy: Policy) -> None:
    grant = Grant(1, policy=None if policy == Policy() else policy)
    assert decode_grant(encode_grant(grant)) == grant


def test_plain_all_is_no_policy() -> None:
    assert parse_policy("all") is None
    assert parse_policy(" sample=4 ;  tell-missed") == Policy(0.25, tell_missed=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not one of: all, latest"),
        ("newest", "'newest' is not one of"),
        ("sample", "not one of"),
        ("sample=fast", "messages a second, from 0.001 to 1000"),
        ("sample=0", "messages a second"),
        ("sample=nan", "messages a second"),
        ("sample=1e9", "messages a second"),
        ("latest; overflow=drop-oldest", "overflow belongs to the policy all"),
        ("all; overflow=drop", "drop-newest, drop-oldest, disconnect, spill"),
        ("all; overflow=spill; overflow=spill", "expected all, latest or sample"),
        ("latest; please", "'please' after latest"),
    ],
)
def test_a_wrong_policy_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_policy(text)


def test_of_overlapping_subscriptions_the_policy_that_skips_least_holds() -> None:
    texts = ["all; overflow=spill", "all; overflow=disconnect", "all", "all; overflow=drop-oldest"]
    texts += ["all; overflow=drop-newest", "latest", "sample=5", "sample=0.1"]
    for (at, one), (other_at, other) in permutations(enumerate(texts), 2):
        assert merged(parse_policy(one), parse_policy(other)) == parse_policy(texts[min(at, other_at)])
    assert merged(parse_policy("latest; tell-missed"), None) == Policy(tell_missed=True)


def test_merged_grants_have_the_merged_policy() -> None:
    latest, sample = parse_policy("latest"), parse_policy("sample=1")
    assert Grant(policy=latest).merged(Grant(policy=sample)).policy == latest
    assert Grant(policy=latest).merged(Grant()).policy is None


level = st.sampled_from(["a", "b", "+"])
filters = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]),
    st.lists(level, min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
)
topics = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map("/".join)


@given(filters, filters, topics)
def test_a_filter_that_covers_another_matches_all_that_it_matches(wide: str, narrow: str, topic: str) -> None:
    if covers(wide, narrow) and matches(narrow, topic):
        assert matches(wide, topic)


def test_the_first_rule_that_fits_decides_unless_the_client_asks() -> None:
    rules = [
        PolicyRule(filter="dash/#", client_id="phone-*", policy="sample=1"),
        PolicyRule(filter="dash/#", user="ann", policy="all; overflow=drop-newest"),
        PolicyRule(filter="dash/#", policy="latest"),
    ]

    def chosen(filter: str, client_id: str, user: str, asked: str | None = None) -> str:
        properties = [] if asked is None else [("tidings-policy", asked)]
        return str(choose(properties, rules, filter, client_id, user, False) or "all")

    assert chosen("dash/+/x", "phone-7", "ann") == "sample=1"
    assert chosen("dash/a", "pc", "ann") == "all; overflow=drop-newest"
    assert chosen("dash/a", "pc", "bob") == "latest"
    assert chosen("dash/a", "pc", "bob", "all") == "all"
    assert chosen("cmd/#", "phone-7", "ann") == "all"
    assert chosen("$share/g/dash/a", "pc", "") == "all"
    assert chosen("$SYS/#", "pc", "") == "all"


@pytest.mark.parametrize(
    ("filter", "asked"),
    [("a", ["latest", "latest"]), ("a", ["no"]), ("$share/g/a", ["latest"]), ("a", ["all; overflow=spill"])],
)
def test_what_cannot_be_had_is_refused_with_0x83(filter: str, asked: list[str]) -> None:
    with pytest.raises(ProtocolError) as error:
        choose([("tidings-policy", one) for one in asked], [], filter, "c", "", False)
    assert error.value.reason == 0x83


def test_a_rule_that_cannot_work_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ValidationError, match="not one of"):
        PolicyRule(policy="newest")
    with pytest.raises(ValidationError, match="shared subscription"):
        PolicyRule(filter="$share/g/#", policy="latest")


class Client:
    def __init__(self, engine: Engine, client_id: str, properties: Properties | None = None) -> None:
        self.engine = engine
        self.outbox = ListOutbox()
        self.connection = engine.connect(self.outbox, "peer", 0.0)
        self.send(Connect(client_id, MQTT_5_0, properties=properties or {}))
        self.outbox.packets()

    def send(self, *packets: object) -> None:
        self.engine.handle(self.connection, packets, 0.0)  # type: ignore[arg-type]

    def subscribe(self, filter: str, policy: str, qos: int = 0) -> Suback:
        properties: Properties = {"user_property": [("tidings-policy", policy)]}
        self.send(Subscribe(1, [SubscribeFilter(filter, qos)], properties))
        suback = self.outbox.packets()[0]
        assert isinstance(suback, Suback)
        return suback

    def published(self) -> list[str]:
        return [packet.payload.decode() for packet in self.outbox.packets() if isinstance(packet, Publish)]


def engine(**options: object) -> Engine:
    return Engine(Config.model_validate({"sys_interval_s": 0, **options}), 0.0, lambda: "x")


def test_a_wrong_policy_fails_its_subscription_with_a_reason_string() -> None:
    client = Client(engine(), "c")
    suback = client.subscribe("a", "newest")
    assert suback.reasons == [0x83]
    assert "newest" in suback.properties["reason_string"]
    assert client.subscribe("a", "latest").reasons == [0]


def test_a_client_that_lags_gets_the_newest_of_each_topic_and_is_told_what_it_missed() -> None:
    broker = engine()
    slow, publisher = Client(broker, "slow"), Client(broker, "p")
    slow.subscribe("#", "latest; tell-missed")
    slow.outbox.full = True
    for number in range(5):
        publisher.send(Publish("a", b"a%d" % number), Publish("b", b"b%d" % number))
    slow.outbox.full = False
    broker.writable(slow.connection, 0.0)
    first, second = (packet for packet in slow.outbox.packets() if isinstance(packet, Publish))
    assert (first.payload, second.payload) == (b"a4", b"b4")
    assert first.properties == {"user_property": [("tidings-missed", "8")]}
    assert second.properties == {}
    assert broker.stats.dropped == {DropReason.CONFLATED: 8}


def test_a_client_of_an_older_version_gets_the_policy_of_the_configuration() -> None:
    broker = engine(policies=[{"filter": "#", "client_id": "old", "policy": "latest"}])
    outbox = ListOutbox(4)
    old = broker.connect(outbox, "peer", 0.0)
    broker.handle(old, [Connect("old", 4), Subscribe(1, [SubscribeFilter("#", 0)])], 0.0)
    outbox.packets()
    outbox.full = True
    Client(broker, "p").send(Publish("a", b"1"), Publish("a", b"2"))
    outbox.full = False
    broker.writable(old, 0.0)
    assert [packet.payload for packet in outbox.packets() if isinstance(packet, Publish)] == [b"2"]


def test_disconnect_cuts_a_client_off_and_keeps_its_session() -> None:
    broker = engine(max_queued_messages=3)
    client, publisher = Client(broker, "c", {"session_expiry_interval": 60}), Client(broker, "p")
    client.subscribe("a", "all; overflow=disconnect", 1)
    client.outbox.full = True
    for number in range(4):
        publisher.send(Publish("a", b"%d" % number, 1, packet_id=number + 1))
    goodbye = client.outbox.packets()[-1]
    assert isinstance(goodbye, Disconnect)
    assert goodbye.reason == 0x97
    assert client.outbox.closed
    session = broker.sessions["c"]
    assert session.connection is None
    assert session.window.queued == 3
    assert broker.stats.cut_off == {0x97: 1}


def test_a_snapshot_names_the_sessions_with_most_waiting_and_why_they_lost_messages() -> None:
    broker = engine(max_queued_messages=2)
    client, publisher = Client(broker, "c", {"session_expiry_interval": 60}), Client(broker, "p")
    client.subscribe("a", "all; overflow=drop-newest", 1)
    client.outbox.full = True
    for number in range(5):
        publisher.send(Publish("a", b"%d" % number, 1, packet_id=number + 1))
    (numbers,) = broker.snapshot(0.0).heaviest
    assert (numbers.client_id, numbers.queued_messages, numbers.dropped) == ("c", 2, {DropReason.QUEUE_FULL: 3})
    client.outbox.full = False
    broker.writable(client.connection, 0.0)
    assert client.published() == ["0", "1"]


def window() -> tuple[Window, ListOutbox]:
    outbox = ListOutbox()
    subject = Window("w", Config(), Stats())
    subject.attach(outbox, 5, 100)
    return subject, outbox


def sent(outbox: ListOutbox) -> list[str]:
    return [packet.payload.decode() for packet in outbox.packets() if isinstance(packet, Publish)]


def deliver(subject: Window, topic: str, payload: str, policy: str, now: float = 0.0) -> None:
    subject.deliver(Run([Message(topic, payload.encode())], now), Grant(policy=parse_policy(policy)))


def test_of_a_sampled_topic_the_newest_is_sent_when_its_slot_comes() -> None:
    subject, outbox = window()
    for tenth in range(25):
        subject.budget.deadlines.run(tenth / 10)
        deliver(subject, "a", str(tenth), "sample=1", tenth / 10)
    assert sent(outbox) == ["0", "9", "19"]
    deadlines = subject.budget.deadlines
    due = deadlines.next()
    assert due == pytest.approx(3.0)
    deadlines.run(3.0)
    assert sent(outbox) == ["24"]
    assert subject.dropped == {DropReason.SAMPLED: 21}


def test_of_the_newest_no_more_is_handed_over_than_the_outbox_wants() -> None:
    """What is under way cannot be replaced any more."""

    class Short(ListOutbox):
        def send(self, data: bytes) -> None:
            super().send(data)
            self.full = sum(map(len, self.sent)) >= 4_096

    subject, outbox = Window("w", Config(), Stats()), Short()
    subject.attach(outbox, 5, 100)
    outbox.full = True
    for number in range(50):
        deliver(subject, str(number), "x" * 1_000, "latest")
    outbox.full = False
    subject.pump(0.0)
    assert len(sent(outbox)) == 5
    assert subject.queued == 45


def test_a_topic_that_changes_from_all_to_latest_keeps_its_order() -> None:
    subject, outbox = window()
    outbox.full = True
    for number in range(3):
        deliver(subject, "a", f"all {number}", "all")
    subject.regroup()
    for number in range(3):
        deliver(subject, "a", f"latest {number}", "latest")
    outbox.full = False
    subject.pump(0.0)
    assert sent(outbox) == ["all 0", "all 1", "all 2", "latest 2"]


def test_a_change_of_subscriptions_leaves_topics_in_their_turn() -> None:
    subject, outbox = window()
    outbox.full = True
    for topic, payload in (("a", "a 1"), ("b", "b 1"), ("c", "c 1"), ("a", "a 2")):
        deliver(subject, topic, payload, "latest")
    subject.regroup()
    outbox.full = False
    subject.pump(0.0)
    assert sent(outbox) == ["a 2", "b 1", "c 1"]


def test_a_queue_and_the_newest_of_other_topics_take_turns() -> None:
    subject, outbox = window()
    outbox.full = True
    deliver(subject, "a", "a", "latest")
    deliver(subject, "b", "b", "latest")
    for number in range(3):
        deliver(subject, "c", str(number), "all")
    outbox.full = False
    subject.pump(0.0)
    assert sent(outbox) == ["a", "0", "b", "1", "2"]


def test_what_is_too_much_of_the_newest_goes_before_anything_of_other_policies() -> None:
    subject, outbox = Window("w", Config(max_queued_bytes=5_000), Stats()), ListOutbox()
    subject.attach(outbox, 5, 100)
    outbox.full = True
    for number in range(10):
        deliver(subject, "all", str(number), "all")
    deliver(subject, "a", "1", "latest")
    deliver(subject, "b", "1", "latest")
    deliver(subject, "b", "2" * 2_600, "latest")
    assert subject.dropped == {DropReason.CONFLATED: 1, DropReason.QUEUE_FULL: 1}
    outbox.full = False
    subject.pump(0.0)
    assert sent(outbox) == [*map(str, range(10)), "2" * 2_600]


def test_the_numbers_are_in_sys() -> None:
    broker = engine(sys_interval_s=10)
    slow, publisher = Client(broker, "slow"), Client(broker, "p")
    slow.subscribe("a", "latest")
    slow.outbox.full = True
    publisher.send(Publish("a", b"1"), Publish("a", b"2"))
    broker.tick(10.0)
    topics = {message.topic: message.payload.decode() for message in broker.retained.matching("$SYS/#", 10.0)}
    assert topics["$SYS/tidings/dropped/conflated"] == "1"
    assert topics["$SYS/broker/publish/messages/dropped"] == "0"
    assert int(topics["$SYS/tidings/memory/bytes"]) > 0
