"""The plugins of one broker: its Gate, and a Watcher that calls them back.

1. Plugins run in a thread of their own (``Bridge``). What they decide comes back as a call in the broker's loop.
2. Only True is a yes. A plugin that raises, says anything else or takes longer than ``plugin_timeout_s`` has refused;
   None leaves an authentication to the others, and if nobody says True the client is refused.
3. At most ``max_plugin_calls`` are under way, at most ``max_plugin_events`` events wait; what is beyond waits its turn,
   or (events) is dropped and counted.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from amqtt.broker import BrokerContext
from amqtt.contexts import Action as AmqttAction
from amqtt.contexts import BrokerConfig
from amqtt.events import BrokerEvents
from amqtt.plugins.authentication import AnonymousAuthPlugin
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.plugins.manager import PluginManager
from amqtt.plugins.sys.broker import BrokerSysPlugin
from amqtt.session import Session
from amqtt.utils import import_string

from ..codec.reasons import ReasonCode
from ..config import Config
from ..core.engine import Engine
from ..core.ports import Accepted, Action, Answer, Identity, Refused, Tap
from ..errors import ConfigError
from .bridge import Bridge
from .counts import keep_counting
from .events import Events
from .facade import Facade
from .sessions import Facts

log: Final = logging.getLogger("tidings.broker")

NAMESPACE: Final = "amqtt.broker.plugins"  # of entry points, and of loggers
START_S: Final = 60.0  # what loading and the events around start and stop may take
REFUSED: Final = Refused(ReasonCode.NOT_AUTHORIZED, "not authorized")
UNKNOWN_METHOD: Final = Refused(ReasonCode.BAD_AUTHENTICATION_METHOD, "no such authentication method")

Key = tuple[Action, str] | None  # what is asked about a client; None = who it is


class Client:
    """A client as the host knows it: ``open`` are the questions about it that wait, with the timer of each."""

    __slots__ = ("identity", "open", "session")

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.session: Session | None = None
        self.open: dict[Key, asyncio.TimerHandle] = {}


class Host:
    """Made without a loop; raises ConfigError for a plugin that cannot be imported or is none."""

    def __init__(self, config: Config) -> None:
        self._config = config
        classes = [_class_of(path) for path in config.plugins]
        self.authenticates = any(
            issubclass(each, BaseAuthPlugin) and not issubclass(each, AnonymousAuthPlugin) for each in classes
        )
        # In amqtt's old style nobody knows the plugins before they are loaded, but the one for $SYS has this option.
        self.publishes_sys = "sys_interval" in config.plugin_sections or any(
            issubclass(each, BrokerSysPlugin) for each in classes
        )
        self._clients: dict[Identity, Client] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # the thread's
        self._started = self._loaded = False
        self._has_topic_plugins = True

    # life

    async def start(
        self,
        engine: Engine,
        clock: Callable[[], float],
        turn: Callable[[], None],
        finish: Callable[[Identity, Answer], Answer] | None = None,
    ) -> Tap | None:
        """Load the plugins and tell them that the broker is about to start. Raises ConfigError.

        ``finish`` has the last word where another gate was asked before. Returns who wants to see packets.
        """
        self._engine, self._clock, self._turn = engine, clock, turn
        self._finish = finish
        self._loop = asyncio.get_running_loop()
        self._bridge = Bridge()
        self._bridge.start()
        self._started = True
        try:
            await self._bridge.run(self._load(), START_S)
            await self._bridge.run(self.tell_start(), START_S)
        except TimeoutError:
            raise ConfigError(f"plugins: not loaded within {START_S:g} s") from None
        self.watch()
        tap: Tap | None = self.events.tap
        return tap

    def watch(self) -> None:
        """Tell the plugins what happens from now on."""
        self._engine.watcher = self.events
        if self.events.wants_messages:
            self._engine.message_watcher = self.events

    async def _load(self) -> None:
        config = self._config
        sections: dict[str, Any] = dict(config.plugin_sections)
        broker_config = BrokerConfig(plugins=dict(config.plugins) if config.plugins else None, **sections)
        facade = Facade(self._bridge, self._engine, self._clock, self._turn, broker_config)
        context = BrokerContext(facade)
        context.config = broker_config
        try:
            self.manager = facade.plugins_manager = PluginManager(NAMESPACE, context, self._bridge.loop)
        except Exception as error:  # amqtt has no common root for what goes wrong here, nor have plugins
            # What went wrong is often in its cause alone.
            chain = [error, error.__cause__ or error.__context__]
            words = [f"{type(each).__name__}: {each}".removesuffix(": ") for each in chain if each is not None]
            raise ConfigError(f"plugins: {', because of '.join(words)}") from error
        self._calls = asyncio.Semaphore(config.max_plugin_calls)
        self._has_topic_plugins = self.manager.is_topic_filtering_enabled() and bool(self.manager._topic_plugins)
        if not self.manager._auth_plugins and self._finish is None:
            log.warning("plugins: none of them authenticates, so nobody is let in")
        self.facade = facade
        self.events = Events(config, self._bridge, self.manager, facade, self._session_of)
        self._loaded = True

    async def tell_start(self) -> None:
        """Tell the plugins, in their thread, that the broker is about to start."""
        await self.events.fire(BrokerEvents.PRE_START)
        for plugin in self.manager.plugins:
            if type(plugin) is BrokerSysPlugin:
                keep_counting(plugin, self.facade, self._bridge)

    async def started(self) -> None:
        """Tell the plugins that the broker accepts connections."""

        async def tell() -> None:
            await self.events.fire(BrokerEvents.POST_START)
            self.facade.hand_over()

        await self._bridge.run(tell(), START_S)

    async def stopping(self) -> None:
        """Tell the plugins that the broker is about to stop."""
        if self._loaded:
            with suppress(TimeoutError):
                await self._bridge.run(self.events.fire(BrokerEvents.PRE_SHUTDOWN), self._config.stop_timeout_s)

    async def stop(self) -> None:
        """Tell the plugins that it is over, and end the thread."""
        if not self._started:
            return

        async def close() -> None:
            await self.events.drain()
            await self.events.fire(BrokerEvents.POST_SHUTDOWN)
            await self.manager.close()

        if self._loaded:
            with suppress(TimeoutError):
                await self._bridge.run(close(), self._config.stop_timeout_s)
        self._started = self._loaded = False
        await self._bridge.stop(self._config.stop_timeout_s)

    # the gate

    def authenticate(self, identity: Identity, now: float) -> Answer | None:
        if identity.method:
            return UNKNOWN_METHOD
        self.admit(identity)
        return None

    def admit(self, identity: Identity) -> None:
        """Ask the plugins whether they let a client in; the answer comes later."""
        client = self._clients[identity] = Client(identity)
        self._ask(client, None, self._authenticate, Facts(identity))

    def respond(self, identity: Identity, now: float) -> Answer | None:
        return UNKNOWN_METHOD

    def reauthenticate(self, identity: Identity, now: float) -> Answer | None:
        return UNKNOWN_METHOD

    def may(self, identity: Identity, action: Action, topic: str, now: float) -> bool | None:
        client = self._clients.get(identity)
        if not self._has_topic_plugins:
            return True
        if client is None or client.session is None:
            return False
        self._ask(client, (action, topic), self._filter, client.session, action, topic)
        return None

    def left(self, identity: Identity, now: float) -> None:
        client = self._clients.pop(identity, None)
        if client is not None:
            for timer in client.open.values():
                timer.cancel()
            client.open.clear()

    def _session_of(self, identity: Identity | None) -> Session | None:
        client = self._clients.get(identity) if identity is not None else None
        return client.session if client is not None else None

    def _ask(self, client: Client, key: Key, how: Callable[..., Any], *args: object) -> None:
        if key in client.open:
            return
        client.open[key] = self._loop.call_later(self._config.plugin_timeout_s, self._late, client, key)
        self._bridge.post(self._begin, client, key, how, args)

    def _late(self, client: Client, key: Key) -> None:
        log.error("plugins took longer than %g s; %s is refused", self._config.plugin_timeout_s, _what(client, key))
        self._answer(client, key, False, None)

    def _answer(self, client: Client, key: Key, may: bool, session: Session | None) -> None:
        """Plugins have decided, or taken too long."""
        timer = client.open.pop(key, None)
        if timer is None:
            return
        timer.cancel()
        engine, now = self._engine, self._clock()
        if key is not None:
            engine.allowed(client.identity, key[0], key[1], may, now)
        else:
            answer: Answer = REFUSED
            if may and session is not None:
                client.session = session
                answer = Accepted(user=session.username or "")
            engine.decided(
                client.identity, answer if self._finish is None else self._finish(client.identity, answer), now
            )
        self._turn()

    # in the thread

    def _begin(self, client: Client, key: Key, how: Callable[..., Any], args: Sequence[object]) -> None:
        task = self._bridge.loop.create_task(self._decide(client, key, how, args))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _decide(self, client: Client, key: Key, how: Callable[..., Any], args: Sequence[object]) -> None:
        may, session = False, None
        try:
            async with self._calls:
                if key not in client.open:
                    return  # gone, or too late
                async with asyncio.timeout(self._config.plugin_timeout_s):
                    may, session = await how(*args)
        except Exception as error:
            log.error("a plugin failed, so %s is refused: %r", _what(client, key), error, exc_info=error)
        self._bridge.tell(self._answer, client, key, may, session)

    async def _authenticate(self, facts: Facts) -> tuple[bool, Session]:
        session = facts.session()
        said = await self.manager.map_plugin_auth(session=session)
        known = self.facade.sessions.known.get(facts.client_id)
        results = [may for may in said.values() if may is not None]
        if known is not None and known.username == session.username:
            session.attributes = {**known.attributes, **session.attributes}
        enough = bool(results) or (self._finish is not None and not self.manager._auth_plugins)
        return enough and all(may is True for may in results), session

    async def _filter(self, session: Session, action: Action, topic: str) -> tuple[bool, None]:
        said = await self.manager.map_plugin_topic(session=session, topic=topic, action=AmqttAction(action.value))
        return all(may is True for may in said.values()), None


def _what(client: Client, key: Key) -> str:
    who = f"{client.identity.client_id!r:.200} from {client.identity.peer}"
    return who if key is None else f"{key[0].value} on {key[1]!r:.200} by {who}"


def _class_of(path: str) -> type:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigError(f"plugins: {path} cannot be imported: {error}") from None
    if not isinstance(found, type):
        raise ConfigError(f"plugins: {path} is not a class")
    return found
