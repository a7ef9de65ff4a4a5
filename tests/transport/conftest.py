"""Fixtures of the transport tests: one contract, for every carrier and every event loop."""

import os
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ..raw_client import LOOPS


class Carrier(NamedTuple):
    """``url`` to listen on, ``loop`` to run on."""

    url: str
    loop: str


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A path short enough for a socket, which the temporary folders of pytest need not be."""
    with tempfile.TemporaryDirectory(prefix="tidings-") as folder:
        yield os.path.join(folder, "socket")


@pytest.fixture(params=[(scheme, loop) for scheme in ("tcp", "unix") for loop in LOOPS], ids="-".join)
def carrier(request: pytest.FixtureRequest, socket_path: str) -> Carrier:
    scheme, loop = request.param
    return Carrier("tcp://127.0.0.1:0" if scheme == "tcp" else f"unix://{socket_path}", loop)
