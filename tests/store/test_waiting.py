"""What the store waits for before it writes: company for a flush, and acknowledgements that spare it the writing."""

import asyncio
import sys
from pathlib import Path

import pytest

from tidings.broker.core.ports import Acked, Change, Queued, Released, SessionGone, SessionSaved, Withdrawn
from tidings.broker.core.topics import Grant
from tidings.broker.store import sqlite as module
from tidings.broker.store.sqlite import SqliteStore
from tidings.broker.store.unwritten import Unwritten

from .events import Events, count, message, question, record, rows, run

MANY = 30  # batches that are written in one transaction
MOMENT = module.LOOKS * [module.GATHER_S / module.LOOKS]


def write_at_once(store: SqliteStore, first: int, batches: list[list[Change]]) -> None:
    """Hand over ``batches`` with the numbers from ``first`` on, without letting the writer's thread run in between."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        for batch, changes in enumerate(batches, first):
            store.write(batch, changes)
    finally:
        sys.setswitchinterval(interval_s)


def test_after_a_transaction_of_many_batches_the_next_waits_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tidings.broker.store.sqlite.time.sleep", waits.append)

    async def work(store: SqliteStore, events: Events) -> None:
        async def written(*batches: int) -> None:
            write_at_once(store, batches[0], [[SessionSaved(record())] for _ in batches])
            await events.until_durable(batches[-1])

        await written(1)
        await written(2)
        await written(*range(3, 33))
        assert waits == []
        await written(33)
        assert waits == MOMENT
        await written(34)
        assert waits == MOMENT, "a transaction of one batch is followed at once"

    run(tmp_path, work)


def test_what_is_acknowledged_in_the_moments_after_a_busy_transaction_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [message() for _ in range(4)]
    waits: list[float] = []

    async def work(store: SqliteStore, events: Events) -> None:
        def wait(seconds: float) -> None:  # in the writer's thread
            waits.append(seconds)
            moments, looks = divmod(len(waits), module.LOOKS)
            if not looks and moments < len(sent):
                store.write(MANY + 1 + moments, [Acked("c", 1 + moments, [sent[moments]])])

        owing: list[Change] = [Queued("d", seq, [message()], Grant(1)) for seq in range(1, MANY + 1)]
        write_at_once(store, 1, [[SessionSaved(record()), SessionSaved(record("d")), queued] for queued in owing])
        await events.until_durable(MANY)
        store._answered_bytes = 1  # so that it would go on at once, but for those acknowledgements
        monkeypatch.setattr("tidings.broker.store.sqlite.time.sleep", wait)
        commits = store.commits
        store.write(MANY + 1, [Queued("c", 1, sent, Grant(1)), Acked("c", 1, sent[:1])])
        await events.until_durable(MANY + 4)
        assert (store.commits, waits) == (commits, 3 * MOMENT)

    run(tmp_path, work)
    assert count(tmp_path, "owed") == MANY


def test_it_waits_no_longer_than_until_as_much_came_as_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def work(store: SqliteStore, events: Events) -> None:
        def send(first: int, stop: int) -> None:
            write_at_once(store, first, [[Queued("c", seq, [message()], Grant(1))] for seq in range(first, stop)])

        def wait(seconds: float) -> None:  # in the writer's thread
            waits.append(seconds)
            if len(waits) == 2:
                send(MANY + 3, 2 * MANY + 2)

        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        send(2, MANY + 2)
        await events.until_durable(MANY + 1)
        monkeypatch.setattr("tidings.broker.store.sqlite.time.sleep", wait)
        send(MANY + 2, MANY + 3)
        await events.until_durable(2 * MANY + 1)
        assert waits == MOMENT[:2]

    run(tmp_path, work)
    assert count(tmp_path, "owed") == 2 * MANY


def test_it_waits_for_acknowledgements_where_they_spared_it_writing_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        sent = [message() for _ in range(MANY)]
        settled = [(Queued("c", seq, [one], Grant(1)), Acked("c", seq, [one])) for seq, one in enumerate(sent, 2)]
        write_at_once(store, 2, [list(changes) for changes in settled])
        await events.until_durable(MANY + 1)
        store._answered_bytes = 1
        monkeypatch.setattr("tidings.broker.store.sqlite.time.sleep", waits.append)
        store.write(MANY + 2, [Queued("c", MANY + 2, [message()], Grant(1))])
        await events.until_durable(MANY + 2)
        assert waits == 2 * MOMENT

    run(tmp_path, work)


def test_it_does_not_wait_for_those_who_acknowledge_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tidings.broker.store.sqlite.time.sleep", waits.append)

    async def work(store: SqliteStore, events: Events) -> None:
        write_at_once(store, 1, [[SessionSaved(record())]] * MANY)
        await events.until_durable(MANY)
        waits.clear()
        store.write(MANY + 1, [Queued("c", 1, [message()], Grant(1))])
        await events.until_durable(MANY + 1)
        assert waits == MOMENT

    run(tmp_path, work)
    assert count(tmp_path, "messages") == 1


def test_what_was_settled_before_it_was_written_is_never_written(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record())])
        await events.until_durable(1)
        commits = store.commits
        many = [message() for _ in range(100)]
        queued = Queued("c", 1, many, Grant(1))
        store.write(2, [queued, *(Acked("c", seq, [one]) for seq, one in enumerate(many, 1))])
        await events.until_durable(2)
        assert all(one.stored == 0 for one in many)
        assert store.commits - commits <= 1

    run(tmp_path, work)
    assert count(tmp_path, "messages") == 0


def test_acknowledgements_of_receivers_alone_are_not_worth_a_flush(tmp_path: Path) -> None:
    async def work(store: SqliteStore, events: Events) -> None:
        one = message()
        store.write(1, [SessionSaved(record()), Queued("c", 1, [one], Grant(1))])
        await events.until_durable(1)
        before = store.flushes
        store.write(2, [Acked("c", 1, [one])])
        await events.until_durable(2)
        assert store.flushes == before

    run(tmp_path, work)
    assert count(tmp_path, "owed") == 0


def test_acknowledgements_of_receivers_alone_wait_and_are_written_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [message() for _ in range(10)]

    async def work(store: SqliteStore, events: Events) -> None:
        store.write(1, [SessionSaved(record()), Queued("c", 1, sent[:9], Grant(1))])
        await events.until_durable(1)
        monkeypatch.setattr(module, "LATE_S", 3_600.0)
        commits = store.commits
        for batch in range(2, 6):
            store.write(batch, [Acked("c", batch, [sent[batch - 1]])])
            await events.until_durable(batch)
        assert store.commits == commits
        store.write(6, [Queued("c", 10, sent[9:], Grant(1))])
        await events.until_durable(6)
        assert (store.commits, count(tmp_path, "owed")) == (commits + 1, 10)
        store._late_at = 0.0  # they have waited long enough
        store.write(7, [])
        await events.until_durable(7)
        assert (store.commits, count(tmp_path, "owed")) == (commits + 2, 6)

    run(tmp_path, work)
    assert count(tmp_path, "owed") == 6


def test_acknowledgements_are_written_after_a_while_though_nothing_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_S", 0.01)

    async def work(store: SqliteStore, events: Events) -> None:
        one = message()
        store.write(1, [SessionSaved(record()), Queued("c", 1, [one], Grant(1))])
        store.write(2, [])
        await events.until_durable(2)
        store.write(3, [Acked("c", 1, [one])])
        for _ in range(1_000):
            if not count(tmp_path, "owed"):
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still owed")

    run(tmp_path, work)


def test_acknowledgements_of_many_bytes_do_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_S", 3_600.0)
    monkeypatch.setattr(module, "LATE_BYTES", 5_000)

    async def work(store: SqliteStore, events: Events) -> None:
        sent = [message(b"x" * 2_000) for _ in range(4)]
        store.write(1, [SessionSaved(record()), Queued("c", 1, sent, Grant(1))])
        await events.until_durable(1)
        owed: list[int] = []
        for seq, one in enumerate(sent, 1):
            store.write(seq + 1, [Acked("c", seq, [one])])
            await events.until_durable(seq + 1)
            owed.append(count(tmp_path, "owed"))
        assert owed == [4, 4, 1, 1]

    run(tmp_path, work)


def test_acknowledgements_do_not_wait_where_something_is_written_that_supposes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_S", 3_600.0)

    async def work(store: SqliteStore, events: Events) -> None:
        other, one, two, three, new = (message(payload) for payload in (b"0", b"1", b"2", b"3", b"new"))
        both: list[Change] = [SessionSaved(record(name)) for name in "cd"]
        store.write(1, [*both, Queued("c", 1, [other], Grant(2)), Queued("d", 1, [one, two, three], Grant(1))])
        await events.until_durable(1)
        store.write(2, [Released("c", 1, other)])  # PUBREL is owed, so the message must not be
        await events.until_durable(2)
        assert (count(tmp_path, "released"), rows(tmp_path, "SELECT session FROM owed")) == (1, [(2,)])
        store.write(3, [Acked("d", 1, [one, two])])
        await events.until_durable(3)
        store.write(4, [SessionSaved(record("e"))])  # another transaction, in which it waits
        await events.until_durable(4)
        store.write(5, [Queued("d", 2, [new], Grant(1))])  # under a number that is acknowledged
        await events.until_durable(5)
        assert [(m.payload, seq) for m, _, seq in store._read(question("d"))] == [(b"new", 2), (b"3", 3)]
        store.write(6, [Withdrawn("d", 2, [new, three]), Queued("c", 2, [new], Grant(2))])  # another gets it instead
        await events.until_durable(6)
        assert rows(tmp_path, "SELECT session FROM owed") == [(1,)]

    run(tmp_path, work)
    assert count(tmp_path, "messages") == 1


def test_what_a_session_was_owed_that_has_ended_is_not_waited_for() -> None:
    unwritten = Unwritten({})
    unwritten.add([SessionSaved(record()), Queued("c", 1, [message()] * 3, Grant(1)), Acked("c", 2, [message()])])
    assert (unwritten.owed, unwritten.settled) == (2, 1)
    unwritten.add([SessionGone("c")])
    assert unwritten.owed == 0
