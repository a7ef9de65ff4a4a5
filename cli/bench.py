"""``tidings bench``: how fast a broker is, beside others, on this machine, in one run.

Every broker gets the same load from a generator in a process of its own, in turn, A B A B, so that what disturbs the
machine disturbs all. Tables go to stdout, talk to stderr; if a file is asked for there, tables go to stderr too.
"""

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from tidings.devices.load_plan import Load, LoadError, Measured, Target
from tidings.devices.load_scenes import allow_files
from tidings.devices.load_transports import Transport

from .bench_peer import PEERS, PeerError
from .bench_result import Comparison, Result, as_json, table
from .bench_scenario import SCENARIOS, SUITE, Scenario, preset
from .environment import name_variables
from .exits import Failure
from .group import Group
from .result_file import RESULT_FILE, takes_stdout, write_result

VERSIONS: Final = {"3.1": 3, "3.1.1": 4, "5": 5, "5.0": 5}
COUNT: Final = click.IntRange(1)
SECONDS: Final = click.FloatRange(0.0, min_open=True)


def _option(*names: str, **attributes: Any) -> click.Option:
    return click.Option(names, **attributes)


def _load_options(scenario: Scenario) -> list[click.Option]:
    """Only those options that the scenario has a use for."""
    load = scenario.load
    available = {
        "pairs": _option(
            "--pairs", "--publishers", "publishers", type=COUNT, default=load.publishers, help="How many."
        ),
        "publishers": _option("--publishers", type=COUNT, default=load.publishers, help="How many."),
        "subscribers": _option("--subscribers", type=COUNT, default=load.subscribers, help="How many."),
        "clients": _option("--clients", "subscribers", type=COUNT, default=load.subscribers, help="How many."),
        "at_once": _option(
            "--at-once", "window", type=COUNT, default=load.window, help="Connections opening at a time."
        ),
        "rate": _option(
            "--rate",
            type=SECONDS,
            default=load.rate,
            help="Messages per second of all publishers together; without it as fast as the windows allow.",
        ),
        "half_rate": _option(
            "--rate",
            type=SECONDS,
            default=load.rate,
            help="Messages per second of all publishers together; without it half of what each broker can do.",
        ),
        "policy": _option(
            "--policy",
            default=load.policy,
            help="What the slow one asks for as tidings-policy, in MQTT 5.0; see 'tidings sub --help'.",
        ),
        "window": _option(
            "--window",
            type=COUNT,
            default=load.window,
            help="Messages of a publisher that are not acknowledged; ten times as many may be undelivered.",
        ),
        "messages": _option("--messages", "amount", type=COUNT, default=load.amount, help="How many."),
        "waiting": _option(
            "--messages", "amount", type=click.IntRange(0), default=load.amount, help="That wait for each client."
        ),
        "size_bytes": _option(
            "--size", "size_bytes", type=click.IntRange(16), default=load.size_bytes, help="Bytes of payload."
        ),
        "qos": _option("--qos", type=click.IntRange(0, 2), default=load.qos, help="Of publications and subscriptions."),
        "qos_queued": _option("--qos", type=click.IntRange(1, 2), default=load.qos, help="Of all messages."),
        "version": _option(
            "--version",
            "-V",
            type=click.Choice(list(VERSIONS)),
            default={3: "3.1", 4: "3.1.1", 5: "5.0"}[load.version],
            help="Of MQTT.",
        ),
        "transport": _option(
            "--transport",
            type=click.Choice(["tcp", "tls", "ws", "wss"]),
            default=load.transport,
            help="What carries MQTT.",
        ),
        "warmup_s": _option(
            "--warmup", "warmup_s", type=click.FloatRange(0.0), default=load.warmup_s, help="Seconds before measuring."
        ),
    }
    options = [available[name] for name in scenario.options]
    if scenario.name != "conn" and not {"messages", "waiting"} & set(scenario.options):
        options.append(_option("--for", "seconds", type=SECONDS, default=load.seconds, help="Seconds measured."))
    for option in options:
        option.show_default = True
    return options


