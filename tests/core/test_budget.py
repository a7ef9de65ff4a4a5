"""The memory budget: the heaviest pay, publishers wait first, and nobody waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from tidings.broker import Config
from tidings.broker.core.budget import Budget
from tidings.broker.core.deadlines import Deadlines
from tidings.broker.core.message import OVERHEAD_BYTES, Message, Run
from tidings.broker.core.rate import Rate
from tidings.broker.core.snapshot import Stats
from tidings.broker.core.topics import Grant
from tidings.broker.core.window import DropReason, Window

LIMIT = 100_000
EACH = 1_000  # bytes that a message of ``fill`` counts


def make() -> tuple[Budget, Deadlines]:
    deadlines = Deadlines()
    return Budget(Config(memory_budget_bytes=LIMIT, memory_pause_s=5), deadlines), deadlines


def window(budget: Budget) -> Window:
    new = Window("w", Config(), Stats(), budget)
    new.keeps = True
    return new


def fill(target: Window, count: int) -> None:
    for _ in range(count):
        target.deliver(Run([Message("t", b"x" * (EACH - OVERHEAD_BYTES - 1), 1)], 0.0), Grant(1))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_the_budget_is_kept_and_only_the_heaviest_pay(counts: list[int]) -> None:
    budget, _ = make()
    windows = [window(budget) for _ in counts]
    for target, count in zip(windows, counts, strict=True):
        fill(target, count)
    assert budget.used_bytes == EACH * sum(counts)
    budget.relieve(0.0)
    assert budget.used_bytes <= LIMIT
    assert budget.used_bytes == sum(target.queued_bytes for target in windows)
    if sum(counts) * EACH <= LIMIT:
        assert [target.queued for target in windows] == counts
        return
    highest = max(target.queued for target in windows)
    for target, count in zip(windows, counts, strict=True):
        assert target.queued >= min(count, highest - 1), "a lighter one paid"
        lost = count - target.queued
        assert (target.dropped or {}) == ({DropReason.MEMORY: lost} if lost else {})
    assert budget.used_bytes > budget.high_bytes - EACH * len(counts), "more than needed was dropped"


def test_publishers_wait_above_the_high_mark_until_the_low_mark() -> None:
    budget, deadlines = make()
    heavy = window(budget)
    fill(heavy, 80)
    budget.relieve(0.0)
    assert not budget.pressed
    fill(heavy, 1)
    assert budget.attention
    budget.relieve(0.0)
    assert budget.pressed
    heavy.shed(61 * EACH)
    budget.relieve(1.0)
    assert budget.pressed
    heavy.shed(60 * EACH)
    assert budget.attention
    budget.relieve(1.0)
    assert not budget.pressed
    assert deadlines.next() is None or budget.due_at is None


def test_nobody_waits_longer_than_the_pause_for_clients_that_take_nothing() -> None:
    budget, deadlines = make()
    frozen = window(budget)
    fill(frozen, 90)
    budget.relieve(0.0)
    assert budget.pressed
    deadlines.run(4.9)
    assert budget.pressed
    deadlines.run(5.0)
    assert not budget.pressed
    assert frozen.queued == 60


def test_a_session_that_ends_gives_its_memory_back() -> None:
    budget, _ = make()
    target = window(budget)
    fill(target, 10)
    target.end()
    assert budget.used_bytes == 0


def test_a_window_that_leaves_is_not_counted_any_more() -> None:
    budget, _ = make()
    target = window(budget)
    fill(target, 10)
    target.leave_budget()
    assert budget.used_bytes == 0
    fill(target, 10)
    assert budget.used_bytes == 0
    assert target.queued == 20


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 50)), min_size=1, max_size=40))
def test_who_pauses_as_told_keeps_the_rate_over_more_than_a_second(steps: list[tuple[float, int]]) -> None:
    rate, now, spent = Rate(10.0), 100.0, 0
    for idle_s, units in steps:
        now += idle_s
        spent += units
        now += rate.spend(units, now)
        assert spent <= 10.0 * (now - 100.0 + 1.0) + 1e-6


def test_a_rate_that_is_not_reached_costs_no_pause() -> None:
    rate = Rate(10.0)
    assert [rate.spend(1, 100.0 + number * 0.1) for number in range(50)] == [0.0] * 50
