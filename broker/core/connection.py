"""One client's side of the protocol: which packet is legal in which state, and what it does.

The table ``HANDLERS`` is the state machine: a packet type that a state does not list is a protocol error. The
handlers answer through the outbox and change the session; what concerns other clients (taking over, routing, wills)
they leave to the ``Engine``. Nothing here waits, reads a clock or knows a socket.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from ..codec.encode import encode
from ..codec.packets import (
    MQTT_5_0,
    NO_PROPERTIES,
    AckRun,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    PublishRun,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsubscribe,
)
from ..codec.properties import Properties
from ..codec.reasons import CONNACK_RETURN_CODE, LEGAL, ReasonCode
from ..codec.wire import PACKET_ID
from ..errors import ProtocolError
from .budget import SLACK_BYTES
from .connecting import on_auth, on_connect
from .message import Message
from .ports import ANSWER_OVERHEAD_BYTES, Identity, Outbox, PauseReason, TurnedAway
from .publishing import on_publish, on_publish_run, on_pubrel, on_pubrels, on_run
from .rights import Rights, Undecided
from .session import Session
from .state import State
from .subscribing import on_subscribe, on_unsubscribe

if TYPE_CHECKING:
    from .deadlines import Place
    from .engine import Engine


class Connection:
    """The protocol state of one network connection."""

    __slots__ = (
        "_handlers",
        "_withheld",
        "aliases",
        "due_at",
        "engine",
        "held_up",
        "identity",
        "keep_alive_s",
        "last_seen",
        "max_packet_size",
        "outbox",
        "peer",
        "place",
        "problem_information",
        "receive_maximum",
        "rights",
        "session",
        "session_expiry_s",
        "state",
        "tls",
        "undecided",
        "user",
        "version",
        "welcome",
        "withheld_bytes",
        "withheld_publishes",
    )

    def __init__(self, engine: "Engine", outbox: Outbox, peer: str, now: float, tls: object | None = None) -> None:
        self.engine = engine
        self.outbox = outbox
        self.peer = peer
        self.tls = tls
        self.identity: Identity | None = None  # since CONNECT, if there is a gate
        self.rights: Rights | None = None
        self.undecided: list[Packet] | None = None  # what came since the gate was asked
        self.become(State.CONNECTING)
        self.version = 0  # unknown before CONNECT
        self.user = ""
        self.held_up = False  # by us: what it sends is not read for now
        self.session: Session | None = None
        self.session_expiry_s = 0
        self.keep_alive_s = 0.0  # silence in seconds after which the client counts as gone; 0 = never
        self.last_seen = now
        self.due_at: float | None = None
        self.place: Place | None = None
        self.problem_information = True
        self.max_packet_size = 0  # 0 = the client named none
        self.welcome = 0  # the batch that CONNACK waits for
        self.aliases: dict[int, str] | None = None
        self.receive_maximum = 65_535  # what we said, and what was under way before; holds for 5.0 only
        self._withheld: deque[tuple[bytes, int, int]] | None = None  # acknowledgements, as for ``Outbox.send_after``
        self.withheld_publishes = 0
        self.withheld_bytes = 0

    @property
    def client_id(self) -> str:
        """The client's id, "" before CONNECT was accepted."""
        return self.session.client_id if self.session is not None else ""

    @property
    def own_session(self) -> Session:
        """The session; there is one since CONNECT was accepted."""
        assert self.session is not None
        return self.session

    def __repr__(self) -> str:
        return f"<{self.state.value} {self.client_id!r:.200} from {self.peer}>"  # an id may have 65,535 bytes

    def on_due(self, now: float) -> None:
        """Nothing may have been heard for too long: no CONNECT at all, or no sign of life within the keep-alive."""
        engine = self.engine
        if self.held_up and self.identity is None and self.state is State.CONNECTING:
            engine.deadlines.set(self, now + engine.config.connect_timeout_s)  # it is us who did not listen
        elif self.state is not State.CONNECTED:
            why = "no CONNECT in time" if self.identity is None else "not authenticated in time"
            engine.stats.turn_away(TurnedAway.CONNECT if self.identity is None else TurnedAway.AUTHENTICATION)
            engine.log.warning("closing %r: %s", self, why)
            engine.leave(self, now, why)
        elif self.keep_alive_s:
            # While the store holds clients up, it may be us who did not listen.
            due = (now if engine.stalled or self.held_up else self.last_seen) + self.keep_alive_s
            if due > now:
                engine.deadlines.set(self, due)
            else:
                error = ProtocolError("nothing heard within the keep-alive", ReasonCode.KEEP_ALIVE_TIMEOUT)
                engine.fail(self, error, now)

    def become(self, state: State) -> None:
        """Enter ``state``: from now on the packets of its row are legal."""
        self.state = state
        self._handlers = HANDLERS[state]

    def receive(self, packets: Sequence[Packet], now: float) -> None:
        """Take the packets of one read, in order. Raises ProtocolError at the first that is out of order."""
        self.last_seen = now
        if self.undecided is not None:
            self.undecided += packets
            return
        if len(packets) == 1:
            try:
                self._receive_one(packets[0], now)
            except Undecided:
                self.undecided = [*packets]
        else:
            self._receive_many(packets, now)
        session = self.session
        if session is not None:
            window = session.window
            if window.queue or window.resend or window.latest is not None:
                window.pump(now)  # acknowledgements may have made room
                if window.lookups:
                    self.engine.handout.begin(now)
            elif window.charged and (not window.inflight or window.inflight_bytes < window.charged - SLACK_BYTES):
                window.settle()

    def _receive_one(self, packet: Any, now: float) -> None:
        kind = type(packet)
        if kind is Message and packet.properties is NO_PROPERTIES:
            on_run(self, [packet], now)
            return
        handler = self._handlers.get(kind)
        if handler is None:
            raise ProtocolError(f"{kind.__name__.upper()} while {self.state.value}")
        handler(self, packet, now)

    def _receive_many(self, packets: Sequence[Packet], now: float) -> None:
        """Neighbouring PUBLISH packets that differ in payload and packet id only make a run.

        Decoders hand out one str per topic, so identity tells.
        """
        run: list[Message] = []
        topic, qos, retain = "", 0, False
        packet: Any = None  # its type is looked at once, as a whole
        remaining = iter(packets)
        try:
            for packet in remaining:
                kind = type(packet)
                if run:
                    if (
                        kind is Message
                        and packet.topic is topic
                        and packet.qos == qos
                        and packet.retain == retain
                        and packet.properties is NO_PROPERTIES
                    ):
                        run.append(packet)
                        continue
                    on_run(self, run, now)
                    run = []
                if kind is Message and packet.properties is NO_PROPERTIES:
                    run = [packet]
                    topic, qos, retain = packet.topic, packet.qos, packet.retain
                    continue
                self._receive_one(packet, now)
            packet = None
            if run:
                on_run(self, run, now)
        except Undecided:
            self.undecided = [*run, *([] if packet is None else [packet]), *remaining]

    def go_on(self, now: float) -> None:
        """The gate has decided something: handle what waited for it. Raises ProtocolError."""
        waiting = self._take_undecided()
        if waiting is None:
            return
        self.receive(waiting, now)
        undecided = self.undecided  # set again, if another one has to wait
        if self.rights is not None and (undecided is None or undecided[0] is not waiting[0]):
            self.rights.done()
        if undecided is None:
            self.outbox.go_on(PauseReason.GATE)

    def _take_undecided(self) -> list[Packet] | None:
        waiting, self.undecided = self.undecided, None
        return waiting

    def pause(self, reason: PauseReason | None, now: float) -> None:
        """The client is not read from any more, for ``reason``; None = it is again."""
        if reason is None:
            if self.held_up:
                self.held_up = False
                self.last_seen = now  # what it sent meanwhile is only seen now
            return
        self.held_up = reason is not PauseReason.OUTBOX  # it could read: then its silence counts
        self._count_pause(reason)

    def _count_pause(self, reason: PauseReason) -> None:
        for counts in self._pauses():
            counts[reason] = counts.get(reason, 0) + 1

    def _pauses(self) -> "Iterator[dict[PauseReason, int]]":
        yield self.engine.stats.paused
        session = self.session
        if session is not None:
            if session.paused is None:
                session.paused = {}
            yield session.paused

    def weigh(self, size_bytes: int) -> None:
        """``size_bytes`` wait in the connection, in either direction."""
        session = self.session
        if session is not None and session.connection is self:
            session.window.link_bytes = size_bytes
            session.window.settle()

    @property
    def owes_acknowledgements(self) -> bool:
        """Whether what it sends may free the window of its own session."""
        return self.session is not None and bool(self.session.window.inflight)

    # sending

    def answer(self, packet: Packet, since: int | None = None) -> None:
        """Answer in order; with ``since`` once all changes but the first ``since`` of this batch are durable."""
        self.outbox.send_after(self._encode(packet), self._batch(since))
        self.engine.stats.answers_sent += 1

    def _batch(self, since: int | None) -> int:
        engine = self.engine
        return engine.batch if since is not None and len(engine.changes) > since else 0

    def _encode(self, packet: Packet) -> bytes:
        """The bytes of ``packet``, without its reason string if it is too long for the client with it.

        5.0 [MQTT-3.1.2-24], [MQTT-3.2.2-19], [MQTT-3.9.2-1], [MQTT-3.14.2-3].
        """
        data = encode(packet, self.version)
        limit = self.max_packet_size
        if limit and len(data) > limit and isinstance(packet, Connack | Suback | Disconnect):
            properties = packet.properties.copy()
            properties.pop("reason_string", None)
            data = encode(replace(packet, properties=properties), self.version)
        if limit and len(data) > limit:
            raise ProtocolError("the answer is over the client's Maximum Packet Size", ReasonCode.PACKET_TOO_LARGE)
        return data

    def answer_acks(self, first: bytes, packet_ids: list[int], unknown: set[int], since: int) -> None:
        """One answer for each id, in order; from 5.0 on they tell which ids are ``unknown`` to us."""
        ok = first + b"\x02"
        if unknown and self.version == MQTT_5_0:
            no, why = first + b"\x03", bytes((ReasonCode.PACKET_IDENTIFIER_NOT_FOUND,))
            answers = [no + PACKET_ID[id] + why if id in unknown else ok + PACKET_ID[id] for id in packet_ids]
        else:
            answers = [ok + PACKET_ID[id] for id in packet_ids]
        self.outbox.send_after(b"".join(answers), self._batch(since))
        self.engine.stats.answers_sent += len(packet_ids)

    def _on_disconnect(self, packet: Disconnect, now: float) -> None:
        expiry_s = packet.properties.get("session_expiry_interval")
        if expiry_s is not None and self.session is not None:
            if expiry_s and not self.session_expiry_s:
                # 5.0 section 3.14.2.2.2
                raise ProtocolError("DISCONNECT sets a Session Expiry Interval that CONNECT had as 0")
            self.session_expiry_s = min(expiry_s, self.engine.config.max_session_expiry_s)
            self.session.expiry_s = self.session_expiry_s
        if packet.reason == ReasonCode.NORMAL_DISCONNECTION and self.session is not None:
            self.session.will = None  # 5.0 [MQTT-3.14.4-3], 3.1.1 [MQTT-3.14.4-3]
        self.engine.leave(self, now, f"client said goodbye ({packet.reason:#04x})" if packet.reason else "")

    def _on_pingreq(self, packet: Pingreq, now: float) -> None:
        self.answer(Pingresp())  # 5.0 [MQTT-3.12.4-1]

    def withhold(self) -> None:
        """Memory is short and this client adds to what waits: let its window close.

        Receive Maximum cannot change within a connection (5.0 section 3.2.2.3.3), but nobody says how soon a PUBLISH is
        acknowledged. All else is answered, and its own acknowledgements are read.
        """
        if self._withheld is None:
            self._withheld = deque()
            self.engine.withholding.add(self)
            self._count_pause(PauseReason.WINDOW)

    def let_go(self) -> None:
        """Give the acknowledgements that were held back to the outbox."""
        withheld, self._withheld = self._withheld, None
        self.withheld_publishes = self.withheld_bytes = 0
        for data, batch, publishes in withheld or ():
            self.outbox.send_after(data, batch, publishes)
        self.outbox.go_on(PauseReason.MEMORY)  # if they were so many that it was not read from

    def acknowledge(self, data: bytes, batch: int, publishes: int) -> None:
        """PUBACK or PUBREC, in order: 5.0 [MQTT-4.6.0-2], [MQTT-4.6.0-3]."""
        if self._withheld is None:
            self.outbox.send_after(data, batch, publishes)
        else:
            self._withheld.append((data, batch, publishes))
            self.withheld_publishes += publishes
            self.withheld_bytes += len(data) + ANSWER_OVERHEAD_BYTES

    # being delivered to

    def _on_puback(self, packet: Puback, now: float) -> None:
        window = self.own_session.window
        entry = window.on_puback(packet.packet_id)
        if entry is not None and packet.reason >= 0x80:
            window.refused()

    def _on_pubrec(self, packet: Pubrec, now: float) -> None:
        if packet.reason < 0x80:
            self._on_pubrecs([packet.packet_id])
        else:
            self.own_session.window.on_pubrec(packet.packet_id, packet.reason)

    def _on_pubrecs(self, packet_ids: list[int]) -> None:
        window = self.own_session.window
        since = len(self.engine.changes)
        unknown = {packet_id for packet_id in packet_ids if not window.on_pubrec(packet_id)}
        # 5.0 [MQTT-4.3.3-4]; an unknown id is answered too, so that the receiver can forget it
        self.answer_acks(b"\x62", packet_ids, unknown, since)

    def _on_pubcomp(self, packet: Pubcomp, now: float) -> None:
        self.own_session.window.on_pubcomp(packet.packet_id)

    def _on_ack_run(self, packets: AckRun, now: float) -> None:
        packet_ids = packets.packet_ids
        self.engine.stats.packets_received += len(packet_ids) - 1
        window = self.own_session.window
        if packets.kind is Puback:
            window.on_pubacks(packet_ids)
        elif packets.kind is Pubrec:
            self._on_pubrecs(packet_ids)
        elif packets.kind is Pubrel:
            on_pubrels(self, packet_ids)
        else:
            for packet_id in packet_ids:
                window.on_pubcomp(packet_id)

    # ending

    def refuse(self, error: ProtocolError) -> None:
        """Answer an error as the state and the version allow; the caller closes the connection afterwards."""
        packet: Packet
        before = self.state in (State.CONNECTING, State.AUTHENTICATING)
        if before and self.version == MQTT_5_0:
            packet = Connack(False, legal(PacketType.CONNACK, error.reason), self.why(error))
        elif before and self.version and error.reason in CONNACK_RETURN_CODE:
            packet = Connack(False, CONNACK_RETURN_CODE[error.reason])
        elif self.state is State.CONNECTED and self.version == MQTT_5_0 and self.welcome <= self.engine.durable_batch:
            packet = Disconnect(legal(PacketType.DISCONNECT, error.reason), self.why(error))
        else:
            return
        with suppress(ProtocolError):  # a client that takes no packet of this size gets none
            self.outbox.send(self._encode(packet))
            self.engine.stats.answers_sent += 1

    def why(self, error: ProtocolError) -> Properties:
        """``error`` as the reason string of an answer, unless the client asked for none."""
        return {"reason_string": str(error)} if self.problem_information and str(error) else NO_PROPERTIES


