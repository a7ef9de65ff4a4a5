"""Scenarios: what is accepted, what is refused and in which words, and what follows from a seed."""

from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.config_file import parse_yaml
from tidings.broker.errors import ConfigError
from tidings.devices import Scenario, load_scenario, shipped, shipped_names
from tidings.devices.faults import occasions, struck
from tidings.devices.profile import device_name, tick_time, topic_names
from tidings.devices.streams import stream_key

BASE: dict[str, Any] = {
    "name": "s",
    "for": "10s",
    "devices": {
        "thermo": {
            "count": 10,
            "every": "2s",
            "labels": {"site": ["north", "south"], "floor": "one"},
            "topic": "{site}/{floor}/{device}/{measurement}",
            "measurements": {"t": {"wave": "sine", "low": 1, "high": 2, "period": "1m"}},
        }
    },
    "consumers": {"all": {"filters": ["#"]}},
}


def scenario(**changes: Any) -> Scenario:
    return parse_yaml(yaml.safe_dump({**BASE, **changes}), Scenario, "s.yaml")


def profile(**changes: Any) -> dict[str, Any]:
    return {"thermo": {**BASE["devices"]["thermo"], **changes}}


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_scenario_is_valid(name: str) -> None:
    path = shipped(name)
    assert path is not None
    assert load_scenario(path).name


def test_a_name_that_is_not_shipped_is_none() -> None:
    assert shipped("nothing") is None
    assert {"demo", "greenhouse"} <= set(shipped_names())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": {}}, "expected devices, replays or both"),
        ({"for": None}, "for: how long devices publish"),
        ({"devices": profile(topic="a/{nothing}")}, "{profile}, {site} in braces, not {nothing}"),
        ({"devices": profile(topic="a/{device")}, "a topic template"),
        ({"devices": profile(topic="a/{device!r}")}, "in braces"),
        ({"devices": profile(topic="a/+/{device}")}, "a topic without the wildcards"),
        ({"devices": profile(topic="x/{measurement}", payload="together")}, "not {measurement}"),
        ({"devices": profile(labels={"device": "x"})}, "labels with names of their own, not device"),
        ({"devices": profile(labels={"site": [], "floor": "x"})}, "at least one value of the label site"),
        ({"devices": profile(labels={"site": ["a+"], "floor": "x"})}, "that can stand in a topic"),
        ({"devices": profile(alarms=[{"measurement": "x", "above": 1}])}, "not on x"),
        ({"devices": profile(alarms=[{"measurement": "t"}])}, "one of above and below"),
        ({"devices": profile(alarms=[{"measurement": "t", "above": 1, "clear": 2}])}, "clear on the good side"),
        ({"devices": profile(version="3.1")}, "an MQTT version: 3.1.1 or 5.0"),
        ({"devices": profile(qos=3)}, "less than or equal to 2"),
        ({"devices": profile(every=0)}, "greater than or equal to 0.001"),
        ({"devices": {"a b": BASE["devices"]["thermo"]}}, "a name of at most 100 letters"),
        ({"consumers": {"c": {"filters": ["a/#", "a/b"]}}}, "filters that do not overlap (a/# and a/b do)"),
        ({"consumers": {"c": {"filters": ["a#"]}}}, "'#' alone in the last level"),
        ({"consumers": {"c": {"filters": ["$share/g/a"]}}}, "share: NAME instead"),
        ({"consumers": {"c": {"filters": []}}}, "at least 1 item"),
        (
            {"consumers": {"c": {"filters": ["a"], "session": "5s", "offline": [{"at": 1, "for": 5}]}}},
            "a session longer than the 5 s",
        ),
        (
            {"consumers": {"c": {"filters": ["a"], "offline": [{"at": 1, "for": 5}, {"at": 2, "for": 1}]}}},
            "that do not overlap",
        ),
        (
            {"consumers": {"c": {"filters": [{"filter": "a", "qos": 1}, {"filter": "b", "qos": 2}], "share": "g"}}},
            "one QoS for all",
        ),
        ({"consumers": {"c": {"filters": ["a"], "rate": "fast"}}}, "a rate such as 20/s"),
        ({"consumers": {"thermo": {"filters": ["a"]}}}, "not thermo twice"),
        ({"commands": [{"send": "ping", "to": "nobody", "every": 1}]}, "not to nobody"),
        ({"commands": [{"send": "ping", "to": "thermo"}]}, "at, every or both"),
        ({"commands": [{"send": "set", "to": "thermo", "at": 1}]}, "interval with send: set"),
        ({"faults": [{"kind": "freeze", "who": "thermo", "at": 1, "for": 1}]}, "a freeze of all, not of thermo"),
        ({"faults": [{"kind": "cut", "who": "thermo"}]}, "at, every or both"),
        ({"faults": [{"kind": "flood", "who": "thermo", "at": 1}]}, "expected one of cut, freeze, burst, got 'flood'"),
        ({"url": "http://x"}, "mqtt://host[:port] or unix:///path"),
        ({"start": "yesterday"}, "a time such as 2026-01-01T00:00:00Z, or now"),
    ],
)
def test_nonsense_is_refused_with_file_line_and_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(**changes)
    assert words in str(caught.value)
    assert all(line.startswith("s.yaml:") for line in str(caught.value).splitlines())


