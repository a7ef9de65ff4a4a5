"""Publishers faster than the disk: peak memory, what was acknowledged meanwhile, and whether all of it arrives after.

    python tests/bench/behind.py [--for 60] [--disk 4] [--publishers 10]

Ten publishers send messages of 1,000 bytes at QoS 1, as fast as they get acknowledgements, to a durable session that is
away. Disks are often faster than any broker, so this one is made slow: after each transaction the store's thread sleeps
for as long as a disk of ``--disk`` MB/s would have taken for what the process wrote (``write_bytes`` in /proc/self/io),
before anything is reported as durable. Nothing else of the broker is changed. Exit code 1 if anything was lost. Linux.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidings.broker import Broker, Config
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Disconnect
from tidings.broker.store.sqlite import SqliteStore
from tidings.devices.load_flow import Flow, Publisher, Subscriber, topic_of
from tidings.devices.load_plan import Load, Target, memory_kb
from tidings.devices.load_sockets import Generator
from tidings.devices.load_wire import Tally

UNWRITTEN_MB: Final = 16
BUDGET_MB: Final = 64
MB: Final = 1_000_000
STALL_S: Final = 20.0


class SlowStore(SqliteStore):
    """On a disk that takes ``bytes_per_s``."""

    bytes_per_s = 1.0

    def _commit(self) -> bool:
        before = _written_bytes()
        done = super()._commit()
        if not self._closing:
            time.sleep((_written_bytes() - before) / self.bytes_per_s)
        return done


def _written_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


async def serve(directory: Path, disk_mb_per_s: float) -> None:
    """The broker, until it is killed."""
    config = Config(
        listeners=["tcp://127.0.0.1:0"],
        data_dir=directory,
        memory_budget_bytes=BUDGET_MB * MB,
        max_unwritten_bytes=UNWRITTEN_MB * MB,
        max_queued_messages=100_000_000,  # all of it is owed
        max_queued_bytes=1 << 40,
    )
    store = SlowStore(directory, config)
    store.bytes_per_s = disk_mb_per_s * MB
    async with Broker(config, store=store) as broker:
        print(broker.port, flush=True)
        await asyncio.Event().wait()


def measure(target: Target, publishers: int, seconds: float) -> int:
    """Print a line of figures; returns how many messages were acknowledged and never arrived."""
    load = Load("all", publishers, 1, qos=1, version=5, size_bytes=1000, window=1000)
    generator = Generator(target, load.version, frame_bytes=load.size_bytes + 64)
    flow = Flow(1, 1 << 40)
    flow.publishers = [Publisher(generator, flow, i, topic_of(i), load) for i in range(publishers)]
    tally = Tally(0, publishers)
    subscriber = Subscriber(generator, flow, 0, "bench/+", tally, load, persistent=True)
    generator.open_all([subscriber])
    subscriber.send(encode(Disconnect(), load.version))
    subscriber.close()
    generator.open_all(flow.publishers)
    base_kb = memory_kb(target.pid, "VmRSS") or 0
    for publisher in flow.publishers:
        flow.wake(publisher)
    peak_kb = 0
    started = now = time.monotonic()
    while now - started < seconds:
        generator.awake.clear()
        flow.refill(time.monotonic_ns())
        generator.turn(0.05)
        generator.check()
        peak_kb = max(peak_kb, memory_kb(target.pid, "VmRSS") or 0)
        now = time.monotonic()
    acked = sum(publisher.acked for publisher in flow.publishers)
    rate = acked / (now - started)
    _until(generator, lambda: sum(publisher.sent - publisher.acked for publisher in flow.publishers))
    all_acked = sum(publisher.acked for publisher in flow.publishers)
    started = time.monotonic()
    subscriber.open()
    _until(generator, lambda: flow.owed)
    took_s = time.monotonic() - started
    lost = tally.lost([publisher.acked for publisher in flow.publishers])
    print(
        f"{seconds:g} s: {acked:,} acknowledged ({rate:,.0f}/s), {all_acked:,} once the disk had caught up; memory "
        f"{base_kb / 1024:.0f} MB before, {peak_kb / 1024:.0f} MB at most; delivered after: {tally.delivered:,} in "
        f"{took_s:.1f} s, {lost} lost, {tally.duplicated} twice"
    )
    generator.close_all()
    return lost


def _until(generator: Generator, left: Callable[[], int]) -> None:
    """Serve the sockets until nothing is left, or nothing has moved for long."""
    before, moved = left(), time.monotonic()
    while before and time.monotonic() - moved < STALL_S:
        generator.turn(0.1)
        generator.check()
        now = left()
        if now != before:
            before, moved = now, time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--for", dest="seconds", type=float, default=60.0, help="seconds that they publish")
    parser.add_argument("--disk", type=float, default=4.0, help="MB that the disk takes in a second")
    parser.add_argument("--publishers", type=int, default=10)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.disk))
        return
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, __file__, "--serve", directory, "--disk", str(options.disk)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline())
                lost = measure(Target(port=port, pid=process.pid), options.publishers, options.seconds)
            finally:
                process.kill()
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