def legal(kind: PacketType, reason: int) -> int:
    """``reason`` where ``kind`` may carry it, else Protocol Error: a second CONNECT may fail for reasons of a first."""
    return reason if reason in LEGAL[kind] else ReasonCode.PROTOCOL_ERROR


Handler = Callable[[Connection, Any, float], None]

HANDLERS: Final[dict[State, dict[type, Handler]]] = {
    # 5.0 [MQTT-3.1.0-1] the first packet is CONNECT; 5.0 [MQTT-3.1.0-2] and there is no second one
    State.CONNECTING: {Connect: on_connect},
    # 5.0 [MQTT-3.1.2-30] until CONNACK nothing else than AUTH and DISCONNECT
    State.AUTHENTICATING: {Auth: on_auth, Disconnect: Connection._on_disconnect},
    State.CONNECTED: {
        Publish: on_publish,
        Message: on_publish,
        PublishRun: on_publish_run,
        Puback: Connection._on_puback,
        Pubrec: Connection._on_pubrec,
        Pubrel: on_pubrel,
        Pubcomp: Connection._on_pubcomp,
        AckRun: Connection._on_ack_run,
        Subscribe: on_subscribe,
        Unsubscribe: on_unsubscribe,
        Pingreq: Connection._on_pingreq,
        Disconnect: Connection._on_disconnect,
        Auth: on_auth,
    },
    State.CLOSED: {},
}
