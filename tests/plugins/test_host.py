"""Plugins decide: what counts as a yes, and what happens to others meanwhile."""

import subprocess
import sys
import threading
from typing import Any

import pytest

from tidings.broker import Broker, Config, ConfigError
from tidings.broker.codec.packets import Connack, Connect, Puback, Publish
from tidings.broker.core.ports import Action

from ..raw_client import RawClient, run, serve, until
from .samples import ANONYMOUS, Diary, Moody, attempt, enter, hosting, path, plugin, will_on


@pytest.mark.parametrize(
    ("user", "reason"),
    [("yes", 0), ("no", 0x87), ("none", 0x87), ("raise", 0x87), ("one", 0x87), ("text", 0x87), (None, 0x87)],
)
@pytest.mark.parametrize("version", [4, 5])
def test_only_true_lets_a_client_in(user: str | None, reason: int, version: int) -> None:
    async def scene() -> None:
        async with hosting(Moody) as broker:
            client, said = await attempt(broker, user, version=version)
            assert said == (reason if version == 5 else min(reason, 5))
            client.abort()

    run(scene())


@pytest.mark.parametrize("word", ["yes", "no", "none", "raise", "one", "text"])
def test_only_true_allows_a_topic(word: str) -> None:
    async def scene() -> None:
        async with hosting(Moody) as broker, await enter(broker, "yes") as client:
            topic, may = f"{word}/t", word == "yes"
            assert await client.subscribe(topic, 1) == (1 if may else 0x87)
            client.send(Publish(topic, b"x", 1, packet_id=1))
            assert (await client.expect(Puback)).reason == (0 if may else 0x87)
            if may:
                assert (await client.message()).topic == topic

    run(scene())


def test_plugin_that_takes_too_long_has_refused_and_nobody_else_waits() -> None:
    async def scene() -> None:
        async with hosting(Moody, plugin_timeout_s=0.2) as broker:
            other = await enter(broker, "yes")
            slow = await RawClient.open(broker.urls[0])
            slow.send(Connect("slow", username="hang"))
            assert await other.subscribe("t") == 0
            other.send(Publish("t", b"meanwhile"))
            assert (await other.message()).payload == b"meanwhile"
            assert (await slow.expect(Connack)).reason == 0x87
            assert await other.publish("hang/on") == 0x87
            for client in (other, slow):
                client.abort()

    run(scene())


def test_plugin_that_blocks_its_thread_blocks_nobody_who_is_known() -> None:
    async def scene() -> None:
        Moody.release = threading.Event()
        try:
            async with hosting(Moody) as broker, await enter(broker, "yes") as known:
                assert await known.subscribe("t") == 0
                known.send(Publish("t", b"1"))
                assert (await known.message()).payload == b"1"
                blocking = await RawClient.open(broker.urls[0])
                blocking.send(Connect("slow", username="block"))
                for number in range(20):
                    known.send(Publish("t", b"%d" % number))
                    assert (await known.message()).payload == b"%d" % number
                Moody.release.set()
                assert (await blocking.expect(Connack)).reason == 0
                blocking.abort()
        finally:
            Moody.release.set()

    run(scene())


def test_plugin_that_blocks_has_refused_before_it_comes_back() -> None:
    async def scene() -> None:
        Moody.release = threading.Event()
        try:
            async with hosting(Moody, plugin_timeout_s=0.2) as broker:
                client, reason = await attempt(broker, "block")
                assert (reason, Moody.release.is_set()) == (0x87, False)
                client.abort()
                Moody.release.set()
        finally:
            Moody.release.set()

    run(scene())


def test_calls_beyond_the_limit_wait_their_turn() -> None:
    async def scene() -> None:
        async with hosting(Moody, max_plugin_calls=1, plugin_timeout_s=0.3) as broker:
            clients = [await RawClient.open(broker.urls[0]) for _ in range(2)]
            clients[0].send(Connect("slow", username="hang"))
            clients[1].send(Connect("next", username="yes"))
            reasons = [(await client.expect(Connack)).reason for client in clients]
            assert reasons[0] == 0x87
            for client in clients:
                client.abort()

    run(scene())


def test_client_that_goes_while_plugins_think_leaves_nothing() -> None:
    async def scene() -> None:
        async with hosting(Moody, plugin_timeout_s=0.2) as broker:
            client = await RawClient.open(broker.urls[0])
            client.send(Connect("c", username="hang"))
            await until(lambda: broker._plugins is not None and len(broker._plugins._clients) == 1)
            client.abort()
            assert broker._engine is not None
            await until(lambda: not broker._engine.connections)  # type: ignore[union-attr]
            assert broker._plugins is not None
            assert broker._plugins._clients == {}

    run(scene())


def test_will_is_decided_at_connect() -> None:
    async def scene() -> None:
        async with hosting(Moody) as broker:
            for topic, reason in (("no/will", 0x87), ("yes/will", 0)):
                client, said = await attempt(broker, "yes", will=will_on(topic))
                assert said == reason
                client.abort()

    run(scene())


