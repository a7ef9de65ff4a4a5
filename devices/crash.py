"""A crash test: a broker in a child process, killed again and again in the middle of traffic, and what that cost.

Four publishers send as fast as the broker acknowledges. Durable sessions listen: one always connected, one that is away
while the messages come, one that reads slowly, and two that share a subscription. SIGKILL comes at a random instant;
the broker is started again on the same directory and port, everybody reconnects, repeats what was not acknowledged,
and takes what is owed. Then the books are compared. Everything random comes from the seed.
"""

import asyncio
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from tidings.broker.codec import Publish, SubscribeFilter
from tidings.broker.errors import TidingsError

from .client import Client
from .clock import RealClock
from .crash_books import Books, Receiver, Verdict
from .link import Address, Dialer
from .ports import ClientOptions

PUBLISHERS: Final = ["p1", "p2", "p3", "p4"]
GROUP: Final = "group"
START_S: Final = 30.0  # how long a broker may take to accept connections
TIDINGS: Final = "import sys; from tidings.cli.main import main; sys.exit(main())"


class CrashError(TidingsError):
    """The test cannot be run: the broker does not start, or refuses the clients."""


@dataclass(slots=True)
class CrashPlan:
    """What to do. ``command`` is a broker's command line with ``{port}`` and ``{dir}`` in it, "" = tidings itself.

    Times in seconds: the kill comes between ``kill_after_s`` and ``kill_before_s`` after the traffic began.
    ``burst``: messages that each publisher sends in one round at most. ``quiet_s``: nothing arriving for so long ends
    the wait for what is missing.
    """

    folder: Path
    rounds: int = 10
    qos: int = 1
    level: str = "fsync"
    command: str = ""
    seed: int = 1
    version: int = 5
    kill_after_s: float = 0.05
    kill_before_s: float = 0.6
    burst: int = 2_000
    quiet_s: float = 5.0


