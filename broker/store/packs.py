"""Messages and who is owed them, as one transaction changes them: packs and ranges (see ``schema``).

1. ``owners`` of a pack is the number of rows that refer to it. ``moved`` has what this transaction adds and takes away,
   and ``finish`` settles it, so that a pack that one session leaves and another takes over stays.
2. A message that has a number is where that says, or gone: then it gets a new one.
"""

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from operator import itemgetter
from typing import Final

from ..core.message import Message
from ..errors import StoreError
from .rows import decode_messages, encode_messages, named
from .schema import PACK_BITS, PACK_BYTES, PACK_MESSAGES

Run = tuple[int, Sequence[Message], int, int, int]
"""Messages owed under a sequence number and those after it: of a list those from one index up to another. Last the id
of their grant."""
Gone = tuple[int, Sequence[Message], int, int]
"""Messages that are not owed any more: the sequence number of the first; of a list those from one index up to
another."""
Span = tuple[int, int, int]
"""Of a list the messages from one index up to another, and the id of a session that is owed them."""
Piece = tuple[int, int, int, int]
"""Messages of a list that have consecutive numbers: index and number of the first, how many, and their bytes."""

# Rows that one INSERT carries. sqlite3 lets go of the GIL around each statement, not each row, so that a busy event
# loop and the writer meet once per so many rows.
_ROWS: Final = 50
_SEQ: Final = itemgetter(0)
_INDEX: Final = (1 << PACK_BITS) - 1
_FIND: Final = (  # ranges up to a number, from the last that begins at or before another on
    "SELECT seq, count, message, options, size FROM owed WHERE session = ? AND seq <= ? "
    "AND seq >= coalesce((SELECT max(seq) FROM owed WHERE session = ? AND seq <= ?), 0) ORDER BY seq"
)


class _Pack:
    __slots__ = ("first", "messages", "row", "size_bytes")

    def __init__(self, row: int) -> None:
        self.row = row
        self.first = row << PACK_BITS  # number of its first message
        self.messages: list[Message] = []
        self.size_bytes = 0


