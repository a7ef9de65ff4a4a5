"""Accepts connections, a few in one turn, and waits a while where the system has no room for more."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from .handshakes import Handshakes

log: Final = logging.getLogger("tidings.broker")

ACCEPTS_PER_TURN: Final = 32  # then the established connections are served again
RETRY_S = 1.0  # not Final, since tests shorten it and the compiled form reads constants once
_NO_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts on ``sockets``, which listen, and hands each connection with its peer's name to ``take``.

    ``handshakes``: it accepts only while another one may begin.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        take: Callable[[socket.socket, str], None],
        handshakes: Handshakes | None = None,
    ) -> None:
        self._sockets = sockets
        self._take = take
        self._handshakes = handshakes
        self._loop = asyncio.get_running_loop()
        for sock in sockets:
            self._loop.add_reader(sock, self._accept, sock)

    def close(self) -> None:
        """Accept nobody any more."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets = []

    def _accept(self, listening: socket.socket) -> None:
        handshakes = self._handshakes
        again = partial(self._again, listening)
        for number in range(ACCEPTS_PER_TURN):
            if handshakes is not None:
                if number and handshakes.is_full:
                    return  # nobody is known to wait, for whom another one should have to go
                if not handshakes.room(again):
                    self._loop.remove_reader(listening)
                    return
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_RESOURCES:
                    raise
                log.error("cannot accept connections: %s; trying again in %g s", error.strerror, RETRY_S)
                self._loop.remove_reader(listening)
                self._loop.call_later(RETRY_S, again)
                return
            sock.setblocking(False)
            self._take(sock, name_of(peer))

    def _again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)


def name_of(peer: object) -> str:
    """The other end of a connection, for logs; ``peer`` as sockets tell it."""
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"{peer[0]}:{peer[1]}"
    return str(peer) if peer else "local socket"
