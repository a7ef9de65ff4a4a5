"""Changes that are not in the database yet, reduced to their net effect, and the transaction that writes it.

What was promised and settled before it was written leaves no trace: a message that all its receivers acknowledged
meanwhile is never written. Acknowledgements of receivers alone need not be written at once: many together cost little
more than one, and until then the same messages would only be repeated. They wait here until they are asked for.

1. ``add`` only changes memory, ``write`` only the database: a transaction that failed can be tried again, with what was
   added since.
2. ``Message.stored`` and ``Kept.id`` are given out by the writer's thread and nobody else.
3. An acknowledgement does not wait any longer if something else is written that supposes it: PUBREL owed instead of the
   message, another message under its number, or one that was withdrawn from the same session.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

from ..core.message import Message
from ..core.ports import (
    Acked,
    Change,
    Completed,
    Finished,
    Queued,
    Received,
    Released,
    RetainedSet,
    SessionGone,
    SessionSaved,
    Wanted,
    Withdrawn,
)
from ..core.session import SessionRecord
from ..core.topics import Grant
from .packs import Gone, Packs, Run, insert
from .rows import encode_grant, encode_will

_SEQ: Final = itemgetter(0)
_NO_RUN: Final[Run] = (1 << 63, (), 0, 0, 0)  # after the last one


class Kept:
    """A session that the database has, or will have."""

    __slots__ = ("id", "in_database", "subscriptions")

    def __init__(self, id: int, subscriptions: dict[str, Grant] | None = None, *, in_database: bool = False) -> None:
        self.id = id
        self.subscriptions = subscriptions or {}  # as the database has them
        self.in_database = in_database


class _Delta:
    """What changed in one session."""

    __slots__ = (
        "acked",
        "added",
        "completed",
        "finished",
        "grant",
        "grant_id",
        "kept",
        "last_acked",
        "received",
        "record",
        "released",
        "takes",
    )

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.record: SessionRecord | None = None
        self.added: list[Run] = []  # by sequence number, none twice
        self.acked: list[Gone] = []  # what the database has and nobody is owed
        self.last_acked = 0  # the highest number of those
        self.takes = False  # whether they are written with the rest
        self.grant: Grant | None = None  # the last one that was met, and its id
        self.grant_id = 0
        self.released: set[int] = set()
        self.finished: list[int] = []
        self.received: set[int] = set()
        self.completed: set[int] = set()

    def add(self, seq: int, messages: list[Message]) -> None:
        """``messages`` are owed under ``seq`` and the numbers after it."""
        added = self.added
        run = (seq, messages, 0, len(messages), self.grant_id)
        if seq <= self.last_acked:
            self.takes = True
        if added and added[-1][0] > seq:  # it takes the place of one that was acknowledged
            added.insert(bisect_right(added, seq, key=_SEQ), run)
        else:
            added.append(run)

    def strike(self, seq: int, messages: list[Message]) -> tuple[int, int]:
        """``messages`` are not owed any more: strike out what was added, and note what the database has.

        Returns how many were struck out, and the bytes of what was noted.
        """
        struck = noted_bytes = 0
        added = self.added
        first, stop = seq, seq + len(messages)
        at = max(0, bisect_right(added, seq, key=_SEQ) - 1)
        while seq < stop:
            begin, base, start, end, grant = added[at] if at < len(added) else _NO_RUN
            beyond = begin + end - start
            if beyond <= seq:
                at += 1
            elif begin > seq:  # a gap: that is in the database
                upto = min(begin, stop)
                sizes = [message.size for message in messages[seq - first : upto - first] if message.stored >= 0]
                if sizes:
                    noted_bytes += sum(sizes)
                    self.acked.append((seq, messages, seq - first, upto - first))
                    self.last_acked = max(self.last_acked, upto - 1)
                seq = upto
            else:
                left: list[Run] = []
                if begin < seq:
                    left.append((begin, base, start, start + seq - begin, grant))
                if stop < beyond:
                    left.append((stop, base, start + stop - begin, end, grant))
                added[at : at + 1] = left
                at += begin < seq
                struck += min(stop, beyond) - seq
                seq = min(stop, beyond)
        return struck, noted_bytes

    @property
    def due(self) -> bool:
        """Whether there is more than acknowledgements that may wait."""
        return self.takes or bool(
            self.added or self.record or self.released or self.finished or self.received or self.completed
        )


class Unwritten:
    """The changes of all batches since the last transaction. ``wanted``: the questions among them, for who reads.

    ``needs_flush(topic)``: whether its messages must reach the disk itself; None = those of all topics.
    """

    def __init__(self, sessions: dict[str, Kept], needs_flush: Callable[[str], bool] | None = None) -> None:
        self._sessions = sessions
        self._needs_flush = needs_flush
        self._grants: dict[tuple[object, ...], int] = {}
        self._new_grants: list[tuple[int, str]] = []
        self._next_session = 1
        self._next_pack = 1
        self._next_grant = 1
        self._deltas: dict[str, _Delta] = {}
        self._dead: list[Kept] = []
        self._retained: dict[str, Message] = {}
        self.wanted: list[Wanted] = []
        self.owed = 0  # how many deliveries are to be written
        self.settled = 0  # how many need not be any more, since the last transaction
        self.acked_bytes = 0  # at most: of messages that the database has and whose acknowledgements wait
        self._packs: Packs | None = None  # what the transaction under way has packed

    def begin(self, next_session: int, next_pack: int, grants: Iterable[tuple[int, str, Grant]]) -> None:
        """Go on after the numbers and with the grants that the database has."""
        self._next_session, self._next_pack = next_session, next_pack
        for number, _, grant in grants:
            self._grants[_grant_key(grant)] = number
            self._next_grant = max(self._next_grant, number + 1)

    def __bool__(self) -> bool:
        return bool(self._deltas or self._dead or self._retained)

    @property
    def due(self) -> bool:
        """Whether there is more than acknowledgements that may wait."""
        return bool(self._dead or self._retained) or any(delta.due for delta in self._deltas.values())

    # gathering

    def add(self, changes: list[Change]) -> None:
        """Take in one batch."""
        deltas = self._deltas
        for change in changes:
            kind = type(change)
            if kind is Queued:
                assert isinstance(change, Queued)
                delta = deltas.get(change.client_id) or self._delta(change.client_id)
                if delta is not None:
                    if change.grant is not delta.grant:
                        delta.grant, delta.grant_id = change.grant, self._grant(change.grant)
                    delta.add(change.seq, change.messages)
                    self.owed += len(change.messages)
            elif kind is Acked or kind is Withdrawn:
                assert isinstance(change, Acked | Withdrawn)
                delta = deltas.get(change.client_id) or self._delta(change.client_id)
                if delta is not None:
                    struck, noted_bytes = delta.strike(change.seq, change.messages)
                    self.owed -= struck
                    self.settled += struck
                    self.acked_bytes += noted_bytes
                    if noted_bytes and kind is Withdrawn:
                        delta.takes = True
            elif isinstance(change, Wanted):
                self.wanted.append(change)
            elif isinstance(change, SessionSaved):
                self._saved(change.record)
            elif isinstance(change, SessionGone):
                self._gone(change.client_id)
            elif isinstance(change, RetainedSet):
                self._retained[change.message.topic] = change.message
            elif isinstance(change, Released | Finished | Received | Completed):
                delta = self._delta(change.client_id)
                if delta is None:
                    continue
                if isinstance(change, Released):
                    self.owed -= delta.strike(change.seq, [change.message])[0]
                    delta.takes = True
                    delta.released.add(change.seq)
                elif isinstance(change, Finished):
                    if change.seq in delta.released:
                        delta.released.discard(change.seq)
                    else:
                        delta.finished.append(change.seq)
                elif isinstance(change, Received):
                    delta.received.add(change.packet_id)
                else:
                    delta.received.discard(change.packet_id)
                    delta.completed.add(change.packet_id)

    def _delta(self, client_id: str) -> _Delta | None:
        delta = self._deltas.get(client_id)
        if delta is None:
            kept = self._sessions.get(client_id)
            if kept is None:
                return None  # the session ended before its last change was noted
            delta = self._deltas[client_id] = _Delta(kept)
        return delta

    def _saved(self, record: SessionRecord) -> None:
        if record.client_id not in self._sessions:
            self._sessions[record.client_id] = Kept(self._next_session)
            self._next_session += 1
        delta = self._delta(record.client_id)
        assert delta is not None
        delta.record = record

    def _gone(self, client_id: str) -> None:
        delta = self._delta(client_id)
        if delta is not None:
            self.owed -= sum(end - start for _, _, start, end, _ in delta.added)
            del self._deltas[client_id]
            del self._sessions[client_id]
            if delta.kept.in_database:
                self._dead.append(delta.kept)

    def _grant(self, grant: Grant) -> int:
        key = _grant_key(grant)
        number = self._grants.get(key)
        if number is None:
            number = self._grants[key] = self._next_grant
            self._next_grant += 1
            self._new_grants.append((number, encode_grant(grant)))
        return number

    # writing

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for this to be on disk: acknowledgements of receivers alone can be lost safely."""
        if self._dead or self._retained:
            return True
        needs_flush = self._needs_flush
        for delta in self._deltas.values():
            if delta.record is not None or delta.released or delta.received or delta.completed:
                return True
            if delta.added and (needs_flush is None or any(needs_flush(run[1][0].topic) for run in delta.added)):
                return True
        return False

    def write(self, database: sqlite3.Connection, *, acked: bool = True) -> None:
        """Put everything into the transaction that is open; of the acknowledgements that may wait only if ``acked``.

        Call ``written`` or ``failed`` once it has ended.
        """
        packs = self._packs = Packs(database, self._next_pack)
        for kept in self._dead:
            packs.bury(kept.id)
        for message in self._retained.values():
            packs.retain(message)
        deltas = self._deltas.values()
        for delta in deltas:
            delta.takes = bool(delta.acked) and (acked or delta.takes)
            if delta.takes:
                packs.take(delta.kept.id, delta.acked)
        packs.owe([(delta.kept.id, delta.added) for delta in deltas if delta.added])
        packs.finish()
        insert(database, "grants", 2, self._new_grants)
        for delta in deltas:
            self._write_session(database, delta)

    def _write_session(self, database: sqlite3.Connection, delta: _Delta) -> None:
        number = delta.kept.id
        record = delta.record
        if record is not None:
            will = encode_will(record.will) if record.will is not None else None
            database.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    record.client_id,
                    record.expiry_s,
                    record.expires_at,
                    int(record.connected),
                    will,
                    record.will_at,
                    record.sent_seq,
                    record.seq,
                ),
            )
            old, now = delta.kept.subscriptions, record.subscriptions
            gone = [(number, filter) for filter in old if filter not in now]
            set_ = [
                (number, filter, encode_grant(grant))
                for filter, grant in now.items()
                if old.get(filter) is not grant and old.get(filter) != grant
            ]
            if gone:
                database.executemany("DELETE FROM subscriptions WHERE session = ? AND filter = ?", gone)
            if set_:
                database.executemany("INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)", set_)
        if delta.finished:
            rows = [(number, seq) for seq in delta.finished]
            database.executemany("DELETE FROM released WHERE session = ? AND seq = ?", rows)
        if delta.released:
            rows = [(number, seq) for seq in delta.released]
            database.executemany("INSERT OR REPLACE INTO released VALUES (?, ?)", rows)
        if delta.completed:
            rows = [(number, packet_id) for packet_id in delta.completed]
            database.executemany("DELETE FROM incoming WHERE session = ? AND packet_id = ?", rows)
        if delta.received:
            rows = [(number, packet_id) for packet_id in delta.received]
            database.executemany("INSERT OR REPLACE INTO incoming VALUES (?, ?)", rows)

    def written(self) -> None:
        """The transaction is committed."""
        left: dict[str, _Delta] = {}
        for client_id, delta in self._deltas.items():
            if delta.record is not None:
                delta.kept.in_database = True
                delta.kept.subscriptions = delta.record.subscriptions
            if delta.acked and not delta.takes:
                still = left[client_id] = _Delta(delta.kept)
                still.acked, still.last_acked = delta.acked, delta.last_acked
        if self._packs is not None:
            self._next_pack = self._packs.row
        self._packs = None
        self._deltas = left
        self.owed = 0
        if not left:
            self.acked_bytes = 0
        self._dead = []
        self._retained = {}
        self._new_grants = []

    def failed(self) -> None:
        """The transaction was rolled back: what it would have written is as unwritten as before."""
        if self._packs is not None:
            for message in self._packs.packed:
                message.stored = 0
        self._packs = None


def _grant_key(grant: Grant) -> tuple[object, ...]:
    share = grant.share
    shared = (share.name, share.filter) if share is not None else None
    own = _grant_key(grant.own) if grant.own is not None else None
    return (grant.qos, grant.no_local, grant.retain_as_published, grant.identifiers, shared, grant.policy, own)
