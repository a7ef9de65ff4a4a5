"""Fixtures for tests that need an MQTT broker: no Docker, no ports to choose, ready in milliseconds.

def test_device_reports(tidings_broker):
    with tidings_broker.subscribe("dev/+/temp") as receive:
        my_device.connect("127.0.0.1", tidings_broker.port)
        assert receive(timeout_s=2).payload == b"21.5"
"""

from collections.abc import Iterator

import pytest

from .config import Config
from .thread import BrokerThread


@pytest.fixture
def tidings_config() -> Config:
    """The configuration of ``tidings_broker``; override the fixture to change it."""
    return Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)


@pytest.fixture
def tidings_broker(tidings_config: Config) -> Iterator[BrokerThread]:
    """A fresh broker on a free port of 127.0.0.1 for this test, in memory, in a thread of its own."""
    with BrokerThread(tidings_config) as broker:
        yield broker
