"""amqtt's own plugins, unmodified, with their own settings: each allows what it should, and nothing else."""

import asyncio
import json
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jwt
import pytest
from amqtt.contexts import Action
from amqtt.contrib.auth_db.managers import TopicManager, UserManager
from pwdlib.hashers.argon2 import Argon2Hasher

from tidings.broker import Broker, Listener
from tidings.broker.codec.packets import Connack, Connect, Puback, Publish, Suback, Subscribe, SubscribeFilter

from ..raw_client import RawClient, run, until
from ..transport.listeners.certificates import Authority
from .samples import ANONYMOUS, attempt, enter, hosting

SECRET = "a-secret-of-at-least-thirty-two-bytes"
CLAIMS = {"publish_claim": "may_pub", "subscribe_claim": "may_sub", "receive_claim": "may_rec"}
GUESSES = [("alice", "right", 0), ("alice", "wrong", 0x87), ("alice", None, 0x87), ("bob", "right", 0x87)]


async def told(broker: Broker, user: str | None, password: str | None, **more: Any) -> int:
    client, reason = await attempt(broker, user, password, **more)
    client.abort()
    return reason


async def rights(client: RawClient, topic: str) -> str:
    """What a client may do with ``topic``: some of "psr"."""
    client.send(Publish(topic, b"", 1, packet_id=1))
    may = "p" if (await client.expect(Puback)).reason < 0x80 else ""
    client.send(Subscribe(1, [SubscribeFilter(topic)]))
    return may + ("s" if (await client.expect(Suback)).reasons[0] < 0x80 else "")


# who is let in


@pytest.mark.parametrize(("user", "password", "reason"), [*GUESSES, (None, None, 0x87)])
def test_password_file(tmp_path: Path, user: str | None, password: str | None, reason: int) -> None:
    file = tmp_path / "passwords"
    file.write_text(f"# people\nalice:{Argon2Hasher(time_cost=1, memory_cost=64).hash('right')}\n")
    settings = {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(file)}}

    async def scene() -> None:
        async with hosting(settings) as broker:
            assert await told(broker, user, password) == reason

    run(scene())


def test_anonymous() -> None:
    async def scene() -> None:
        for allowed, reasons in ((True, [0, 0]), (False, [0, 0x87])):
            async with hosting({ANONYMOUS: {"allow_anonymous": allowed}}) as broker:
                assert [await told(broker, user, None) for user in ("anybody", None)] == reasons

    run(scene())


def test_password_file_ignores_who_has_no_name_so_that_anonymous_may_decide(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("")

    async def scene() -> None:
        settings = {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(file)}}
        async with hosting(settings, ANONYMOUS) as broker:
            assert await told(broker, None, None) == 0
            assert await told(broker, "alice", "right") == 0x87

    run(scene())


def test_sql_users_and_topics(tmp_path: Path) -> None:
    connection = f"sqlite+aiosqlite:///{tmp_path}/users.db"

    async def fill() -> None:
        async with UserManager(connection) as users, TopicManager(connection) as topics:
            await users.db_sync()
            await topics.db_sync()
            await users.create_user_auth("alice", "right")
            await topics.create_topic_auth("alice")
            await topics.add_allowed_topic("alice", "both", Action.PUBLISH)
            await topics.add_allowed_topic("alice", "both", Action.SUBSCRIBE)
            await topics.add_allowed_topic("alice", "read", Action.SUBSCRIBE)

    async def scene() -> None:
        plugins = [
            {"amqtt.contrib.auth_db.UserAuthDBPlugin": {"connection": connection}},
            {"amqtt.contrib.auth_db.TopicAuthDBPlugin": {"connection": connection}},
        ]
        async with hosting(*plugins) as broker:
            for user, password, reason in GUESSES:
                assert await told(broker, user, password) == reason
            async with await enter(broker, "alice", "right") as client:
                assert [await rights(client, topic) for topic in ("both", "read", "none")] == ["ps", "s", ""]

    asyncio.run(fill())
    run(scene())


