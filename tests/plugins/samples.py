"""Plugins of our own that do what plugins do wrong, or write down what they are told; and a client to try them with."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from amqtt.broker import BrokerContext
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseAuthPlugin, BasePlugin, BaseTopicPlugin
from amqtt.session import Session

from tidings.broker import Broker
from tidings.broker.codec.packets import Connack, Connect, Will

from ..raw_client import RawClient, serve

ANONYMOUS = "amqtt.plugins.authentication.AnonymousAuthPlugin"
ANSWERS: dict[str, bool | None] = {
    "yes": True,
    "no": False,
    "none": None,
    "one": cast(bool, 1),
    "text": cast(bool, "false"),
}


def path(plugin: type) -> str:
    return f"{plugin.__module__}.{plugin.__qualname__}"


class Moody(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]
    """Answers as the user name, or the first level of the topic, says."""

    release: ClassVar[threading.Event]

    async def authenticate(self, *, session: Session) -> bool | None:
        return await self._answer(session.username or "none")

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        return await self._answer((topic or "").split("/")[0])

    async def _answer(self, word: str) -> bool | None:
        if word == "raise":
            raise RuntimeError("a bug in a plugin")
        if word == "hang":
            await asyncio.sleep(3600)
        if word == "block":
            self.release.wait(10)
        return ANSWERS.get(word, True)

    @dataclass
    class Config:
        pass


class Diary(BasePlugin[BaseContext]):  # type: ignore[misc]
    """Writes down every event: its name, and what came with it."""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self.entries: list[tuple[str, dict[str, Any]]] = []

    def of(self, event: str) -> list[dict[str, Any]]:
        return [values for name, values in list(self.entries) if name == event]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("on_") or (self.config.only and name[3:] not in self.config.only):
            raise AttributeError(name)

        async def write(**values: Any) -> None:
            self.entries.append((name[3:], values))
            if self.config.hang:
                await asyncio.sleep(3600)

        return write

    @dataclass
    class Config:
        only: list[str] = field(default_factory=list)
        hang: bool = False


class Hand(BasePlugin[BrokerContext]):  # type: ignore[misc]
    """Lends its context to the test."""


def plugin(broker: Broker, kind: type) -> Any:
    """The plugin of that class."""
    assert broker._plugins is not None
    return broker._plugins.manager.get_plugin(kind.__name__)


@asynccontextmanager
async def hosting(*plugins: type | str | dict[str, Any], **options: Any) -> AsyncIterator[Broker]:
    """A broker with these plugins."""
    listed = [path(each) if isinstance(each, type) else each for each in plugins]
    async with serve(plugins=listed, **options) as broker:
        yield broker


async def attempt(
    broker: Broker, user: str | None, password: str | None = None, *, client_id: str = "", version: int = 5, **more: Any
) -> tuple[RawClient, int]:
    """A client that tries to connect, and what CONNACK said."""
    client = await RawClient.open(broker.urls[0], version)
    secret = None if password is None else password.encode()
    client.send(Connect(client_id, version, username=user, password=secret, keep_alive=0, **more))
    return client, (await client.expect(Connack)).reason


async def enter(broker: Broker, user: str | None, password: str | None = None, **more: Any) -> RawClient:
    """A client that is let in."""
    client, reason = await attempt(broker, user, password, **more)
    assert reason == 0
    return client


def will_on(topic: str) -> Will:
    return Will(topic, b"gone", 1, True)
