"""Listeners whose connections begin with something else than MQTT: a PROXY header, TLS, a WebSocket handshake.

It accepts by itself rather than through ``loop.create_server``, because the header has to be read before TLS begins,
because each handshake shall use the certificates of its moment, and because it stops accepting while as many
handshakes are under way as are allowed.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from .acceptor import Acceptor
from .addresses import Addresses
from .endpoint import Endpoint
from .handshakes import Handshakes
from .link import LINGER_S
from .proxy import MAX_BYTES, ProxyError, parse

log: Final = logging.getLogger("tidings.broker")

HANDSHAKE_S: Final = 3600.0  # longer than ``Handshakes`` gives it


class Gateway:
    """Accepts on ``sockets``, which listen, and gives each connection a protocol from ``make(peer)``.

    ``peer`` is the client's address as the PROXY header tells it, empty if there is none.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        endpoint: Endpoint,
        handshakes: Handshakes,
        make: Callable[[str], asyncio.Protocol],
        addresses: Addresses,
    ) -> None:
        self._endpoint = endpoint
        self._handshakes = handshakes
        self._make = make
        self._addresses = addresses
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(sockets, self._take, handshakes)

    def close(self) -> None:
        """Accept nobody any more and give up the handshakes under way."""
        self._acceptor.close()
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, sock: socket.socket, name: str) -> None:
        task = self._loop.create_task(self._receive(sock, name))
        self._tasks.add(task)
        task.add_done_callback(partial(self._received, sock))
        self._handshakes.begin(task, partial(self._cut_off, task, name))

    def _cut_off(self, task: asyncio.Task[None], name: str, why: str) -> None:
        log.info("refusing %s: %s", name, why)
        task.cancel()

    def _received(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._handshakes.end(task)
        if task.cancelled():  # before it began, or it would have ended by itself
            sock.close()

    async def _receive(self, sock: socket.socket, name: str) -> None:
        mine = True  # the socket; later its transport's
        try:
            peer = await self._read_header(sock) if self._endpoint.proxied else ""
            if self._addresses.refuse(peer or name):
                return  # before TLS, which is work
            tls = self._endpoint.tls
            mine = False
            await self._loop.connect_accepted_socket(
                lambda: self._make(peer),
                sock,
                ssl=None if tls is None else tls.context,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_S,
                ssl_shutdown_timeout=None if tls is None else LINGER_S,
            )
        except asyncio.CancelledError:
            pass  # cut off, or the broker stops
        except (OSError, ProxyError) as error:
            log.info("refusing %s: %s", name, error)
        finally:
            if mine:
                sock.close()

    async def _read_header(self, sock: socket.socket) -> str:
        """Take the PROXY header off ``sock``, and not a byte of what follows it; the client's address."""
        data = b""
        while True:
            await self._readable(sock)
            try:
                seen = sock.recv(MAX_BYTES, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                continue
            if not seen:
                raise ProxyError("closed before its PROXY protocol header was complete")
            header = parse(data + seen)
            if header is not None:
                sock.recv(header.length - len(data))
                return header.peer
            data += sock.recv(len(seen))

    async def _readable(self, sock: socket.socket) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(sock, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(sock)
