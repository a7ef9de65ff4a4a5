"""``tidings fleet``: run a scenario's devices and consumers against a broker, and say whether every message arrived.

Stdout carries the report, stderr the progress. Ctrl-C ends the run early: devices stop, what is owed is waited for, and
the report says so; a second Ctrl-C does not wait.
"""

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from tidings.broker.config_file import parse_duration
from tidings.broker.errors import ConfigError
from tidings.devices import Fleet, FleetError, Report, Scenario, Snapshot, load_scenario, parse_address, shipped
from tidings.devices.link import Address
from tidings.devices.plan import plan_lines

from .exits import ERROR, USAGE, Failure
from .group import Group

CANNOT_RUN = 3
EXIT_CODES = """\b
Exit codes
  0  every promise was kept
  1  a promise was broken: the report says which
  2  wrong usage, or a mistake in the scenario
  3  the run could not begin: no broker there, refused by it, or too few open files
"""
WIDE = 125  # columns of a terminal that has room for the whole report
_PLAIN_EVERY_S = 2.0
_LIVE_EVERY_S = 0.5

Result = TypeVar("Result")


class Duration(click.ParamType[float]):
    """``20s``, ``5m``, ``1h`` or a number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(float(value) if str(value).replace(".", "", 1).isdecimal() else value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}.", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} is not above 0.", param, ctx)
        return seconds


@click.group(cls=Group)
def fleet() -> None:
    """Run simulated devices and account for every message.

    SCENARIO is a YAML file, or the name of one that comes with tidings.
    """


@fleet.command(epilog=EXIT_CODES)
@click.argument("scenario")
@click.option("--url", help="Broker: mqtt://[user[:password]@]host[:port] or unix:///path.  [default: the scenario's]")
@click.option("-h", "--host", help="Broker's host, instead of --url.")
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Broker's port, instead of --url.")
@click.option("-u", "--username", help="User name for all clients.")
@click.option("-P", "--password", help="Password for all clients; better set TIDINGS_FLEET_RUN_PASSWORD.")
@click.option("--for", "duration", type=Duration(), help="How long devices publish, such as 30s or 5m.")
@click.option("--seed", type=click.IntRange(min=0), help="Another seed than the scenario's.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="So many times the devices.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON, every flow included.")
@click.option("--quiet", is_flag=True, help="No progress.")
def run(
    scenario: str,
    url: str | None,
    host: str | None,
    port: int | None,
    username: str | None,
    password: str | None,
    duration: float | None,
    seed: int | None,
    scale: float,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run SCENARIO and report what was delivered, lost, duplicated and reordered."""
    if url is not None and (host is not None or port is not None):
        raise click.UsageError("--url and --host or --port exclude each other")
    chosen = _load(scenario, duration, seed, scale)
    address = _address(chosen, url, host, port, username, password)
    the_fleet = _fleet(chosen, address)
    try:
        report = run_fleet(the_fleet, quiet=quiet)
    except FleetError as error:
        raise Failure(str(error), CANNOT_RUN) from None
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        show_report(report)
    return 0 if report.holds else ERROR


@fleet.command()
@click.argument("scenario")
@click.option("--for", "duration", type=Duration(), help="How long devices publish, such as 30s or 5m.")
@click.option("--scale", type=click.FloatRange(min=0, min_open=True), default=1.0, help="So many times the devices.")
def check(scenario: str, duration: float | None, scale: float) -> int:
    """Check SCENARIO, its recordings included, and print what it would do. Connects to nothing."""
    chosen = _load(scenario, duration, None, scale)
    for line in plan_lines(_fleet(chosen, _address(chosen, None, None, None, None, None))):
        click.echo(line)
    return 0


def _load(name: str, duration: float | None, seed: int | None, scale: float) -> Scenario:
    path = Path(name)
    if not path.exists() and (known := shipped(name)) is not None:
        path = known
    try:
        return load_scenario(path).changed(seed=seed, duration=duration, scale=scale)
    except ConfigError as error:
        raise Failure(str(error), USAGE) from None


