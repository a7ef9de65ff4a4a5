"""Numbers: the counters that the core keeps, and the read-only picture of them for ``$SYS``, metrics and people."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .engine import Engine
    from .ports import Action, PauseReason, TurnedAway
    from .queue import DropReason
    from .session import Session

HEAVIEST: Final = 10  # sessions that a snapshot names


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
    turned_away: "dict[TurnedAway, int]" = field(default_factory=dict)
    """Connections that came to nothing, and nobody was told why."""
    untold: int = 0
    """Events that plugins were not told of, because too many waited."""

    def refuse(self, action: "Action", count: int = 1) -> None:
        """Count what a client was not allowed to do."""
        self.not_authorized[action] = self.not_authorized.get(action, 0) + count

    def turn_away(self, why: "TurnedAway") -> None:
        """Count a connection that comes to nothing."""
        self.turned_away[why] = self.turned_away.get(why, 0) + 1

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
    """One session: what waits for it, and what did not reach it since the session began.

    ``queued_messages`` count what only the store has too; of the bytes, ``stored_bytes`` are those.
    """

    client_id: str
    connected: bool
    queued_messages: int
    queued_bytes: int
    stored_bytes: int
    inflight_messages: int  # sent, and not acknowledged
    inflight_bytes: int
    link_bytes: int  # in its connection: for the socket, answers held back, a packet half read
    dropped: "dict[DropReason, int]"
    paused: "dict[PauseReason, int]"
    """How often its client was not read from any more, or its acknowledgements were held back, and why."""
    cut_off: dict[int, int]
    """Connections of its client that the broker ended, by reason code."""

    @property
    def waiting_bytes(self) -> int:
        """Everything that waits for the session in memory."""
        return self.queued_bytes + self.inflight_bytes + self.link_bytes


def heaviest(sessions: "Iterable[Session]", count: int = HEAVIEST) -> tuple[SessionNumbers, ...]:
    """The sessions with most bytes waiting in memory, the heaviest first; none that has nothing."""
    waiting = (session for session in sessions if _weight(session) or session.window.queued)
    return tuple(map(numbers, nlargest(count, waiting, key=_weight)))


def _weight(session: "Session") -> int:
    window = session.window
    return window.queued_bytes + window.inflight_bytes + window.link_bytes


def numbers(session: "Session") -> SessionNumbers:
    """``session`` in numbers."""
    window = session.window
    return SessionNumbers(
        session.client_id,
        session.connection is not None,
        window.queued,
        window.queued_bytes,
        window.spilled_bytes,
        len(window.inflight) + len(window.resend or ()),
        window.inflight_bytes,
        window.link_bytes,
        dict(window.dropped or {}),
        dict(session.paused or {}),
        dict(session.cut_off or {}),
    )


def take_snapshot(engine: "Engine", now: float) -> Snapshot:
    """The broker as it is at ``now``."""
    connected = sum(session.connection is not None for session in engine.sessions.values())
    windows = [session.window for session in engine.sessions.values()]
    return Snapshot(
        uptime_s=now - engine.started_at,
        clients_connected=connected,
        clients_disconnected=len(engine.sessions) - connected,
        clients_expired=engine.clients_expired,
        clients_maximum=engine.clients_maximum,
        subscriptions=engine.topics.count,
        retained_messages=len(engine.retained),
        retained_bytes=engine.retained.bytes,
        queued_messages=sum(window.queued for window in windows),
        queued_bytes=sum(window.queued_bytes for window in windows),
        inflight_messages=sum(len(window.inflight) for window in windows),
        stats=engine.stats,
        store_trouble=engine.store_trouble,
        memory_bytes=engine.budget.used_bytes,
        memory_budget_bytes=engine.budget.limit_bytes,
        heaviest=heaviest(engine.sessions.values()),
    )
