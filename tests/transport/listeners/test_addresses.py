"""Bans and limits by address hold for every listener, by the address that a load balancer tells."""

import time

import pytest

from tidings.broker.core.ports import TurnedAway

from .conftest import Serve
from .streams import TIMEOUT_S, Closed

PROXIED = ("tcp+proxy", "tls+proxy", "ws+proxy", "wss+proxy")  # the client's address is 203.0.113.7 there


@pytest.mark.parametrize("kind", PROXIED)
def test_an_address_has_only_so_many_connections(serve: Serve, kind: str) -> None:
    served = serve(kind, max_connections_per_address=2)
    first, second = served.client("a"), served.client("b")
    for _ in range(3):
        with pytest.raises((Closed, OSError)):
            served.client("c")
    first.ping()
    assert served.broker.snapshot().stats.turned_away == {TurnedAway.ADDRESS: 3}
    second.close()
    until = time.monotonic() + TIMEOUT_S
    while True:  # until the broker has noticed
        try:
            served.client("c").ping()
            break
        except (Closed, OSError):
            assert time.monotonic() < until


@pytest.mark.parametrize("kind", PROXIED)
def test_a_banned_network_is_not_even_shaken_hands_with(serve: Serve, kind: str) -> None:
    served = serve(kind, banned_addresses=["203.0.113.0/24"])
    with pytest.raises((Closed, OSError)):
        served.client("a")
    stats = served.broker.snapshot().stats
    assert stats.connections == 0
    assert stats.turned_away == {TurnedAway.BANNED: 1}


@pytest.mark.parametrize("kind", ["tcp", "tls", "ws", "wss"])
def test_bans_hold_without_a_load_balancer_too(serve: Serve, kind: str) -> None:
    served = serve(kind, banned_addresses=["127.0.0.0/8"])
    with pytest.raises((Closed, OSError)):
        served.client("a")
    stats = served.broker.snapshot().stats
    assert stats.connections == 0
    assert stats.turned_away == {TurnedAway.BANNED: 1}