def _address(
    scenario: Scenario, url: str | None, host: str | None, port: int | None, username: str | None, password: str | None
) -> Address:
    if host is not None or port is not None:
        address = Address(host or "localhost", port or 1883)
    else:
        try:
            address = parse_address(url or scenario.url or "mqtt://localhost:1883")
        except ConfigError as error:
            raise click.UsageError(str(error)) from None
    if username is None and password is None:
        return address
    return Address(address.host, address.port, address.path, username or address.username, password or address.password)


def _fleet(scenario: Scenario, address: Address) -> Fleet:
    try:
        return Fleet(scenario, address)
    except ConfigError as error:
        raise Failure(str(error), USAGE) from None


# -- running and showing


def run_fleet(the_fleet: Fleet, *, quiet: bool) -> Report:
    """Run it on the fastest loop there is, with progress on stderr. Raises FleetError."""
    live = not quiet and sys.stderr.isatty()
    show, context = _live_view() if live else (None if quiet else _plain_line, nullcontext())
    with context:
        return run_async(_run(the_fleet, show, _LIVE_EVERY_S if live else _PLAIN_EVERY_S))


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` on uvloop where that exists."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _run(the_fleet: Fleet, show: Callable[[Snapshot], None] | None, every_s: float) -> Report:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, the_fleet.stop)
    try:
        return await the_fleet.run(show, every_s)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _plain_line(now: Snapshot) -> None:
    waiting = ", ".join(f"{one.name} {one.backlog:,} behind" for one in now.consumers if one.backlog)
    click.echo(
        f"{now.phase} {now.elapsed_s:.0f} s: {now.devices_online:,} of {now.devices:,} online, "
        f"{now.published:,} published ({now.published_per_s:,.0f}/s), {now.delivered:,} delivered "
        f"({now.delivered_per_s:,.0f}/s)" + (f"; {waiting}" if waiting else ""),
        err=True,
    )


def _live_view() -> tuple[Callable[[Snapshot], None], Any]:
    from rich.console import Console
    from rich.live import Live

    view = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def show(now: Snapshot) -> None:
        view.update(snapshot_table(now), refresh=True)

    return show, view


def snapshot_table(now: Snapshot) -> Any:
    """The fleet now, as a rich table with a line for each consumer."""
    from rich.table import Table

    of = "" if now.duration_s is None else f" of {now.duration_s:g}"
    table = Table(
        title=f"{now.phase}, {now.elapsed_s:.0f}{of} s: {now.devices_online:,} of {now.devices:,} devices online, "
        f"{now.published:,} published, {now.published_per_s:,.0f}/s",
        title_justify="left",
    )
    table.add_column("consumer")
    for title in ("online", "received", "per s", "behind", "p50 ms", "p99 ms"):
        table.add_column(title, justify="right")
    for one in now.consumers:
        table.add_row(
            one.name,
            f"{one.online}/{one.members}",
            f"{one.received:,}",
            f"{one.received_per_s:,.0f}",
            f"{one.backlog:,}",
            _ms(one.p50_ms),
            _ms(one.p99_ms),
        )
    return table


def show_report(report: Report) -> None:
    """The report on stdout: a table of consumers, then the words and the verdict."""
    from rich.console import Console

    # A pipe or file has no width: give it room for every column.
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    if report.consumers:
        console.print(report_table(report, console.width))
    for line in report.lines():
        click.echo(line)


def report_table(report: Report, width: int = WIDE) -> Any:
    """The report's consumers as a rich table; where that is too wide, without the columns that say least."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    wide = width >= WIDE
    uncertain = wide or any(one.uncertain for one in report.consumers)
    table = Table() if wide else Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("consumer")
    titles = ["QoS", "owed", "delivered", "lost", *["uncertain"] * uncertain, "twice", "reordered"]
    titles += ["p50", "p90", "p99", "p99.9", "max ms"] if wide else ["p50", "p99", "max ms"]
    for title in titles:
        table.add_column(title, justify="right")
    for one in report.consumers:
        latency = one.latency.summary_ms()
        times = [_ms(value) for value in latency.values()] if latency is not None else ["-"] * 5
        counts = [one.owed, one.delivered, one.lost, *[one.uncertain] * uncertain, one.duplicated, one.reordered]
        table.add_row(one.name, one.qos, *(f"{count:,}" for count in counts), *(times if wide else times[::2]))
    return table


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
