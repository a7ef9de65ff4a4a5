"""A broker on a listener of each kind, and clients' ends of connections to it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tidings.broker import BrokerThread, Config, Listener

from .certificates import Authority, Pair
from .streams import Stream

HOST = "127.0.0.1"
PLAIN = ("tcp", "unix", "tls", "ws", "wss", "tcp+proxy", "tls+proxy", "ws+proxy", "wss+proxy")
KINDS = (*PLAIN, "tls@asyncio", "wss+proxy@asyncio")  # the rest on uvloop

Serve = Callable[..., "Served"]


class Served:
    """A running broker with one listener; ``open`` makes a connection to it."""

    def __init__(self, broker: BrokerThread, authority: Authority, proxied: bool) -> None:
        self.broker = broker
        self.url = broker.urls[0]
        self._authority = authority
        self._proxied = proxied
        self.opened = ExitStack()

    def open(self) -> Stream:
        encrypted = self.url.startswith(("tls", "wss"))
        tls = self._authority.trusting() if encrypted else None
        return self.opened.enter_context(Stream(self.url, tls, self._proxied))

    def client(self, client_id: str = "", will_topic: str = "") -> Stream:
        """A connection on which CONNECT was accepted."""
        stream = self.open()
        stream.connect(client_id, will_topic)
        return stream


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def server(authority: Authority) -> Pair:
    """The certificate of a broker on this machine."""
    return authority.sign("server", "localhost", HOST)


@pytest.fixture
def serve(authority: Authority, server: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a broker with a listener of a kind (``KINDS``), with settings of ``Listener`` and options of ``Config``."""
    with ExitStack() as stack:

        def run(kind: str, settings: dict[str, Any] | None = None, **options: Any) -> Served:
            kind, _, loop = kind.partition("@")
            if loop:
                monkeypatch.setattr("tidings.broker.thread.new_event_loop", asyncio.new_event_loop)
            scheme, _, proxied = kind.partition("+")
            url = f"unix://{tmp_path / 'mqtt.sock'}" if scheme == "unix" else f"{scheme}://{HOST}:0"
            files = server._asdict() if scheme in ("tls", "wss") else {}
            listener = {"url": url, "proxy_protocol": bool(proxied), **files, **(settings or {})}
            config = Config.model_validate(
                {
                    "listeners": [Listener.model_validate(listener)],
                    "sys_interval_s": 0,
                    "stop_timeout_s": 1,
                    **options,
                }
            )
            served = Served(stack.enter_context(BrokerThread(config)), authority, bool(proxied))
            stack.enter_context(served.opened)
            return served

        yield run
