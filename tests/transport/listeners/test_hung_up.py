"""Clients that hang up while the gate thinks: nobody reads from them then, and they must be noticed all the same."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidings.broker.access.users import MIN_ROUNDS, User, new_user, put_user
from tidings.broker.transport import links

from ...conformance.wire import frame
from .conftest import KINDS, Serve
from .streams import TIMEOUT_S

CONNECT = frame("10 L s:MQTT 04 c2 003c s: s:alice s:right")
ACCEPTED = frame("20 02 0000")


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    put_user(path, new_user("alice", "right", scram=True, rounds=MIN_ROUNDS))
    return path


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set it, and passwords are checked."""
    event = threading.Event()
    matches = User.matches

    def slowly(user: User, password: bytes) -> bool:
        assert event.wait(TIMEOUT_S)
        return matches(user, password)

    monkeypatch.setattr(User, "matches", slowly)
    monkeypatch.setattr(links, "LOOK_S", 0.02)
    yield event
    event.set()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["close", "vanish"])
def test_whoever_hangs_up_is_forgotten_and_who_waits_is_let_in(
    serve: Serve, passwords: Path, go_on: threading.Event, kind: str, how: str
) -> None:
    served = serve(kind, password_file=passwords, max_connections=3)
    for _ in range(4):  # more than may be connected at once
        leaving = [served.open() for _ in range(2)]
        waiting = served.open()
        for stream in (*leaving, waiting):
            stream.send(CONNECT)
        until_open(served.broker, 3)
        for stream in leaving:
            getattr(stream, how)()
        until_open(served.broker, 1)
        waiting.close()
        until_open(served.broker, 0)
    staying = served.open()
    staying.send(CONNECT)
    go_on.set()
    assert staying.receive(4) == ACCEPTED


def until_open(broker: object, count: int) -> None:
    """Wait until the broker has so many connections."""
    deadline = time.monotonic() + TIMEOUT_S
    while (now := len(broker._broker._links.open)) != count:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, f"{now} connections"
        time.sleep(0.005)
