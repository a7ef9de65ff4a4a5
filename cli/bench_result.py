"""What ``tidings bench`` found: metrics of every round, medians, ratios, whether to believe them; as table and as JSON.

A ratio is taken within a round, where both brokers met the same machine, and given as median, lowest and highest.
"""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # ships no types

from tidings.devices.load_plan import Counts, Load, Measured, quantile_ms

_LONGEST_US: Final = 3_600_000_000
_BUSY_CORES: Final = 0.8
_LIMITED_CORES: Final = 0.9
_DISTURBED_CORES: Final = 0.25
_LATE_MS: Final = 5.0

QUANTILES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Metric:
    """How to show a number. ``better``: 1 more is better, -1 less is better, 0 neither."""

    title: str
    form: str
    better: int = 0


METRICS: Final = {
    "messages_per_s": Metric("msg/s", ",.0f", 1),
    "connections_per_s": Metric("conn/s", ",.0f", 1),
    "kb_per_connection": Metric("KB/conn", ".2f", -1),
    "p50_ms": Metric("p50 ms", ".3f", -1),
    "p99_ms": Metric("p99 ms", ".3f", -1),
    "p999_ms": Metric("p99.9 ms", ".3f", -1),
    "all_served_s": Metric("all served s", ".2f", -1),
    "all_back_s": Metric("all back s", ".2f", -1),
    "not_served": Metric("not served", ".0f", -1),
    "stored_per_s": Metric("stored/s", ",.0f", 1),
    "queued_per_s": Metric("queued/s", ",.0f", 1),
    "bytes_per_retained": Metric("B/retained", ",.0f", -1),
    "bytes_per_queued": Metric("B/queued", ",.0f", -1),
    "sessions_lost": Metric("sessions lost", ".0f", -1),
    "healthy_ratio": Metric("p99 beside/alone", ".2f", -1),
    "alone_ratio": Metric("p99 alone/alone", ".2f", -1),
    "rate_per_s": Metric("rate", ",.0f"),
    "healthy_before_p99_ms": Metric("p99 alone", ".3f", -1),
    "healthy_p99_ms": Metric("p99 beside", ".3f", -1),
    "healthy_got_percent": Metric("fast got %", ".0f", 1),
    "grown_mb": Metric("grown MB", ".1f", -1),
    "grown_late_mb": Metric("2nd half MB", ".1f", -1),
    "frozen_cut_off": Metric("frozen cut off", ".0f"),
    "frozen_got_percent": Metric("frozen got %", ".0f"),
    "slow_read": Metric("slow read", ",.0f"),
    "slow_period_ms": Metric("slow reads each ms", ".1f"),
    "slow_age_p50_ms": Metric("slow age p50", ".1f", -1),
    "slow_age_max_ms": Metric("slow age max", ".1f", -1),
    "probe_quiet_p99_ms": Metric("probe p99 quiet", ".3f", -1),
    "probe_p99_ms": Metric("probe p99", ".3f", -1),
    "probe_max_ms": Metric("probe max", ".2f", -1),
    "cpu_s_per_million": Metric("cpu s/M", ".2f", -1),
    "broker_cores": Metric("cores", ".2f"),
    "generator_cores": Metric("gen cores", ".2f"),
    "generator_us": Metric("gen us", ".2f"),
    "lag_p99_ms": Metric("lag p99", ".3f"),
    "peak_mb": Metric("peak MB", ".1f", -1),
}


def histogram(counts: Counts) -> HdrHistogram:
    """The counts as an HDR histogram with three significant digits."""
    result = HdrHistogram(1, _LONGEST_US, 3)
    for value, times in counts.items():
        result.record_value(max(1, min(value, _LONGEST_US)), times)
    return result


def metrics_of(measured: Measured) -> dict[str, float]:
    """Everything that one round says, by the names in ``METRICS``."""
    seconds, delivered = measured.seconds, measured.delivered
    found = dict(measured.numbers)
    if delivered:
        found["messages_per_s"] = delivered / seconds
        found["generator_us"] = measured.generator_cpu_s / delivered * 1e6
    if measured.latency_us:
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)):
            found[name] = quantile_ms(measured.latency_us, share)
    if measured.broker_cpu_s is not None:
        found["broker_cores"] = measured.broker_cpu_s / seconds
        if delivered:
            found["cpu_s_per_million"] = measured.broker_cpu_s / delivered * 1e6
    if measured.lag_us:
        found["lag_p99_ms"] = quantile_ms(measured.lag_us, 0.99)
    if measured.broker_peak_kb is not None:
        found["peak_mb"] = measured.broker_peak_kb / 1024
    found["generator_cores"] = measured.generator_cpu_s / seconds
    return found


