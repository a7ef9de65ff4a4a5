"""Both clocks run the same timers in the same order."""

import asyncio

import pytest

from tidings.devices.clock import Clock, RealClock, VirtualClock


def test_virtual_time_runs_timers_in_the_order_of_their_times_each_at_its_own_time() -> None:
    clock = VirtualClock()
    ran: list[tuple[str, float]] = []

    def note(name: str) -> None:
        ran.append((name, clock.now()))

    clock.call_at(3600.0, note, "late")
    clock.call_at(1.0, note, "early")
    clock.call_at(1.0, note, "second of the same time")
    cancelled = clock.call_at(2.0, note, "never")
    cancelled.cancel()
    clock.advance(10)
    assert ran == [("early", 1.0), ("second of the same time", 1.0)]
    clock.advance(86400)
    assert ran[2:] == [("late", 3600.0)]
    assert clock.now() == 86410


def test_timers_set_by_timers_run_in_the_same_advance() -> None:
    clock = VirtualClock()
    times: list[float] = []

    def again() -> None:
        times.append(clock.now())
        clock.call_at(clock.now() + 10, again)

    clock.call_at(0, again)
    clock.advance(35)
    assert times == [0, 10, 20, 30]


def test_a_timer_whose_time_has_passed_runs_at_once_and_time_does_not_go_back() -> None:
    clock = VirtualClock()
    clock.advance(5)
    seen: list[float] = []
    clock.call_at(1, lambda: seen.append(clock.now()))
    clock.advance(0)
    assert seen == [5]


def test_an_error_in_a_virtual_timer_comes_out() -> None:
    clock = VirtualClock()
    clock.call_at(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clock.advance(1)


def test_the_real_clock_runs_them_too_and_measures_how_late() -> None:
    async def scenario() -> tuple[list[str], int]:
        clock = RealClock(asyncio.get_running_loop())
        as_protocol: Clock = clock
        done = asyncio.Event()
        ran: list[str] = []
        now = clock.now()
        as_protocol.call_at(now + 0.02, done.set)
        as_protocol.call_at(now + 0.01, ran.append, "second")
        as_protocol.call_at(now, ran.append, "first")
        as_protocol.call_at(now, ran.append, "never").cancel()
        async with asyncio.timeout(5):
            await done.wait()
        return ran, clock.lag.count

    assert asyncio.run(scenario()) == (["first", "second"], 3)


def test_an_error_in_a_real_timer_does_not_stop_the_others() -> None:
    async def scenario() -> list[str]:
        loop = asyncio.get_running_loop()
        seen: list[str] = []
        loop.set_exception_handler(lambda _, context: seen.append(type(context["exception"]).__name__))
        clock = RealClock(loop)
        done = asyncio.Event()
        clock.call_at(0, lambda: 1 / 0)
        clock.call_at(0, done.set)
        async with asyncio.timeout(5):
            await done.wait()
        return seen

    assert asyncio.run(scenario()) == ["ZeroDivisionError"]


def test_a_closed_real_clock_runs_nothing_more() -> None:
    async def scenario() -> list[int]:
        clock = RealClock(asyncio.get_running_loop())
        ran: list[int] = []
        clock.call_at(0, ran.append, 1)
        clock.close()
        for _ in range(3):
            await asyncio.sleep(0)
        return ran

    assert asyncio.run(scenario()) == []
