"""The load generator's connections: non-blocking sockets around one epoll.

What one read brought is recognised, counted, checked and acknowledged run by run (see ``load_wire``), and one write
answers it. It never reconnects, pings or keeps time by itself: the scenarios do what is needed of that.
"""

import errno
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from tidings.broker.codec.decode import Decoder
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Connack, Connect, Subscribe, SubscribeFilter
from tidings.broker.codec.properties import Properties

from .load_plan import Counts, LoadError, Target
from .load_transports import Socket, wrap
from .load_wire import frame_bounds, run_length

if TYPE_CHECKING:
    from .load_flow import Flow

_READ_BYTES: Final = 256 * 1024
_SERVED: Final = 16  # sockets, then what must not wait has its turn
_READABLE: Final = select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR
_WRITABLE: Final = select.EPOLLOUT
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, which leaves no TIME_WAIT behind
_NEVER: Final = 0xFFFFFFFF  # session expiry: 5.0 section 3.1.2.11.2

# How equal frames begin, how long they are, and who takes a run of them and says what to answer.
Run = tuple[bytes, int, Callable[[bytearray, int, int], bytes | bytearray]]


class Connection:
    """One client. ``runs`` maps a first byte to the run of frames that it begins; other frames come one by one."""

    __slots__ = (
        "_out",
        "_rest",
        "_watched",
        "client_id",
        "connect_properties",
        "fd",
        "generator",
        "on_open",
        "opened_ns",
        "persistent",
        "read_bytes",
        "receive_bytes",
        "runs",
        "session_present",
        "sock",
        "started_ns",
        "subscribe_properties",
    )

    def __init__(self, generator: "Generator", client_id: str, persistent: bool = False) -> None:
        self.generator = generator
        self.client_id = client_id
        self.persistent = persistent
        self.connect_properties: Properties = {}  # these two for 5.0 only
        self.subscribe_properties: Properties = {}
        self.receive_bytes = 0  # size of the kernel's receive buffer; 0 = as it likes
        self.read_bytes = 0  # what one read may bring, with what is left of the last one; 0 = all there is room for
        self.runs: dict[int, Run] = {}
        self.started_ns = self.opened_ns = 0
        self.session_present = False
        self.on_open: Callable[[Connection], None] | None = None
        self.fd = -1
        self._out = bytearray()
        self._rest = b""
        self._watched = 0

    def filters(self) -> Sequence[SubscribeFilter]:
        """What it subscribes to when it opens; it counts as open once that is granted."""
        return ()

    def open(self) -> None:
        """Start to connect; ``on_open`` is called when it is done."""
        generator = self.generator
        self.started_ns = time.monotonic_ns()
        self.sock = generator.dial(self.receive_bytes)
        self.fd = self.sock.fileno()
        self._rest = b""
        properties = self.connect_properties.copy()
        if self.persistent and generator.version >= 5:
            properties["session_expiry_interval"] = _NEVER
        connect = Connect(self.client_id, generator.version, not self.persistent, keep_alive=0, properties=properties)
        self._out = bytearray(encode(connect, generator.version))
        self._watched = _READABLE | _WRITABLE
        generator.add(self, self._watched)

    def close(self) -> None:
        """Close without a word."""
        if self.fd >= 0:
            self.generator.remove(self)
            self.sock.close()
            self.fd = -1

    def reset(self) -> None:
        """Vanish like a client whose network fails."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def freeze(self) -> None:
        """Stop reading."""
        self._watch(0)

    def thaw(self) -> None:
        """Read again."""
        self._watch(_READABLE | _WRITABLE if self._out else _READABLE)

    def send(self, data: bytes | bytearray | memoryview) -> bool:
        """Write now what the socket takes and the rest when it can; false if there is a rest."""
        if self._out:
            self._out += data
            return False
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self.lost(str(error))
            return False
        if sent == len(data):
            return True
        self._out += memoryview(data)[sent:]
        self._watch(_READABLE | _WRITABLE)
        return False

    def writable(self) -> None:
        """Everything has been written."""

    def lost(self, why: str) -> None:
        """The broker, or the network, has closed the connection."""
        self.generator.fail(f"{self.client_id}: connection to {self.generator.target} lost: {why}")
        self.close()

    def frame(self, data: bytes, body_at: int) -> bytes:
        """One frame that is in no run, and what to answer. ``data[body_at:]`` is what follows the remaining length."""
        kind, version = data[0] >> 4, self.generator.version
        if kind == 2:
            packets = Decoder(version=version, side="client").feed(data)
            if not packets or not isinstance(packets[0], Connack) or packets[0].reason:
                self.generator.fail(f"{self.client_id}: CONNACK {data[body_at:].hex()}")
                self.close()
                return b""
            self.granted(packets[0])
            filters = list(self.filters())
            if filters and not self.session_present:
                return encode(Subscribe(1, filters, self.subscribe_properties), version)
            self._opened()
        elif kind == 9:
            code = max(data[-len(self.filters()) :])
            if code >= 0x80:
                self.generator.fail(f"{self.client_id}: SUBACK with code {code:#x}")
            self._opened()
        elif kind == 14:
            self.generator.fail(f"{self.client_id}: DISCONNECT {data[body_at:].hex() or '00'}")
        return b""

    def granted(self, connack: Connack) -> None:
        """The broker lets it in, on these terms."""
        self.session_present = connack.session_present

    def read(self) -> None:
        """Take what the socket has, run by run, and answer it with one write."""
        generator, rest = self.generator, self._rest
        data = generator.buffer
        kept = len(rest)
        if kept:
            data[:kept] = rest
        room = generator.room[kept:] if kept else generator.room
        if self.read_bytes:
            room = room[: max(1, self.read_bytes - kept)]
        try:
            got = self.sock.recv_into(room)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(str(error))
            return
        if not got:
            self.lost("end of stream")
            return
        start, end, runs = 0, kept + got, self.runs
        answer: bytes | bytearray = b""
        while start < end:
            run = runs.get(data[start])
            if run is not None:
                prefix, stride, handler = run
                found = run_length(data, start, end, prefix, stride)
                if found:
                    answer += handler(data, start, found)
                    start += found * stride
                    continue
            body_at, size = frame_bounds(data, start, end)
            if not size or start + size > end:
                break
            answer += self.frame(bytes(data[start : start + size]), body_at)
            start += size
        if start < end:
            self._rest = bytes(data[start:end])
        elif kept:
            self._rest = b""
        if answer and self.fd >= 0:
            self.send(answer)

    def flush(self) -> None:
        """Write what could not be written at once."""
        try:
            sent = self.sock.send(self._out) if self._out else 0
        except BlockingIOError:
            return
        except OSError as error:
            self.lost(str(error))
            return
        del self._out[:sent]
        if not self._out:
            self._watch(_READABLE)
            self.writable()

    def _opened(self) -> None:
        self.opened_ns = time.monotonic_ns()
        if self.on_open is not None:
            self.on_open(self)

    def _watch(self, events: int) -> None:
        if events != self._watched:
            self._watched = events
            self.generator.epoll.modify(self.fd, events)


class Generator:
    """The sockets, the loop over them, and what they measure. ``awake``: flows in which somebody may send."""

    def __init__(self, target: Target, version: int, every_latency: bool = False, frame_bytes: int = 0) -> None:
        self.target = target
        self.version = version
        self.every_latency = every_latency
        self.latency_us: Counts = {}
        self.epoll = select.epoll()
        self.turn_max_ns = 0
        self.awake: set[Flow] = set()
        size = max(_READ_BYTES, 2 * frame_bytes)
        self.buffer = bytearray(size + frame_bytes)  # Tally.take_run may look a frame beyond the last stamp
        self.room = memoryview(self.buffer)[:size]
        self._connections: dict[int, Connection] = {}
        self._trouble: list[str] = []

    def dial(self, receive_bytes: int) -> Socket:
        """A non-blocking socket on its way to the broker; with TLS or WebSocket, one that has arrived."""
        target = self.target
        address: str | tuple[str, int]
        if target.path:
            sock, address = socket.socket(socket.AF_UNIX), target.path
        else:
            family = socket.AF_INET6 if ":" in target.host else socket.AF_INET
            sock, address = socket.socket(family), (target.host, target.port)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if target.transport == "tcp":
            sock.setblocking(False)
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            raise LoadError(f"cannot connect to {target}: {errno.errorcode.get(code, code)}")
        return wrap(sock, target)

    def add(self, connection: Connection, events: int) -> None:
        """Watch its socket."""
        self._connections[connection.fd] = connection
        self.epoll.register(connection.fd, events)

    def remove(self, connection: Connection) -> None:
        """Watch it no more."""
        self.epoll.unregister(connection.fd)
        del self._connections[connection.fd]

    def fail(self, why: str) -> None:
        """Something that makes the run worthless."""
        self._trouble.append(why)

    def check(self) -> None:
        """Raise LoadError if anything has failed."""
        if self._trouble:
            more = f" (and {len(self._trouble) - 1} more)" if len(self._trouble) > 1 else ""
            raise LoadError(self._trouble[0] + more)

    def turn(self, timeout_s: float, between: Callable[[], float] | None = None) -> None:
        """Wait for sockets, and serve them once; ``between``: what must not wait until all are served."""
        connections = self._connections
        if 0 < timeout_s < 0.002:
            # epoll rounds up to milliseconds; select takes microseconds, and an epoll can itself be waited for.
            select.select((self.epoll,), (), (), timeout_s)
            timeout_s = 0
        events = self.epoll.poll(timeout_s)
        started = time.monotonic_ns()
        for i, (fd, what) in enumerate(events):
            if between is not None and i % _SERVED == 0:
                between()
            connection = connections.get(fd)
            if connection is None:
                continue
            if what & _READABLE:
                connection.read()
            if what & _WRITABLE and connection.fd >= 0:
                connection.flush()
        self.turn_max_ns = max(self.turn_max_ns, time.monotonic_ns() - started)

    def open_all(self, connections: Iterable[Connection], at_once: int = 100, within_s: float = 60.0) -> None:
        """Open every one, ``at_once`` at a time, and wait until all are subscribed."""
        waiting = deque(connections)
        opened, wanted = 0, len(waiting)

        def start(connection: Connection) -> None:
            connection.on_open = on_open
            connection.open()

        def on_open(_: Connection) -> None:
            nonlocal opened
            opened += 1
            if waiting:
                start(waiting.popleft())

        for _ in range(min(at_once, wanted)):
            start(waiting.popleft())
        deadline = time.monotonic() + within_s
        while opened < wanted:
            self.turn(1.0)
            self.check()
            if time.monotonic() > deadline:
                raise LoadError(f"only {opened} of {wanted} connections were accepted within {within_s:.0f} s")

    def close_all(self) -> None:
        """Close every connection and the epoll."""
        for connection in list(self._connections.values()):
            connection.close()
        self.epoll.close()
