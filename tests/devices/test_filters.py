"""Topic filters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.devices.filters import filter_error, matches, overlap, topic_error

LEVELS = st.sampled_from(["a", "b", ""])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.sampled_from(["a", "b", "+", ""]), min_size=0, max_size=3),
    st.sampled_from([["#"], ["a"], ["+"]]),
)


@pytest.mark.clause("5.0 MQTT-4.7.2-1", "3.1.1 MQTT-4.7.2-1")
@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("+", "", True),
        ("+/+", "/b", True),
    ],
)
def test_a_filter_matches_as_the_specification_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


@given(FILTERS, FILTERS, TOPICS)
def test_filters_that_match_one_topic_overlap(one: str, other: str, topic: str) -> None:
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


@given(FILTERS, FILTERS)
def test_filters_that_overlap_match_one_topic(one: str, other: str) -> None:
    levels = max(one.count("/"), other.count("/")) + 2
    candidates = [""]
    for _ in range(levels):
        candidates += [f"{c}/{x}" if c else x for c in candidates for x in ("a", "b") if c.count("/") < levels]
    topics = {c for c in candidates if c} | {f"/{c}" for c in candidates} | {c.replace("b", "") for c in candidates}
    if not overlap(one, other):
        assert not any(matches(one, topic) and matches(other, topic) for topic in topics)


@pytest.mark.parametrize("wrong", ["", "a/#/b", "a#", "#a", "a/b+", "+a/b", "a\x00", "x" * 65536])
def test_what_is_no_filter_is_explained(wrong: str) -> None:
    assert filter_error(wrong)


@pytest.mark.parametrize("wrong", ["", "a/+", "#", "\x00", "é" * 40000])
def test_what_is_no_topic_is_explained(wrong: str) -> None:
    assert topic_error(wrong)


def test_what_is_one_is_not_explained() -> None:
    assert filter_error("+/a/#") is None
    assert topic_error("a/$b") is None
