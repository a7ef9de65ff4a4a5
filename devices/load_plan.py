"""What the load generator is asked, and what it answers: plain values that pass between processes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

TICKS_PER_S: Final = 100
"""Unit of the CPU times in /proc: USER_HZ, which Linux keeps at 100 towards programs."""


class LoadError(Exception):
    """The broker cannot be loaded as asked: unreachable, refuses, or closes connections."""


@dataclass(frozen=True)
class Target:
    """Where the broker listens: ``host`` and ``port``, or ``path`` of a Unix socket. ``pid`` 0: unknown.

    ``transport`` is what carries MQTT there; ``ws_path`` is where WebSocket is asked for.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    path: str = ""
    pid: int = 0
    transport: Literal["tcp", "tls", "ws", "wss"] = "tcp"
    ws_path: str = "/mqtt"

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Load:
    """Which traffic to make. ``shape`` says who hears whom.

    ``pairs``: subscriber i hears publisher i only. ``all``: every subscriber hears every publisher. ``shared``: all
    subscribers share one subscription. ``rate`` is messages/s of all publishers together; None is as fast as ``window``
    (not acknowledged, per publisher) and ``backlog`` (not delivered, per publisher) allow. QoS 0 knows no ``window``.
    ``amount`` is how many messages are retained, or queued for a client that is away. ``transport`` is what carries it.
    ``policy`` is what a slow client asks tidings for (MQTT 5.0); other brokers take no notice of it.
    """

    shape: Literal["pairs", "all", "shared"] = "pairs"
    publishers: int = 1
    subscribers: int = 1
    qos: int = 0
    version: int = 4
    size_bytes: int = 64
    window: int = 100
    backlog: int = 1000
    rate: float | None = None
    amount: int = 0
    warmup_s: float = 0.5
    seconds: float = 3.0
    drain_s: float = 5.0
    transport: Literal["tcp", "tls", "ws", "wss"] = "tcp"
    policy: str = ""


Counts = dict[int, int]
"""Microseconds to how often: merged by adding."""


@dataclass
class Measured:
    """What one run showed. ``sent`` and ``delivered`` are of the measured window, faults of the whole run.

    ``others_cores``: how many cores everything else on the machine kept busy. ``memory_mb``: the broker's resident
    memory as (seconds, MiB), where a scenario looks at it again and again. ``numbers`` holds what only one scenario
    measures, by name with the unit in it.
    """

    seconds: float = 0.0
    sent: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    misrouted: int = 0
    refused: int = 0
    stalls: int = 0
    latency_us: Counts = field(default_factory=dict)
    lag_us: Counts = field(default_factory=dict)
    generator_cpu_s: float = 0.0
    generator_turn_max_ms: float = 0.0
    broker_cpu_s: float | None = None
    broker_peak_kb: int | None = None
    others_cores: float = 0.0
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)


def count(counts: Counts, value_us: int) -> None:
    """Count one value."""
    counts[value_us] = counts.get(value_us, 0) + 1


def quantile_ms(counts: Counts, share: float) -> float:
    """The value that ``share`` of what was counted did not exceed, in ms; 0 if nothing was."""
    wanted, seen = share * sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value / 1000
    return 0.0


def cpu_seconds(pid: int) -> float | None:
    """User and system time that the process has used so far; None if unknown (no such process, or no /proc)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def busy_seconds() -> float:
    """CPU time that all programs and the kernel have used on all cores since the machine started; 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    idle_s = (int(fields[4]) + int(fields[5])) / TICKS_PER_S
    return sum(map(int, fields[1:9])) / TICKS_PER_S - idle_s


def memory_kb(pid: int, name: Literal["VmRSS", "VmHWM"]) -> int | None:
    """Resident memory now (``VmRSS``) or at its highest (``VmHWM``), in KiB; None if unknown."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)
