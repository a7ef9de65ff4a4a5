"""What a client leaves behind when its connection ends (5.0 section 4.1), and what it had asked for.

A session ends ``expiry_s`` seconds after its last connection; with 0 it ends together with it. While a client is
connected, ``connection`` is set and ``expires_at`` is None.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..codec.packets import Will
from .topics import Grant
from .window import Window

if TYPE_CHECKING:
    from .connection import Connection
    from .deadlines import Place
    from .engine import Engine
    from .ports import PauseReason, Restored

NEVER: Final = 0xFFFFFFFF  # Session Expiry Interval that means: does not expire


@dataclass(slots=True)
class SessionRecord:
    """A session as a store keeps it. Times are engine time in seconds; ``expires_at`` None = connected or for ever."""

    client_id: str
    expiry_s: int
    expires_at: float | None
    connected: bool
    subscriptions: dict[str, Grant]
    will: Will | None
    will_at: float | None
    sent_seq: int
    seq: int


class Session:
    """One client's state across connections."""

    __slots__ = (
        "client_id",
        "connection",
        "cut_off",
        "due_at",
        "engine",
        "expires_at",
        "expiry_s",
        "incoming",
        "paused",
        "place",
        "subscriptions",
        "weight",
        "will",
        "will_at",
        "window",
    )

    def __init__(self, engine: "Engine", client_id: str, window: Window) -> None:
        self.engine = engine
        self.client_id = client_id
        self.window = window
        self.connection: Connection | None = None
        self.expiry_s = 0
        self.expires_at: float | None = None
        self.subscriptions: dict[str, Grant] = {}
        self.weight = 0  # of the filters of all subscriptions
        self.incoming: set[int] | None = None  # packet ids of QoS 2 messages taken over, until PUBREL
        self.paused: dict[PauseReason, int] | None = None  # how often its client was not read from, and why
        self.cut_off: dict[int, int] | None = None  # connections of its client that we ended, by reason code
        self.will: Will | None = None
        self.will_at: float | None = None  # when the will of a client that is gone is due
        self.due_at: float | None = None
        self.place: Place | None = None

    def on_due(self, now: float) -> None:
        """Its will is due, or its end."""
        self.engine.session_due(self, now)

    def record(self) -> SessionRecord:
        """The session as it should be kept now."""
        window = self.window
        return SessionRecord(
            self.client_id,
            self.expiry_s,
            self.expires_at,
            self.connection is not None,
            dict(self.subscriptions),
            self.will,
            self.will_at,
            window.sent_seq,
            window.seq,
        )


def adopt(engine: "Engine", client_id: str, now: float) -> Session:
    """A session for a client that has not been here; it waits for it as long as sessions may."""
    window = Window(client_id, engine.config, engine.stats, engine.budget)
    session = engine.sessions[client_id] = Session(engine, client_id, window)
    session.expiry_s = engine.config.max_session_expiry_s
    session.expires_at = None if session.expiry_s == NEVER else now + session.expiry_s
    window.keeps = session.expiry_s > 0
    if engine.keeps and window.keeps:
        window.changes = engine.changes
    engine.watch(session)
    engine.save(session)
    return session


def restored(engine: "Engine", kept: "Restored") -> Session:
    """A session as a store kept it, but for its subscriptions."""
    record = kept.record
    window = Window(record.client_id, engine.config, engine.stats, engine.budget)
    window.keeps = record.expiry_s > 0
    window.changes = engine.changes
    window.restore(kept)
    session = Session(engine, record.client_id, window)
    session.incoming = kept.incoming or None
    session.expiry_s = record.expiry_s
    session.expires_at = record.expires_at
    session.will = record.will
    session.will_at = record.will_at
    return session
