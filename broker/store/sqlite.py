"""The durable store: SQLite in WAL mode, one writer thread, group commit.

The event loop hands over batches and goes on. The thread takes whatever has gathered, writes its net effect in one
transaction and reports the last batch of it as durable: an idle broker commits each batch at once, a busy one fewer and
larger ones. If several gathered during the last transaction, those who were answered then are about to send again, and
the thread waits for them, a moment at most, so that they share a flush, and for acknowledgements of receivers, which
spare it writing. The same thread reads, so that what it reads reflects every change before the question.

1. One process per directory (``Directory``), one thread per database connection at a time.
2. A batch is reported only after COMMIT returned; at level ``fsync`` that is after the log was flushed to the disk.
3. A transaction that fails is tried again until it succeeds: nothing is reported, nothing is forgotten.
4. An error of our own ends the writing for good: what comes after it must not be reported as if all were well.
"""

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from ..config import Config
from ..core.levels import Levels
from ..core.message import Message
from ..core.ports import Change, Queued, Restored, RetainedSet, StoreEvents, Wanted
from ..core.session import SessionRecord
from ..core.topics import Grant
from ..core.window import Entry
from ..errors import StoreError
from .directory import Directory
from .elapsed import boot, resume
from .packs import read_messages
from .rows import decode_grant, decode_will
from .schema import FILE_NAME, connect, damaged, explain
from .unwritten import Kept, Unwritten

log: Final = logging.getLogger("tidings.broker.store")

RETRY_S: Final = 1.0  # between two attempts to write while the disk does not take it
CROWD: Final = 3  # batches in one transaction from which on the next one waits for more
GATHER_S: Final = 0.001  # for so long at most, which is about what a transaction takes
LOOKS: Final = 4  # in that time: it goes on as soon as those who were answered have sent as much again
MOMENTS: Final = 5  # and so often, as long as who is connected acknowledges what then need not be written
CLOCK_S: Final = 10.0  # how old the kept engine time may be, while there is something to write
LATE_S: Final = 0.01  # how long acknowledgements of receivers alone may wait to be written
LATE_BYTES: Final = 4_194_304  # and of how many bytes of messages, by ``Message.size``
MAX_CACHED: Final = 4_096  # messages read for one session that the next one may be owed too

Batch = tuple[int, list[Change], int]


