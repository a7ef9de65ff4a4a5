"""Fixtures of the tests of the embeddable broker."""

import pytest

from tidings.broker import Config


@pytest.fixture
def config() -> Config:
    return Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)
