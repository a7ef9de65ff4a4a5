"""The histogram against the exact values and against HdrHistogram."""

import math

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.devices.histogram import Histogram

VALUES = st.lists(st.integers(0, 3_600_000_000), min_size=1, max_size=200)


def recorded(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(VALUES, st.sampled_from([0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_never_below_the_exact_one_and_within_a_bucket_of_it(values: list[int], percent: float) -> None:
    exact = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    found = recorded(values).percentile(percent)
    assert exact <= found <= exact * (1 + 1 / 128) + 1


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 3_600_000_000), min_size=1, max_size=20))
def test_it_agrees_with_hdr_histogram(values: list[int]) -> None:
    reference = HdrHistogram(1, 3_600_000_000, 3)
    for value in values:  # a hundred times each, so that both count the same number of values below a percentile
        reference.record_value(value, 100)
    mine = recorded(values * 100)
    for percent in (50.0, 90.0, 99.0):
        theirs = reference.get_value_at_percentile(percent)
        assert abs(mine.percentile(percent) - theirs) <= max(2, theirs / 100)


@given(VALUES, VALUES)
def test_merging_loses_nothing(one: list[int], other: list[int]) -> None:
    merged = recorded(one)
    merged.merge(recorded(other))
    both = recorded(one + other)
    assert merged.buckets == both.buckets
    assert (merged.count, merged.minimum, merged.maximum, merged.total) == (
        both.count,
        both.minimum,
        both.maximum,
        both.total,
    )


def test_an_empty_one_says_so() -> None:
    assert Histogram().summary_ms() is None
    assert Histogram().percentile(99) == 0
    merged = Histogram()
    merged.merge(Histogram())
    assert merged.count == 0


def test_the_summary_is_in_milliseconds() -> None:
    assert recorded([1000] * 99 + [5000]).summary_ms() == {
        "p50": 1.003,
        "p90": 1.003,
        "p99": 1.003,
        "p99.9": 5.0,
        "max": 5.0,
    }


def test_times_before_the_intended_one_count_as_zero() -> None:
    assert recorded([-5]).maximum == 0


def test_values_above_a_limit_are_counted() -> None:
    assert recorded([10, 20, 30_000, 40_000]).count_above(20) == 2
