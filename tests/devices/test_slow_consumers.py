"""What the ledger holds a broker to where consumers may skip messages, and a run with all kinds of slow consumers."""

import asyncio
from pathlib import Path

import pytest

import tidings.devices.fleet
from tidings.broker import Broker, Config
from tidings.broker.config_file import parse_yaml
from tidings.broker.errors import ConfigError
from tidings.devices.fleet import Fleet
from tidings.devices.ledger import Account, FlowResult, Ledger, Stream
from tidings.devices.report import Report
from tidings.devices.scenario import Scenario, load_scenario
from tidings.devices.stamp import stamped

SLOW = Path(tidings.devices.fleet.__file__).parent / "scenarios" / "slow-consumers.yaml"


class Books:
    """One stream to one consumer that is only owed what is newest."""

    def __init__(self, qos: int = 1) -> None:
        self.ledger = Ledger(0.0)
        self.account: Account = self.ledger.account("c", [("dev/#", qos)], newest_only=True)
        self.stream: Stream = self.ledger.stream("a", "dev/a", qos)
        self.ledger.subscribed(self.account, "c", [qos])

    def send(self, count: int, *, acknowledge: bool = True) -> None:
        for _ in range(count):
            sequence = self.stream.send()
            if acknowledge and self.stream.qos:
                self.stream.acknowledge(sequence, True)

    def deliver(self, *sequences: int) -> None:
        for sequence in sequences:
            payload = stamped(b"{}", "a", sequence, 0)
            self.ledger.receive(self.account, "c", "dev/a", payload, retain=False, now_us=0)

    @property
    def result(self) -> FlowResult:
        (result,) = self.ledger.results()
        return result


def test_what_a_newer_message_made_out_of_date_is_skipped_and_not_lost() -> None:
    books = Books()
    books.send(10)
    books.deliver(1, 4, 10)
    result = books.result
    assert (result.owed, result.delivered, result.skipped, result.lost, result.broken) == (3, 3, 7, 0, [])
    assert books.account.backlog == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_was_skipped_is_not_owed_when_a_clean_session_ends_either(qos: int) -> None:
    books = Books(qos)
    books.send(10)
    books.deliver(1, 4)
    books.ledger.left(books.account, "c")
    assert books.account.backlog == 0
    books.ledger.subscribed(books.account, "c", [qos])
    books.send(2)
    assert books.account.backlog == 2
    books.deliver(12)
    assert books.account.backlog == 0
    assert (books.result.lost, books.result.broken) == (0, [])


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_the_last_value_has_to_arrive(qos: int) -> None:
    books = Books(qos)
    books.send(10)
    books.deliver(1, 4)
    result = books.result
    assert (result.delivered, result.skipped, result.lost) == (2, 2, 1)
    assert len(result.broken) == 1
    assert books.account.backlog == 6


def test_a_last_value_that_was_never_acknowledged_is_uncertain_and_the_one_before_it_is_owed() -> None:
    books = Books()
    books.send(3)
    books.send(1, acknowledge=False)
    books.deliver(1)
    assert (books.result.lost, books.result.uncertain) == (1, 1)
    books.deliver(4)
    assert (books.result.lost, books.result.uncertain, books.result.broken) == (0, 0, [])


def test_an_older_value_after_a_newer_one_is_out_of_order() -> None:
    books = Books()
    books.send(3)
    books.deliver(3, 2)
    assert books.result.reordered == 1
    assert books.result.broken


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("policy: newest", "not one of: all, latest"),
        ("policy: sample=0", "messages a second"),
        ("policy: latest, share: g", "shared subscription"),
    ],
)
def test_a_policy_that_there_is_not_is_an_error_in_the_scenario(key: str, says: str) -> None:
    text = "name: n\nfor: 1s\ndevices: {d: {count: 1, every: 1s, measurements: {t: {wave: constant, value: 1}}}}\n"
    with pytest.raises(ConfigError, match=says):
        parse_yaml(text + f"consumers: {{c: {{filters: ['dev/#'], {key}}}}}\n", Scenario, "s.yaml")


def test_all_kinds_of_slow_consumers_are_served_as_they_asked(tmp_path: Path) -> None:
    plan = load_scenario(SLOW).changed(duration=5.0, scale=0.3)

    async def both() -> tuple[Report, dict[str, int]]:
        async with Broker(Config(listeners=[f"unix://{tmp_path}/b.sock"], sys_interval_s=0)) as broker:
            report = await Fleet(plan, f"unix://{tmp_path}/b.sock").run()
            return report, {reason.value: count for reason, count in broker.snapshot().stats.dropped.items()}

    report, dropped = asyncio.run(both())
    assert report.holds, report.reasons
    consumers = {consumer.name: consumer for consumer in report.consumers}
    assert consumers["fast"].skipped == 0
    assert consumers["flapping"].lost == 0
    assert consumers["chart"].skipped > 0
    assert dropped["sampled"] > 0
    assert sum(consumers[name].skipped for name in ("dashboard", "frozen", "chart")) >= dropped["sampled"]
