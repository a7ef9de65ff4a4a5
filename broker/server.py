"""``Broker``: wires engine, store, listeners and one timer together, and is what a program embeds.

    async with Broker(Config(listeners=["tcp://127.0.0.1:0"])) as broker:
        async with broker.subscribe("dev/+/temp") as messages:
            await broker.publish("dev/7/temp", b"21.5", qos=1)
            async for message in messages:
                print(message.topic, message.payload)

One broker belongs to one event loop. ``BrokerThread`` runs one in a thread of its own for synchronous programs.
"""

import asyncio
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from secrets import token_hex
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .access.checks import Threads
from .access.gate import AccessGate
from .access.terms import Terms
from .codec.packets import NO_PROPERTIES, PacketType
from .codec.properties import Properties, encode_properties
from .codec.reasons import ReasonCode
from .codec.wire import MAX_STRING_BYTES
from .config import Config
from .core.engine import Engine
from .core.levels import Levels
from .core.message import Message, forwarded
from .core.ports import Answer, Gate, Identity, Store
from .core.queue import CHOSEN
from .core.session import Session
from .core.snapshot import SessionNumbers, Snapshot, numbers
from .core.topics import Grant, check_filter, check_topic, reserved
from .core.window import Entry, Window
from .errors import BrokerError, ConfigError, ProtocolError
from .policy import Overflow, check_shared, parse_policy
from .reload import check_changes, review
from .store.sqlite import SqliteStore
from .transport.address import Address
from .transport.endpoint import Endpoint, check_safe, replacements
from .transport.handshakes import Handshakes
from .transport.links import Links
from .transport.stream import Server, listen, stop_listening

if TYPE_CHECKING:
    from .gates import Gates
    from .plugins.host import Host

log: Final = logging.getLogger("tidings.broker")

TURN_EVERY: Final = 64  # messages published or taken in this process, then the event loop gets its turn


