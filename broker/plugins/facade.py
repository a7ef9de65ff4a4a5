"""The broker as plugins see it through amqtt's ``BrokerContext``: its shape is amqtt's, what it shows is ours.

Everything here is called in the plugins' thread, and asks or tells the broker's.
"""

from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from amqtt.broker import RetainedApplicationMessage
from amqtt.contexts import Action
from amqtt.session import Session

from ..codec.wire import MAX_STRING_BYTES
from ..core.engine import Engine
from ..core.message import Message, Run
from ..core.ports import RetainedSet
from ..core.session import adopt
from ..core.topics import Grant, check_filter, check_topic, reserved
from ..errors import BrokerError, ProtocolError
from .bridge import Bridge
from .sessions import away

if TYPE_CHECKING:
    from amqtt.contexts import BrokerConfig
    from amqtt.plugins.manager import PluginManager

OWN_QOS = 2  # of a message whose QoS nobody named: each subscriber gets it at its own
REFUSED = 0x80
SWEEP = 1_000


class Facade:
    """What ``BrokerContext`` calls its broker. ``turn`` ends a turn of the broker's loop, ``clock`` is engine time."""

    def __init__(
        self,
        bridge: Bridge,
        engine: Engine,
        clock: Callable[[], float],
        turn: Callable[[], None],
        config: "BrokerConfig",
    ) -> None:
        self.bridge = bridge
        self.engine = engine
        self.clock = clock
        self.config = config
        self.plugins_manager: PluginManager[Any] | None = None
        self.sessions = self._sessions = Sessions(self)
        self.retained_messages = self._retained_messages = RetainedMessages(self)
        self._turn = turn

    @property
    def subscriptions(self) -> dict[str, list[tuple[Session, int]]]:
        """Every filter with its subscribers and their QoS, as it is now."""

        def read() -> list[tuple[str, str, int]]:
            sessions = self.engine.sessions.values()
            return [(name, each.client_id, one.qos) for each in sessions for name, one in each.subscriptions.items()]

        found: dict[str, list[tuple[Session, int]]] = {}
        for filter, client_id, qos in self.bridge.ask(read):
            found.setdefault(filter, []).append((self.sessions.of(client_id), qos))
        return found

    _subscriptions = subscriptions

    async def internal_message_broadcast(self, topic: str, data: bytes, qos: int | None = None) -> None:
        """Deliver to all who subscribed; without ``qos`` at the QoS that each of them asked for."""
        message = _message(topic, data, qos, False)

        def publish() -> None:
            if reserved(topic):
                self.engine.announce(message, self.clock())
            else:
                self.engine.publish([message], self.clock())
            self._turn()

        await self.bridge.asking(publish)

    async def retain_message(
        self, source_session: Session | None, topic_name: str, data: bytes | bytearray | None, qos: int | None = None
    ) -> None:
        """Set the retained message of a topic, without delivering it; without ``data`` remove it."""
        await self.bridge.asking(lambda: self.retain(topic_name, bytes(data or b""), qos))

    def retain(self, topic: str, data: bytes, qos: int | None) -> None:
        """As ``retain_message``; in the broker's thread."""
        message = _message(topic, data, qos, True)
        check_topic(topic, self.engine.config.max_topic_levels)
        if not self.engine.retained.set(message):
            raise BrokerError(f"no room to retain a message for {topic!r}")
        if self.engine.keeps and not reserved(topic):
            self.engine.changes.append(RetainedSet(message))
        if self.engine.message_watcher is not None:
            self.engine.message_watcher.retained(message)
        self._turn()

    def create_offline_session(self, client_id: str) -> tuple[None, Session]:
        """A session for a client that has not been here; the first of the two would be amqtt's own handler."""

        def make() -> None:
            engine = self.engine
            if client_id not in engine.sessions:
                if len(engine.sessions) >= engine.config.max_sessions:
                    raise BrokerError("as many sessions as allowed")
                adopt(engine, client_id, self.clock())
                self._turn()

        self.bridge.ask(make)
        return None, away(client_id)

    async def add_subscription(self, subscription: tuple[str, int], session: Session) -> int:
        """Subscribe ``session``, if the plugins let it; the QoS, or 0x80 if they don't."""
        filter, qos = subscription
        client_id = session.client_id
        if self.plugins_manager is not None and self.plugins_manager.is_topic_filtering_enabled():
            said = await self.plugins_manager.map_plugin_topic(session=session, topic=filter, action=Action.SUBSCRIBE)
            if not all(may is True for may in said.values()):
                return REFUSED

        def subscribe() -> int:
            engine = self.engine
            owner = engine.sessions.get(client_id or "")
            try:
                check_filter(filter, engine.config.max_topic_levels)
            except ProtocolError:
                return REFUSED
            if owner is None or len(owner.subscriptions) >= engine.config.max_subscriptions:
                return REFUSED
            engine.subscribe(owner, filter, Grant(qos))
            engine.save(owner)
            self._turn()
            return qos

        return await self.bridge.asking(subscribe)

    def hand_over(self) -> None:
        """Give clients that are away the messages that a plugin kept for them in ``Session.retained_messages``."""
        for client_id, session in self.sessions.known.items():
            while not session.retained_messages.empty():
                kept = session.retained_messages.get_nowait()
                message = _message(kept.topic, kept.data, kept.qos, False)
                self.bridge.tell(self._owe, client_id, message)

    def _owe(self, client_id: str, message: Message) -> None:
        session = self.engine.sessions.get(client_id)
        if session is not None:
            session.window.deliver(Run([message], self.clock()), Grant(2))
            self._turn()


