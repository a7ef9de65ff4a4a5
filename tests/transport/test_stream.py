"""Listening: which addresses are taken, which are refused and in what words, and what is left behind."""

import os
import socket
import stat
from collections.abc import Callable

import pytest

from tidings.broker import Broker, BrokerError, Config, ConfigError

from ..raw_client import LOOPS, RawClient, run, serve
from .conftest import Carrier

LOOP = pytest.mark.parametrize("loop", list(LOOPS))


def start_and_stop(url: str, loop: str) -> None:
    async def main() -> None:
        async with serve(url) as broker, await RawClient.connect(broker.urls[0], "one"):
            pass

    run(main(), loop)


def test_a_listener_says_where_it_is_and_accepts_until_the_broker_stops(carrier: Carrier) -> None:
    async def main() -> None:
        async with serve(carrier.url) as broker:
            (url,) = broker.urls
            assert url.startswith(carrier.url.removesuffix("0"))
            assert not url.endswith(":0")
            async with await RawClient.connect(url, "one"):
                pass
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            await RawClient.open(url)

    run(main(), carrier.loop)


@LOOP
def test_one_broker_listens_in_many_places(loop: str, socket_path: str) -> None:
    async def main() -> None:
        async with serve("tcp://127.0.0.1:0", f"unix://{socket_path}", "tcp://127.0.0.1:0") as broker:
            clients = [await RawClient.connect(url, f"c{number}") for number, url in enumerate(broker.urls)]
            assert len({*broker.urls}) == 3
            assert broker.port == int(broker.urls[0].rpartition(":")[2])
            assert await clients[1].subscribe("a") == 0
            await clients[0].publish("a", b"x")
            assert (await clients[1].message()).payload == b"x"
            for client in clients:
                client.abort()

    run(main(), loop)


@LOOP
def test_the_file_of_a_unix_socket_is_removed_at_a_stop(loop: str, socket_path: str) -> None:
    async def main() -> None:
        async with serve(f"unix://{socket_path}"):
            assert stat.S_ISSOCK(os.stat(socket_path).st_mode)

    run(main(), loop)
    assert not os.path.exists(socket_path)


@LOOP
def test_a_socket_file_that_a_dead_process_left_is_taken_over(loop: str, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
        dead.listen()
    assert os.path.exists(socket_path)
    start_and_stop(f"unix://{socket_path}", loop)


@LOOP
def test_a_socket_that_somebody_listens_on_is_left_alone(loop: str, socket_path: str) -> None:
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(socket_path)
        alive.listen()
        with pytest.raises(
            BrokerError, match=f"^cannot listen on unix://{socket_path}: it is in use; stop the program"
        ):
            start_and_stop(f"unix://{socket_path}", loop)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(socket_path)


@LOOP
def test_a_file_that_is_no_socket_is_left_alone(loop: str, socket_path: str) -> None:
    with open(socket_path, "w") as file:
        file.write("precious")
    with pytest.raises(BrokerError, match=f"^cannot listen on unix://{socket_path}: "):
        start_and_stop(f"unix://{socket_path}", loop)
    with open(socket_path) as file:
        assert file.read() == "precious"


@LOOP
def test_a_folder_that_is_not_there_is_said_in_one_line(loop: str) -> None:
    with pytest.raises(BrokerError, match=r"^cannot listen on unix:///nowhere/at/all/socket: [^\n]+$"):
        start_and_stop("unix:///nowhere/at/all/socket", loop)


@LOOP
def test_a_port_in_use_is_said_in_one_line_and_the_other_listeners_are_closed_again(
    loop: str, socket_path: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def main() -> None:
            async with serve(f"unix://{socket_path}", f"tcp://127.0.0.1:{port}"):
                pass

        with pytest.raises(
            BrokerError,
            match=f"^cannot listen on tcp://127.0.0.1:{port}: it is in use; stop the program that has it or choose",
        ):
            run(main(), loop)
    assert not os.path.exists(socket_path)


@LOOP
def test_a_host_that_is_unknown_is_said_in_one_line(loop: str) -> None:
    async def main() -> None:
        async with serve("tcp://host.invalid:0", allow_anonymous_remote=True):
            pass

    expected = r"^cannot listen on tcp://host\.invalid:0: this machine has no such address$"
    with pytest.raises(BrokerError, match=expected):
        run(main(), loop)


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("", "expected tcp://"),
        ("1883", "expected tcp://"),
        ("127.0.0.1:1883", "expected tcp://"),
        ("http://127.0.0.1:1883", "expected tcp://"),
        ("tcp://", "expected tcp://"),
        ("tcp://:1883", "expected tcp://"),
        ("tcp://127.0.0.1:port", "expected tcp://"),
        ("tcp://127.0.0.1:65536", "expected tcp://"),
        ("tcp://127.0.0.1:-1", "expected tcp://"),
        ("tcp://[::1:1883", "expected tcp://"),
        ("tcp://user@127.0.0.1", "expected tcp://"),
        ("tcp://127.0.0.1?x=1", "expected tcp://"),
        ("tcp://127.0.0.1/path", "only ws:// and wss:// have a path"),
        ("unix://socket", "a path needs three slashes, as in unix:///tmp/tidings.sock"),
        ("unix:///", "a path needs three slashes"),
    ],
)
def test_a_url_that_is_no_address_is_refused_with_what_was_expected(url: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Broker(Config(listeners=[url]))
    text = str(caught.value)
    assert what in text
    assert repr(url) in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "url", ["tcp://0.0.0.0:0", "tcp://[::]:0", "tcp://192.0.2.1:1883", "tcp://broker.example:1883"]
)
def test_an_address_that_others_can_reach_is_refused_unless_that_is_wanted(url: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines") as caught:
        Broker(Config(listeners=[url]))
    assert "allow_anonymous_remote" in str(caught.value)
    Broker(Config(listeners=[url], allow_anonymous_remote=True))


@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "tcp://127.9.9.9", "tcp://[::1]", "tcp://localhost", "unix:///x"])
def test_an_address_of_this_machine_alone_needs_no_permission(url: str) -> None:
    Broker(Config(listeners=[url]))


def test_a_client_that_leaves_before_it_is_accepted_hurts_nobody(
    carrier: Carrier, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serve(carrier.url) as broker:
            for _ in range(20):
                (await RawClient.open(broker.urls[0])).abort()
            async with await RawClient.connect(broker.urls[0], "one"):
                pass

    run(main(), carrier.loop)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("make", [lambda path: os.symlink("/nowhere", path), os.mkdir], ids=["dangling link", "folder"])
@LOOP
def test_whatever_else_is_at_the_path_is_left_alone(loop: str, make: Callable[[str], None], socket_path: str) -> None:
    make(socket_path)
    with pytest.raises(BrokerError, match=r"^cannot listen on unix://"):
        start_and_stop(f"unix://{socket_path}", loop)
    assert os.path.lexists(socket_path)
