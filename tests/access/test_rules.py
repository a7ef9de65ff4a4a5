"""The access file: who may do what, what decides, and what no trick gets around."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker import ConfigError
from tidings.broker.access.rules import Action, ClientRules, Decision, fits_pattern, overlap, parse_rules, read_rules
from tidings.broker.core.topics import matches
from tidings.broker.policy import covers

PUBLISH, SUBSCRIBE, RECEIVE = Action.PUBLISH, Action.SUBSCRIBE, Action.RECEIVE
FILE = """
# sensors
user sensor-*
    connect as %u
    connect as %u/spare
    allow publish     dev/%u/#
    allow subscribe   dev/%u/command

user alice
user bob
    deny  publish               plant/+/valve
    allow publish subscribe     plant/#
    deny  receive               plant/9/#

client display-?
    allow subscribe   plant/+/temp

anonymous
    allow subscribe   public/#

everybody
    deny  all         hidden/#
    allow subscribe   $SYS/broker/retained messages/count
"""


def decide(user: str, action: Action, topic: str, client_id: str = "x", text: str = FILE) -> Decision:
    return ClientRules(parse_rules(text, "access"), user, client_id).decide(action, topic)


@pytest.mark.parametrize(
    ("user", "action", "topic", "allowed", "line"),
    [
        ("sensor-7", PUBLISH, "dev/sensor-7/temp", True, 6),
        ("sensor-7", PUBLISH, "dev/sensor-7", True, 6),
        ("sensor-7", PUBLISH, "dev/sensor-8/temp", False, 0),
        ("sensor-7", SUBSCRIBE, "dev/sensor-7/command", True, 7),
        ("sensor-7", SUBSCRIBE, "$share/g/dev/sensor-7/command", True, 7),
        ("sensor-7", SUBSCRIBE, "dev/+/command", False, 0),
        ("sensor-7", SUBSCRIBE, "dev/#", False, 0),
        ("sensor-7", RECEIVE, "dev/sensor-7/command", True, 7),
        ("sensor-7", RECEIVE, "dev/sensor-8/command", False, 0),
        ("SENSOR-7", PUBLISH, "dev/SENSOR-7/temp", False, 0),
        ("alice", PUBLISH, "plant/1/valve", False, 11),
        ("bob", PUBLISH, "plant/1/pump", True, 12),
        ("alice", SUBSCRIBE, "plant/#", True, 12),
        ("alice", SUBSCRIBE, "#", False, 22),
        ("alice", RECEIVE, "plant/8/temp", True, 12),
        ("alice", RECEIVE, "plant/9/temp", False, 13),
        ("", SUBSCRIBE, "public/news", True, 19),
        ("carol", SUBSCRIBE, "public/news", False, 0),
        ("carol", SUBSCRIBE, "$SYS/broker/retained messages/count", True, 23),
        ("carol", SUBSCRIBE, "$SYS/#", False, 0),
        ("carol", PUBLISH, "hidden/x", False, 22),
    ],
)
def test_the_first_line_that_fits_decides(user: str, action: Action, topic: str, allowed: bool, line: int) -> None:
    decision = decide(user, action, topic)
    assert (decision.allowed, decision.rule.line if decision.rule else 0) == (allowed, line)


def test_lines_may_be_for_client_ids() -> None:
    assert decide("carol", SUBSCRIBE, "plant/1/temp", "display-1").allowed
    assert not decide("carol", SUBSCRIBE, "plant/1/temp", "display-10").allowed


def test_client_ids_are_bound_to_users_where_a_line_says_so() -> None:
    rules = parse_rules(FILE, "access")
    assert rules.may_be("sensor-7", "sensor-7")
    assert rules.may_be("sensor-7", "sensor-7/spare")
    assert not rules.may_be("sensor-7", "sensor-8")
    assert not rules.may_be("sensor-*", "sensor-8")  # what stands in a name stands for itself
    assert rules.may_be("alice", "anything")


DENYING = "everybody\n deny subscribe a/secret/#\n deny subscribe b/+/key\n allow subscribe #\n"


@pytest.mark.parametrize(
    "filter", ["#", "a/#", "a/+/#", "a/secret", "a/secret/x", "+/secret/#", "+/+", "b/+/+", "b/#", "+/1/key", "b/1/key"]
)
def test_a_wildcard_does_not_reach_around_a_line_that_denies(filter: str) -> None:
    assert not decide("u", SUBSCRIBE, filter, text=DENYING).allowed
    assert not decide("u", SUBSCRIBE, f"$share/g/{filter}", text=DENYING).allowed


@pytest.mark.parametrize("filter", ["a", "a/public/#", "b/+/key/x", "b/1", "c/#", "+", "+/1/2/3"])
def test_what_no_denied_topic_is_in_stays_allowed(filter: str) -> None:
    assert decide("u", SUBSCRIBE, filter, text=DENYING).allowed


TRICKS = ["+", "#", "a/b", "/", "+/x", "$SYS", "$share", "", "../a", "a/../b", "a#"]


@pytest.mark.parametrize("name", TRICKS)
@pytest.mark.parametrize("letter", ["u", "c"])
def test_a_name_that_is_more_than_a_word_stands_for_nothing(name: str, letter: str) -> None:
    text = f"everybody\n allow all dev/%{letter}/#\n allow all %{letter}/#\n allow all of-%{letter}\n"
    client = ClientRules(parse_rules(text, "access"), *((name, "x") if letter == "u" else ("x", name)))
    for topic in (f"dev/{name}/x", "dev/a/x", "dev/a/b/x", "$SYS/broker/uptime", "a/b", f"of-{name}", f"{name}/x"):
        for action in Action:
            assert not client.decide(action, topic).allowed, topic
    for filter in ("dev/+/#", "dev/#", "#", "$SYS/#", "+/#", "of-#"):
        assert not client.decide(SUBSCRIBE, filter).allowed


@pytest.mark.parametrize("name", TRICKS)
def test_and_does_not_get_around_a_line_that_denies(name: str) -> None:
    text = "everybody\n deny all secret/%c/key\n allow all secret/#\n"
    client = ClientRules(parse_rules(text, "access"), "u", name)
    for topic in (f"secret/{name}/key", "secret/a/b/key", "secret/x"):
        assert not client.decide(PUBLISH, topic).allowed
    assert not client.decide(SUBSCRIBE, "secret/#").allowed


def test_what_a_name_stands_for_is_not_read_again() -> None:
    text = "everybody\n allow publish a/%u/%c/100%%\n"
    assert decide("%c", PUBLISH, "a/%c/x/100%", text=text).allowed
    assert not decide("%c", PUBLISH, "a/x/x/100%", text=text).allowed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("permit all #", "expected allow, deny, connect as, user PATTERN, client PATTERN, anonymous or everybody, got"),
        ("allow", "expected publish, subscribe, receive or all"),
        ("allow read a", "expected publish, subscribe, receive or all, got 'read'"),
        ("allow publish", "expected a topic filter at the end of the line"),
        ("allow publish a/#/b", "# must be the last level in 'a/#/b'"),
        ("allow publish a+", "wildcard must fill its level"),
        ("allow publish a/+%u", "wildcard must fill its level"),
        ("allow publish a/%x", "%x stands for nothing: expected %u, %c, or %% for a percent sign"),
        ("allow publish 100%", "% stands for nothing"),
        ("allow subscribe $share/g/a", "expected the filter inside of $share/NAME/…"),
        ("user", "expected user PATTERN, where * and ? stand for any characters"),
        ("client", "expected client PATTERN"),
        ("anonymous x", "expected nothing after anonymous, got 'x'"),
        ("connect %u", "expected connect as PATTERN"),
        ("connect as", "expected connect as PATTERN"),
        ("connect as %c", "%c stands for nothing"),
    ],
)
def test_a_mistake_is_named_by_file_and_line(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules(f"everybody\n allow all a\n {line}\n", "access")
    assert str(caught.value).startswith("access:3: ")
    assert words in str(caught.value)


def test_all_mistakes_are_named_at_once_and_a_line_needs_somebody() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_rules("allow publish a\nnobody\n", "access")
    first, second = str(caught.value).splitlines()
    assert first.startswith("access:1: expected whom it is for in a line before it")
    assert second.startswith("access:2: ")


def test_the_file_is_text_that_only_its_owner_changes(tmp_path: Path) -> None:
    path = tmp_path / "access"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_rules(path)
    path.write_text(FILE)
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="others may change it; chmod go-w"):
        read_rules(path)
    path.chmod(0o644)
    assert len(read_rules(path)) == 11
    path.write_bytes(b"everybody\n# \xfc\n")
    with pytest.raises(ConfigError, match=r"access:2: expected UTF-8 text, got byte 0xfc"):
        read_rules(path)


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("*", "", True),
        ("a*", "abc", True),
        ("a?c", "abc", True),
        ("a?c", "ac", False),
        ("a.c", "abc", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("*\n", "a\n", True),
        ("a", "a\n", False),
        ("a", "A", False),
        ("a%u", "a%u", True),
    ],
)
def test_only_two_characters_of_a_pattern_stand_for_others(pattern: str, value: str, fits: bool) -> None:
    assert fits_pattern(pattern, value) is fits


WORDS = ["a", "b", "", "$s"]
TOPICS = ["/".join(levels) for length in (1, 2, 3) for levels in product(WORDS, repeat=length)]
FILTERS = st.builds(
    lambda levels, rest: "/".join([*levels[:-1], "#"] if rest else levels),
    st.lists(st.sampled_from([*WORDS, "+"]), min_size=1, max_size=3),
    st.booleans(),
)


@given(FILTERS, FILTERS)
def test_overlap_and_cover_are_what_topics_say(one: str, other: str) -> None:
    both = [topic for topic in TOPICS if matches(one, topic) and matches(other, topic)]
    assert overlap(one, other) is bool(both)
    assert overlap(other, one) is bool(both)
    if covers(one, other):
        assert all(matches(one, topic) for topic in TOPICS if matches(other, topic))
