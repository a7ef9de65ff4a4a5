"""One network connection: bytes between a socket and the engine, whatever carries them.

Reading: all packets of one read go to the engine together. Writing: the engine appends, and each link that was
appended to is written once at the end of the loop's turn. Every stream transport of asyncio will do, and ``poller``'s.

1. ``full`` is True while more than the high-water mark waits for the socket, or more than four were appended in this
   turn; the engine then queues, in bounded queues.
2. Answers (``send_after``) leave in the order in which they were given, each once its batch is durable.
3. A peer that causes answers without reading them, or faster than the store lets them go, is no longer read from: it
   can fill its own outbox and no more.
"""

import asyncio
import logging
import socket
import sys
from collections import deque
from contextlib import suppress
from typing import Final, cast

from ..codec.decode import Decoder
from ..codec.packets import Packet, Publish, PublishRun
from ..codec.reasons import ReasonCode
from ..core.budget import SLACK_BYTES
from ..core.connection import Connection
from ..core.deadlines import Place
from ..core.message import Message
from ..core.ports import ANSWER_OVERHEAD_BYTES, PauseReason
from ..core.rate import Rate
from ..errors import ProtocolError
from .acceptor import name_of
from .links import Links

if sys.platform != "win32":
    from fcntl import ioctl
    from termios import TIOCOUTQ

log: Final = logging.getLogger("tidings.broker")

IMPLEMENTATION_ERROR: Final = 0x83
SHORT_BYTES: Final = 4_096  # high-water mark of a client that wants the newest only
GLANCE_S: Final = 0.1  # how often a client that must wait, and is waited for, is read from
LINGER_S = 5.0  # how long a closed connection may take to accept its last bytes; see acceptor.RETRY_S


