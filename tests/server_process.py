"""``tidings broker`` as a process of its own, for tests that meet it as a user does: by command line and socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TIDINGS = Path(sys.executable).with_name("tidings")
READY = "listening on "
STOP_TIMEOUT_S = 15


def clean_environment() -> dict[str, str]:
    """This process's environment without the variables that are options of ``tidings``."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TIDINGS_")}


class Exit(NamedTuple):
    """How a broker process ended."""

    code: int
    out: str
    err: str


class ServerProcess:
    """A ``tidings broker`` that accepts connections. ``urls``: one for each listener, as it printed them.

    Raises AssertionError, with what it said, if it ends before that.
    """

    def __init__(self, directory: Path, *args: str, listeners: int = 1) -> None:
        self._log = directory / f"broker-{os.urandom(4).hex()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(TIDINGS), "broker", *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=clean_environment(),
            )
        assert self.process.stdout is not None
        self.urls: list[str] = []
        while len(self.urls) < listeners:
            line = self.process.stdout.readline()
            if not line.startswith(READY):
                self.kill()
                raise AssertionError(
                    f"tidings broker {' '.join(args)}: {line!r}, {self.process.returncode}: {self.err}"
                )
            self.urls.append(line.removeprefix(READY).rstrip("\n"))

    @property
    def port(self) -> int:
        """The port of the first TCP listener."""
        return next(int(url.rpartition(":")[2]) for url in self.urls if url.startswith("tcp:"))

    @property
    def err(self) -> str:
        """What stderr has had so far."""
        return self._log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Exit:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=STOP_TIMEOUT_S)
        return Exit(self.process.returncode, out, self.err)

    def kill(self) -> None:
        """End it, whatever it does, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def run_tidings_broker(directory: Path, *args: str) -> Iterator[ServerProcess]:
    """A broker on a free loopback port, in memory unless ``args`` say ``--data``.

    It must end well and without an error in its log, or the last test that shares it fails.
    """
    memory = () if "--data" in args else ("--memory",)
    listeners = 1 + args.count("--listen")
    server = ServerProcess(directory, *memory, "--listen", "tcp://127.0.0.1:0", *args, listeners=listeners)
    try:
        yield server
        end = server.stop()
        assert end == Exit(0, "", end.err)
        assert "ERROR" not in end.err, end.err
        assert "Traceback" not in end.err, end.err
    finally:
        server.kill()
