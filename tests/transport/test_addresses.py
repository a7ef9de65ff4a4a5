"""Who may connect from where, and how often."""

import pytest

from tidings.broker import Config
from tidings.broker.core.ports import TurnedAway
from tidings.broker.core.snapshot import Stats
from tidings.broker.network import group, host_of, parse_network
from tidings.broker.transport.addresses import Addresses


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("local socket", "local socket"),
    ],
)
def test_a_customer_counts_as_one(host: str, counted: str) -> None:
    assert group(host) == counted


@pytest.mark.parametrize(
    ("peer", "host"), [("192.0.2.7:4000", "192.0.2.7"), ("2001:db8::1:4000", "2001:db8::1"), ("local socket", "")]
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host


def test_an_address_has_so_many_connections_and_this_machine_any(caplog: pytest.LogCaptureFixture) -> None:
    stats = Stats()
    addresses = Addresses(stats)
    addresses.use([], 2)
    names = [addresses.enter(peer) for peer in ("2001:db8::1:1", "2001:db8::2:1")]
    assert addresses.refuse("2001:db8::3:1")
    assert caplog.messages == ["refusing 2001:db8::3:1: 2 connections are open from 2001:db8::/64, as many as allowed"]
    assert stats.turned_away == {TurnedAway.ADDRESS: 1}
    assert not addresses.refuse("2001:db8:0:1::3:1")
    addresses.leave(names[0])
    assert not addresses.refuse("2001:db8::3:1")
    addresses.leave(names[1])
    assert addresses._open == {}
    for peer in ("127.0.0.1:1", "::1:1", "::ffff:127.0.0.1:1", "local socket"):
        for _ in range(5):
            addresses.leave(addresses.enter(peer))
            assert addresses.enter(peer) == ""
        assert not addresses.refuse(peer)


@pytest.mark.parametrize(
    ("host", "banned"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("192.0.3.7", False),
        ("198.51.100.1", True),
        ("198.51.100.2", False),
        ("2001:db8:ffff::1", True),
        ("2001:db9::1", False),
        ("", False),
    ],
)
def test_networks_are_banned_however_an_address_is_written(host: str, banned: bool) -> None:
    networks = [parse_network(text) for text in ("192.0.2.1/24", "198.51.100.1", "2001:db8::/32")]
    addresses = Addresses(Stats())
    assert not addresses.refuse(f"{host}:1")
    addresses.use(networks, 10)
    assert addresses.refuse(f"{host}:1") is banned


def test_a_network_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match=r"an address, or a network such as 192\.0\.2\.0/24 .* not '192\.0\.2\.0/33'"):
        Config(banned_addresses=["192.0.2.0/33"])
