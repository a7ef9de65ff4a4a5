"""``tidings bench``: options, peers, files, comparison. Runs are tiny; no figure is judged."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tidings.broker import BrokerThread
from tidings.cli.bench import bench
from tidings.cli.bench_compare import compare_files
from tidings.cli.bench_peer import PEERS, Peer, PeerError
from tidings.cli.bench_push import plan
from tidings.cli.bench_result import Comparison, metrics_of, table
from tidings.cli.bench_result import Result as BenchResult
from tidings.cli.bench_scenario import SCENARIOS, SUITE, Scenario, preset
from tidings.cli.exits import Failure
from tidings.devices.load_plan import Load, Measured, Target, quantile_ms

Bench = Callable[..., Result]


@pytest.fixture
def run() -> Bench:
    return lambda *arguments: CliRunner().invoke(bench, list(arguments), standalone_mode=True)


def measured(rate: float, broker_cpu_s: float = 1.0, generator_cpu_s: float = 0.2) -> Measured:
    return Measured(
        seconds=1.0,
        delivered=int(rate),
        broker_cpu_s=broker_cpu_s,
        generator_cpu_s=generator_cpu_s,
        latency_us={900: 3},
    )


def test_help_names_every_scenario_and_command(run: Bench) -> None:
    output = run("--help").output
    for name in (*SCENARIOS, "push-vs-poll", "compare"):
        assert name in output


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_each_scenario_offers_only_its_own_options(run: Bench, name: str) -> None:
    output = run(name, "--help").output
    assert "--against" in output
    assert ("--qos" in output) == bool({"qos", "qos_queued"} & set(SCENARIOS[name].options))
    assert ("--rate" in output) == bool({"rate", "half_rate"} & set(SCENARIOS[name].options))


def test_a_running_broker_is_measured_and_written_to_files(
    run: Bench, tidings_broker: BrokerThread, tmp_path: Path
) -> None:
    found, page = tmp_path / "found.json", tmp_path / "page.html"
    url = f"tcp://127.0.0.1:{tidings_broker.port}"
    tiny = ("--for", "0.1", "--warmup", "0.01", "--rounds", "2", "--publishers", "2", "--qos", "1", "-V", "5.0")
    result = run("fan-in", "--url", url, *tiny, "--json", str(found), "--html", str(page))
    assert result.exit_code == 0, result.output
    assert "fan-in, 2 -> 1, QoS 1, MQTT 5.0, 64 B, window 100\n  broker" in result.stdout
    report = json.loads(found.read_text())
    (broker,) = report["runs"][0]["brokers"]
    assert broker["faults"] == dict.fromkeys(broker["faults"], 0)
    assert len(broker["rounds"]) == 2
    assert broker["rounds"][0]["messages_per_s"] > 0
    assert page.read_text().count("<svg") == 2
    assert "http" not in page.read_text().replace("http://www.w3.org/2000/svg", "").replace(url, "")


def test_stdout_has_nothing_but_the_file_that_is_asked_for_there(run: Bench, tidings_broker: BrokerThread) -> None:
    tiny = ("--url", f"tcp://127.0.0.1:{tidings_broker.port}", "--for", "0.1", "--warmup", "0.01", "--rounds", "1")
    result = run("fan-in", *tiny, "--json", "-")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["runs"][0]["title"].startswith("fan-in")
    assert "fan-in, 10 -> 1" in result.stderr


@pytest.mark.parametrize("command", ["fan-in", "push-vs-poll"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    run: Bench, tmp_path: Path, command: str
) -> None:
    missing = tmp_path / "nowhere" / "found.json"
    for option in ("--json", "--html"):
        result = run(command, option, str(missing))
        assert result.exit_code == 2
        assert (
            f"'{missing}' cannot be written: {missing.parent} is not a folder that one may write to." in result.output
        )
        assert f"'{tmp_path}' is a directory" in run(command, option, str(tmp_path)).output
    result = run(command, "--json", "-", "--html", "-")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "only one file can be '-', stdout." in result.stderr


def test_what_was_measured_before_an_interruption_is_written(
    run: Bench, tidings_broker: BrokerThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(scenario: Scenario, load: Load, target: Target) -> Measured:
        if scenario.name != SUITE[0][0]:
            raise KeyboardInterrupt
        return measured(1.0)

    monkeypatch.setattr("tidings.cli.bench.in_own_process", measure)
    found = tmp_path / "found.json"
    url = f"tcp://127.0.0.1:{tidings_broker.port}"
    result = run("suite", "--url", url, "--rounds", "1", "--json", str(found))
    assert result.exit_code != 0
    names = {run["scenario"] for run in json.loads(found.read_text())["runs"]}
    assert names == {SUITE[0][0]}


def test_tidings_is_started_and_stopped_when_no_url_is_given(run: Bench) -> None:
    result = run("conn", "--clients", "5", "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "KB/conn" in result.stdout


def test_a_peer_that_is_not_installed_costs_one_line(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Peer("mosquitto", lambda: None, "apt-get install mosquitto", PEERS["mosquitto"].command, ())
    monkeypatch.setitem(PEERS, "mosquitto", missing)
    result = run("conn", "--clients", "2", "--rounds", "2", "--against", "mosquitto")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("mosquitto is not installed: apt-get install mosquitto") == 1
    assert "  mosquitto is not installed: apt-get install mosquitto" in result.stdout


def test_a_version_that_a_peer_does_not_speak_is_said(run: Bench) -> None:
    result = run("conn", "--clients", "2", "--rounds", "1", "--against", "amqtt", "-V", "5.0")
    assert "amqtt does not speak MQTT 5.0" in result.stderr
    assert result.exit_code == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1", "tcp://", "tcp://host:99999", "127.0.0.1:1883"])
def test_a_url_that_cannot_be_used_is_named(run: Bench, url: str) -> None:
    result = run("fan-in", "--url", url)
    assert result.exit_code == 2
    assert repr(url) in result.stderr


def test_an_unknown_peer_is_named_with_those_there_are(run: Bench) -> None:
    result = run("fan-in", "--against", "mosquito")
    assert result.exit_code == 2
    assert "'mosquito' is none of tidings, mosquitto" in result.stderr


def test_a_broker_that_does_not_answer_is_an_error_and_no_traceback(run: Bench) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    result = run("fan-in", "--url", f"tcp://127.0.0.1:{port}", "--rounds", "1")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert f"connection to 127.0.0.1:{port} lost: " in result.stderr


def test_a_peer_that_dies_at_once_is_said_with_its_last_words(tmp_path: Path) -> None:
    peer = Peer("broken", lambda: "sh", "", lambda *_: ["sh", "-c", "echo no licence; exit 3"], ())
    with pytest.raises(PeerError, match="broken did not start, exit code 3: no licence"), peer.running():
        pytest.fail("it is not running")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fanout-1-1K-1-1K", ("all", 1, 1000, 1.0, 4)),
        ("singlenode-p2p-1K-1K-1K-1K", ("pairs", 1000, 1000, 1000.0, 4)),
        ("sharedsub-1K-5-1K-1K", ("shared", 1000, 5, 1000.0, 5)),
        ("conn-tcp-10K-100", ("all", 0, 10_000, None, 4)),
    ],
)
def test_the_open_suites_names_are_understood(name: str, expected: tuple[object, ...]) -> None:
    scenario = preset(name)
    assert scenario is not None
    load = scenario.load
    assert (load.shape, load.publishers, load.subscribers, load.rate, load.version) == expected


@pytest.mark.parametrize(("name", "values"), SUITE)
def test_the_suite_sets_only_what_its_scenarios_have(name: str, values: dict[str, int]) -> None:
    renamed = {"publishers": {"publishers", "pairs"}, "subscribers": {"subscribers", "clients"}}
    for field in values:
        assert renamed.get(field, {field}) & set(SCENARIOS[name].options), field


def test_other_names_are_no_preset(run: Bench) -> None:
    assert preset("fanout-1-1K") is None
    assert run("fanout-1-1K").exit_code == 2


def test_ratios_are_taken_within_a_round() -> None:
    mine = BenchResult("tidings", rounds=[measured(100), measured(400)])
    theirs = BenchResult("other", rounds=[measured(50), measured(100)])
    comparison = Comparison("fan-in", "messages_per_s", Load(), [mine, theirs])
    assert comparison.ratios(theirs) == [2.0, 4.0]
    assert "tidings / other: 3.00 times its msg/s (2.00..4.00)" in table(comparison)


def test_a_run_that_the_generator_limited_is_invalid() -> None:
    assert BenchResult("a", rounds=[measured(9, broker_cpu_s=0.7, generator_cpu_s=0.95)]).invalid()
    assert not BenchResult("a", rounds=[measured(9, broker_cpu_s=0.95, generator_cpu_s=0.95)]).invalid()
    assert not BenchResult("a", rounds=[measured(9, broker_cpu_s=0.7, generator_cpu_s=0.5)]).invalid()


def test_a_run_whose_generator_was_late_is_invalid() -> None:
    late = measured(9)
    late.lag_us = {9_000: 100}
    assert "late" in BenchResult("a", rounds=[late]).invalid()


def test_a_run_in_which_nothing_came_is_invalid() -> None:
    nothing = Measured(seconds=0.1)
    assert "nothing was delivered in 1 of 2 rounds" in BenchResult("a", rounds=[nothing, measured(9)]).invalid()


def test_faults_and_disturbance_are_noted() -> None:
    one = measured(9)
    one.lost, one.others_cores = 1200, 1.5
    assert BenchResult("a", rounds=[one]).notes() == ["1,200 lost", "disturbed: other programs used 1.5 cores"]


def test_quantiles_are_of_the_counts() -> None:
    assert quantile_ms({1000: 98, 5000: 1, 9000: 1}, 0.5) == 1.0
    assert quantile_ms({1000: 98, 5000: 1, 9000: 1}, 0.99) == 5.0
    assert quantile_ms({}, 0.5) == 0.0
    assert metrics_of(measured(50))["cpu_s_per_million"] == 20_000


def stored(path: Path, *rates: float, ratios: tuple[float, ...] = ()) -> Path:
    broker = {"broker": "tidings", "rounds": [{"messages_per_s": rate} for rate in rates], "ratios": []}
    other = {"broker": "other", "rounds": [], "ratios": list(ratios)}
    run = {
        "scenario": "fan-in",
        "title": "fan-in",
        "settings": {"qos": 0},
        "headline": "messages_per_s",
        "brokers": [broker, other],
    }
    path.write_text(json.dumps({"format": "tidings-bench/1", "runs": [run]}))
    return path


def test_a_clear_loss_is_a_regression_and_the_exit_code_says_so(run: Bench, tmp_path: Path) -> None:
    old, new = stored(tmp_path / "old", 100, 110, 120), stored(tmp_path / "new", 70, 80, 85)
    result = run("compare", str(old), str(new))
    assert result.exit_code == 1
    assert "REGRESSION" in result.stdout
    assert run("compare", str(old), str(new), "--tolerance", "50").exit_code == 0
    assert run("compare", str(new), str(old)).exit_code == 0


def test_rounds_that_overlap_are_no_regression(tmp_path: Path) -> None:
    old, new = stored(tmp_path / "old", 70, 110, 120), stored(tmp_path / "new", 60, 80, 85)
    assert compare_files(old, new, 10)[1] == 0


def test_ratios_are_compared_where_both_files_have_them(tmp_path: Path) -> None:
    old = stored(tmp_path / "old", 1000, ratios=(5.0, 5.2))
    new = stored(tmp_path / "new", 100, ratios=(5.1, 5.3))
    lines, regressions = compare_files(old, new, 10)
    assert regressions == 0
    assert len(lines) == 1
    assert "tidings / other" in lines[0]


def test_files_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    good, other = stored(tmp_path / "good", 1), tmp_path / "other"
    other.write_text('{"format": "something"}')
    with pytest.raises(Failure, match=r"other is not a file that"):
        compare_files(good, other, 10)
    other.write_text("{")
    with pytest.raises(Failure, match="cannot read"):
        compare_files(good, other, 10)


def test_push_and_poll_get_the_same_events_for_the_same_seed() -> None:
    events = plan(3, 2.0, 5.0, 7)
    assert events == plan(3, 2.0, 5.0, 7) != plan(3, 2.0, 5.0, 8)
    assert events == sorted(events)
    assert [event for event in plan(4, 2.0, 5.0, 7) if event[1] < 3] == events


@pytest.mark.slow
def test_every_way_gets_every_event(run: Bench, tmp_path: Path) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    options = ("--consumers", "4", "--devices", "2", "--rate", "20", "--for", "0.3", "--interval", "0.05")
    result = run("push-vs-poll", *options, "--json", str(report), "--html", str(page))
    assert result.exit_code == 0, result.output
    ways = json.loads(report.read_text())["ways"]
    assert [way["way"] for way in ways] == ["poll every 0.05 s", "long polling", "server-sent events", "MQTT push"]
    assert {way["owed"] - way["received"] for way in ways} == {0}
    assert ways[0]["requests"] > ways[1]["requests"] > ways[2]["requests"] == ways[3]["requests"] == 0
    assert all(way["bytes_received"] > 0 for way in ways)
    assert "<svg" in page.read_text()
