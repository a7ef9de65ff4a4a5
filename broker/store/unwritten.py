"""Changes that are not in the database yet, reduced to their net effect, and the transaction that writes it.

What was promised and settled before it was written leaves no trace: a message that all its receivers acknowledged
meanwhile is never written.

1. ``add`` only changes memory, ``write`` only the database: a transaction that failed can be tried again, with what was
   added since.
2. ``Message.stored`` and ``Kept.id`` are given out here, in the writer's thread, and nowhere else.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from ..core.message import Message
from ..core.ports import (
    Acked,
    Change,
    Completed,
    Queued,
    Received,
    Released,
    RetainedSet,
    SessionGone,
    SessionSaved,
)
from ..core.session import SessionRecord
from ..core.topics import Grant
from .rows import encode_grant, encode_messages, encode_will

# Rows that one INSERT carries. sqlite3 lets go of the GIL around each statement, not each row, so that a busy event
# loop and the writer meet once per so many rows.
_ROWS: Final = 50


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
        "added",
        "completed",
        "finished",
        "kept",
        "received",
        "record",
        "released",
        "removed",
    )

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.record: SessionRecord | None = None
        self.added: dict[int, tuple[Message, int]] = {}  # sequence number → message and id of its grant
        self.removed: list[int] = []
        self.released: set[int] = set()
        self.finished: list[int] = []
        self.received: set[int] = set()
        self.completed: set[int] = set()


class Unwritten:
    """The changes of all batches since the last transaction.

    ``needs_flush(topic)``: whether its messages must reach the disk itself; None = those of all topics.
    """

    def __init__(self, sessions: dict[str, Kept], needs_flush: Callable[[str], bool] | None = None) -> None:
        self._sessions = sessions
        self._needs_flush = needs_flush
        self._grants: dict[tuple[object, ...], int] = {}
        self._new_grants: list[tuple[int, str]] = []
        self._next_session = 1
        self._next_message = 1
        self._next_grant = 1
        self._deltas: dict[str, _Delta] = {}
        self._dead: list[_Delta] = []
        self._retained: dict[str, Message] = {}
        self._moved: dict[int, int] = {}
        self._assigned: list[Message] = []

    def begin(self, next_session: int, next_message: int, grants: Iterable[tuple[int, str, Grant]]) -> None:
        """Go on after the numbers and with the grants that the database has."""
        self._next_session, self._next_message = next_session, next_message
        for number, _, grant in grants:
            self._grants[_grant_key(grant)] = number
            self._next_grant = max(self._next_grant, number + 1)

    def __bool__(self) -> bool:
        return bool(self._deltas or self._dead or self._retained)

    # gathering

    def add(self, changes: list[Change]) -> None:
        """Take in one batch."""
        deltas = self._deltas
        for change in changes:
            kind = type(change)
            if kind is Queued:
                assert isinstance(change, Queued)
                delta = self._delta(change.client_id)
                if delta is not None:
                    grant = self._grant(change.grant)
                    added = delta.added
                    for seq, message in enumerate(change.messages, change.seq):
                        added[seq] = (message, grant)
            elif kind is Acked:
                assert isinstance(change, Acked)
                delta = deltas.get(change.client_id) or self._delta(change.client_id)
                if delta is not None and (change.message is None or delta.added.pop(change.seq, None) is None):
                    self._acked(delta, change.seq, change.message)
            elif isinstance(change, SessionSaved):
                self._saved(change.record)
            elif isinstance(change, SessionGone):
                self._gone(change.client_id)
            elif isinstance(change, RetainedSet):
                self._retained[change.message.topic] = change.message
            elif isinstance(change, Released | Received | Completed):
                delta = self._delta(change.client_id)
                if delta is None:
                    continue
                if isinstance(change, Released):
                    self._acked(delta, change.seq, change.message)
                    delta.released.add(change.seq)
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
            del self._deltas[client_id]
            del self._sessions[client_id]
            if delta.kept.in_database:
                delta.added = {}
                self._dead.append(delta)

    def _acked(self, delta: _Delta, seq: int, message: Message | None) -> None:
        if message is None:
            if seq in delta.released:
                delta.released.discard(seq)
            else:
                delta.finished.append(seq)
        elif delta.added.pop(seq, None) is None and message.stored > 0:
            delta.removed.append(seq)
            self._move(self._moved, message.stored, -1)

    @staticmethod
    def _move(moved: dict[int, int], stored: int, by: int) -> None:
        count = moved.get(stored, 0) + by
        if count:
            moved[stored] = count
        else:
            del moved[stored]

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
        for delta in self._deltas.values():
            if delta.record is not None or delta.released or delta.received or delta.completed:
                return True
            added = delta.added
            if added and (self._needs_flush is None or any(self._needs_flush(m.topic) for m, _ in added.values())):
                return True
        return False

    def write(self, database: sqlite3.Connection) -> None:
        """Put everything into the transaction that is open. Call ``written`` or ``failed`` once it has ended."""
        moved = dict(self._moved)
        deltas = self._deltas.values()
        for delta in chain(self._dead, deltas):
            if delta.removed:
                number = delta.kept.id
                database.executemany(
                    "DELETE FROM owed WHERE session = ? AND seq BETWEEN ? AND ?",
                    [(number, low, high) for low, high in _ranges(sorted(delta.removed))],
                )
        for delta in self._dead:
            self._bury(database, delta.kept.id, moved)
        first_new = self._next_message
        new = self._assigned = []
        owners: list[int] = []
        plus: dict[int, Message] = {}

        def own(message: Message) -> int:
            stored = message.stored
            if not stored:
                stored = message.stored = self._next_message
                self._next_message += 1
                new.append(message)
                owners.append(1)
            elif stored >= first_new:
                owners[stored - first_new] += 1
            else:
                plus[stored] = message
                self._move(moved, stored, 1)
            return stored

        for topic, message in self._retained.items():
            row = database.execute("SELECT message FROM retained WHERE topic = ?", (topic,)).fetchone()
            if row is not None:
                self._move(moved, row[0], -1)
            if message.payload:
                database.execute("INSERT OR REPLACE INTO retained VALUES (?, ?)", (topic, own(message)))
            elif row is not None:
                database.execute("DELETE FROM retained WHERE topic = ?", (topic,))
        owed: list[tuple[int, int, int, int, int]] = []
        for delta in deltas:
            if delta.added:
                number = delta.kept.id
                owed += [
                    (number, seq, own(message), grant, message.size) for seq, (message, grant) in delta.added.items()
                ]
        bodies = encode_messages(new)
        _insert(database, "messages", 3, list(zip(range(first_new, first_new + len(new)), owners, bodies, strict=True)))
        _insert(database, "owed", 5, owed)
        _insert(database, "grants", 2, self._new_grants)
        for delta in deltas:
            self._write_session(database, delta)
        self._settle(database, moved, plus)

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

    def _bury(self, database: sqlite3.Connection, number: int, moved: dict[int, int]) -> None:
        for message, count in database.execute(
            "SELECT message, count(*) FROM owed WHERE session = ? GROUP BY message", (number,)
        ):
            self._move(moved, message, -count)
        for table in ("owed", "released", "incoming", "subscriptions"):
            database.execute(f"DELETE FROM {table} WHERE session = ?", (number,))
        database.execute("DELETE FROM sessions WHERE id = ?", (number,))

    def _settle(self, database: sqlite3.Connection, moved: dict[int, int], plus: dict[int, Message]) -> None:
        """Bring the number of owners of messages up to date, and delete those that have none."""
        once = sorted(stored for stored, by in moved.items() if by == -1)
        for low, high in _ranges(once):
            deleted = database.execute("DELETE FROM messages WHERE id BETWEEN ? AND ? AND owners = 1", (low, high))
            if deleted.rowcount <= high - low:
                database.execute("UPDATE messages SET owners = owners - 1 WHERE id BETWEEN ? AND ?", (low, high))
        for stored, by in moved.items():
            if by == -1:
                continue
            changed = database.execute("UPDATE messages SET owners = owners + ? WHERE id = ?", (by, stored))
            if by < 0:
                database.execute("DELETE FROM messages WHERE id = ? AND owners <= 0", (stored,))
            elif not changed.rowcount:
                body = encode_messages([plus[stored]])[0]
                database.execute("INSERT INTO messages VALUES (?, ?, ?)", (stored, by, body))

    def written(self) -> None:
        """The transaction is committed."""
        for delta in self._deltas.values():
            if delta.record is not None:
                delta.kept.in_database = True
                delta.kept.subscriptions = delta.record.subscriptions
        self._deltas = {}
        self._dead = []
        self._retained = {}
        self._moved = {}
        self._assigned = []
        self._new_grants = []

    def failed(self) -> None:
        """The transaction was rolled back: what it would have written is as unwritten as before."""
        for message in self._assigned:
            message.stored = 0
        self._assigned = []


def _grant_key(grant: Grant) -> tuple[object, ...]:
    share = grant.share
    shared = (share.name, share.filter) if share is not None else None
    own = _grant_key(grant.own) if grant.own is not None else None
    return (grant.qos, grant.no_local, grant.retain_as_published, grant.identifiers, shared, grant.policy, own)


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, as (first, last)."""
    if not numbers:
        return
    low = high = numbers[0]
    for number in numbers[1:]:
        if number != high + 1:
            yield low, high
            low = number
        high = number
    yield low, high


def _insert(database: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
    row = f"({', '.join('?' * columns)})"
    whole = len(rows) - len(rows) % _ROWS
    if whole:
        statement = f"INSERT INTO {table} VALUES {', '.join([row] * _ROWS)}"
        for at in range(0, whole, _ROWS):
            database.execute(statement, list(chain.from_iterable(rows[at : at + _ROWS])))
    if whole < len(rows):
        database.executemany(f"INSERT INTO {table} VALUES {row}", rows[whole:])
