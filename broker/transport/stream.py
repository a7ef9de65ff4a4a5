"""Listeners: an endpoint in, a server out. Its connections are links, behind what the URL asks for."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from ..errors import BrokerError
from .address import Address
from .endpoint import Endpoint
from .gateway import Gateway
from .handshakes import Handshakes
from .link import Link
from .links import Links
from .poller import POLLS, Poller
from .websocket import WebSocket

Server: TypeAlias = asyncio.Server | Gateway | Poller
BACKLOG: Final = 4096  # connections that wait for us to accept them; the kernel caps it at net.core.somaxconn


async def listen(endpoint: Endpoint, links: Links, handshakes: Handshakes) -> tuple[Server, Address]:
    """Start accepting; returns the server and the address with the port that the system chose for port 0."""
    loop = asyncio.get_running_loop()
    address = endpoint.address

    def make(peer: str = "") -> asyncio.Protocol:
        link = Link(links, peer)
        return WebSocket(link, endpoint, handshakes, links.max_bytes, peer) if address.is_websocket else link

    plain = endpoint.tls is None and not endpoint.proxied and not address.is_websocket
    server: Server
    try:
        if address.scheme == "unix":
            _remove_stale_socket(address.path)
        if plain and not POLLS:
            if address.scheme == "unix":
                return await loop.create_unix_server(make, address.path, backlog=BACKLOG), address
            server = await loop.create_server(make, address.host, address.port, backlog=BACKLOG, reuse_address=True)
            return server, address.with_port(_prepare(server.sockets))
        sockets = await _bind(address)
    except OSError as error:
        raise BrokerError(f"cannot listen on {address}: {_reason(error, address)}") from None
    port = _prepare(sockets)
    server = Poller(sockets, make) if plain else Gateway(sockets, endpoint, handshakes, make, links.addresses)
    return server, address.with_port(port)


async def _bind(address: Address) -> list[socket.socket]:
    """Listening sockets on every address that the host has, all with one port."""
    if address.scheme == "unix":
        return [_listening(socket.AF_UNIX, address.path)]
    loop = asyncio.get_running_loop()
    port = address.port
    found = await loop.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as undo:
        sockets = []
        for family, _, _, _, (host, _, *rest) in dict.fromkeys(found):
            sock = undo.enter_context(_listening(family, (host, port, *rest)))
            port = sock.getsockname()[1]
            sockets.append(sock)
        undo.pop_all()
        return sockets


def _listening(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
        return sock
    except BaseException:
        sock.close()
        raise


def _prepare(sockets: Sequence[socket.socket]) -> int:
    """Let accepted sockets, which inherit it, send at once and notice a vanished peer; the port of the last one."""
    port = 0
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port = sock.getsockname()[1]
    return port


def stop_listening(server: Server, address: Address) -> None:
    """Accept nobody any more, and leave no socket file behind."""
    server.close()
    if address.scheme == "unix":
        with contextlib.suppress(OSError):
            os.unlink(address.path)


def _reason(error: OSError, address: Address) -> str:
    if error.errno == errno.EADDRINUSE:
        return "it is in use; stop the program that has it or choose another one"
    if error.errno == errno.EACCES:
        return "permission denied" + ("; ports below 1024 need privileges" if 0 < address.port < 1024 else "")
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return "this machine has no such address"
    return error.strerror or str(error)


def _remove_stale_socket(path: str) -> None:
    """Remove the socket file of a process that is gone; OSError (in use) if somebody answers.

    Event loops remove any socket file and take its place, which would cut a running server off from its clients.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # binding will fail
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (BlockingIOError, TimeoutError):
            pass  # somebody listens, and is busy
    raise OSError(errno.EADDRINUSE, "address in use")