class Broker:
    """An MQTT broker in this process. ``async with`` starts and stops it; ``start`` and ``stop`` do the same by hand.

    ``config``: see ``tidings.broker.Config``; without one it listens on 127.0.0.1:1883 and keeps everything in memory.
    ``store``: where sessions, messages and retained messages are kept; None = in ``config.data_dir`` if it names one,
    else in memory, for the life of the process. ``gate``: who decides who is let in and may do what; None = everybody
    may do everything. Raises ConfigError for a listener that is wrong or unsafe, BrokerError
    if it cannot be opened, StoreError if the data directory cannot be used.
    """

    def __init__(self, config: Config | None = None, *, store: Store | None = None, gate: Gate | None = None) -> None:
        self.config = config or Config()
        self._store = store
        self._plugins = _host(self.config)
        if gate is not None and self._plugins is not None:
            raise ConfigError("a gate of the program and plugins: use one of them")
        self._gate = gate
        self._terms = Terms.read(self.config)
        if gate is not None and self._terms.decide:
            raise ConfigError("a gate of the program and password_file, access_file or bans: use one of them")
        self._access: AccessGate | None = None
        self._gates: Gates | None = None
        self._threads: Threads | None = None
        self._endpoints = [Endpoint(listener) for listener in self.config.listeners]
        check_safe(self._endpoints, self.config, gate is not None or self._identify(self._terms))
        self._engine: Engine | None = None
        self._links: Links | None = None
        self._handshakes: Handshakes | None = None
        self._servers: list[Server] = []
        self._bound: list[Address] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._local: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._clock = _engine_clock()
        self._published = 0
        self._stopping = False
        self._store_closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Accept connections; returns once every listener does."""
        if self._engine is not None:
            raise BrokerError("this broker was started before; make a new one")
        if self._store is None and self.config.data_dir is not None and Levels(self.config).durable:
            self._store = SqliteStore(self.config.data_dir, self.config)
        store = self._store
        now = self._clock()
        gate = self._make_gate()
        try:
            if store is not None:
                now = store.last_now(now)
                self._clock = _engine_clock(now)
            engine = Engine(
                self._engine_config(),
                now,
                lambda: f"tidings-{token_hex(8)}",
                version=_version(),
                keeps=store is not None,
                gate=gate,
            )
            if store is not None:
                engine.restore(store.load(), store.load_retained(), now)
                store.start(self)
                engine.tick(now)
        except BaseException:
            if store is not None:
                store.close()
            raise
        self._engine = engine
        self._links = Links(engine, self.config, self._clock, self._after_turn)
        try:
            if self._plugins is not None:
                self._links.tap = await self._plugins.start(
                    engine, self._clock, self._links.turn, self._gates.finish if self._gates is not None else None
                )
            self._handshakes = Handshakes(self.config.max_handshakes, self.config.connect_timeout_s, engine.stats)
            for endpoint in self._endpoints:
                server, bound = await listen(endpoint, self._links, self._handshakes)
                self._servers.append(server)
                self._bound.append(bound)
            if self._plugins is not None:
                await self._plugins.started()
        except BaseException:
            await self.stop()
            raise
        self._links.loop.call_soon(self._links.turn)  # what the program does before it lets go is no turn of ours

    async def stop(self) -> None:
        """Stop accepting, tell clients (DISCONNECT 0x8B), let them take what is under way, close everything."""
        if self._plugins is not None and not self._stopping:
            await self._plugins.stopping()
        self._stopping = True
        for server, address in zip(self._servers, self._bound, strict=False):
            stop_listening(server, address)
        if self._handshakes is not None:
            self._handshakes.stop()
        if self._engine is None or self._links is None or self._store_closed:
            return
        self._links.accepting = False
        self._engine.stop(self._clock())
        for subscription in list(self._local):
            subscription.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.stop_timeout_s):
                await self._links.all_closed()
        for link in list(self._links.open):
            link.abort()
        for server in self._servers:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await server.wait_closed()
        self._servers.clear()
        if self._plugins is not None:
            await self._plugins.stop()
        self._after_turn()
        self._store_closed = True
        try:
            if self._store is not None:
                await asyncio.to_thread(self._store.close)
        finally:
            if self._threads is not None:
                self._threads.close()
            self._release_waiters()

    def _release_waiters(self) -> None:
        """The store is closed: what ``publish`` still waits for was written then, or never will be."""
        for _, waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(BrokerError("the broker stopped before it could say that the message is kept"))
        self._waiters.clear()

    def reload(self, config: Config | None = None) -> str:
        """Read password file, access file, certificates, keys and authorities again; take over limits of ``config``.

        None = the configuration stays. Connections stay, but for those whose user or client id is not welcome any
        more. Returns what was read, in words. Raises ConfigError that says what is wrong, and then nothing has changed.
        """
        engine, links = self._running()
        new = config or self.config
        check_changes(self.config, new)
        terms = Terms.read(new)
        endpoints = replacements(self._endpoints, new.listeners)
        check_safe(endpoints, new, self._gate is not None or self._identify(terms))
        if terms.decide and self._access is None:
            raise ConfigError("password_file, access_file and bans need a broker that was started with any; restart it")
        for old, endpoint in zip(self._endpoints, endpoints, strict=True):
            old.become(endpoint)
        self.config = new
        engine.config = self._engine_config()
        engine.budget.soft_limit.use(new)
        self._terms = terms
        links.use(new)
        assert self._handshakes is not None
        self._handshakes.use(new.max_handshakes, new.connect_timeout_s)
        words = [f"certificates of {sum(endpoint.tls is not None for endpoint in endpoints)} listeners"]
        if self._plugins is not None:
            engine.forget()
        if self._access is not None:
            self._access.use(terms)
            cut_off = review(engine, self._access, self._clock())
            links.turn()
            words.append(f"{len(terms.users or ())} users, {len(terms.rules or ())} access lines")
            if cut_off:
                words.append(f"{cut_off} clients cut off")
        return ", ".join(words)

    # where it listens

    @property
    def urls(self) -> list[str]:
        """One URL per listener, with the port that was chosen for port 0."""
        return [str(address) for address in self._bound]

    @property
    def port(self) -> int:
        """The port of the first TCP listener; BrokerError if there is none."""
        for address in self._bound:
            if address.port:
                return address.port
        raise BrokerError("this broker has no TCP listener, or was not started")

    # in process

    async def publish(
        self,
        topic: str,
        payload: bytes | str = b"",
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None:
        """Publish from inside the process; at QoS 1 and 2 returns once the message is kept as durably as promised.

        ``properties``: MQTT 5 PUBLISH properties such as ``content_type`` or ``message_expiry_interval`` (seconds).
        Raises ValueError for a topic, QoS or property that MQTT does not have, BrokerError if there is no room to keep
        the message.
        """
        engine, links = self._running()
        now = self._clock()
        message = _message(topic, payload, qos, retain, properties or NO_PROPERTIES, now, self.config)
        since = len(engine.changes)
        reason = engine.publish([message], now)
        links.turn()
        if reason == ReasonCode.QUOTA_EXCEEDED:
            raise BrokerError(f"no room to retain a message for {topic!r}")
        if qos and len(engine.changes) > since:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((engine.batch, waiter))
            await waiter
        self._published += 1
        if self._published % TURN_EVERY == 0:
            await asyncio.sleep(0)  # a program that publishes in a loop must not keep the event loop for itself

    def subscribe(
        self,
        *filters: str,
        qos: int = 2,
        retained: bool = True,
        max_messages: int | None = None,
        policy: str = "all",
    ) -> "Subscription":
        """Receive messages inside the process from now on: ``async for message in broker.subscribe("dev/+/temp")``.

        The queue has the bounds of a network client's (``max_queued_messages``, ``max_queued_bytes``; ``max_messages``
        lowers the first); what does not fit is dropped and counted (``Subscription.dropped``). ``retained``: begin with
        the retained messages that match; many of them come as the queue has room, each before what is newer on its
        topic. ``policy``: ``latest`` or ``sample=RATE`` hand over the newest message of each topic instead of all,
        ``all; overflow=drop-newest`` drops the newest instead of the oldest. Filters may be shared
        (``$share/NAME/FILTER``). Raises ValueError for a filter or policy that there is not.
        """
        engine, links = self._running()
        if not filters:
            raise ValueError("subscribe needs at least one topic filter")
        for filter in filters:
            try:
                check_filter(filter, self.config.max_topic_levels)
            except ProtocolError as error:
                raise ValueError(str(error)) from None
            if "\0" in filter or len(filter.encode()) > MAX_STRING_BYTES:
                raise ValueError(f"topic filter {filter[:80]!r} must be 1 to 65535 bytes without NUL")
        chosen = parse_policy(policy)
        if chosen is not None and (chosen.tell_missed or chosen.overflow in (Overflow.DISCONNECT, Overflow.SPILL)):
            raise ValueError(f"policy {policy!r} is for network clients; see Subscription.dropped and .skipped instead")
        for filter in filters:
            check_shared(filter, chosen)
        config = self.config
        if qos not in (0, 1, 2):
            raise ValueError(f"qos is {qos!r}, not 0, 1 or 2")
        if max_messages is not None:
            if max_messages < 1:
                raise ValueError(f"max_messages is {max_messages}, not 1 or more")
            config = config.model_copy(update={"max_queued_messages": max_messages})
        subscription = Subscription(engine, links, self._clock, config, filters, Grant(qos, policy=chosen), retained)
        self._local.add(subscription)
        return subscription

    def snapshot(self) -> Snapshot:
        """The broker in numbers."""
        engine, _ = self._running()
        return engine.snapshot(self._clock())

    def session(self, client_id: str) -> SessionNumbers | None:
        """One session in numbers: what waits for it, and what did not reach it and why. None = there is no such one."""
        engine, _ = self._running()
        session = engine.sessions.get(client_id)
        return None if session is None else numbers(session)

    # inside

    def _identify(self, terms: Terms) -> bool:
        """Whether nobody is let in who has not proved to be somebody."""
        return terms.identify or (self._plugins is not None and self._plugins.authenticates)

    def _engine_config(self) -> Config:
        """The options, without ``$SYS`` where a plugin publishes it."""
        if self._plugins is not None and self._plugins.publishes_sys:
            return self.config.model_copy(update={"sys_interval_s": 0})
        return self.config

    def _make_gate(self) -> Gate | None:
        """Whoever decides: the program's gate, the files, the plugins, or the last two in a row."""
        plugins: Gate | None = self._plugins
        if not self._terms.decide:
            return self._gate if self._gate is not None else plugins
        loop = asyncio.get_running_loop()

        def decided(identity: Identity, answer: Answer) -> None:
            loop.call_soon(self._decided, identity, answer)

        self._threads = Threads(loop)
        self._access = AccessGate(
            self._terms, clock=self._clock, later=loop.call_later, submit=self._threads.submit, decided=decided
        )
        if self._plugins is None:
            return self._access
        from .gates import Gates

        self._gates = Gates(self._access, self._plugins)
        return self._gates

    def _decided(self, identity: Identity, answer: Answer) -> None:
        engine, links = self._parts()
        final = answer if self._gates is None else self._gates.then(identity, answer)
        if final is not None:
            engine.decided(identity, final, self._clock())
            links.turn()

    def _running(self) -> tuple[Engine, Links]:
        if self._engine is None or self._links is None or self._stopping:
            raise BrokerError("the broker is not running; use it inside 'async with Broker() as broker:'")
        return self._engine, self._links

    def _parts(self) -> tuple[Engine, Links]:
        """As ``_running``, and while it stops."""
        assert self._engine is not None
        assert self._links is not None
        return self._engine, self._links

    def _after_turn(self) -> None:
        engine, links = self._parts()
        if engine.budget.attention:
            engine.relieve(self._clock())
        if links.pressed and not engine.budget.full:
            links.relieved()
        if engine.changes and not self._store_closed:
            batch, changes = engine.take_changes()
            assert self._store is not None
            self._store.write(batch, changes)
            engine.stalled = engine.stalled or self._store.backlog_bytes > self.config.max_unwritten_bytes
        deadline = engine.next_deadline()
        if deadline is not None and not self._stopping and (self._timer is None or deadline < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, deadline - self._clock()), self._tick)

    def _tick(self) -> None:
        engine, links = self._parts()
        self._timer = None
        now = self._clock()
        links.turn(now)
        engine.tick(now)

    def durable(self, batch: int) -> None:
        """Everything up to ``batch`` is durable. The store calls it in the loop's thread."""
        engine, links = self._parts()
        links.durable = batch
        engine.durable(batch, tuple(links.waiting))
        assert self._store is not None
        if engine.stalled and self._store.backlog_bytes <= self.config.max_unwritten_bytes // 2:
            engine.stalled = False
            links.resume()
        while self._waiters and self._waiters[0][0] <= batch:
            waiter = self._waiters.popleft()[1]
            if not waiter.done():
                waiter.set_result(None)

    def refill(self, window: Window, entries: Sequence[Entry]) -> None:
        """The store read what was asked for. It calls this in the loop's thread."""
        engine, links = self._parts()
        engine.refill(window, entries, self._clock())
        links.turn()

    def store_trouble(self, trouble: str) -> None:
        """Nothing can be written for now, or ("") it can again. The store calls it in the loop's thread."""
        engine, _ = self._parts()
        engine.store_trouble = trouble
        if trouble:
            log.error("%s; publishers wait, or are told 0x97, until it can be written again", trouble)
        else:
            log.warning("the store can be written again; nothing that was acknowledged is lost")


