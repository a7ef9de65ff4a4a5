"""How a connection is made: back-off, user names, TLS, Unix sockets and WebSocket, against a real server."""

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tidings.cli.connection import BACKOFF_FIRST_S, BACKOFF_LONGEST_S, backoff_s

HOST = "127.0.0.1"


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_pauses_double_up_to_a_bound_and_are_spread_over_half_of_it(attempt: int, chance: float) -> None:
    ceiling_s = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2 ** min(attempt, 20))
    assert ceiling_s / 2 <= backoff_s(attempt, chance) <= ceiling_s
    assert backoff_s(attempt, 1.0) == ceiling_s
    assert backoff_s(attempt, 0.0) == ceiling_s / 2


@pytest.fixture
def round_trip(tidings: Any, topic: str) -> Callable[..., None]:
    """Publish a retained message and receive it over the connection that the arguments ask for."""

    def run(*args: str) -> None:
        for command in (("pub", "-m", "x", "-r", "-q", "1"), ("sub", "-C", "1", "-W", "10")):
            result = tidings(*command, "-t", topic, *args)
            assert (result.code, result.err) == (0, "")
        assert result.out == b"x\n"

    return run


@pytest.fixture
def locked(mosquitto: Callable[..., Any], tmp_path: Path) -> Iterator[int]:
    """A server that knows the user 'ann' with the password 'p w', and nobody else."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "ann", "p w"], check=True)
    with mosquitto(tmp_path, "allow_anonymous false", f"password_file {passwords}") as port:
        yield port


def test_the_password_may_come_from_a_file_or_the_environment(
    round_trip: Callable[..., None], locked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("p w\n")
    server = ("-h", HOST, "-p", str(locked), "-u", "ann")
    round_trip(*server, "--pw-file", str(secret))
    round_trip("-L", f"mqtt://ann:p%20w@{HOST}:{locked}")
    monkeypatch.setenv("TIDINGS_PASSWORD", "p w")
    round_trip(*server)


@pytest.mark.parametrize(("version", "code"), [("5", 135), ("311", 5)])
def test_a_wrong_password_is_refused_with_the_code_of_mosquitto_pub(
    tidings: Any, locked: int, version: str, code: int
) -> None:
    for command in (("pub", "-m", "x"), ("sub",)):
        result = tidings(*command, "-t", "a", "-h", HOST, "-p", str(locked), "-u", "ann", "-P", "no", "-V", version)
        assert result.code == code
        assert result.err == f"Error: {HOST}:{locked}: refused: Not authorized ({code})\n"
    theirs = ["mosquitto_pub", "-h", HOST, "-p", str(locked), "-u", "ann", "-P", "no", "-t", "a", "-m", "x"]
    assert subprocess.run([*theirs, "-V", version], capture_output=True, check=False).returncode == code


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_checks_the_certificate_and_its_host(
    round_trip: Callable[..., None],
    tidings: Any,
    mosquitto: Callable[..., Any],
    certificate: tuple[str, str],
    tmp_path: Path,
) -> None:
    cert, key = certificate
    with mosquitto(tmp_path, "allow_anonymous true", f"certfile {cert}", f"keyfile {key}") as port:
        round_trip("-h", "localhost", "-p", str(port), "--cafile", cert)
        round_trip("-L", f"mqtts://localhost:{port}", "--cafile", cert, "--nodelay")
        round_trip("-h", HOST, "-p", str(port), "--cafile", cert, "--insecure")
        for args in (("-h", HOST, "--cafile", cert), ("-h", "localhost", "--tls-use-os-certs")):
            result = tidings("pub", "-t", "a", "-m", "x", "-p", str(port), *args)
            assert result.code == 1
            assert "certificate verify failed" in result.err
            assert result.err.count("\n") == 1


def test_a_unix_socket(round_trip: Callable[..., None], mosquitto: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with mosquitto(tmp_path, f"listener 0 {path}", "allow_anonymous true") as port:
        round_trip("-h", HOST, "-p", str(port))  # who answers here has opened the other listener too
        round_trip("--unix", str(path))
        round_trip("-L", f"unix://{path}")


@pytest.fixture
def websocket(server: int) -> Iterator[tuple[int, list[str]]]:
    """A WebSocket server that passes everything on to ``server``: its port, and the paths that were asked for."""
    paths: list[str] = []

    def bridge(web: ServerConnection) -> None:
        assert web.request is not None
        paths.append(web.request.path)
        gone = contextlib.suppress(ConnectionClosed, OSError)  # either side goes when it likes, and says nothing
        with socket.create_connection((HOST, server)) as broker:

            def back() -> None:
                with gone:
                    while data := broker.recv(65_536):
                        web.send(data)
                web.close()

            thread = threading.Thread(target=back)
            thread.start()
            with gone:
                for data in web:
                    assert isinstance(data, bytes)
                    broker.sendall(data)
            with gone:
                broker.shutdown(socket.SHUT_RDWR)
            thread.join(5)

    with serve(bridge, HOST, 0, subprotocols=[Subprotocol("mqtt")]) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.socket.getsockname()[1], paths
        listener.shutdown()
        thread.join(5)


def test_websocket(round_trip: Callable[..., None], websocket: tuple[int, list[str]]) -> None:
    port, paths = websocket
    round_trip("-h", HOST, "-p", str(port), "--ws", "--nodelay")
    round_trip("-L", f"ws://{HOST}:{port}/other")
    round_trip("-h", HOST, "-p", str(port), "--ws", "--ws-path", "/third")
    assert paths == ["/mqtt"] * 2 + ["/other"] * 2 + ["/third"] * 2


def test_a_local_address_to_connect_from(round_trip: Callable[..., None], server: int) -> None:
    round_trip("-h", HOST, "-p", str(server), "-A", "127.0.0.1", "--nodelay")