def test_jwt_users_and_topics() -> None:
    def token(minutes: int = 5, key: str = SECRET) -> str:
        until = datetime.now(UTC) + timedelta(minutes=minutes)
        claims = {"name": "alice", "exp": until, "may_pub": ["a/#"], "may_sub": ["a/+"], "may_rec": []}
        return jwt.encode(claims, key, "HS256")

    async def scene() -> None:
        plugins = [
            {"amqtt.contrib.jwt.UserAuthJwtPlugin": {"secret_key": SECRET, "user_claim": "name"}},
            {"amqtt.contrib.jwt.TopicAuthJwtPlugin": {"secret_key": SECRET, **CLAIMS}},
        ]
        async with hosting(*plugins) as broker:
            assert await told(broker, "alice", token(-1)) == 0x87
            assert await told(broker, "alice", token(key=SECRET[::-1])) == 0x87
            assert await told(broker, "bob", token()) == 0x87
            async with await enter(broker, "alice", token()) as client:
                assert [await rights(client, topic) for topic in ("a/b", "a/b/c", "b")] == ["ps", "p", ""]
                assert await client.publish("a/b") == 0
                await until(lambda: bool(broker.snapshot().stats.dropped), "may subscribe, and not receive")

    run(scene())


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/user":
            ok = asked["username"] == "alice" and asked["password"] == "right"
        else:
            ok = asked["topic"] == "both" or (asked["topic"] == "read" and asked["acc"] == 4)
        body = json.dumps({"ok": ok}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def http() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_http_users_and_topics() -> None:
    async def scene(port: int) -> None:
        where = {"host": "127.0.0.1", "port": port}
        plugins = [
            {"amqtt.contrib.http.UserAuthHttpPlugin": where},
            {"amqtt.contrib.http.TopicAuthHttpPlugin": where},
        ]
        async with hosting(*plugins) as broker:
            for user, password, reason in GUESSES:
                assert await told(broker, user, password) == reason
            async with await enter(broker, "alice", "right") as client:
                assert [await rights(client, topic) for topic in ("both", "read", "none")] == ["ps", "s", ""]

    with http() as port:
        run(scene(port))


class _Ldap(ModuleType):
    """As much of python-ldap as the plugins use, with one directory behind it."""

    VERSION3 = 3
    SCOPE_SUBTREE = 2
    PEOPLE = {"alice": "right"}  # noqa: RUF012

    class LDAPError(Exception):
        pass

    class INVALID_CREDENTIALS(LDAPError):
        pass

    def initialize(self, server: str) -> Any:
        def bind(dn: str, password: str | None) -> None:
            name = dn.partition(",")[0].removeprefix("uid=")
            if dn != "cn=admin" and self.PEOPLE.get(name) != password:
                raise self.INVALID_CREDENTIALS

        def search(base: str, scope: int, search: str, attributes: list[str]) -> list[Any]:
            name = search.strip("()").partition("=")[2]
            entry = {"pub": [b"both"], "sub": [b"both", b"read"], "rec": [b"both"]}
            return [(f"uid={name},{base}", entry)] if name in self.PEOPLE else []

        return SimpleNamespace(simple_bind_s=bind, search_s=search)


def test_ldap_users_and_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ldap", _Ldap("ldap"))
    monkeypatch.delitem(sys.modules, "amqtt.contrib.ldap", raising=False)
    settings = {"server": "ldap://x", "base_dn": "dc=x", "user_attribute": "uid", "bind_dn": "cn=admin",
                "bind_password": "a"}  # fmt: skip
    attributes = {"publish_attribute": "pub", "subscribe_attribute": "sub", "receive_attribute": "rec"}

    async def scene() -> None:
        plugins = [
            {"amqtt.contrib.ldap.UserAuthLdapPlugin": settings},
            {"amqtt.contrib.ldap.TopicAuthLdapPlugin": {**settings, **attributes}},
        ]
        async with hosting(*plugins) as broker:
            for user, password, reason in GUESSES:
                assert await told(broker, user, password) == reason
            async with await enter(broker, "alice", "right") as client:
                assert [await rights(client, topic) for topic in ("both", "read", "none")] == ["ps", "s", ""]

    run(scene())
    monkeypatch.delitem(sys.modules, "amqtt.contrib.ldap", raising=False)


@asynccontextmanager
async def tls_client(broker: Broker, context: ssl.SSLContext) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port, ssl=context, server_hostname="127.0.0.1")
    client = RawClient(reader, writer, 5)
    try:
        yield client
    finally:
        client.abort()


def test_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.sign("server", "127.0.0.1")
    device = authority.sign("device", uri="spiffe://example.org/device/sensor-7")
    listener = Listener(
        url="tls://127.0.0.1:0",
        certfile=server.certfile,
        keyfile=server.keyfile,
        cafile=authority.cafile,
        client_certificates="optional",
    )
    settings = {"amqtt.contrib.cert.UserAuthCertPlugin": {"uri_domain": "example.org"}}

    async def scene() -> None:
        async with hosting(settings, listeners=[listener]) as broker:
            for context, client_id, reason in (
                (authority.trusting(device), "sensor-7", 0),
                (authority.trusting(device), "sensor-8", 0x87),
                (authority.trusting(), "sensor-7", 0x87),
            ):
                async with tls_client(broker, context) as client:
                    client.send(Connect(client_id, keep_alive=0))
                    assert (await client.expect(Connack)).reason == reason

    run(scene())


