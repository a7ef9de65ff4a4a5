"""The tables of a store, how older ones become today's, and how a database is opened.

    messages ◀── owed ──▶ grants        every message once, however many sessions are owed it
        ▲          │
        │          ▼
    retained    sessions ◀── subscriptions, released, incoming

Rows cost more than what is in them, so they hold many. A row of ``messages`` is a pack: up to ``PACK_MESSAGES`` that
were written together and are owed to the same sessions, so that they come to be needed no more together too. It is
written once and goes when ``owners`` (rows in ``owed`` and ``retained`` that refer to it) reaches 0. Message ``index``
of pack ``id`` has the number ``id << PACK_BITS | index``, which is what ``owed`` and ``retained`` name. A row of
``owed`` is a range: ``count`` messages with consecutive numbers are owed under consecutive sequence numbers, ``size``
bytes in all. Ranges shrink and split as messages are acknowledged.
"""

import sqlite3
from pathlib import Path
from typing import Final

from ..errors import StoreError

FILE_NAME: Final = "tidings.db"
APPLICATION_ID: Final = 0x74646E67  # "tdng", so that `file` and we can tell the database from another

# Entry n takes a database from schema version n to n + 1. Entries are never changed, only added.
MIGRATIONS: Final = (
    """
    CREATE TABLE messages (id INTEGER PRIMARY KEY, owners INTEGER NOT NULL, body BLOB NOT NULL);
    CREATE TABLE grants (id INTEGER PRIMARY KEY, options TEXT NOT NULL);
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY, client_id TEXT NOT NULL UNIQUE, expiry_s INTEGER NOT NULL, expires_at REAL,
        connected INTEGER NOT NULL, will BLOB, will_at REAL, sent_seq INTEGER NOT NULL, seq INTEGER NOT NULL
    );
    CREATE TABLE owed (
        session INTEGER NOT NULL, seq INTEGER NOT NULL, message INTEGER NOT NULL, options INTEGER NOT NULL,
        size INTEGER NOT NULL, PRIMARY KEY (session, seq)
    ) WITHOUT ROWID;
    CREATE TABLE subscriptions (
        session INTEGER NOT NULL, filter TEXT NOT NULL, options TEXT NOT NULL, PRIMARY KEY (session, filter)
    ) WITHOUT ROWID;
    CREATE TABLE released (
        session INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (session, seq)
    ) WITHOUT ROWID;
    CREATE TABLE incoming (
        session INTEGER NOT NULL, packet_id INTEGER NOT NULL, PRIMARY KEY (session, packet_id)
    ) WITHOUT ROWID;
    CREATE TABLE retained (topic TEXT PRIMARY KEY, message INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE clock (
        id INTEGER PRIMARY KEY CHECK (id = 1), now REAL NOT NULL, boot TEXT NOT NULL, since REAL NOT NULL
    );
    """,
    """
    CREATE TABLE packs (
        id INTEGER PRIMARY KEY, owners INTEGER NOT NULL, count INTEGER NOT NULL, body BLOB NOT NULL
    );
    INSERT INTO packs SELECT id, owners, 1, body FROM messages;
    DROP TABLE messages;
    ALTER TABLE packs RENAME TO messages;
    CREATE TABLE ranges (
        session INTEGER NOT NULL, seq INTEGER NOT NULL, count INTEGER NOT NULL, message INTEGER NOT NULL,
        options INTEGER NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (session, seq)
    ) WITHOUT ROWID;
    INSERT INTO ranges SELECT session, seq, 1, message << 10, options, size FROM owed;
    DROP TABLE owed;
    ALTER TABLE ranges RENAME TO owed;
    UPDATE retained SET message = message << 10;
    """,
)

PACK_BITS: Final = 10
PACK_MESSAGES: Final = (
    256  # at most 1 << PACK_BITS, and less than that, so that numbers of two packs are never adjacent
)
PACK_BYTES: Final = 65_536  # by ``Message.size``; one message that is larger is a pack by itself

_CACHE_KIB: Final = 65_536
# A commit writes every page that it touched, full or not: small pages halve what few messages cost. Databases that were
# made with 4,096 keep that.
_PAGE_BYTES: Final = 1_024
_CHECKPOINT_PAGES: Final = 32_000  # 32 MB of log before it is folded into the database: rarely, and in long strokes
_LOG_LIMIT_BYTES: Final = 67_108_864


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open the database at ``path`` for one thread at a time. Raises StoreError if it is none of ours or too new."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    try:
        database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from None
    try:
        version = database.execute("PRAGMA user_version").fetchone()[0]
        owner = database.execute("PRAGMA application_id").fetchone()[0]
        empty = not database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if owner != APPLICATION_ID and not (empty and not version and not read_only):
            raise StoreError(f"{path}: not a database of tidings")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{path}: written by a newer tidings (schema {version}, this one knows up to {len(MIGRATIONS)}); "
                "update tidings"
            )
        if not read_only:
            _prepare(database, version)
    except sqlite3.Error as error:
        database.close()
        raise StoreError(explain(path, error)) from None
    except StoreError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, version: int) -> None:
    database.executescript(
        f"""
        PRAGMA page_size = {_PAGE_BYTES};
        PRAGMA synchronous = EXTRA; -- or a power cut could bring back the journal of the first transaction
        PRAGMA journal_mode = WAL;
        PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES};
        PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES};
        PRAGMA cache_size = -{_CACHE_KIB};
        PRAGMA temp_store = MEMORY;
        """
    )
    for number, statements in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(
            f"BEGIN IMMEDIATE; {statements}"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number}; COMMIT;"
        )


def damaged(path: Path, error: Exception) -> str:
    """A database that cannot be trusted, in words that say what to do."""
    return (
        f"{path}: the database is damaged ({error}); see 'tidings store check {path.parent}', save what "
        f"'tidings store export {path.parent}' can read, and move the directory away"
    )


def explain(path: Path, error: Exception) -> str:
    """A database error in words that say what to do."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return damaged(path, error)
    if name == "SQLITE_FULL":
        return f"{path}: no space left to write to; make room on that disk"
    return f"{path}: {error}"