class SqliteStore:
    """Keeps everything in ``tidings.db`` below ``directory``. Raises StoreError if it is in use, damaged or too new."""

    def __init__(self, directory: Path, config: Config) -> None:
        self._config = config
        self._levels = Levels(config)
        self._directory = Directory(directory)
        self._path = directory / FILE_NAME
        try:
            self._database = connect(self._path)
        except StoreError:
            self._directory.release()
            raise
        self._sessions: dict[str, Kept] = {}
        needs_flush = (lambda topic: self._levels.level(topic) == "fsync") if self._levels.varies else None
        self._unwritten = Unwritten(self._sessions, needs_flush)
        self._grants: dict[int, Grant] = {}
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()  # None = it is to close
        self._closing = False
        self._last = 0  # number of the last batch taken out
        self._gathered = 0  # batches in this transaction
        self._answered_bytes = 0  # of messages in the last transaction
        self._hopeful = False  # whether more of the last transaction was settled than had to be written
        self._bytes_taken = 0  # of messages in this transaction, or in those that failed too
        self._cache: dict[int, Message] = {}
        self._bytes_in = 0  # of messages given to write; the loop's thread counts
        self._bytes_out = 0  # of those that are durable; the writer's thread counts
        self._flushes = "fsync" in (config.durability, *config.durability_by_filter.values())
        self._flushing: bool | None = None
        self._trouble = ""  # why nothing can be written
        self._damage = ""  # what could not be read
        self._retry_at = 0.0
        self._late_at = inf  # when acknowledgements that wait are to be written
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: StoreEvents | None = None
        self._clock_base = 0.0
        self._clock_kept = 0.0
        self.commits = 0
        self.flushes = 0

    @property
    def backlog_bytes(self) -> int:
        """Bytes of messages that are not durable yet."""
        return self._bytes_in - self._bytes_out

    # before the start, in the caller's thread

    def last_now(self, wall: float) -> float:
        """Engine time to go on with; see ``elapsed``."""
        try:
            kept = self._database.execute("SELECT now, boot, since FROM clock").fetchone()
        except sqlite3.Error as error:
            raise StoreError(explain(self._path, error)) from None
        now = resume(kept, wall)
        self._clock_base = now - time.monotonic()
        self._clock_kept = now
        return now

    def load(self) -> Iterator[Restored]:
        """Every session, without the messages it is owed. Raises StoreError if the database cannot be read."""
        try:
            yield from self._load()
        except (sqlite3.Error, ValueError, IndexError) as error:
            raise StoreError(explain(self._path, error)) from None

    def _load(self) -> Iterator[Restored]:
        database = self._database
        grants = [(number, text, decode_grant(text)) for number, text in database.execute("SELECT * FROM grants")]
        self._grants = {number: grant for number, _, grant in grants}
        next_session = 1 + database.execute("SELECT coalesce(max(id), 0) FROM sessions").fetchone()[0]
        next_pack = 1 + database.execute("SELECT coalesce(max(id), 0) FROM messages").fetchone()[0]
        self._unwritten.begin(next_session, next_pack, grants)
        sums = "SELECT session, sum(count), sum(size), max(seq + count - 1) FROM owed GROUP BY session"
        owed = {row[0]: row[1:] for row in database.execute(sums)}
        released: dict[int, list[int]] = {}
        for session, seq in database.execute("SELECT session, seq FROM released"):
            released.setdefault(session, []).append(seq)
        incoming: dict[int, set[int]] = {}
        for session, packet_id in database.execute("SELECT session, packet_id FROM incoming"):
            incoming.setdefault(session, set()).add(packet_id)
        subscriptions: dict[int, dict[str, Grant]] = {}
        decoded: dict[str, Grant] = {}
        for session, filter, options in database.execute("SELECT session, filter, options FROM subscriptions"):
            grant = decoded.get(options)
            if grant is None:
                grant = decoded[options] = decode_grant(options)
            subscriptions.setdefault(session, {})[filter] = grant
        for row in database.execute("SELECT * FROM sessions ORDER BY id").fetchall():
            number, client_id, expiry_s, expires_at, connected, will, will_at, sent_seq, seq = row
            count, size_bytes, last_seq = owed.get(number, (0, 0, 0))
            unfinished = released.get(number, [])
            filters = subscriptions.get(number, {})
            self._sessions[client_id] = Kept(number, filters, in_database=True)
            record = SessionRecord(
                client_id,
                expiry_s,
                expires_at,
                bool(connected),
                filters,
                None if will is None else decode_will(will),
                will_at,
                sent_seq,
                max(seq, last_seq, max(unfinished, default=0)),
            )
            maybe_sent_seq = record.seq if connected else sent_seq
            yield Restored(record, count, size_bytes, unfinished, incoming.get(number, set()), maybe_sent_seq)

    def load_retained(self) -> Iterator[Message]:
        """Every retained message. Raises StoreError if the database cannot be read."""
        try:
            for (stored,) in self._database.execute("SELECT message FROM retained"):
                yield from read_messages(self._database, stored, 1)
        except sqlite3.Error as error:
            raise StoreError(explain(self._path, error)) from None
        except StoreError as error:
            raise StoreError(damaged(self._path, error)) from None

    def start(self, events: StoreEvents) -> None:
        """Start the writer thread. ``events`` is called in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        self._thread = threading.Thread(target=self._run, name="tidings-store", daemon=True)
        self._thread.start()

    # in the loop's thread

    def write(self, batch: int, changes: list[Change]) -> None:
        """Make the changes durable with whatever else gathers."""
        size_bytes = 0
        last: Message | None = None
        for change in changes:
            if type(change) is Queued:
                messages = change.messages
                if messages and messages[-1] is not last:
                    last = messages[-1]
                    size_bytes += last.size * len(messages)
            elif type(change) is RetainedSet:
                size_bytes += change.message.size
        self._bytes_in += size_bytes
        self._batches.put((batch, changes, size_bytes))

    def close(self) -> None:
        """Write what is left, end the thread and let go of the directory."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join()
            self._thread = None
        else:
            self._database.close()
        self._directory.release()
        if self._trouble:
            raise StoreError(f"not everything could be written: {self._trouble}")
        if self._damage:
            raise StoreError(self._damage)

    # in the writer's thread

    def _run(self) -> None:
        try:
            self._write_all()
        except Exception as error:
            log.exception("internal error of the store")
            self._fail(f"{self._path}: internal error of the store: {error!r}; restart the broker")
        with suppress(sqlite3.Error):
            self._database.close()  # which takes back a transaction that is open

    def _write_all(self) -> None:
        written = 0
        while not self._closing or self._last > written:
            self._gather()
            if self._due() and self._commit():
                if self._last > written:
                    written = self._last
                    self._bytes_out += self._bytes_taken
                    self._answered_bytes, self._bytes_taken = self._bytes_taken, 0
                    assert self._events is not None
                    self._call(self._events.durable, written)
                self._answer()
            elif self._closing:
                break

    def _gather(self) -> None:
        """Wait for a batch and take what has come; after a transaction of many, also what comes in a moment."""
        crowded, self._gathered = self._gathered >= CROWD, 0
        with suppress(Empty):
            self._take(self._batches.get(timeout=self._patience()))
        self._take_all()
        if not crowded:
            return
        unwritten = self._unwritten
        for moment in range(MOMENTS):
            settled = unwritten.settled
            for _ in range(LOOKS):
                time.sleep(GATHER_S / LOOKS)
                self._take_all()
                if self._all_sent_again():
                    return
            hopeful = unwritten.settled > settled or (self._hopeful and not moment)
            if not unwritten.owed or not hopeful:
                return

    def _all_sent_again(self) -> bool:
        """Whether as much came as was answered last, and no receiver acknowledges what then need not be written."""
        if self._hopeful or self._unwritten.settled:
            return False
        return 0 < self._answered_bytes <= self._bytes_taken

    def _take_all(self) -> None:
        with suppress(Empty):
            while True:
                self._take(self._batches.get_nowait())

    def _take(self, batch: Batch | None) -> None:
        if batch is None:
            self._closing = True
            return
        number, changes, size_bytes = batch
        if number != self._last + 1:
            raise StoreError(f"batch {number} came after batch {self._last}")
        self._unwritten.add(changes)
        self._last = number
        self._gathered += 1
        self._bytes_taken += size_bytes

    def _patience(self) -> float | None:
        """Seconds until there is something to do even if nothing comes; None = nothing to do."""
        if self._trouble:
            return RETRY_S
        return max(0.0, self._late_at - time.monotonic()) if self._unwritten else None

    def _due(self) -> bool:
        """Whether to try now: while the disk takes nothing, once in ``RETRY_S`` is enough."""
        now = time.monotonic()
        if self._trouble and not self._closing and now < self._retry_at:
            return False
        self._retry_at = now + RETRY_S
        return True

    def _commit(self) -> bool:
        """One transaction with everything that does not wait; whether all of that is written now."""
        unwritten = self._unwritten
        self._hopeful, unwritten.settled = unwritten.settled > unwritten.owed, 0
        began = time.monotonic()
        now = self._clock_base + began
        acked = self._closing or self._asks_for_acked(began)
        due = bool(unwritten) if acked else unwritten.due
        clock = self._closing or (due and now > self._clock_kept + CLOCK_S)
        if not due and not clock:
            self._wait_for_acked(began)
            return not self._trouble or self._recovered()
        database = self._database
        try:
            self._flush_if(self._flushes and unwritten.urgent)
            database.execute("BEGIN IMMEDIATE")
            unwritten.write(database, acked=acked)
            if clock:
                database.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?)", (now, *boot()))
            database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with suppress(sqlite3.Error):
                if database.in_transaction:
                    database.execute("ROLLBACK")
            unwritten.failed()
            self._fail(explain(self._path, error))
            return False
        unwritten.written()
        self._wait_for_acked(began)
        self.commits += 1
        self.flushes += bool(self._flushing)
        if clock:
            self._clock_kept = now
        return not self._trouble or self._recovered()

    def _asks_for_acked(self, now: float) -> bool:
        """Whether acknowledgements are written too: they waited long enough, they are many, or somebody reads."""
        unwritten = self._unwritten
        return bool(self._trouble or unwritten.wanted) or now >= self._late_at or unwritten.acked_bytes > LATE_BYTES

    def _wait_for_acked(self, now: float) -> None:
        self._late_at = min(self._late_at, now + LATE_S) if self._unwritten else inf

    def _flush_if(self, needed: bool) -> None:
        if needed is not self._flushing:
            self._database.execute(f"PRAGMA synchronous = {'FULL' if needed else 'NORMAL'}")
            self._flushing = needed

    def _answer(self) -> None:
        """Read what was asked for."""
        wanted, self._unwritten.wanted = self._unwritten.wanted, []
        for question in wanted:
            window = question.window
            try:
                entries = self._read(question)
            except (sqlite3.Error, StoreError) as error:
                # Only this session waits: what can be read is delivered to the others.
                self._damage = str(error) if isinstance(error, StoreError) else explain(self._path, error)
                log.error("messages for client %r cannot be read: %s", window.client_id, self._damage)
                continue
            assert self._events is not None
            self._call(self._events.refill, window, entries)

    def _read(self, question: Wanted) -> list[Entry]:
        kept = self._sessions.get(question.window.client_id)
        entries: list[Entry] = []
        if kept is None:
            return entries
        left_bytes = question.size_bytes
        for seq, count, stored, options in self._database.execute(
            "SELECT seq, count, message, options FROM owed WHERE session = ? AND seq + count > ? AND seq >= "
            "coalesce((SELECT max(seq) FROM owed WHERE session = ? AND seq <= ?), 0) ORDER BY seq",
            (kept.id, question.seq + 1, kept.id, question.seq + 1),
        ):
            skipped = max(0, question.seq + 1 - seq)
            count = min(count - skipped, question.count - len(entries))
            grant = self._grant(options)
            for at, message in enumerate(self._messages(stored + skipped, count), seq + skipped):
                entries.append((message, grant, at))
                left_bytes -= message.size
                if left_bytes <= 0:
                    return entries
            if len(entries) >= question.count:
                break
        return entries

    def _messages(self, stored: int, count: int) -> list[Message]:
        """``count`` messages with the numbers from ``stored`` on. Sessions share what they are owed in common."""
        cache = self._cache
        if len(cache) > MAX_CACHED:
            cache.clear()
        found = [cache[number] for number in range(stored, stored + count) if number in cache]
        if len(found) < count:
            found = read_messages(self._database, stored, count)
            cache.update(zip(range(stored, stored + count), found, strict=True))
        return found

    def _grant(self, number: int) -> Grant:
        grant = self._grants.get(number)
        if grant is None:
            row = self._database.execute("SELECT options FROM grants WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise StoreError(f"{self._path}: grant {number} is missing; the database is damaged")
            grant = self._grants[number] = decode_grant(row[0])
        return grant

    def _fail(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            assert self._events is not None
            self._call(self._events.store_trouble, trouble)

    def _recovered(self) -> bool:
        self._trouble = ""
        assert self._events is not None
        self._call(self._events.store_trouble, "")
        return True

    def _call(self, callback: object, *args: object) -> None:
        assert self._loop is not None
        assert callable(callback)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)
