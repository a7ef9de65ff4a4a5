"""Listeners: an endpoint in, a server out. Its connections are links, behind what the URL asks for."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final, TypeAlias

from ..errors import BrokerError
from .address import Address
from .endpoint import Endpoint
from .gateway import Gateway
from .handshakes import Handshakes
from .link import Link
from .links import Links
from .websocket import WebSocket

Server: TypeAlias = asyncio.Server | Gateway
BACKLOG: Final = 4096  # connections that wait for us to accept them; the kernel caps it at net.core.somaxconn


async def listen(endpoint: Endpoint, links: Links, handshakes: Handshakes) -> tuple[Server, Address]:
    """Start accepting; returns the server and the address with the port that the system chose for port 0."""
    loop = asyncio.get_running_loop()
    address = endpoint.address

    def make(peer: str = "") -> asyncio.Protocol:
        link = Link(links, peer)
        return WebSocket(link, endpoint, handshakes, links.max_bytes, peer) if address.is_websocket else link

    try:
        if address.scheme == "unix":
            _remove_stale_socket(address.path)
            return await loop.create_unix_server(make, address.path, backlog=BACKLOG), address
        if endpoint.tls is not None or endpoint.proxied or address.is_websocket:
            sockets = await _bind(address)
            return Gateway(sockets, endpoint, handshakes, make, links.addresses), address.with_port(_prepare(sockets))
        server = await loop.create_server(make, address.host, address.port, backlog=BACKLOG, reuse_address=True)
    except OSError as error:
        raise BrokerError(f"cannot listen on {address}: {_reason(error, address)}") from None
    return server, address.with_port(_prepare(server.sockets))


async def _bind(address: Address) -> list[socket.socket]:
    """Listening sockets on every address that the host has, all with one port."""
    loop = asyncio.get_running_loop()
    port = address.port
    found = await loop.getaddrinfo(address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as undo:
        sockets = []
        for family, kind, protocol, _, (host, _, *rest) in dict.fromkeys(found):
            sock = undo.enter_context(socket.socket(family, kind, protocol))
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port, *rest))
            sock.listen(BACKLOG)
            port = sock.getsockname()[1]
            sockets.append(sock)
        undo.pop_all()
        return sockets


def _prepare(sockets: Sequence[socket.socket]) -> int:
    """Let accepted sockets, which inherit it, notice a peer that vanished; the port of the last one."""
    port = 0
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
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
