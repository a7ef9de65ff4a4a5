"""A broker that asks for passwords: files, threads, and new files while it runs."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tidings.broker import Broker, BrokerError, Config, ConfigError
from tidings.broker.access.users import MIN_ROUNDS, User, new_user, put_user, remove_user
from tidings.broker.codec.packets import Connack, Connect, Disconnect, Pingreq, Pingresp, Publish

from ..core.gate import ListGate
from ..raw_client import RawClient, run, serve


def put(path: Path, name: str, password: str = "right") -> None:
    put_user(path, new_user(name, password, scram=True, rounds=MIN_ROUNDS))


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    for name in ("alice", "bob"):
        put(path, name)
    return path


@pytest.fixture
def access(tmp_path: Path) -> Path:
    path = tmp_path / "access"
    path.write_text("user alice\n allow all a/#\nuser bob\n allow all #\n")
    path.chmod(0o600)
    return path


def write(path: Path, text: str) -> None:
    path.write_text(text)


@asynccontextmanager
async def login(broker: Broker, user: str, password: str = "right", client_id: str = "") -> AsyncIterator[RawClient]:
    """A connection on which CONNECT was answered: ``client.connack``."""
    async with await RawClient.open(broker.urls[0]) as client:
        client.send(Connect(client_id or user, username=user, password=password.encode(), keep_alive=0))
        client.connack = await client.expect(Connack)
        yield client


async def answer(broker: Broker, user: str, password: str = "right", client_id: str = "") -> int:
    async with login(broker, user, password, client_id) as client:
        return client.connack.reason


async def alive(client: RawClient) -> None:
    client.send(Pingreq())
    await client.expect(Pingresp)


def test_users_are_let_in_by_their_passwords_of_either_kind(passwords: Path) -> None:
    put_user(passwords, new_user("argon", "right"))

    async def main() -> None:
        async with serve(password_file=passwords) as broker:
            assert [await answer(broker, user) for user in ("alice", "argon")] == [0, 0]
            assert await answer(broker, "argon", "wrong") == 0x86
            assert await answer(broker, "nobody") == 0x86

    run(main())


def test_a_password_that_takes_long_to_check_holds_up_nobody_else(
    passwords: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    matches = User.matches

    def slowly(user: User, password: bytes) -> bool:
        if user.name == "bob":
            begun.set()
            assert go_on.wait(10)
            assert threading.current_thread() is not threading.main_thread()
        return matches(user, password)

    monkeypatch.setattr(User, "matches", slowly)

    async def main() -> None:
        async with (
            serve(password_file=passwords) as broker,
            login(broker, "alice") as alice,
            await RawClient.open(broker.urls[0]) as bob,
        ):
            bob.send(Connect("bob", username="bob", password=b"right"))
            await asyncio.to_thread(begun.wait, 10)
            await alive(alice)
            go_on.set()
            assert (await bob.expect(Connack)).reason == 0

    run(main())


def test_a_stop_does_not_wait_for_passwords(passwords: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(user: User, password: bytes) -> bool:
        begun.set()
        return go_on.wait(10)

    monkeypatch.setattr(User, "matches", slowly)

    async def main() -> None:
        async with serve(password_file=passwords) as broker:
            clients = []
            for number in range(5):
                clients.append(await RawClient.open(broker.urls[0]))
                clients[-1].send(Connect(f"c{number}", username="bob", password=b"right"))
            await asyncio.to_thread(begun.wait, 10)
        go_on.set()
        for client in clients:
            client.abort()

    run(main())


def test_an_error_of_ours_lets_nobody_in(
    passwords: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(user: User, password: bytes) -> bool:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(User, "matches", fail)

    async def main() -> None:
        async with serve(password_file=passwords) as broker:
            assert await answer(broker, "alice") == 0x86

    run(main())
    assert "internal error while checking a password" in caplog.text


def test_new_files_hold_at_once_and_those_who_are_not_welcome_any_more_go(passwords: Path, access: Path) -> None:
    async def main() -> None:
        async with (
            serve(password_file=passwords, access_file=access) as broker,
            login(broker, "alice") as alice,
            login(broker, "bob") as bob,
        ):
            assert [await alice.subscribe(filter) for filter in ("a/1", "a/2", "b")] == [0, 0, 0x87]
            remove_user(passwords, "bob")
            put(passwords, "carol")
            write(access, "user alice\n allow subscribe a/1\n")
            assert broker.reload() == "certificates of 0 listeners, 2 users, 1 access lines, 1 clients cut off"
            assert (await bob.expect(Disconnect)).reason == 0x87
            assert await answer(broker, "bob") == 0x86
            assert await answer(broker, "carol") == 0
            assert broker.snapshot().subscriptions == 1
            assert await alice.publish("a/1") == 0x87
            await broker.publish("a/2", b"hidden")
            await broker.publish("a/1", b"shown")
            assert (await alice.expect(Publish)).payload == b"shown"
            put(passwords, "alice", "another")
            broker.reload()
            assert (await alice.expect(Disconnect)).reason == 0x87
            assert await answer(broker, "alice") == 0x86
            assert await answer(broker, "alice", "another") == 0

    run(main())


def test_subscriptions_of_those_who_were_away_are_held_to_the_new_rules(passwords: Path, access: Path) -> None:
    async def main() -> None:
        async with serve(password_file=passwords, access_file=access) as broker:
            for turn in range(2):
                async with await RawClient.open(broker.urls[0]) as client:
                    kept: Any = {"session_expiry_interval": 600}
                    packet = Connect("s", username="alice", password=b"right", clean_start=False, properties=kept)
                    client.send(packet)
                    assert (await client.expect(Connack)).session_present is bool(turn)
                    if turn:
                        assert broker.snapshot().subscriptions == 1
                        await alive(client)  # the message that waited was on a topic that is hidden now
                        return
                    for filter in ("a/1", "a/2"):
                        assert await client.subscribe(filter, 1) == 1
                await broker.publish("a/2", b"hidden", qos=1)
                write(access, "user alice\n allow subscribe a/1\n")
                broker.reload()

    run(main())


def break_something(what: str, passwords: Path, access: Path) -> dict[str, Any]:
    """Make one thing wrong; the changes of the configuration that go with it."""
    if what == "passwords":
        write(passwords, "nonsense\n")
    elif what == "mode":
        passwords.chmod(0o644)
    elif what == "access":
        write(access, "allow all #\n")
    elif what == "none":
        access.unlink()
    elif what == "config":
        return {"max_connections": 7, "durability": "os", "max_routes": 5}
    else:
        return {"max_connections": 7, "listeners": ["tcp://127.0.0.1:1"]}
    return {"max_connections": 7}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("passwords", "passwords:1: expected NAME:HASH"),
        ("mode", "others may read or change it"),
        ("access", "access:1: expected whom it is for"),
        ("none", "access file .*: cannot be read: No such file"),
        ("config", "durability, max_routes: cannot change while the broker runs; restart it"),
        ("listeners", "listeners: addresses and proxy_protocol cannot change"),
    ],
)
def test_a_mistake_anywhere_changes_nothing(passwords: Path, access: Path, what: str, words: str) -> None:
    async def main() -> None:
        async with serve(password_file=passwords, access_file=access) as broker, login(broker, "alice") as alice:
            put(passwords, "carol")
            config = break_something(what, passwords, access)
            before = broker.config
            with pytest.raises(ConfigError, match=words):
                broker.reload(before.model_copy(update=config))
            assert broker.config is before
            assert await answer(broker, "bob") == 0
            assert await answer(broker, "carol") == 0x86
            assert await alice.publish("a/1") == 0x10
            assert await alice.publish("b") == 0x87

    run(main())


def test_limits_are_taken_over(passwords: Path) -> None:
    async def main() -> None:
        async with serve(password_file=passwords) as broker, login(broker, "alice") as alice:
            changes = {"max_connections": 1, "banned_users": ["b*"], "max_subscriptions": 1}
            broker.reload(broker.config.model_copy(update=changes))
            with pytest.raises((EOFError, OSError)):
                await answer(broker, "bob")
            assert [await alice.subscribe(filter) for filter in ("a", "b")] == [0, 0x97]
            broker.reload(broker.config.model_copy(update={"max_connections": 10}))
            assert await answer(broker, "bob") == 0x8A
            await alive(alice)

    run(main())


def test_a_broker_that_was_started_open_stays_so(passwords: Path) -> None:
    async def main() -> None:
        async with serve() as broker:
            with pytest.raises(ConfigError, match="that was started with any; restart it"):
                broker.reload(broker.config.model_copy(update={"password_file": passwords}))
            assert broker.reload() == "certificates of 0 listeners"

    run(main())


def test_a_broker_that_does_not_run_reads_nothing() -> None:
    with pytest.raises(BrokerError, match="is not running"):
        Broker(Config(listeners=[])).reload()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "this broker asks nobody for a password"),
        ({"allow_anonymous": True, "password_file": "passwords"}, "this broker asks nobody for a password"),
        ({"access_file": "access"}, "this broker asks nobody for a password"),
        ({"password_file": "passwords"}, ""),
        ({"allow_anonymous_remote": True}, ""),
    ],
)
def test_other_machines_are_let_in_by_password_only(
    passwords: Path, access: Path, options: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"passwords": passwords, "access": access}
    config = {name: files.get(value, value) if isinstance(value, str) else value for name, value in options.items()}
    config["listeners"] = ["tcp://0.0.0.0:0"]
    if words:
        with pytest.raises(ConfigError, match=words):
            Broker(Config.model_validate(config))
        return
    with caplog.at_level(logging.WARNING):
        Broker(Config.model_validate(config))
    warned = "listener tcp://0.0.0.0:0: passwords cross the network in the clear; tls:// and wss:// do not"
    assert (warned in caplog.messages) is ("password_file" in options)


def test_a_gate_of_the_program_is_the_only_one(passwords: Path) -> None:
    with pytest.raises(ConfigError, match="use one of them"):
        Broker(Config(password_file=passwords), gate=ListGate())
