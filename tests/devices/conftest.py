"""Brokers for the tests that need a socket, and a proxy that spoils what a broker delivers."""

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from tidings.broker import BrokerThread, Config
from tidings.broker.codec import Decoder, Packet, Publish, encode

Spoil = Callable[[Publish], list[Publish]]


@pytest.fixture(params=["tidings", pytest.param("mosquitto", marks=pytest.mark.slow)])
def broker_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every broker that the fleet is tried against: ours, and Mosquitto with unbounded queues."""
    if request.param == "tidings":
        with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)) as broker:
            yield f"mqtt://127.0.0.1:{broker.port}"
        return
    program = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
    if program is None:
        pytest.skip("needs mosquitto (Debian package mosquitto)")
    folder: Path = request.getfixturevalue("tmp_path")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 0\n"
    )
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as attempt:
                if attempt.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"mqtt://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(5)


@pytest.fixture
def own_url() -> Iterator[str]:
    """Our broker only."""
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], sys_interval_s=0, stop_timeout_s=1)) as broker:
        yield f"mqtt://127.0.0.1:{broker.port}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(change(data))
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
def spoiled() -> Callable[[str, Spoil], AbstractAsyncContextManager[str]]:
    """``async with spoiled(url, spoil) as url``: a proxy; ``spoil`` says what becomes of each PUBLISH to a client."""

    @asynccontextmanager
    async def serve(url: str, spoil: Spoil) -> AsyncIterator[str]:
        port = int(url.rpartition(":")[2])
        pumps: set[asyncio.Task[None]] = set()

        async def connected(client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            decoder = Decoder(version=5, side="client")

            def change(data: bytes) -> bytes:
                packets: list[Packet] = []
                for packet in decoder.feed(data):
                    packets += spoil(packet) if isinstance(packet, Publish) else [packet]
                assert decoder.error is None
                return b"".join(encode(packet, 5) for packet in packets)

            for pump in (_pump(client_reader, writer, bytes), _pump(reader, client_writer, change)):
                task = asyncio.ensure_future(pump)
                pumps.add(task)
                task.add_done_callback(pumps.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        try:
            yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in list(pumps):
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    return serve
