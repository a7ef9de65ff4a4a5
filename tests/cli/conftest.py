"""A server to talk to, servers that play a script, and the commands run in this process.

``serve`` is the only place that knows which brokers the end-to-end tests use.
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from tidings.cli.main import main

from ..server_process import run_tidings_broker

HOST = "127.0.0.1"


class Result(NamedTuple):
    """What one command line did."""

    code: int
    out: bytes
    err: str


class Run(Protocol):
    """Run a command line in this process."""

    def __call__(self, *args: str, stdin: bytes = b"") -> Result: ...


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def run_mosquitto(directory: Path, *lines: str) -> Iterator[int]:
    """Mosquitto with these lines of configuration besides a listener on a free loopback port, which is yielded."""
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("needs Mosquitto (Debian: mosquitto)")
    port = free_port()
    config = directory / f"mosquitto-{port}.conf"
    config.write_text("\n".join([f"listener {port} {HOST}", "user root", *lines, ""]))
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "mosquitto did not start"
                assert time.monotonic() < until_s, "mosquitto does not listen"
        yield port
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def serve(name: str, directory: Path) -> Iterator[int]:
    """A broker under these tests, open to anybody; yields its port. To test with another broker, start it here."""
    if name == "mosquitto":
        with run_mosquitto(directory, "allow_anonymous true") as port:
            yield port
    else:
        with run_tidings_broker(directory) as process:
            yield process.port


@pytest.fixture(scope="session", params=["tidings", pytest.param("mosquitto", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a broker: ours, and one by somebody else."""
    with serve(request.param, tmp_path_factory.mktemp("server")) as port:
        yield port


@pytest.fixture
def mosquitto() -> Callable[..., AbstractContextManager[int]]:
    """Start Mosquitto with a configuration of the test's own: ``with mosquitto(directory, *lines) as port``."""
    return run_mosquitto


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"t/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for localhost, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def tidings(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Run]:
    for name in [name for name in os.environ if name.startswith("TIDINGS_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "stdin"
    opened: list[io.TextIOBase] = []

    def run(*args: str, stdin: bytes = b"") -> Result:
        path.write_bytes(stdin)
        opened.append(path.open())
        monkeypatch.setattr(sys, "stdin", opened[-1])
        code = main(list(args))
        sys.stdout.flush()
        captured = capfdbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    yield run
    for stream in opened:
        stream.close()


@pytest.fixture
def pub(tidings: Run, server: int) -> Run:
    """``tidings pub`` to the server."""

    def run(*args: str, stdin: bytes = b"") -> Result:
        return tidings("pub", "-h", HOST, "-p", str(server), *args, stdin=stdin)

    return run


@pytest.fixture
def sub(tidings: Run, server: int) -> Run:
    """``tidings sub`` to the server, for at most 10 seconds."""

    def run(*args: str, stdin: bytes = b"") -> Result:
        return tidings(
            "sub", "-h", HOST, "-p", str(server), *(() if "-W" in args else ("-W", "10")), *args, stdin=stdin
        )

    return run


class Background:
    """A ``tidings`` process; ``Popen`` with bytes pipes."""

    def __init__(self, *args: str) -> None:
        program = Path(sys.executable).with_name("tidings")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(program), *args], stdin=pipe, stdout=pipe, stderr=pipe, env=environment)

    def wait_for(self, text: str) -> None:
        """Read stderr until a line has ``text``."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line.decode():
                return
        raise AssertionError(f"{text!r} was never on stderr")

    def finish(self, stdin: bytes | None = None) -> Result:
        out, err = self.process.communicate(stdin, timeout=20)
        return Result(self.process.returncode, out, err.decode())


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    """Start ``tidings`` processes that end with the test."""
    started: list[Background] = []

    def start(*args: str) -> Background:
        started.append(Background(*args))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


@pytest.fixture
def subscriber(background: Callable[..., Background], server: int) -> Callable[..., Background]:
    """A ``tidings sub`` process whose subscription stands when this returns."""

    def start(*args: str) -> Background:
        process = background("sub", "-h", HOST, "-p", str(server), "-W", "20", "-d", *args)
        process.wait_for("Received SUBACK")
        return process

    return start


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def receive(self) -> tuple[int, bytes]:
        """(first byte, the rest after the length) of the next packet; (0, b"") at the end of the connection."""
        head = self._exactly(1)
        length = shift = 0
        while head:
            byte = self._exactly(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return head[0], self._exactly(length)
        return 0, b""

    def send(self, frame: str) -> None:
        """Send bytes written in hex."""
        self.sock.sendall(bytes.fromhex(frame))

    def accept(self, properties: str = "") -> bytes:
        """Take CONNECT, answer CONNACK 5.0 without an error, return the body of CONNECT."""
        kind, body = self.receive()
        assert kind == 0x10
        size = len(properties.replace(" ", "")) // 2
        self.send(f"20 {size + 3:02x} 00 00 {size:02x} {properties}")
        return body

    def publish_id(self) -> bytes:
        """Take a QoS 1 or 2 PUBLISH, return its packet id."""
        kind, body = self.receive()
        assert kind & 0xF6 in (0x32, 0x34), hex(kind)
        size = int.from_bytes(body[:2], "big")
        return body[2 + size : 4 + size]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = self.sock.recv(size - len(data))
            if not chunk:
                return b""
            data += chunk
        return data


Script = Callable[[Peer], None]


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Start a server that plays one script per connection, and get its port; a broken script fails the test."""
    broken: list[BaseException] = []
    threads: list[threading.Thread] = []
    listeners: list[socket.socket] = []

    def start(*scripts: Script) -> str:
        listener = socket.create_server((HOST, 0))
        listener.settimeout(10)
        listeners.append(listener)

        def play() -> None:
            try:
                for script in scripts:
                    sock, _ = listener.accept()
                    with sock:
                        sock.settimeout(10)
                        script(Peer(sock))
                listener.close()
            except BaseException as error:
                broken.append(error)

        threads.append(threading.Thread(target=play, daemon=True))
        threads[-1].start()
        return str(listener.getsockname()[1])

    yield start
    for thread in threads:
        thread.join(10)
    for listener in listeners:
        listener.close()
    if broken:
        raise broken[0]
