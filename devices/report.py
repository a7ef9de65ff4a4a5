"""What a run showed: numbers for programs (``to_json``), words for people (``lines``), and the verdict.

The verdict holds if no promise was broken (see ``ledger.py``), no consumer's subscription was refused, and no client
was turned away. It says nothing about speed; but a generator that was itself too slow says so here, because then its
latencies are not the broker's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .commands import CommandCount
from .histogram import Histogram
from .ledger import FlowResult, Ledger

LAG_LIMIT_MS = 50.0
CPU_LIMIT = 0.95
_WORST = 10


@dataclass(slots=True)
class ConsumerReport:
    """One consumer, or one shared group; the sums of its flows."""

    name: str
    qos: str
    durable: bool
    members: int
    flows: int = 0
    owed: int = 0
    delivered: int = 0
    lost: int = 0
    lost_qos0: int = 0
    uncertain: int = 0
    duplicated: int = 0
    reordered: int = 0
    retained: int = 0
    skipped: int = 0
    received: int = 0
    foreign: int = 0
    wills: int = 0
    reconnects: int = 0
    latency: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "consumer": self.name,
            "qos": self.qos,
            "durable": self.durable,
            "members": self.members,
            "flows": self.flows,
            "owed": self.owed,
            "delivered": self.delivered,
            "lost": self.lost,
            "lost_qos0": self.lost_qos0,
            "uncertain": self.uncertain,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "retained": self.retained,
            "skipped": self.skipped,
            "received": self.received,
            "foreign": self.foreign,
            "wills": self.wills,
            "reconnects": self.reconnects,
            "latency_ms": self.latency.summary_ms(),
            "latency_from_send_ms": self.service.summary_ms(),
            "broken": self.broken,
        }


@dataclass(slots=True)
class Generator:
    """What the fleet itself cost and how late it was. Lag in µs, ``cpu`` in cores, memory in bytes."""

    lag: Histogram
    send_lag: Histogram
    cpu: float
    memory_bytes: int

    @property
    def limited(self) -> bool:
        """Whether the fleet was the bottleneck, so that latencies measure it and not the broker."""
        return self.lag.percentile(99) / 1000 > LAG_LIMIT_MS or self.cpu > CPU_LIMIT

    def to_json(self) -> dict[str, Any]:
        return {
            "cpu_cores": round(self.cpu, 3),
            "memory_mb": round(self.memory_bytes / 1e6, 1),
            "timers": self.lag.count,
            "lag_ms": self.lag.summary_ms(),
            "missed_deadlines": self.lag.count_above(int(LAG_LIMIT_MS * 1000)),
            "send_lag_ms": self.send_lag.summary_ms(),
            "limited": self.limited,
        }


@dataclass(slots=True)
class Report:
    """The outcome of one run."""

    scenario: str
    seed: int
    url: str
    duration_s: float
    interrupted: bool
    drained: bool
    """Whether the wait at the end was long enough, so that what is missing is not just late."""
    clients: int
    published: int
    acknowledged: int
    outstanding: int
    refused: int
    skipped: int
    connects: int
    disconnects: dict[str, int]
    gone: dict[str, str]
    consumers: list[ConsumerReport]
    flows: list[FlowResult]
    commands: dict[str, CommandCount]
    replays: dict[str, dict[str, Any]]
    generator: Generator

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return not self.reasons

    @property
    def reasons(self) -> list[str]:
        """Why it does not hold, the gravest first; empty if it does."""
        reasons = [f"{name} was turned away: {why}" for name, why in self.gone.items()]
        reasons += [f"{consumer.name}: {trouble}" for consumer in self.consumers for trouble in consumer.broken]
        worst = sorted(
            (flow for flow in self.flows if flow.broken),
            key=lambda flow: -(flow.lost + flow.duplicated + flow.reordered),
        )
        reasons += [f"{flow.publisher} to {flow.consumer} on {flow.topic}: {'; '.join(flow.broken)}" for flow in worst]
        return reasons

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON. Keys may be added, none is renamed or removed; ``_ms`` and ``_s`` are the units."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "url": self.url,
            "holds": self.holds,
            "reasons": self.reasons[:100],
            "reason_count": len(self.reasons),
            "interrupted": self.interrupted,
            "drained": self.drained,
            "duration_s": round(self.duration_s, 3),
            "clients": self.clients,
            "published": self.published,
            "acknowledged": self.acknowledged,
            "outstanding": self.outstanding,
            "refused": self.refused,
            "skipped": self.skipped,
            "connects": self.connects,
            "disconnects": self.disconnects,
            "turned_away": self.gone,
            "consumers": [consumer.to_json() for consumer in self.consumers],
            "commands": {
                name: {
                    "sent": count.sent,
                    "answered": count.answered,
                    "refused": count.refused,
                    "unanswered": count.unanswered,
                    "round_trip_ms": count.round_trip.summary_ms(),
                }
                for name, count in self.commands.items()
            },
            "replays": self.replays,
            "generator": self.generator.to_json(),
            "flows": [_flow_json(flow) for flow in self.flows],
        }

    def lines(self) -> Iterator[str]:
        """The report in plain lines, without colours; the table of consumers is left to ``consumers``."""
        yield (
            f"{self.scenario}: {self.clients:,} clients, {self.published:,} published in {self.duration_s:.1f} s, "
            f"{self.acknowledged:,} acknowledged"
            + (f", {self.outstanding:,} never answered" if self.outstanding else "")
        )
        if self.refused:
            yield f"{self.refused:,} refused by the broker"
        if self.skipped:
            yield f"{self.skipped:,} never sent: the device had no connection (QoS 0) or its own queue was full"
        for reason, count in sorted(self.disconnects.items(), key=lambda item: -item[1])[:5]:
            yield f"{count:,} x offline: {reason}"
        for name, command in self.commands.items():
            line = f"{name}: {command.sent} sent, {command.answered} answered"
            if command.refused:
                line += f", {command.refused} refused"
            if command.unanswered:
                line += f", {command.unanswered} unanswered"
            yield line + (
                f", p99 {command.round_trip.percentile(99) / 1000:.1f} ms" if command.round_trip.count else ""
            )
        for name, replay in self.replays.items():
            line = f"{name}: {replay['rows']:,} rows of {replay['devices']} devices"
            yield line + (
                f", {replay['skipped']} skipped, the first: {replay['first_error']}" if replay["skipped"] else ""
            )
        generator = self.generator
        yield (
            f"generator: {generator.cpu:.0%} of a core, {generator.memory_bytes / 1e6:.0f} MB, "
            f"timers late p99 {generator.lag.percentile(99) / 1000:.1f} ms, max {generator.lag.maximum / 1000:.1f} ms"
        )
        if generator.limited:
            yield "the generator was the bottleneck, its latencies are not the broker's: run fewer devices"
        if not self.drained:
            yield "the wait at the end was over before everything had arrived: a longer drain tells late from lost"
        reasons = self.reasons
        if not reasons:
            yield "verdict: holds" + (" (interrupted)" if self.interrupted else "")
            return
        yield f"verdict: DOES NOT HOLD, {len(reasons)} {'reason' if len(reasons) == 1 else 'reasons'}"
        for reason in reasons[:_WORST]:
            yield f"  {reason}"
        if len(reasons) > _WORST:
            yield f"  and {len(reasons) - _WORST} more (--json lists them)"


def consumer_reports(ledger: Ledger, flows: list[FlowResult]) -> list[ConsumerReport]:
    """The sums for each account, in the ledger's order."""
    reports = {
        account.name: ConsumerReport(
            name=account.name,
            qos="/".join(str(qos) for qos in sorted({qos for _, qos in account.filters})),
            durable=account.durable,
            members=len(account.members),
            received=account.received,
            foreign=account.foreign,
            wills=account.wills,
            reconnects=account.reconnects,
            latency=account.latency,
            service=account.service,
            broken=ledger.account_troubles(account),
        )
        for account in ledger.accounts.values()
    }
    for flow in flows:
        report = reports[flow.consumer]
        report.flows += 1
        report.owed += flow.owed
        report.delivered += flow.delivered
        report.lost += flow.lost
        report.lost_qos0 += flow.lost if flow.qos == 0 else 0
        report.uncertain += flow.uncertain
        report.duplicated += flow.duplicated
        report.reordered += flow.reordered
        report.retained += flow.retained
        report.skipped += flow.skipped
    return list(reports.values())


def _flow_json(flow: FlowResult) -> dict[str, Any]:
    return {
        "publisher": flow.publisher,
        "topic": flow.topic,
        "consumer": flow.consumer,
        "qos": flow.qos,
        "sent": flow.sent,
        "acknowledged": flow.acknowledged,
        "owed": flow.owed,
        "delivered": flow.delivered,
        "lost": flow.lost,
        "uncertain": flow.uncertain,
        "duplicated": flow.duplicated,
        "reordered": flow.reordered,
        "retained": flow.retained,
        "skipped": flow.skipped,
        "latency_ms": flow.latency.summary_ms(),
        "broken": flow.broken,
    }
