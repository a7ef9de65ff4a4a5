"""Chapter 4.7: topic names and filters."""

import pytest

from tidings.broker.codec.packets import Publish

from .wire import VERSIONS, Wire

clause = pytest.mark.clause

# filter, topics that match, topics that do not
MATCHES = [
    ("sport/tennis/#", ["sport/tennis", "sport/tennis/player1", "sport/tennis/player1/ranking"], ["sport", "tennis"]),
    ("sport/#", ["sport", "sport/", "sport/a"], ["sports", "sportx/a"]),
    ("#", ["a", "/", "a/b/c", "/a"], ["$SYS/a", "$a", "$"]),
    ("sport/tennis/+", ["sport/tennis/player1", "sport/tennis/"], ["sport/tennis", "sport/tennis/player1/ranking"]),
    ("sport/+", ["sport/", "sport/x"], ["sport", "sport/x/y"]),
    ("+", ["finance", "x"], ["/finance", "finance/", "$SYS", "$"]),
    ("+/+", ["/finance", "finance/", "a/b", "/"], ["finance", "a/b/c", "$a/b"]),
    ("/+", ["/finance", "/"], ["finance", "/a/b"]),
    ("+/tennis/#", ["a/tennis", "a/tennis/b/c", "/tennis"], ["tennis", "a/b/tennis", "$a/tennis"]),
    ("+/monitor/Clients", ["a/monitor/Clients"], ["$SYS/monitor/Clients"]),
    ("$a/#", ["$a", "$a/b"], ["a", "a/b"]),
    ("$a/+/c", ["$a/b/c"], ["a/b/c", "$a/b"]),
    ("a/$b/+", ["a/$b/c"], ["a/b/c"]),
    ("a/+/$c", ["a/b/$c", "a/$b/$c"], ["a/b/c"]),
    ("+/$b", ["a/$b"], ["$a/$b"]),
]  # fmt: skip

BAD_FILTERS = [
    pytest.param("sport/tennis#", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="# in a level"),
    pytest.param("sport/#/ranking", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="# not last"),
    pytest.param("#/a", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="# first of two"),
    pytest.param("#a", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="# before text"),
    pytest.param("##", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="two #"),
    pytest.param("a/#/#", marks=clause("3.1.1 MQTT-4.7.1-2", "5.0 MQTT-4.7.1-1"), id="# twice"),
    pytest.param("sport+", marks=clause("3.1.1 MQTT-4.7.1-3", "5.0 MQTT-4.7.1-2"), id="+ after text"),
    pytest.param("+sport", marks=clause("3.1.1 MQTT-4.7.1-3", "5.0 MQTT-4.7.1-2"), id="+ before text"),
    pytest.param("a/b+/c", marks=clause("3.1.1 MQTT-4.7.1-3", "5.0 MQTT-4.7.1-2"), id="+ in a middle level"),
    pytest.param("++", marks=clause("3.1.1 MQTT-4.7.1-3", "5.0 MQTT-4.7.1-2"), id="two +"),
    pytest.param("a/+#", marks=clause("3.1.1 MQTT-4.7.1-3", "5.0 MQTT-4.7.1-2"), id="+ and # in a level"),
]


@clause(
    "3.1.1 MQTT-4.7.1-2", "3.1.1 MQTT-4.7.1-3", "3.1.1 MQTT-4.7.2-1", "3.1.1 MQTT-3.3.2-3",
    "5.0 MQTT-4.7.1-1", "5.0 MQTT-4.7.1-2", "5.0 MQTT-4.7.2-1", "5.0 MQTT-3.3.2-3",
)  # fmt: skip
@pytest.mark.parametrize(("filter", "matching", "others"), MATCHES, ids=[row[0] for row in MATCHES])
@VERSIONS
def test_filter_matches_these_topics_and_not_those(
    wire: Wire, version: int, filter: str, matching: list[str], others: list[str]
) -> None:
    client = wire.connect("a", version)
    assert client.subscribe(filter) == 0
    publisher = wire.connect("b")
    for topic in matching + others:
        if not topic.startswith("$SYS"):
            publisher.publish(topic, b"x")
    assert [message.topic for message in client.messages()] == matching