# what they may do


@pytest.mark.filterwarnings("ignore:The 'acl' option:DeprecationWarning")  # and there is no other one in its settings
def test_access_lists_for_publishing_subscribing_and_receiving() -> None:
    lists = {"acl": {"alice": ["a/#"], "anonymous": ["free"]}, "publish_acl": {"alice": ["a/b"]}}
    plugin = {"amqtt.plugins.topic_checking.TopicAccessControlListPlugin": lists}

    async def scene() -> None:
        async with hosting(ANONYMOUS, plugin) as broker:
            async with await enter(broker, "alice") as client:
                assert [await rights(client, topic) for topic in ("a/c", "b")] == ["s", ""]
                assert await client.publish("a/b") == 0x10
            async with await enter(broker, None) as client:
                assert await rights(client, "free") == "s"

    run(scene())


# what they do besides


@pytest.mark.filterwarnings("ignore:.*psutil:DeprecationWarning")
def test_sys_topics_of_the_plugin_replace_ours() -> None:
    async def scene() -> None:
        plugin = {"amqtt.plugins.sys.broker.BrokerSysPlugin": {"sys_interval": 1}}
        async with (
            hosting(ANONYMOUS, plugin, sys_interval_s=0.01) as broker,
            await enter(broker, "u") as client,
        ):
            await client.subscribe("$SYS/#")
            message = await client.message()
            assert (message.topic, message.payload[:13]) == ("$SYS/broker/version", b"aMQTT version")
            seen: dict[str, bytes] = {}
            while "$SYS/broker/clients/connected" not in seen or len(seen) < 20:
                message = await client.message()
                seen[message.topic] = message.payload
            assert seen["$SYS/broker/clients/connected"] == b"1"
            assert int(seen["$SYS/broker/messages/received"]) >= 2
            assert not any(topic.startswith("$SYS/tidings") for topic in seen)

    run(scene())


def test_device_shadows(tmp_path: Path) -> None:
    async def scene() -> None:
        settings = {"amqtt.contrib.shadows.ShadowPlugin": {"connection": f"sqlite+aiosqlite:///{tmp_path}/s.db"}}
        async with hosting(ANONYMOUS, settings) as broker, await enter(broker, "u") as client:
            for what in ("get/rejected", "update/accepted", "update/delta", "get/accepted"):
                await client.subscribe(f"$shadow/dev/door/{what}", 1)
            assert await client.publish("$shadow/dev/door/get", b"{}") == 0x10
            assert (await client.message()).topic == "$shadow/dev/door/get/rejected"
            update = {"state": {"desired": {"open": True}, "reported": {"open": False}}}
            client.send(Publish("$shadow/dev/door/update", json.dumps(update).encode()))
            accepted, delta = await client.message(), await client.message()
            assert accepted.topic == "$shadow/dev/door/update/accepted"
            assert json.loads(accepted.payload)["state"] == update["state"]
            assert json.loads(delta.payload)["state"] == {"open": True}
            client.send(Publish("$shadow/dev/door/get", b"{}"))
            assert json.loads((await client.message()).payload)["state"] == update["state"]

    run(scene())


def test_sessions_that_a_plugin_kept_come_back(tmp_path: Path) -> None:
    settings = {
        "amqtt.contrib.persistence.SessionDBPlugin": {
            "connection": f"sqlite+aiosqlite:///{tmp_path}/sessions.db",
            "clear_on_shutdown": False,
        }
    }
    named = {ANONYMOUS: {"allow_anonymous": False}}

    async def before() -> None:
        async with hosting(named, settings) as broker:
            client = await enter(broker, "u", client_id="c", clean_start=False, version=4)
            await client.subscribe("a/#", 1)
            client.abort()
            async with await enter(broker, "u", client_id="w") as writer:
                writer.send(Publish("kept", b"k", 1, True, packet_id=1))
                await writer.expect(Puback)
                await until(lambda: broker.snapshot().clients_disconnected == 1)
                assert await writer.publish("a/b", b"waits", 2) == 0

    async def after() -> None:
        async with hosting(named, settings) as broker:
            client = await enter(broker, "u", client_id="c", clean_start=False, version=4)
            message = await client.message()
            assert (message.topic, message.payload) == ("a/b", b"waits")
            await client.subscribe("kept")
            assert (await client.message()).payload == b"k"
            client.abort()

    run(before())
    run(after())
