"""``tidings broker`` as a process: how it starts, what it says when it cannot, and how it stops."""

import contextlib
import queue
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from ..server_process import TIDINGS, Exit, ServerProcess, clean_environment

HOST = "127.0.0.1"
ANY = ("--memory", "--listen", f"tcp://{HOST}:0")
TIMEOUT_S = 10

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start brokers that end with the test; returns once one accepts connections."""
    started: list[ServerProcess] = []

    def run(*args: str, listeners: int = 1) -> ServerProcess:
        started.append(ServerProcess(tmp_path, *args, listeners=listeners))
        return started[-1]

    yield run
    for server in started:
        server.kill()


def refused(*args: str) -> Exit:
    """Run a broker that does not start."""
    command = [str(TIDINGS), "broker", *args]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S, env=clean_environment()
    )
    return Exit(done.returncode, done.stdout, done.stderr)


def connected(port: int, version: MQTTProtocolVersion) -> "tuple[mqtt.Client, queue.Queue[int]]":
    """A client, and the reason codes of its disconnections."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=version, reconnect_on_failure=False)
    connects: queue.Queue[int] = queue.Queue()
    ends: queue.Queue[int] = queue.Queue()
    client.on_connect = lambda client, data, flags, reason, properties: connects.put(reason.value)
    client.on_disconnect = lambda client, data, flags, reason, properties: ends.put(reason.value)
    client.connect(HOST, port)
    client.loop_start()
    assert connects.get(timeout=TIMEOUT_S) == 0
    return client, ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.clause("5.0 MQTT-4.13.1-1")
def test_a_signal_ends_it_well_and_tells_the_clients(start: Start, number: signal.Signals) -> None:
    server = start(*ANY)
    modern, modern_ends = connected(server.port, MQTTProtocolVersion.MQTTv5)
    old, old_ends = connected(server.port, MQTTProtocolVersion.MQTTv311)
    assert server.stop(number) == Exit(0, "", "")
    assert modern_ends.get(timeout=TIMEOUT_S) == 0x8B  # Server shutting down
    old_ends.get(timeout=TIMEOUT_S)
    for client in (modern, old):
        client.loop_stop()


