"""A store that keeps what it is given in plain dicts, change by change: the reference for the durable one.

It outlives an engine, not the process. Nothing becomes durable by itself: ``commit`` applies the oldest batches, and
``crash`` forgets those that were not applied, which is what makes it the store of the simulation.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ..core.message import Message
from ..core.ports import (
    Acked,
    Change,
    Completed,
    Finished,
    Queued,
    Received,
    Released,
    Restored,
    RetainedSet,
    SessionGone,
    SessionSaved,
    StoreEvents,
    Wanted,
    Withdrawn,
)
from ..core.session import SessionRecord
from ..core.topics import Grant
from ..core.window import Entry


@dataclass(slots=True)
class _Kept:
    """One session."""

    record: SessionRecord
    owed: dict[int, tuple[Message, Grant]] = field(default_factory=dict)
    released: set[int] = field(default_factory=set)
    incoming: set[int] = field(default_factory=set)


class MemoryStore:
    """What a durable store does, without the disk."""

    def __init__(self) -> None:
        self.sessions: dict[str, _Kept] = {}
        self.retained: dict[str, Message] = {}
        self.pending: deque[tuple[int, list[Change]]] = deque()
        self._events: StoreEvents | None = None

    @property
    def backlog_bytes(self) -> int:
        """Bytes of messages that wait for ``commit``."""
        return sum(
            message.size
            for _, changes in self.pending
            for change in changes
            if isinstance(change, Queued)
            for message in change.messages
        )

    def last_now(self, wall: float) -> float:
        """It has no clock of its own."""
        return wall

    def load(self) -> Iterator[Restored]:
        """Every session, without the messages it is owed."""
        for kept in self.sessions.values():
            seqs = sorted(kept.owed)
            record = kept.record
            size_bytes = sum(message.size for message, _ in kept.owed.values())
            last = max(record.seq, *seqs, *kept.released, 0)
            filters = {filter: replace(grant, share=None) for filter, grant in record.subscriptions.items()}
            yield Restored(
                replace(record, seq=last, subscriptions=filters),
                len(seqs),
                size_bytes,
                sorted(kept.released),
                set(kept.incoming),
                last if record.connected else record.sent_seq,
            )

    def load_retained(self) -> Iterable[Message]:
        """Every retained message."""
        return [_copy(message) for message in self.retained.values()]

    def start(self, events: StoreEvents) -> None:
        """From now on ``events`` is told what ``commit`` made durable."""
        self._events = events

    def write(self, batch: int, changes: list[Change]) -> None:
        """Take a batch; ``commit`` makes it durable."""
        self.pending.append((batch, changes))

    def commit(self, count: int | None = None) -> None:
        """Make the oldest ``count`` batches durable (None: all) and say so, then answer what was asked in them."""
        wanted: list[Wanted] = []
        last = 0
        for _ in range(len(self.pending) if count is None else min(count, len(self.pending))):
            last, changes = self.pending.popleft()
            for change in changes:
                if isinstance(change, Wanted):
                    wanted.append(change)
                else:
                    self._apply(change)
        assert self._events is not None
        if last:
            self._events.durable(last)
        for question in wanted:
            self._events.refill(question.window, self._read(question))

    def crash(self, keep: int = 0) -> None:
        """The process ended: of the batches that were not durable, the first ``keep`` happen to be on the disk."""
        for _ in range(min(keep, len(self.pending))):
            for change in self.pending.popleft()[1]:
                if not isinstance(change, Wanted):
                    self._apply(change)
        self.pending.clear()
        self._events = None

    def close(self) -> None:
        """Make everything durable."""
        self.commit()

    def _apply(self, change: Change) -> None:
        if isinstance(change, RetainedSet):
            if change.message.payload:
                self.retained[change.message.topic] = change.message
            else:
                self.retained.pop(change.message.topic, None)
        elif isinstance(change, SessionSaved):
            kept = self.sessions.get(change.record.client_id)
            if kept is None:
                self.sessions[change.record.client_id] = _Kept(change.record)
            else:
                kept.record = change.record
        elif isinstance(change, SessionGone):
            self.sessions.pop(change.client_id, None)
        elif not isinstance(change, Wanted):
            kept = self.sessions.get(change.client_id)
            if kept is not None:
                self._apply_to(kept, change)

    @staticmethod
    def _apply_to(kept: _Kept, change: Queued | Acked | Withdrawn | Released | Finished | Received | Completed) -> None:
        if isinstance(change, Queued):
            for seq, message in enumerate(change.messages, change.seq):
                kept.owed[seq] = (message, change.grant)
        elif isinstance(change, Acked | Withdrawn):
            for seq in range(change.seq, change.seq + len(change.messages)):
                kept.owed.pop(seq, None)
        elif isinstance(change, Released):
            kept.owed.pop(change.seq, None)
            kept.released.add(change.seq)
        elif isinstance(change, Finished):
            kept.released.discard(change.seq)
        elif isinstance(change, Received):
            kept.incoming.add(change.packet_id)
        else:
            kept.incoming.discard(change.packet_id)

    def _read(self, question: Wanted) -> list[Entry]:
        kept = self.sessions.get(question.window.client_id)
        entries: list[Entry] = []
        size_bytes = 0
        for seq, (message, grant) in sorted(kept.owed.items()) if kept is not None else ():
            if seq > question.seq and len(entries) < question.count and size_bytes < question.size_bytes:
                entries.append((_copy(message), grant, seq))
                size_bytes += message.size
        return entries


def _copy(message: Message) -> Message:
    """As a message that was read from a disk: an object of its own, whose batch is long durable."""
    return replace(message, batch=0)