def test_the_version_at_the_top_is_everybodys_unless_they_say_otherwise() -> None:
    one = scenario(version="3.1.1", consumers={"old": {"filters": ["#"]}, "new": {"filters": ["a"], "version": 5.0}})
    assert one.devices["thermo"].version == 4
    assert (one.consumers["old"].version, one.consumers["new"].version) == (4, 5)


def test_times_without_a_zone_are_utc() -> None:
    assert scenario(start="2026-05-01T10:00:00").start == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert parse_yaml(yaml.safe_dump(BASE) + "start: 2026-05-01\n", Scenario, "s").start == datetime(
        2026, 5, 1, tzinfo=UTC
    )
    assert scenario(start="now").start == "now"


def test_a_changed_scenario_has_another_seed_duration_and_size() -> None:
    changed = scenario().changed(seed=9, duration=3, scale=0.01)
    assert (changed.seed, changed.duration, changed.devices["thermo"].count) == (9, 3, 1)
    assert scenario().changed(scale=2.5).devices["thermo"].count == 25


def test_adding_devices_changes_no_other_device() -> None:
    one = scenario().devices["thermo"]
    names = [device_name("thermo", index) for index in range(10)]
    assert names[0] == "thermo-0001"
    labels = [topic_names("thermo", one, 7, name)["site"] for name in names]
    more = one.model_copy(update={"count": 500})
    assert [topic_names("thermo", more, 7, name)["site"] for name in names] == labels
    assert {"north", "south"} == set(labels)


@given(st.integers(0, 2**64 - 1), st.floats(0.01, 100), st.floats(0, 1))
def test_ticks_lie_on_a_grid_and_never_cross(key: int, every: float, jitter: float) -> None:
    times = [tick_time(key, index, every, jitter) for index in range(20)]
    assert 0 <= times[0] <= 1.5 * every
    assert times == sorted(times)
    phase = tick_time(key, 0, every, 0.0)
    assert all(abs(time - (phase + index * every)) <= every * jitter / 2 + 1e-6 for index, time in enumerate(times))


def test_devices_that_begin_together_do_not_publish_together() -> None:
    first = [tick_time(stream_key(1, device_name("d", index)), 0, 10.0, 0.0) for index in range(200)]
    assert min(first) < 1
    assert max(first) > 9
    assert len({round(time) for time in first}) == 11


def test_faults_follow_their_timetable() -> None:
    one = scenario(
        faults=[
            {"kind": "cut", "who": "thermo", "at": 3},
            {"kind": "cut", "who": "thermo", "every": 4},
            {"kind": "burst", "who": "thermo", "at": 1, "every": 4, "messages": 3},
        ]
    )
    assert [list(occasions(fault, 10)) for fault in one.faults] == [[3], [4, 8], [1, 5, 9]]


def test_a_share_of_the_devices_is_drawn_from_the_seed_anew_each_time() -> None:
    one = scenario(seed=3, faults=[{"kind": "cut", "who": "thermo", "every": 1, "share": 0.3}])
    names = [device_name("thermo", index) for index in range(10)]
    drawn = [struck(one, 0, occasion, names) for occasion in range(20)]
    assert all(len(set(victims)) == 3 for victims in drawn)
    assert drawn == [struck(one, 0, occasion, names) for occasion in range(20)]
    assert len({tuple(victims) for victims in drawn}) > 5
    assert (
        struck(scenario(seed=4, faults=[{"kind": "cut", "who": "thermo", "every": 1, "share": 0.3}]), 0, 0, names)
        != drawn[0]
    )
    everybody = scenario(faults=[{"kind": "cut", "who": "thermo", "every": 1}])
    assert struck(everybody, 0, 0, names) == names
