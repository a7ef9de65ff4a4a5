"""Event callbacks: what clients do, told to the plugins that have a method for it.

1. Events are told in their order; a callback that waits does not hold up the next event.
2. At most ``max_plugin_calls`` callbacks are under way and ``max_plugin_events`` events wait. More are dropped and
   counted (``Stats.untold``): nobody who publishes waits for somebody who only looks on.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from amqtt.events import BrokerEvents, MQTTEvents
from amqtt.events import Events as AnyEvent
from amqtt.mqtt.publish import PublishPacket
from amqtt.plugins.base import BasePlugin
from amqtt.plugins.logging_amqtt import EventLoggerPlugin, PacketLoggerPlugin
from amqtt.plugins.manager import PluginManager
from amqtt.plugins.sys.broker import BrokerSysPlugin
from amqtt.session import IncomingApplicationMessage, Session

from ..codec.packets import Packet
from ..config import Config
from ..core.connection import Connection
from ..core.message import Message
from ..core.ports import Identity
from .bridge import Bridge
from .facade import Facade, retained_message
from .packets import MQTT_3_1_1, amqtt_packet, sent_packets, single

log: Final = logging.getLogger("tidings.broker")

MESSAGE_EVENTS: Final = frozenset(
    (BrokerEvents.MESSAGE_RECEIVED, BrokerEvents.MESSAGE_BROADCAST, BrokerEvents.RETAINED_MESSAGE)
)


class Packets:
    """The Tap of a broker with plugins that look at packets."""

    def __init__(self, events: "Events") -> None:
        self._events = events

    def received(self, connection: Connection, packets: Sequence[Packet]) -> None:
        kept = list(packets)
        self._events.put_packets(MQTTEvents.PACKET_RECEIVED, connection.identity, lambda: kept)

    def sent(self, connection: Connection, data: bytes) -> None:
        version = connection.version or MQTT_3_1_1
        self._events.put_packets(MQTTEvents.PACKET_SENT, connection.identity, lambda: sent_packets(data, version))


class Events:
    """The Watcher of a broker with plugins. ``session_of`` knows the Session of a client that they let in."""

    def __init__(
        self,
        config: Config,
        bridge: Bridge,
        manager: PluginManager[Any],
        facade: Facade,
        session_of: Callable[[Identity | None], Session | None],
    ) -> None:
        self._bridge = bridge
        self._manager = manager
        self._facade = facade
        self._session_of = session_of
        self._limit = config.max_plugin_events
        self._calls = config.max_plugin_calls
        self._timeout_s = config.plugin_timeout_s
        self._queue: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._awake = False
        self._work: asyncio.Task[None] | None = None
        self._told_of_drops = False
        self.wanted = frozenset(
            event
            for event in (*BrokerEvents, *MQTTEvents)
            for plugin in manager.plugins
            if getattr(plugin, f"on_{event}", None) is not None and not _silent(plugin, event)
        )
        self.wants_messages = bool(self.wanted & MESSAGE_EVENTS)
        self.tap = Packets(self) if self.wanted & frozenset(MQTTEvents) else None

    # the watcher, in the broker's loop

    def connected(self, connection: Connection) -> None:
        self._put(self._connected, connection.client_id, self._session_of(connection.identity))

    def disconnected(self, connection: Connection) -> None:
        ends = not connection.session_expiry_s
        self._put(self._disconnected, connection.client_id, self._session_of(connection.identity), ends)

    def subscribed(self, client_id: str, filter: str, qos: int) -> None:
        self._put_event(BrokerEvents.CLIENT_SUBSCRIBED, {"client_id": client_id, "topic": filter, "qos": qos})

    def unsubscribed(self, client_id: str, filter: str) -> None:
        self._put_event(BrokerEvents.CLIENT_UNSUBSCRIBED, {"client_id": client_id, "topic": filter})

    def received(self, client_id: str, messages: Sequence[Message], may: bool) -> None:
        events = [BrokerEvents.MESSAGE_RECEIVED, *([BrokerEvents.MESSAGE_BROADCAST] if may else [])]
        wanted = [event for event in events if event in self.wanted]
        if wanted:
            for message in messages:
                self._put(self._received, wanted, client_id, message)

    def retained(self, message: Message) -> None:
        self._put_event(BrokerEvents.RETAINED_MESSAGE, {"client_id": None}, message)

    def queued(self, client_id: str, messages: Sequence[Message]) -> None:
        for message in messages:
            self._put_event(BrokerEvents.RETAINED_MESSAGE, {"client_id": client_id}, message)

    def put_packets(self, event: AnyEvent, identity: Identity | None, packets: Callable[[], list[Packet]]) -> None:
        """Packets were received or sent; they are made in the thread."""
        if event in self.wanted:
            self._put(self._packets, event, self._session_of(identity), packets)

    def _put_event(self, event: AnyEvent, values: dict[str, Any], message: Message | None = None) -> None:
        if event in self.wanted:
            self._put(self._tell, event, values, message)

    def _put(self, call: Callable[..., Any], *args: Any) -> None:
        if len(self._queue) >= self._limit and call not in (self._connected, self._disconnected):
            self._facade.engine.stats.untold += 1
            if not self._told_of_drops:
                self._told_of_drops = True
                log.error("%d events wait for plugins, as many as may; further ones are dropped", self._limit)
            return
        self._queue.append((call, args))
        if not self._awake:
            self._awake = True
            self._bridge.post(self._wake)

    # in the plugins' thread

    def _wake(self) -> None:
        if self._work is None or self._work.done():
            self._work = self._bridge.loop.create_task(self._tell_all())

    async def _tell_all(self) -> None:
        while True:
            while self._queue:
                call, args = self._queue.popleft()
                try:
                    await call(*args)
                except Exception:
                    log.exception("internal error while telling plugins what happened")
                await self._throttle()
            self._awake = False
            self._told_of_drops = False
            if not self._queue:
                return
            self._awake = True

    async def _throttle(self) -> None:
        fired = self._manager._fired_events
        if len(fired) >= self._calls:
            done, _ = await asyncio.wait(list(fired), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                text = "%d callbacks of plugins take longer than %g s; the oldest is given up"
                log.error(text, len(fired), self._timeout_s)
                fired[0].cancel()
                await asyncio.sleep(0)

    async def fire(self, event: AnyEvent, **values: Any) -> None:
        """Tell an event of the broker's own life and wait until every plugin has taken it."""
        await self._manager.fire_event(event, wait=True, **values)

    async def drain(self) -> None:
        """Wait until everything that happened was told."""
        while self._awake or self._queue:
            self._wake()
            assert self._work is not None
            await self._work
        await self._manager.wait_fired_events()

    async def _tell(self, event: AnyEvent, values: dict[str, Any], message: Message | None) -> None:
        if message is not None:
            values["retained_message"] = retained_message(message)
        await self._manager.fire_event(event, **values)

    async def _connected(self, client_id: str, session: Session | None) -> None:
        sessions = self._facade.sessions
        if session is None:
            session = sessions.of(client_id)
        if not session.transitions.is_connected():
            session.transitions.connect()
        sessions.put(client_id, session)
        await self._manager.fire_event(BrokerEvents.CLIENT_CONNECTED, client_id=client_id, client_session=session)

    async def _disconnected(self, client_id: str, session: Session | None, ends: bool) -> None:
        known = self._facade.sessions.known
        if session is None:
            session = known.get(client_id)
        if session is None:
            return
        session.transitions.disconnect()
        await self._manager.fire_event(BrokerEvents.CLIENT_DISCONNECTED, client_id=client_id, client_session=session)
        if ends and known.get(client_id) is session:
            del known[client_id]

    async def _packets(self, event: AnyEvent, session: Session | None, packets: Callable[[], list[Packet]]) -> None:
        for packet in single(packets()):
            theirs = await amqtt_packet(packet)
            if theirs is not None:
                await self._manager.fire_event(event, packet=theirs, session=session)
                await self._throttle()

    async def _received(self, events: list[AnyEvent], client_id: str, message: Message) -> None:
        packet = PublishPacket.build(
            message.topic, message.payload, message.packet_id or None, message.dup, message.qos, message.retain
        )
        arrived = IncomingApplicationMessage(
            message.packet_id or None, message.topic, message.qos, message.payload, message.retain
        )
        arrived.publish_packet = packet
        for event in events:
            await self._manager.fire_event(event, client_id=client_id, message=arrived)


def _silent(plugin: BasePlugin[Any], event: AnyEvent) -> bool:
    """Whether ``plugin`` would only write a line for ``event`` that nobody wants to see, or count what is counted."""
    if type(plugin) is BrokerSysPlugin:
        return event in frozenset(MQTTEvents)
    if event in (BrokerEvents.CLIENT_CONNECTED, BrokerEvents.CLIENT_DISCONNECTED):
        return False
    loggers = (EventLoggerPlugin, PacketLoggerPlugin)
    return type(plugin) in loggers and not plugin.context.logger.isEnabledFor(logging.DEBUG)