class Packs:
    """What the transaction that is open in ``database`` does to ``messages``, ``owed`` and ``retained``.

    ``row`` is the first free id of a pack, in the end the next one.
    """

    def __init__(self, database: sqlite3.Connection, row: int) -> None:
        self.row = row
        self.packed: list[Message] = []  # what got a number; it is void if the transaction fails
        self._database = database
        self._first_row = row
        self._packs: list[_Pack] = []
        self._open: dict[tuple[int, ...], _Pack] = {}  # by the sessions that are owed all of it
        self._moved: dict[int, int] = {}
        self._owed: list[tuple[int, int, int, int, int, int]] = []
        self._found: dict[int, bool] = {}

    # giving

    def retain(self, message: Message) -> None:
        """The retained message of its topic; an empty payload removes the one before."""
        database = self._database
        row = database.execute("SELECT message FROM retained WHERE topic = ?", (message.topic,)).fetchone()
        if row is not None:
            self._move(row[0] >> PACK_BITS, -1)
        if message.payload:
            if not self._is_kept(message):
                pack = self._begin()  # alone: it stays when its neighbours have gone
                pack.messages.append(message)
                self.packed.append(message)
                message.stored = pack.first
            self._move(message.stored >> PACK_BITS, 1)
            database.execute("INSERT OR REPLACE INTO retained VALUES (?, ?)", (message.topic, message.stored))
        elif row is not None:
            database.execute("DELETE FROM retained WHERE topic = ?", (message.topic,))

    def owe(self, sessions: Sequence[tuple[int, list[Run]]]) -> None:
        """By id of the session, what it is owed from now on."""
        holders = _holders(sessions) if len(sessions) > 1 else {}
        placed: dict[int, list[Piece]] = {}
        for session, runs in sessions:
            first = options = stored = count = size_bytes = 0
            for seq, messages, start, stop, grant in runs:
                if not holders:
                    pieces = self._place(messages, start, stop, ())
                elif id(messages) in placed:
                    pieces = placed[id(messages)]
                else:
                    pieces = placed[id(messages)] = self._place_all(messages, holders[id(messages)])
                for at, number, length, size in pieces:
                    if at < start:
                        continue
                    if at >= stop:
                        break
                    if number == stored + count and seq == first + count and grant == options and count:
                        count += length
                        size_bytes += size
                    else:
                        if count:
                            self._range(session, first, count, stored, options, size_bytes)
                        first, options, stored, count, size_bytes = seq, grant, number, length, size
                    seq += length
            if count:
                self._range(session, first, count, stored, options, size_bytes)

    def _place_all(self, messages: Sequence[Message], spans: list[Span]) -> list[Piece]:
        """Numbers for all that somebody is owed of one list: what the same sessions are owed goes to the same packs."""
        pieces: list[Piece] = []
        bounds = {at for start, stop, _ in spans for at in (start, stop)}
        for low, high in pairwise(sorted(bounds)):
            owners = tuple([session for start, stop, session in spans if start <= low and high <= stop])
            if owners:
                pieces += self._place(messages, low, high, owners)
        return pieces

    def _place(self, messages: Sequence[Message], start: int, stop: int, owners: tuple[int, ...]) -> list[Piece]:
        """Numbers for messages of a list, which only ``owners`` are owed, as pieces with consecutive numbers."""
        pieces: list[Piece] = []
        pack = self._open.get(owners)
        at = stored = count = size_bytes = 0
        for index in range(start, stop):
            message = messages[index]
            number, size = message.stored, message.size
            if not number or not self._is_kept(message):
                if pack is None or len(pack.messages) == PACK_MESSAGES or pack.size_bytes + size > PACK_BYTES:
                    pack = self._open[owners] = self._begin()
                number = message.stored = pack.first + len(pack.messages)
                pack.messages.append(message)
                pack.size_bytes += size
                self.packed.append(message)
            if number == stored + count and count:
                count += 1
                size_bytes += size
            else:
                if count:
                    pieces.append((at, stored, count, size_bytes))
                at, stored, count, size_bytes = index, number, 1, size
        pieces.append((at, stored, count, size_bytes))
        return pieces

    def _range(self, session: int, seq: int, count: int, stored: int, options: int, size_bytes: int) -> None:
        self._owed.append((session, seq, count, stored, options, size_bytes))
        self._move(stored >> PACK_BITS, 1)

    def _begin(self) -> _Pack:
        pack = _Pack(self.row)
        self.row += 1
        self._packs.append(pack)
        return pack

    def _is_kept(self, message: Message) -> bool:
        row = message.stored >> PACK_BITS
        if row <= 0:
            return False
        if row >= self._first_row:
            return True
        found = self._found.get(row)
        if found is None:
            sought = self._database.execute("SELECT 1 FROM messages WHERE id = ?", (row,)).fetchone()
            found = self._found[row] = sought is not None
        return found

    def _move(self, row: int, by: int) -> None:
        self._moved[row] = self._moved.get(row, 0) + by

    # taking away

    def take(self, session: int, gone: list[Gone]) -> None:
        """The session is not owed ``gone`` any more, of which nothing is there twice."""
        gone.sort(key=_SEQ)
        cut: dict[int, tuple[tuple[int, int, int, int, int], list[tuple[int, int]]]] = {}
        whole: list[tuple[int, int]] = []
        for low, high in _spans(gone):
            for row in self._database.execute(_FIND, (session, high, session, low)):
                seq, count, stored = row[:3]
                last = seq + count - 1
                if low <= seq and last <= high:
                    self._move(stored >> PACK_BITS, -1)
                    if whole and whole[-1][1] == seq - 1:
                        whole[-1] = whole[-1][0], last
                    else:
                        whole.append((seq, last))
                elif last >= low:
                    cut.setdefault(seq, (row, []))[1].append((max(low, seq), min(high, last)))
        whole += [(seq, seq) for seq in cut]
        self._database.executemany(
            "DELETE FROM owed WHERE session = ? AND seq BETWEEN ? AND ?", [(session, low, high) for low, high in whole]
        )
        for row, holes in cut.values():
            self._cut(session, row, holes, gone)

    def _cut(
        self, session: int, row: tuple[int, int, int, int, int], holes: list[tuple[int, int]], gone: list[Gone]
    ) -> None:
        """Put back what is left of a range."""
        first, count, stored, options, size_bytes = row
        left: list[tuple[int, int]] = []
        at = first
        for low, high in holes:
            size_bytes -= _bytes(gone, low, high)
            if low > at:
                left.append((at, low - at))
            at = high + 1
        if at < first + count:
            left.append((at, first + count - at))
        self._move(stored >> PACK_BITS, -1)
        for seq, count in left[:-1]:
            part_bytes = self._size(stored + seq - first, count)
            size_bytes -= part_bytes
            self._range(session, seq, count, stored + seq - first, options, part_bytes)
        if left:
            seq, count = left[-1]
            self._range(session, seq, count, stored + seq - first, options, size_bytes)

    def _size(self, stored: int, count: int) -> int:
        """Bytes of ``count`` messages; 0 if they cannot be read, which is reported when they are wanted."""
        try:
            return sum(message.size for message in read_messages(self._database, stored, count))
        except StoreError:
            return 0

    def bury(self, session: int) -> None:
        """The session has ended."""
        database = self._database
        counted = f"SELECT message >> {PACK_BITS}, count(*) FROM owed WHERE session = ? GROUP BY 1"
        for row, count in database.execute(counted, (session,)):
            self._move(row, -count)
        for table in ("owed", "released", "incoming", "subscriptions"):
            database.execute(f"DELETE FROM {table} WHERE session = ?", (session,))
        database.execute("DELETE FROM sessions WHERE id = ?", (session,))

    # all of it

    def finish(self) -> None:
        """Write the new packs and ranges, and delete the packs that nothing refers to any more."""
        database = self._database
        moved = self._moved
        insert(
            database,
            "messages",
            4,
            [
                (pack.row, moved.pop(pack.row, 0), len(pack.messages), encode_messages(pack.messages))
                for pack in self._packs
            ],
        )
        insert(database, "owed", 6, self._owed)
        for low, high in _runs(sorted(row for row, by in moved.items() if by == -1)):
            deleted = database.execute("DELETE FROM messages WHERE id BETWEEN ? AND ? AND owners = 1", (low, high))
            if deleted.rowcount <= high - low:
                database.execute("UPDATE messages SET owners = owners - 1 WHERE id BETWEEN ? AND ?", (low, high))
        others = [(by, row) for row, by in moved.items() if by and by != -1]
        database.executemany("UPDATE messages SET owners = owners + ? WHERE id = ?", others)
        fewer = [(row,) for by, row in others if by < 0]
        database.executemany("DELETE FROM messages WHERE id = ? AND owners <= 0", fewer)