class Subscription:
    """Messages for a subscriber in this process: an async iterator that ends when it or the broker is closed.

    Handing a message over acknowledges it. ``async with`` closes it; so does losing the last reference to it.
    """

    def __init__(
        self,
        engine: Engine,
        links: Links,
        clock: Callable[[], float],
        config: Config,
        filters: tuple[str, ...],
        wanted: Grant,
        retained: bool,
    ) -> None:
        self._clock = clock
        self._links = links
        self._ready = asyncio.Event()
        self._taken = 0
        self._closed = False
        window = self._window = Window("", config, engine.stats, engine.budget)
        window.wake = self._ready.set
        session = Session(engine, "", window)
        for filter in dict.fromkeys(filters):
            grant = engine.subscribe(session, filter, wanted)
            if retained and grant.share is None:
                engine.handout.add(session, filter, grant)
        self._hand_out()
        self._leave = partial(_unsubscribe, engine, links, session, clock)
        self._finalizer = weakref.finalize(self, _abandoned, links.loop, self._leave)
        self._finalizer.atexit = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self._taken += 1
        if self._taken % TURN_EVERY == 0:
            await asyncio.sleep(0)  # a subscriber that always finds a message must not keep the loop for itself
        while True:
            message = self._window.take(self._clock())
            if message is None and self._window.lookups:
                self._hand_out()
                message = self._window.take(self._clock())
            if message is not None:
                return message
            if self._closed:
                raise StopAsyncIteration
            self._ready.clear()
            if self._window.latest is not None:
                self._links.turn()  # a message may be due later
            await self._ready.wait()

    def _hand_out(self) -> None:
        """Retained messages that are to come: as many as this turn and the queue have room for."""
        if self._window.lookups:
            self._links.engine.handout.begin(self._clock())
            self._links.turn()

    @property
    def waiting(self) -> int:
        """Messages in the queue."""
        return self._window.waiting

    @property
    def dropped(self) -> int:
        """Messages that matched and were not handed over: there was no room, or they expired in the queue."""
        return sum(count for reason, count in (self._window.dropped or {}).items() if reason not in CHOSEN)

    @property
    def skipped(self) -> int:
        """Messages that were not handed over because a newer one of their topic came, as the policy says."""
        return sum(count for reason, count in (self._window.dropped or {}).items() if reason in CHOSEN)

    def close(self) -> None:
        """Unsubscribe. What is in the queue can still be taken; then the iteration ends."""
        self._closed = True
        if self._finalizer.detach() is not None:
            self._leave()
        self._ready.set()


