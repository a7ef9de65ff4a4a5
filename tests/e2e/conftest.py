"""One ``tidings broker`` for all the clients, each test with topics and client ids of its own."""

import uuid
from collections.abc import Iterator

import pytest

from ..server_process import ServerProcess, run_tidings_broker

HOST = "127.0.0.1"


@pytest.fixture(scope="session", params=["memory", pytest.param("data", marks=pytest.mark.slow)])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Once in memory, and once with everything on disk."""
    directory = tmp_path_factory.mktemp("broker")
    args = ("--data", str(directory / "data")) if request.param == "data" else ()
    with run_tidings_broker(directory, *args) as server:
        yield server


@pytest.fixture(scope="session")
def port(broker: ServerProcess) -> int:
    return broker.port


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"e2e/{uuid.uuid4().hex[:12]}"


@pytest.fixture
def name() -> str:
    """A client id that no other test uses, short enough for MQTT 3.1."""
    return f"c{uuid.uuid4().hex[:12]}"
