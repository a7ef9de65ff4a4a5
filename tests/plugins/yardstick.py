"""Has amqtt's own tests of its plugins run against our broker: ``amqtt.broker.Broker`` becomes ours, in amqtt's shape.

In a checkout of amqtt, with tidings[plugins] and what amqtt's tests need installed:

    PYTHONPATH=path/to/tidings/tests/plugins pytest -p yardstick tests/plugins tests/contrib

What is here stands for amqtt's class only: it loads plugins when it is made, as that one does, and has the few
attributes that those tests look at. Everything else is the broker as it ships.
"""

import asyncio
import itertools
import time
from types import SimpleNamespace
from typing import Any

import amqtt.broker
from amqtt.contexts import BrokerConfig
from amqtt.errors import PluginImportError

from tidings.broker import ConfigError
from tidings.broker.core.engine import Engine
from tidings.broker.plugins import host as host_module
from tidings.broker.plugins.bridge import Bridge
from tidings.broker.plugins.host import Host
from tidings.broker.plugins.settings import AmqttConfig, translate
from tidings.broker.server import Broker as OurBroker

_ids = itertools.count()


class EarlyHost(Host):
    """Loads before the broker starts."""

    def load(self) -> None:
        self._finish = None
        self._loop = asyncio.get_running_loop()
        engine = Engine(self._config.model_copy(update={"sys_interval_s": 0}), time.time(), lambda: f"c{next(_ids)}")
        self._engine, self._clock, self._turn = engine, time.time, lambda: None
        self._bridge = Bridge()
        self._bridge.start()
        self._started = True
        asyncio.run_coroutine_threadsafe(self._load(), self._bridge.loop).result(20)

    async def start(self, engine: Any, clock: Any, turn: Any, finish: Any = None) -> Any:
        self._engine, self._clock, self._turn = engine, clock, turn
        self.facade.engine, self.facade.clock, self.facade._turn = engine, clock, turn
        await self._bridge.run(self.tell_start(), 20)
        self.watch()
        return self.events.tap


class Broker:
    """amqtt's class, as far as its plugins' tests use it."""

    def __init__(self, config: Any = None, loop: Any = None, plugin_namespace: str | None = None) -> None:
        asked = dict(config) if isinstance(config, dict) else {}
        self.config = BrokerConfig.from_dict(dict(config)) if isinstance(config, dict) else config or BrokerConfig()
        theirs: dict[str, Any] = {"listeners": asked.get("listeners", {"default": {}}), "allow_anonymous_remote": True}
        for key in ("sys_interval", "session_expiry_interval"):
            if getattr(self.config, key) is not None:
                theirs[key] = getattr(self.config, key)
        if self.config.plugins is not None:
            theirs["plugins"] = self.config.plugins
        else:
            theirs |= {"auth": self.config.auth, "topic_check": self.config.topic_check}
        ours, _ = translate(AmqttConfig.model_validate(theirs), "test")
        host_module.NAMESPACE = plugin_namespace or "amqtt.broker.plugins"  # type: ignore[misc]
        self.ours = OurBroker(ours.model_copy(update={"plugins": {}, "plugin_sections": {}, "stop_timeout_s": 1.0}))
        host = EarlyHost.__new__(EarlyHost)
        try:
            host.__init__(ours)  # type: ignore[misc]
            host.load()
        except ConfigError as error:
            if hasattr(host, "_bridge"):
                host._bridge.loop.call_soon_threadsafe(host._bridge.loop.stop)
            why = error.__cause__ or error.__context__ or error
            raise (PluginImportError(str(why)) if isinstance(why, ImportError) else why) from None
        self.host = self.ours._plugins = self.ours._gate = host
        self.plugins_manager = host.manager
        self.transitions: Any = SimpleNamespace(
            state="new",
            is_started=lambda: self.transitions.state == "started",
            is_stopped=lambda: self.transitions.state == "stopped",
        )
        self._servers: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host.facade, name)

    async def start(self) -> None:
        await self.ours.start()
        self.transitions.state = "started"
        servers = self.ours._servers
        names = [name for name, each in self.config.listeners.items() if each.bind is not None]
        for name, server in zip(names, servers, strict=False):
            self._servers[name] = SimpleNamespace(instance=server)

    async def shutdown(self) -> None:
        await self.ours.stop()
        self.transitions.state = "stopped"


amqtt.broker.Broker = Broker
