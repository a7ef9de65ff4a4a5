"""A broker's engine, its links and clients of every speed, without sockets and in virtual time.

The event loop is asyncio's; its time goes on by itself to what is due next whenever nothing is left to do. A ``Socket``
stands for a connection with its two kernel buffers, which have bounds: who is not read from cannot write for ever.
"""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from tidings.broker import Config
from tidings.broker.codec import Publish, SubscribeFilter
from tidings.broker.codec.packets import PublishRun
from tidings.broker.core.connection import Connection
from tidings.broker.core.engine import Engine
from tidings.broker.core.window import SLICE_BYTES, Entry, Window
from tidings.broker.policy import PROPERTY
from tidings.broker.store.memory import MemoryStore
from tidings.broker.transport.link import Link
from tidings.broker.transport.links import TURN, Links
from tidings.devices.client import Client
from tidings.devices.clock import Timer
from tidings.devices.ports import ClientOptions

KERNEL_BYTES: Final = 2_000  # each way
READ_BYTES: Final = 600  # a few messages: the memory budget has to be large against one read
TICK_S: Final = 0.02
EVERYTHING: Final = 1 << 30  # what a fast client reads in one tick
SESSION_S: Final = 100_000
PAYLOAD: Final = b"." * 180


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.seconds = 0.0

    def time(self) -> float:
        return self.seconds


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "nothing will ever happen again"
        self._loop.seconds += max(0.0, timeout)
        return super().select(0)


class LoopClock:
    """The time of the loop, for clients."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> float:
        return self._loop.time()

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(when, callback, args)
        self._loop.call_at(when, self._run, timer)
        return timer

    def _run(self, timer: Timer) -> None:
        if timer.callback is not None:
            timer.callback(*timer.args)


class Socket(asyncio.Transport):
    """One connection: the broker's transport, and through ``ClientEnd`` the client's wire."""

    def __init__(self, world: "World", client: Client) -> None:
        super().__init__()
        self.world = world
        self.client = client
        self.up = bytearray()  # from the client, in its own memory and in the kernel
        self.buffer = bytearray()  # in the broker, for the client
        self.down = bytearray()  # in the kernel, for the client
        self._high_bytes = 65_536
        self._blocked = False
        self._reading = True
        self._ending = False
        self._ended = False
        self._hung_up = False  # by the client
        self.link = Link(world.links, client.options.client_id)
        self.link.connection_made(self)

    # for the broker

    def write(self, data: Any) -> None:
        assert not self._ending, "written after close"
        self.buffer += data
        self._fill()
        if len(self.buffer) > self._high_bytes and not self._blocked:
            self._blocked = True
            self.link.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self._high_bytes = high

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._ending

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True

    def close(self) -> None:
        self._ending = True
        self._reading = False

    def abort(self) -> None:
        self.buffer.clear()
        self.close()
        self._end()

    def _fill(self) -> None:
        """What fits into the kernel goes there."""
        room = KERNEL_BYTES - len(self.down)
        if self.buffer and room > 0:
            self.down += self.buffer[:room]
            del self.buffer[:room]
        if self._blocked and len(self.buffer) <= self._high_bytes // 4:
            self._blocked = False
            self.link.resume_writing()

    def _end(self) -> None:
        if not self._ended:
            self._ended = self._ending = True
            self.world.sockets.remove(self)
            self.world.loop.call_soon(self.link.connection_lost, None)
            if not self._hung_up:
                self.world.loop.call_soon(self.client.link_down, "lost")

    def hang_up(self) -> None:
        """The client has closed it."""
        self._hung_up = True
        self.abort()

    # for the world

    def carry(self, down_bytes: int) -> None:
        """One moment: the broker reads if it wants to, the client up to ``down_bytes``."""
        if self.up and self._reading:
            data = bytes(self.up[:READ_BYTES])
            del self.up[:READ_BYTES]
            self.link.data_received(data)
        while down_bytes and self.down and not self._hung_up:
            data = bytes(self.down[:down_bytes])
            del self.down[: len(data)]
            down_bytes -= len(data)
            self.client.feed(data)
            if not self._ended:
                self._fill()
        if self._hung_up:
            return
        self.client.link_writable(len(self.up) < KERNEL_BYTES)
        if self._ending and not self._ended and not self.buffer and not self.down:
            self._end()


class ClientEnd:
    """The client's wire."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    def write(self, data: bytes) -> None:
        self._socket.up += data

    def close(self) -> None:
        self._socket.hang_up()

    def abort(self) -> None:
        self._socket.hang_up()

    def pause_reading(self) -> None:
        """The world says how much is read."""

    def resume_reading(self) -> None:
        """The same."""


