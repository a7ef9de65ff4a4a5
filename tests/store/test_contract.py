"""What every store promises, the durable one and its reference: the same changes, the same state after a restart."""

import asyncio
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings.broker import Config, Message
from tidings.broker.codec.packets import Will
from tidings.broker.core.ports import (
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
    Withdrawn,
)
from tidings.broker.core.topics import Grant, Share
from tidings.broker.core.window import Entry
from tidings.broker.policy import parse_policy
from tidings.broker.store.inspect import StoreReader
from tidings.broker.store.memory import MemoryStore
from tidings.broker.store.sqlite import SqliteStore

from .events import Events, question, record

CONFIG = Config(durability="os")


def written(directory: Path, *batches: list[Change], together: bool = True) -> None:
    """One run of a store that writes these batches, ``together`` or each when the one before is durable."""

    async def run() -> None:
        store = SqliteStore(directory, CONFIG)
        store.last_now(1_000.0)
        list(store.load())
        events = Events()
        store.start(events)
        for number, changes in enumerate(batches, 1):
            store.write(number, changes)
            if not together:
                await events.until_durable(number)
        await events.until_durable(len(batches))
        store.close()

    asyncio.run(run())


def state(store: SqliteStore | MemoryStore) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that a store gives back at a start, in a form that can be compared."""
    sessions: dict[str, Any] = {}
    for kept in store.load():
        entries = (
            owed(store, kept.record.client_id) if isinstance(store, MemoryStore) else read(store, kept.record.client_id)
        )
        sessions[kept.record.client_id] = (kept, [_plain(entry) for entry in entries])
    retained = {m.topic: (m.payload, m.qos, m.expires_at) for m in store.load_retained()}
    return sessions, retained


def _plain(entry: Entry) -> tuple[Any, ...]:
    m, grant, seq = entry
    share = (grant.share.name, grant.share.filter) if grant.share is not None else None
    own = None if grant.own is None else (grant.own.qos, grant.own.identifiers)
    return (
        (m.topic, m.payload, m.qos, m.retain, m.properties, m.sender, m.expires_at),
        (grant.qos, grant.no_local, grant.retain_as_published, grant.identifiers, share, own, grant.policy),
        seq,
    )


def owed(store: MemoryStore, client_id: str) -> Sequence[Entry]:
    return store._read(question(client_id))


def read(store: SqliteStore, client_id: str) -> Sequence[Entry]:
    return store._read(question(client_id))


def reopened(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    store = SqliteStore(directory, CONFIG)
    try:
        return state(store)
    finally:
        store.close()


# the same in both


MESSAGES = [Message(f"t/{number % 3}", b"x" * number, 1 + number % 2, sender="p") for number in range(12)]
SHARE = Share("g", "t/#")
GRANTS = [
    Grant(1),
    Grant(2),
    Grant(2, True, True, (7, 9), own=Grant(1, identifiers=(9,))),
    Grant(2, share=SHARE),
    Grant(1, policy=parse_policy("all; overflow=spill")),
]
CLIENTS = ["a", "b", "c"]


@st.composite
def histories(draw: st.DrawFn) -> list[list[Change]]:
    """Batches of changes as an engine would make them: only what is owed is acknowledged."""
    alive: dict[str, dict[str, Any]] = {}
    batches: list[list[Change]] = []
    for _ in range(draw(st.integers(1, 8))):
        batch: list[Change] = []
        for _ in range(draw(st.integers(1, 8))):
            client = draw(st.sampled_from(CLIENTS))
            kind = draw(
                st.sampled_from(
                    ["save", "queue", "all", "ack", "ack", "replace", "pubrec", "pubcomp", "in", "out", "end", "retain"]
                )
            )
            now = alive.get(client)
            if kind == "retain":
                message = draw(st.sampled_from(MESSAGES))
                batch.append(RetainedSet(message))
            elif kind == "save" or now is None:
                now = alive.setdefault(client, {"seq": 0, "owed": {}, "released": [], "incoming": set()})
                filters = draw(st.lists(st.sampled_from(["t/#", "t/1", "t/+"]), unique=True))
                will = draw(st.sampled_from([None, Will("w", b"gone", 1, True, {"will_delay_interval": 5})]))
                subscriptions = {filter: Grant(draw(st.integers(0, 2))) for filter in filters}
                sent_seq = draw(st.integers(0, now["seq"]))
                connected = draw(st.booleans())
                saved = record(
                    client,
                    connected=connected,
                    subscriptions=subscriptions,
                    will=will,
                    sent_seq=sent_seq,
                    seq=now["seq"],
                )
                batch.append(SessionSaved(saved))
            elif kind in ("queue", "all"):
                messages = draw(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=12))
                for name in sorted(alive) if kind == "all" else [client]:
                    receiver = alive[name]
                    batch.append(Queued(name, receiver["seq"] + 1, messages, draw(st.sampled_from(GRANTS))))
                    for message in messages:
                        receiver["seq"] += 1
                        receiver["owed"][receiver["seq"]] = message
            elif kind == "ack" and now["owed"]:
                seq = draw(st.sampled_from(sorted(now["owed"])))
                most = draw(st.integers(1, 8))
                run = list(takewhile(now["owed"].__contains__, range(seq, seq + most)))
                batch.append(Acked(client, seq, [now["owed"].pop(number) for number in run]))
            elif kind == "replace" and now["owed"]:
                seq = draw(st.sampled_from(sorted(now["owed"])))
                message = draw(st.sampled_from(MESSAGES))
                batch += [Withdrawn(client, seq, [now["owed"][seq]]), Queued(client, seq, [message], GRANTS[0])]
                now["owed"][seq] = message
            elif kind == "pubrec" and now["owed"]:
                seq = draw(st.sampled_from(sorted(now["owed"])))
                batch.append(Released(client, seq, now["owed"].pop(seq)))
                now["released"].append(seq)
            elif kind == "pubcomp" and now["released"]:
                batch.append(Finished(client, now["released"].pop()))
            elif kind == "in":
                packet_id = draw(st.integers(1, 3))
                if packet_id not in now["incoming"]:
                    now["incoming"].add(packet_id)
                    batch.append(Received(client, packet_id))
            elif kind == "out" and now["incoming"]:
                batch.append(Completed(client, now["incoming"].pop()))
            elif kind == "end":
                del alive[client]
                batch.append(SessionGone(client))
        batches.append(batch)
    return batches


@settings(max_examples=60, deadline=None)
@given(histories(), st.booleans())
def test_durable_store_keeps_what_the_reference_keeps(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Change]], together: bool
) -> None:
    for message in MESSAGES:
        message.stored = 0
    directory = tmp_path_factory.mktemp("data")
    reference = MemoryStore()
    for number, changes in enumerate(batches, 1):
        reference.write(number, changes)
    reference.crash(keep=len(batches))
    # In two runs, so that changes meet rows of earlier transactions and of an earlier process.
    middle = len(batches) // 2
    written(directory, *batches[:middle], [], together=together)
    for message in MESSAGES:
        message.stored = 0  # an object does not outlive its process
    written(directory, *batches[middle:], [], together=together)
    assert reopened(directory) == state(reference)
    reader = StoreReader(directory)
    assert reader.check() == []
    reader.close()
