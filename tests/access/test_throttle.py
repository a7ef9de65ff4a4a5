"""Guessing passwords gets slower, in virtual time; those who know theirs get in."""

from tidings.broker.access.throttle import (
    ADDRESS_MAX_S,
    FORGET_S,
    FREE,
    MAX_WAIT_S,
    USER_MAX_S,
    Throttle,
)

DAY_S = 86_400.0


def guesses(throttle: Throttle, addresses: list[str], users: list[str], seconds: float) -> int:
    """How many guesses are looked at if one is made again and again from each address, as soon as it may be."""
    now, seen, turn = 1000.0, 0, 0
    end = now + seconds
    while now < end:
        nearest = MAX_WAIT_S
        for address in addresses:
            user = users[turn % len(users)]
            turn += 1
            wait_s = throttle.wait(address, user, now)
            if wait_s is not None:
                seen += 1
                throttle.failed(address, user, now + wait_s)
                nearest = min(nearest, wait_s)
        now += max(nearest, 0.5)
    return seen


def test_the_first_few_mistakes_cost_nothing() -> None:
    throttle = Throttle()
    for _ in range(FREE):
        assert throttle.wait("a", "u", 0.0) == 0.0
        throttle.failed("a", "u", 0.0)
    assert throttle.wait("a", "u", 0.0) == 0.0
    throttle.failed("a", "u", 0.0)
    assert throttle.wait("a", "u", 0.0) == 0.5


def test_each_further_one_doubles_the_wait_up_to_a_bound() -> None:
    throttle, now, waits = Throttle(), 0.0, []
    for number in range(12):
        wait_s = throttle.wait("a", f"u{number}", now)
        waits.append(wait_s)
        if wait_s is None:
            now += ADDRESS_MAX_S
            wait_s = throttle.wait("a", f"u{number}", now)
            assert wait_s == 0.0
        now += wait_s
        throttle.failed("a", f"u{number}", now)
    assert waits[:9] == [0, 0, 0, 0, 0.5, 1, 2, 4, 8]
    assert waits[9:] == [None, None, None]


def test_one_address_guesses_a_few_thousand_a_day() -> None:
    assert guesses(Throttle(), ["a"], [f"u{number}" for number in range(1000)], DAY_S) < DAY_S / 25


def test_one_user_is_guessed_slowly_from_many_addresses_too() -> None:
    addresses = [f"a{number}" for number in range(50)]
    assert guesses(Throttle(), addresses, ["root"], 3_600.0) < 3_600 / USER_MAX_S * 2


def test_attempts_at_the_same_time_wait_for_one_another() -> None:
    throttle = Throttle()
    for _ in range(FREE + 2):
        throttle.failed("a", "u", 0.0)
    waits = [throttle.wait("a", f"v{number}", 0.0) for number in range(10)]
    assert waits[:4] == [1.0, 2.0, 3.0, 4.0]
    assert waits[-1] is None


def test_a_user_gets_in_from_where_he_was_whatever_others_do() -> None:
    throttle = Throttle()
    throttle.succeeded("home", "alice")
    guesses(throttle, [f"a{number}" for number in range(50)], ["alice"], 600.0)
    guesses(throttle, ["home"], ["bob", "carol"], 600.0)
    assert throttle.wait("home", "alice", 1600.0) == 0.0
    assert throttle.wait("elsewhere", "alice", 1600.0) != 0.0
    assert throttle.wait("home", "bob", 1600.0) is None


def test_trust_ends_after_a_few_mistakes_in_a_row() -> None:
    throttle = Throttle()
    throttle.succeeded("home", "alice")
    for _ in range(FREE + 1):
        throttle.failed("home", "alice", 0.0)
    assert throttle.wait("home", "alice", 0.0) == 0.5


def test_failures_are_forgotten_one_by_one() -> None:
    throttle = Throttle()
    for _ in range(FREE + 3):
        throttle.failed("a", "u", 0.0)
    assert throttle.wait("a", "u", 0.0) == 2.0
    throttle.failed("a", "u", FORGET_S * 4)
    assert throttle.wait("a", "u", FORGET_S * 4) == 0.0


def test_the_tables_are_bounded_and_those_who_failed_last_stay() -> None:
    throttle = Throttle(max_entries=100)
    for number in range(1000):
        for _ in range(FREE + 1):
            throttle.failed(f"a{number}", f"u{number}", 0.0)
        throttle.succeeded(f"b{number}", f"v{number}")
    assert {len(table) for table in (throttle._addresses, throttle._users, throttle._known)} == {100}
    assert throttle.wait("a999", "x", 0.0) == 0.5
    assert throttle.wait("a0", "x", 0.0) == 0.0
