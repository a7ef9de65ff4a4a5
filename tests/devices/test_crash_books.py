"""The books of a crash test: each broken promise is found, and nothing else is."""

import pytest

from tidings.devices.crash_books import Books, Receiver, Verdict


def books(*, ordered: bool = True) -> Books:
    """One publisher that sent three messages, all acknowledged."""
    made = Books(["p"], {"r": Receiver(["p"], ordered=ordered)})
    for _ in range(3):
        made.acknowledge("p", made.send("p"))
    return made


def closed(made: Books, *received: int) -> Verdict:
    for number in received:
        made.receive("r", "p", number)
    return made.close_round()


def test_everything_delivered_once_and_in_order_breaks_nothing() -> None:
    verdict = closed(books(), 1, 2, 3)
    assert verdict == Verdict(acknowledged=3, delivered=3)
    assert not verdict.broken(2)


def test_what_was_acknowledged_and_did_not_arrive_is_lost_once() -> None:
    made = books()
    assert not made.complete
    assert closed(made, 1, 3).lost == 1
    assert made.complete
    assert made.close_round().lost == 0


def test_what_was_not_acknowledged_cannot_be_lost() -> None:
    made = books()
    made.send("p")
    assert closed(made, 1, 2, 3).lost == 0


def test_a_second_copy_breaks_qos_2_alone() -> None:
    verdict = closed(books(), 1, 2, 2, 3)
    assert (verdict.duplicated, verdict.lost, verdict.reordered) == (1, 0, 0)
    assert verdict.broken(2)
    assert not verdict.broken(1)


@pytest.mark.parametrize(("ordered", "count"), [(True, 1), (False, 0)])
def test_a_first_copy_after_a_later_message_is_reordered_except_in_a_group(ordered: bool, count: int) -> None:
    assert closed(books(ordered=ordered), 1, 3, 2).reordered == count


@pytest.mark.parametrize(("seen", "count"), [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_a_retained_message_older_than_an_acknowledged_one_has_gone_back(seen: int, count: int) -> None:
    made = books()
    for _ in range(2):
        made.state_acknowledged("p", made.send_state("p"))
    made.state_seen("p", seen)
    assert made.close_round().retained_gone_back == count
    assert made.state_kept("p") == seen


def test_a_lost_session_breaks_a_promise_and_rounds_add_up() -> None:
    total = Verdict()
    total.add(Verdict(acknowledged=2, sessions_lost=1))
    total.add(Verdict(acknowledged=3))
    assert total == Verdict(acknowledged=5, sessions_lost=1)
    assert total.broken(1)
