"""The transport of plain connections on Linux, between sockets and protocols that only take notes."""

import asyncio
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from tidings.broker.transport import acceptor as acceptor_module
from tidings.broker.transport import stream as stream_module
from tidings.broker.transport.acceptor import ACCEPTS_PER_TURN, Acceptor
from tidings.broker.transport.poller import POLLS, READ_BYTES, Poller, Stream

from ..raw_client import LOOPS, RawClient, run, serve, until

pytestmark = pytest.mark.skipif(not POLLS, reason="there is no epoll here")

LOOP = pytest.mark.parametrize("loop", list(LOOPS))
MUCH = bytes(range(256)) * 8192  # 2 MiB, more than sockets take at once


class Notes(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.stream: Stream
        self.told: list[Any] = []
        self.received = b""
        self.on_data: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.stream = cast(Stream, transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.told.append(len(data))
        self.on_data()

    def eof_received(self) -> None:
        self.told.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(("lost", type(exc)))

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")


class Table:
    """A poller that does not listen, and peers of its connections."""

    def __init__(self) -> None:
        self.made: list[Notes] = []
        self.poller = Poller([], self._make)
        self._peers: list[socket.socket] = []

    def _make(self, peer: str) -> asyncio.Protocol:
        self.made.append(Notes())
        return self.made[-1]

    def open(self, tcp: bool = False) -> tuple[Notes, socket.socket]:
        """A connection, as its protocol and as its peer see it."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                theirs = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
        else:
            ours, theirs = socket.socketpair()
        self._peers.append(theirs)
        ours.setblocking(False)
        theirs.setblocking(False)
        self.poller.take(ours, "somebody")
        return self.made[-1], theirs

    def is_ready(self) -> bool:
        """Whether the next turn would have anything to do."""
        return bool(select.select([self.poller.epoll], [], [], 0)[0])

    async def close(self) -> None:
        self.poller.close()
        for notes in self.made:
            notes.stream.abort()
        await self.poller.wait_closed()
        for peer in self._peers:
            peer.close()


def play(loop: str, scene: Callable[[Table], Awaitable[None]]) -> None:
    """Run ``scene``; afterwards no descriptor may be left that was not there before."""

    async def main() -> None:
        await asyncio.sleep(0)  # the loop opens some of its own
        before = descriptors()
        table = Table()
        try:
            await scene(table)
        finally:
            await table.close()
        assert descriptors() == before

    run(main(), loop)


def descriptors() -> set[int]:
    """Those that this process has open."""
    return {number for number in range(1000) if os.path.exists(f"/proc/self/fd/{number}")}


def drain(peer: socket.socket) -> bytes:
    """What has arrived at ``peer``."""
    data = b""
    while True:
        try:
            piece = peer.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


@LOOP
def test_one_turn_reads_a_bounded_amount_and_nothing_is_lost(loop: str) -> None:
    async def scene(table: Table) -> None:
        notes, peer = table.open()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(MUCH))
        sending = MUCH
        while sending:
            sending = sending[peer.send(sending) :]
            left = len(MUCH) - len(sending)
            await until(lambda left=left: len(notes.received) == left)  # type: ignore[misc]
        assert notes.received == MUCH
        assert max(notes.told) <= READ_BYTES

    play(loop, scene)


@LOOP
def test_what_the_socket_does_not_take_is_written_as_it_empties(loop: str) -> None:
    async def scene(table: Table) -> None:
        notes, peer = table.open()
        stream = notes.stream
        stream.set_write_buffer_limits(high=1000)
        stream.write(MUCH)
        stream.write(b"end")
        assert notes.told == ["pause"]
        assert stream.get_write_buffer_size() > 1000
        got = b""
        while len(got) < len(MUCH) + 3:
            got += drain(peer)
            await asyncio.sleep(0)
        assert got == MUCH + b"end"
        assert notes.told == ["pause", "resume"]
        assert stream.get_write_buffer_size() == 0
        assert not table.is_ready()  # or the loop would spin

    play(loop, scene)


@LOOP
def test_a_close_sends_the_rest_and_an_abort_does_not(loop: str) -> None:
    async def scene(table: Table) -> None:
        (closed, peer), (aborted, other) = table.open(), table.open()
        for notes in (closed, aborted):
            notes.stream.write(MUCH)
        closed.stream.close()
        aborted.stream.abort()
        closed.stream.write(b"late")
        assert closed.stream.is_closing()
        await until(lambda: len(table.poller.streams) == 1)
        assert len(drain(other)) < len(MUCH)
        assert closed.told == ["pause"]
        got = b""
        while len(table.poller.streams) == 1:
            got += drain(peer)
            await asyncio.sleep(0)
        assert got + drain(peer) == MUCH
        assert closed.told[-1] == aborted.told[-1] == ("lost", type(None))

    play(loop, scene)


@LOOP
def test_a_peer_that_sends_no_more_is_closed(loop: str) -> None:
    async def scene(table: Table) -> None:
        notes, peer = table.open()
        peer.send(b"bye")
        peer.shutdown(socket.SHUT_WR)
        await until(lambda: not table.poller.streams)
        assert notes.told == [3, "eof", ("lost", type(None))]
        assert peer.recv(1) == b""

    play(loop, scene)


@LOOP
def test_a_peer_that_resets_the_connection_is_noticed_in_reading_and_in_writing(loop: str) -> None:
    async def scene(table: Table) -> None:
        for writes in (False, True):
            notes, peer = table.open(tcp=True)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            if writes:
                notes.stream.write(b"x")
                assert notes.stream.is_closing()
            await until(lambda: not table.poller.streams)
            assert notes.told == [("lost", ConnectionResetError)]
            notes.stream.write(b"x")
            notes.stream.resume_reading()
            assert notes.stream.get_extra_info("socket") is None

    play(loop, scene)


@LOOP
def test_a_peer_that_is_not_read_from_costs_nothing_even_when_it_goes(loop: str) -> None:
    async def scene(table: Table) -> None:
        notes, peer = table.open()
        notes.stream.pause_reading()
        notes.stream.pause_reading()
        peer.send(b"x")
        peer.close()
        assert not table.is_ready()
        notes.stream.resume_reading()
        await until(lambda: not table.poller.streams)
        assert notes.told == [1, "eof", ("lost", type(None))]

    play(loop, scene)


@LOOP
def test_who_is_closed_or_paused_by_another_in_a_turn_is_not_served_in_it(loop: str) -> None:
    async def scene(table: Table) -> None:
        opened = [table.open() for _ in range(3)]
        theirs = set(table.poller.streams)

        def end_the_others(notes: Notes) -> None:
            others = [other for other, _ in opened if other is not notes]
            others[0].stream.abort()
            others[1].stream.pause_reading()
            assert theirs <= descriptors()  # so a successor has another one

        for notes, peer in opened:
            notes.on_data = lambda notes=notes: end_the_others(notes)  # type: ignore[misc]
            peer.send(b"x")
        await until(lambda: len(table.poller.streams) == 2)
        told = sorted((notes.told for notes, _ in opened), key=str)
        assert told == [[("lost", type(None))], [1], []]

    play(loop, scene)


@LOOP
def test_a_protocol_that_fails_loses_its_own_connection_only(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    async def scene(table: Table) -> None:
        (wrong, peer), (right, other) = table.open(), table.open()
        wrong.on_data = fail
        peer.send(b"x")
        other.send(b"x")
        await until(lambda: len(table.poller.streams) == 1)
        assert wrong.told == [1, ("lost", type(None))]
        assert right.told == [1]
        assert "a bug" in caplog.text

    play(loop, scene)


@LOOP
def test_a_crowd_is_accepted_a_few_at_a_time(loop: str) -> None:
    async def main() -> None:
        turns: list[int] = []
        taken: list[socket.socket] = []
        with socket.create_server(("127.0.0.1", 0), backlog=4096) as listening:
            listening.setblocking(False)
            crowd = [socket.create_connection(listening.getsockname()) for _ in range(2 * ACCEPTS_PER_TURN + 1)]

            def take(sock: socket.socket, peer: str) -> None:
                taken.append(sock)
                turns[-1] += 1

            acceptor = Acceptor([listening], take)

            def turn() -> None:
                if len(taken) < len(crowd):
                    turns.append(0)
                    asyncio.get_running_loop().call_soon(turn)

            turn()
            await until(lambda: len(taken) == len(crowd))
            acceptor.close()
        assert max(turns) == ACCEPTS_PER_TURN
        for sock in crowd + taken:
            sock.close()

    run(main(), loop)


@LOOP
def test_without_descriptors_it_says_so_and_accepts_later(
    loop: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor_module, "RETRY_S", 0)

    class Poor(socket.socket):
        tries = 0

        def accept(self) -> tuple[socket.socket, Any]:
            self.tries += 1
            if self.tries < 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def main() -> None:
        taken: list[str] = []

        def take(sock: socket.socket, peer: str) -> None:
            taken.append(peer)
            sock.close()

        with Poor() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            listening.setblocking(False)
            acceptor = Acceptor([listening], take)
            with socket.create_connection(listening.getsockname()) as client:
                await until(lambda: bool(taken))
                assert taken == ["{}:{}".format(*client.getsockname())]
            acceptor.close()

    run(main(), loop)
    errors = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["cannot accept connections: Too many open files; trying again in 0 s"] * 2


@LOOP
def test_connections_are_kept_alive_and_wait_for_nothing_to_send(loop: str) -> None:
    async def main() -> None:
        async with serve() as broker, await RawClient.connect(broker.urls[0], "one"):
            assert broker._links is not None
            (link,) = broker._links.open
            assert isinstance(link._transport, Stream)
            descriptor = link._transport.get_extra_info("socket").fileno()
            with socket.socket(fileno=os.dup(descriptor)) as sock:
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(main(), loop)


@LOOP
@pytest.mark.parametrize("scheme", ["tcp", "unix"])
def test_where_there_is_no_epoll_the_event_loop_carries_the_connections(
    loop: str, scheme: str, socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "POLLS", False)

    async def main() -> None:
        url = "tcp://127.0.0.1:0" if scheme == "tcp" else f"unix://{socket_path}"
        async with serve(url) as broker, await RawClient.connect(broker.urls[0], "one") as client:
            assert broker._links is not None
            (link,) = broker._links.open
            assert not isinstance(link._transport, Stream)
            assert await client.subscribe("a", 1) == 1
            client.send(b"\x32\x06\x00\x01a\x00\x09\x00")
            assert {type(await client.receive()).__name__ for _ in range(2)} == {"Puback", "Publish"}

    run(main(), loop)
