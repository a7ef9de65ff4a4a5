"""What the core needs from outside: somewhere to send bytes (Outbox), somewhere to keep what it promised (Store), and
somebody who knows who may do what (Gate).

The core never awaits. It appends bytes to outboxes and Change records to the current batch; adapters carry both out.
An acknowledgement that depends on a batch is handed to the outbox together with the number of that batch, and the
outbox lets it go once ``Engine.durable`` says that the batch is safe.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

from ..codec.packets import Connect, Packet, Will
from ..codec.reasons import ReasonCode

if TYPE_CHECKING:
    from .connection import Connection
    from .message import Message
    from .session import SessionRecord
    from .topics import Grant
    from .window import Entry, Window


ANSWER_OVERHEAD_BYTES: Final = 120
"""What an answer that is held back takes in memory beside its own bytes."""


class PauseReason(Enum):
    """Why a publisher is not being read from. Shown in metrics."""

    OUTBOX = "outbox"  # it does not read the acknowledgements it caused
    STORE = "store"  # the store has too much to write
    MEMORY = "memory"  # too much waits in the broker, and it adds to that
    WINDOW = "window"  # the same, but only its acknowledgements are held back, so that its window closes
    CROWD = "crowd"  # more clients connect at once than one turn takes
    RATE = "rate"  # it sends, or connects, faster than it may
    GATE = "gate"  # the gate has not decided yet whether it may do what it asks for


class TurnedAway(Enum):
    """Why a connection was ended, without an answer, before its client had a session. Shown in metrics."""

    FULL = "max-connections"
    ADDRESS = "max-connections-per-address"
    BANNED = "banned"  # its address
    HANDSHAKE = "no-handshake"  # TLS, WebSocket or PROXY header; in time, or others waited
    CONNECT = "no-connect"  # in time
    AUTHENTICATION = "no-authentication"  # in time


class Outbox(Protocol):
    """The way back to one client. Order is kept within ``send`` and within ``send_after``, not between them."""

    full: bool
    """Over the high-water mark: queue instead of sending. ``Engine.writable`` is called when there is room again."""

    held: int
    """PUBLISH packets of this client whose acknowledgements wait in ``send_after`` for their batch."""

    @property
    def waits(self) -> bool:
        """Whether anything given to ``send_after`` has not left."""

    def send(self, data: bytes) -> None:
        """Put whole packets on the way; they leave at the end of this turn of the event loop."""

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        """Send once ``batch`` is durable and everything given here before has left. Batch 0 depends on nothing.

        ``publishes`` is the number of PUBLISH packets that ``data`` acknowledges.
        """

    def hold(self, batch: int) -> None:
        """Count as ``full`` until ``batch`` is durable."""

    def release(self, batch: int) -> None:
        """Batches up to this one are durable: let go what waited for them."""

    def go_on(self, reason: PauseReason) -> None:
        """Read again, if it was for ``reason`` that this client was not read from."""

    def shorten(self) -> None:
        """Be ``full`` early: this client wants the newest, and what is under way cannot be replaced."""

    def close(self) -> None:
        """Send what is under way, then close the connection. What is held is dropped."""


@dataclass(slots=True)
class Queued:
    """``messages`` are owed to the session under ``seq`` and the numbers after it, which also give their packet ids."""

    client_id: str
    seq: int
    messages: "list[Message]"
    grant: "Grant"


@dataclass(slots=True)
class Acked:
    """The session has ``messages``, owed under ``seq`` and the numbers after it (PUBACK). It does no harm if this is
    lost, alone or with others: they are owed once more."""

    client_id: str
    seq: int
    messages: "list[Message]"


@dataclass(slots=True)
class Withdrawn:
    """``messages``, owed under ``seq`` and the numbers after it, are not any more, though the session does not have
    them: a policy dropped them, or somebody else is owed them, which the same batch says."""

    client_id: str
    seq: int
    messages: "list[Message]"


@dataclass(slots=True)
class Released:
    """PUBREC arrived for ``seq``: the message is not owed any more, PUBREL is."""

    client_id: str
    seq: int
    message: "Message"


@dataclass(slots=True)
class Finished:
    """PUBCOMP arrived for ``seq``: PUBREL is not owed any more."""

    client_id: str
    seq: int


@dataclass(slots=True)
class Received:
    """A QoS 2 PUBLISH with ``packet_id`` was taken from the session; a second one is a repetition."""

    client_id: str
    packet_id: int


@dataclass(slots=True)
class Completed:
    """PUBREL arrived for ``packet_id``: the id is free again."""

    client_id: str
    packet_id: int


@dataclass(slots=True)
class SessionSaved:
    """The session exists as ``record`` says. Written at CONNECT, SUBSCRIBE, UNSUBSCRIBE and at disconnection."""

    record: "SessionRecord"


@dataclass(slots=True)
class SessionGone:
    """The session and all it owed ended."""

    client_id: str


@dataclass(slots=True)
class RetainedSet:
    """``message`` is the retained message of its topic; an empty payload removes it."""

    message: "Message"


@dataclass(slots=True)
class Wanted:
    """Not a promise but a question: up to ``count`` messages, about ``size_bytes`` of them, that ``window`` is owed
    after ``seq``. ``Engine.refill`` takes the answer, which reflects every change before the question."""

    window: "Window"
    seq: int
    count: int
    size_bytes: int


Change = (
    Queued
    | Acked
    | Withdrawn
    | Released
    | Finished
    | Received
    | Completed
    | SessionSaved
    | SessionGone
    | RetainedSet
    | Wanted
)


class Batch(list[Change]):
    """The changes gathered in this turn of the loop; ``number`` is the batch they will be."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        super().__init__()
        self.number = 1


