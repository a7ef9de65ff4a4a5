"""``tidings demo``: broker, device fleet and consumers in one process, a live view, and the ledger's verdict.

Everything is real: a broker on a TCP port of 127.0.0.1 that keeps its promises on disk, three hundred devices and their
consumers as MQTT clients of it. Another terminal can join in with ``tidings sub``.
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from tidings.broker import Broker, BrokerError, Config
from tidings.devices import Fleet, FleetError, Report, Snapshot, load_scenario, shipped

from .exits import ERROR, Failure
from .fleet import CANNOT_RUN, EXIT_CODES, Duration, run_async, show_report, snapshot_table
from .open_files import raise_open_files_limit

USUAL = "tcp://127.0.0.1:1883"
ANY_PORT = "tcp://127.0.0.1:0"
PLAIN_EVERY_S = 2.0
LIVE_EVERY_S = 0.5

Show = Callable[[Snapshot, Broker], None]


@click.command(epilog=EXIT_CODES)
@click.option("--for", "duration", type=Duration(), default="20s", show_default=True, help="How long devices publish.")
@click.option("--seed", type=click.IntRange(min=0), help="Other devices and values than usual.")
def demo(duration: float, seed: int | None) -> int:
    """Run a broker, 300 devices and their consumers, and account for every message.

    Four kinds of devices report, raise alarms and answer commands; one consumer is slow, one goes offline and comes
    back. At the end the ledger says what was delivered, lost, duplicated and reordered.
    """
    path = shipped("demo")
    assert path is not None, "the demo scenario ships with the package"
    scenario = load_scenario(path).changed(seed=seed, duration=duration)
    raise_open_files_limit()
    show, context, every_s = _view()
    with context:
        report = run_async(run_fleet_on_broker(lambda url: Fleet(scenario, url), show, every_s))
    show_report(report)
    return 0 if report.holds else ERROR


async def run_fleet_on_broker(fleet_at: Callable[[str], Fleet], show: Show, every_s: float) -> Report:
    """A broker of its own, and the fleet that ``fleet_at`` makes for its URL, until the ledger's report."""
    data = TemporaryDirectory(prefix="tidings-demo-")
    broker = await _start(Path(data.name))
    try:
        url = broker.urls[0].replace("tcp://", "mqtt://")
        click.echo(f"broker on {url}; to watch it from another terminal:\n  tidings sub -v -L '{url}/dev/#'", err=True)
        fleet = fleet_at(url)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, fleet.stop)
        return await fleet.run(lambda now: show(now, broker), every_s)
    except FleetError as error:
        raise Failure(str(error), CANNOT_RUN) from None
    finally:
        await broker.stop()
        data.cleanup()


async def _start(data_dir: Path) -> Broker:
    """A durable broker on the usual port, or on any free one if that is taken."""
    for listener in (USUAL, ANY_PORT):
        broker = Broker(Config(listeners=[listener], data_dir=data_dir, stop_timeout_s=1))
        try:
            await broker.start()
        except BrokerError as error:
            if listener is ANY_PORT:
                raise Failure(str(error)) from None
        else:
            return broker
    raise AssertionError("unreachable")


def _view() -> tuple[Show, Any, float]:
    """What to do with each snapshot, the context to do it in, and how often."""
    if not sys.stdout.isatty():
        return _plain, nullcontext(), PLAIN_EVERY_S
    from rich.console import Group
    from rich.live import Live

    live = Live(auto_refresh=False, transient=True)

    def show(now: Snapshot, broker: Broker) -> None:
        live.update(Group(snapshot_table(now), broker_line(broker)), refresh=True)

    return show, live, LIVE_EVERY_S


def _plain(now: Snapshot, broker: Broker) -> None:
    click.echo(
        f"{now.phase} {now.elapsed_s:.0f} s: {now.devices_online:,} of {now.devices:,} devices online, "
        f"{now.published:,} published, {now.delivered:,} delivered; {broker_line(broker)}"
    )


def broker_line(broker: Broker) -> str:
    """The broker's side of the story in one line, drops by reason."""
    shot = broker.snapshot()
    dropped = ", ".join(f"{count:,} {reason.value}" for reason, count in shot.stats.dropped.items())
    return (
        f"broker: {shot.clients_connected:,} clients, {shot.stats.messages_received:,} messages in, "
        f"{shot.stats.messages_sent:,} out, {shot.queued_messages:,} queued, {shot.retained_messages:,} retained, "
        f"dropped: {dropped or 'none'}"
    )
