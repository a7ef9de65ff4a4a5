"""Draws docs/demo.svg from a real run of the demo: ``python docs/picture.py`` (20 seconds)."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from tidings.broker import Broker
from tidings.cli.demo import broker_line, run_fleet_on_broker
from tidings.cli.fleet import report_table, run_async, snapshot_table
from tidings.devices import Fleet, Snapshot, load_scenario, shipped

MOMENT_S = 10.0  # the archive is away then


def main() -> None:
    path = shipped("demo")
    assert path is not None
    scenario = load_scenario(path)
    console = Console(record=True, width=124, file=StringIO(), force_terminal=True, highlight=False)
    moments: list[tuple[Snapshot, str]] = []

    def keep(now: Snapshot, broker: Broker) -> None:
        if not moments and now.elapsed_s >= MOMENT_S:
            moments.append((now, broker_line(broker)))

    report = run_async(run_fleet_on_broker(lambda url: Fleet(scenario, url), keep, 0.5))
    console.print("[bold]$ tidings demo[/bold]")
    for snapshot, line in moments:
        console.print(snapshot_table(snapshot))
        console.print(line + "\n")
    console.print(report_table(report))
    for line in report.lines():
        console.print(line, markup=False)
    picture = Path(__file__).with_name("demo.svg")
    picture.write_text(console.export_svg(title="tidings demo"))


if __name__ == "__main__":
    main()