def _abandoned(loop: asyncio.AbstractEventLoop, leave: Callable[[], None]) -> None:
    """Garbage is collected at any moment, in the middle of routing too, and in any thread: leave in the next turn."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(leave)


def _unsubscribe(engine: Engine, links: Links, session: Session, clock: Callable[[], float]) -> None:
    for filter in list(session.subscriptions):
        engine.unsubscribe(session, filter, clock())
    session.window.leave_budget()
    links.turn()


def _message(
    topic: str, payload: bytes | str, qos: int, retain: bool, properties: Properties, now: float, config: Config
) -> Message:
    if qos not in (0, 1, 2):
        raise ValueError(f"qos is {qos!r}, not 0, 1 or 2")
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic.encode()) > MAX_STRING_BYTES:
        raise ValueError(f"topic {topic[:80]!r} must be 1 to 65535 bytes without +, # and NUL")
    try:
        check_topic(topic, config.max_topic_levels)
        if reserved(topic):
            raise ProtocolError(f"the topic {topic!r} is the broker's own")
    except ProtocolError as error:
        raise ValueError(str(error)) from None
    data = payload.encode() if isinstance(payload, str) else bytes(payload)
    if len(data) > config.max_packet_size_bytes:
        raise ValueError(f"the payload has {len(data)} bytes, more than max_packet_size_bytes allows")
    expiry_s = properties.get("message_expiry_interval")
    unknown = properties.keys() - forwarded(properties).keys() - {"message_expiry_interval"}
    if unknown:
        raise ValueError(f"{', '.join(sorted(unknown))}: not a property that a message takes to its receivers")
    encode_properties(properties, PacketType.PUBLISH)  # so that a wrong value fails here, not at the receivers
    expires_at = None if expiry_s is None else now + expiry_s
    return Message(topic, data, qos, retain, properties=forwarded(properties), expires_at=expires_at)


def _host(config: Config) -> "Host | None":
    """Whoever hosts the plugins that are configured. amqtt takes a while to import, so only then."""
    if not (config.plugins or config.plugin_sections):
        return None
    from .plugins.host import Host

    return Host(config)


def _engine_clock(now: float | None = None) -> Callable[[], float]:
    """``now`` or wall time, then what the monotonic clock counts: a clock that is set must not expire anything."""
    monotonic = time.monotonic
    base = (time.time() if now is None else now) - monotonic()
    return lambda: base + monotonic()


def _version() -> str:
    try:
        return version("tidings")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
