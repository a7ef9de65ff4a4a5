"""Looking into a store without being its broker: whether it is sound, what is in it, and all of it as plain values.

It opens the database read-only, also beside a running broker, and changes nothing.
"""

import sqlite3
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..codec.packets import NO_PROPERTIES
from ..core.message import Message
from ..core.topics import Grant
from ..errors import StoreError
from .packs import read_messages
from .rows import decode_grant, decode_messages, decode_will
from .schema import FILE_NAME, PACK_BITS, connect, explain

_TABLES = {  # and what to add up for the number of things in each
    "sessions": "1",
    "subscriptions": "1",
    "messages": "count",
    "owed": "count",
    "retained": "1",
    "released": "1",
    "incoming": "1",
}

# Each finds rows that refer to something that is not there; all are empty in a sound store.
_DANGLING = {
    "rows of owed without their message": (
        f"SELECT count(*) FROM owed o LEFT JOIN messages m ON m.id = o.message >> {PACK_BITS} "
        f"WHERE coalesce(m.count, 0) < (o.message & {(1 << PACK_BITS) - 1}) + o.count OR o.count < 1"
    ),
    "rows of owed that overlap": (
        "SELECT count(*) FROM owed a JOIN owed b ON b.session = a.session AND b.seq > a.seq AND b.seq < a.seq + a.count"
    ),
    "rows of owed without their session": "SELECT count(*) FROM owed WHERE session NOT IN (SELECT id FROM sessions)",
    "rows of owed without their options": "SELECT count(*) FROM owed WHERE options NOT IN (SELECT id FROM grants)",
    "retained topics without their message": (
        f"SELECT count(*) FROM retained WHERE message >> {PACK_BITS} NOT IN (SELECT id FROM messages)"
    ),
    "subscriptions without their session": (
        "SELECT count(*) FROM subscriptions WHERE session NOT IN (SELECT id FROM sessions)"
    ),
    "rows of messages that nobody is owed, or with a wrong number of owners": (
        f"SELECT count(*) FROM messages m LEFT JOIN (SELECT message >> {PACK_BITS} AS pack, count(*) AS n FROM "
        "(SELECT message FROM owed UNION ALL SELECT message FROM retained) GROUP BY pack) o "
        "ON o.pack = m.id WHERE m.owners <> coalesce(o.n, 0)"
    ),
}


