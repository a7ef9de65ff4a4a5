"""Plain TCP and Unix connections on Linux: one epoll holds all of a listener's, and the event loop watches that alone.

A transport of the event loop takes 1 KB and its own time to be made. Here a connection is a descriptor and a
``Stream``, which is the transport that its protocol sees.

1. One turn serves each ready connection once: it reads at most ``READ_BYTES`` and writes what was left over.
2. Descriptors are closed between turns, so what one turn hears about a descriptor is never about its successor.
3. What a protocol raises costs its own connection and nobody else's.
"""

import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from .acceptor import Acceptor

log: Final = logging.getLogger("tidings.broker")

POLLS: Final = hasattr(select, "epoll")  # Linux
EVENTS: Final = 64  # ready connections that one turn serves; what else the loop has to do comes next
SMALL_BYTES: Final = 65_536  # of a first read; the C library would have to ask the system for more each time
READ_BYTES: Final = 262_144  # of one turn, from a connection that brings as much
HIGH_BYTES: Final = 65_536  # as in asyncio, until the protocol says how much may wait
_NOBODY: Final = asyncio.Protocol()

if POLLS:
    IN, OUT = select.EPOLLIN, select.EPOLLOUT


class Poller:
    """Accepts on ``sockets``, which listen, and serves each connection with a protocol from ``make(peer)``."""

    def __init__(self, sockets: list[socket.socket], make: Callable[[str], asyncio.Protocol]) -> None:
        self._make = make
        self.loop = asyncio.get_running_loop()
        self.epoll = select.epoll()
        self.streams: dict[int, Stream] = {}  # by descriptor
        self._emptied = asyncio.Event()
        self.loop.add_reader(self.epoll.fileno(), self._serve)
        self._acceptor = Acceptor(sockets, self.take)

    def close(self) -> None:
        """Accept nobody any more; those who are connected stay."""
        self._acceptor.close()

    async def wait_closed(self) -> None:
        """Wait until no connection is left, after ``close``."""
        while self.streams:
            self._emptied.clear()
            await self._emptied.wait()
        self.loop.remove_reader(self.epoll.fileno())
        self.epoll.close()

    def take(self, sock: socket.socket, peer: str) -> None:
        """Serve the connection of ``sock``, which does not block; its other end is called ``peer``."""
        descriptor = sock.detach()
        stream = self.streams[descriptor] = Stream(self, descriptor)
        try:
            stream.begin(self._make(peer))
        except Exception:
            self._give_up(stream)

    def forget(self, descriptor: int) -> None:
        """The connection of ``descriptor`` has ended."""
        del self.streams[descriptor]
        os.close(descriptor)
        self._emptied.set()

    def _serve(self) -> None:
        for descriptor, events in self.epoll.poll(0, EVENTS):
            stream = self.streams[descriptor]
            try:
                if events != IN:
                    stream.write_rest()
                if events != OUT:
                    stream.read()
            except Exception:
                self._give_up(stream)

    def _give_up(self, stream: "Stream") -> None:
        log.exception("internal error while serving a connection")
        stream.abort()


class Stream(asyncio.Transport):
    """The connection of one descriptor."""

    __slots__ = (
        "_blocked",
        "_closing",
        "_descriptor",
        "_events",
        "_high_bytes",
        "_lost",
        "_poller",
        "_protocol",
        "_rest",
    )

    def __init__(self, poller: Poller, descriptor: int) -> None:
        self._poller = poller
        self._descriptor = descriptor
        self._protocol = _NOBODY
        self._events = 0  # what the poller waits for
        self._rest: bytearray | None = None  # what the socket has not taken yet
        self._high_bytes = HIGH_BYTES
        self._blocked = False  # the protocol is told that too much waits
        self._closing = False
        self._lost = False  # ``connection_lost`` is called next

    # what the poller calls

    def begin(self, protocol: asyncio.Protocol) -> None:
        """Serve ``protocol`` from now on; it may pause reading before anything was read."""
        self._protocol = protocol
        self._wait_for(IN)
        protocol.connection_made(self)

    def read(self) -> None:
        """Something came, or nothing will come any more."""
        if not self._events & IN:
            return  # what others brought in this turn has paused or closed it
        try:
            data = os.read(self._descriptor, SMALL_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if len(data) == SMALL_BYTES:
            with suppress(OSError):  # if the connection is lost, the next turn hears of it
                data += os.read(self._descriptor, READ_BYTES - SMALL_BYTES)
        if data:
            self._protocol.data_received(data)
        else:
            self._protocol.eof_received()
            self.close()

    def write_rest(self) -> None:
        """The socket may take more."""
        rest = self._rest
        if rest is None:
            return
        try:
            del rest[: os.write(self._descriptor, rest)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if not rest:
            self._rest = None
            self._wait_for(self._events & ~OUT)
            if self._closing:
                self._lose(None)
                return
        if self._blocked and len(rest) <= self._high_bytes // 4:
            self._blocked = False
            self._protocol.resume_writing()

    # what the protocol calls

    def pause_reading(self) -> None:
        self._wait_for(self._events & ~IN)

    def resume_reading(self) -> None:
        if not self._closing:
            self._wait_for(self._events | IN)

    def write(self, data: Any) -> None:
        if self._closing:
            return
        if self._rest is None:
            try:
                taken = os.write(self._descriptor, data)
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError as error:
                self._lose(error)
                return
            if taken == len(data):
                return
            self._rest = bytearray(memoryview(data)[taken:])
            self._wait_for(self._events | OUT)
        else:
            self._rest += data
        if not self._blocked and len(self._rest) > self._high_bytes:
            self._blocked = True
            self._protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high_bytes = HIGH_BYTES if high is None else high

    def get_write_buffer_size(self) -> int:
        return 0 if self._rest is None else len(self._rest)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.pause_reading()
            if self._rest is None:
                self._lose(None)

    def abort(self) -> None:
        self._lose(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return Descriptor(self._descriptor) if name == "socket" and not self._lost else default

    # inside

    def _wait_for(self, events: int) -> None:
        before, self._events = self._events, events
        if events == before:
            return
        epoll = self._poller.epoll
        if not before:
            epoll.register(self._descriptor, events)
        elif events:
            epoll.modify(self._descriptor, events)
        else:  # or it would be told again and again that the peer has hung up
            epoll.unregister(self._descriptor)

    def _lose(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._rest = None
        self._wait_for(0)
        self._poller.loop.call_soon(self._end, error)

    def _end(self, error: OSError | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._protocol = _NOBODY  # they refer to each other; freed at once, they cost the garbage collector nothing
            self._poller.forget(self._descriptor)


class Descriptor:
    """As much of a socket as a protocol has a use for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def setsockopt(self, level: int, option: int, value: int) -> None:
        sock = socket.socket(fileno=self._descriptor)
        try:
            sock.setsockopt(level, option, value)
        finally:
            sock.detach()  # it stays the stream's
