"""Many histories of a broker whose clients are fast, slow, frozen, flapping, or talk to themselves, in virtual time.

``TIDINGS_SIM_SEEDS=10000 pytest tests/sim/test_slow_clients.py`` runs more of them, a tenth of that number, because
each takes ten times as long as one of ``test_sim``; ``TIDINGS_SIM_SEED=7`` one alone.
"""

import asyncio
import os
import random
from collections import Counter

import pytest

from tidings.broker import Config
from tidings.broker.core.queue import DropReason
from tidings.broker.policy import newest_only, parse_policy

from .slow_world import EVERYTHING, Person, VirtualLoop, World

ONE = os.environ.get("TIDINGS_SIM_SEED")
SEEDS = [int(ONE)] if ONE is not None else list(range(int(os.environ.get("TIDINGS_SIM_SEEDS", "80")) // 10))
PARTS = 8
STORM_S = 8.0
TIGHT_BYTES = 120_000
LONGEST_PAUSE_S = 2.0
REST_S = 120.0
POLICIES = ["", "all; overflow=drop-oldest", "all; overflow=drop-newest", "all; overflow=disconnect"]
POLICIES += ["latest", "latest; tell-missed", "sample=2"]
TOPICS = ("t/a", "t/b", "t/c")
LOST = frozenset((DropReason.QUEUE_FULL, DropReason.MEMORY))
OWED = LOST | {DropReason.CONFLATED, DropReason.SAMPLED}


def options(seed: int) -> dict[str, object]:
    choose = random.Random(seed).choice
    return {
        "listeners": [],
        "sys_interval_s": 0,
        "max_inflight": choose((50, 1_000)),
        "max_inflight_bytes": choose((50_000, 1_000_000)),
        "max_queued_messages": choose((100, 1_000)),
        "max_queued_bytes": choose((60_000, 200_000)),
        "max_memory_messages": 20,
        "memory_budget_bytes": choose((TIGHT_BYTES, 10_000_000)),
        "memory_pause_s": choose((0.5, LONGEST_PAUSE_S)),
        "outbox_high_bytes": choose((1_024, 4_096)),
        "outbox_max_bytes": choose((2_048, 8_192)),
        "max_blocked_s": choose((0, 3)),
        "soft_limit_s": choose((0, 3)),
        "soft_limit_bytes": 16_384,
        "receive_maximum": choose((5, 1_000)),
    }


class History:
    """One of them."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, Config.model_validate(options(seed)), durable=seed % 2 == 1)
        world, choose = self.world, self.world.random.choice
        self.fast = Person(world, "fast", "t/#")
        self.fast.client.options.receive_maximum = 1_000
        self.slow = [
            Person(world, f"slow{number}", "t/#", policy) for number, policy in enumerate(("", "", choose(POLICIES)))
        ]
        for person in self.slow:
            person.speed_bytes = choose((2, 20, 200))
        self.frozen = Person(world, "frozen", "t/#", choose(POLICIES))
        self.flapping = Person(world, "flapping", "t/#", choose(POLICIES))
        self.loop = Person(world, "loop", "loop/#")  # it waits for nobody but itself
        self.publishers = [Person(world, "p1"), Person(world, "p2"), Person(world, "rude", version=4)]
        self.publishers[2].client.options.window_count = 40
        self.receivers = [self.fast, *self.slow, self.frozen, self.flapping, self.loop]
        self.people = [*self.receivers, *self.publishers]
        self.rate = choose((0.05, 0.2, 0.5))

    async def run(self) -> None:
        world, random = self.world, self.world.random
        for person in self.people:
            person.client.start()
        while not all(person.ready and person.client.online for person in self.people):
            await world.turn(self.people)
        while world.loop.time() < STORM_S:
            for person in self.publishers:
                if random.random() < self.rate:
                    for _ in range(random.choice((1, 1, 10))):
                        topic = f"{random.choice(TOPICS)}/{person.name}"
                        person.publish(topic, random.choice((0, 1, 2)))
            if random.random() < self.rate:
                self.loop.publish("loop/x", random.choice((1, 2)))
            if random.random() < 0.005:
                self.frozen.speed_bytes = random.choice((0, 0, EVERYTHING))
            if random.random() < 0.005:
                self.loop.speed_bytes = random.choice((20, EVERYTHING))
            if random.random() < 0.01:
                self.flapping.client.cut()
            await world.turn(self.people)
        await self.rest()

    async def rest(self) -> None:
        """No more messages, and everybody reads: everything ends."""
        world = self.world
        for person in self.people:
            person.speed_bytes = EVERYTHING
        end = world.loop.time() + REST_S
        while world.loop.time() < end:
            await world.turn(self.people)
            engine = world.engine
            waiting = sum(session.window.waiting for session in engine.sessions.values())
            if not waiting and not engine.changes and all(person.finished for person in self.people):
                break
        else:
            raise AssertionError(f"it does not come to rest: {self.stuck()}")
        for _ in range(3):
            await world.turn(self.people)

    def stuck(self) -> str:
        return ", ".join(
            [f"{person.name} has {person.client.unacknowledged} to send" for person in self.people]
            + [f"{link.paused} {link.connection!r}" for link in self.world.links.open if link.paused]
            + [f"{id} is owed {session.window.waiting}" for id, session in self.world.engine.sessions.items()]
        )

    # what must hold in the end

    def check(self) -> None:
        sessions = self.world.engine.sessions
        acknowledged = {key for person in self.people for key in person.acknowledged}
        assert all(link.paused is None for link in self.world.links.open)
        for person in self.receivers:
            assert person.disorder == [], person.name
            dropped: Counter[DropReason] = Counter(sessions[person.name].window.dropped or {})
            prefix = person.filter[:-1]
            missing = {key for key in acknowledged if key[0].startswith(prefix) and key not in person.received}
            counted = sum(dropped[reason] for reason in OWED)
            assert len(missing) <= counted, f"{person.name} misses {len(missing)}, {counted} are counted"
            if newest_only(parse_policy(person.policy or "all")) and not any(dropped[reason] for reason in LOST):
                for topic, number in self.last_values(person).items():
                    assert person.received[topic, number], f"{person.name} did not get the last value of {topic}"
        assert self.world.engine.budget.used_bytes == 0
        if self.world.store is not None and self.world.config.memory_budget_bytes == TIGHT_BYTES:
            return  # what waits for the store is in flight to the fast one too, and may make it the heaviest
        fast = sessions["fast"]
        assert not fast.window.dropped, f"the fast one lost {fast.window.dropped}"
        assert fast.cut_off is None
        assert self.fast.oldest_s <= 0.5, f"the fast one waited {self.fast.oldest_s:.2f} s"

    def last_values(self, person: Person) -> dict[str, int]:
        """The last message of each topic that was acknowledged, if it was the last that was sent."""
        return {
            topic: number
            for publisher in self.publishers
            for topic, number in publisher.sent.items()
            if (topic, number) in publisher.acknowledged and topic.startswith(person.filter[:-1])
        }


def play(seed: int) -> History:
    async def main() -> History:
        history = History(seed)
        await history.run()
        history.check()
        return history

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        try:
            return runner.run(main())
        except Exception as error:
            raise AssertionError(
                f"seed {seed}: {error!r}\n  replay: TIDINGS_SIM_SEED={seed} pytest {__file__}"
            ) from error


@pytest.mark.parametrize("part", range(PARTS))
def test_slow_clients_hurt_nobody_in_any_history(part: int) -> None:
    for seed in SEEDS[part::PARTS]:
        play(seed)