class Link(asyncio.Protocol):
    """One connection; the engine's ``Outbox`` for it."""

    __slots__ = (
        "_blocked",
        "_bytes_rate",
        "_closed",
        "_decoder",
        "_dirty",
        "_early",
        "_entered",
        "_held",
        "_held_bytes",
        "_hold",
        "_linger",
        "_links",
        "_message_rate",
        "_peer",
        "_pieces",
        "_size",
        "_taken",
        "_transport",
        "_turn_bytes",
        "_weight",
        "_written",
        "admitted",
        "connection",
        "due_at",
        "full",
        "held",
        "paused",
        "place",
    )

    def __init__(self, links: Links, peer: str = "") -> None:
        """``peer`` names the other end where the transport does not, or would name a proxy."""
        self._links = links
        self._peer = peer
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder(
            max_packet_size=links.max_packet_size,
            max_connect_size=links.max_connect_size,
            topics=links.topics,
            publish=Message,
            runs=True,
        )
        self.connection: Connection | None = None
        self.full = False
        self.held = 0
        self.paused: PauseReason | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._held: deque[tuple[int, bytes, int]] | None = None
        self._held_bytes = 0
        self._hold = 0
        self._linger: asyncio.TimerHandle | None = None
        self._dirty = False
        self._blocked = False
        self._closed = False
        self._turn_bytes = links.max_turn_bytes
        self._weight = 0  # bytes that the memory budget knows of
        self._written = 0  # bytes handed to the transport
        self._taken = 0  # how many of them it had got rid of when that was looked at last
        self._message_rate = Rate(links.max_messages_per_s) if links.max_messages_per_s else None
        self._bytes_rate = Rate(links.max_bytes_per_s) if links.max_bytes_per_s else None
        self._early: bytes | None = None  # what came before the turn of this connection
        self.admitted = False  # whether it had its turn
        self._entered = ""  # the address that it counts for
        self.due_at: float | None = None
        self.place: Place | None = None

    # what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        links = self._links
        self._transport = transport
        peer = self._peer or peer_name(transport)
        if links.turn_away(peer):
            self._closed = True
            transport.abort()
            return
        self._entered = links.addresses.enter(peer)
        transport.set_write_buffer_limits(high=links.high_bytes)
        links.opened(self)
        now = links.clock()
        self.connection = links.engine.connect(self, peer, now, transport.get_extra_info("ssl_object"))
        wait_s = links.arrive(self.connection, peer, now)
        if wait_s:
            self._early = b""
            self._wait(wait_s)
        links.turn()

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        if connection is None or self._closed:
            return
        if self._early is not None:
            # uvloop begins to read after ``connection_made``, whatever that said.
            self._early += data
            assert self._transport is not None
            self._transport.pause_reading()
            return
        links = self._links
        if not self.admitted and not links.admit(self):
            # It is read on until more comes: few send more than CONNECT before they hear from us.
            self._early = data
            self._note(PauseReason.CROWD)
            return
        engine = links.engine
        engine.stats.bytes_received += len(data)
        decoder = self._decoder
        now = links.clock()
        if not links.turn_ends:
            links.turn(now)
        since = len(engine.changes) if engine.stalled else -1
        used_bytes = engine.budget.used_bytes
        packets: list[Packet] = []
        try:
            packets = decoder.feed(data)
            if packets:
                if links.tap is not None:
                    links.tap.received(connection, packets)
                engine.handle(connection, packets, now)
            if decoder.error is not None:
                engine.fail(connection, decoder.error, now)
        except Exception:
            # A bug of ours must cost this client its connection and nobody else anything.
            log.exception("internal error while serving %r", connection)
            engine.fail(connection, ProtocolError("internal error of the broker", IMPLEMENTATION_ERROR), now)
        held_bytes = self._held_bytes + connection.withheld_bytes
        if self._weight or held_bytes > SLACK_BYTES or decoder.waiting > SLACK_BYTES:
            self.weigh()
        if self.paused is None and not self._closed:
            if connection.undecided is not None:
                self._pause(PauseReason.GATE)
                if connection.session is None:
                    links.knock(self)
            elif 0 <= since < len(engine.changes):
                # It makes work for a store that has more than it can do.
                links.stalled.add(self)
                self._pause(PauseReason.STORE)
            elif self._held_bytes > links.max_bytes:
                self._pause(PauseReason.STORE)
            elif engine.budget.full and engine.budget.used_bytes > used_bytes:
                links.pressed.add(self)
                self._wait_for_memory(connection)
            elif connection.withheld_bytes > links.max_bytes:  # it does not wait for them: ``let_go`` goes on
                self._wait_for_memory(connection)
            elif self._message_rate is not None or self._bytes_rate is not None:
                wait_s = self._spend(packets, len(data), now)
                if wait_s:
                    self._wait(wait_s)

    def eof_received(self) -> bool:
        """MQTT has no use for a half-closed connection. What is under way is still sent, as in ``close``."""
        if self.connection is not None:
            self._links.engine.disconnected(self.connection, self._links.clock())
            self._links.turn()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        links = self._links
        links.closed(self)
        links.addresses.leave(self._entered)
        links.waiting.discard(self)
        links.stalled.discard(self)
        links.pressed.discard(self)
        links.heavy.discard(self)
        links.engine.deadlines.set(self, None)
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self.connection is not None:
            why = "connection lost" if exc is None else f"connection lost: {exc}"
            links.engine.disconnected(self.connection, links.clock(), why)
            self.connection = None  # they refer to each other; freed at once, they cost the garbage collector nothing
            links.turn()

    def pause_writing(self) -> None:
        self._blocked = True
        self.full = True
        self.weigh()
        self._watch_blocked()

    def resume_writing(self) -> None:
        self._blocked = False
        self.weigh()
        self._links.engine.deadlines.set(self, None)
        self.go_on(PauseReason.OUTBOX)
        self._make_room()

    # not reading

    def go_on(self, reason: PauseReason) -> None:
        """Read again, if it was for ``reason`` that this client was not read from."""
        if self.paused is not reason:
            return
        self.paused = None
        if self.connection is not None:
            self.connection.pause(None, self._links.clock())
        if not self._closed:
            assert self._transport is not None
            self._transport.resume_reading()
            if self._early is not None:
                early, self._early = self._early, None
                if early:
                    self.data_received(early)

    def _pause(self, reason: PauseReason) -> None:
        assert self._transport is not None
        self._note(reason)
        self._transport.pause_reading()

    def _note(self, reason: PauseReason) -> None:
        self.paused = reason
        if self.connection is not None:
            self.connection.pause(reason, self._links.clock())

    @property
    def knocks(self) -> bool:
        """Whether the gate has yet to let this client in, which is not read from meanwhile."""
        return self.paused is PauseReason.GATE and self.connection is not None and self.connection.session is None

    @property
    def descriptor(self) -> int:
        """The socket's; negative if it is closed."""
        sock = None if self._transport is None else self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def _wait_for_memory(self, connection: Connection) -> None:
        self._pause(PauseReason.MEMORY)
        if connection.owes_acknowledgements:  # which may be what everybody waits for
            self._links.loop.call_later(GLANCE_S, self.go_on, PauseReason.MEMORY)

    def _wait(self, wait_s: float) -> None:
        self._pause(PauseReason.RATE)
        self._links.loop.call_later(wait_s, self.go_on, PauseReason.RATE)

    def _spend(self, packets: list[Packet], size_bytes: int, now: float) -> float:
        """The seconds to wait for what was read to be within the client's rates."""
        wait_s = self._bytes_rate.spend(size_bytes, now) if self._bytes_rate is not None else 0.0
        if self._message_rate is not None:
            kinds = (
                packet.count if isinstance(packet, PublishRun) else isinstance(packet, Publish) for packet in packets
            )
            wait_s = max(wait_s, self._message_rate.spend(sum(kinds), now))
        return wait_s

    # not being read by the client

    def _watch_blocked(self) -> None:
        links = self._links
        if links.max_blocked_s:
            self._taken = self._gone()
            links.engine.deadlines.set(self, links.clock() + links.max_blocked_s)

    def _gone(self) -> int:
        """Bytes that neither the transport nor our kernel, which takes megabytes for a slow client, has any more."""
        assert self._transport is not None
        return self._written - self._transport.get_write_buffer_size() - kernel_bytes(self._transport)

    def on_due(self, now: float) -> None:
        """The client has not emptied its outbox for long; if it took nothing at all it is cut off."""
        if self._closed or not self._blocked or self.connection is None:
            return
        if self._gone() > self._taken:
            self._watch_blocked()
        else:
            text = f"took nothing of what was sent to it for {self._links.max_blocked_s:g} s"
            self._links.engine.fail(self.connection, ProtocolError(text, ReasonCode.QUOTA_EXCEEDED), now)

    def weigh(self) -> None:
        """Tell the memory budget how much waits here, both ways, if that has changed by enough to matter."""
        transport, connection = self._transport, self.connection
        if transport is None or connection is None:
            return
        held_bytes = self._held_bytes + connection.withheld_bytes
        size_bytes = held_bytes + self._decoder.waiting + transport.get_write_buffer_size()
        if size_bytes <= SLACK_BYTES:
            if self._weight:
                self._weight = 0
                self._links.heavy.discard(self)
                connection.weigh(0)
        elif abs(size_bytes - self._weight) > SLACK_BYTES:
            self._weight = size_bytes
            self._links.heavy.add(self)
            connection.weigh(size_bytes)

    # what the engine calls

    def send(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size = size = self._size + len(data)
        links = self._links
        if not self._dirty:
            self._dirty = True
            links.dirty.append(self)
            if not links.turn_ends:
                links.turn()
        if size >= self._turn_bytes or size >= links.turn_bytes:
            self.full = True

    def shorten(self) -> None:
        transport = self._transport
        if transport is None or self._turn_bytes == SHORT_BYTES:
            return
        self._turn_bytes = SHORT_BYTES
        transport.set_write_buffer_limits(high=SHORT_BYTES)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SHORT_BYTES)

    @property
    def waits(self) -> bool:
        return self._held is not None

    @property
    def _answer_bytes(self) -> int:
        """What waits for the store, as it will leave; ``_held_bytes`` is what it takes in memory."""
        return self._held_bytes - ANSWER_OVERHEAD_BYTES * len(self._held or ())

    def send_after(self, data: bytes, batch: int, publishes: int = 0) -> None:
        if self._held is None:
            if batch <= self._links.durable:
                self.send(data)
                return
            self._held = deque()
            self._links.waiting.add(self)
        self._held.append((batch, data, publishes))
        self._held_bytes += len(data) + ANSWER_OVERHEAD_BYTES
        self.held += publishes
        if self._answer_bytes >= self._turn_bytes:
            self.full = True  # all of it may leave in one turn

    def hold(self, batch: int) -> None:
        if batch > self._links.durable:
            self._hold = batch
            self.full = True
            self._links.waiting.add(self)

    def release(self, batch: int) -> None:
        held = self._held
        if held is not None:
            while held and held[0][0] <= batch:
                _, data, publishes = held.popleft()
                self._held_bytes -= len(data) + ANSWER_OVERHEAD_BYTES
                self.held -= publishes
                self.send(data)
            if not held:
                self._held = None
            if self._weight:
                self.weigh()
            links = self._links
            if self.paused is PauseReason.STORE and self not in links.stalled and self._held_bytes <= links.max_bytes:
                self.go_on(PauseReason.STORE)
        if self._hold and self._hold <= batch:
            self._hold = 0
            self._make_room()
        if self._held is None and not self._hold:
            self._links.waiting.discard(self)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        transport = self._transport
        assert transport is not None
        self._held = None
        budget = self._links.engine.budget
        if self._blocked and budget.used_bytes > budget.high_bytes:
            transport.abort()  # the memory is needed now, and who does not read does not see the goodbye
            return
        self.flush()
        transport.close()
        # A peer that does not read would keep the connection, and what is buffered for it, for ever.
        self._linger = self._links.loop.call_later(LINGER_S, transport.abort)

    def abort(self) -> None:
        """Close without regard to what is under way."""
        assert self._transport is not None
        self._transport.abort()

    def flush(self) -> None:
        """Hand what was appended to the transport; then, if it takes more, let the queue fill the outbox again."""
        self._dirty = False
        pieces = self._pieces
        if not pieces:
            return
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        self._size = 0
        links = self._links
        transport = self._transport
        assert transport is not None
        if transport.is_closing():
            return  # uvloop raises on a write between the loss of a connection and ``connection_lost``
        links.engine.stats.bytes_sent += len(data)
        if links.tap is not None and self.connection is not None:
            links.tap.sent(self.connection, data)
        self._written += len(data)
        left_bytes = transport.get_write_buffer_size()
        transport.write(data)
        if self._closed:
            return
        if left_bytes or self._weight:
            self.weigh()
        if self._blocked:
            if self.paused is None and transport.get_write_buffer_size() > links.max_bytes:
                self._pause(PauseReason.OUTBOX)
        elif self.full:
            self._make_room()

    def _make_room(self) -> None:
        if self._blocked or self._hold or self._closed:
            return
        if max(self._answer_bytes, self._size) >= min(self._turn_bytes, self._links.turn_bytes):
            return
        self.full = False
        if self.connection is not None:
            self._links.engine.writable(self.connection, self._links.clock())
            self._links.turn()


def kernel_bytes(transport: asyncio.BaseTransport) -> int:
    """Bytes that the kernel holds for the other end; 0 where it does not tell."""
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform == "win32":
        return 0
    try:
        return int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def peer_name(transport: asyncio.BaseTransport) -> str:
    """The other end of a connection, for logs."""
    return name_of(transport.get_extra_info("peername"))
