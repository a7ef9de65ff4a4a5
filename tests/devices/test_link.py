"""Addresses."""

import pytest

from tidings.broker.errors import ConfigError
from tidings.devices import Address, parse_address


@pytest.mark.parametrize(
    ("url", "address", "shown"),
    [
        ("mqtt://localhost", Address("localhost", 1883), "mqtt://localhost:1883"),
        ("tcp://10.0.0.1:1884", Address("10.0.0.1", 1884), "mqtt://10.0.0.1:1884"),
        ("mqtt://[::1]:1", Address("::1", 1), "mqtt://[::1]:1"),
        ("mqtt://u:p%40ss@h/", Address("h", 1883, None, "u", "p@ss"), "mqtt://h:1883"),
        ("unix:///run/b.sock", Address(path="/run/b.sock"), "unix:///run/b.sock"),
    ],
)
def test_urls_are_read_and_shown_without_secrets(url: str, address: Address, shown: str) -> None:
    assert parse_address(url) == address
    assert str(address) == shown


WRONG = ["", "localhost", "localhost:1883", "http://x", "mqtt://", "mqtt://x:0", "mqtt://x:99999", "mqtt://x:y"]


@pytest.mark.parametrize("wrong", [*WRONG, "mqtt://x/topic", "unix://rel"])
def test_other_urls_are_refused_in_words(wrong: str) -> None:
    with pytest.raises(ConfigError, match="expected mqtt://host"):
        parse_address(wrong)