def read_messages(database: sqlite3.Connection, stored: int, count: int) -> list[Message]:
    """``count`` messages of one pack, with the numbers from ``stored`` on. Raises StoreError if they are not there."""
    row, index = stored >> PACK_BITS, stored & _INDEX
    found = database.execute("SELECT count, body FROM messages WHERE id = ?", (row,)).fetchone()
    if found is None or index + count > found[0]:
        raise StoreError(f"{named(stored)} is missing; the database is damaged")
    return decode_messages(found[1], found[0], row, range(index, index + count))


def _holders(sessions: Iterable[tuple[int, list[Run]]]) -> dict[int, list[Span]]:
    """By ``id`` of a list of messages, who is owed which part of it: a run is one list for all its receivers."""
    holders: dict[int, list[Span]] = {}
    for session, runs in sessions:
        for _, messages, start, stop, _ in runs:
            holders.setdefault(id(messages), []).append((start, stop, session))
    return holders


def _spans(gone: Iterable[Gone]) -> Iterator[tuple[int, int]]:
    """What follows each other without a gap, as (first, last) sequence number."""
    low, high = 0, -1
    for seq, _, start, stop in gone:
        if seq != high + 1:
            if high >= low:
                yield low, high
            low = seq
        high = seq + stop - start - 1
    if high >= low:
        yield low, high


def _bytes(gone: list[Gone], low: int, high: int) -> int:
    """Bytes of the messages with sequence numbers from ``low`` to ``high``, all of which are there."""
    size_bytes = 0
    at = bisect_right(gone, low, key=_SEQ) - 1
    while at < len(gone) and gone[at][0] <= high:
        seq, messages, start, stop = gone[at]
        first = start + max(0, low - seq)
        size_bytes += sum([message.size for message in messages[first : min(stop, start + high + 1 - seq)]])
        at += 1
    return size_bytes


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
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


def insert(database: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[object, ...]]) -> None:
    """New rows of a table."""
    row = f"({', '.join('?' * columns)})"
    for at in range(0, len(rows), _ROWS):
        some = rows[at : at + _ROWS]
        database.execute(f"INSERT INTO {table} VALUES {', '.join([row] * len(some))}", list(chain.from_iterable(some)))
