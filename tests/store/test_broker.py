"""A broker with a data directory as its users see it: through sockets, signals and a disk that fills up."""

import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tidings.broker import BrokerThread, Config, Message
from tidings.broker.codec import (
    MQTT_5_0,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Puback,
    Publish,
    Suback,
    Subscribe,
    SubscribeFilter,
    Will,
    encode,
)
from tidings.broker.core.topics import Grant
from tidings.broker.store.rows import encode_grant, encode_messages
from tidings.broker.store.schema import PACK_BITS, connect
from tidings.broker.store.sqlite import SqliteStore
from tidings.devices.load_plan import memory_kb

from ..server_process import ServerProcess, clean_environment
from .events import damage

NEVER = 0xFFFF_FFFF
SOCKETS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def sockets() -> Iterator[None]:
    """Closes what a test leaves open."""
    yield
    for one in SOCKETS:
        one.close()
    SOCKETS.clear()


class Peer:
    """A client on a blocking socket."""

    def __init__(
        self, port: int, client_id: str, version: int = MQTT_5_0, *, clean: bool = False, will: Will | None = None
    ) -> None:
        self.version = version
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        SOCKETS.append(self._socket)
        self._decoder = Decoder(side="client", version=version)
        self._inbox: list[Packet] = []
        properties = {"session_expiry_interval": NEVER} if version == MQTT_5_0 and not clean else {}
        self.send(Connect(client_id, version, clean, 0, will=will, properties=properties))  # type: ignore[arg-type]
        answer = self.receive()
        assert isinstance(answer, Connack)
        self.present = answer.session_present
        self.reason = answer.reason

    def send(self, *packets: Packet) -> None:
        self._socket.sendall(b"".join(encode(packet, self.version) for packet in packets))

    def receive(self, timeout_s: float = 10) -> Packet:
        self._socket.settimeout(timeout_s)
        while not self._inbox:
            data = self._socket.recv(65536)
            assert data, "the broker closed the connection"
            self._inbox += self._decoder.feed(data)
        return self._inbox.pop(0)

    def silent_for(self, seconds: float) -> bool:
        try:
            return not isinstance(self.receive(seconds), Packet)
        except TimeoutError:
            return True

    def subscribe(self, filter: str, qos: int = 2) -> None:
        self.send(Subscribe(1, [SubscribeFilter(filter, qos)]))
        assert isinstance(self.receive(), Suback)

    def publish(self, topic: str, payload: bytes, packet_id: int = 1, retain: bool = False) -> int:
        """At QoS 1; the reason code of the PUBACK."""
        self.send(Publish(topic, payload, 1, retain, packet_id=packet_id))
        answer = self.receive()
        assert isinstance(answer, Puback)
        return answer.reason

    def leave(self) -> None:
        self.send(Disconnect())
        self._socket.close()


@contextmanager
def server(tmp_path: Path, *args: str) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "--listen", "tcp://127.0.0.1:0", "--data", str(tmp_path / "data"), *args)
    try:
        yield process
    finally:
        process.kill()