def test_a_client_that_does_not_read_cannot_hold_the_stop_up(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "broker.yaml"
    config.write_text("stop_timeout_s: 0.2\n")
    server = start("--config", str(config), *ANY)
    with socket.create_connection((HOST, server.port)) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.sendall(bytes.fromhex("10 0d 00044d515454 04 02 0000 0001 61"))
        silent.sendall(bytes.fromhex("82 06 0001 0001 23 00"))  # SUBSCRIBE to #
        flood = b"\x30\x83\x80\x04\x00\x01x" + bytes(65_536)
        with socket.create_connection((HOST, server.port)) as loud:
            loud.sendall(bytes.fromhex("10 0d 00044d515454 04 02 0000 0001 62"))
            loud.sendall(flood * 64 + b"\xc0\x00")
            loud.settimeout(TIMEOUT_S)
            assert len(loud.recv(4)) == 4  # CONNACK
            assert loud.recv(2) == b"\xd0\x00"  # PINGRESP: it took everything
        assert server.stop().code == 0


def test_the_same_port_is_free_again_at_once(start: Start) -> None:
    first = start(*ANY)
    client, ends = connected(first.port, MQTTProtocolVersion.MQTTv5)
    first.stop()
    ends.get(timeout=TIMEOUT_S)
    client.loop_stop()
    assert start("--memory", "--listen", first.urls[0]).urls == first.urls


def test_every_listener_is_told_once_it_accepts(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    server = start(*ANY, "--listen", f"unix://{path}", "--listen", "tcp://[::1]:0", listeners=3)
    assert [url.rpartition(":")[0] for url in server.urls] == [f"tcp://{HOST}", "unix", "tcp://[::1]"]
    socket.create_connection((HOST, server.port)).close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
    assert server.stop() == Exit(0, "", "")
    assert not path.exists()


def test_a_socket_file_that_a_crash_left_behind_does_not_hinder(start: Start, tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'mqtt.sock'}"
    start("--memory", "--listen", url).kill()
    assert (tmp_path / "mqtt.sock").exists()
    assert start("--memory", "--listen", url).urls == [url]


def test_a_port_in_use_is_one_line_and_exit_1(start: Start) -> None:
    url = start(*ANY).urls[0]
    done = refused("--memory", "--listen", url)
    reason = "it is in use; stop the program that has it or choose another one"
    assert done == Exit(1, "", f"Error: cannot listen on {url}: {reason}\n")


def test_a_socket_file_in_use_is_one_line_and_exit_1(start: Start, tmp_path: Path) -> None:
    url = f"unix://{tmp_path / 'mqtt.sock'}"
    start("--memory", "--listen", url)
    done = refused("--memory", "--listen", url)
    reason = "it is in use; stop the program that has it or choose another one"
    assert done == Exit(1, "", f"Error: cannot listen on {url}: {reason}\n")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:1883", "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"),
        ("http://127.0.0.1", "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"),
        ("tcp://127.0.0.1:70000", "Port out of range 0-65535"),
        ("tcp://127.0.0.1:x", "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"),
        ("tcp://user@127.0.0.1", "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"),
        ("unix://mqtt.sock", "a path needs three slashes"),
        ("", "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"),
        ("tcp://0.0.0.0:0", "can be reached from other machines"),
    ],
)
def test_a_wrong_or_unsafe_url_is_one_line_and_exit_2(tidings: Any, url: str, words: str) -> None:
    done = tidings("broker", "--memory", "--listen", url)
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert done.err.startswith("Error: listener ")
    assert url in done.err
    assert words in done.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_inflight: 5\nmax_inflihgt: 6\n", ":2: max_inflihgt: expected one of "),
        ("max_inflihgt: 6\n", "(did you mean max_inflight?)"),
        ("# few\nmax_inflight: 0\n", ":2: max_inflight: expected greater than or equal to 1, got 0"),
        ("max_inflight: many\n", ":1: max_inflight: expected a valid integer"),
        ("max_inflight: 1\nmax_inflight: 2\n", ":2: max_inflight: expected each key once"),
        ("listeners: tcp://127.0.0.1:0\n", ":1: listeners: expected a valid list, got 'tcp://127.0.0.1:0'"),
        ("listeners: [\n", "not valid YAML"),
        ("- a\n", ":1: expected a mapping of keys, got a list"),
    ],
)
def test_a_wrong_config_names_file_line_key_and_what_was_expected(
    tidings: Any, tmp_path: Path, text: str, words: str
) -> None:
    config = tmp_path / "broker.yaml"
    config.write_text(text)
    done = tidings("broker", "--memory", "--config", str(config))
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert done.err.startswith(f"Error: {config}:")
    assert words in done.err


def test_a_config_that_is_not_there_is_one_line_and_exit_2(tidings: Any, tmp_path: Path) -> None:
    done = tidings("broker", "--config", str(tmp_path / "none.yaml"))
    assert done == (2, b"", f"Error: {tmp_path / 'none.yaml'}: cannot be read: No such file or directory\n")


def test_a_config_is_obeyed(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "broker.yaml"
    config.write_text(f"listeners: [tcp://{HOST}:0, tcp://{HOST}:0]\nmax_connections: 1\n")
    server = start("--memory", "--config", str(config), listeners=2)
    with (
        socket.create_connection((HOST, server.port)) as first,
        socket.create_connection((HOST, server.port)) as second,
    ):
        second.settimeout(TIMEOUT_S)
        with contextlib.suppress(ConnectionResetError):
            assert second.recv(1) == b""
        first.sendall(bytes.fromhex("10 0d 00044d515454 04 02 0000 0001 61"))
        assert first.recv(4) == bytes.fromhex("20 02 00 00")
    assert "1 connections are open" in server.stop().err


def test_options_come_from_the_environment_too(tidings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_BROKER_LISTEN", "nowhere")
    done = tidings("broker")
    assert done.code == 2
    assert "'nowhere'" in done.err


def test_the_log_goes_to_stderr_at_the_level_asked_for(start: Start) -> None:
    server = start(*ANY, "--log-level", "info")
    client, ends = connected(server.port, MQTTProtocolVersion.MQTTv5)
    client.disconnect()
    ends.get(timeout=TIMEOUT_S)
    client.loop_stop()
    end = server.stop()
    assert (end.code, end.out) == (0, "")
    assert "INFO tidings.broker" in end.err