def _run_options() -> list[click.Option]:
    return [
        _option(
            "--against",
            multiple=True,
            metavar="NAME,...",
            help=f"Brokers to start and compare with: {', '.join(PEERS)}.",
        ),
        _option("--url", metavar="tcp://HOST:PORT", help="A running broker to measure instead of starting tidings."),
        _option("--pid", type=int, default=0, help="With --url: its process, for CPU and memory."),
        _option("--rounds", type=COUNT, default=3, show_default=True, help="How often each broker has its turn."),
        _option("--json", "json_file", type=RESULT_FILE, help="Write everything to this file; - is stdout."),
        _option("--html", "html_file", type=RESULT_FILE, help="Write a page with plots to this file; - is stdout."),
    ]


def _suite_command() -> click.Command:
    def callback(**options: Any) -> None:
        _bench([(SCENARIOS[name], _load(SCENARIOS[name].load, dict(values))) for name, values in SUITE], options)

    text = "The whole set by which tidings measures itself, one scenario after the other."
    return click.Command("suite", params=list(_run_options()), callback=callback, help=text)


class BenchGroup(Group):
    """The scenarios, the other suites' spellings of them, and the commands that are no scenario."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SCENARIOS, "suite", "push-vs-poll", *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = self._find(ctx, cmd_name)
        if command is not None:
            name_variables(command, f"TIDINGS_bench_{cmd_name}")
        return command

    def _find(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "push-vs-poll":
            from .bench_push import push_vs_poll

            return push_vs_poll
        if cmd_name == "suite":
            return _suite_command()
        scenario = SCENARIOS.get(cmd_name) or preset(cmd_name)
        return super().get_command(ctx, cmd_name) if scenario is None else _command(scenario)


def _command(scenario: Scenario) -> click.Command:
    def callback(**values: Any) -> None:
        options = {option.name: values.pop(str(option.name)) for option in _run_options()}
        _bench([(scenario, _load(scenario.load, values))], options)

    parameters: list[click.Parameter] = [*_load_options(scenario), *_run_options()]
    return click.Command(scenario.name, params=parameters, callback=callback, help=scenario.summary)


@click.group(cls=BenchGroup, subcommand_metavar="SCENARIO [OPTIONS]...")
def bench() -> None:
    """Measure tidings, or another broker, beside its peers.

    SCENARIO may also be spelled as the Open MQTT Benchmark Suite does: fanout-1-1K-1-1K, p2p-1K-1K-1K-1K,
    sharedsub-1K-5-1K-1K, conn-tcp-10K-100.

    Exit codes: 0 measured; 1 a broker could not be measured, or a comparison found a regression; 2 wrong option.
    """


def _bench(work: Sequence[tuple[Scenario, Load]], options: dict[str, Any]) -> None:
    """Measure each piece of work with every broker, print a table of each, write the files."""
    against, url = options["against"], options["url"]
    names = list(dict.fromkeys([url or "tidings", *(name.strip() for text in against for name in text.split(","))]))
    for name in names:
        if name != url and name not in PEERS:
            raise click.BadParameter(f"{name!r} is none of {', '.join(PEERS)}.", param_hint="--against")
    target = _target(url, options["pid"]) if url else None
    if target is not None:
        work = [(scenario, dataclasses.replace(load, transport=target.transport)) for scenario, load in work]
    try:
        allow_files(max(load.subscribers + load.publishers for _, load in work) + 64)
    except LoadError as error:
        raise Failure(str(error)) from None
    stdout_taken = takes_stdout(options["json_file"], options["html_file"])
    versions = {name: PEERS[name].version() if name in PEERS else "" for name in names}
    comparisons: list[Comparison] = []
    try:
        for scenario, load in work:
            results = [Result(name, versions[name]) for name in names]
            comparison = Comparison(scenario.name, scenario.headline, load, results)
            for number in range(1, options["rounds"] + 1):
                for result in results:
                    if not result.error:
                        click.echo(
                            f"{comparison.title()}: round {number} of {options['rounds']}: {result.broker}", err=True
                        )
                        _round(scenario, load, result, target if result.broker == url else None)
            click.echo(table(comparison), err=stdout_taken)
            comparisons.append(comparison)
    finally:  # the suite takes long: what was measured before Ctrl-C is kept
        if comparisons:
            _write_files(comparisons, options)
    failed = {result.broker for comparison in comparisons for result in comparison.results if _failed(result)}
    if failed:
        raise Failure(f"could not be measured in full: {', '.join(sorted(failed))}")


def _write_files(comparisons: Sequence[Comparison], options: dict[str, Any]) -> None:
    report = as_json(comparisons)
    if options["json_file"]:
        write_result(options["json_file"], json.dumps(report, indent=1) + "\n")
    if options["html_file"]:
        from .bench_page import page

        write_result(options["html_file"], page(report))


def _failed(result: Result) -> bool:
    """Whether it could not be measured though it could have been: a peer that is missing, or older, is no failure."""
    return bool(result.error) and not result.excused


def _load(load: Load, values: dict[str, Any]) -> Load:
    """The scenario's load with what was asked for; what hangs on that follows."""
    if isinstance(values.get("version"), str):
        values["version"] = VERSIONS[values["version"]]
    if load.shape == "pairs" and "publishers" in values:
        values["subscribers"] = values["publishers"]
    if "window" in values:
        values["backlog"] = 10 * values["window"]
    return dataclasses.replace(load, **values)


