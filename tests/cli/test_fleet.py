"""``tidings fleet``: what it prints, and its exit codes."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from tidings.cli.fleet import report_table
from tidings.devices import ConsumerSnapshot, Report, Snapshot
from tidings.devices.histogram import Histogram
from tidings.devices.report import ConsumerReport

from .conftest import Run

SCENARIO = """\
name: small
for: 400ms
devices:
  sensor:
    count: 5
    every: 100ms
    qos: 1
    measurements:
      t: {wave: sine, low: 1, high: 2, period: 1s}
consumers:
  all: {filters: ["dev/#"]}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO)
    return str(path)


def command(*args: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from tidings.cli.main import main; sys.exit(main())", *args]


def test_a_run_that_keeps_its_promises_exits_with_0_and_says_so(tidings: Run, server: int, plan: str) -> None:
    result = tidings("fleet", "run", plan, "-p", str(server), "-h", "127.0.0.1")
    assert result.code == 0, result.err
    out = result.out.decode()
    assert "verdict: holds" in out
    assert "p99.9" in out
    assert "online" in result.err
    assert "online" not in out


def test_json_is_one_document_on_stdout_and_quiet_silences_the_rest(tidings: Run, server: int, plan: str) -> None:
    result = tidings("fleet", "run", plan, "--url", f"mqtt://127.0.0.1:{server}", "--json", "--quiet", "--seed", "9")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert report["holds"] is True
    assert report["seed"] == 9
    assert {flow["publisher"] for flow in report["flows"]} == {f"sensor-000{n}" for n in range(1, 6)}


@pytest.fixture
def long_plan(tmp_path: Path) -> str:
    path = tmp_path / "long.yaml"
    path.write_text(SCENARIO.replace("400ms", "1h"))
    return str(path)


def test_duration_and_scale_override_the_scenario(tidings: Run, server: int, long_plan: str) -> None:
    result = tidings(
        "fleet", "run", long_plan, "-p", str(server), "--json", "--quiet", "--for", "200ms", "--scale", "2"
    )
    report = json.loads(result.out)
    assert report["clients"] == 11
    assert 0.1 <= report["duration_s"] < 60


def test_a_broken_promise_exits_with_1(tidings: Run, server: int, tmp_path: Path) -> None:
    # The consumer stops reading and the run ends without waiting for it: what it has not read is missing.
    path = tmp_path / "bad.yaml"
    path.write_text(
        SCENARIO.replace("400ms", "300ms") + "drain: 0s\nfaults:\n  - {kind: freeze, who: all, at: 100ms, for: 1h}\n"
    )
    result = tidings("fleet", "run", str(path), "-p", str(server), "--quiet")
    assert result.code == 1, result.out.decode()
    assert "verdict: DOES NOT HOLD" in result.out.decode()
    assert "drain" in result.out.decode()


def test_no_broker_exits_with_3_in_one_line(tidings: Run, plan: str) -> None:
    result = tidings("fleet", "run", plan, "-h", "127.0.0.1", "-p", "1")
    assert (result.code, result.out) == (3, b"")
    assert result.err == "Error: cannot connect to mqtt://127.0.0.1:1: connection refused\n"


def test_a_mistake_in_the_scenario_exits_with_2_and_names_its_line(tidings: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(SCENARIO.replace("qos: 1", "qos: 7"))
    for action in ("run", "check"):
        result = tidings("fleet", action, str(path))
        assert result.code == 2
        assert result.err == f"Error: {path}:7: devices.sensor.qos: expected less than or equal to 2, got 7\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--for", "soon"], "'soon' is not a duration such as 20s"),
        (["--for", "0s"], "'0s' is not above 0"),
        (["--url", "http://x"], "expected mqtt://host[:port]"),
        (["--url", "mqtt://x", "-p", "1"], "--url and --host or --port exclude each other"),
        (["--scale", "0"], "0"),
        (["--seed", "-1"], "-1"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_exits_with_2(tidings: Run, plan: str, args: list[str], words: str) -> None:
    result = tidings("fleet", "run", plan, *args)
    assert result.code == 2
    assert words in result.err
    assert len(result.err.splitlines()) == 1


def test_options_come_from_the_environment_too(
    tidings: Run, server: int, long_plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDINGS_FLEET_RUN_URL", f"mqtt://127.0.0.1:{server}")
    monkeypatch.setenv("TIDINGS_FLEET_RUN_DURATION", "200ms")
    monkeypatch.setenv("TIDINGS_FLEET_RUN_AS_JSON", "1")
    assert json.loads(tidings("fleet", "run", long_plan).out)["duration_s"] < 60


def test_check_prints_the_plan_and_connects_to_nothing(tidings: Run) -> None:
    result = tidings("fleet", "check", "demo")
    assert (result.code, result.err) == (0, "")
    text = result.out.decode()
    assert "demo: 306 clients for 20 s" in text
    assert "150 thermostat: 150.0 messages/s at QoS 1 to dev/" in text
    assert "fault cut of 20% of tracker: at 5, 10, 15 s" in text
    assert "replay greenhouse: 147 rows of 3 devices" in tidings("fleet", "check", "greenhouse").out.decode()


def test_check_tells_of_consumers_that_hear_nobody(tidings: Run, tmp_path: Path) -> None:
    path = tmp_path / "deaf.yaml"
    path.write_text(SCENARIO.replace("dev/#", "nothing/#"))
    assert "hears nobody" in tidings("fleet", "check", str(path)).out.decode()


def test_a_scenario_that_does_not_exist_is_named(tidings: Run) -> None:
    result = tidings("fleet", "run", "nowhere.yaml")
    assert (result.code, result.err) == (2, "Error: nowhere.yaml: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_early_with_a_report(server: int, plan: str, number: int) -> None:
    args = command("fleet", "run", plan, "-h", "127.0.0.1", "-p", str(server), "--for", "1h")
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "online" in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "verdict: holds (interrupted)" in out
    assert "Traceback" not in err


def test_on_a_terminal_the_view_is_redrawn(server: int, plan: str) -> None:
    leader, follower = pty.openpty()
    args = command("fleet", "run", plan, "-h", "127.0.0.1", "-p", str(server), "--for", "1500ms")
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=follower, env={**os.environ, "TERM": "xterm"})
    os.close(follower)
    seen = b""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end is closed: Linux says EIO
            break
        if not data:
            break
        seen += data
    out, _ = process.communicate(timeout=10)
    os.close(leader)
    assert process.returncode == 0
    assert b"verdict: holds" in out
    assert "consumer" in seen.decode()
    assert b"\x1b[" in seen


def test_the_table_shows_a_line_for_each_consumer() -> None:
    from rich.console import Console

    from tidings.cli.fleet import snapshot_table

    one = ConsumerSnapshot("archive", 0, 1, 1234, 5.0, 77, None, None)
    now = Snapshot("running", 3.0, 20.0, 9, 10, 5000, 250.0, 1234, 5.0, 0, (one,))
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    with console.file:
        console.print(snapshot_table(now))
        text = console.export_text()
    assert "running, 3 of 20 s: 9 of 10 devices online, 5,000 published, 250/s" in text
    assert "archive" in text
    assert "77" in text


@pytest.mark.parametrize(("width", "columns"), [(80, ["p50", "p99", "max ms"]), (140, ["p50", "p90", "p99", "p99.9"])])
def test_the_report_fits_the_terminal(width: int, columns: list[str]) -> None:
    latency = Histogram()
    for value_us in (5_000, 2_000_000):
        latency.record(value_us)
    one = ConsumerReport("dashboard", "1/2", False, 1, owed=123_456, delivered=123_456, latency=latency)
    console = Console(width=width, file=io.StringIO())
    console.print(report_table(cast(Report, SimpleNamespace(consumers=[one])), width))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    for word in ("consumer", "delivered", "reordered", "dashboard", "123,456", "5.02", *columns):
        assert word in text