@dataclass
class Result:
    """One broker's rounds of one scenario, or why there are none. ``excused``: it is not installed, or too old."""

    broker: str
    version: str = ""
    rounds: list[Measured] = field(default_factory=list)
    error: str = ""
    excused: bool = False
    remark: str = ""

    def values(self, metric: str) -> list[float]:
        """The metric of every round that has it."""
        return [found[metric] for found in map(metrics_of, self.rounds) if metric in found]

    def median(self, metric: str) -> float | None:
        values = self.values(metric)
        return statistics.median(values) if values else None

    def latency(self) -> Counts:
        """All rounds' latencies together."""
        merged: Counts = {}
        for measured in self.rounds:
            for value, times in measured.latency_us.items():
                merged[value] = merged.get(value, 0) + times
        return merged

    def invalid(self) -> str:
        """Why the figures are not the broker's, or an empty string."""
        silent = sum(not measured.delivered and not measured.latency_us for measured in self.rounds)
        if silent:
            return f"INVALID: nothing was delivered in {silent} of {len(self.rounds)} rounds: measure for longer"
        limited = sum(
            not measured.lag_us
            and measured.broker_cpu_s is not None
            and measured.broker_cpu_s < _BUSY_CORES * measured.seconds
            and measured.generator_cpu_s > _LIMITED_CORES * measured.seconds
            for measured in self.rounds
        )
        if limited:
            return f"INVALID: generator-limited in {limited} of {len(self.rounds)} rounds"
        late = max((quantile_ms(measured.lag_us, 0.99) for measured in self.rounds if measured.lag_us), default=0.0)
        if late > _LATE_MS:
            return f"INVALID: the generator was up to {late:.1f} ms late"
        return ""

    def notes(self) -> list[str]:
        """What else a reader must know: faults in delivery, and others who used the machine."""
        notes = [self.remark] if self.remark else []
        for name in ("lost", "duplicated", "reordered", "misrouted", "refused", "stalls"):
            total = sum(getattr(measured, name) for measured in self.rounds)
            if total:
                notes.append(f"{total:,} {name}")
        others = max((measured.others_cores for measured in self.rounds), default=0.0)
        busy = max((m.generator_cpu_s / m.seconds for m in self.rounds if m.lag_us and m.seconds), default=0.0)
        if busy > _LIMITED_CORES:
            notes.append(f"the generator was busy for {100 * busy:.0f} % of the time: latencies have a part of its own")
        if others > _DISTURBED_CORES:
            notes.append(f"disturbed: other programs used {others:.1f} cores")
        return notes


@dataclass
class Comparison:
    """One scenario with the settings that all brokers got; the first broker is the one that ratios are about."""

    scenario: str
    headline: str
    load: Load
    results: list[Result]

    def ratios(self, other: Result) -> list[float]:
        """The first broker's headline over the other's, round by round."""
        pairs = zip(self.results[0].values(self.headline), other.values(self.headline), strict=False)
        return [mine / theirs for mine, theirs in pairs if theirs]

    def title(self) -> str:
        load = self.load
        parts = [self.scenario, f"{load.publishers} -> {load.subscribers}", f"QoS {load.qos}"]
        parts.append({3: "MQTT 3.1", 4: "MQTT 3.1.1", 5: "MQTT 5.0"}[load.version])
        if load.transport != "tcp":
            parts.append({"tls": "TLS", "ws": "WebSocket", "wss": "WebSocket in TLS"}[load.transport])
        parts.append(f"{load.size_bytes} B")
        if load.amount:
            parts.append(f"{load.amount:,} messages")
        parts.append(f"{load.rate:,.0f} msg/s" if load.rate else f"window {load.window}")
        return ", ".join(parts)

    def columns(self) -> list[str]:
        """The metrics that any broker has, the headline first."""
        present = {name for result in self.results for measured in result.rounds for name in metrics_of(measured)}
        return [self.headline, *(name for name in METRICS if name in present and name != self.headline)]


def table(comparison: Comparison) -> str:
    """Medians, one broker a line, then the ratios with their spread."""
    columns = comparison.columns()
    head = ["broker", "min..max", *(METRICS[name].title for name in columns)]
    head[1], head[2] = head[2], head[1]
    rows = [head]
    remarks = []
    for result in comparison.results:
        name = f"{result.broker} {result.version}".strip()
        if result.error:
            remarks.append(result.error)
        if not result.rounds:
            continue
        cells = [name]
        for column in columns:
            form, value = METRICS[column].form, result.median(column)
            cells.append("-" if value is None else format(value, form))
            if column == comparison.headline:
                values = result.values(column) or [0.0]
                cells.append(f"{format(min(values), form)}..{format(max(values), form)}")
        rows.append(cells)
        remarks += [f"{name}: {note}" for note in [result.invalid(), *result.notes()] if note]
    lines = [comparison.title(), *aligned(rows)]
    first = comparison.results[0]
    for other in comparison.results[1:]:
        ratios = comparison.ratios(other)
        if ratios:
            lines.append(
                f"  {first.broker} / {other.broker}: {statistics.median(ratios):.2f} times its"
                f" {METRICS[comparison.headline].title} ({min(ratios):.2f}..{max(ratios):.2f})"
            )
    return "\n".join([*lines, *(f"  {remark}" for remark in remarks)])


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines of a table; the first column is text, the others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  " + "  ".join([row[0].ljust(widths[0]), *cells])


def as_json(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything, with latencies as HDR histograms (base64 of the V2 compressed form, microseconds)."""
    return {
        "format": "tidings-bench/1",
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "runs": [_run_json(comparison) for comparison in comparisons],
    }


def _run_json(comparison: Comparison) -> dict[str, Any]:
    brokers = []
    for result in comparison.results:
        latency = histogram(result.latency())
        brokers.append(
            {
                "broker": result.broker,
                "version": result.version,
                "error": result.error,
                "invalid": result.invalid(),
                "notes": result.notes(),
                "rounds": [metrics_of(measured) for measured in result.rounds],
                "memory_mb": [measured.memory_mb for measured in result.rounds],
                "median": {name: result.median(name) for name in comparison.columns()},
                "latency_ms": {
                    str(100 * share): latency.get_value_at_percentile(100 * share) / 1000 for share in QUANTILES
                },
                "latency_hdr": latency.encode().decode(),
                "faults": {
                    name: sum(getattr(measured, name) for measured in result.rounds)
                    for name in ("lost", "duplicated", "reordered", "misrouted", "refused", "stalls")
                },
                "ratios": comparison.ratios(result) if result is not comparison.results[0] else [],
            }
        )
    return {
        "scenario": comparison.scenario,
        "title": comparison.title(),
        "settings": asdict(comparison.load),
        "headline": comparison.headline,
        "brokers": brokers,
    }
