"""Sockets for clients: an address, and a dialer that connects clients to it.

It knows nothing of MQTT beyond "bytes in, bytes out". One dialer serves a whole fleet; the name is resolved once, by
``probe``, which also says in one line why a broker cannot be reached.
"""

import asyncio
import os
import resource
import socket
from dataclasses import dataclass
from typing import cast
from urllib.parse import unquote, urlsplit

from tidings.broker.errors import ConfigError, TidingsError

from .client import Client

_SPARE_FILES = 64


class FleetError(TidingsError):
    """The fleet cannot run: no broker there, or not enough open files."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a broker listens: ``host`` and ``port``, or ``path`` of a Unix socket."""

    host: str = "localhost"
    port: int = 1883
    path: str | None = None
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"mqtt://{host}:{self.port}"


def parse_address(url: str) -> Address:
    """``mqtt://[user[:password]@]host[:port]``, ``tcp://…`` or ``unix:///path``. Raises ConfigError."""
    expected = "expected mqtt://host[:port] or unix:///path"
    try:
        parts = urlsplit(url)
        port = 1883 if parts.port is None else parts.port
    except ValueError as error:
        raise ConfigError(f"{url}: {expected}: {error}") from None
    if parts.scheme == "unix" and parts.path and not parts.netloc:
        return Address(path=parts.path)
    if parts.scheme not in ("mqtt", "tcp") or not parts.hostname or parts.path not in ("", "/") or port == 0:
        raise ConfigError(f"{url}: {expected}")
    username = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Address(parts.hostname, port, None, username, password)


def need_files(count: int) -> None:
    """Make sure that ``count`` sockets can be open at once. Raises FleetError if the system forbids it."""
    wanted = count + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise FleetError(
            f"{count} connections need {wanted} open files and this process may have {hard} at most: "
            f"raise the limit (ulimit -Hn {wanted}) or run fewer devices"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Link(asyncio.Protocol):
    """One socket of one client. It forgets the client once either side has ended the connection."""

    __slots__ = ("_client", "_transport")

    def __init__(self, client: Client) -> None:
        self._client: Client | None = client
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        if self._client is None:
            self._transport.abort()
        else:
            self._client.link_up(self)

    def data_received(self, data: bytes) -> None:
        if self._client is not None:
            self._client.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        client, self._client, self._transport = self._client, None, None
        if client is not None:
            client.link_down(_reason(exc) if exc is not None else "the broker closed the connection")

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.link_writable(False)

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.link_writable(True)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        self._client = None
        if self._transport is not None:
            # A paused transport would never notice that the other side has closed.
            self._transport.resume_reading()
            self._transport.close()

    def abort(self) -> None:
        self._client = None
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()


class Dialer:
    """Connects clients to one address: ``dialer(client)`` returns at once, the client is told the outcome."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._host = address.host
        self._tasks: set[asyncio.Task[None]] = set()

    async def probe(self) -> None:
        """Find the numeric address that answers, and keep to it. Raises FleetError."""
        loop = asyncio.get_running_loop()
        address = self.address
        if address.path is not None:
            hosts = [address.path]
        else:
            try:
                found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            except OSError as error:
                raise FleetError(f"cannot connect to {address}: {_reason(error)}") from None
            hosts = list(dict.fromkeys(str(info[4][0]) for info in found))
        failure = "no address"
        for host in hosts:
            self._host = host
            try:
                async with asyncio.timeout(10):
                    transport, _ = await self._connect(asyncio.Protocol())
            except TimeoutError:
                failure = "no answer within 10 s"
            except OSError as error:
                failure = _reason(error)
            else:
                transport.close()
                return
        raise FleetError(f"cannot connect to {address}: {failure}")

    def __call__(self, client: Client) -> None:
        task = asyncio.get_running_loop().create_task(self._dial(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is still being dialled."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _dial(self, client: Client) -> None:
        try:
            await self._connect(Link(client))
        except OSError as error:
            client.link_failed(f"cannot connect: {_reason(error)}")

    async def _connect(self, protocol: asyncio.Protocol) -> tuple[asyncio.BaseTransport, asyncio.Protocol]:
        loop = asyncio.get_running_loop()
        if self.address.path is not None:
            return await loop.create_unix_connection(lambda: protocol, self.address.path)
        return await loop.create_connection(lambda: protocol, self._host, self.address.port)


def _reason(error: BaseException) -> str:
    """An error in a few words. The loop's own texts repeat the address, so the system's are taken."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno).lower()
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror).lower()
    return str(error) or type(error).__name__