@dataclass(slots=True)
class Restored:
    """A session as a store kept it. ``owed_count`` messages, ``owed_bytes`` of them (``Message.size``), wait for it.

    ``released``: sequence numbers for which PUBREL is owed. ``incoming``: packet ids of QoS 2 messages taken over from
    the client and not yet released by it. ``maybe_sent_seq``: messages up to this number may have gone out before;
    all of them if the client was connected, because a store may have lost any number of acknowledgements.
    """

    record: "SessionRecord"
    owed_count: int
    owed_bytes: int
    released: list[int]
    incoming: set[int]
    maybe_sent_seq: int


class StoreEvents(Protocol):
    """What a store tells the broker; in the event loop's thread."""

    def durable(self, batch: int) -> None:
        """Everything up to ``batch`` is as safe as its level promises."""

    def refill(self, window: "Window", entries: "Sequence[Entry]") -> None:
        """The answer to a ``Wanted``, in order."""

    def store_trouble(self, trouble: str) -> None:
        """Nothing becomes durable for now, in words that an operator can use; "" = all is well again."""


class Store(Protocol):
    """Keeps Change records. Batches become durable in order."""

    @property
    def backlog_bytes(self) -> int:
        """Bytes of messages given to ``write`` that are not durable yet."""

    def last_now(self, wall: float) -> float:
        """Engine time to go on with, where ``wall`` is what the wall clock says; never less than it was before."""

    def load(self) -> Iterable[Restored]:
        """Every session that was kept."""

    def load_retained(self) -> "Iterable[Message]":
        """Every retained message."""

    def start(self, events: StoreEvents) -> None:
        """Begin to write; from now on ``events`` is told what happens. Called in the event loop, after loading."""

    def write(self, batch: int, changes: list[Change]) -> None:
        """Make the changes durable some time soon."""

    def close(self) -> None:
        """Write what is left and close. Raises StoreError if it cannot be written."""


