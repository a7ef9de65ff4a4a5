"""Topics against the obvious form of the rules: every filter looked at for every topic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tidings.broker import Config
from tidings.broker.core.message import Message, Run
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import (
    MAX_CACHED_TOPIC,
    NOT_AUTHORIZED,
    TOPIC_NAME_INVALID,
    Grant,
    Route,
    Share,
    Topics,
    check_filter,
    check_topic,
    matches,
    split_share,
)
from tidings.broker.core.window import Window
from tidings.broker.errors import ProtocolError

from .outbox import ListOutbox

CONFIG = Config(sys_interval_s=0, max_queued_messages=1_000)
LEVELS = ("a", "b", "", "$SYS", "$x")
TOPICS = st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4).map("/".join).filter(bool)
NAMES = ("g", "h")


@st.composite
def filters(draw: st.DrawFn) -> str:
    levels = draw(st.lists(st.sampled_from((*LEVELS, "+", "+")), min_size=1, max_size=4))
    if draw(st.integers(0, 3)) == 0:
        levels[-1] = "#"
    filter = "/".join(levels)
    if not filter:
        filter = "a"
    if draw(st.integers(0, 4)) == 0:
        return f"$share/{draw(st.sampled_from(NAMES))}/{filter}"
    return filter


GRANTS = st.builds(
    Grant,
    qos=st.integers(0, 2),
    no_local=st.just(False),
    retain_as_published=st.booleans(),
    identifiers=st.sampled_from([(), (1,), (2, 3)]),
)


def window(name: str) -> Window:
    return Window(name, CONFIG, Stats())


def summary(route: Route) -> tuple[dict[str, tuple[int, bool, bool, tuple[int, ...]]], set[tuple[str, str]]]:
    """What a route says, without the order in which it says it."""
    direct: dict[str, tuple[int, bool, bool, tuple[int, ...]]] = {}
    for grant, windows in route.groups:
        for each in windows:
            assert each.client_id not in direct, "a window twice in one route"
            direct[each.client_id] = (
                grant.qos,
                grant.no_local,
                grant.retain_as_published,
                tuple(sorted(grant.identifiers)),
            )
    shares = [(share.name, share.filter) for share in route.shares]
    assert len(shares) == len(set(shares))
    return direct, set(shares)


class TopicsModel(RuleBasedStateMachine):
    """Subscriptions come and go in any order; a dict knows who should receive what."""

    def __init__(self) -> None:
        super().__init__()
        self.topics = Topics(max_routes=8)
        self.windows = [window(name) for name in "pqr"]
        self.model: dict[tuple[str, str], Grant] = {}

    @rule(filter=filters(), who=st.integers(0, 2), grant=GRANTS)
    def subscribe(self, filter: str, who: int, grant: Grant) -> None:
        kept = self.topics.subscribe(filter, self.windows[who], grant)
        assert (kept.share is not None) == filter.startswith("$share/")
        self.model[filter, self.windows[who].client_id] = grant

    @rule(data=st.data())
    def unsubscribe(self, data: st.DataObject) -> None:
        if not self.model:
            return
        filter, name = data.draw(st.sampled_from(sorted(self.model)))
        del self.model[filter, name]
        self.topics.unsubscribe(filter, next(each for each in self.windows if each.client_id == name))

    @rule(topic=TOPICS)
    def match(self, topic: str) -> None:
        self.check(topic)
        self.check(topic)  # from the cache

    @invariant()
    def counts_every_subscription(self) -> None:
        assert self.topics.count == len(self.model)

    def check(self, topic: str) -> None:
        direct: dict[str, list[Grant]] = {}
        shares: set[tuple[str, str]] = set()
        for (filter, name), grant in self.model.items():
            group, inner = split_share(filter)
            if not matches(inner, topic):
                continue
            if group:
                shares.add((group, inner))
            else:
                direct.setdefault(name, []).append(grant)
        expected = {
            name: (
                max(grant.qos for grant in grants),
                False,
                any(grant.retain_as_published for grant in grants),
                tuple(sorted(identifier for grant in grants for identifier in grant.identifiers)),
            )
            for name, grants in direct.items()
        }
        found = self.topics.match(topic)
        assert summary(found) == (expected, shares)
        for share in found.shares:
            members = {name for (filter, name) in self.model if split_share(filter) == (share.name, share.filter)}
            assert {each.client_id for each in share.members} == members

    def teardown(self) -> None:
        for filter, name in list(self.model):
            self.topics.unsubscribe(filter, next(each for each in self.windows if each.client_id == name))
        assert self.topics.count == 0
        assert skeleton(self.topics) == skeleton(Topics(max_routes=8))


def skeleton(topics: Topics) -> object:
    """Everything that hangs on ``topics`` but its cache, to be compared."""
    root = topics._root
    return topics._exact, topics._shares, root.bare, topics.count


TopicsModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTopicsModel = TopicsModel.TestCase


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_topics_model_for_long() -> None:
    run_state_machine_as_test(TopicsModel, settings=settings(max_examples=1_000, stateful_step_count=80, deadline=None))


@given(st.lists(filters(), max_size=8), TOPICS)
@settings(deadline=None)
def test_tree_finds_what_looking_at_every_filter_finds(wanted: list[str], topic: str) -> None:
    topics = Topics(max_routes=100)
    windows = [window(str(number)) for number in range(len(wanted))]
    for filter, each in zip(wanted, windows, strict=True):
        topics.subscribe(filter, each, Grant())
    route = topics.match(topic)
    found = {each.client_id for _, group in route.groups for each in group}
    found |= {each.client_id for share in route.shares for each in share.members}
    inner = [split_share(filter)[1] for filter in wanted]
    assert found == {str(number) for number, filter in enumerate(inner) if matches(filter, topic)}


@pytest.mark.parametrize(
    ("filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/c", False),
        ("a/+", "a", False),
        ("a/+", "a/", True),
        ("+", "", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS", True),
        ("$SYS/+", "$SYS/x", True),
        ("a/+", "a/$x", True),
        ("a/#", "a/$x", True),
        ("A", "a", False),
    ],
)
def test_examples_of_the_standard(filter: str, topic: str, expected: bool) -> None:
    assert matches(filter, topic) is expected
    topics = Topics(max_routes=10)
    topics.subscribe(filter, window("w"), Grant())
    assert bool(topics.match(topic).groups) is expected


def test_overlapping_grants_become_one_with_the_highest_qos_and_every_identifier() -> None:
    topics = Topics(max_routes=10)
    one = window("w")
    topics.subscribe("a/b", one, Grant(qos=0, identifiers=(1,)))
    topics.subscribe("a/+", one, Grant(qos=2, identifiers=(2,)))
    topics.subscribe("a/#", one, Grant(qos=1, retain_as_published=True, identifiers=(3,)))
    [(grant, [receiver])] = topics.match("a/b").groups
    assert receiver is one
    assert (grant.qos, grant.retain_as_published, sorted(grant.identifiers)) == (2, True, [1, 2, 3])


def test_own_messages_take_the_grants_that_are_not_no_local() -> None:
    topics = Topics(max_routes=10)
    one = window("w")
    topics.subscribe("a", one, Grant(qos=2, no_local=True, identifiers=(1,)))
    [(alone, _)] = topics.match("a").groups
    assert (alone.no_local, alone.own) == (True, None)
    topics.subscribe("+", one, Grant(qos=0, identifiers=(2,)))
    topics.subscribe("#", one, Grant(qos=1, no_local=True, identifiers=(3,)))
    [(grant, _)] = topics.match("a").groups
    assert (grant.qos, sorted(grant.identifiers)) == (2, [1, 2, 3])
    assert grant.own is not None
    assert (grant.own.qos, grant.own.identifiers) == (0, (2,))


def test_receivers_with_the_same_grant_are_one_group() -> None:
    topics = Topics(max_routes=10)
    for number in range(5):
        topics.subscribe("a", window(str(number)), Grant(qos=number % 2))
    assert sorted((grant.qos, len(group)) for grant, group in topics.match("a").groups) == [(0, 3), (1, 2)]


@pytest.mark.parametrize("filter", ["a/b", "a/+", "a/#", "#", "$share/g/a/b", "$share/g/a/+"])
def test_cached_route_is_never_stale(filter: str) -> None:
    topics = Topics(max_routes=10)
    other, one = window("other"), window("one")
    topics.subscribe("a/b", other, Grant())
    for _ in range(2):
        topics.match("a/b")
    topics.subscribe(filter, one, Grant(qos=1))
    assert one in receivers(topics.match("a/b"))
    topics.subscribe(filter, one, Grant(qos=2))
    assert receivers(topics.match("a/b"))[one] == 2
    topics.unsubscribe(filter, one)
    assert receivers(topics.match("a/b")) == {other: 0}


def receivers(route: Route) -> dict[Window, int]:
    found = {each: grant.qos for grant, group in route.groups for each in group}
    return found | {each: grant.qos for share in route.shares for each, grant in share.members.items()}


def test_second_member_changes_who_a_cached_share_reaches() -> None:
    topics = Topics(max_routes=10)
    one, two = window("one"), window("two")
    topics.subscribe("$share/g/a", one, Grant())
    route = topics.match("a")
    topics.subscribe("$share/g/a", two, Grant())
    assert set(receivers(topics.match("a"))) == {one, two}
    assert topics.match("a") is route  # members are looked up when a message comes
    topics.unsubscribe("$share/g/a", one)
    assert set(receivers(topics.match("a"))) == {two}


def test_cache_is_bounded_in_routes_and_in_receivers() -> None:
    topics = Topics(max_routes=4)
    for number in range(200):
        topics.subscribe("#", window(str(number)), Grant())
    kept = [topics.match(f"t/{number}") for number in range(100)]
    again = [topics.match(f"t/{number}") for number in range(100)]
    alive = sum(one is other for one, other in zip(kept, again, strict=True))
    assert alive <= 4
    assert all(sum(len(group) for _, group in route.groups) == 200 for route in again)


def test_long_topic_is_not_remembered() -> None:
    topics = Topics(max_routes=10)
    topics.subscribe("#", window("w"), Grant())
    assert topics.match("x" * MAX_CACHED_TOPIC) is topics.match("x" * MAX_CACHED_TOPIC)
    assert topics.match("x" * (MAX_CACHED_TOPIC + 1)) is not topics.match("x" * (MAX_CACHED_TOPIC + 1))


@pytest.mark.parametrize("topic", ["$SYS/broker/uptime", "$share/g/a"])
def test_clients_may_not_publish_to_the_brokers_own_topics(topic: str) -> None:
    assert Topics(max_routes=4).match(topic).refusal == NOT_AUTHORIZED


def test_topics_of_too_many_levels_are_refused() -> None:
    topics = Topics(max_routes=4, max_levels=3)
    assert topics.match("a/b/c").refusal == 0
    assert topics.match("a/b/c/d").refusal == TOPIC_NAME_INVALID
    check_topic("a/b/c", 3)
    with pytest.raises(ProtocolError, match="more than 3 levels"):
        check_topic("a/b/c/d", 3)


@pytest.mark.parametrize(
    "filter",
    ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a",
     "$share/#", "$share/g#/a", "a/b/c/d/e"],
)  # fmt: skip
def test_illegal_filters_are_refused(filter: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        check_filter(filter, 4)
    assert caught.value.reason == 0x8F


@pytest.mark.parametrize("filter", ["/", "#", "+", "+/+", "a//b", "$share/g/#", "$share/g//", "$shared/g", "a/b/c/#"])
def test_legal_filters_are_taken(filter: str) -> None:
    check_filter(filter, 4)


# shared subscriptions


def share_of(*windows: Window) -> Share:
    topics = Topics(max_routes=4)
    for each in windows:
        topics.subscribe("$share/g/t", each, Grant(qos=1))
    [share] = topics.match("t").shares
    return share


def connected(name: str, limit: int = 100) -> Window:
    one = window(name)
    one.attach(ListOutbox(), 5, limit)
    return one


def choices(share: Share, count: int) -> list[str]:
    chosen = [share.choose("t", 0.0) for _ in range(count)]
    return [each[0].client_id for each in chosen if each is not None]


@pytest.mark.parametrize("members", [1, 2, 3, 7])
def test_members_who_can_all_take_a_message_get_equal_shares_in_turn(members: int) -> None:
    share = share_of(*(connected(str(number)) for number in range(members)))
    taken = choices(share, members * 5)
    assert {taken.count(str(number)) for number in range(members)} == {5}
    for start in range(0, len(taken), members):
        assert len(set(taken[start : start + members])) == members


def test_member_that_can_take_it_now_comes_before_one_that_cannot() -> None:
    slow, fast = connected("slow"), connected("fast")
    assert isinstance(slow.outbox, ListOutbox)
    slow.outbox.full = True
    assert set(choices(share_of(slow, fast), 10)) == {"fast"}


def test_member_with_a_full_window_waits_its_turn() -> None:
    narrow, wide = connected("narrow", limit=1), connected("wide")
    share = share_of(narrow, wide)
    for number in range(9):
        chosen = share.choose("t", 0.0)
        assert chosen is not None
        chosen[0].deliver(Run([Message("t", b"%d" % number, 1)], 0.0), chosen[1])
    assert (len(narrow.inflight), len(wide.inflight)) == (1, 8)


def test_ready_members_stay_equal_while_another_is_not_ready() -> None:
    slow = connected("slow")
    assert isinstance(slow.outbox, ListOutbox)
    slow.outbox.full = True
    share = share_of(connected("a"), slow, connected("b"), connected("c"))
    taken = choices(share, 30)
    assert {name: taken.count(name) for name in "abc"} == {"a": 10, "b": 10, "c": 10}


def test_if_nobody_can_take_it_now_the_least_loaded_gets_it() -> None:
    busy, idle = connected("busy"), connected("idle")
    for each, load in ((busy, 5), (idle, 2)):
        assert isinstance(each.outbox, ListOutbox)
        each.outbox.full = True
        each.deliver(Run([Message("t", b"", 1) for _ in range(load)], 0.0), Grant(qos=1))
    share = share_of(busy, idle)
    assert set(choices(share, 4)) == {"idle"}


def test_members_that_are_away_are_chosen_only_if_nobody_is_connected() -> None:
    away, here = window("away"), connected("here")
    away.keeps = True
    assert isinstance(here.outbox, ListOutbox)
    here.outbox.full = True
    here.deliver(Run([Message("t", b"", 1) for _ in range(50)], 0.0), Grant(qos=1))
    share = share_of(away, here)
    assert set(choices(share, 4)) == {"here"}
    here.detach()
    here.keeps = False
    assert set(choices(share, 4)) == {"away"}
    away.keeps = False
    assert share.choose("t", 0.0) is None


def test_subscriber_in_process_takes_part() -> None:
    inside, outside = window("inside"), connected("outside")
    inside.wake = lambda: None
    share = share_of(inside, outside)
    assert sorted(choices(share, 4)) == ["inside", "inside", "outside", "outside"]
    inside.deliver(Run([Message("t", b"")], 0.0), Grant())
    assert set(choices(share, 4)) == {"outside"}
