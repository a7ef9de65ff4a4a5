"""The broker as a synchronous state machine: sessions, routing, wills, expiry.

Adapters call ``connect``, ``handle``, ``writable``, ``disconnected`` and ``durable`` as things happen, each with the
time ``now`` (seconds; wall clock at the start of the process plus what a monotonic clock has counted since), and
``tick`` when ``next_deadline`` has come. Everything the engine does in return is an append to an outbox, a Change
appended to ``changes``, or ``Outbox.close``.

1. One session per client id, one connection per session.
2. Every open connection is in ``connections``; every session in ``sessions``.
3. ``changes`` is the batch that is being gathered and ``batch`` its number. The list stays the same object.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from ..codec.packets import Packet, Will
from ..codec.reasons import ReasonCode, name_of
from ..errors import ProtocolError, UnsupportedVersion
from .budget import Budget
from .connection import Connection
from .deadlines import Deadlines, Regular
from .handout import Handout
from .levels import Levels
from .message import Message, Run, forwarded
from .ports import (
    Action,
    Answer,
    Batch,
    Change,
    Gate,
    Identity,
    Outbox,
    Restored,
    RetainedSet,
    SessionGone,
    SessionSaved,
    Watcher,
)
from .queue import DropReason
from .retained import Retained
from .session import NEVER, Session, restored
from .snapshot import Snapshot, Stats, take_snapshot
from .state import State
from .sys_topics import SysTopics
from .topics import Grant, Share, Topics, weight
from .window import Entry, Window

if TYPE_CHECKING:
    from ..config import Config

SWEEP_S: Final = 30.0  # seconds between two removals of expired retained messages


class Engine:
    """All state of one broker. ``new_client_id`` makes ids for 5.0 and 3.1.1 clients that bring none."""

    def __init__(
        self,
        config: "Config",
        now: float,
        new_client_id: Callable[[], str],
        *,
        version: str = "",
        keeps: bool = False,
        gate: Gate | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.config = config
        self.gate = gate  # None = everybody may do everything
        self.watcher = watcher
        self.message_watcher: Watcher | None = watcher  # the same, if it wants to be told about messages too
        self.version = version
        self.new_client_id = new_client_id
        self.keeps = keeps  # whether there is a store that outlives the process
        self.log = logging.getLogger("tidings.broker")
        self.started_at = now
        self.sessions: dict[str, Session] = {}
        self.connections: set[Connection] = set()
        self.withholding: set[Connection] = set()  # those whose acknowledgements wait for memory
        self.topics = Topics(config.max_routes, config.max_topic_levels)
        self.retained = Retained(config.max_retained_messages, config.max_retained_bytes)
        self.stats = Stats()
        self.levels = Levels(config)
        self.changes = Batch()
        self.batch = 1
        self.durable_batch = 0
        self.stalled = False  # the store has more to write than it may have
        self.store_trouble = ""  # why the store writes nothing at all
        self.clients_expired = 0
        self.clients_maximum = 0
        self.longest_turn_s = 0.0  # of the event loop's, with what its end flushes; ``$SYS`` tells it and begins anew
        self.deadlines = Deadlines()
        self.handout = Handout(self)
        self.budget = Budget(config, self.deadlines)
        self.deadlines.set(Regular(self.deadlines, self._sweep, SWEEP_S), now + SWEEP_S)
        if config.sys_interval_s:
            self.deadlines.set(Regular(self.deadlines, SysTopics(self).publish, config.sys_interval_s), now)

    # what adapters call

    def connect(self, outbox: Outbox, peer: str, now: float, tls: object | None = None) -> Connection:
        """A network connection was accepted. ``peer`` names its other end in logs; ``tls``: see ``Identity``."""
        connection = Connection(self, outbox, peer, now, tls)
        self.connections.add(connection)
        self.stats.connections += 1
        self.deadlines.set(connection, now + self.config.connect_timeout_s)
        return connection

    def handle(self, connection: Connection, packets: Sequence[Packet], now: float) -> None:
        """Take the packets of one read."""
        self.stats.packets_received += len(packets)
        try:
            connection.receive(packets, now)
        except ProtocolError as error:
            self.fail(connection, error, now)
        if self.budget.attention:
            self.relieve(now)

    def decided(self, identity: Identity, answer: Answer, now: float) -> None:
        """The gate's answer to what it was asked about ``identity``. Ignored if nobody waits for it any more."""
        if identity.asked and identity.answer is None:
            identity.answer = answer
            self._go_on(identity.connection, now)

    def allowed(self, identity: Identity, action: Action, topic: str, may: bool, now: float) -> None:
        """The gate's answer to ``Gate.may``. Ignored if nobody waits for it any more."""
        connection = identity.connection
        rights = connection.rights
        if connection.state is State.CLOSED or rights is None or not rights.decided(action, topic, may, now):
            return
        if action is Action.RECEIVE:
            if connection.session is not None:
                connection.session.window.pump(now)
                if self.budget.attention:
                    self.relieve(now)
        elif not rights.waits:
            self._go_on(connection, now)

    def _go_on(self, connection: Connection, now: float) -> None:
        if connection.state is State.CLOSED:
            return
        try:
            connection.go_on(now)
        except ProtocolError as error:
            self.fail(connection, error, now)
        except Exception:
            self.log.exception("internal error while serving %r", connection)
            ours = ProtocolError("internal error of the broker", ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)
            self.fail(connection, ours, now)
        if self.budget.attention:
            self.relieve(now)

    def forget(self, identity: Identity | None = None) -> None:
        """Ask the gate anew what a client may do, or (None) what all of them may."""
        for connection in self.connections if identity is None else (identity.connection,):
            if connection.rights is not None:
                connection.rights.forget()

    def relieve(self, now: float) -> None:
        """Keep to the memory budget, and cut off the clients whose policy, or that, asks for it."""
        budget = self.budget
        while True:
            while budget.cut_off:
                window, why = budget.cut_off.popitem()
                session = self.sessions.get(window.client_id)
                if session is not None and session.window is window and session.connection is not None:
                    self.fail(session.connection, ProtocolError(why, ReasonCode.QUOTA_EXCEEDED), now)
            budget.relieve(now)
            if not budget.cut_off:
                break
        if self.withholding and not budget.pressed:
            withholding, self.withholding = self.withholding, set()
            for connection in withholding:
                connection.let_go()

    def fail(self, connection: Connection, error: ProtocolError, now: float) -> None:
        """The one place where an error of the peer becomes an answer, a line in the log, and the end."""
        if connection.state is State.CLOSED:
            return
        if isinstance(error, UnsupportedVersion) and connection.state is State.CONNECTING:
            # 3.1.1 [MQTT-3.1.2-2] and 5.0 [MQTT-3.1.2-2]: answered in the form that the level suggests
            connection.version = 5 if error.level >= 5 else 4
        connection.refuse(error)
        self._count_cut_off(connection, error.reason)
        self.log.warning("closing %r: %s: %s", connection, name_of(error.reason), error)
        self.leave(connection, now, str(error))

    def _count_cut_off(self, connection: Connection, reason: int) -> None:
        self.stats.cut_off[reason] = self.stats.cut_off.get(reason, 0) + 1
        session = connection.session
        if session is not None:
            if session.cut_off is None:
                session.cut_off = {}
            session.cut_off[reason] = session.cut_off.get(reason, 0) + 1

    def disconnected(self, connection: Connection, now: float, why: str = "connection lost") -> None:
        """The network connection is gone."""
        if connection.state is not State.CLOSED:
            self.leave(connection, now, why)

    def writable(self, connection: Connection, now: float) -> None:
        """The outbox of ``connection`` has room again."""
        if connection.session is not None and connection.state is State.CONNECTED:
            connection.session.window.pump(now)
            if connection.session.window.lookups:
                self.handout.begin(now)

    def take_changes(self) -> tuple[int, list[Change]]:
        """The batch gathered so far, for the store to write; the next one begins."""
        changes = self.changes.copy()
        self.changes.clear()
        number = self.batch
        self.batch += 1
        self.changes.number = self.batch
        return number, changes

    def durable(self, batch: int, waiting: Iterable[Outbox] | None = None) -> None:
        """Batches up to this one are safe: what was promised on them may leave.

        ``waiting``: the outboxes that hold something back; None = any of them may.
        """
        self.durable_batch = batch
        if waiting is None:
            waiting = [connection.outbox for connection in self.connections]
        for outbox in waiting:
            outbox.release(batch)

    def next_deadline(self) -> float | None:
        """When ``tick`` is due, in engine time; None = never."""
        return self.deadlines.next()

    def tick(self, now: float) -> None:
        """Do what has become due: keep-alives, wills, session expiry, ``$SYS``."""
        self.deadlines.run(now)
        if self.budget.attention or self.withholding:
            self.relieve(now)

    def stop(self, now: float) -> None:
        """Say goodbye to everybody: 5.0 clients get DISCONNECT 0x8B. Sessions and wills stay as they are kept."""
        for connection in list(self.connections):
            connection.refuse(ProtocolError("the broker is stopping", ReasonCode.SERVER_SHUTTING_DOWN))
            self.leave(connection, now, "the broker is stopping")

    # sessions

    def open_session(
        self, connection: Connection, client_id: str, clean: bool, expiry_s: int, will: Will | None, now: float
    ) -> tuple[Session, bool]:
        """The session for a CONNECT, and whether it was there before (Session Present)."""
        session = self.sessions.get(client_id)
        if session is not None and session.connection is not None:
            old = session.connection
            # 5.0 [MQTT-3.1.4-3], 3.1.1 [MQTT-3.1.4-2]
            old.refuse(ProtocolError("another client connected with this id", ReasonCode.SESSION_TAKEN_OVER))
            self._count_cut_off(old, ReasonCode.SESSION_TAKEN_OVER)
            self.leave(old, now, f"taken over by {connection.peer}")
            session = self.sessions.get(client_id)
        if session is not None and clean:  # 5.0 [MQTT-3.1.2-4]
            self.end_session(session, now)
            session = None
        present = session is not None
        if session is None:
            if len(self.sessions) >= self.config.max_sessions:
                raise ProtocolError("as many sessions as allowed", ReasonCode.QUOTA_EXCEEDED)
            session = self.sessions[client_id] = Session(
                self, client_id, Window(client_id, self.config, self.stats, self.budget)
            )
        session.connection = connection
        session.expires_at = None
        session.expiry_s = expiry_s
        session.will = will
        session.will_at = None
        self.deadlines.set(session, None)
        session.window.keeps = expiry_s > 0
        if self.keeps and expiry_s:
            session.window.changes = self.changes
        # else: a session that was kept until now still is, so that its end is noted too
        self.save(session)
        self.clients_maximum = max(self.clients_maximum, len(self.sessions))
        return session, present

    def save(self, session: Session) -> None:
        """Note the session as it is, if it is one that outlives its connection."""
        if session.window.changes is not None:
            self.changes.append(SessionSaved(session.record()))

    def leave(self, connection: Connection, now: float, why: str) -> None:
        """End a connection: its session stays or ends, its will is due now, later or not at all."""
        self.log.info("disconnected: %r%s", connection, f" ({why})" if why else "")
        connection.become(State.CLOSED)
        self.connections.discard(connection)
        self.withholding.discard(connection)
        self.deadlines.set(connection, None)
        connection.outbox.close()
        connection.undecided = None
        if self.watcher is not None and connection.session is not None:
            self.watcher.disconnected(connection)
        if self.gate is not None and connection.identity is not None:
            self.gate.left(connection.identity, now)
            connection.identity = connection.rights = None  # they refer to it
        session = connection.session
        if session is None or session.connection is not connection:
            return
        session.connection = None
        session.window.detach()
        self._share_out(session, now)
        self._away(session, now)

    def _away(self, session: Session, now: float) -> None:
        """The client of ``session`` is gone since ``now``: its will and its end come now or later."""
        if session.will is not None:
            delay_s = session.will.properties.get("will_delay_interval", 0)
            if min(delay_s, session.expiry_s) == 0:
                self._publish_will(session, now)  # 5.0 [MQTT-3.1.2-8], 3.1.1 [MQTT-3.1.2-8]
            else:
                session.will_at = now + delay_s
        if not session.expiry_s:
            self.end_session(session, now)
        else:
            if session.expiry_s != NEVER:
                session.expires_at = now + session.expiry_s
            self.watch(session)
            self.save(session)

    def end_session(self, session: Session, now: float) -> None:
        """The session is over: its subscriptions, its queue, and its will if that has not gone out (5.0 3.1.3.2.2)."""
        if self.sessions.get(session.client_id) is not session:
            return
        del self.sessions[session.client_id]
        self.deadlines.set(session, None)
        self._publish_will(session, now)
        shares = [grant.share for grant in session.subscriptions.values() if grant.share is not None]
        for filter in session.subscriptions:
            self.topics.unsubscribe(filter, session.window)
        for share in shares:
            self._hand_on(session, share, now)
        session.subscriptions = {}
        session.window.end()
        if session.window.changes is not None:
            self.changes.append(SessionGone(session.client_id))

    def watch(self, session: Session) -> None:
        """Set the deadline of a session whose client is away: its will, or its end."""
        times = [at for at in (session.will_at, session.expires_at) if at is not None]
        self.deadlines.set(session, min(times) if times else None)

    def session_due(self, session: Session, now: float) -> None:
        """The deadline that ``watch`` set has come."""
        if session.will_at is not None and session.will_at <= now:
            self._publish_will(session, now)
            self.save(session)
        if session.expires_at is not None and session.expires_at <= now:
            self.clients_expired += 1
            self.end_session(session, now)
        else:
            self.watch(session)

    def _publish_will(self, session: Session, now: float) -> None:
        will, session.will, session.will_at = session.will, None, None
        if will is None:
            return
        expiry_s = will.properties.get("message_expiry_interval")
        message = Message(
            will.topic,
            will.payload,
            will.qos,
            will.retain,
            properties=forwarded(will.properties),
            sender=session.client_id,
            expires_at=None if expiry_s is None else now + expiry_s,
        )
        self.publish([message], now)

    # subscriptions

    def subscribe(self, session: Session, filter: str, grant: Grant) -> Grant:
        """Add or replace a subscription whose filter was checked; the grant as kept."""
        session.window.regroup()
        grant = self.topics.subscribe(filter, session.window, grant)
        if filter not in session.subscriptions:
            session.weight += weight(filter)
        session.subscriptions[filter] = grant
        return grant

    def unsubscribe(self, session: Session, filter: str, now: float) -> bool:
        """Remove a subscription; False if there was none."""
        grant = session.subscriptions.pop(filter, None)
        if grant is None:
            return False
        session.weight -= weight(filter)
        session.window.regroup()
        self.topics.unsubscribe(filter, session.window)
        if grant.share is not None:
            self._hand_on(session, grant.share, now)
        return True

    # routing

    def publish(
        self, messages: list[Message], now: float, exactly_once: Session | None = None, length: int = -1
    ) -> int:
        """Route messages of one topic and QoS; retain them if they say so. The reason code for the publisher.

        ``exactly_once`` is the publisher's session at QoS 2: if it is durable, nothing goes onward before its packet
        ids are on disk, or a restart could send it twice. ``length``: see ``Run``.
        """
        first = messages[0]
        if self.levels.varies and self.levels.level(first.topic) == "memory":
            for message in messages:
                message.stored = -1
        if first.retain:
            refusal = self.topics.match(first.topic).refusal
            if refusal:
                return refusal
            for message in messages:
                if not self.retained.set(message):
                    self.log.warning("no room to retain %.200r", message.topic)
                    return ReasonCode.QUOTA_EXCEEDED
                if self.keeps and message.stored >= 0:
                    self.changes.append(RetainedSet(message))
                if self.message_watcher is not None:
                    self.message_watcher.retained(message)
        if exactly_once is not None and exactly_once.window.changes is not None:
            for message in messages:
                message.batch = self.batch
        return self.route(Run(messages, now, length))

    def route(self, run: Run) -> int:
        """Deliver ``run`` to whoever subscribed to its topic. The reason code for the publisher."""
        self.stats.messages_received += run.count
        self.stats.payload_bytes_received += run.payload_bytes
        route = self.topics.match(run.topic)
        if route.refusal:
            return route.refusal
        if not route.groups and not route.shares:
            return ReasonCode.NO_MATCHING_SUBSCRIBERS
        run.heads = route.heads
        sender = run.sender
        for grant, windows in route.groups:
            if grant.no_local:
                for window in windows:
                    granted = grant if window.client_id != sender else grant.own  # 5.0 [MQTT-3.8.3-3]
                    if granted is not None:
                        window.deliver(run, granted)
            else:
                for window in windows:
                    window.deliver(run, grant)
        for share in route.shares:
            for message in run.messages:
                self._deliver_shared(share, Run([message], run.now))
        if self.message_watcher is not None:
            for grant, windows in route.groups:
                for window in windows:
                    if not window.present and window.keeps and min(run.qos, grant.qos):
                        self.message_watcher.queued(window.client_id, run.messages)
        return ReasonCode.SUCCESS

    def announce(self, message: Message, now: float) -> None:
        """Deliver a message of the broker's own; its topic may be one that no client may publish to."""
        run = Run([message], now)
        route = self.topics.match(message.topic)
        for grant, windows in route.groups:
            for window in windows:
                window.deliver(run, grant)
        for share in route.shares:
            self._deliver_shared(share, run)

    def _deliver_shared(self, share: Share, run: Run) -> None:
        chosen = share.choose(run.topic, run.now)
        if chosen is not None:
            chosen[0].deliver(run, chosen[1])
        elif self.gate is not None:
            for window in share.members:
                if window.rights is not None:  # nobody may have it: counted once
                    window.drop(DropReason.NOT_AUTHORIZED, run.count)
                    break

    def _hand_on(self, session: Session, share: Share, now: float) -> None:
        """Give what ``session`` was owed as a member of ``share`` to the members that there are."""
        if share.members:
            for message in list(session.window.withdraw(share, now)):
                self._deliver_shared(share, Run([message], now))

    def _share_out(self, session: Session, now: float) -> None:
        """Give what a member of shared subscriptions leaves unfinished to members that are connected."""
        for grant in session.subscriptions.values():
            share = grant.share
            if share is not None and any(window.present for window in share.members):
                self._hand_on(session, share, now)
                session.window.read_ahead()

    # what a store gives back

    def restore(self, sessions: Iterable[Restored], retained: Iterable[Message], now: float) -> None:
        """Begin with what a store kept. Clients that were connected when the broker ended count as gone since now."""
        for message in retained:
            if self.levels.level(message.topic) != "memory":  # it may be older than what memory had last
                self.retained.set(message)
        away: list[Session] = []
        for kept in sessions:
            record = kept.record
            session = self.sessions[record.client_id] = restored(self, kept)
            for filter, grant in record.subscriptions.items():
                self.subscribe(session, filter, grant)
            if record.connected:
                away.append(session)
            else:
                self.watch(session)
        for session in away:  # only now that everybody who may be owed a will is back
            self._away(session, now)
        self.clients_maximum = len(self.sessions)

    def refill(self, window: Window, entries: Sequence[Entry], now: float) -> None:
        """The store read a slice of what ``window`` is owed."""
        session = self.sessions.get(window.client_id)
        if session is None or session.window is not window:
            return
        ours: list[Entry] = []
        for message, grant, seq in entries:
            share = grant.share
            if share is not None:
                mine = session.subscriptions.get(f"$share/{share.name}/{share.filter}")
                grant = mine if mine is not None else replace(grant, share=None)
            ours.append((message, grant, seq))
        window.refill(ours, now)
        if window.outbox is None:
            self._share_out(session, now)

    # time

    def _sweep(self, now: float) -> None:
        for topic in self.retained.sweep(now):
            if self.keeps:
                self.changes.append(RetainedSet(Message(topic)))

    # numbers

    def snapshot(self, now: float) -> Snapshot:
        """The broker in numbers."""
        return take_snapshot(self, now)
