"""``tidings broker`` with certificates: options, files that are wrong, and new ones on SIGHUP."""

import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ..server_process import Exit, ServerProcess
from ..transport.listeners.certificates import Authority

HOST = "127.0.0.1"
TIMEOUT_S = 10
CONNECT = bytes.fromhex("10 0c 00044d515454 04 02 003c 0000")
CONNACK = bytes.fromhex("20020000")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority that has signed ``server`` and ``device``, beside its own file."""
    made = Authority(tmp_path)
    made.sign("server", HOST)
    made.sign("device")
    return made


@pytest.fixture
def running(tmp_path: Path, authority: Authority) -> Iterator[ServerProcess]:
    files = ("--cert", str(tmp_path / "server.crt"), "--key", str(tmp_path / "server.key"))
    urls = ("--listen", f"tls://{HOST}:0", "--listen", f"tcp://{HOST}:0", "--listen", f"wss://{HOST}:0/mqtt")
    server = ServerProcess(tmp_path, "--memory", *urls, *files, listeners=3)
    yield server
    server.kill()


def connect(server: ServerProcess, tls: ssl.SSLContext) -> ssl.SSLSocket:
    port = urlsplit(server.urls[0]).port
    sock = tls.wrap_socket(socket.create_connection((HOST, port), timeout=TIMEOUT_S), server_hostname=HOST)
    try:
        sock.sendall(CONNECT)
        assert sock.recv(4) == CONNACK
    except BaseException:
        sock.close()
        raise
    return sock


def shown(sock: ssl.SSLSocket) -> object:
    certificate = sock.getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


def wait_for(server: ServerProcess, words: str) -> str:
    until = time.monotonic() + TIMEOUT_S
    while words not in server.err:
        assert time.monotonic() < until, server.err
        time.sleep(0.01)
    return server.err


def test_the_certificate_is_for_the_encrypted_listeners(running: ServerProcess, authority: Authority) -> None:
    assert [url.partition("://")[0] for url in running.urls] == ["tls", "tcp", "wss"]
    assert running.urls[2].endswith("/mqtt")
    with socket.create_connection((HOST, urlsplit(running.urls[1]).port), timeout=TIMEOUT_S) as plain:
        plain.sendall(CONNECT)
        assert plain.recv(4) == CONNACK
    connect(running, authority.trusting()).close()
    assert running.stop() == Exit(0, "", "")


def test_a_hangup_brings_new_certificates_and_drops_nobody(running: ServerProcess, authority: Authority) -> None:
    with connect(running, authority.trusting()) as old:
        authority.sign("server", HOST)
        running.process.send_signal(signal.SIGHUP)
        assert wait_for(running, "\n") == "read again: certificates of 2 listeners\n"
        with connect(running, authority.trusting()) as new:
            assert shown(new) != shown(old)
        old.sendall(b"\xc0\x00")
        assert old.recv(2) == b"\xd0\x00"


def test_a_hangup_with_wrong_files_says_why_and_changes_nothing(
    running: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    with connect(running, authority.trusting()) as before:
        (tmp_path / "server.key").write_bytes((tmp_path / "device.key").read_bytes())
        running.process.send_signal(signal.SIGHUP)
        said = wait_for(running, "\n")
        assert said.startswith("nothing has changed: listener 'tls://127.0.0.1:0': the key in ")
        assert said.count("\n") == 1
        with connect(running, authority.trusting()) as after:
            assert shown(after) == shown(before)


def test_client_certificates_are_asked_for(tmp_path: Path, authority: Authority) -> None:
    files = ("--cert", str(tmp_path / "server.crt"), "--key", str(tmp_path / "server.key"))
    options = ("--memory", "--listen", f"tls://{HOST}:0", *files, "--cafile", str(authority.cafile))
    server = ServerProcess(tmp_path, *options, "--require-client-cert")
    try:
        device = authority.trusting()
        device.load_cert_chain(tmp_path / "device.crt", tmp_path / "device.key")
        connect(server, device).close()
        with pytest.raises((OSError, AssertionError)):
            connect(server, authority.trusting())
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--listen", "tls://127.0.0.1:0"], "listener 'tls://127.0.0.1:0': needs --cert, and --key if"),
        (
            ["--cert", "none.crt"],
            "--cert, --key, --cafile and --require-client-cert are for --listen tls://… or wss://…",
        ),
        (["--listen", "tcp://127.0.0.1:0", "--require-client-cert"], "are for --listen tls://… or wss://…"),
        (["--listen", "wss://127.0.0.1:0", "--cert", "none.crt"], "certfile none.crt cannot be read: No such file"),
        (
            ["--listen", "tls://127.0.0.1:0", "--cert", "a", "--require-client-cert"],
            "needs --cafile, the CA that signs",
        ),
        (["--listen", "tls://127.0.0.1:0/path", "--cert", "a"], "only ws:// and wss:// have a path"),
    ],
)
def test_options_that_do_not_fit_are_one_line_and_exit_2(tidings: Any, args: list[str], words: str) -> None:
    done = tidings("broker", "--memory", *args)
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert words in done.err


def test_wrong_settings_in_a_file_are_found_by_line_and_key(tidings: Any, tmp_path: Path) -> None:
    config = tmp_path / "broker.yaml"
    config.write_text("listeners:\n  - tcp://127.0.0.1:0\n  - url: tls://127.0.0.1:0\n    certfil: a\n")
    done = tidings("broker", "--memory", "--config", str(config))
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert f"{config}:4: listeners[1].certfil: expected one of cafile, certfile," in done.err
    assert "did you mean certfile?" in done.err