def _target(url: str, pid: int) -> Target:
    parts = urlsplit(url)
    if parts.scheme == "unix" and parts.path:
        return Target(path=parts.path, pid=pid)
    schemes: dict[str, tuple[Transport, int]] = {
        "tcp": ("tcp", 1883), "mqtt": ("tcp", 1883), "tls": ("tls", 8883), "mqtts": ("tls", 8883), "ws": ("ws", 8083),
        "wss": ("wss", 8084),
    }  # fmt: skip
    try:
        transport, port = schemes[parts.scheme]
        port = port if parts.port is None else parts.port
    except (KeyError, ValueError):
        port = 0
    if not parts.hostname or not port:
        raise click.BadParameter(
            f"{url!r} is not like tcp://127.0.0.1:1883, tls://, ws://, wss:// or unix:///path.", param_hint="--url"
        )
    return Target(parts.hostname, port, pid=pid, transport=transport, ws_path=parts.path or "/mqtt")


def _round(scenario: Scenario, load: Load, result: Result, target: Target | None) -> None:
    """One turn of one broker, added to its result."""
    try:
        with ExitStack() as stack:
            if target is None:
                peer = PEERS[result.broker]
                if load.version not in peer.speaks and scenario.any_version:
                    load = dataclasses.replace(load, version=max(peer.speaks))
                    result.remark = f"measured with MQTT {'5.0' if load.version == 5 else '3.1.1'}"
                if load.version not in peer.speaks:
                    result.excused = True
                    raise PeerError(f"{peer.name} does not speak MQTT {'5.0' if load.version == 5 else '3.1'}")
                result.excused = peer.find() is None
                if load.transport not in peer.carries:
                    result.excused = True
                    raise PeerError(f"{peer.name}: this bench does not know how to have it listen for {load.transport}")
                target = stack.enter_context(peer.running(load.transport, scenario.bounded))
            result.rounds.append(in_own_process(scenario, load, target))
    except (LoadError, PeerError) as error:
        result.error = str(error)
        click.echo(f"{error}", err=True)


def in_own_process(scenario: Scenario, load: Load, target: Target) -> Measured:
    """Play the scenario in a fresh process, so that neither memory nor the collector of this one is in the way."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(scenario.play, load, target).result()
        except BrokenProcessPool as error:
            raise LoadError(f"the load generator died: {error}") from None


@bench.command("compare")
@click.argument("old", type=click.Path(exists=True, dir_okay=False))
@click.argument("new", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--tolerance", type=click.FloatRange(0, 100), default=10.0, show_default=True, help="Percent that may be lost."
)
def compare(old: str, new: str, tolerance: float) -> None:
    """Compare two files that --json wrote; exit code 1 if NEW is worse than OLD.

    Where both hold a ratio to the same broker, ratios are compared, which holds across machines; else the figures. It
    is a regression if the median is worse by more than the tolerance and the rounds of both files do not overlap.
    """
    from .bench_compare import compare_files

    lines, regressions = compare_files(Path(old), Path(new), tolerance)
    for line in lines:
        click.echo(line)
    if regressions:
        raise Failure(f"{regressions} regression{'s' if regressions > 1 else ''}")
