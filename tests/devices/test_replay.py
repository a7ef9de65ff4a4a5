"""Recordings: what is read, what is refused with file and line, and how it is played."""

import asyncio
import importlib.metadata
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.codec import Publish
from tidings.broker.errors import ConfigError
from tidings.devices import Fleet
from tidings.devices.replay import Player, Recording, parse_time, read_recording
from tidings.devices.scenario import Replay
from tidings.devices.stamp import read_stamp

from .stage import EPOCH_US, Stage, body, scenario

GOOD = "time,sensor,t,h\n2026-01-01T00:00:00Z,a,1.5,40\n2026-01-01T00:00:10Z,b,2,\n2026-01-01T00:00:15Z,a,x,41\n"


def read(folder: Path, text: str, **spec: Any) -> Recording:
    (folder / "r.csv").write_text(text, encoding="utf-8")
    return read_recording(Replay.model_validate({"file": "r.csv", "time": "time", **spec}), folder, "rec")


def test_rows_keep_their_spacing_and_become_json(tmp_path: Path) -> None:
    recording = read(tmp_path, GOOD, device="sensor")
    assert [(row.at_s, row.device) for row in recording.rows] == [(0, "a"), (10, "b"), (15, "a")]
    assert [json.loads(row.body) for row in recording.rows] == [
        {"time": "2026-01-01T00:00:00Z", "t": 1.5, "h": 40},
        {"time": "2026-01-01T00:00:10Z", "t": 2, "h": None},
        {"time": "2026-01-01T00:00:15Z", "t": "x", "h": 41},
    ]
    assert recording.devices == ["a", "b"]


def test_speed_divides_all_distances_and_columns_are_chosen(tmp_path: Path) -> None:
    recording = read(tmp_path, GOOD, speed=5, values=["h"], rows=2)
    assert [row.at_s for row in recording.rows] == [0, 2]
    assert recording.devices == ["rec"]
    assert json.loads(recording.rows[0].body) == {"time": "2026-01-01T00:00:00Z", "h": 40}


def test_a_file_sorted_by_device_is_played_by_time(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,sensor,t\n0,a,1\n5,a,2\n0,b,3\n5,b,4\n", device="sensor")
    assert [(row.at_s, row.device) for row in recording.rows] == [(0, "a"), (0, "b"), (5, "a"), (5, "b")]


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("12", "s", 12),
        ("1500.5", "ms", 1.5005),
        ("-3e2", "us", -0.0003),
        ("1970-01-01T00:01:00Z", "s", 60),
        ("1970-01-01T01:01:00+01:00", "ms", 60),
        ("1970-01-01 00:01", "s", 60),
        ("1970-01-02", "s", 86400),
        ("1970/01/02", "s", 86400),
        ("Jan 2 1970", "s", 86400),
    ],
)
def test_times_are_numbers_or_dates(text: str, unit: str, seconds: float) -> None:
    assert parse_time(text, unit) == pytest.approx(seconds)


