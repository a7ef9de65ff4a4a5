"""Ranges of numbers against a plain set."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tidings.devices.intervals import Intervals

NUMBERS = st.lists(st.integers(0, 60), max_size=60)


def build(numbers: list[int]) -> Intervals:
    intervals = Intervals()
    for number in numbers:
        intervals.add(number)
    return intervals


def numbers_of(intervals: Intervals) -> set[int]:
    return {n for low, high in intervals.ranges() for n in range(low, high + 1)}


@given(NUMBERS)
def test_it_holds_what_was_added_once_in_the_fewest_ranges(numbers: list[int]) -> None:
    intervals, plain = Intervals(), set[int]()
    for number in numbers:
        assert intervals.add(number) is (number not in plain)
        plain.add(number)
        assert len(intervals) == len(plain)
    assert numbers_of(intervals) == plain
    assert all((n in intervals) is (n in plain) for n in range(62))
    ranges = list(intervals.ranges())
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(ranges))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20))
def test_ranges_are_added_like_their_numbers(pairs: list[tuple[int, int]]) -> None:
    intervals = Intervals(pairs)
    plain = {n for low, high in pairs for n in range(low, high + 1)}
    assert numbers_of(intervals) == plain
    assert len(intervals) == len(plain)


@given(NUMBERS, NUMBERS)
def test_sets_are_combined_as_sets_are(one: list[int], other: list[int]) -> None:
    left, right = build(one), build(other)
    assert numbers_of(left.union(right)) == set(one) | set(other)
    assert numbers_of(left.difference(right)) == set(one) - set(other)
    assert len(left.difference(right)) == len(set(one) - set(other))
    assert numbers_of(left.intersection(right)) == set(one) & set(other)
    assert (left == right) is (set(one) == set(other))