class StoreReader:
    """The database of a data directory. Raises StoreError if there is none, or it cannot be opened."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        if not self._path.is_file():
            raise StoreError(f"{directory}: no {FILE_NAME} there; is it the data directory of a broker?")
        self._database = connect(self._path, read_only=True)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def check(self) -> list[str]:
        """What is wrong, one line each; empty = nothing."""
        database = self._database
        troubles: list[str] = []
        try:
            database.execute("BEGIN")  # one state of the database, whatever a broker writes meanwhile
            troubles += [str(row[0]) for row in database.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            for what, query in _DANGLING.items():
                count = database.execute(query).fetchone()[0]
                if count:
                    troubles.append(f"{count} {what}")
            for row, count, body in database.execute("SELECT id, count, body FROM messages"):
                for index in range(count):
                    try:
                        decode_messages(body, count, row, range(index, index + 1))
                    except StoreError as error:
                        troubles.append(str(error))
            for client_id, will in database.execute("SELECT client_id, will FROM sessions WHERE will IS NOT NULL"):
                try:
                    decode_will(will)
                except Exception as error:
                    troubles.append(f"will of client {client_id!r} is damaged: {error}")
            database.execute("COMMIT")
        except sqlite3.Error as error:
            troubles.append(explain(self._path, error))
        return troubles

    def stats(self) -> dict[str, int]:
        """How much there is: rows by table, and bytes on disk."""
        with self._reading() as database:
            pages, size, free = (
                database.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "page_size", "freelist_count")
            )
            log = self._path.with_name(FILE_NAME + "-wal")
            return {
                "schema": database.execute("PRAGMA user_version").fetchone()[0],
                **{
                    table: database.execute(f"SELECT coalesce(sum({what}), 0) FROM {table}").fetchone()[0]
                    for table, what in _TABLES.items()
                },
                "message_bytes": database.execute("SELECT coalesce(sum(length(body)), 0) FROM messages").fetchone()[0],
                "database_bytes": pages * size,
                "free_bytes": free * size,
                "log_bytes": log.stat().st_size if log.exists() else 0,
            }

    def export(self) -> Iterator[dict[str, Any]]:
        """Every session and what it is owed, then every retained message, each a JSON object with a ``kind``.

        In the place of a message that cannot be read there is a ``damaged`` with the ``trouble``.
        Times are seconds since 1970 on the broker's clock; a payload is ``payload`` if it is UTF-8, else
        ``payload_base64``.
        """
        with self._reading() as database:
            sessions = database.execute("SELECT * FROM sessions ORDER BY client_id").fetchall()
            for number, client_id, expiry_s, expires_at, connected, will, will_at, _, seq in sessions:
                found: dict[str, Any] = {
                    "kind": "session",
                    "client_id": client_id,
                    "expiry_s": expiry_s,
                    "expires_at": expires_at,
                    "connected": bool(connected),
                    "seq": seq,
                    "subscriptions": {
                        filter: _options(decode_grant(options))
                        for filter, options in database.execute(
                            "SELECT filter, options FROM subscriptions WHERE session = ? ORDER BY filter", (number,)
                        )
                    },
                    "released": [
                        row[0] for row in database.execute("SELECT seq FROM released WHERE session = ?", (number,))
                    ],
                    "incoming_qos2": [
                        row[0]
                        for row in database.execute("SELECT packet_id FROM incoming WHERE session = ?", (number,))
                    ],
                }
                if will is not None:
                    left = decode_will(will)
                    found["will"] = {
                        "topic": left.topic,
                        "qos": left.qos,
                        "retain": left.retain,
                        "due_at": will_at,
                        **_payload(left.payload),
                    }
                yield found
                for first, count, stored, options in database.execute(
                    "SELECT o.seq, o.count, o.message, g.options FROM owed o JOIN grants g ON g.id = o.options "
                    "WHERE o.session = ? ORDER BY o.seq",
                    (number,),
                ):
                    qos = decode_grant(options).qos
                    for at in range(count):
                        owed = {"client_id": client_id, "seq": first + at, "granted_qos": qos}
                        yield _exported("owed", database, stored + at, owed)
            for topic, stored in database.execute("SELECT topic, message FROM retained ORDER BY topic"):
                yield _exported("retained", database, stored, {"topic": topic})

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the database. Its errors become StoreError."""
        database = self._database
        try:
            database.execute("BEGIN")
            try:
                yield database
            finally:
                database.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreError(explain(self._path, error)) from None


def _options(grant: Grant) -> dict[str, Any]:
    return {
        "qos": grant.qos,
        "no_local": grant.no_local,
        "retain_as_published": grant.retain_as_published,
        "identifiers": list(grant.identifiers),
    }


def _exported(kind: str, database: sqlite3.Connection, stored: int, known: dict[str, Any]) -> dict[str, Any]:
    """One message, with what is known of it otherwise."""
    try:
        (message,) = read_messages(database, stored, 1)
    except StoreError as error:
        return {"kind": "damaged", **known, "message": stored, "trouble": str(error)}
    return {"kind": kind, **known, **_message(message)}


def _message(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {
        "message": message.stored,
        "topic": message.topic,
        "qos": message.qos,
        "retain": message.retain,
        "sender": message.sender,
        "expires_at": message.expires_at,
        **_payload(message.payload),
    }
    if message.properties is not NO_PROPERTIES:
        found["properties"] = {
            name: b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in message.properties.items()
        }
    return found


def _payload(payload: bytes) -> dict[str, str]:
    try:
        return {"payload": payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": b64encode(payload).decode()}