class Sessions(MutableMapping[str, tuple[Session, None]]):
    """Sessions by client id, as amqtt pairs them. Which there are, the broker knows; ``known`` is what each is."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade
        self.known: dict[str, Session] = {}
        self._sweep_at = SWEEP

    def of(self, client_id: str) -> Session:
        """The Session of a client that has one."""
        session = self.known.get(client_id)
        if session is None:
            session = self.known[client_id] = away(client_id)
        return session

    def put(self, client_id: str, session: Session) -> None:
        """The client has connected. Now and then those are forgotten whose session has ended meanwhile."""
        self.known[client_id] = session
        if len(self.known) > self._sweep_at:
            iter(self)
            self._sweep_at = SWEEP + 2 * len(self.known)

    def _ids(self) -> list[str]:
        facade = self._facade
        return facade.bridge.ask(lambda: list(facade.engine.sessions))

    def __getitem__(self, client_id: str) -> tuple[Session, None]:
        facade = self._facade
        if not facade.bridge.ask(lambda: client_id in facade.engine.sessions):
            raise KeyError(client_id)
        return self.of(client_id), None

    def __setitem__(self, client_id: str, pair: tuple[Session, None]) -> None:
        self.known[client_id] = pair[0]

    def __delitem__(self, client_id: str) -> None:
        raise TypeError("sessions end by themselves")

    def __iter__(self) -> Iterator[str]:
        ids = self._ids()
        present = set(ids)
        for client_id in [each for each in self.known if each not in present]:
            del self.known[client_id]
        return iter(ids)

    def __len__(self) -> int:
        return len(self._ids())

    def values(self) -> Any:
        """Each Session, in a pair."""
        return [(self.of(client_id), None) for client_id in self]


class RetainedMessages(MutableMapping[str, RetainedApplicationMessage]):
    """Retained messages by topic, read from the broker and written to it."""

    def __init__(self, facade: Facade) -> None:
        self._facade = facade

    def __getitem__(self, topic: str) -> RetainedApplicationMessage:
        facade = self._facade
        message = facade.bridge.ask(lambda: facade.engine.retained.get(topic))
        if message is None:
            raise KeyError(topic)
        return retained_message(message)

    def __setitem__(self, topic: str, message: RetainedApplicationMessage) -> None:
        facade = self._facade
        facade.bridge.ask(lambda: facade.retain(topic, bytes(message.data), message.qos))

    def __delitem__(self, topic: str) -> None:
        facade = self._facade
        facade.bridge.ask(lambda: facade.retain(topic, b"", 0))

    def __iter__(self) -> Iterator[str]:
        facade = self._facade
        return iter(facade.bridge.ask(lambda: [message.topic for message in facade.engine.retained]))

    def __len__(self) -> int:
        facade = self._facade
        return facade.bridge.ask(lambda: len(facade.engine.retained))


def retained_message(message: Message) -> RetainedApplicationMessage:
    """``message`` as amqtt keeps it."""
    return RetainedApplicationMessage(None, message.topic, message.payload, message.qos)


def _message(topic: str, data: bytes | bytearray, qos: int | None, retain: bool) -> Message:
    if not topic or any(sign in topic for sign in "+#\0") or len(topic.encode()) > MAX_STRING_BYTES:
        raise ValueError(f"{topic[:80]!r} is not a topic")
    return Message(topic, bytes(data), OWN_QOS if qos is None else qos, retain)
