"""Password file, access file and bans together with plugins: everybody has to agree."""

from pathlib import Path
from typing import Any

import pytest

from tidings.broker.access.users import MIN_ROUNDS, new_user, put_user
from tidings.broker.codec.packets import Puback, Publish

from ..raw_client import run
from .samples import ANONYMOUS, Diary, Moody, attempt, hosting, path


@pytest.fixture
def passwords(tmp_path: Path) -> Path:
    file = tmp_path / "passwords"
    for name in ("yes", "no"):
        put_user(file, new_user(name, "right", scram=True, rounds=MIN_ROUNDS))
    return file


@pytest.fixture
def access(tmp_path: Path) -> Path:
    file = tmp_path / "access"
    file.write_text("user yes\n allow all yes/%u/#\n allow all no/#\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    ("user", "password", "reason"),
    [("yes", "right", 0), ("yes", "wrong", 0x86), ("no", "right", 0x87), ("other", "right", 0x86)],
)
def test_password_file_and_plugin_have_to_agree(passwords: Path, user: str, password: str, reason: int) -> None:
    async def scene() -> None:
        async with hosting(Moody, password_file=passwords) as broker:
            client, said = await attempt(broker, user, password)
            assert said == reason
            client.abort()

    run(scene())


def test_plugins_that_only_look_on_leave_it_to_the_password_file(passwords: Path) -> None:
    async def scene() -> None:
        async with hosting(Diary, password_file=passwords) as broker:
            client, said = await attempt(broker, "no", "right")
            assert said == 0
            client.abort()

    run(scene())


@pytest.mark.parametrize(
    ("topic", "may"), [("yes/yes/t", True), ("yes/other/t", False), ("no/t", False)], ids=["both", "plugin", "file"]
)
def test_access_file_and_plugin_have_to_agree(access: Path, topic: str, may: bool) -> None:
    async def scene() -> None:
        async with hosting(Moody, access_file=access) as broker:
            client, said = await attempt(broker, "yes")
            assert said == 0
            client.send(Publish(topic, b"", 1, packet_id=1))
            assert (await client.expect(Puback)).reason == (0x10 if may else 0x87)
            client.abort()

    run(scene())


def test_name_that_nobody_has_proved_has_no_rights_in_the_access_file(access: Path) -> None:
    async def scene() -> None:
        async with hosting(ANONYMOUS, access_file=access) as broker:
            client, said = await attempt(broker, "yes")
            assert said == 0
            assert await client.publish("yes/yes/t") == 0x87
            client.abort()

    run(scene())


@pytest.mark.parametrize("bans", [{"banned_users": ["y*"]}, {"banned_clients": ["bad-*"]}])
def test_bans_hold_for_those_whom_plugins_let_in(bans: dict[str, Any]) -> None:
    async def scene() -> None:
        async with hosting(Moody, **bans) as broker:
            client, said = await attempt(broker, "yes", client_id="bad-1")
            assert said in (0x87, 0x8A)
            client.abort()
            if "banned_clients" in bans:
                client, said = await attempt(broker, "yes", client_id="good")
                assert said == 0
                client.abort()

    run(scene())


def test_plugins_stay_as_they_are_in_a_reload(passwords: Path) -> None:
    async def scene() -> None:
        async with hosting(Moody, password_file=passwords) as broker:
            client, said = await attempt(broker, "yes", "right")
            assert said == 0
            assert "2 users" in broker.reload()
            assert await client.publish("no/t") == 0x87
            client.abort()
            assert path(Moody) in broker.config.plugins

    run(scene())
