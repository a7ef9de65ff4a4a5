"""What nobody may see: passwords, hashes and proofs, in anything that the broker writes or publishes."""

import logging
import re
from pathlib import Path
from typing import Any, cast

import pytest
from scramp import ScramClient

from tidings.broker.access.users import MIN_ROUNDS, new_user, put_user
from tidings.broker.codec.packets import Auth, Connack, Connect, Publish, Will
from tidings.broker.codec.properties import Properties

from ..raw_client import RawClient, run, serve

METHOD = "SCRAM-SHA-256"
SECRET = "t0psecret"
PAYLOAD = "pr1vate"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sys_topics_snapshot_and_log_have_no_secrets_in_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    caplog.set_level(logging.DEBUG)
    passwords, access = tmp_path / "passwords", tmp_path / "access"
    put_user(passwords, new_user("alice", SECRET))
    put_user(passwords, new_user("sam", SECRET, scram=True, rounds=MIN_ROUNDS))
    access.write_text("everybody\n deny publish x/#\n allow all #\n allow subscribe $SYS/#\n")
    access.chmod(0o600)
    hashes = re.findall(r"[A-Za-z0-9+/=]{20,}", passwords.read_text())
    assert len(hashes) >= 4
    sent: list[bytes] = []  # of SCRAM

    async def scram(client: RawClient, password: str) -> int:
        dialogue = ScramClient([METHOD], "sam", password)
        first = dialogue.get_client_first().encode()
        properties: dict[str, Any] = {"authentication_method": METHOD, "authentication_data": first}
        client.send(Connect("s", properties=cast(Properties, properties)))
        challenge = (await client.expect(Auth)).properties["authentication_data"]
        dialogue.set_server_first(challenge.decode())
        final = dialogue.get_client_final().encode()
        sent.extend((first, final))
        client.send(Auth(0x18, {"authentication_method": METHOD, "authentication_data": final}))
        return (await client.expect(Connack)).reason

    async def scene() -> str:
        async with serve(password_file=passwords, access_file=access, sys_interval_s=0.1) as broker:
            url = broker.urls[0]
            for number, (password, code) in enumerate([(SECRET, 0), (SECRET + "!", 0x86)]):
                client = await RawClient.open(url)
                will = Will("w", PAYLOAD.encode())
                client.send(Connect(f"c{number}", username="alice", password=password.encode(), will=will))
                assert (await client.expect(Connack)).reason == code
                if not code:
                    assert await client.publish("x/1", PAYLOAD.encode()) == 0x87
                    await client.subscribe("q/#", 1)
                    client.send(Publish("q/1", PAYLOAD.encode()))
                    await client.message()
                client.abort()
            for password, code in (SECRET, 0), (SECRET + "!", 0x86):
                async with await RawClient.open(url) as client:
                    assert await scram(client, password) == code
            async with await RawClient.open(url) as watcher:
                watcher.send(Connect("watcher", username="alice", password=SECRET.encode()))
                assert (await watcher.expect(Connack)).reason == 0
                await watcher.subscribe("$SYS/#")
                topics: dict[str, bytes] = {}
                wanted = {"tidings/memory/budget", "tidings/not-authorized/publish", "broker/uptime"}
                while not {f"$SYS/{name}" for name in wanted} <= topics.keys():
                    message = await watcher.message()
                    topics[message.topic] = message.payload
            return f"{topics} {broker.snapshot()!r} {broker.config!r}"

    shown = run(scene(), loop)
    assert "wrong password" in caplog.text
    secrets = [SECRET, PAYLOAD, *hashes, *(data.decode() for data in sent)]
    assert [each for each in secrets if each in shown or each in caplog.text] == []
