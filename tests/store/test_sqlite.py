"""The durable store by itself: what it refuses to open, what it writes, and what it does when the disk says no."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tidings.broker import Config, StoreError
from tidings.broker.core.ports import (
    Acked,
    Change,
    Queued,
    Released,
    RetainedSet,
    SessionGone,
    SessionSaved,
    Withdrawn,
)
from tidings.broker.core.topics import Grant
from tidings.broker.store import sqlite as module
from tidings.broker.store.elapsed import resume
from tidings.broker.store.inspect import StoreReader
from tidings.broker.store.rows import encode_grant, encode_messages
from tidings.broker.store.schema import APPLICATION_ID, MIGRATIONS
from tidings.broker.store.sqlite import SqliteStore

from .events import Events, Work, count, damage, message, question, record, rows, run


async def nothing(store: SqliteStore, events: Events) -> None:
    """Just open and close."""


# opening


def test_a_second_broker_is_refused(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path, Config())
    with pytest.raises(StoreError, match=r"in use by another broker \(process \d+\)"):
        SqliteStore(tmp_path, Config())
    store.close()
    SqliteStore(tmp_path, Config()).close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"data directory {tmp_path}/file/below"):
        SqliteStore(tmp_path / "file" / "below", Config())


@pytest.mark.parametrize("content", [b"not a database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tidings.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"tidings\.db"):
        SqliteStore(tmp_path, Config())


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "tidings.db") as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreError, match="not a database of tidings"):
        SqliteStore(tmp_path, Config())


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    run(tmp_path, nothing)
    with sqlite3.connect(tmp_path / "tidings.db") as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(StoreError, match="newer tidings"):
        SqliteStore(tmp_path, Config())


def test_an_older_schema_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, owing(3))
    later = (*MIGRATIONS, "ALTER TABLE grants ADD COLUMN note TEXT;")
    monkeypatch.setattr("tidings.broker.store.schema.MIGRATIONS", later)
    SqliteStore(tmp_path, Config()).close()
    with sqlite3.connect(tmp_path / "tidings.db") as database:
        assert database.execute("PRAGMA user_version").fetchone()[0] == len(later)
        assert database.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        assert database.execute("SELECT count(note), count(*) FROM grants").fetchone() == (0, 1)
        assert database.execute("SELECT sum(count) FROM owed").fetchone()[0] == 3
    database.close()


def test_a_store_of_the_first_version_is_read_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.broker.store.schema.MIGRATIONS", MIGRATIONS[:1])
    SqliteStore(tmp_path, Config()).close()
    monkeypatch.undo()
    sent = [message(str(number).encode()) for number in range(4)]
    with sqlite3.connect(tmp_path / "tidings.db") as database:
        database.executemany(
            "INSERT INTO messages VALUES (?, ?, ?)",
            [(number, 1 + (number == 3), encode_messages([one])) for number, one in enumerate(sent, 1)],
        )
        database.execute("INSERT INTO grants VALUES (1, ?)", (encode_grant(Grant(1)),))
        database.execute("INSERT INTO sessions VALUES (1, 'c', 60, NULL, 0, NULL, NULL, 0, 3)")
        database.executemany("INSERT INTO owed VALUES (1, ?, ?, 1, ?)", [(n, n, sent[n - 1].size) for n in (1, 2, 3)])
        database.executemany("INSERT INTO retained VALUES (?, ?)", [("t", 3), ("u", 4)])
    database.close()

    async def work(store: SqliteStore, events: Events) -> None:
        entries = store._read(question("c"))
        assert [(m.payload, seq) for m, _, seq in entries] == [(b"0", 1), (b"1", 2), (b"2", 3)]
        assert [m.payload for m in store.load_retained()] == [b"2", b"3"]
        store.write(1, [Acked("c", 2, [entries[1][0]]), Queued("c", 4, [message(b"new")], Grant(1)), question("c")])
        await events.until_durable(1)
        assert [(m.payload, seq) for m, _, seq in store._read(question("c"))] == [(b"0", 1), (b"2", 3), (b"new", 4)]

    run(tmp_path, work)
    assert (count(tmp_path, "messages"), count(tmp_path, "owed")) == (4, 3)


def test_a_damaged_page_is_reported_when_it_is_met(tmp_path: Path) -> None:
    run(tmp_path, owing(2000))
    damage(tmp_path, "owed")
    store = SqliteStore(tmp_path, Config())
    with pytest.raises(StoreError, match="the database is damaged"):
        list(store.load())
    store.close()


# writing


def owing(messages: int, clients: int = 1) -> Work:
    """Sessions that are owed the same messages."""

    async def work(store: SqliteStore, events: Events) -> None:
        sent = [message() for _ in range(messages)]
        names = [f"c{number}" for number in range(clients)]
        saved = [SessionSaved(record(name)) for name in names]
        store.write(1, [*saved, *(Queued(name, 1, sent, Grant(1)) for name in names)])
        await events.until_durable(1)

    return work


def test_a_payload_is_stored_once_for_all_who_are_owed_it(tmp_path: Path) -> None:
    run(tmp_path, owing(4, clients=5))
    assert (count(tmp_path, "messages"), count(tmp_path, "owed")) == (4, 20)


def test_a_payload_goes_with_the_last_who_was_owed_it(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        one = message()
        clients = ["a", "b", "c"]
        store.write(1, [*(SessionSaved(record(c)) for c in clients), *(Queued(c, 1, [one], Grant(1)) for c in clients)])
        await events.until_durable(1)
        left = []
        ends: list[Change] = [Acked("a", 1, [one]), SessionGone("b"), Released("c", 1, one)]
        for batch, change in enumerate(ends, 2):
            store.write(batch, [change, question("c")])
            await events.until_durable(batch)
            left.append(count(tmp_path, "messages"))
        assert left == [1, 1, 0]

    run(tmp_path, work)


def test_what_is_written_together_for_the_same_sessions_shares_rows(tmp_path: Path) -> None:
    for_both = [message() for _ in range(300)]
    for_one = [message() for _ in range(300)]

    async def work(store: SqliteStore, events: Events) -> None:
        changes: list[Change] = [SessionSaved(record("a")), SessionSaved(record("b"))]
        for number in range(300):  # one at a time, and the two kinds in turns
            run = [for_both[number]]
            changes.append(Queued("a", 2 * number + 1, run, Grant(1)))
            changes.append(Queued("b", number + 1, run, Grant(1)))
            changes.append(Queued("a", 2 * number + 2, [for_one[number]], Grant(1)))
        store.write(1, changes)
        await events.until_durable(1)
        assert len(rows(tmp_path, "SELECT id FROM messages")) == 2 * 2  # 300 are more than one row takes
        assert len(rows(tmp_path, "SELECT seq FROM owed WHERE session = 2")) == 2
        # Nothing keeps what both are owed but both of them.
        store.write(2, [Acked("a", 2 * number + 2, [one]) for number, one in enumerate(for_one)])
        await events.until_durable(2)

    run(tmp_path, work)
    assert (count(tmp_path, "messages"), count(tmp_path, "owed")) == (300, 600)


def test_acknowledgements_that_reach_beyond_a_range_take_of_it_what_they_name(tmp_path: Path) -> None:
    sent = [message(b"x" * number) for number in range(1, 11)]

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record()), Queued("c", 1, sent[:2], Grant(1))])
        await events.until_durable(1)
        store.write(2, [Queued("c", 3, sent[2:], Grant(1))])
        await events.until_durable(2)
        store.write(3, [Acked("c", 1, sent[:5])])

    run(tmp_path, work)
    assert rows(tmp_path, "SELECT seq, count, size FROM owed") == [(6, 5, sum(each.size for each in sent[5:]))]


def test_a_range_shrinks_and_splits_as_its_messages_are_acknowledged(tmp_path: Path) -> None:
    sent = [message(b"x" * number) for number in range(1, 11)]

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record()), Queued("c", 1, sent, Grant(1))])
        await events.until_durable(1)
        steps: list[tuple[list[int], list[int]]] = [
            ([1, 2], [3, 4, 5, 6, 7, 8, 9, 10]),
            ([8, 5, 9], [3, 4, 6, 7, 10]),
            ([10, 3], [4, 6, 7]),
            ([6], [4, 7]),
            ([4, 7], []),
        ]
        for batch, (acked, left) in enumerate(steps, 2):
            store.write(batch, [*(Acked("c", seq, [sent[seq - 1]]) for seq in acked), question("c")])
            await events.until_durable(batch)
            assert [(m.payload, seq) for m, _, seq in store._read(question("c"))] == [(b"x" * seq, seq) for seq in left]
            sizes = rows(tmp_path, "SELECT coalesce(sum(count), 0), coalesce(sum(size), 0) FROM owed")
            assert sizes == [(len(left), sum(sent[seq - 1].size for seq in left))]
            assert count(tmp_path, "owed") == len(left)

    run(tmp_path, work)
    assert count(tmp_path, "messages") == 0


def test_what_takes_the_place_of_a_message_under_its_number_is_kept(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        old, new = message(b"old"), message(b"new")
        store.write(1, [SessionSaved(record()), Queued("c", 1, [old, message(b"next")], Grant(1))])
        await events.until_durable(1)
        store.write(2, [Withdrawn("c", 1, [old]), Queued("c", 1, [new], Grant(1))])  # as policy ``latest`` does
        await events.until_durable(2)
        assert [(m.payload, seq) for m, _, seq in store._read(question("c"))] == [(b"new", 1), (b"next", 2)]

    run(tmp_path, work)


def test_the_retained_message_of_a_topic_replaces_the_one_before(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        for batch, payload in enumerate([b"1", b"2", b"3"], 1):
            store.write(batch, [RetainedSet(message(payload)), RetainedSet(message(payload, "other"))])
            await events.until_durable(batch)
        store.write(4, [RetainedSet(message(b"", "other"))])
        await events.until_durable(4)

    run(tmp_path, work)
    store = SqliteStore(tmp_path, Config())
    list(store.load())
    assert [(m.topic, m.payload) for m in store.load_retained()] == [("t", b"3")]
    store.close()
    assert count(tmp_path, "messages") == 1


@pytest.mark.parametrize(
    ("level", "filters", "flushed"),
    [
        ("fsync", {}, True),
        ("os", {}, False),
        ("fsync", {"t": "os"}, False),
        ("os", {"t": "fsync"}, True),
        ("fsync", {"other": "os"}, True),
    ],
)
def test_a_level_decides_whether_a_batch_is_flushed(
    tmp_path: Path, level: Any, filters: dict[str, Any], flushed: bool
) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        before = store.flushes
        store.write(2, [Queued("c", 1, [message()], Grant(1))])
        await events.until_durable(2)
        assert (store.flushes > before) is flushed

    run(tmp_path, work, Config(durability=level, durability_by_filter=filters))


def test_reads_see_every_change_before_the_question(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        sent = [message(str(number).encode()) for number in range(10)]
        wanted = question("c", seq=3, count=4)
        store.write(1, [SessionSaved(record()), Queued("c", 1, sent, Grant(1)), Acked("c", 5, [sent[4]]), wanted])
        while not events.refills:
            events.happened.clear()
            await events.happened.wait()
        assert [(m.payload, seq) for m, _, seq in events.refills[0]] == [(b"3", 4), (b"5", 6), (b"6", 7), (b"7", 8)]

    run(tmp_path, work)


def test_a_slice_ends_at_its_bound_in_bytes(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        wanted = question("c", count=100)
        wanted.size_bytes = 2_500
        store.write(1, [SessionSaved(record()), Queued("c", 1, [message(b"x" * 1_000)] * 10, Grant(1)), wanted])
        while not events.refills:
            events.happened.clear()
            await events.happened.wait()
        assert len(events.refills[0]) == 3

    run(tmp_path, work)


# when the disk says no


def full(store: SqliteStore) -> None:
    """From now on there is no room."""
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages}")


def roomy(store: SqliteStore) -> None:
    """There is room again."""
    store._database.execute("PRAGMA max_page_count = 1000000")


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        full(store)
        sent = [message(b"x" * 5_000) for _ in range(20)]
        store.write(2, [Queued("c", 1, sent, Grant(1))])
        while not events.troubles:
            events.happened.clear()
            await events.happened.wait()
        assert "no space left" in events.troubles[0]
        store.write(3, [Acked("c", 2, [sent[1]])])  # what goes on meanwhile is not forgotten either
        await asyncio.sleep(0.05)
        assert events.batch == 1
        assert store.backlog_bytes > 100_000
        roomy(store)
        await events.until_durable(3)
        assert events.troubles[-1] == ""
        assert store.backlog_bytes == 0

    run(tmp_path, work)
    assert count(tmp_path, "owed") == 19
    reader = StoreReader(tmp_path)
    assert reader.check() == []
    reader.close()


def test_a_stop_while_the_disk_is_full_says_that_not_everything_was_written(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        full(store)
        store.write(2, [Queued("c", 1, [message(b"x" * 9_000)], Grant(1))])

    with pytest.raises(StoreError, match="not everything could be written"):
        run(tmp_path, work)
    assert count(tmp_path, "owed") == 0


def test_a_message_that_the_disk_got_wrong_is_not_delivered(tmp_path: Path) -> None:
    run(tmp_path, owing(3))
    with sqlite3.connect(tmp_path / "tidings.db") as database:
        body = database.execute("SELECT body FROM messages").fetchone()[0]
        database.execute("UPDATE messages SET body = ?", (body[:-1] + b"y",))
    database.close()

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [question("c0")])
        await events.until_durable(1)
        await asyncio.sleep(0.01)
        assert events.refills == []

    with pytest.raises(StoreError, match=r"message 1\.2 is damaged"):
        run(tmp_path, work)


# when we are wrong ourselves


async def owe_in_vain(store: SqliteStore, events: Events) -> None:
    """Something is promised that will never be written."""
    store.write(1, [SessionSaved(record()), Queued("c", 1, [message()], Grant(1))])
    store.write(2, [SessionSaved(record("d"))])
    while not events.troubles:
        events.happened.clear()
        await events.happened.wait()
    store.write(3, [SessionSaved(record("e"))])
    await asyncio.sleep(0.01)
    assert events.batch == 0, "reported as durable, and it is not"


@pytest.mark.parametrize("broken", ["add", "write"])
def test_after_an_internal_error_nothing_is_reported_as_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(f"tidings.broker.store.unwritten.Unwritten.{broken}", fail)
    with pytest.raises(StoreError, match=r"internal error of the store: AttributeError\('no such thing'\); restart"):
        run(tmp_path, owe_in_vain)
    assert count(tmp_path, "sessions") == 0


def test_a_batch_that_got_lost_on_the_way_is_noticed(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        store.write(3, [SessionSaved(record("d"))])
        while not events.troubles:
            events.happened.clear()
            await events.happened.wait()
        assert events.batch == 1

    with pytest.raises(StoreError, match="batch 3 came after batch 1"):
        run(tmp_path, work)


# time


def test_time_goes_on_where_it_was_even_if_the_wall_clock_went_back(tmp_path: Path) -> None:
    run(tmp_path, owing(1))
    store = SqliteStore(tmp_path, Config())
    assert 1_000.0 <= store.last_now(10.0) < 1_100.0
    store.close()


@pytest.mark.parametrize(
    ("kept", "wall", "boot", "now"),
    [
        (None, 500.0, ("b", 9.0), 500.0),
        ((100.0, "b", 5.0), 5_000.0, ("b", 9.0), 104.0),  # same boot: the kernel knows better than a clock that was set
        ((100.0, "b", 5.0), 50.0, ("b", 9.0), 104.0),
        ((100.0, "b", 5.0), 160.0, ("c", 1.0), 160.0),  # rebooted: only the wall clock can say
        ((100.0, "b", 5.0), 50.0, ("c", 1.0), 100.0),  # rebooted with a dead clock: no time has passed
        ((100.0, "", 0.0), 160.0, ("", 0.0), 160.0),
    ],
)
def test_engine_time_across_a_restart(
    kept: tuple[float, str, float] | None, wall: float, boot: tuple[str, float], now: float
) -> None:
    assert resume(kept, wall, lambda: boot) == now
