"""The one queue of the broker: what a session is owed, what is in flight to it, and its packet ids.

    deliver ──▶ queue, or latest ──▶ in flight ──PUBACK / PUBCOMP──▶ done
        └────────────────────────────────▲   └──PUBREC──▶ released ──┘

1. At most ``limit`` packets of QoS 1 and 2 are in flight (Receive Maximum), and no more bytes of messages than
   ``max_inflight_bytes``, or one message alone; the rest waits in ``queue``.
2. Queue and ``latest`` together are bounded in messages and in bytes. What does not fit is dropped by the policy of its
   subscription and counted with its reason.
3. Order is kept: nothing overtakes the queue, and after a reconnection what was in flight goes first, with DUP.
4. A delivery at QoS 1 or 2 has a sequence number from the moment it is owed; its packet id follows from it
   (``seq % 65535 + 1``), so that a restored session repeats a message under the id that it had.

Nothing here knows sockets: bytes go to the ``Outbox``, promises to the list of changes.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING, Final

from ..codec.encode import publish_parts
from ..codec.packets import MQTT_5_0, NO_PROPERTIES
from ..codec.wire import PACKET_ID
from ..policy import MISSED_PROPERTY
from .budget import SLACK_BYTES, Budget
from .inflight import InFlight
from .message import Message, Run
from .ports import Outbox, Queued, Restored, Wanted, Withdrawn
from .queue import MAX_PACKET_ID as MAX_PACKET_ID
from .queue import DropReason as DropReason
from .queue import Entry as Entry
from .rights import Rights
from .spill import Spill
from .topics import Grant

if TYPE_CHECKING:
    from ..config import Config
    from .handout import Lookup
    from .snapshot import Stats

DUP: Final = 0x08
SLICE_BYTES: Final = 65_536  # how much one pump hands to the outbox before it looks at its mark again
NEWEST_BYTES: Final = 4_096  # the same of what newer messages replace as long as it is not handed over


class Window(InFlight):
    """Deliveries to one session. ``keeps`` says whether it is owed messages while no client is connected.

    ``wake`` is set for subscribers inside this process: they have no outbox and pull with ``take``.
    """

    __slots__ = (
        "_aliases",
        "_in_line",
        "alias_maximum",
        "keeps",
        "limit",
        "lookups",
        "max_packet_size",
        "rights",
        "sent",
        "version",
        "wake",
    )

    def __init__(self, client_id: str, config: "Config", stats: "Stats", budget: Budget | None = None) -> None:
        super().__init__(client_id, config, stats, budget)
        self.keeps = False
        self.wake: Callable[[], None] | None = None
        self.version = 4
        self.rights: Rights | None = None  # what the client may receive, if there is a gate
        self.lookups: list[Lookup] | None = None  # retained messages that the client is still to be given
        self.limit = MAX_PACKET_ID
        self.max_packet_size = 0  # 0 = the client named none
        self.alias_maximum = 0
        self._aliases: dict[str, int] | None = None  # topics named on this connection, if its client takes aliases
        self.sent = 0
        self._in_line = False  # whether something published at QoS 2 may still wait in the outbox

    # state

    @property
    def present(self) -> bool:
        """Whether somebody takes deliveries now: a connected client, or a subscriber inside this process."""
        return self.outbox is not None or self.wake is not None

    @property
    def ready(self) -> bool:
        """Whether a delivery would go out at once."""
        outbox = self.outbox
        if outbox is None:
            return self.wake is not None and not self.queue
        if self.queue or self.resend or self.spill is not None or outbox.full:
            return False
        if self.inflight_bytes >= self._config.max_inflight_bytes:
            return False
        return len(self.inflight) + len(self.released) < self.limit

    def room(self, most: int) -> int:
        """How many more messages may be queued that could wait elsewhere as well, until ``most`` are in the queue."""
        config = self._config
        if self.queued_bytes > config.max_queued_bytes // 2:
            return 0
        if self.wake is not None:
            most = min(most, config.max_queued_messages)
        return most - self.queued

    @property
    def waiting(self) -> int:
        """Messages owed and not yet acknowledged, in flight or not."""
        return self.queued + len(self.resend or ()) + len(self.inflight) + len(self.released)

    def attach(
        self, outbox: Outbox, version: int, receive_maximum: int, max_packet_size: int = 0, alias_maximum: int = 0
    ) -> None:
        """A client is connected to the session; call ``resume`` once CONNACK was sent."""
        self.outbox = outbox
        self.version = version
        self.limit = receive_maximum
        self.max_packet_size = max_packet_size
        self.alias_maximum = alias_maximum
        self._aliases = {} if alias_maximum else None
        self.budget.look(self)

    def detach(self) -> None:
        """The connection is gone. What was in flight will be sent again, in its order, before anything else."""
        self.outbox = None
        self.rights = self.lookups = None
        self.link_bytes = 0
        self._aliases = None
        if self.inflight:
            again = deque(self.inflight.values())
            if self.resend:
                again.extend(self.resend)
            self.resend = again
            self.inflight = {}
        if self.queue and not self._config.queue_qos0_offline:
            kept = deque(entry for entry in self.queue if entry[2])
            if len(kept) < len(self.queue):
                self.drop(DropReason.OFFLINE, len(self.queue) - len(kept))
                self.queued_bytes -= sum(entry[0].size for entry in self.queue if not entry[2])
                self.queue = kept
        if self.latest is not None and not self._config.queue_qos0_offline:
            unkept = self.latest.drop_qos0()
            if unkept:
                self.drop(DropReason.OFFLINE, unkept)
        self.settle()
        self.budget.look(self)

    def restore(self, kept: Restored) -> None:
        """Take over what a store kept. The messages themselves are read when they are needed."""
        self.seq = kept.record.seq
        self.released = {seq % MAX_PACKET_ID + 1: seq for seq in sorted(kept.released)}
        if kept.owed_count:
            self.spill = Spill(0, kept.owed_count, kept.owed_bytes, kept.maybe_sent_seq)

    # delivering

    def deliver(self, run: Run, grant: Grant) -> None:
        """Owe ``run`` to the session: send what can go now, queue the rest, drop what does not fit."""
        qos = run.qos if run.qos < grant.qos else grant.qos
        outbox = self.outbox
        if self.lookups:
            for lookup in tuple(self.lookups):
                lookup.overtake(run)
        if outbox is None:
            if self.wake is not None or (self.keeps and (qos or self._config.queue_qos0_offline)):
                self._enqueue(run.messages, grant, qos)
                self.settle()
                if self.wake is not None:
                    self.wake()
            else:
                self.drop(DropReason.OFFLINE, run.count)
            return
        if self.rights is not None:
            may = self.rights.receive(run.topic, run.now)
            if not may:
                if may is None:
                    self._enqueue(run.messages, grant, qos)
                    self.settle()
                else:
                    self.drop(DropReason.NOT_AUTHORIZED, run.count)
                return
        policy = grant.policy
        if (
            outbox.full
            or self.queue
            or self.resend
            or self.spill
            or self.max_packet_size
            or self.alias_maximum
            or (policy is not None and (policy.period_s or self.latest or (self.missed and policy.tell_missed)))
        ):
            self._enqueue(run.messages, grant, qos)
            if outbox.full:
                self.settle()
            else:
                self.pump(run.now)
            return
        if qos == 0:
            data = run.frames(self.version, grant.retain_as_published, grant.identifiers)
            self._send(outbox, data, run.qos == 2, run.batch)
            self.sent += run.count
            self._stats.messages_sent += run.count
            self._stats.payload_bytes_sent += run.payload_bytes
            return
        if self.inflight_bytes + run.size_bytes > self._config.max_inflight_bytes:
            self._enqueue(run.messages, grant, qos)
            self.pump(run.now)  # as many as may
            return
        taken = self._send_one(outbox, run, grant, qos) if run.count == 1 else self._send_run(outbox, run, grant, qos)
        if taken < run.count:
            self.inflight_bytes += sum([message.size for message in run.messages[:taken]])
            self._enqueue(run.messages[taken:], grant, qos)
            self.settle()
        else:
            self.inflight_bytes += run.size_bytes
            if self.inflight_bytes > self.charged + SLACK_BYTES:
                self.settle()

    def _send_one(self, outbox: Outbox, run: Run, grant: Grant, qos: int) -> int:
        """As ``_send_run``, for a run of one, without what pays only for many."""
        inflight, released = self.inflight, self.released
        seq = self.seq + 1
        packet_id = seq % MAX_PACKET_ID + 1
        if packet_id in inflight or packet_id in released or len(inflight) + len(released) >= self.limit:
            return 0
        messages = run.messages
        message = messages[0]
        self.seq = seq
        inflight[packet_id] = (message, grant, seq)
        batch = run.batch
        if self.changes is not None and message.stored >= 0:
            self.changes.append(Queued(self.client_id, seq, messages, grant))
            if qos == 2:
                batch = self.changes.number  # see _send_run
        head, _, tail = run.pieces(self.version, qos, grant.retain_as_published, grant.identifiers)
        self._send(outbox, head + PACKET_ID[packet_id] + tail, run.qos == 2, batch)
        self.sent += 1
        stats = self._stats
        stats.messages_sent += 1
        stats.payload_bytes_sent += run.payload_bytes
        return 1

    def _send_run(self, outbox: Outbox, run: Run, grant: Grant, qos: int) -> int:
        """Send as much of ``run`` as the window and the free packet ids allow; how many messages that was."""
        messages = run.messages
        pieces = run.pieces(self.version, qos, grant.retain_as_published, grant.identifiers).copy()
        first = self.seq
        room = min(run.count, self.limit - len(self.inflight) - len(self.released))
        count = 0
        while count < room and (ids := self._free_ids(self.seq + 1, room - count)):
            self.seq = seq = self.seq + len(ids)
            chunk = messages[count : count + len(ids)] if len(ids) < run.count else messages
            self.inflight.update(zip(ids, zip(chunk, repeat(grant), range(seq - len(ids) + 1, seq + 1)), strict=True))
            pieces[3 * count + 1 : 3 * (count + len(ids)) : 3] = PACKET_ID[ids.start : ids.stop]
            count += len(ids)
        if not count:
            return 0
        batch = run.batch
        if self.changes is not None and messages[0].stored >= 0:
            taken = messages if count == run.count else messages[:count]
            self.changes.append(Queued(self.client_id, first + 1, taken, grant))
            if qos == 2:
                # The client will remember this packet id until PUBREL; so must we, even through a crash, or the next
                # message under the same id would look like a repetition of this one.
                batch = self.changes.number
        if count < run.count:
            del pieces[3 * count :]
        self._send(outbox, b"".join(pieces), run.qos == 2, batch)
        self.sent += count
        self._stats.messages_sent += count
        self._stats.payload_bytes_sent += (
            run.payload_bytes if count == run.count else sum([len(message.payload) for message in messages[:count]])
        )
        return count

    def _free_ids(self, seq: int, count: int) -> range:
        """The packet ids from that of ``seq`` on, up to ``count`` of them that follow one another and are free."""
        begin = seq % MAX_PACKET_ID + 1
        ids = range(begin, min(begin + count, MAX_PACKET_ID + 1))
        for taken in (self.inflight, self.released):
            if taken and not taken.keys().isdisjoint(ids):  # an old delivery still holds one: wait for it
                ids = range(begin, next(packet_id for packet_id in ids if packet_id in taken))
        return ids

    def resume(self, now: float) -> None:
        """After a reconnection: PUBREL for what was released, then what was in flight, then the queue.

        5.0 [MQTT-4.4.0-1], [MQTT-4.6.0-1], [MQTT-4.6.0-4]: with the original packet ids, in the original order.
        """
        assert self.outbox is not None
        if self.released:
            self._stats.answers_sent += len(self.released)
            self.outbox.send_after(b"".join(b"\x62\x02" + PACKET_ID[packet_id] for packet_id in self.released), 0)
        self.pump(now)

    def pump(self, now: float) -> None:
        """Send from the queue while the window and the outbox have room."""
        outbox = self.outbox
        if outbox is None:
            return
        pieces: list[bytes] = []
        waits = False  # whether any was published at QoS 2
        size = batch = 0
        while not outbox.full:
            source = self.resend or self.queue
            latest = self.latest
            newest = None
            if latest is not None and not self.resend and not (self.spill is not None and self.spill.again):
                newest = latest.first(now, bool(source) or self.spill is not None)
            if newest is not None:
                message, grant, seq = newest
            elif source:
                message, grant, seq = source[0]
            else:
                break
            packet_id = 0
            if seq:
                packet_id = seq % MAX_PACKET_ID + 1
                if len(self.inflight) + len(self.released) >= self.limit:
                    break
                if packet_id in self.inflight or packet_id in self.released:
                    break
                if (
                    self.inflight_bytes + message.size > self._config.max_inflight_bytes
                    and self.inflight
                    and not self.resend  # whose bytes are counted already
                ):
                    break
                if latest is None and source is self.queue and not pieces and self._pump_plain(outbox, now):
                    continue
            may = self.rights is None or self.rights.receive(message.topic, now)
            if may is None:
                break
            again = False
            if newest is not None:
                assert latest is not None
                latest.take(now)
            else:
                assert source
                source.popleft()
                again = source is self.resend
                if again:
                    self.inflight_bytes -= message.size
                else:
                    self.queued_bytes -= message.size
                    if latest is not None:
                        latest.passed()
            if not may:
                self._deny(message, grant, seq, now)
                continue
            if not again and message.expires_at is not None and message.expires_at <= now:
                # 5.0 [MQTT-3.3.2-5] delivery did not start in time
                self.forget(seq, message, DropReason.EXPIRED)
                continue
            frame = self._frame(message, grant, packet_id, again, now)
            if self.max_packet_size and len(frame) > self.max_packet_size:
                # 5.0 [MQTT-3.1.2-25] act as if it had been delivered
                self.forget(seq, message, DropReason.TOO_LARGE)
                continue
            if seq:
                self.inflight[packet_id] = (message, grant, seq)
                self.inflight_bytes += message.size
            self.sent += 1
            self._stats.messages_sent += 1
            self._stats.payload_bytes_sent += len(message.payload)
            size += len(frame)
            pieces.append(frame)
            if message.qos == 2:
                waits = True
                batch = max(batch, message.batch)
            if size >= (SLICE_BYTES if newest is None else NEWEST_BYTES):
                self._send(outbox, b"".join(pieces), waits, batch)
                pieces, waits, size, batch = [], False, 0, 0
        if pieces:
            self._send(outbox, b"".join(pieces), waits, batch)
        if self.resend is not None and not self.resend:
            self.resend = None
        if self.queue is not None and not self.queue:
            self.queue = None  # an empty deque takes 600 bytes, which most sessions never need
        if self.spill is not None:
            self.read_ahead()
        elif self.latest is not None and self.queue is None and self.latest.idle:
            self.latest = None
            self.mixed = bool(self.inflight)
        self.settle()

    def _pump_plain(self, outbox: Outbox, now: float) -> int:
        """Send what stands first in the queue as long as nothing is special about it; how many messages that was.

        Message by message it takes three times what a delivery takes that need not queue, and then a client that once
        fell behind never catches up.
        """
        queue = self.queue
        if not queue or self.max_packet_size or self.alias_maximum or self.missed:
            return 0
        first, grant, seq = queue[0]
        if grant.identifiers:
            return 0
        ids = self._free_ids(seq, min(len(queue), self.limit - len(self.inflight) - len(self.released)))
        room_bytes = min(SLICE_BYTES, self._config.max_inflight_bytes - self.inflight_bytes)
        version, rights = self.version, self.rights
        kind, qos = first.qos, min(first.qos, grant.qos)
        topic, length, retain, head = "", -1, False, b""
        size_bytes = payload_bytes = batch = 0
        entries: list[Entry] = []
        pieces: list[bytes] = []
        for entry in islice(queue, len(ids)):
            message = entry[0]
            payload = message.payload
            if message.topic is not topic or len(payload) != length or message.retain is not retain:
                topic, length, retain = message.topic, len(payload), message.retain
                if rights is not None and not rights.receive(topic, now):
                    break
                keep = retain and grant.retain_as_published
                head, _ = publish_parts(topic, payload, qos, keep, NO_PROPERTIES, version)
            size_bytes += message.size
            if (
                size_bytes > room_bytes
                or entry[1] is not grant
                or entry[2] != seq
                or message.qos != kind
                or message.expires_at is not None
                or message.properties
            ):
                size_bytes -= message.size
                break
            seq += 1
            payload_bytes += length
            if message.batch > batch:
                batch = message.batch
            entries.append(entry)
            pieces += (head, b"", b"\0" + payload if version == MQTT_5_0 else payload)
        count = len(entries)
        if count:
            pieces[1::3] = PACKET_ID[ids.start : ids.start + count]
            self.inflight.update(zip(ids, entries, strict=False))
            for _ in entries:
                queue.popleft()
            self.queued_bytes -= size_bytes
            self.inflight_bytes += size_bytes
            self.sent += count
            self._stats.messages_sent += count
            self._stats.payload_bytes_sent += payload_bytes
            self._send(outbox, b"".join(pieces), kind == 2, batch)
        return count

    def _send(self, outbox: Outbox, data: bytes, waits: bool, batch: int) -> None:
        """Send in order: what was published at QoS 2 waits for its batch, and nothing overtakes it meanwhile."""
        if waits:
            self._in_line = True
            outbox.send_after(data, batch)
        elif self._in_line and outbox.waits:
            outbox.send_after(data, 0)
        else:
            self._in_line = False
            outbox.send(data)

    def take(self, now: float) -> Message | None:
        """The next message for a subscriber in this process, None if there is none. Taking it acknowledges it."""
        while True:
            latest = self.latest
            newest = latest.first(now, bool(self.queue)) if latest is not None else None
            if latest is not None and newest is not None:
                message, _, seq = newest
                latest.take(now)
            elif self.queue:
                message, _, seq = self.queue.popleft()
                self.queued_bytes -= message.size
                if latest is not None:
                    latest.passed()
            else:
                break
            self.settle()
            if message.expires_at is not None and message.expires_at <= now:
                self.forget(seq, message, DropReason.EXPIRED)
                continue
            self.sent += 1
            self._stats.messages_sent += 1
            self._stats.payload_bytes_sent += len(message.payload)
            return message
        self.queue = None
        return None

    def _frame(self, message: Message, grant: Grant, packet_id: int, again: bool, now: float) -> bytes:
        qos = message.qos if message.qos < grant.qos else grant.qos
        retain = message.retain and grant.retain_as_published
        if self.missed and grant.policy is not None and grant.policy.tell_missed and self.version == MQTT_5_0:
            properties = message.outgoing(grant.identifiers, now)
            properties["user_property"] = [*properties.get("user_property", ()), (MISSED_PROPERTY, str(self.missed))]
            self.missed = 0
            head, tail = publish_parts(message.topic, message.payload, qos, retain, properties, self.version)
        elif self._aliases is not None and message.qos < 2:  # what may wait must not name an alias for what does not
            head, tail = self._aliased(self._aliases, message, qos, retain, grant.identifiers, now)
        else:
            head, tail = message.parts(self.version, qos, retain, grant.identifiers, now)
        if not qos:
            return head + tail
        if again:  # 5.0 [MQTT-3.3.1-1]
            head = bytes((head[0] | DUP,)) + head[1:]
        return head + PACKET_ID[packet_id] + tail

    def _aliased(
        self,
        aliases: dict[str, int],
        message: Message,
        qos: int,
        retain: bool,
        identifiers: tuple[int, ...],
        now: float,
    ) -> tuple[bytes, bytes]:
        """5.0 section 3.3.2.3.4: name the topic once per connection, then send its alias alone."""
        properties = message.outgoing(identifiers, now)
        topic, payload = message.topic, message.payload
        alias = aliases.get(topic, 0)
        if alias or len(aliases) < self.alias_maximum:  # 5.0 [MQTT-3.1.2-26]
            properties["topic_alias"] = alias or len(aliases) + 1
            head, tail = publish_parts("" if alias else topic, payload, qos, retain, properties, self.version)
            limit = self.max_packet_size
            if not limit or len(head) + len(tail) + (2 if qos else 0) <= limit:
                aliases.setdefault(topic, len(aliases) + 1)  # the client knows it only from what it is sent
                return head, tail
            del properties["topic_alias"]
        return publish_parts(topic, payload, qos, retain, properties, self.version)

    def slot_came(self, now: float) -> None:
        """A message of ``latest`` may be sent from now on."""
        if self.wake is not None:
            self.wake()
        elif self.outbox is not None and not self.outbox.full:
            self.pump(now)

    def read_ahead(self, to_drop: int = 0) -> None:
        """Ask for the next slice of what only the store has, when less than half of the memory for it is in use."""
        config = self._config
        spill = self.spill
        room = config.max_memory_messages - len(self.queue or ()) - len(self.resend or ())
        if spill is None or spill.asked or (room * 2 < config.max_memory_messages and not to_drop):
            return
        room = max(room, min(to_drop, config.max_memory_messages))  # what a full memory hides must go in its turn too
        assert self.changes is not None
        spill.asked = spill.count
        self.changes.append(Wanted(self, spill.after_seq, room, config.max_memory_bytes))

    def refill(self, entries: Sequence[Entry], now: float) -> None:
        """A slice came from the store, in order."""
        self.take_back(entries)
        self.pump(now)

    # dropping

    def shed(self, level_bytes: int) -> None:
        """Give back memory until at most ``level_bytes`` wait in it; a client to whom more is under way is cut off."""
        under_way_bytes = self.inflight_bytes + self.link_bytes
        super().shed(max(0, level_bytes - under_way_bytes))
        if under_way_bytes <= level_bytes:
            return
        if self.outbox is not None:
            self.budget.disconnect(self, "memory is used up, and more than others have is under way to this client")
        elif self.resend:
            self.shed_resend(level_bytes)

    def _deny(self, message: Message, grant: Grant, seq: int, now: float) -> None:
        """The client may not receive ``message``; if it shares the subscription, another member may."""
        chosen = None if grant.share is None else grant.share.choose(message.topic, now)
        if chosen is None:
            self.forget(seq, message, DropReason.NOT_AUTHORIZED)
            return
        if seq and self.changes is not None:
            self.changes.append(Withdrawn(self.client_id, seq, [message]))
        chosen[0].deliver(Run([message], now), chosen[1])

    def end(self) -> None:
        """The session is over: what it was still owed is counted as dropped."""
        if self.waiting:
            self.drop(DropReason.SESSION_ENDED, self.waiting)
        if self.latest is not None:
            self.latest.dissolve()
        self.queue = self.resend = self.spill = self.latest = None
        self.inflight = {}
        self.released = {}
        self.queued_bytes = self.inflight_bytes = self.link_bytes = 0
        self.settle()
