"""Deadlines against a sorted list, with virtual time; and that nothing stays behind when clients come and go."""

import gc
import tracemalloc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from tidings.broker import Config
from tidings.broker.codec.packets import Connect, Disconnect, Publish, Subscribe, SubscribeFilter, Unsubscribe, Will
from tidings.broker.core.deadlines import COMPACT_FROM, Deadlines, Place
from tidings.broker.core.engine import Engine

from .outbox import ListOutbox

ITEMS = st.integers(0, 7)


class Item:
    """Timed; ``again_s`` sets it anew when it has come, that many seconds later."""

    def __init__(self, name: int, deadlines: Deadlines, log: "list[tuple[float, int]]") -> None:
        self.name = name
        self.due_at: float | None = None
        self.place: Place | None = None
        self.again_s: float | None = None
        self._deadlines = deadlines
        self._log = log

    def on_due(self, now: float) -> None:
        assert self.due_at is None
        self._log.append((now, self.name))
        if self.again_s is not None:
            self._deadlines.set(self, now + self.again_s)


class DeadlinesModel(RuleBasedStateMachine):
    """The model: a dict of due times, and whoever is due is called once, the earliest first."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.deadlines = Deadlines()
        self.log: list[tuple[float, int]] = []
        self.items = [Item(number, self.deadlines, self.log) for number in range(8)]
        self.model: dict[int, float] = {}

    @rule(who=ITEMS, in_s=st.integers(-1, 20))
    def set(self, who: int, in_s: int) -> None:
        self.deadlines.set(self.items[who], self.now + in_s)
        self.model[who] = self.now + in_s

    @rule(who=ITEMS)
    def clear(self, who: int) -> None:
        self.deadlines.set(self.items[who], None)
        self.model.pop(who, None)

    @rule(who=ITEMS, again_s=st.sampled_from([None, 1.0, 3.0]))
    def repeat(self, who: int, again_s: float | None) -> None:
        self.items[who].again_s = again_s

    @rule(seconds=st.integers(0, 8))
    def run(self, seconds: int) -> None:
        self.now += seconds
        self.log.clear()
        self.deadlines.run(self.now)
        due = [who for who, at in self.model.items() if at <= self.now]
        assert [now for now, _ in self.log] == [self.now] * len(due)
        called = [who for _, who in self.log]
        assert sorted(called) == sorted(due)
        assert [self.model[who] for who in called] == sorted(self.model[who] for who in due)
        for who in due:
            again_s = self.items[who].again_s
            if again_s is None:
                del self.model[who]
            else:
                self.model[who] = self.now + again_s

    @rule()
    def follow(self) -> None:
        """As a timer does: go to the next moment until something is due."""
        if not self.model:
            return
        while (at := self.deadlines.next()) is not None and at < min(self.model.values()):
            self.log.clear()
            self.deadlines.run(at)  # early, because something moved: nothing may happen
            assert self.log == []
        assert self.deadlines.next() == min(self.model.values())

    @invariant()
    def never_late(self) -> None:
        at = self.deadlines.next()
        assert not self.model or (at is not None and at <= min(self.model.values()))
        assert [item.due_at for item in self.items] == [self.model.get(item.name) for item in self.items]

    def teardown(self) -> None:
        for item in self.items:
            self.deadlines.set(item, None)
        self.log.clear()
        self.deadlines.run(float("inf"))
        assert (self.log, self.deadlines.next(), len(self.deadlines)) == ([], None, 0)


DeadlinesModel.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDeadlinesModel = DeadlinesModel.TestCase


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_deadlines_model_for_long() -> None:
    run_state_machine_as_test(
        DeadlinesModel, settings=settings(max_examples=1_000, stateful_step_count=80, deadline=None)
    )


def test_items_due_at_one_moment_come_in_the_order_they_were_set() -> None:
    log: list[tuple[float, int]] = []
    deadlines = Deadlines()
    for name in (3, 1, 2):
        deadlines.set(Item(name, deadlines, log), 5.0)
    deadlines.run(4.9)
    assert log == []
    deadlines.run(5.0)
    assert [name for _, name in log] == [3, 1, 2]


def test_item_that_sets_itself_to_now_is_called_again_at_once_and_only_as_often_as_it_asks() -> None:
    deadlines = Deadlines()

    class Twice(Item):
        def on_due(self, now: float) -> None:
            super().on_due(now)
            if len(log) < 2:
                self._deadlines.set(self, now)

    log: list[tuple[float, int]] = []
    deadlines.set(Twice(1, deadlines, log), 1.0)
    deadlines.run(1.0)
    assert log == [(1.0, 1), (1.0, 1)]


@pytest.mark.parametrize("change", ["cleared", "earlier", "replaced"])
def test_heap_stays_small_however_often_deadlines_change(change: str) -> None:
    deadlines = Deadlines()
    log: list[tuple[float, int]] = []
    item = Item(0, deadlines, log)
    for number in range(50_000):
        at = 1_000_000.0 - number if change == "earlier" else 1_000_000.0 + number
        deadlines.set(item, at)
        if change != "earlier":
            deadlines.set(item, None)
        if change == "replaced":
            item = Item(number, deadlines, log)
    assert len(deadlines) <= 2 * COMPACT_FROM + 2
    deadlines.set(item, 5.0)
    deadlines.run(10.0)
    assert log == [(10.0, item.name)]


def test_moving_later_costs_no_entry() -> None:
    deadlines = Deadlines()
    item = Item(0, deadlines, [])
    for at in range(10_000):
        deadlines.set(item, float(at))
    assert len(deadlines) == 1


@pytest.mark.parametrize("end", [None, 1.0])
def test_item_whose_deadline_is_gone_or_past_is_not_kept_alive(end: float | None) -> None:
    deadlines = Deadlines()
    item = Item(0, deadlines, [])
    gone = weakref.ref(item)
    deadlines.set(item, 100_000.0)
    deadlines.set(item, end)
    deadlines.run(2.0)
    del item
    assert gone() is None


def test_compaction_loses_nothing() -> None:
    deadlines = Deadlines()
    log: list[tuple[float, int]] = []
    items = [Item(number, deadlines, log) for number in range(6 * COMPACT_FROM)]
    for item in items:
        deadlines.set(item, 100.0 + item.name)
    for item in items[::3]:
        deadlines.set(item, 10.0 + item.name / 1e6)
    for item in items[1::3]:
        deadlines.set(item, None)
    for item in items[2::3][::2]:
        deadlines.set(item, 1e6)
    deadlines.run(1e5)
    assert [name for _, name in log] == [item.name for item in items[::3]] + [item.name for item in items[2::3][1::2]]
    log.clear()
    deadlines.run(1e7)
    assert [name for _, name in log] == [item.name for item in items[2::3][::2]]
    assert len(deadlines) == 0


# the engine


CYCLES = 10_000


def cycle(engine: Engine, number: int, now: float) -> None:
    """A client that connects, subscribes, says something, and leaves in one of four ways."""
    kind = number % 4
    expiry_s = 5 if kind in (2, 3) else 0
    will = Will("will", b"x", properties={"will_delay_interval": 2}) if kind == 3 else None
    connection = engine.connect(ListOutbox(), "peer", now)
    connect = Connect(f"client-{number}", 5, True, 60, will=will, properties={"session_expiry_interval": expiry_s})
    engine.handle(connection, [connect], now)
    filters = [f"t/{number}", f"+/{number}/#", f"$share/g/{number}"]
    engine.handle(connection, [Subscribe(1, [SubscribeFilter(each, 1) for each in filters])], now)
    engine.handle(connection, [Publish(f"t/{number}", b"x", 1, packet_id=1)], now)
    if kind == 0:
        engine.handle(connection, [Unsubscribe(2, filters), Disconnect()], now)
    elif kind == 1:
        engine.handle(connection, [Disconnect()], now)
    else:
        engine.disconnected(connection, now)


def test_nothing_stays_behind_when_ten_thousand_clients_have_come_and_gone() -> None:
    engine = Engine(Config(sys_interval_s=0), 0.0, lambda: "", keeps=False)
    idle = len(engine.deadlines)
    now = 0.0

    def churn(count: int) -> int:
        nonlocal now
        most = 0
        for number in range(count):
            now += 0.01
            cycle(engine, number, now)
            engine.tick(now)
            most = max(most, len(engine.deadlines))
        now += 100.0
        engine.tick(now)
        gc.collect()
        return most

    churn(CYCLES // 20)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    churn(CYCLES // 20)
    first = tracemalloc.get_traced_memory()[0] - before
    churn(CYCLES // 20)
    second = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert second < first + 100_000
    most = churn(CYCLES)
    assert most < 4_000  # 500 sessions wait for their end at any time; dead entries are cleared away
    assert (engine.sessions, engine.connections, engine.topics.count) == ({}, set(), 0)
    fresh = Engine(Config(sys_interval_s=0), 0.0, lambda: "", keeps=False)
    assert engine.topics._exact == fresh.topics._exact
    assert engine.topics._root.bare
    assert engine.topics._shares == {}
    assert len(engine.deadlines) <= idle + COMPACT_FROM
    engine.tick(now + 1e9)
    assert len(engine.deadlines) == idle
    assert engine.snapshot(now).queued_messages == 0
