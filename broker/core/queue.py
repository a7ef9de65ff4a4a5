"""What waits for one session, in memory or in the store, and what happens when it is too much.

    append ──▶ queue ──at the bound of memory──▶ spill (in the store only)
       └─────▶ latest: what newer messages replace

1. The sum is bounded in messages and in bytes; every byte in memory is charged to the broker's budget, together with
   what was sent and is not acknowledged, and what waits in the connection.
2. What does not fit is dropped by the policy of its subscription, counted with its reason, and, where a store keeps it,
   noted as not owed any more.
3. Nothing overtakes the queue.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import repeat
from typing import TYPE_CHECKING, Final

from ..policy import Overflow
from .budget import Budget
from .latest import Latest
from .message import Message
from .ports import Batch, Outbox, Queued, Withdrawn
from .spill import Spill
from .topics import Grant

if TYPE_CHECKING:
    from ..config import Config
    from .snapshot import Stats

MAX_PACKET_ID: Final = 65_535
Entry = tuple[Message, Grant, int]  # message, what was granted, sequence number (0 at QoS 0)


class DropReason(Enum):
    """Why a message that matched a subscription did not go to it. The values are names in metrics."""

    QUEUE_FULL = "queue-full"
    EXPIRED = "expired"
    OFFLINE = "offline"  # QoS 0 while the client is away
    TOO_LARGE = "too-large"  # over the Maximum Packet Size of the client
    NOT_AUTHORIZED = "not-authorized"  # the gate does not let the client have it
    REFUSED = "refused"  # the client answered with a reason of 0x80 or above
    SESSION_ENDED = "session-ended"
    MEMORY = "memory-budget"  # the broker's is used up, and this session had most waiting
    CONFLATED = "conflated"  # a newer message of its topic came, and the policy is latest
    SAMPLED = "sampled"  # the same, and the policy is sample

    __hash__ = object.__hash__  # that of Enum is a call into Python, and every drop would make five of them


CHOSEN: Final = frozenset((DropReason.CONFLATED, DropReason.SAMPLED))  # what the subscriber asked to have skipped
MISSED: Final = CHOSEN | {DropReason.QUEUE_FULL, DropReason.MEMORY}  # what ``tell-missed`` counts


class Queue:
    """The waiting messages of one session; ``Window`` adds what is in flight."""

    __slots__ = (
        "_config",
        "_stats",
        "budget",
        "changes",
        "charged",
        "client_id",
        "dropped",
        "inflight_bytes",
        "latest",
        "link_bytes",
        "missed",
        "mixed",
        "outbox",
        "queue",
        "queued_bytes",
        "released",
        "resend",
        "seq",
        "spill",
    )

    def __init__(self, client_id: str, config: "Config", stats: "Stats", budget: Budget | None = None) -> None:
        self.client_id = client_id
        self._config = config
        self._stats = stats
        self.budget = budget if budget is not None else Budget(config)
        self.charged = 0  # what the budget knows of the three
        self.changes: Batch | None = None  # where promises of a durable session are noted
        self.outbox: Outbox | None = None
        self.resend: deque[Entry] | None = None
        self.released: dict[int, int] = {}  # packet id → seq of QoS 2 deliveries that wait for PUBCOMP
        self.queue: deque[Entry] | None = None
        self.latest: Latest | None = None
        self.mixed = False  # sequence numbers may not be in the order of the queue, for the sake of ``latest``
        self.queued_bytes = 0  # in queue and latest
        self.inflight_bytes = 0  # sent and not acknowledged, and in resend
        self.link_bytes = 0  # in the connection: bytes for the socket, answers held back, a packet that is half read
        self.spill: Spill | None = None  # what follows the queue and is only in the store
        self.seq = 0
        self.missed = 0  # messages that were dropped since one was sent that told so
        self.dropped: dict[DropReason, int] | None = None

    @property
    def queued(self) -> int:
        """Messages that wait to be sent for the first time, in memory or in the store."""
        count = len(self.queue) if self.queue is not None else 0
        if self.latest is not None:
            count += len(self.latest)
        return count + self.spill.count if self.spill is not None else count

    @property
    def spilled_bytes(self) -> int:
        """Of the messages that wait, the bytes of those that only the store has."""
        return self.spill.size_bytes if self.spill is not None else 0

    def slot_came(self, now: float) -> None:
        """A message of ``latest`` may be sent from now on."""
        raise NotImplementedError

    def read_ahead(self, to_drop: int = 0) -> None:
        """Ask for the next slice of what only the store has, if there is room or ``to_drop`` messages must go."""
        raise NotImplementedError

    # coming

    def _enqueue(self, messages: list[Message], grant: Grant, qos: int) -> None:
        policy = grant.policy
        if policy is None or (policy.period_s is None and policy.overflow is None):
            self._append(messages, grant, qos)
        elif policy.period_s is None:
            for message in messages:
                if self._admit(message, grant, qos):
                    self._append([message], grant, qos)
        else:
            self._replace(messages, grant, qos)

    def _replace(self, messages: list[Message], grant: Grant, qos: int) -> None:
        """Let the last of ``messages`` wait in the place of what waits of its topic."""
        latest = self._newest_only()
        waited_bytes = self.queued_bytes
        replaced = latest.add(messages, grant, qos)
        if replaced:
            assert grant.policy is not None
            self.drop(DropReason.SAMPLED if grant.policy.period_s else DropReason.CONFLATED, replaced)
            if self.queued_bytes <= waited_bytes:
                return  # as many messages as before, and no more bytes
        self._trim(latest_first=True)

    def _newest_only(self) -> Latest:
        if self.latest is None:
            self.mixed = True
            self.latest = Latest(self, self.slot_came, self._config.max_queued_messages)
        return self.latest

    def _admit(self, message: Message, grant: Grant, qos: int) -> bool:
        """Whether ``message`` may be queued, by the overflow rule of its subscription. No rule drops another's."""
        config = self._config
        policy = grant.policy
        assert policy is not None
        if policy.overflow is Overflow.SPILL:
            return True
        max_messages, max_bytes, spilled_bytes = config.max_queued_messages, config.max_queued_bytes, 0
        if self.spill is not None:
            spilled_bytes = self.spill.size_bytes
        elif qos and self.changes is not None and message.stored >= 0:  # the store is for those that want to spill
            max_messages, max_bytes = config.max_memory_messages, config.max_memory_bytes
        while self.queued >= max_messages or (
            self.queued and self.queued_bytes + spilled_bytes + message.size > max_bytes
        ):
            if policy.overflow is Overflow.DROP_OLDEST and self.queue and self.queue[0][1].policy == policy:
                oldest, _, seq = self.queue.popleft()
                self.queued_bytes -= oldest.size
                self.forget(seq, oldest, DropReason.QUEUE_FULL)
                continue
            if policy.overflow is Overflow.DISCONNECT and self.outbox is not None:
                self.budget.disconnect(self, "its queue is full and its policy is to disconnect then")
            self.drop(DropReason.QUEUE_FULL, 1)
            return False
        return True

    def _append(self, messages: list[Message], grant: Grant, qos: int) -> None:
        config = self._config
        queue = self.queue
        if queue is None:
            queue = self.queue = deque()
        kept = qos and self.changes is not None and messages[0].stored >= 0
        if kept:
            assert self.changes is not None
            self.changes.append(Queued(self.client_id, self.seq + 1, messages, grant))
            if qos == 2:
                for message in messages:
                    message.batch = self.changes.number  # see deliver
        count, all_bytes = len(messages), sum([message.size for message in messages])
        max_messages, max_bytes = config.max_queued_messages, config.max_queued_bytes
        if kept:
            max_messages = min(max_messages, config.max_memory_messages)
            max_bytes = min(max_bytes, config.max_memory_bytes)
        if self.spill is None and self.queued + count <= max_messages and self.queued_bytes + all_bytes <= max_bytes:
            seqs = range(self.seq + 1, self.seq + count + 1) if qos else repeat(0)
            queue.extend(zip(messages, repeat(grant), seqs, strict=False))
            self.seq += count if qos else 0
            self.queued_bytes += all_bytes
            return
        for message in messages:
            seq = 0
            size_bytes = message.size
            if qos:
                self.seq = seq = self.seq + 1
            if kept and (
                self.spill is not None
                or len(queue) >= config.max_memory_messages
                or (queue and self.queued_bytes + size_bytes > config.max_memory_bytes)
            ):
                if self.spill is None:
                    self.spill = Spill(seq - 1)
                self.spill.add(size_bytes)
            else:
                queue.append((message, grant, seq))
                self.queued_bytes += size_bytes
                if self.spill is not None and self.latest is not None:
                    # It overtakes what only the store has, and ``latest`` waits for that.
                    self.latest.behind += 1
            self._trim()

    def _trim(self, latest_first: bool = False) -> None:
        """Drop the oldest until the queue is within its bounds. If they are in the store, they are read first."""
        config = self._config
        queue = self.queue
        over = self.queued - config.max_queued_messages
        over_bytes = self.queued_bytes + self.spilled_bytes - config.max_queued_bytes
        while over > 0 or over_bytes > 0:
            if queue and not (latest_first and self.latest):
                oldest, _, seq = queue.popleft()
                self.queued_bytes -= oldest.size
            elif self.latest:
                oldest, _, seq = self.latest.drop_oldest()
            else:
                self.read_ahead(max(1, over))
                return
            over -= 1
            over_bytes -= oldest.size
            self.forget(seq, oldest, DropReason.QUEUE_FULL)

    def leave_budget(self) -> None:
        """What waits here is the embedding program's business from now on."""
        self.budget.charge(self, 0)
        self.budget = Budget(self._config)

    # in the store

    def take_back(self, entries: Sequence[Entry]) -> None:
        """A slice came from the store, in order."""
        spill = self.spill
        if spill is None:
            return
        if spill.stale:
            spill.stale = False
            spill.asked = 0
        else:
            self._bring_back(spill, entries)
        self._trim()
        self.settle()

    def _bring_back(self, spill: Spill, entries: Sequence[Entry]) -> None:
        queue = self.queue if self.queue is not None else deque[Entry]()
        resend = self.resend if self.resend is not None else deque[Entry]()
        for entry in entries:
            message, grant, seq = entry
            if self.latest is not None and seq in self.latest.apart:
                spill.after_seq = seq
                continue
            size_bytes = message.size
            spill.take(seq, size_bytes)
            if seq <= spill.maybe_sent_seq:
                resend.append(entry)
                self.inflight_bytes += size_bytes
            elif grant.policy is not None and grant.policy.period_s is not None:
                if self._newest_only().add_restored(entry):
                    self.drop(DropReason.SAMPLED if grant.policy.period_s else DropReason.CONFLATED, 1)
            else:
                older = self.latest.give_way(entry) if self.latest is not None else None
                if older is not None:
                    queue.append(older)
                    self.queued_bytes += older[0].size
                queue.append(entry)
                self.queued_bytes += size_bytes
        self.queue = queue or None
        self.resend = resend or None
        if not spill.settle(len(entries)):
            self.spill = None
        if self.latest is not None:
            self.latest.apart = {seq for seq in self.latest.apart if self.spill is not None and seq > spill.after_seq}

    # going elsewhere

    def withdraw(self, share: object, now: float) -> Iterator[Message]:
        """Take back what another member of ``share`` may get: everything not sent, and QoS 1 that was not acknowledged.

        5.0 [MQTT-4.8.2-4], [MQTT-4.8.2-5]: QoS 2 that was sent belongs to this session alone.
        """
        if self.resend:
            taken = [entry for entry in self.resend if entry[1].share is share and min(entry[0].qos, entry[1].qos) == 1]
            if taken:
                gone = {entry[2] for entry in taken}
                self.resend = deque(entry for entry in self.resend if entry[2] not in gone) or None
                self.inflight_bytes -= sum(entry[0].size for entry in taken)
                self.settle()
                yield from self._taken(taken, now)
        if self.queue:
            taken = [entry for entry in self.queue if entry[1].share is share]
            if taken:
                self.queue = deque(entry for entry in self.queue if entry[1].share is not share) or None
                self.queued_bytes -= sum(entry[0].size for entry in taken)
                self.settle()
                yield from self._taken(taken, now)

    def _taken(self, entries: list[Entry], now: float) -> Iterator[Message]:
        for message, _, seq in entries:
            if message.expires_at is not None and message.expires_at <= now:
                self.forget(seq, message, DropReason.EXPIRED)
                continue
            if seq and self.changes is not None:
                self.changes.append(Withdrawn(self.client_id, seq, [message]))
            yield message

    def regroup(self) -> None:
        """Subscriptions change, and with them perhaps policies: what waits now goes first, in the order that it has."""
        latest = self.latest
        if latest is None:
            return
        queue = self.queue if self.queue is not None else deque[Entry]()
        for entry in latest.dissolve():
            message, _, seq = entry
            spill = self.spill
            if spill is not None and seq in latest.apart and message.stored >= 0:
                latest.apart.discard(seq)
                spill.add(message.size)
                spill.stale = spill.asked > 0  # the slice may bring what this entry replaced
            else:
                queue.append(entry)
                self.queued_bytes += message.size
        self.queue = queue or None
        latest.behind = self.queued
        self.settle()

    # dropping

    def shed(self, level_bytes: int) -> None:
        """Let at most ``level_bytes`` wait to be sent: to the store what it has, the rest is dropped."""
        queue = self.queue
        spillable = self.changes is not None and not self.mixed and (self.spill is None or not self.spill.asked)
        while self.queued_bytes > level_bytes and (queue or self.latest):
            if not queue:
                assert self.latest is not None
                message, _, seq = self.latest.drop_oldest()
                self.forget(seq, message, DropReason.MEMORY)
                continue
            message, _, seq = queue.pop() if spillable else queue.popleft()
            self.queued_bytes -= message.size
            if spillable and seq and message.stored >= 0:
                if self.spill is None:
                    self.spill = Spill(seq - 1)
                self.spill.after_seq = seq - 1
                self.spill.add(message.size)
            else:
                self.forget(seq, message, DropReason.MEMORY)
        self.queue = queue or None
        self.settle()

    def settle(self) -> None:
        """Tell the budget how much waits."""
        waiting_bytes = self.queued_bytes + self.inflight_bytes + self.link_bytes
        if waiting_bytes != self.charged:
            self.charged = waiting_bytes
            self.budget.charge(self, waiting_bytes)

    def forget(self, seq: int, message: Message, reason: DropReason) -> None:
        """``message`` is not owed any more."""
        if seq and self.changes is not None:
            self.changes.append(Withdrawn(self.client_id, seq, [message]))
        self.drop(reason, 1)

    def drop(self, reason: DropReason, count: int) -> None:
        """Count ``count`` messages that do not go to the session."""
        if reason in MISSED:
            self.missed += count
        if self.dropped is None:
            self.dropped = {}
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self._stats.dropped[reason] = self._stats.dropped.get(reason, 0) + count
