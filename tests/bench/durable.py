"""What durability costs on this machine: tidings that flushes, tidings in memory, and Mosquitto with persistence on.

    python tests/bench/durable.py [--quick] [--only WORDS]

The brokers are measured in turn, A B C A B C, so that whatever else the machine does meets all of them; medians and
ratios are printed as a Markdown table. Linux. About two minutes; without Mosquitto its column is empty, and
without gcc flushes are not counted (a preloaded library does that, for all of them alike).

Messages have 100 bytes and QoS 1. "offline" is one durable session that is away; "online" are durable sessions of
connected subscribers. Mosquitto's ``persistence`` writes every 30 minutes and at the end: it does not flush before
PUBACK, so these are different promises at the same place. Bytes written are all that the broker caused from the first
message to its graceful end, so that what a log leaves to do later counts too.
"""

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidings.broker.codec import (
    MQTT_3_1_1,
    Connect,
    Publish,
    Subscribe,
    SubscribeFilter,
    encode,
)

PAYLOAD: Final = bytes(100)
ACK_BYTES: Final = 4
PROGRAM: Final = "import sys; from tidings.cli.main import main; sys.exit(main())"
TAP: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void note(void) {
    static int file = -1;
    if (file < 0) file = open(getenv("FLUSH_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(file, "x", 1) < 0) abort();
}
int fsync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fsync"); note(); return real(fd); }
int fdatasync(int fd) { int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync"); note(); return real(fd); }
"""


@dataclass(frozen=True)
class Case:
    """``subscribers`` 0: one durable session that is away. ``window``: unacknowledged messages of each publisher."""

    name: str
    brokers: tuple[str, ...]
    publishers: int
    window: int
    messages: int
    subscribers: int = 0


ALL: Final = ("fsync", "memory", "mosquitto")
CASES: Final = (
    Case("offline, 1 publisher x 1000", ALL, 1, 1_000, 200_000),
    Case("offline, 100 publishers x 20", ALL, 100, 20, 200_000),
    Case("offline, 100 publishers x 1", ALL, 100, 1, 30_000),
    Case("10 online, 10 publishers x 100", ("fsync", "memory"), 10, 100, 60_000, subscribers=10),
    Case("offline, 1 publisher x 1", ALL, 1, 1, 1_500),
)


@dataclass(slots=True)
class Found:
    """One run. ``per_s``: acknowledged messages, with subscribers their deliveries. ``written``: bytes a message."""

    per_s: float
    written: float
    flushes: float | None
    p50_ms: float = 0.0
    p99_ms: float = 0.0


class Sender(asyncio.Protocol):
    """Publishes ``count`` messages, never more than ``window`` of them unacknowledged."""

    def __init__(self, index: int, count: int, window: int) -> None:
        self.count, self.window = count, window
        self.sent = self.acked = 0
        self.delays_s: list[float] = []
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = 0
        self._sent_at = 0.0
        self._hello = encode(Connect(f"bench-{index}", MQTT_3_1_1, keep_alive=0), MQTT_3_1_1)
        self._frames = [
            encode(Publish(f"q/{index:03}", PAYLOAD, 1, packet_id=packet_id), MQTT_3_1_1)
            for packet_id in range(1, window + 1)
        ]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        if not self.connected.done():  # CONNACK has as many bytes as PUBACK
            self.connected.set_result(None)
            return
        whole, self._rest = divmod(self._rest + len(data), ACK_BYTES)
        self.acked += whole
        if self.window == 1:
            self.delays_s.append(time.perf_counter() - self._sent_at)
        if self.acked >= self.count:
            if not self.done.done():
                self.done.set_result(None)
        else:
            self.send()

    def send(self) -> None:
        """Fill the window."""
        room = min(self.window - (self.sent - self.acked), self.count - self.sent)
        if room > 0:
            frames, window, first = self._frames, self.window, self.sent
            self.sent += room
            self._sent_at = time.perf_counter()
            self.transport.write(b"".join([frames[(first + k) % window] for k in range(room)]))


class Taker(asyncio.Protocol):
    """A durable subscriber that acknowledges what comes, until ``count`` messages came."""

    def __init__(self, index: int, count: int) -> None:
        self._left = count
        self._buffer = b""
        self._greeting = True
        self._length = len(encode(Publish("q/000", PAYLOAD, 1, packet_id=1), MQTT_3_1_1))
        self._id_at = self._length - len(PAYLOAD) - 2
        self._index = index
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(session(f"online-{self._index}"))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if self._greeting:
            if len(data) < 9:  # CONNACK and SUBACK
                self._buffer = data
                return
            data, self._greeting = data[9:], False
            self.ready.set_result(None)
        length, id_at = self._length, self._id_at
        whole = len(data) // length
        if whole:
            acks = b"".join([b"\x40\x02" + data[k + id_at : k + id_at + 2] for k in range(0, whole * length, length)])
            self.transport.write(acks)
            self._left -= whole
            if self._left <= 0 and not self.done.done():
                self.done.set_result(None)
        self._buffer = data[whole * length :]


def session(client_id: str) -> bytes:
    """CONNECT of a durable session, and its subscription to everything that is published here."""
    connect = Connect(client_id, MQTT_3_1_1, clean_start=False, keep_alive=0)
    return encode(connect, MQTT_3_1_1) + encode(Subscribe(1, [SubscribeFilter("q/#", 1)]), MQTT_3_1_1)


async def measure(case: Case, port: int) -> tuple[float, list[float]]:
    """Seconds, and how long each acknowledgement took if there was one at a time."""
    loop = asyncio.get_running_loop()
    takers: list[Taker] = []
    if case.subscribers:
        for index in range(case.subscribers):
            _, taker = await loop.create_connection(lambda i=index: Taker(i, case.messages), "127.0.0.1", port)  # type: ignore[misc]
            takers.append(taker)
            await taker.ready
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(session("offline"))
        await reader.readexactly(9)
        writer.write(b"\xe0\x00")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    senders: list[Sender] = []
    each = case.messages // case.publishers
    for index in range(case.publishers):
        _, sender = await loop.create_connection(lambda i=index: Sender(i, each, case.window), "127.0.0.1", port)  # type: ignore[misc]
        senders.append(sender)
        await sender.connected
    await asyncio.sleep(0.2)
    begun = time.perf_counter()
    for sender in senders:
        sender.send()
    async with asyncio.timeout(60):
        await asyncio.gather(*(one.done for one in senders), *(one.done for one in takers))
    seconds = time.perf_counter() - begun
    for transport in [*(one.transport for one in senders), *(one.transport for one in takers)]:
        transport.close()
    return seconds, [delay for sender in senders for delay in sender.delays_s]


@contextmanager
def broker(kind: str, folder: Path, tap: Path | None) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A broker that accepts connections, and its port. Who has not ended it by then has it killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if kind == "mosquitto":
        config = folder / "mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
            "max_queued_messages 0\nmax_inflight_messages 0\n"
        )
        argv = [str(mosquitto()), "-c", str(config)]
        if os.geteuid() == 0:
            config.write_text(config.read_text() + "user root\n")
    else:
        config = folder / "tidings.yaml"
        config.write_text("max_queued_messages: 10000000\nmax_queued_bytes: 10000000000\n")
        argv = [sys.executable, "-c", PROGRAM, "broker", "--listen", f"tcp://127.0.0.1:{port}", "--config", str(config)]
        argv += ["--memory"] if kind == "memory" else ["--data", str(folder / "data"), "--durability", kind]
    environment = dict(os.environ)
    if tap is not None:
        environment |= {"LD_PRELOAD": str(tap), "FLUSH_LOG": str(folder / "flushes")}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise SystemExit(f"{kind} does not accept connections on port {port}")
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def mosquitto() -> Path | None:
    """Its program, if it is installed."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    return Path(found) if found is not None else None


def run(case: Case, kind: str, scratch: Path, tap: Path | None) -> Found:
    """One broker, one case."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        with broker(kind, folder, tap) as (process, port):
            written, flushed = written_bytes(process.pid), flushes(folder)
            seconds, delays = asyncio.run(measure(case, port))
            flushed = flushes(folder) - flushed
            written = written_until_the_end(process) - written
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    count = case.messages
    found = Found(count * max(1, case.subscribers) / seconds, written / count, None if tap is None else flushed)
    if delays:
        delays.sort()
        found.p50_ms, found.p99_ms = (delays[int(len(delays) * share)] * 1e3 for share in (0.5, 0.99))
    return found


def written_bytes(pid: int) -> int:
    """Bytes that the process has caused to be sent to the disk."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def written_until_the_end(process: subprocess.Popen[bytes]) -> int:
    """The same, once it has been asked to stop and has."""
    process.terminate()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_oublock * 512


def flushes(folder: Path) -> int:
    log = folder / "flushes"
    return log.stat().st_size if log.exists() else 0


def build_tap(scratch: Path) -> Path | None:
    """The library that counts flushes; None without a compiler."""
    if shutil.which("gcc") is None:
        return None
    source, library = scratch / "tap.c", scratch / "tap.so"
    source.write_text(TAP)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def flush_time_ms(scratch: Path, count: int = 400) -> tuple[float, float]:
    """What the disk itself takes to append 4 KiB and flush: median and p99."""
    delays: list[float] = []
    with (scratch / "flush").open("wb", buffering=0) as file:
        for _ in range(count):
            begun = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            delays.append((time.perf_counter() - begun) * 1e3)
    delays.sort()
    return delays[count // 2], delays[int(count * 0.99)]


def median(values: list[float]) -> float:
    return statistics.median(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages, once: does it work?")
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words in it")
    parser.add_argument("--dir", type=Path, help="a directory on the disk to measure (default: the working directory)")
    options = parser.parse_args()
    rounds = 1 if options.quick else 3
    scratch = Path(tempfile.mkdtemp(prefix="durable-", dir=options.dir or Path.cwd()))
    results: dict[tuple[Case, str], list[Found]] = {}
    disk: list[tuple[float, float]] = []
    try:
        tap = build_tap(scratch)
        for number in range(rounds):
            disk.append(flush_time_ms(scratch))
            for case in CASES:
                if options.only not in case.name:
                    continue
                if options.quick:
                    case = Case(
                        case.name, case.brokers, case.publishers, case.window, case.messages // 10, case.subscribers
                    )
                for kind in case.brokers:
                    if kind == "mosquitto" and mosquitto() is None:
                        continue
                    found = run(case, kind, scratch, tap)
                    results.setdefault((case, kind), []).append(found)
                    print(f"round {number + 1}: {case.name}: {kind} {found.per_s:,.0f}/s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(results, disk)


def report(results: dict[tuple[Case, str], list[Found]], disk: list[tuple[float, float]]) -> None:
    print("| case | broker | messages/s, median (range) | ratio | bytes written a message | flushes |")
    print("|---|---|---|---|---|---|")
    for case in dict.fromkeys(case for case, _ in results):
        against = "mosquitto" if (case, "mosquitto") in results else "memory"
        base = [found.per_s for found in results[case, against]]
        for kind in case.brokers:
            runs = results.get((case, kind))
            if not runs:
                continue
            rates = [found.per_s for found in runs]
            ratio = median([rate / other for rate, other in zip(rates, base, strict=True)])
            counted = [found.flushes for found in runs if found.flushes is not None]
            print(
                f"| {case.name} | {kind} | {median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) "
                f"| {ratio:.2f} of {against} | {median([found.written for found in runs]):,.0f} "
                f"| {f'{median(counted):,.0f} for {case.messages:,}' if counted else 'not counted'} |"
            )
    print("\n| one message at a time | PUBACK median | PUBACK p99 |\n|---|---|---|")
    print(f"| the disk itself: append 4 KiB and flush | {median([d[0] for d in disk]):.2f} ms |", end="")
    print(f" {median([d[1] for d in disk]):.2f} ms |")
    for (case, kind), runs in results.items():
        if case.publishers == case.window == 1:
            print(f"| {kind} | {median([r.p50_ms for r in runs]):.2f} ms | {median([r.p99_ms for r in runs]):.2f} ms |")


if __name__ == "__main__":
    main()
