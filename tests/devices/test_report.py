"""The report's words and keys."""

import json

from tidings.devices.commands import CommandCount
from tidings.devices.histogram import Histogram
from tidings.devices.ledger import Ledger
from tidings.devices.report import Generator, Report, consumer_reports
from tidings.devices.stamp import stamped


def ledger(lose: int) -> Ledger:
    """Two publishers with three messages each to one consumer; the first loses some."""
    books = Ledger()
    account = books.account("all", [("dev/#", 1)])
    streams = [books.stream(name, f"dev/{name}", 1) for name in ("a", "b")]
    books.subscribed(account, "all", [1])
    for stream in streams:
        for _ in range(3):
            sequence = stream.send()
            stream.acknowledge(sequence, True)
            if stream.publisher == "b" or sequence > lose:
                payload = stamped(b"{}", stream.publisher, sequence, 0)
                books.receive(account, "all", stream.topic, payload, retain=False, now_us=2000)
    return books


def report(lose: int = 0, lag_us: int = 100, cpu: float = 0.2, gone: dict[str, str] | None = None) -> Report:
    books = ledger(lose)
    flows = list(books.results())
    lag = Histogram()
    lag.record(lag_us)
    return Report(
        scenario="s",
        seed=1,
        url="mqtt://x:1883",
        duration_s=2.0,
        interrupted=False,
        drained=True,
        clients=3,
        published=6,
        acknowledged=6,
        outstanding=0,
        refused=0,
        skipped=0,
        connects=3,
        disconnects={"cut": 2},
        gone=gone or {},
        consumers=consumer_reports(books, flows),
        flows=flows,
        commands={"ping to a": CommandCount(sent=2, answered=1, refused=1, unanswered=1)},
        replays={"r": {"rows": 5, "devices": 1, "skipped": 1, "first_error": "r.csv:2: bad"}},
        generator=Generator(lag, Histogram(), cpu, 50_000_000),
    )


def test_a_run_without_broken_promises_holds() -> None:
    good = report()
    assert good.holds
    assert list(good.lines())[-1] == "verdict: holds"
    (consumer,) = good.consumers
    assert (consumer.flows, consumer.owed, consumer.delivered, consumer.lost) == (2, 6, 6, 0)


def test_the_worst_flow_is_named_in_words() -> None:
    bad = report(lose=2)
    assert not bad.holds
    assert bad.reasons == ["a to all on dev/a: 2 acknowledged and never delivered at QoS 1"]
    assert list(bad.lines())[-2:] == ["verdict: DOES NOT HOLD, 1 reason", f"  {bad.reasons[0]}"]


def test_a_client_that_was_turned_away_breaks_the_verdict() -> None:
    assert report(gone={"a": "reason 0x87"}).reasons == ["a was turned away: reason 0x87"]


def test_the_json_has_stable_keys_and_all_flows() -> None:
    found = json.loads(json.dumps(report(lose=1).to_json()))
    keys = """scenario seed url holds reasons reason_count interrupted drained duration_s clients published acknowledged
    outstanding refused skipped connects disconnects turned_away consumers commands replays generator flows"""
    assert list(found) == keys.split()
    assert found["holds"] is False
    flow = found["flows"][0]
    assert (flow["publisher"], flow["topic"], flow["consumer"]) == ("a", "dev/a", "all")
    assert (flow["sent"], flow["owed"], flow["delivered"], flow["lost"]) == (3, 3, 2, 1)
    assert flow["latency_ms"] == {"p50": 2.0, "p90": 2.0, "p99": 2.0, "p99.9": 2.0, "max": 2.0}
    assert found["consumers"][0]["latency_ms"]["max"] == 2.0
    assert found["generator"]["limited"] is False


def test_a_generator_that_was_the_bottleneck_says_so() -> None:
    for slow in (report(lag_us=200_000), report(cpu=0.99)):
        assert slow.generator.limited
        assert any("the generator was the bottleneck" in line for line in slow.lines())
        assert slow.holds
    assert report(lag_us=200_000).generator.to_json()["missed_deadlines"] == 1
    assert not report().generator.limited


def test_commands_and_skipped_rows_are_told() -> None:
    lines = "\n".join(report().lines())
    assert "ping to a: 2 sent, 1 answered, 1 refused, 1 unanswered" in lines
    assert "r: 5 rows of 1 devices, 1 skipped, the first: r.csv:2: bad" in lines
    assert "2 x offline: cut" in lines