class Person:
    """A client that may publish, subscribe, or both. ``speed_bytes``: what it reads in one tick."""

    def __init__(self, world: "World", name: str, filter: str = "", policy: str = "", version: int = 5) -> None:
        self.world = world
        self.name = name
        self.filter = filter
        self.policy = policy
        self.speed_bytes = EVERYTHING
        self.sent: Counter[str] = Counter()  # topic → the number of its last message
        self.acknowledged: set[tuple[str, int]] = set()
        self.received: Counter[tuple[str, int]] = Counter()
        self.newest: Counter[tuple[str, int]] = Counter()  # topic and QoS → the highest number that came
        self.disorder: list[str] = []
        self.ready = not filter
        self.oldest_s = 0.0  # how long the message had been in the broker that came latest
        options = ClientOptions(name, version, SESSION_S, clean_first=True, keep_alive_s=0, receive_maximum=20)
        options.backoff_first_s, options.backoff_max_s, options.queue_count = 0.1, 0.5, 40
        self.client = Client(options, self, world.clock, world.dial, jitter_key=world.seed)

    def publish(self, topic: str, qos: int) -> None:
        if self.client.accepts(qos):
            number = self.sent[topic] + 1
            if self.client.publish(topic, b"%06d" % number + PAYLOAD, qos, token=(topic, number)):
                self.sent[topic] = number

    @property
    def finished(self) -> bool:
        """Whether the broker has taken everything that it sent."""
        return self.client.online and not self.client.unacknowledged

    def on_online(self, session_present: bool) -> None:
        if self.filter and not session_present:
            asked = {"user_property": [(PROPERTY, self.policy)]} if self.policy else {}
            self.client.subscribe([SubscribeFilter(self.filter, 2)], asked)  # type: ignore[arg-type]

    def on_offline(self, reason: str) -> None:
        """It comes back by itself."""

    def on_gone(self, reason: str) -> None:
        raise AssertionError(f"{self.name}: {reason}")

    def on_subscribed(self, granted: Sequence[int]) -> None:
        assert list(granted) == [2], granted
        self.ready = True

    def on_message(self, message: Publish) -> bool:
        number = int(message.payload[:6])
        key = message.topic, message.qos
        repeated = message.qos == 1 and self.received[message.topic, number]  # by a publisher that was cut off
        if not message.dup and number <= self.newest[key] and not repeated:
            self.disorder.append(f"{message.topic} {number} after {self.newest[key]}")
        self.newest[key] = max(self.newest[key], number)
        self.received[message.topic, number] += 1
        self.oldest_s = max(self.oldest_s, self.world.loop.time() - self.world.taken_at[message.topic, number])
        return True

    def on_written(self, token: Any, again: bool) -> None:
        """Nothing to note."""

    def on_acknowledged(self, token: Any, reason: int) -> None:
        assert reason < 0x80, f"{self.name} was told {reason:#x}"
        self.acknowledged.add(token)