def test_everything_that_was_promised_survives_kill_9(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        away = Peer(process.port, "away")
        away.subscribe("t/#")
        away.leave()
        publisher = Peer(process.port, "publisher", clean=True)
        for number in range(1, 51):
            publisher.publish("t/1", str(number).encode(), number)
        publisher.publish("r", b"state", retain=True)
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
    with server(tmp_path) as process:
        away = Peer(process.port, "away")
        assert away.present
        got = [away.receive() for _ in range(50)]
        assert [packet.payload for packet in got if isinstance(packet, Publish)] == [b"%d" % n for n in range(1, 51)]
        newcomer = Peer(process.port, "newcomer", clean=True)
        newcomer.subscribe("r")
        retained = newcomer.receive()
        assert isinstance(retained, Publish)
        assert (retained.payload, retained.retain) == (b"state", True)
        assert process.stop().code == 0


def test_the_will_of_a_client_that_a_crash_cut_off_is_published(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        watcher = Peer(process.port, "watcher")
        watcher.subscribe("gone")
        watcher.leave()
        Peer(process.port, "mortal", will=Will("gone", b"bye", 1))
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
    with server(tmp_path) as process:
        will = Peer(process.port, "watcher").receive()
        assert isinstance(will, Publish)
        assert will.payload == b"bye"


def test_a_second_broker_on_the_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        with pytest.raises(AssertionError, match=r"1: Error: data directory .* is in use by another broker"):
            ServerProcess(tmp_path, "--listen", "tcp://127.0.0.1:0", "--data", str(tmp_path / "data"))
        assert process.stop().code == 0


def test_the_default_directory_is_in_the_users_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert clean_environment()["XDG_STATE_HOME"] == str(tmp_path / "state")
    process = ServerProcess(tmp_path, "--listen", "tcp://127.0.0.1:0")
    end = process.stop()
    assert end.code == 0
    assert end.err == f"data in {tmp_path}/state/tidings\n"
    assert (tmp_path / "state" / "tidings" / "tidings.db").exists()


def until(peer: Peer, wanted: Callable[[str], bool]) -> str:
    """The first payload that ``wanted`` takes."""
    while True:
        packet = peer.receive()
        assert isinstance(packet, Publish)
        if wanted(packet.payload.decode()):
            return packet.payload.decode()


def test_a_full_disk_refuses_publishers_and_the_broker_recovers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("sys_interval_s: 0.1\n")
    with server(tmp_path, "--config", str(tmp_path / "config.yaml")) as process:
        away = Peer(process.port, "away")
        away.subscribe("t")
        away.leave()
        modern, old = Peer(process.port, "modern", clean=True), Peer(process.port, "old", 4, clean=True)
        watcher = Peer(process.port, "watcher", clean=True)
        assert modern.publish("t", b"before") == 0
        # No file of the broker may grow: its writes fail as on a full disk.
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        modern.send(Publish("t", b"caught in it", 1, packet_id=2))
        assert modern.silent_for(0.3)
        old.send(Publish("t", b"waits", 1, packet_id=3))
        assert old.silent_for(0.3)
        newcomer = Peer(process.port, "newcomer", clean=True)
        assert newcomer.publish("t", b"refused", 4) == 0x97
        watcher.subscribe("$SYS/tidings/store/trouble")
        trouble = until(watcher, lambda payload: payload != "none")
        assert "tidings.db: " in trouble
        assert trouble in process.err
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for peer, packet_id in ((modern, 2), (old, 3)):
            answer = peer.receive()
            assert isinstance(answer, Puback)
            assert answer.packet_id == packet_id
        assert newcomer.publish("t", b"after", 5) == 0
        until(watcher, lambda payload: payload == "none")
        got = Peer(process.port, "away")
        payloads = [packet.payload for packet in (got.receive() for _ in range(4)) if isinstance(packet, Publish)]
        assert payloads == [b"before", b"caught in it", b"waits", b"after"]
        assert process.stop().code == 0


def test_a_stop_with_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with server(tmp_path) as process:
        away = Peer(process.port, "away")
        away.subscribe("t")
        away.leave()
        publisher = Peer(process.port, "publisher", clean=True)
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        publisher.send(Publish("t", b"x", 1, packet_id=1))
        assert publisher.silent_for(0.2)
        end = process.stop()
        assert end.code == 1
        assert "Error: not everything could be written" in end.err
        assert "Traceback" not in end.err


@pytest.mark.parametrize("table", ["sessions", "owed", "messages"])
def test_a_damaged_database_is_reported_in_one_line_at_the_start(tmp_path: Path, table: str) -> None:
    fill(tmp_path / "data", sessions=100, messages_each=20)
    damage(tmp_path / "data", table)
    with pytest.raises(AssertionError, match=r"1: Error: .*tidings\.db: the database is damaged") as caught:
        ServerProcess(tmp_path, "--listen", "tcp://127.0.0.1:0", "--data", str(tmp_path / "data"))
    assert "Traceback" not in str(caught.value)


def fill(directory: Path, sessions: int, messages_each: int) -> None:
    """A database as a broker leaves it, whose sessions ``c1``, ``c2``, … are each owed messages of 100 bytes.

    Each message came alone, so that every one has a row: the largest database that they can make.
    """
    SqliteStore(directory, Config()).close()
    database = connect(directory / "tidings.db")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN")
    grant = encode_grant(Grant(1))
    database.execute("INSERT INTO grants VALUES (1, ?)", (grant,))
    for number in range(1, sessions + 1):
        database.execute(
            "INSERT INTO sessions VALUES (?, ?, ?, NULL, 0, NULL, NULL, 0, ?)",
            (number, f"c{number}", NEVER, messages_each),
        )
        database.execute("INSERT INTO subscriptions VALUES (?, ?, ?)", (number, f"t/{number}/#", grant))
    for seq in range(1, messages_each + 1):
        one = [Message(f"t/{number}/x", b"%d" % seq + bytes(96), 1, sender="p") for number in range(1, sessions + 1)]
        first = (seq - 1) * sessions + 1
        rows = ((first + index, encode_messages([message])) for index, message in enumerate(one))
        database.executemany("INSERT INTO messages VALUES (?, 1, 1, ?)", rows)
        database.executemany(
            "INSERT INTO owed VALUES (?, ?, 1, ?, 1, ?)",
            ((number, seq, (first + number - 1) << PACK_BITS, one[0].size) for number in range(1, sessions + 1)),
        )
    database.execute("COMMIT")
    database.close()


@pytest.mark.slow
def test_a_million_queued_messages_are_not_read_at_the_start(tmp_path: Path) -> None:
    fill(tmp_path / "data", sessions=10_000, messages_each=100)
    begun = time.monotonic()
    with server(tmp_path) as process:
        assert time.monotonic() - begun < 30  # 5 s are promised; a busy machine gets more
        assert resident_mb(process) < 400
        away = Peer(process.port, "c77")
        assert away.present
        for seq in range(1, 101):
            packet = away.receive()
            assert isinstance(packet, Publish)
            assert (packet.topic, packet.payload.rstrip(b"\0")) == ("t/77/x", b"%d" % seq)
            away.send(Puback(packet.packet_id))
        assert resident_mb(process) < 400
        assert process.stop().code == 0


def resident_mb(process: ServerProcess) -> float:
    """Memory of the broker."""
    kilobytes = memory_kb(process.process.pid, "VmRSS")
    assert kilobytes is not None
    return kilobytes / 1024


def test_clean_sessions_alone_write_nothing(tmp_path: Path) -> None:
    with BrokerThread(Config(listeners=["tcp://127.0.0.1:0"], data_dir=tmp_path)) as broker:
        subscriber, publisher = Peer(broker.port, "s", clean=True), Peer(broker.port, "p", clean=True)
        subscriber.subscribe("t")
        before = written(tmp_path)
        assert publisher.publish("t", b"x") == 0
        assert isinstance(subscriber.receive(), Publish)
        assert written(tmp_path) == before


def written(directory: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.glob("tidings.db*"))]


def test_more_than_memory_may_hold_waits_in_the_store_and_comes_in_order(tmp_path: Path) -> None:
    config = Config(listeners=["tcp://127.0.0.1:0"], data_dir=tmp_path, max_memory_messages=10, max_inflight=7)
    with BrokerThread(config) as broker:
        away = Peer(broker.port, "away")
        away.subscribe("t", 1)
        away.leave()
        publisher = Peer(broker.port, "p", clean=True)
        publisher.send(*(Publish("t", b"%d" % number, 1, packet_id=number) for number in range(1, 301)))
        for _ in range(300):
            assert isinstance(publisher.receive(), Puback)
        away = Peer(broker.port, "away")
        got: list[bytes] = []
        while len(got) < 300:
            packet = away.receive()
            assert isinstance(packet, Publish)
            got.append(packet.payload)
            away.send(Puback(packet.packet_id))
        assert got == [b"%d" % number for number in range(1, 301)]


def test_publishers_wait_while_the_store_has_too_much_to_write(tmp_path: Path) -> None:
    config = Config(listeners=["tcp://127.0.0.1:0"], data_dir=tmp_path, max_unwritten_bytes=1_000)
    with BrokerThread(config) as broker:
        away = Peer(broker.port, "away")
        away.subscribe("t", 1)
        away.leave()
        publisher = Peer(broker.port, "p", clean=True)
        deadline = time.monotonic() + 30
        for start in range(1, 2_001, 100):
            publisher.send(*(Publish("t", b"x" * 500, 1, packet_id=start + number) for number in range(100)))
        for _ in range(2_000):
            assert isinstance(publisher.receive(), Puback)
        assert time.monotonic() < deadline