class _Broker:
    """The child process."""

    def __init__(self, plan: CrashPlan) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        places = {"port": self.port, "dir": plan.folder}
        if plan.command:
            # Word by word, so that a directory with a space in its name stays one word.
            self._argv = [word.format(**places) for word in shlex.split(plan.command)]
        else:
            self._argv = [sys.executable, "-c", TIDINGS, "broker", "--listen", f"tcp://127.0.0.1:{self.port}"]
            self._argv += ["--data", str(plan.folder), "--durability", plan.level]
        self._output = plan.folder / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it and wait until it accepts connections. Raises CrashError."""
        try:
            with self._output.open("ab") as output:
                self._process = self._spawn(output)
        except OSError as error:
            raise CrashError(f"cannot run {self._argv[0]}: {error.strerror}") from None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise CrashError(f"the broker ended by itself with {self._process.returncode}: {self._tail()}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return
        raise CrashError(f"the broker does not accept connections on port {self.port}: {self._tail()}")

    def _spawn(self, output: BinaryIO) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _tail(self) -> str:
        lines = self._output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class _Peer:
    """What publishers and receivers have in common: a client, and doing nothing when nothing is asked."""

    client: Client

    def __init__(self) -> None:
        self.failure = ""

    def on_online(self, session_present: bool) -> None:
        """Connected."""

    def on_offline(self, reason: str) -> None:
        """It is what this test is about."""

    def on_gone(self, reason: str) -> None:
        self.failure = reason

    def on_subscribed(self, granted: Sequence[int]) -> None:
        if any(code >= 0x80 for code in granted):
            self.failure = "the broker refused a subscription"

    def on_message(self, message: Publish) -> bool:
        return True

    def on_written(self, token: Any, again: bool) -> None:
        """Nothing to do."""

    def on_acknowledged(self, token: Any, reason: int) -> None:
        """Nothing to do."""


class _Publisher(_Peer):
    def __init__(self, name: str, books: Books, qos: int) -> None:
        super().__init__()
        self.name = name
        self.left = 0
        self._books = books
        self._qos = qos

    def on_online(self, session_present: bool) -> None:
        self.fill()

    def on_acknowledged(self, token: Any, reason: int) -> None:
        kind, number = token
        if reason < 0x80:
            (self._books.state_acknowledged if kind == "state" else self._books.acknowledge)(self.name, number)
        self.fill()

    def fill(self) -> None:
        """Send on, as far as the window goes."""
        client, books, name = self.client, self._books, self.name
        while self.left and client.online and client.unacknowledged < client.options.window_count:
            self.left -= 1
            number = books.send(name)
            client.publish(f"crash/{name}", f"{name} {number}".encode(), self._qos, token=("message", number))
            if number % 20 == 0:
                number = books.send_state(name)
                payload = f"{name} {number}".encode()
                client.publish(f"state/{name}", payload, self._qos, retain=True, token=("state", number))


class _Receiver(_Peer):
    def __init__(self, account: str, filter: str, books: Books, qos: int) -> None:
        super().__init__()
        self.subscribed = False
        self._account = account
        self._filter = SubscribeFilter(filter, qos)
        self._books = books

    def on_online(self, session_present: bool) -> None:
        if not session_present:
            if self.subscribed:
                self._books.verdict.sessions_lost += 1
            self.client.subscribe([self._filter])

    def on_subscribed(self, granted: Sequence[int]) -> None:
        super().on_subscribed(granted)
        self.subscribed = True

    def on_message(self, message: Publish) -> bool:
        publisher, _, number = message.payload.decode().partition(" ")
        self._books.receive(self._account, publisher, int(number))
        return True


class _StateReader(_Peer):
    """A newcomer that asks for the retained messages."""

    def __init__(self, qos: int) -> None:
        super().__init__()
        self.seen = dict.fromkeys(PUBLISHERS, 0)
        self.subscribed = False
        self.news = asyncio.Event()
        self._qos = qos

    def on_online(self, session_present: bool) -> None:
        self.client.subscribe([SubscribeFilter("state/+", self._qos)])

    def on_subscribed(self, granted: Sequence[int]) -> None:
        super().on_subscribed(granted)
        self.subscribed = True

    def on_message(self, message: Publish) -> bool:
        publisher, _, number = message.payload.decode().partition(" ")
        self.seen[publisher] = int(number)
        self.news.set()
        return True


class CrashTest:
    """Runs a ``CrashPlan``. ``on_round`` is told the number and the verdict of every round as it ends."""

    def __init__(self, plan: CrashPlan, on_round: Callable[[int, Verdict], None]) -> None:
        self.plan = plan
        self.total = Verdict()
        self._on_round = on_round
        self._random = random.Random(plan.seed)
        self._peers: list[_Peer] = []

    async def run(self) -> Verdict:
        """All rounds. Raises CrashError if the broker cannot be started or talked to."""
        plan = self.plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        receivers = {name: Receiver(PUBLISHERS) for name in ("online", "offline", "slow")}
        receivers[GROUP] = Receiver(PUBLISHERS, ordered=False)
        books = Books(PUBLISHERS, receivers)
        broker = _Broker(plan)
        self._clock = RealClock(asyncio.get_running_loop())
        self._dialer = Dialer(Address("127.0.0.1", broker.port))
        try:
            await broker.start()
            publishers = [_Publisher(name, books, plan.qos) for name in PUBLISHERS]
            listeners = {name: _Receiver(name, "crash/+", books, plan.qos) for name in ("online", "offline", "slow")}
            for member in ("group-1", "group-2"):
                listeners[member] = _Receiver(GROUP, f"$share/{GROUP}/crash/+", books, plan.qos)
            for name, listener in listeners.items():
                self._connect(listener, name, session_s=86_400)
            await self._until(lambda: all(listener.subscribed for listener in listeners.values()), "subscribe")
            for publisher in publishers:
                self._connect(publisher, publisher.name, session_s=86_400)
            for number in range(1, plan.rounds + 1):
                await self._round(broker, books, publishers, listeners)
                verdict = books.close_round()
                self.total.add(verdict)
                self._on_round(number, verdict)
        finally:
            for peer in self._peers:
                peer.client.stop(forget=False)
            await self._dialer.close()
            self._clock.close()
            broker.kill()
            await asyncio.sleep(0)  # sockets say goodbye in the next turn
        return self.total

    async def _round(
        self, broker: _Broker, books: Books, publishers: list[_Publisher], listeners: dict[str, _Receiver]
    ) -> None:
        plan = self.plan
        away, slow = listeners["offline"].client, listeners["slow"].client
        away.pause(abrupt=self._random.random() < 0.5)
        kill_at = time.monotonic() + self._random.uniform(plan.kill_after_s, plan.kill_before_s)
        for publisher in publishers:
            publisher.left = plan.burst
            publisher.fill()
        while (left_s := kill_at - time.monotonic()) > 0:
            slow.pause_reading()
            await asyncio.sleep(min(left_s, 0.05))
            slow.resume_reading()
            await asyncio.sleep(0.002)
        broker.kill()
        for publisher in publishers:
            publisher.left = 0
        await broker.start()
        away.start()
        await self._until(lambda: all(peer.client.online for peer in self._peers), "reconnect")
        seen = -1
        quiet_since = time.monotonic()
        while any(publisher.client.unacknowledged for publisher in publishers) or not books.complete:
            if books.progress != seen:
                seen, quiet_since = books.progress, time.monotonic()
            elif time.monotonic() > quiet_since + plan.quiet_s:
                break
            self._check()
            await asyncio.sleep(0.01)
        await self._read_states(books)

    async def _read_states(self, books: Books) -> None:
        reader = _StateReader(self.plan.qos)
        self._connect(reader, "newcomer")
        try:
            await self._until(lambda: reader.subscribed, "subscribe")
            with suppress(TimeoutError):
                async with asyncio.timeout(self.plan.quiet_s):
                    await self._caught_up(books, reader)
            for publisher, number in reader.seen.items():
                books.state_seen(publisher, number)
        finally:
            reader.client.stop()
            self._peers.remove(reader)

    @staticmethod
    async def _caught_up(books: Books, reader: _StateReader) -> None:
        while any(number < books.state_kept(publisher) for publisher, number in reader.seen.items()):
            await reader.news.wait()
            reader.news.clear()

    def _connect(self, peer: _Peer, client_id: str, session_s: int = 0) -> None:
        options = ClientOptions(client_id, self.plan.version, session_s)
        options.window_count = options.receive_maximum = 100
        options.backoff_first_s, options.backoff_max_s = 0.05, 0.2
        peer.client = Client(options, peer, self._clock, self._dialer, jitter_key=self.plan.seed)
        self._peers.append(peer)
        peer.client.start()

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not done():
            self._check()
            if time.monotonic() > deadline:
                raise CrashError(f"clients could not {what} within {START_S:g} s")
            await asyncio.sleep(0.005)

    def _check(self) -> None:
        for peer in self._peers:
            if peer.failure:
                raise CrashError(f"client {peer.client.options.client_id}: {peer.failure}")
