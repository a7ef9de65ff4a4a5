"""Waveforms: functions of (seed, device, name, time), inside their bounds."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tidings.devices.streams import gauss, stream_key, uniform
from tidings.devices.waves import Measurement, Source, Value, is_number

ADAPTER: TypeAdapter[Measurement] = TypeAdapter(Measurement)

KINDS: list[dict[str, Any]] = [
    {"wave": "constant", "value": 5},
    {"wave": "sine", "low": -2, "high": 3, "period": "10s"},
    {"wave": "square", "low": -2, "high": 3, "period": "10s", "duty": 0.25},
    {"wave": "sawtooth", "low": -2, "high": 3, "period": "10s"},
    {"wave": "triangle", "low": -2, "high": 3, "period": "10s"},
    {"wave": "daily", "low": -2, "high": 3},
    {"wave": "noise", "low": -2, "high": 3},
    {"wave": "walk", "low": -2, "high": 3, "step": 0.7},
    {"wave": "counter", "rate": 2.5, "start": 10},
    {"wave": "choice", "values": ["a", "b", "c"]},
]

RANDOM = [kind for kind in KINDS if kind["wave"] not in ("constant", "counter", "daily")]


def source(kind: dict[str, Any], device: str = "d-1", seed: int = 1, epoch: float = 0.0) -> Source:
    return Source("m", ADAPTER.validate_python(kind), seed, device, epoch)


def values(kind: dict[str, Any], count: int = 200, step: float = 0.31, **options: Any) -> list[Value]:
    one = source(kind, **options)
    return [one.at(index * step) for index in range(count)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind["wave"]))
@given(times=st.lists(st.floats(0, 500), min_size=1, max_size=10))
def test_a_value_depends_on_its_time_and_not_on_what_was_asked_before(kind: dict[str, Any], times: list[float]) -> None:
    asked = source(kind)
    assert [asked.at(time) for time in times] == [source(kind).at(time) for time in times]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "low" in kind], ids=lambda kind: str(kind["wave"]))
def test_a_wave_stays_in_its_range_and_reaches_most_of_it(kind: dict[str, Any]) -> None:
    step = 1800.0 if kind["wave"] == "daily" else 0.31
    found = [float(value) for value in values(kind, 500, step)]
    assert -2 <= min(found) <= -1.2
    assert 2.2 <= max(found) <= 3


@pytest.mark.parametrize("kind", RANDOM, ids=lambda kind: str(kind["wave"]))
def test_devices_and_seeds_differ(kind: dict[str, Any]) -> None:
    assert values(kind) != values(kind, device="d-2")
    assert values(kind) != values(kind, seed=2)


def test_shapes() -> None:
    base = {"low": 0, "high": 1, "period": 10, "phase": 0}
    assert [source({"wave": "sine", **base}).at(t) for t in (0, 2.5, 7.5)] == [0.5, 1.0, 0.0]
    assert [source({"wave": "square", **base, "duty": 0.3}).at(t) for t in (0, 2.9, 3.1, 9.9, 10)] == [1, 1, 0, 0, 1]
    assert [source({"wave": "sawtooth", **base}).at(t) for t in (0, 5, 9, 10)] == [0, 0.5, 0.9, 0]
    assert [source({"wave": "triangle", **base}).at(t) for t in (0, 2.5, 5, 7.5)] == [0, 0.5, 1, 0.5]


def test_a_day_is_warmest_at_its_peak_hour_of_the_scenarios_time() -> None:
    day = source({"wave": "daily", "low": 10, "high": 20, "peak_hour": 15}, epoch=6 * 3600.0)
    assert day.at(9 * 3600) == 20
    assert day.at(21 * 3600) == 10


def test_a_counter_only_goes_up_in_whole_numbers() -> None:
    found = values({"wave": "counter", "rate": 0.7, "start": 100})
    assert found[0] == 100
    assert all(isinstance(value, int) for value in found)
    assert all(float(b) >= float(a) for a, b in pairwise(found))
    assert found[-1] == 100 + int(0.7 * 199 * 0.31)


def test_a_choice_holds_and_follows_its_weights() -> None:
    held = values({"wave": "choice", "values": [True, False], "hold": "5s"}, 1000, 1.0)
    changes = [index for index in range(1, 1000) if held[index] != held[index - 1]]
    assert changes
    assert all(index % 5 == 0 for index in changes)
    weighed = values({"wave": "choice", "values": ["often", "never", "seldom"], "weights": [9, 0, 1]}, 1000)
    assert weighed.count("never") == 0
    assert 50 < weighed.count("seldom") < 200


def test_noise_is_normal_and_bounds_are_kept() -> None:
    found = [
        float(v) for v in values({"wave": "sine", "low": 5, "high": 5, "period": 1, "noise": 1, "precision": 6}, 3000)
    ]
    mean = sum(found) / len(found)
    deviation = (sum((value - mean) ** 2 for value in found) / len(found)) ** 0.5
    assert abs(mean - 5) < 0.1
    assert abs(deviation - 1) < 0.1
    bounded = values({"wave": "noise", "low": 0, "high": 10, "min": 3, "max": 4, "precision": 0})
    assert set(bounded) == {3, 4}
    assert all(isinstance(value, int) for value in bounded)


def test_precision_is_that_of_the_json() -> None:
    text = json.dumps(values({"wave": "noise", "low": 0, "high": 10, "precision": 1}))
    assert all(len(number.partition(".")[2]) == 1 for number in text.strip("[]").split(", "))


@pytest.mark.parametrize(
    "wrong",
    [
        {"wave": "sine", "low": 3, "high": 1, "period": 1},
        {"wave": "sine", "low": 1, "high": 3, "period": 0},
        {"wave": "noise", "low": 1, "high": 3, "min": 2, "max": 1},
        {"wave": "choice", "values": []},
        {"wave": "choice", "values": [1, 2], "weights": [1]},
        {"wave": "choice", "values": [1, 2], "weights": [0, 0]},
        {"wave": "counter", "rate": 0},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(wrong)


def test_numbers_are_known() -> None:
    def number(kind: dict[str, Any]) -> bool:
        return is_number(ADAPTER.validate_python(kind))

    assert number({"wave": "constant", "value": 1.5})
    assert not number({"wave": "constant", "value": True})
    assert not number({"wave": "choice", "values": [1, "a"]})
    assert number({"wave": "counter", "rate": 1})


@given(st.integers(0, 2**64 - 1), st.integers(-5, 10**12))
def test_random_numbers_lie_in_their_range(key: int, position: int) -> None:
    assert 0 <= uniform(key, position) < 1
    assert abs(gauss(key, position)) < 9


def test_random_streams_are_spread_evenly_and_pinned() -> None:
    key = stream_key(7, "device", "m")
    assert key == 0x97D7C90EC0919D12  # other numbers would change every scenario's payloads
    assert (uniform(1, 0), uniform(1, 1)) == (0.5665615751722809, 0.7457817572627011)
    assert stream_key(7, "a", "bc") != stream_key(7, "ab", "c")
    counts = [0] * 10
    for position in range(10_000):
        counts[int(uniform(key, position) * 10)] += 1
    assert all(900 < count < 1100 for count in counts)