@given(st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)))
def test_every_iso_time_is_read(moment: datetime) -> None:
    assert parse_time(moment.isoformat() + "Z", "s") == moment.replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "spec", "words"),
    [
        ("time,t\nnoon,1\n", {}, "r.csv:2: expected a time such as 2026-01-31T12:00:00Z or a number, got 'noon'"),
        ("time,t\n0,1\n02/03/2026,1\n", {}, "r.csv:3: expected a time that can be read one way only"),
        ("time,t\n0,1,2\n", {}, "r.csv:2: expected 2 columns, got 3"),
        ('time,t\n0,"1\n2"\n5\n', {}, "r.csv:4: expected 2 columns, got 1"),
        ("time,t\n0,1\n", {"values": ["u"]}, "r.csv:1: expected a column u, got time, t"),
        ("time,t\n0,1\n", {"device": "d"}, "r.csv:1: expected a column d"),
        ("t\n0\n", {}, "r.csv:1: expected a column time, got t"),
        ("time\n0\n", {}, "r.csv:1: expected a column of values besides time"),
        ("time,t\n", {}, "r.csv: expected at least one row, got none"),
        ("", {}, "r.csv:1: expected a column time, got an empty file"),
        ("time,d,t\n0,///,1\n", {"device": "d"}, "r.csv:2: expected a device's name in column d, got '///'"),
        ('time,t\n0,"1"x\n', {}, "r.csv:2: not valid CSV"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, text: str, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, **spec)
    assert words in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    spec = Replay.model_validate({"file": "nothing.csv", "time": "t"})
    with pytest.raises(ConfigError, match=r"nothing\.csv: cannot be read: No such file or directory"):
        read_recording(spec, tmp_path, "rec")
    (tmp_path / "nothing.csv").write_bytes(b"t,\xff\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        read_recording(spec, tmp_path, "rec")


def test_malformed_rows_are_skipped_and_counted_if_asked(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,t\n0,1\nnoon,2\n\n5,3,4\n9,5\n", on_error="skip")
    assert [row.at_s for row in recording.rows] == [0, 9]
    assert recording.skipped == 2
    assert recording.first_error is not None
    assert "r.csv:3" in recording.first_error


def test_devices_are_named_by_what_can_stand_in_a_topic(tmp_path: Path) -> None:
    recording = read(tmp_path, "time,d,t\n0,Müller #1/+,1\n", device="d")
    assert recording.devices == ["M-ller-1-"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufefftime,t\n0,1\n").rows[0].at_s == 0


def test_a_player_publishes_each_row_at_its_time_from_its_device(tmp_path: Path) -> None:
    spec = Replay.model_validate({"file": "r.csv", "time": "time", "device": "sensor", "topic": "x/{device}", "qos": 0})
    (tmp_path / "r.csv").write_text(GOOD)
    stage = Stage()
    player = Player("rec", spec, read_recording(spec, tmp_path, "rec"), "s-", stage.run)
    for device in player.devices.values():
        device.client.start()
        stage.peers[device.client.options.client_id].accept()
    player.begin()
    found = []
    for second in range(20):
        for name in ("a", "b"):
            for packet in stage.take(f"s-rec-{name}"):
                if not isinstance(packet, Publish):
                    continue  # pings
                stamp = read_stamp(packet.payload)
                assert stamp is not None
                found.append((second, packet.topic, body(packet)["t"], stamp.publisher, stamp.at_us - EPOCH_US))
        stage.clock.advance(1)
    assert found == [
        (1, "x/a", 1.5, "rec-a", 0),
        (10, "x/b", 2, "rec-b", 10_000_000),
        (15, "x/a", "x", "rec-a", 15_000_000),
    ]


def test_a_public_data_set_is_replayed_and_every_row_arrives(own_url: str) -> None:
    """Four years of Seattle's weather (NOAA, public domain), as the package vega_datasets ships them, in 1.5 s."""
    try:
        files = importlib.metadata.files("vega_datasets") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the data in vega_datasets (pip install --no-deps vega_datasets)")
    # The file is looked up without importing the package, which would need pandas.
    (path,) = [Path(str(file.locate())) for file in files if file.name == "seattle-weather.csv"]
    plan = scenario(
        **{"for": None},
        replays={
            "seattle": {
                "file": str(path),
                "time": "date",
                "device": "weather",
                "values": ["precipitation", "temp_max", "temp_min", "wind"],
                "topic": "weather/{device}",
                "qos": 2,
                "speed": 4 * 366 * 86400 / 1.5,
            }
        },
        consumers={
            "all": {"filters": ["weather/#"], "qos": 2},
            "rain": {"filters": ["weather/rain"], "qos": 1},
            "away": {
                "filters": ["weather/+"],
                "qos": 1,
                "session": "60s",
                "offline": [{"at": "300ms", "for": "400ms"}],
            },
        },
    )
    report = asyncio.run(Fleet(plan, own_url).run())
    assert report.holds, report.reasons
    rows = len(path.read_text().splitlines()) - 1
    assert rows == 1461
    delivered = {one.name: one.delivered for one in report.consumers}
    assert (delivered["all"], delivered["away"]) == (rows, rows)
    assert delivered["rain"] == sum(line.endswith(",rain") for line in path.read_text().splitlines())
    assert report.replays["seattle"]["devices"] == 5
