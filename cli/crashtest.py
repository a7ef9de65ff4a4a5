"""``tidings crashtest``: kill a broker with SIGKILL in the middle of traffic, round after round, and count its losses.

Stdout carries one line per round and the verdict, stderr the progress bar. The broker is tidings itself, or any other
one by its command line.
"""

import asyncio
import json
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tidings.broker.thread import new_event_loop
from tidings.devices.crash import CrashPlan, CrashTest
from tidings.devices.crash_books import Verdict

from .exits import ERROR

_COLUMNS: Final = {
    "acknowledged": "acked",
    "delivered": "delivered",
    "lost": "lost",
    "duplicated": "twice",
    "reordered": "reordered",
    "retained_gone_back": "gone back",
    "sessions_lost": "sessions lost",
}


@click.command(short_help="Kill a broker again and again; count what was lost.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="How often to kill it.")
@click.option(
    "--qos", type=click.IntRange(1, 2), default=1, show_default=True, help="QoS of messages and subscriptions."
)
@click.option(
    "--level",
    type=click.Choice(["fsync", "os", "memory"]),
    default="fsync",
    show_default=True,
    help="Durability of tidings; memory shows what the test finds when nothing is kept.",
)
@click.option(
    "--command",
    metavar="LINE",
    default="",
    help="Another broker's command line instead; {port} and {dir} stand for the port to listen on and an empty "
    "directory to keep data in. It must stay in the foreground.",
)
@click.option(
    "--protocol", "version", type=click.Choice(["311", "5"]), default="5", show_default=True, help="MQTT version."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides when the kills come, among other things.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for the broker's data, kept afterwards. [default: a temporary one]",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per round and one for all, instead of the table."
)
def crashtest(
    rounds: int, qos: int, level: str, command: str, version: str, seed: int, folder: Path | None, as_json: bool
) -> int:
    """Kill a broker with SIGKILL at random instants under load, restart it, and compare the books.

    \b
    Four publishers; durable sessions that are online, away, slow, and two that share a subscription. Prints per round:
      acked      messages that the publishers saw acknowledged
      delivered  arrivals, at all sessions together
      lost       acknowledged, and never delivered to a session
      twice      delivered again; QoS 1 allows that, QoS 2 does not
      reordered  delivered after a later one of the same publisher
      gone back  retained messages older than what was acknowledged
    \b
    Exit codes: 0 every promise of the QoS was kept; 1 one was broken, or the broker does not run; 2 wrong usage.

    \b
    Another broker:
      tidings crashtest --command 'mosquitto -c mosquitto.conf -p {port}'
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("round"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    if not as_json:
        click.echo(f"{'round':>8}" + "".join(f"{title:>{len(title) + 4}}" for title in _COLUMNS.values()))
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("rounds", total=rounds)

        def on_round(number: int, verdict: Verdict) -> None:
            _print(number, verdict, as_json)
            bar.update(task, completed=number)

        with (
            nullcontext(folder) if folder is not None else tempfile.TemporaryDirectory(prefix="tidings-crash-") as place
        ):
            plan = CrashPlan(Path(place), rounds, qos, level, command, seed, 5 if version == "5" else 4)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                total = runner.run(CrashTest(plan, on_round).run())
    _print(None, total, as_json)
    broken = total.broken(qos)
    if not as_json:
        click.echo(f"{'A promise was broken' if broken else 'Every promise was kept'} in {rounds} kills at QoS {qos}.")
    return ERROR if broken else 0


def _print(number: int | None, verdict: Verdict, as_json: bool) -> None:
    counts = asdict(verdict)
    if as_json:
        click.echo(json.dumps({"round": number, **counts} if number is not None else {"total": counts}))
    else:
        head = "all" if number is None else str(number)
        click.echo(f"{head:>8}" + "".join(f"{counts[name]:>{len(title) + 4}}" for name, title in _COLUMNS.items()))
    sys.stdout.flush()
