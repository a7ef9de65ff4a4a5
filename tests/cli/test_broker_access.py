"""``tidings broker`` with users and an access file, as other programs meet it, and new files on SIGHUP."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidings.broker.access.users import new_user, put_user, remove_user

from ..server_process import ServerProcess

HOST = "127.0.0.1"
SECRET = "t0psecret"
TIMEOUT_S = 10


@pytest.fixture
def running(tmp_path: Path) -> Iterator[ServerProcess]:
    for name in ("alice", "bob"):
        put_user(tmp_path / "passwords", new_user(name, SECRET, scram=True, rounds=4096))
    access = tmp_path / "access"
    access.write_text("user alice\n allow all a/#\nuser bob\n allow subscribe $SYS/#\n")
    access.chmod(0o600)
    files = ("--password-file", str(tmp_path / "passwords"), "--access-file", str(access))
    server = ServerProcess(tmp_path, "--memory", "--listen", f"tcp://{HOST}:0", "--log-level", "debug", *files)
    yield server
    server.kill()


def wait_for(server: ServerProcess, words: str) -> None:
    until = time.monotonic() + TIMEOUT_S
    while words not in server.err:
        assert time.monotonic() < until, server.err
        time.sleep(0.01)


def publish(
    tidings: Any, server: ServerProcess, user: str, topic: str, monkeypatch: pytest.MonkeyPatch, password: str = SECRET
) -> int:
    monkeypatch.setenv("TIDINGS_PASSWORD", password)
    connection = ("-h", HOST, "-p", str(server.port), "-u", user)
    code: int = tidings("pub", *connection, "-t", topic, "-m", "x", "-q", "1").code
    return code


def test_users_rules_and_new_files(
    tidings: Any, running: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(tidings, running, "alice", "a/1", monkeypatch) == 0
    assert publish(tidings, running, "alice", "b", monkeypatch) == 0x87
    assert publish(tidings, running, "bob", "$SYS/x", monkeypatch) == 0x87
    assert publish(tidings, running, "alice", "a/1", monkeypatch, f"{SECRET}-wrong") == 0x86
    (tmp_path / "access").write_text("user alice\n allow publish b\n permit all\n")
    running.process.send_signal(signal.SIGHUP)
    wait_for(running, f"nothing has changed: {tmp_path / 'access'}:3: expected allow, deny")
    assert publish(tidings, running, "alice", "a/1", monkeypatch) == 0
    (tmp_path / "access").write_text("user alice\n allow publish b\n")
    remove_user(tmp_path / "passwords", "bob")
    running.process.send_signal(signal.SIGHUP)
    wait_for(running, "read again: certificates of 0 listeners, 1 users, 1 access lines\n")
    assert publish(tidings, running, "alice", "b", monkeypatch) == 0
    assert publish(tidings, running, "bob", "b", monkeypatch) == 0x86
    assert "wrong password, failure" in running.err
    assert SECRET not in running.err
    command = Path(f"/proc/{running.process.pid}/cmdline")
    assert not command.exists() or SECRET.encode() not in command.read_bytes()


def test_mosquitto_logs_in_too(running: ServerProcess) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("needs mosquitto_pub (Debian: mosquitto-clients)")
    codes = []
    for password in (SECRET, "wrong"):
        command = [program, "-h", HOST, "-p", str(running.port), "-u", "alice", "-P", password, "-t", "a", "-m", "x"]
        codes.append(subprocess.run([*command, "-q", "1"], capture_output=True, timeout=TIMEOUT_S).returncode)
    assert codes == [0, 4]


def test_a_file_that_cannot_be_used_is_one_line(tidings: Any, tmp_path: Path) -> None:
    path = tmp_path / "passwords"
    path.write_text("alice:secret\n")
    path.chmod(0o600)
    done = tidings("broker", "--memory", "--listen", f"tcp://{HOST}:0", "--password-file", str(path))
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert f"{path}:1: the hash of 'alice' is neither argon2 nor SCRAM-SHA-256" in done.err