def test_authentication_method_is_not_for_plugins() -> None:
    async def scene() -> None:
        async with hosting(Moody) as broker:
            client = await RawClient.open(broker.urls[0])
            client.send(Connect("c", username="yes", properties={"authentication_method": "M"}))
            assert (await client.expect(Connack)).reason == 0x8C
            client.abort()

    run(scene())


def test_decisions_are_remembered_and_asked_for_once() -> None:
    asked: list[str] = []

    class Counting(Moody):
        async def topic_filtering(self, **values: Any) -> bool | None:
            asked.append(f"{values['action']} {values['topic']}")
            return True

    sys.modules[__name__].Counting = Counting  # type: ignore[attr-defined]

    async def scene() -> None:
        async with hosting(f"{__name__}.Counting") as broker, await enter(broker, "yes") as client:
            await client.subscribe("t")
            for _ in range(5):
                client.send(Publish("t"))
                await client.message()
        assert asked == ["subscribe t", "publish t", "receive t"]

    run(scene())


def test_without_a_topic_plugin_every_topic_is_open() -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS) as broker, await enter(broker, None) as client:
            assert await client.subscribe("no/t") == 0
            assert broker._engine is not None
            assert broker._engine.stats.not_authorized == {}

    run(scene())


def test_without_an_authenticating_plugin_nobody_comes_in() -> None:
    async def scene() -> None:
        async with hosting(Diary) as broker:
            client, reason = await attempt(broker, "yes")
            assert reason == 0x87
            client.abort()

    run(scene())


@pytest.mark.parametrize(
    ("plugins", "text"),
    [
        ({"no.such.Plugin": {}}, "no.such.Plugin cannot be imported"),
        ({"amqtt.plugins.base.Nothing": {}}, "amqtt.plugins.base.Nothing cannot be imported"),
        ({"plain": {}}, "plain cannot be imported"),
        ({"amqtt.utils.import_string": {}}, "is not a class"),
    ],
)
def test_plugin_that_there_is_not_is_an_error_of_the_configuration(plugins: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Broker(Config(listeners=["tcp://127.0.0.1:0"], plugins=plugins))


@pytest.mark.parametrize(
    ("plugins", "text"),
    [
        ({ANONYMOUS: {"allow_anonymus": True}}, "allow_anonymus"),
        ({"amqtt.contrib.jwt.UserAuthJwtPlugin": {"secret_key": "x"}}, "user_claim"),
        ({"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": "/does/not/exist"}}, "/does/not/exist"),
        ({"amqtt.session.Session": {}}, "not a subclass"),
    ],
)
def test_plugin_that_does_not_start_stops_the_start_with_its_reason(plugins: dict[str, Any], text: str) -> None:
    async def scene() -> None:
        with pytest.raises(ConfigError, match=text):
            async with serve(plugins=plugins):
                pass

    run(scene())


@pytest.mark.parametrize(
    ("plugins", "safe"),
    [
        ([path(Moody)], True),
        ([ANONYMOUS], False),
        ([{ANONYMOUS: {"allow_anonymous": False}}], False),  # any name will do
        ([path(Diary)], False),
        ([], False),
    ],
)
def test_plugin_that_authenticates_makes_a_remote_listener_safe(plugins: list[Any], safe: bool) -> None:
    config = Config.model_validate({"listeners": ["tcp://0.0.0.0:0"], "plugins": plugins})
    if safe:
        Broker(config)
    else:
        with pytest.raises(ConfigError, match="configure a plugin"):
            Broker(config)


def test_gate_and_plugins_are_not_both_in_charge() -> None:
    class Nobody:
        pass

    with pytest.raises(ConfigError, match="use one of them"):
        Broker(Config(plugins={ANONYMOUS: {}}), gate=Nobody())  # type: ignore[arg-type]


def test_reload_asks_plugins_anew() -> None:
    async def scene() -> None:
        async with hosting(Moody) as broker, await enter(broker, "yes") as client:
            assert await client.publish("yes/t") == 0x10
            assert broker._engine is not None
            moody = plugin(broker, Moody)
            moody._answer = _never
            broker.reload()
            assert await client.publish("yes/t", packet_id=2) == 0x87
            assert broker._engine.stats.not_authorized == {Action.PUBLISH: 1}

    run(scene())


async def _never(word: str) -> bool:
    return False


def test_amqtt_is_imported_only_where_there_are_plugins() -> None:
    code = (
        "import asyncio, sys\n"
        "from tidings.broker import Broker, Config\n"
        "async def main():\n"
        "    async with Broker(Config(listeners=['tcp://127.0.0.1:0'])):\n"
        "        pass\n"
        "asyncio.run(main())\n"
        "sys.exit(any(name.split('.')[0] in ('amqtt', 'sqlalchemy') for name in sys.modules))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
