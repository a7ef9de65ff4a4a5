"""Numbers: the counters that the core keeps, and the read-only picture of them for ``$SYS``, metrics and people."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from math import exp
from typing import TYPE_CHECKING, Final

from ..codec.reasons import name_of
from .queue import CHOSEN

if TYPE_CHECKING:
    from .engine import Engine
    from .ports import Action, PauseReason
    from .queue import DropReason
    from .session import Session

HEAVIEST: Final = 10  # sessions that a snapshot names
LOAD_MINUTES: Final = (1, 5, 15)


@dataclass(slots=True)
class Stats:
    """What happened since the broker started; every number only grows.

    ``packets_*`` count MQTT packets of every type, ``messages_*`` application messages: ``messages_received`` came from
    publishers, ``messages_sent`` went out, one for each receiver, with ``payload_bytes_sent`` bytes of payload;
    ``answers_sent`` are the packets sent that carry none. ``dropped`` counts deliveries that did not happen.
    """

    bytes_received: int = 0
    bytes_sent: int = 0
    packets_received: int = 0
    answers_sent: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    payload_bytes_received: int = 0
    payload_bytes_sent: int = 0
    connections: int = 0
    dropped: "dict[DropReason, int]" = field(default_factory=dict)
    paused: "dict[PauseReason, int]" = field(default_factory=dict)
    """How often a client was not read from any more, and why."""
    not_authorized: "dict[Action, int]" = field(default_factory=dict)
    """Messages and subscriptions of clients that were not allowed; deliveries are in ``dropped``."""
    cut_off: dict[int, int] = field(default_factory=dict)
    """Connections that the broker ended, by reason code."""

    def refuse(self, action: "Action", count: int = 1) -> None:
        """Count what a client was not allowed to do."""
        self.not_authorized[action] = self.not_authorized.get(action, 0) + count

    @property
    def packets_sent(self) -> int:
        """All MQTT packets that went out."""
        return self.answers_sent + self.messages_sent


@dataclass(slots=True, frozen=True)
class Snapshot:
    """The broker at one moment."""

    uptime_s: float
    clients_connected: int
    clients_disconnected: int
    clients_expired: int
    clients_maximum: int
    subscriptions: int
    retained_messages: int
    retained_bytes: int
    queued_messages: int
    queued_bytes: int
    inflight_messages: int
    stats: Stats
    store_trouble: str = ""  # why nothing can be written to disk; "" = it can
    memory_bytes: int = 0  # of messages that wait, counted for each session that they wait for
    memory_budget_bytes: int = 0
    heaviest: "tuple[SessionNumbers, ...]" = ()


@dataclass(slots=True, frozen=True)
class SessionNumbers:
    """One session: what waits for it, and what did not reach it since the session began."""

    client_id: str
    connected: bool
    queued_messages: int
    queued_bytes: int
    dropped: "dict[DropReason, int]"
    paused: "dict[PauseReason, int]"


def heaviest(sessions: "Iterable[Session]", count: int = HEAVIEST) -> tuple[SessionNumbers, ...]:
    """The sessions with most bytes waiting, the heaviest first; none that has nothing."""
    waiting = (session for session in sessions if session.window.queued)
    return tuple(map(numbers, nlargest(count, waiting, key=lambda session: session.window.queued_bytes)))


def numbers(session: "Session") -> SessionNumbers:
    """``session`` in numbers."""
    window = session.window
    return SessionNumbers(
        session.client_id,
        session.connection is not None,
        window.queued,
        window.queued_bytes,
        dict(window.dropped or {}),
        dict(session.paused or {}),
    )


class Loads:
    """Exponential moving averages per minute over 1, 5 and 15 minutes, as Mosquitto publishes them."""

    NAMES: Final = {
        "messages/received": "packets_received",
        "messages/sent": "packets_sent",
        "publish/received": "messages_received",
        "publish/sent": "messages_sent",
        "bytes/received": "bytes_received",
        "bytes/sent": "bytes_sent",
        "connections": "connections",
    }

    def __init__(self) -> None:
        self._last = dict.fromkeys(self.NAMES, 0)
        self.averages = {(name, minutes): 0.0 for name in self.NAMES for minutes in LOAD_MINUTES}

    def update(self, stats: Stats, elapsed_s: float) -> None:
        """Take in what happened in the last ``elapsed_s`` seconds."""
        for name, attribute in self.NAMES.items():
            count = getattr(stats, attribute)
            per_minute = (count - self._last[name]) * 60.0 / elapsed_s
            self._last[name] = count
            for minutes in LOAD_MINUTES:
                weight = exp(-elapsed_s / (60.0 * minutes))
                key = (name, minutes)
                self.averages[key] = per_minute + weight * (self.averages[key] - per_minute)


def sys_topics(engine: "Engine", now: float, loads: Loads) -> dict[str, str]:
    """The ``$SYS`` tree: topics that Mosquitto users expect, with their payloads."""
    shot = engine.snapshot(now)
    stats = shot.stats
    values: dict[str, str | int] = {
        "version": f"tidings version {engine.version}",
        "uptime": f"{int(shot.uptime_s)} seconds",
        "clients/total": shot.clients_connected + shot.clients_disconnected,
        "clients/connected": shot.clients_connected,
        "clients/active": shot.clients_connected,
        "clients/disconnected": shot.clients_disconnected,
        "clients/inactive": shot.clients_disconnected,
        "clients/expired": shot.clients_expired,
        "clients/maximum": shot.clients_maximum,
        "messages/received": stats.packets_received,
        "messages/sent": stats.packets_sent,
        "messages/stored": shot.retained_messages + shot.queued_messages,
        "store/messages/count": shot.retained_messages + shot.queued_messages,
        "store/messages/bytes": shot.retained_bytes + shot.queued_bytes,
        "publish/messages/received": stats.messages_received,
        "publish/messages/sent": stats.messages_sent,
        "publish/messages/dropped": sum(count for reason, count in stats.dropped.items() if reason not in CHOSEN),
        "publish/bytes/received": stats.payload_bytes_received,
        "publish/bytes/sent": stats.payload_bytes_sent,
        "bytes/received": stats.bytes_received,
        "bytes/sent": stats.bytes_sent,
        "retained messages/count": shot.retained_messages,
        "subscriptions/count": shot.subscriptions,
    }
    topics = {f"$SYS/broker/{name}": str(value) for name, value in values.items()}
    for (name, minutes), average in loads.averages.items():
        topics[f"$SYS/broker/load/{name}/{minutes}min"] = f"{average:.2f}"
    if engine.keeps:
        topics["$SYS/tidings/store/trouble"] = shot.store_trouble or "none"
    for reason, count in stats.dropped.items():
        topics[f"$SYS/tidings/dropped/{reason.value}"] = str(count)
    for why, count in stats.paused.items():
        topics[f"$SYS/tidings/paused/{why.value}"] = str(count)
    for action, count in stats.not_authorized.items():
        topics[f"$SYS/tidings/not-authorized/{action.value}"] = str(count)
    for code, count in stats.cut_off.items():
        topics[f"$SYS/tidings/cut-off/{name_of(code).rpartition(' ')[0].lower().replace(' ', '-')}"] = str(count)
    topics["$SYS/tidings/memory/bytes"] = str(shot.memory_bytes)
    topics["$SYS/tidings/memory/budget"] = str(shot.memory_budget_bytes)
    return topics