class Action(Enum):
    """What a client does with a topic, or with a topic filter where it subscribes."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


@dataclass(slots=True, frozen=True)
class Accepted:
    """The client is who it says. ``data``: Authentication Data for it; ``user``: who it is, None = as CONNECT said."""

    data: bytes | None = None
    user: str | None = None


@dataclass(slots=True, frozen=True)
class Refused:
    """The client is not let in. 5.0 clients are told ``text``, which must not help anybody who guesses."""

    reason: ReasonCode = ReasonCode.NOT_AUTHORIZED
    text: str = ""


@dataclass(slots=True, frozen=True)
class Challenge:
    """``data`` for the client to answer, in an AUTH packet (5.0 section 4.12)."""

    data: bytes | None = None


Answer = Accepted | Refused | Challenge


@dataclass(slots=True, eq=False)
class Identity:
    """Who a client says it is, in one connection; what a Gate is asked about, and answers by.

    ``user`` is "" if CONNECT had no user name; ``password`` is forgotten once the gate has answered. ``method`` is the
    Authentication Method of CONNECT, "" if it had none, and ``data`` the Authentication Data that came last. ``tls``
    is the connection's ``ssl.SSLObject``, None without TLS. ``note`` belongs to the gate.
    """

    client_id: str
    user: str
    password: bytes | None = field(repr=False)
    peer: str
    version: int
    clean_start: bool
    keep_alive_s: int
    will: Will | None = field(repr=False)
    method: str
    data: bytes | None = field(repr=False)
    tls: object | None = field(repr=False)
    connection: "Connection" = field(repr=False)
    connect: Connect | None = field(repr=False)  # until CONNACK
    note: object = field(default=None, repr=False)
    # what the core knows of the exchange
    asked: bool = field(default=False, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    accepted: Accepted | None = field(default=None, repr=False)
    challenged: bool = field(default=False, repr=False)


class Watcher(Protocol):
    """Is told what clients do, and has no say in it. It must not wait, and must not change anything.

    The last three methods are called for ``Engine.message_watcher`` only, since messages are many.
    """

    def connected(self, connection: "Connection") -> None:
        """CONNACK was sent."""

    def disconnected(self, connection: "Connection") -> None:
        """The connection of a client that was connected has ended."""

    def subscribed(self, client_id: str, filter: str, qos: int) -> None:
        """A subscription was made, or replaced."""

    def unsubscribed(self, client_id: str, filter: str) -> None:
        """UNSUBSCRIBE named ``filter``, whether there was such a subscription or not."""

    def received(self, client_id: str, messages: "Sequence[Message]", may: bool) -> None:
        """A client published messages of one topic; ``may`` says whether it was allowed to."""

    def retained(self, message: "Message") -> None:
        """A retained message was set or, by an empty payload, removed."""

    def queued(self, client_id: str, messages: "Sequence[Message]") -> None:
        """Messages wait for a client that is away."""


class Tap(Protocol):
    """Sees the packets themselves. It must not wait, and must not change anything."""

    def received(self, connection: "Connection", packets: "Sequence[Packet]") -> None:
        """What one read brought, before it is handled."""

    def sent(self, connection: "Connection", data: bytes) -> None:
        """Whole packets that leave."""


class Gate(Protocol):
    """Decides who is let in, and what they may do with which topic.

    It must not wait. None means that the decision comes later, in a turn of its own: ``Engine.decided`` for the first
    three methods, ``Engine.allowed`` for ``may``. Until then that client waits, and nobody else.
    """

    def authenticate(self, identity: Identity, now: float) -> Answer | None:
        """CONNECT arrived. Where ``identity.method`` names a method that there is not: Refused, 0x8C."""

    def respond(self, identity: Identity, now: float) -> Answer | None:
        """AUTH arrived with ``identity.data``, in answer to the last Challenge."""

    def reauthenticate(self, identity: Identity, now: float) -> Answer | None:
        """The client wants to authenticate again in its connection, and begins with ``identity.data``."""

    def may(self, identity: Identity, action: Action, topic: str, now: float) -> bool | None:
        """Whether the client may do ``action`` with ``topic``; with SUBSCRIBE that is a filter, without ``$share``."""

    def left(self, identity: Identity, now: float) -> None:
        """The connection ended, accepted or not. Decisions that are under way for it are not wanted any more."""