@pytest.mark.parametrize("filter", BAD_FILTERS)
@VERSIONS
def test_illegal_filter_is_refused(wire: Wire, version: int, filter: str) -> None:
    client = wire.connect("a", version)
    client.send(f"82 L 0001 {'' if version < 5 else '00'} s:{filter} 00")
    if client.closed:
        client.assert_dropped(0x81, 0x82, 0x8F)
    else:
        (suback,) = client.receive()
        assert suback.reasons == [0x80 if version < 5 else 0x8F]  # type: ignore[union-attr]


@clause("3.1.1 MQTT-4.7.2-1", "5.0 MQTT-4.7.2-1")
@VERSIONS
def test_wildcards_at_the_start_do_not_match_the_servers_own_topics(version: int) -> None:
    wire = Wire(sys_interval_s=10)
    client = wire.connect("a", version)
    for filter in ("#", "+/broker/version", "+/#"):
        client.subscribe(filter)
    wire.advance(20)
    assert client.receive() == []
    client.subscribe("$SYS/broker/version")
    assert client.expect(Publish).topic == "$SYS/broker/version"


@clause("3.1.1 MQTT-4.7.3-1", "5.0 MQTT-4.7.3-1")
@pytest.mark.parametrize("topic", ["a", "/", " ", "é", "\U0001f600"])
@VERSIONS
def test_one_character_is_enough(wire: Wire, version: int, topic: str) -> None:
    client = wire.connect("a", version)
    client.subscribe(topic)
    client.publish(topic, b"x")
    assert client.expect(Publish).topic == topic


@clause("3.1.1 MQTT-4.7.3-3", "5.0 MQTT-4.7.3-3")
@pytest.mark.parametrize("topic", ["x" * 65_535, "é" * 32_767 + "x"], ids=["ASCII", "two-byte characters"])
@VERSIONS
def test_topic_of_65535_bytes_works(wire: Wire, version: int, topic: str) -> None:
    client = wire.connect("a", version)
    assert client.subscribe(topic) == 0
    client.publish(topic, b"x")
    assert client.expect(Publish).topic == topic


@clause("3.1.1 MQTT-4.7.3-4", "5.0 MQTT-4.7.3-4")
@pytest.mark.parametrize(
    ("filter", "topic"),
    [
        pytest.param("ACCOUNTS", "Accounts", id="case"),
        pytest.param("/finance", "finance", id="leading separator"),
        pytest.param("finance/", "finance", id="trailing separator"),
        pytest.param("a//b", "a/b", id="empty level"),
        pytest.param("a b", "a  b", id="spaces"),
        pytest.param("caf\u00e9", "cafe\u0301", id="composed and decomposed"),
        pytest.param("\ufb01", "fi", id="ligature"),
        pytest.param("a\u200bb", "ab", id="zero width space"),
        pytest.param("K", "\u212a", id="Kelvin sign"),
        pytest.param("a/./b", "a/b", id="dot"),
        pytest.param("a%20b", "a b", id="percent"),
    ],
)
@VERSIONS
def test_topics_are_compared_as_they_are(wire: Wire, version: int, filter: str, topic: str) -> None:
    client = wire.connect("a", version)
    client.subscribe(filter)
    client.publish(topic, b"other")
    client.publish(filter, b"same")
    message = client.expect(Publish)
    assert (message.topic, message.payload) == (filter, b"same")


@clause("3.1.1 MQTT-4.7.3-4", "5.0 MQTT-4.7.3-4", "5.0 MQTT-1.5.4-1", "3.1.1 MQTT-1.5.3-1")
@pytest.mark.parametrize("character", ["\ue000", "\ufffd", "\u2028", "\U00010000", "\U0010fffd", "\u0378"])
@VERSIONS
def test_unusual_characters_pass_unchanged(wire: Wire, version: int, character: str) -> None:
    client = wire.connect("a", version)
    client.subscribe(f"x{character}/+")
    client.publish(f"x{character}/y{character}", b"x")
    assert client.expect(Publish).topic == f"x{character}/y{character}"
