"""mosquitto_pub, mosquitto_sub and mosquitto_rr against ``tidings broker``."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tidings.cli.bench_peer import PEERS
from tidings.devices.load_transports import Transport

from ..server_process import ServerProcess, run_tidings_broker

HOST = "127.0.0.1"
VERSIONS = ["mqttv31", "mqttv311", "mqttv5"]
TIMED_OUT = 27
TIMEOUT_S = 10

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Listen = Callable[..., "subprocess.Popen[bytes]"]


def program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name} (Debian: mosquitto-clients)")
    return path


def execute(name: str, *args: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([program(name), *args], input=stdin, capture_output=True, timeout=2 * TIMEOUT_S)


@pytest.fixture
def pub(port: int) -> Run:
    """mosquitto_pub to the broker; it must succeed without a word."""

    def run(*args: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        done = execute("mosquitto_pub", "-h", HOST, "-p", str(port), *args, stdin=stdin)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        return done

    return run


@pytest.fixture
def sub(port: int) -> Run:
    """mosquitto_sub to the broker, for at most 10 seconds."""

    def run(*args: str) -> "subprocess.CompletedProcess[bytes]":
        wait = () if "-W" in args else ("-W", str(TIMEOUT_S))
        return execute("mosquitto_sub", "-h", HOST, "-p", str(port), *wait, *args)

    return run


@pytest.fixture
def listening(port: int, pub: Run, topic: str) -> Iterator[Listen]:
    """Start a program that subscribes; it stands when this returns.

    The program also subscribes to a topic with a retained message, in the same packet: when that one is printed, all
    filters are in force.
    """
    started: list[subprocess.Popen[bytes]] = []
    pub("-t", f"ready/{topic}", "-m", "ready", "-r", "-q", "1")

    def start(*args: str, name: str = "mosquitto_sub") -> "subprocess.Popen[bytes]":
        command = [program(name), "-h", HOST, "-p", str(port), "-W", str(TIMEOUT_S), "-t", f"ready/{topic}", *args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def output(process: "subprocess.Popen[bytes]") -> bytes:
    out, _ = process.communicate(timeout=2 * TIMEOUT_S)
    assert process.returncode == 0
    return out


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_messages_arrive_once_and_in_order(pub: Run, listening: Listen, topic: str, version: str, qos: str) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(100))
    subscriber = listening("-t", topic, "-q", qos, "-V", version, "-C", "101", "-F", "%q %p")
    pub("-t", topic, "-q", qos, "-V", version, "-l", stdin=lines)
    assert output(subscriber) == b"".join(qos.encode() + b" " + line for line in lines.splitlines(keepends=True))


@pytest.mark.parametrize("theirs", VERSIONS)
@pytest.mark.parametrize("ours", VERSIONS)
def test_versions_understand_each_other(pub: Run, sub: Run, topic: str, theirs: str, ours: str) -> None:
    pub("-t", topic, "-m", "hello", "-r", "-q", "2", "-V", theirs)
    assert (
        sub("-t", topic, "-C", "1", "-q", "2", "-V", ours, "-F", "%t %q %r %p").stdout
        == f"{topic} 2 1 hello\n".encode()
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_messages_are_replaced_and_deleted(pub: Run, sub: Run, topic: str, version: str) -> None:
    for payload in ("old", "new"):
        pub("-t", topic, "-m", payload, "-r", "-q", "1", "-V", version)
    done = sub("-t", f"{topic}/#", "-C", "1", "-V", version, "-v")
    assert (done.returncode, done.stdout) == (0, f"{topic} new\n".encode())
    pub("-t", topic, "-n", "-r", "-q", "1", "-V", version)
    done = sub("-t", topic, "-W", "1", "-V", version)
    assert (done.returncode, done.stdout) == (TIMED_OUT, b"")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_keeps_what_comes_while_its_client_is_away(
    pub: Run, sub: Run, topic: str, name: str, version: str
) -> None:
    keep = ("-c", "-i", name, "-t", topic, "-q", "2", "-V", version, *(("-x", "60") if version == "mqttv5" else ()))
    assert sub(*keep, "-E").returncode == 0
    lines = b"".join(b"%d\n" % number for number in range(20))
    pub("-t", topic, "-q", "2", "-l", "-V", version, stdin=lines)
    pub("-t", topic, "-q", "0", "-m", "lost", "-V", version)
    pub("-t", topic, "-q", "2", "-m", "last", "-V", version)
    assert sub(*keep, "-C", "21").stdout == lines + b"last\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_killed_client_leaves_its_will(pub: Run, sub: Run, listening: Listen, topic: str, version: str) -> None:
    will = ("--will-topic", f"{topic}/will", "--will-payload", "gone", "--will-qos", "1", "--will-retain")
    dying = listening("-t", topic, "-V", version, *will)
    watcher = listening("-t", f"{topic}/will", "-V", version, "-C", "2", "-q", "1")
    dying.kill()
    assert output(watcher) == b"gone\n"
    assert sub("-t", f"{topic}/will", "-C", "1", "-F", "%r %p").stdout == b"1 gone\n"


def test_a_client_that_says_goodbye_leaves_no_will(pub: Run, sub: Run, topic: str) -> None:
    pub("-t", topic, "-m", "x", "--will-topic", f"{topic}/will", "--will-payload", "gone", "--will-retain")
    assert sub("-t", f"{topic}/will", "-W", "1").returncode == TIMED_OUT


def test_payloads_are_bytes_of_any_kind_and_size(pub: Run, sub: Run, topic: str) -> None:
    payload = bytes(range(256)) * 2048
    pub("-t", topic, "-s", "-r", "-q", "1", stdin=payload)
    assert sub("-t", topic, "-C", "1", "-N").stdout == payload


def test_properties_are_passed_on_as_they_were_given(pub: Run, sub: Run, topic: str) -> None:
    told = ["content-type text/é", "response-topic r/t", "correlation-data 42", "payload-format-indicator 1"]
    told += ["message-expiry-interval 600", "user-property b 1", "user-property a 2", "user-property b 3"]
    properties = [word for each in told for word in ("-D", "publish", *each.split())]
    pub("-V", "mqttv5", "-t", topic, "-m", "x", "-r", "-q", "1", *properties)
    done = sub("-V", "mqttv5", "-t", topic, "-C", "1", "-F", "%C|%R|%D|%F|%P")
    assert done.stdout.decode() == "text/é|r/t|42|1|b:1 a:2 b:3\n"
    left = json.loads(sub("-V", "mqttv5", "-t", topic, "-C", "1", "-F", "%j").stdout)
    assert 590 <= left["properties"]["message-expiry-interval"] <= 600


def test_a_subscription_identifier_comes_with_its_messages(pub: Run, sub: Run, topic: str) -> None:
    pub("-t", topic, "-m", "x", "-r")
    identifier = ("-D", "subscribe", "subscription-identifier", "77")
    assert sub("-V", "mqttv5", "-t", topic, "-C", "1", *identifier, "-F", "%S").stdout == b"77\n"


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
def test_members_of_a_shared_subscription_split_the_messages(
    pub: Run, listening: Listen, topic: str, version: str
) -> None:
    filters = ("-t", f"$share/group/{topic}", "-t", f"{topic}/end", "-q", "1", "-V", version)
    members = [listening(*filters, "-F", "%t %p") for _ in range(3)]
    pub("-t", topic, "-q", "1", "-l", stdin=b"".join(b"%d\n" % number for number in range(30)))
    taken: list[int] = []
    pub("-t", f"{topic}/end", "-m", "0", "-q", "1")
    for member in members:
        assert member.stdout is not None
        lines = iter(member.stdout.readline, f"{topic}/end 0\n".encode())
        share = [int(line.split()[1]) for line in lines]
        assert share, "a member got nothing"
        taken += share
    assert sorted(taken) == list(range(30))


def test_a_request_is_answered_where_it_says(port: int, listening: Listen, pub: Run, topic: str) -> None:
    answering = listening("-V", "mqttv5", "-t", f"{topic}/request", "-C", "2", "-F", "%R %D %p")
    command = [program("mosquitto_rr"), "-h", HOST, "-p", str(port), "-V", "mqttv5", "-W", str(TIMEOUT_S)]
    asked = ["-t", f"{topic}/request", "-e", f"{topic}/response", "-m", "?", "-q", "1"]
    asked += ["-D", "publish", "correlation-data", "7"]
    with subprocess.Popen([*command, *asked], stdout=subprocess.PIPE) as asking:
        assert output(answering) == f"{topic}/response 7 ?\n".encode()
        pub("-V", "mqttv5", "-t", f"{topic}/response", "-m", "!", "-q", "1", "-D", "publish", "correlation-data", "7")
        assert output(asking) == b"!\n"


def test_the_broker_tells_about_itself_under_sys(tmp_path: Path) -> None:
    with run_tidings_broker(tmp_path) as server:
        done = execute(
            "mosquitto_sub", "-h", HOST, "-p", str(server.port), "-t", "$SYS/broker/version", "-C", "1", "-W", "5"
        )
    assert (done.returncode, done.stdout.partition(b" ")[0]) == (0, b"tidings")


def test_clients_come_through_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "mqtt.sock"
    with run_tidings_broker(tmp_path, "--listen", f"unix://{path}") as server:
        reach_unix_and_tcp(server, path)
    assert not path.exists()


def reach_unix_and_tcp(server: ServerProcess, path: Path) -> None:
    done = execute("mosquitto_pub", "--unix", str(path), "-t", "t", "-m", "through a file", "-r", "-q", "2")
    assert (done.returncode, done.stderr) == (0, b"")
    for way in (("--unix", str(path)), ("-h", HOST, "-p", str(server.port))):
        assert execute("mosquitto_sub", *way, "-t", "t", "-C", "1", "-W", "5").stdout == b"through a file\n"


@pytest.mark.parametrize("transport", ["tls", "ws", "wss"])
def test_mosquitto_itself_runs_beside_ours_in_a_benchmark(transport: Transport) -> None:
    if PEERS["mosquitto"].find() is None:
        pytest.skip("needs mosquitto (Debian: mosquitto)")
    with PEERS["mosquitto"].running(transport) as target:
        socket.create_connection((HOST, target.port), TIMEOUT_S).close()
