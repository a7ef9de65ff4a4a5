"""A broker's engine, its store and its clients in one process, without sockets, threads or a clock: everything that
happens is chosen by one seeded generator, so that a seed is a replay.

The store is ``LateStore``, which says what a crash may leave behind. Histories differ in length, in the bounds of
queues, in whether messages expire, and in how fast the disk is.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from tidings.broker import Config
from tidings.broker.codec import NO_PROPERTIES, Properties
from tidings.broker.core.engine import Engine
from tidings.broker.core.window import DropReason, Entry, Window
from tidings.devices.client import Client
from tidings.devices.clock import VirtualClock
from tidings.devices.crash_books import Books, Receiver

from .late_store import LateStore
from .people import DAY_S, Mortal, Mourner, Newcomer, Owner, Publisher, Subscriber
from .pipe import ClientEnd, Pipe

START: Final = 1_000_000_000.0
BRIEF_S: Final = 2  # how long the session that expires outlives its connection
POLICIES: Final = ("all", "all", "latest", "latest", "sample=5", "all; overflow=drop-oldest")
EVERYTHING: Final = 1 << 40  # more numbers than any publisher uses
CONFIG: Final = Config(
    listeners=[],
    max_inflight=5,
    max_session_expiry_s=DAY_S,
    max_memory_messages=4,
    max_queued_messages=10_000,
    sys_interval_s=0,
    outbox_high_bytes=1024,
    outbox_max_bytes=2048,
)
LENGTHS: Final = (40, 80, 80, 120, 120, 160, 250, 600)  # steps of a history


class World:
    """Everything, and ``step``, which lets one thing happen. ``log`` tells what happened, for a failing seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.length = self.random.choice(LENGTHS)
        self.tight = self.random.random() < 0.25  # whether every queue may overflow
        self.pressed = self.random.random() < 0.25  # whether memory is short now and then
        self.expiring = self.random.random() < 0.5  # whether messages have a lifetime
        self.config = CONFIG.model_copy(update={"max_queued_messages": 12}) if self.tight else CONFIG
        self.slow_disk = self.random.random() < 0.5  # so that much is under way that is not committed
        self.clock = VirtualClock()
        self.store = LateStore()
        self.pipes: list[Pipe] = []
        self.crashes = 0
        self.log: list[str] = []
        self.drops: Counter[tuple[str, DropReason]] = Counter()  # by client id, in the runs that have ended
        self.lifetimes: dict[tuple[int, str, int], float] = {}  # QoS, publisher, number → expired from then on
        self.publishers = [Publisher(self, "p1"), Publisher(self, "p2"), Publisher(self, "p3", session_s=0)]
        self.fickle = Subscriber(self, "fickle", "fickle", "m/#", policy="latest")
        self.subscribers = [
            Subscriber(self, "s1", "s1", "m/#"),
            Subscriber(self, "s2", "s2", "m/+/+", version=4),
            Subscriber(self, "g1", "group", "$share/group/m/#"),
            Subscriber(self, "g2", "group", "$share/group/m/#", version=4),
            Subscriber(self, "oldest", "oldest", "m/#", policy="all; overflow=drop-oldest"),
            Subscriber(self, "newest", "newest", "m/#", policy="all; overflow=drop-newest"),
            Subscriber(self, "latest", "latest", "m/#", policy="latest"),
            Subscriber(self, "sample", "sample", "m/#", policy="sample=5"),
            self.fickle,
            Subscriber(self, "brief", "brief", "m/#", BRIEF_S),
            Subscriber(self, "clean", "clean", "m/#", 0),
        ]
        self.mortal = Mortal(self, "mortal")
        self.mourner = Mourner(self, "mourner")
        names = [owner.name for owner in self.publishers]
        accounts = dict.fromkeys(subscriber.account for subscriber in self.subscribers)
        self.books = {
            qos: Books(names, {account: Receiver(names, ordered=self._ordered(account, qos)) for account in accounts})
            for qos in (1, 2)
        }
        self._start()
        for owner in self.owners:
            owner.client.start()
        while not (self.mourner.subscribed and all(one.subscribed for one in self.subscribers)):
            self.step(storms=False)  # nothing is owed before

    def _ordered(self, account: str, qos: int) -> bool:
        """Whether new messages arrive in order. At QoS 1 one that was dropped may come after all, if it is repeated."""
        drops = self.drops_any or self.expiring or account not in ("s1", "s2")
        if account == "s2" and self.expiring:  # 3.1.1 does not say that a repeated message has expired
            return False
        return account != "group" and (qos == 2 or not drops)

    @property
    def drops_any(self) -> bool:
        """Whether there are bounds at which every session may lose messages."""
        return self.tight or self.pressed

    @property
    def owners(self) -> list[Owner]:
        return [*self.subscribers, *self.publishers, self.mortal, self.mourner]

    @property
    def now(self) -> float:
        return START + self.clock.now()

    # the broker

    def _start(self) -> None:
        self.engine = Engine(self.config, self.now, lambda: "unused", keeps=True)
        self.engine.restore(self.store.load(), self.store.load_retained(), self.now)
        self.store.start(self)

    def crash(self) -> None:
        """The broker dies and is started again."""
        keep = self.random.randint(0, len(self.store.pending))
        power = self.random.random() < 0.5
        self.log.append(
            f"{'power cut' if power else 'crash'}: {len(self.store.reports)} reports lost, "
            f"{keep} of {len(self.store.pending)} batches kept"
        )
        self.crashes += 1
        self.count_drops()
        self.store.crash(keep, power=power)
        pipes, self.pipes = self.pipes, []
        for subscriber in self.subscribers:
            subscriber.crashed()
        self._start()
        self.mortal.crashed()
        for pipe in pipes:
            pipe.server_closed = True  # by the old engine, which nobody asks any more
            pipe.lost()
        for qos, books in self.books.items():
            for owner in self.publishers:
                found = self.engine.retained.get(f"state/{owner.name}/{qos}")
                books.state_seen(owner.name, int(found.payload.decode().split()[1]) if found is not None else 0)

    def count_drops(self) -> None:
        """Before an engine goes."""
        for session in self.engine.sessions.values():
            for reason, count in (session.window.dropped or {}).items():
                self.drops[session.client_id, reason] += count

    def settle_turn(self) -> None:
        """The end of a turn of the event loop: what was promised goes to the store."""
        if self.engine.changes:
            self.store.write(*self.engine.take_changes())

    # what the store tells

    def durable(self, batch: int) -> None:
        self.engine.durable(batch, [pipe for pipe in self.pipes if not pipe.server_closed])

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        self.engine.refill(window, entries, self.now)

    def store_trouble(self, trouble: str) -> None:
        raise AssertionError(trouble)

    # the network

    def dial(self, client: Client) -> None:
        pipe = Pipe(self, client)
        self.pipes.append(pipe)
        if client is self.mortal.client:
            self.mortal.write_will()
            pipe.will = self.mortal.number
        client.link_up(ClientEnd(pipe))

    def _carry(self, writes: Sequence[int]) -> None:
        """Data on its way, somewhere: some number of ``writes`` in one read."""
        ready: list[tuple[Pipe, bool]] = []
        for pipe in list(self.pipes):
            if pipe.client_closed and not pipe.to_server:
                self.pipes.remove(pipe)
                pipe.lost()
                continue
            if pipe.to_server:
                ready.append((pipe, True))
            if not pipe.client_closed and (pipe.to_client or pipe.server_closed):
                ready.append((pipe, False))
        if not ready:
            return
        pipe, up = self.random.choice(ready)
        count = self.random.choice(writes)
        pipe.carry_up(count) if up else pipe.carry_down(count)

    # what may happen

    def step(self, *, storms: bool = True) -> None:
        """Let one thing happen. ``storms``: new messages, cuts and crashes too; without them steps are larger."""
        chance = self.random.random()
        commits, reports, times = (0.33, 0.40, 0.44) if storms else (0.12, 0.25, 0.28)
        if storms and chance < 0.18:
            self._publish(self.random.choice(self.publishers))
        elif storms and chance < 0.20:
            owner = self.random.choice(self.owners)
            self.log.append(f"cut {owner.name}")
            for pipe in list(self.pipes):
                if pipe.client is owner.client:
                    pipe.lost()
                    self.pipes.remove(pipe)
        elif storms and chance < 0.225:
            owner = self.random.choice([*self.subscribers, self.mortal])
            self.log.append(f"{'away' if owner.client.online else 'back'}: {owner.name}")
            if owner.client.online:
                owner.client.pause(abrupt=self.random.random() < 0.5)
            else:
                owner.client.start()
        elif storms and chance < 0.24:
            self.crash()
        elif storms and chance < 0.25:
            self._change_mind()
        elif storms and self.pressed and chance < 0.265:
            self._shed()
        elif chance < commits:
            if not (storms and self.slow_disk and self.random.random() < 0.8):
                self.store.commit(self.random.randint(1, 4 if storms else 12), acked=self.random.random() < 0.3)
        elif chance < reports:
            for _ in range(self.random.randint(1, 4)):
                self.store.report()
        elif chance < times:
            self.pass_time(self.random.choice((0.1, 0.1, 0.1, 1.1)) if storms else 0.1)
        else:
            self._carry((1, 1, 2, 5) if storms else (1, 4, 20))
        if self.random.random() < 0.7:  # else several reads make one turn
            self.settle_turn()

    def pass_time(self, seconds: float) -> None:
        """The clock goes on, and what has become due is done."""
        self.clock.advance(seconds)
        due = self.engine.next_deadline()
        if due is not None and due <= self.now:
            self.engine.tick(self.now)

    def _publish(self, owner: Publisher) -> None:
        for _ in range(self.random.choice((1, 1, 3, 10))):
            if not owner.client.accepts(1):
                return
            qos = self.random.choice((1, 2))
            books = self.books[qos]
            if self.random.random() < 0.1:
                number = books.send_state(owner.name)
                payload = f"{owner.name} {number}".encode()
                token = ("state", qos, number)
                owner.client.publish(f"state/{owner.name}/{qos}", payload, qos, retain=True, token=token)
            else:
                number = books.send(owner.name)
                payload = f"{owner.name} {number}".encode()
                token = ("message", qos, number)
                properties: Properties = NO_PROPERTIES
                if self.expiring and self.random.random() < 0.3:
                    lifetime_s = self.random.choice((1, 3, 1_000))
                    properties = {"message_expiry_interval": lifetime_s}
                    self.lifetimes[qos, owner.name, number] = self.now + lifetime_s
                owner.client.publish(f"m/{owner.name}/{qos}", payload, qos, token=token, properties=properties)

    def _change_mind(self) -> None:
        """A subscriber asks for another policy."""
        self.fickle.policy = self.random.choice(POLICIES)
        self.log.append(f"fickle wants {self.fickle.policy}")
        if self.fickle.client.online:
            self.fickle.subscribe()

    def _shed(self) -> None:
        """Memory is short, and a session gives some back."""
        session = self.engine.sessions.get(self.random.choice(self.subscribers).name)
        if session is None:
            return
        if session.connection is None or session.client_id != "brief":  # which would not know when it was cut off
            level_bytes = self.random.choice((0, 200, 500))
            self.log.append(f"{session.client_id} is cut down to {level_bytes} bytes")
            session.window.shed(level_bytes)
            self.engine.relieve(self.now)

    def forgive(self, account: str) -> None:
        """A session began: nothing that was sent before is owed to it. A clean one is never owed anything."""
        for books in self.books.values():
            for publisher, given_up in books.receivers[account].given_up.items():
                given_up.add_range(1, EVERYTHING if account == "clean" else books.sent[publisher])

    def drain(self, steps: int = 20_000) -> None:
        """No more storms: everybody is there, and everything arrives."""
        for owner in self.owners:
            owner.client.start()
        idle = 0
        for _ in range(steps):
            self.step(storms=False)
            idle = idle + 1 if self.quiet else 0
            if idle > 10:  # nothing comes of it either
                return
        raise AssertionError("it does not come to rest")

    def ask_for_states(self) -> dict[tuple[str, int], int]:
        """What somebody new gets as retained messages: publisher and QoS → number."""
        newcomer = Newcomer(self, "newcomer")
        newcomer.client.start()
        while not newcomer.seen:
            self.step(storms=False)
        self.drain()
        newcomer.client.stop()
        return newcomer.seen

    def finish(self) -> None:
        """Everybody says goodbye for ever; the sessions of those who cannot say that expire."""
        for owner in self.owners:
            if owner.name == "brief":
                owner.client.pause(abrupt=True)
            else:
                owner.client.stop()
        while self.pipes:
            self._carry((1,))
        self.pass_time(DAY_S + 1)
        self.settle_turn()
        self.store.commit()

    @property
    def quiet(self) -> bool:
        """Nothing is on its way."""
        return not (
            self.store.pending
            or self.store.reports
            or self.engine.changes
            or any(pipe.to_client or pipe.to_server or pipe.server_closed for pipe in self.pipes)
            or not all(owner.client.online for owner in self.owners)
            or any(owner.client.unacknowledged for owner in self.publishers)
            or any(session.window.latest for session in self.engine.sessions.values())
        )
