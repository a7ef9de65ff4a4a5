"""What tests of stores have in common: a listener, a run, records and questions with everything filled in, damage."""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tidings.broker import Config, Message
from tidings.broker.core.ports import Wanted
from tidings.broker.core.session import SessionRecord
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.window import Entry, Window
from tidings.broker.store.inspect import StoreReader
from tidings.broker.store.sqlite import SqliteStore


class Events:
    """Remembers what the store told."""

    def __init__(self) -> None:
        self.batch = 0
        self.troubles: list[str] = []
        self.refills: list[Sequence[Entry]] = []
        self.happened = asyncio.Event()

    def durable(self, batch: int) -> None:
        assert batch > self.batch, "batches become durable in order, each once"
        self.batch = batch
        self.happened.set()

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        self.refills.append(entries)
        self.happened.set()

    def store_trouble(self, trouble: str) -> None:
        self.troubles.append(trouble)
        self.happened.set()

    async def until_durable(self, batch: int) -> None:
        while self.batch < batch:
            self.happened.clear()
            await self.happened.wait()


def record(client_id: str = "c", **fields: Any) -> SessionRecord:
    values: dict[str, Any] = {
        "client_id": client_id,
        "expiry_s": 60,
        "expires_at": None,
        "connected": False,
        "subscriptions": {},
        "will": None,
        "will_at": None,
        "sent_seq": 0,
        "seq": 0,
    }
    return SessionRecord(**(values | fields))


def question(client_id: str, seq: int = 0, count: int = 1_000) -> Wanted:
    return Wanted(Window(client_id, Config(), Stats()), seq, count, 1_000_000)


def damage(directory: Path, table: str) -> None:
    """Overwrite the root page of ``table``."""
    path = directory / "tidings.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
        size = database.execute("PRAGMA page_size").fetchone()[0]
    database.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)


Work = Callable[[SqliteStore, Events], Coroutine[Any, Any, None]]


def run(directory: Path, work: Work, config: Config | None = None) -> SqliteStore:
    """One run of a store: open, ``work``, close."""

    async def main() -> SqliteStore:
        store = SqliteStore(directory, config or Config())
        store.last_now(1_000.0)
        list(store.load())
        events = Events()
        store.start(events)
        try:
            await work(store, events)
        finally:
            await asyncio.to_thread(store.close)
        return store

    return asyncio.run(main())


def count(directory: Path, table: str) -> int:
    reader = StoreReader(directory)
    assert reader.check() == []
    number = reader.stats()[table]
    reader.close()
    return number


def rows(directory: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(directory / "tidings.db") as database:
        found = database.execute(query).fetchall()
    database.close()
    return found


def message(payload: bytes = b"x", topic: str = "t") -> Message:
    return Message(topic, payload, 1, sender="p")
