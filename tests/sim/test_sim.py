"""Thousands of histories of a broker that crashes, clients that come and go, and a store that is late.

``TIDINGS_SIM_SEEDS=100000 pytest tests/sim`` runs more of them. A seed that fails prints the command that replays it
alone.
"""

import os
from collections import Counter

import pytest

from tidings.broker.core.window import DropReason

from .people import SKIPPING
from .world import World

ONE = os.environ.get("TIDINGS_SIM_SEED")
SEEDS = [int(ONE)] if ONE is not None else list(range(int(os.environ.get("TIDINGS_SIM_SEEDS", "1000"))))
PARTS = 10
BOUNDED = ("oldest", "newest", "fickle")  # whose policies have bounds of their own


def history(seed: int) -> None:
    """One history and its invariants."""
    world = World(seed)
    try:
        for _ in range(world.length):
            world.step()
        world.drain()
        check_drops(world)
        check_newest(world)
        check_promises(world)
        check_wills(world)
        check_retained(world)
        check_leaks(world)
    except Exception as error:
        last = "\n    ".join(world.log[-10:])
        raise AssertionError(
            f"seed {seed} after {world.crashes} crashes: {error!r}\n  replay: TIDINGS_SIM_SEED={seed} pytest tests/sim"
            f"\n  it ended with\n    {last}"
        ) from error


def check_drops(world: World) -> None:
    """What was acknowledged and has not arrived was dropped by a policy, and counted with its reason."""
    world.count_drops()
    for account in dict.fromkeys(subscriber.account for subscriber in world.subscribers):
        drops: Counter[DropReason] = Counter()
        for subscriber in world.subscribers:
            if subscriber.account == account:
                drops.update({reason: world.drops[subscriber.name, reason] for reason in DropReason})
        full, memory, expired = (
            drops[reason] for reason in (DropReason.QUEUE_FULL, DropReason.MEMORY, DropReason.EXPIRED)
        )
        skipped = drops[DropReason.CONFLATED] + drops[DropReason.SAMPLED]
        assert world.tight or not full or account in BOUNDED, f"{account} lost {full} to no bound"
        assert world.pressed or not memory, f"{account} lost {memory} to memory that is not short"
        assert not skipped or account in SKIPPING, f"{account} was not sent {skipped}"
        dropped = full + memory + skipped
        too_old = others = 0
        for qos, books in world.books.items():
            receiver = books.receivers[account]
            for publisher, acknowledged in books.acknowledged.items():
                missing = receiver.missing(publisher, acknowledged)
                for low, high in missing.ranges():
                    for number in range(low, high + 1):
                        expires_at = world.lifetimes.get((qos, publisher, number))
                        if expires_at is not None and expires_at <= world.now:
                            too_old += 1
                        else:
                            others += 1
                receiver.given_up[publisher] = receiver.given_up[publisher].union(missing)
        assert others <= dropped, f"{account}: {others} acknowledged and lost, {dropped} counted as dropped"
        assert too_old <= dropped - others + expired, f"{account}: {too_old} too old, {dropped} + {expired} counted"


def check_newest(world: World) -> None:
    """Whoever wants the newest value of each topic has it in the end, whatever was skipped."""
    for subscriber in world.subscribers:
        lost = sum(world.drops[subscriber.name, reason] for reason in (DropReason.QUEUE_FULL, DropReason.MEMORY))
        if subscriber.account not in SKIPPING or lost:
            continue
        for qos, books in world.books.items():
            for publisher, acknowledged in books.acknowledged.items():
                newest = max((high for _, high in acknowledged.ranges()), default=0)
                if world.lifetimes.get((qos, publisher, newest)) is None:
                    last = subscriber.last.get((publisher, qos), 0)
                    assert last >= newest, f"{subscriber.name} has {last} of {publisher} at QoS {qos}, not {newest}"


def check_promises(world: World) -> None:
    for qos, books in world.books.items():
        verdict = books.close_round()
        assert verdict.reordered == 0, f"QoS {qos}: {verdict.reordered} reordered"
        assert verdict.retained_gone_back == 0, f"QoS {qos}: retained messages went back"
        assert qos == 1 or verdict.duplicated == 0, f"{verdict.duplicated} delivered twice at QoS 2"
        for owner in world.publishers:
            acknowledged = len(books.acknowledged[owner.name])
            assert not owner.durable or acknowledged == books.sent[owner.name], f"{owner.name} was not acknowledged"


def check_wills(world: World) -> None:
    mortal, seen = world.mortal, world.mourner.seen
    assert mortal.required <= seen, f"wills {mortal.required - seen} were not published"
    assert not mortal.forbidden & seen, f"wills {mortal.forbidden & seen} of clients that were back in time"


def check_retained(world: World) -> None:
    for (publisher, qos), number in world.ask_for_states().items():
        kept = world.books[qos].state_kept(publisher)
        assert number >= kept, f"a newcomer got state {number} of {publisher}, {kept} was acknowledged at QoS {qos}"


def check_leaks(world: World) -> None:
    world.store.commit()  # acknowledgements do not wait for ever
    for session in world.engine.sessions.values():
        window = session.window
        assert not session.incoming, f"{session.client_id}: packet ids {session.incoming} are not free"
        assert (window.waiting, window.queued_bytes, window.spill) == (0, 0, None), f"{session.client_id} is owed more"
    assert set(world.store.sessions) == {owner.name for owner in world.owners if owner.session_s}
    for client_id, kept in world.store.sessions.items():
        left = [*kept.owed, *kept.released, *kept.incoming]
        assert not left, f"the store still owes {client_id} something: {left}"
    world.finish()
    assert not world.engine.sessions
    assert not world.store.sessions


@pytest.mark.parametrize("part", range(PARTS))
def test_keeps_every_promise_in_any_history(part: int) -> None:
    for seed in SEEDS[part::PARTS]:
        history(seed)