class World:
    """Everything. It also is the broker's tap, to know when each message was taken."""

    def __init__(self, seed: int, config: Config, *, durable: bool) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.config = config
        self.loop = cast(VirtualLoop, asyncio.get_running_loop())
        self.clock = LoopClock(self.loop)
        self.engine = Engine(config, 0.0, lambda: "unused", keeps=durable)
        self.links = Links(self.engine, config, self.loop.time, self._end_of_turn)
        self.links.tap = self
        self.store = MemoryStore() if durable else None
        if self.store is not None:
            self.store.start(self)
        self.sockets: list[Socket] = []
        self.taken_at: dict[tuple[str, int], float] = {}
        self.most_bytes = 0  # that waited in the broker
        self._tick_at: float | None = None
        self._failed: BaseException | None = None
        self.loop.set_exception_handler(self._fail)

    def _fail(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._failed = self._failed or context.get("exception") or AssertionError(context["message"])

    def dial(self, client: Client) -> None:
        socket = Socket(self, client)
        self.sockets.append(socket)
        self.loop.call_soon(client.link_up, ClientEnd(socket))

    async def turn(self, people: Sequence[Person]) -> None:
        """One tick for everybody."""
        speeds = {person.client: person.speed_bytes for person in people}
        for socket in self.random.sample(self.sockets, len(self.sockets)):
            if socket in self.sockets:
                socket.carry(speeds[socket.client])
        if self.store is not None and self.random.random() < 0.5:
            self.store.commit()
        await asyncio.sleep(TICK_S)
        if self._failed is not None:
            raise self._failed

    # what ``Broker`` does at the end of a turn, and in time

    def _end_of_turn(self) -> None:
        engine = self.engine
        if engine.budget.attention:
            engine.relieve(self.loop.time())
        if self.links.pressed and not engine.budget.full:
            self.links.relieved()
        if engine.changes:
            batch, changes = engine.take_changes()
            if self.store is None:
                self.durable(batch)
            else:
                self.store.write(batch, changes)
        due = engine.next_deadline()
        if due is not None and (self._tick_at is None or due < self._tick_at):
            self._tick_at = due
            self.loop.call_at(due, self._tick, due)
        self._check()

    def _tick(self, due: float) -> None:
        if due == self._tick_at:
            self._tick_at = None
            self.engine.tick(self.loop.time())
            self._end_of_turn()

    def durable(self, batch: int) -> None:
        self.links.durable = batch
        self.engine.durable(batch, list(self.links.waiting))
        self.links.turn()

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        self.engine.refill(window, entries, self.loop.time())
        self.links.turn()

    def store_trouble(self, trouble: str) -> None:
        raise AssertionError(trouble)

    # the tap

    def received(self, connection: Connection, packets: Sequence[Any]) -> None:
        for packet in packets:
            if isinstance(packet, PublishRun | Publish):
                payloads = packet.payloads() if isinstance(packet, PublishRun) else [packet.payload]
                for payload in payloads:
                    self.taken_at.setdefault((packet.topic, int(payload[:6])), self.loop.time())

    def sent(self, connection: Connection, data: bytes) -> None:
        """Nothing to note."""

    # what holds at all times

    def _check(self) -> None:
        config, budget = self.config, self.engine.budget
        self.most_bytes = max(self.most_bytes, budget.used_bytes)
        assert budget.used_bytes <= budget.limit_bytes, "over the memory budget"
        for session in self.engine.sessions.values():
            window = session.window
            if window.spill is None or not window.spill.asked:  # what only the store has is read before it is dropped
                assert window.queued <= config.max_queued_messages
            assert window.queued_bytes <= config.max_queued_bytes
            assert len(window.inflight) + len(window.released) <= config.max_inflight
            assert window.inflight_bytes <= config.max_inflight_bytes
        for socket in self.sockets:
            under_way = (TURN + 1) * config.outbox_high_bytes + SLICE_BYTES + config.outbox_max_bytes
            assert len(socket.buffer) <= under_way, "an outbox over its bounds"
