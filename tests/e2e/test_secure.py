"""Other people's clients over TLS and WebSocket, with the certificates that ``tidings cert`` makes."""

import os
import queue
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from ..server_process import TIDINGS, ServerProcess, clean_environment
from .test_mqttjs import HERE, TIMEOUT_S, VERSIONS, Node

HOST = "127.0.0.1"
PAHO_VERSIONS = {"3.1.1": mqtt.MQTTv311, "5.0": mqtt.MQTTv5}


class Secure(NamedTuple):
    """A broker: its certificates' folder, and its port by scheme; ``strict`` asks for client certificates."""

    directory: Path
    ports: dict[str, int]

    @property
    def cafile(self) -> str:
        return str(self.directory / "ca.crt")

    def pair(self, name: str) -> tuple[str, str]:
        return str(self.directory / f"{name}.crt"), str(self.directory / f"{name}.key")


def certify(directory: Path, *args: str) -> None:
    subprocess.run(
        [str(TIDINGS), "cert", *args, "--dir", str(directory)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=clean_environment(),
    )


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    directory = tmp_path_factory.mktemp("secure")
    certify(directory, "ca")
    certify(directory, "server")
    certify(directory, "device", "sensor-7")
    config = directory / "broker.yaml"
    files = f"certfile: {directory}/server.crt, keyfile: {directory}/server.key"
    config.write_text(
        "sys_interval_s: 0\nlisteners:\n"
        f"  - ws://{HOST}:0/mqtt\n"
        f"  - {{url: 'tls://{HOST}:0', {files}}}\n"
        f"  - {{url: 'wss://{HOST}:0', {files}}}\n"
        f"  - {{url: 'mqtts://{HOST}:0', {files}, cafile: {directory}/ca.crt, client_certificates: required}}\n"
    )
    server = ServerProcess(directory, "--memory", "--config", str(config), listeners=4)
    try:
        ws, tls, wss, strict = (urlsplit(url).port or 0 for url in server.urls)
        yield Secure(directory, {"ws": ws, "tls": tls, "wss": wss, "strict": strict})
        end = server.stop()
        assert (end.code, end.out) == (0, "")
        assert "Traceback" not in end.err, end.err
        assert "ERROR" not in end.err, end.err
    finally:
        server.kill()


# paho-mqtt


class Paho:
    """A client that has connected."""

    def __init__(self, secure: Secure, scheme: str, version: str = "5.0", pair: tuple[str, str] | None = None) -> None:
        transport: Literal["websockets", "tcp"] = "websockets" if scheme in ("ws", "wss") else "tcp"
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            protocol=PAHO_VERSIONS[version],
            transport=transport,
            reconnect_on_failure=False,
        )
        if scheme != "ws":
            self.client.tls_set(secure.cafile, *(pair or ()))
        self.client.ws_set_options(path="/mqtt")
        self.answers: queue.Queue[int] = queue.Queue()
        self.messages: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.client.on_connect = lambda client, data, flags, reason, told: self.answers.put(reason.value)
        self.client.on_subscribe = lambda client, data, mid, reasons, told: self.answers.put(reasons[0].value)
        self.client.on_message = lambda client, data, message: self.messages.put(message)
        self.client.connect(HOST, secure.ports[scheme])
        self.client.loop_start()
        assert self.answers.get(timeout=TIMEOUT_S) == 0

    def end(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.parametrize("version", PAHO_VERSIONS)
@pytest.mark.parametrize("scheme", ["ws", "tls", "wss"])
def test_paho_sends_and_receives_at_every_qos(secure: Secure, topic: str, scheme: str, version: str) -> None:
    client = Paho(secure, scheme, version)
    for qos in (0, 1, 2):
        client.client.subscribe(f"{topic}/{qos}", qos)
        assert client.answers.get(timeout=TIMEOUT_S) == qos
    payloads = [b"", b"x" * 200, bytes(range(256)) * 1000]
    for qos in (0, 1, 2):
        for payload in payloads:
            client.client.publish(f"{topic}/{qos}", payload, qos)
        received = [client.messages.get(timeout=TIMEOUT_S) for _ in payloads]
        assert [(each.qos, each.payload) for each in received] == [(qos, payload) for payload in payloads]
    client.end()


def test_paho_shows_its_certificate_and_is_refused_without(secure: Secure) -> None:
    Paho(secure, "strict", pair=secure.pair("sensor-7")).end()
    bare = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
    bare.tls_set(secure.cafile)
    connected: list[object] = []
    bare.on_connect = lambda client, data, flags, reason, told: connected.append(reason)
    try:
        bare.connect(HOST, secure.ports["strict"])
        for _ in range(100):
            if bare.loop(0.1) != mqtt.MQTT_ERR_SUCCESS:
                break
    except (ssl.SSLError, ConnectionError):
        pass
    assert connected == []
    assert not bare.is_connected()


# mosquitto_pub and mosquitto_sub

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(secure: Secure) -> Run:
    """One of mosquitto's programs at a port of the broker, trusting its authority."""

    def execute(name: str, scheme: str, *args: str) -> "subprocess.CompletedProcess[bytes]":
        program = shutil.which(name)
        if program is None:
            pytest.skip(f"needs {name} (Debian: mosquitto-clients)")
        command = [program, "-h", HOST, "-p", str(secure.ports[scheme]), "--cafile", secure.cafile, *args]
        return subprocess.run(command, capture_output=True, timeout=2 * TIMEOUT_S)

    return execute


def test_mosquitto_with_a_client_certificate(secure: Secure, run: Run, topic: str) -> None:
    certificate, key = secure.pair("sensor-7")
    shown = ("--cert", certificate, "--key", key)
    sent = run("mosquitto_pub", "strict", *shown, "-i", "sensor-7", "-t", topic, "-m", "hello", "-q", "2", "-r")
    assert (sent.returncode, sent.stderr) == (0, b"")
    assert run("mosquitto_sub", "strict", *shown, "-t", topic, "-C", "1", "-W", "10").stdout == b"hello\n"
    assert run("mosquitto_pub", "strict", "-t", topic, "-m", "x", "-q", "1").returncode != 0


def test_mosquitto_with_alpn_and_the_first_tls_version_allowed(run: Run, topic: str) -> None:
    done = run(
        "mosquitto_pub", "tls", "--tls-alpn", "mqtt", "--tls-version", "tlsv1.2", "-t", topic, "-m", "x", "-q", "1"
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_name_that_the_certificate_does_not_have_is_found_out(secure: Secure, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ca.crt", "ca.key"):
        shutil.copy(secure.directory / name, other)
    certify(other, "server", "broker.example")
    certificate, key = str(other / "server.crt"), str(other / "server.key")
    options = ("--memory", "--listen", f"tls://{HOST}:0", "--cert", certificate, "--key", key)
    server = ServerProcess(tmp_path, *options)
    try:
        trusting = ssl.create_default_context(cafile=secure.cafile)
        with (
            socket.create_connection((HOST, urlsplit(server.urls[0]).port), timeout=TIMEOUT_S) as plain,
            pytest.raises(ssl.SSLCertVerificationError, match="not valid for"),
        ):
            trusting.wrap_socket(plain, server_hostname=HOST)
    finally:
        server.kill()


# MQTT.js


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js (Debian: nodejs)")
    if not (HERE / "node_modules" / "mqtt").is_dir():
        pytest.skip("needs MQTT.js: npm ci --prefix tests/e2e/mqttjs")
    running = Node(program, 0)
    try:
        yield running
        running.close()
    finally:
        running.process.kill()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scheme", ["ws", "wss", "tls"])
def test_mqttjs_sends_and_receives(
    node: Node, secure: Secure, name: str, topic: str, scheme: str, version: str
) -> None:
    node.port = secure.ports[scheme]
    trust: dict[str, Any] = {"ca": Path(secure.cafile).read_text()} if scheme != "ws" else {}
    node.connect(name, version, protocol="mqtts" if scheme == "tls" else scheme, path="/mqtt", **trust)
    node.subscribe(name, f"{topic}/#", qos=2)
    payloads = [b"", b"small", os.urandom(300_000)]
    for qos in (0, 1, 2):
        for payload in payloads:
            node.publish(name, f"{topic}/{qos}", payload, qos=qos)
        received = [node.next("message", name) for _ in payloads]
        assert [(each["qos"], each["payload"]) for each in received] == [(qos, payload) for payload in payloads]
    node.ask("end", name)
    node.next("close", name)


def test_mqttjs_finds_out_a_broker_of_another_authority(node: Node, secure: Secure, name: str) -> None:
    node.port = secure.ports["wss"]
    with pytest.raises(AssertionError, match=r"self.signed|unable to"):
        node.connect(name, protocol="wss")
