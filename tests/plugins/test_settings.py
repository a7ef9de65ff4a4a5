"""amqtt's configuration files, read as they are."""

from pathlib import Path
from typing import Any

import pytest

from tidings.broker import Config, ConfigError, Listener
from tidings.broker.codec.packets import Connack, Connect
from tidings.broker.plugins.settings import read_config

from ..raw_client import RawClient, run
from ..server_process import ServerProcess
from .samples import ANONYMOUS


def read(tmp_path: Path, text: str) -> tuple[Config, list[str]]:
    path = tmp_path / "broker.yaml"
    path.write_text(text)
    config, notes = read_config(path)
    assert all(note.startswith(f"{path}: ") for note in notes)
    return config, [note.removeprefix(f"{path}: ") for note in notes]


def urls(config: Config) -> list[str]:
    return [each.url if isinstance(each, Listener) else each for each in config.listeners]


def test_file_of_ours_stays_ours(tmp_path: Path) -> None:
    config, notes = read(tmp_path, "listeners: ['tcp://127.0.0.1:1']\nplugins:\n  - a.B:\n      c: 1\n  - d.E\n")
    assert notes == []
    assert config.plugins == {"a.B": {"c": 1}, "d.E": {}}
    with pytest.raises(ConfigError, match="did you mean listeners"):
        read(tmp_path, "listener: []\n")


def test_example_of_amqtt_with_everything(tmp_path: Path) -> None:
    for name in ("ca.crt", "server.crt", "server.key"):
        (tmp_path / name).write_text("")
    config, notes = read(
        tmp_path,
        f"""
listeners:
  default:
    max_connections: 500
    type: tcp
  my-tcp-1:
    bind: 127.0.0.1:1883
  my-tcp-2:
    bind: 127.0.0.1:1884
    ssl: on
    cafile: {tmp_path}/ca.crt
    certfile: {tmp_path}/server.crt
    keyfile: {tmp_path}/server.key
    capath: {tmp_path}
  my-ws-1:
    bind: "[::1]:8080"
    type: ws
  elsewhere:
    type: external
    bind: 127.0.0.1:1
  unbound:
    type: ws
timeout-disconnect-delay: 2
session_expiry_interval: 3600
max_queued_messages: 77
plugins:
  - {ANONYMOUS}:
      allow_anonymous: true
  - amqtt.plugins.sys.broker.BrokerSysPlugin:
      sys_interval: 10
""",
    )
    assert urls(config) == [
        "tcp://127.0.0.1:1883",
        "tls://127.0.0.1:1884",
        "ws://[::1]:8080",
    ]
    tls: Any = config.listeners[1]
    assert (tls.client_certificates, tls.cafile) == ("optional", tmp_path / "ca.crt")
    assert (config.max_session_expiry_s, config.max_queued_messages) == (3600, 77)
    assert config.plugins == {
        ANONYMOUS: {"allow_anonymous": True},
        "amqtt.plugins.sys.broker.BrokerSysPlugin": {"sys_interval": 10},
    }
    assert [note.partition(":")[0] for note in notes] == [
        "listeners.default",
        "listeners.my-tcp-2.capath",
        "listeners.elsewhere",
        "listeners.unbound",
        "listeners",
        "timeout-disconnect-delay",
    ]


@pytest.mark.parametrize(
    ("bind", "url"),
    [
        ("127.0.0.1:5", "tcp://127.0.0.1:5"),
        ("'5'", "tcp://0.0.0.0:5"),
        ("5", "tcp://0.0.0.0:5"),
        ("':5'", "tcp://0.0.0.0:5"),
        ("'[::]:5'", "tcp://[::]:5"),
        ("'[::1]'", "tcp://[::1]:1883"),
        ("localhost", "tcp://localhost:1883"),
        ("''", "tcp://0.0.0.0:1883"),
    ],
)
def test_address_to_bind_to(tmp_path: Path, bind: str, url: str) -> None:
    config, _ = read(tmp_path, f"listeners:\n  default:\n    type: tcp\n    bind: {bind}\nplugins: {{}}\n")
    assert urls(config) == [url]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("listeners: {default: {bind: '1:2:3:4'}}", "default.bind: expected HOST:PORT"),
        ("listeners: {default: {bind: '127.0.0.1:99999'}}", "default.bind: expected HOST:PORT"),
        ("listeners: {default: {bind: 'a b:1'}}", "default.bind: expected HOST:PORT"),
        ("listeners: {default: {type: udp}}", "listeners.default.type: expected 'tcp', 'ws' or 'external'"),
        ("listeners: {default: {port: 1}}", "listeners.default.port: expected one of"),
        ("listeners: {default: {ssl: on}}", "ssl needs certfile and keyfile"),
        ("listeners: {default: {}}\nplugin: {}", "did you mean plugins"),
        ("listeners: {default: {}}\nplugins: [3]", "names of classes"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(ConfigError, match=f"broker.yaml.*{error}"):
        read(tmp_path, text)


def test_old_style_keeps_its_sections_for_the_plugins(tmp_path: Path) -> None:
    text = (
        "sys_interval: 3\nauth:\n  allow-anonymous: true\n  plugins: [auth_anonymous]\ntopic-check:\n  enabled: false\n"
    )
    config, notes = read(tmp_path, text)
    assert config.plugin_sections == {
        "sys_interval": 3,
        "auth": {"allow-anonymous": True, "plugins": ["auth_anonymous"]},
        "topic_check": {"enabled": False},
    }
    assert (notes, config.plugins, urls(config)) == ([], {}, ["tcp://127.0.0.1:1883"])
    _, notes = read(tmp_path, f"{text}plugins: {{}}\n")
    assert notes == ["auth, sys_interval, topic_check: of amqtt's old style, and not read beside 'plugins'"]


def test_without_plugins_everybody_comes_in_and_the_file_is_told_so(tmp_path: Path) -> None:
    config, notes = read(tmp_path, "listeners:\n  default:\n    bind: 127.0.0.1:0\n")
    assert config.plugins == {}
    assert "everybody is let in" in notes[0]


def test_server_runs_with_a_file_of_amqtt(tmp_path: Path) -> None:
    path = tmp_path / "amqtt.yaml"
    path.write_text(
        "listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:0\n    max-connections: 5\n"
        f"plugins:\n  {ANONYMOUS}:\n    allow_anonymous: false\n"
    )

    async def scene(port: int) -> None:
        for user, reason in (("u", 0), (None, 0x87)):
            client = await RawClient.open(f"tcp://127.0.0.1:{port}")
            client.send(Connect("c", username=user))
            assert (await client.expect(Connack)).reason == reason
            client.abort()

    server = ServerProcess(tmp_path, "--memory", "--config", str(path))
    try:
        run(scene(server.port))
        ended = server.stop()
        assert ended.code == 0
        assert "max_connections is not honoured" in ended.err
    finally:
        server.kill()
