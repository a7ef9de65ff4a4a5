"""MQTT.js (npm) against ``tidings broker``: one Node process runs every client of this module."""

import base64
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).with_name("mqttjs")
TIMEOUT_S = 10
VERSIONS: dict[str, dict[str, Any]] = {
    "3.1": {"protocolVersion": 3, "protocolId": "MQIsdp"},
    "3.1.1": {"protocolVersion": 4},
    "5.0": {"protocolVersion": 5},
}


class Node:
    """The Node process: ``ask`` for one thing and get its answer; ``next`` waits for an event."""

    def __init__(self, program: str, port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [program, str(HERE / "client.mjs")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._events: dict[tuple[str, str], queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self._number = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def ask(self, command: str, client: str, **arguments: Any) -> Any:
        self._number += 1
        assert self.process.stdin is not None
        line = {"id": self._number, "command": command, "client": client, **arguments}
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = self._answers.get(timeout=TIMEOUT_S)
        assert answer["id"] == self._number
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def next(self, event: str, client: str) -> dict[str, Any]:
        found = self._queue(event, client).get(timeout=TIMEOUT_S)
        if "payload" in found:
            found["payload"] = base64.b64decode(found["payload"])
        return found

    def connect(self, client: str, version: str = "5.0", **options: Any) -> Any:
        return self.ask("connect", client, port=self.port, options={**VERSIONS[version], **options})

    def publish(self, client: str, topic: str, payload: bytes, **options: Any) -> None:
        self.ask("publish", client, topic=topic, payload=base64.b64encode(payload).decode(), options=options)

    def subscribe(self, client: str, *filters: str, **options: Any) -> Any:
        return self.ask("subscribe", client, filters=list(filters), options=options)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self._reader.join(TIMEOUT_S)
        self.process.stdout.close()
        assert self.process.wait(TIMEOUT_S) == 0

    def _queue(self, event: str, client: str) -> queue.Queue[dict[str, Any]]:
        with self._lock:
            return self._events.setdefault((event, client), queue.Queue())

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "event" in said:
                self._queue(said["event"], said["client"]).put(said)
            else:
                self._answers.put(said)


@pytest.fixture(scope="module")
def node(port: int) -> Iterator[Node]:
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js (Debian: nodejs)")
    if not (HERE / "node_modules" / "mqtt").is_dir():
        pytest.skip("needs MQTT.js: npm ci --prefix tests/e2e/mqttjs")
    running = Node(program, port)
    try:
        yield running
        running.close()
    finally:
        running.process.kill()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_arrive_once_and_in_order(node: Node, name: str, topic: str, version: str, qos: int) -> None:
    node.connect(name, version)
    granted = node.subscribe(name, f"{topic}/+", qos=qos)
    assert [each["qos"] for each in granted] == [qos]
    sender = f"{name}s"  # one client for both would wait for Nagle and the delayed ACK at each message
    node.connect(sender, version)
    payloads = [f"{number}".encode() for number in range(20)]
    for payload in payloads:
        node.publish(sender, f"{topic}/a", payload, qos=qos)
    received = [node.next("message", name) for _ in payloads]
    assert [(each["topic"], each["payload"], each["qos"]) for each in received] == [
        (f"{topic}/a", payload, qos) for payload in payloads
    ]
    for client in (name, sender):
        node.ask("end", client)


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_messages_are_kept_replaced_and_deleted(node: Node, name: str, topic: str, version: str) -> None:
    node.connect(name, version)
    for payload in (b"old", b"new"):
        node.publish(name, topic, payload, qos=1, retain=True)
    node.subscribe(name, topic, qos=1)
    kept = node.next("message", name)
    assert (kept["payload"], kept["retain"]) == (b"new", True)
    node.publish(name, topic, b"", qos=1, retain=True)
    assert node.next("message", name)["retain"] is False
    node.ask("unsubscribe", name, filters=[topic])
    node.subscribe(name, topic, qos=1)
    node.publish(name, topic, b"live", qos=1)
    assert node.next("message", name)["payload"] == b"live"
    node.ask("end", name)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_broken_connection_publishes_the_will(node: Node, name: str, topic: str, version: str) -> None:
    watcher = f"{name}w"
    node.connect(watcher, version)
    node.subscribe(watcher, topic, qos=2)
    payload = base64.b64encode(b"gone").decode()
    node.connect(name, version, will={"topic": topic, "payload": payload, "qos": 2, "retain": False})
    node.ask("break", name)
    will = node.next("message", watcher)
    assert (will["payload"], will["qos"]) == (b"gone", 2)
    node.ask("end", watcher)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_keeps_what_comes_while_its_client_is_away(node: Node, name: str, topic: str, version: str) -> None:
    kept: dict[str, Any] = {"clean": False}
    if version == "5.0":
        kept["properties"] = {"sessionExpiryInterval": 60}
    assert node.connect(name, version, **kept)["sessionPresent"] is False
    node.subscribe(name, topic, qos=2)
    node.ask("end", name)
    sender = f"{name}s"
    node.connect(sender, version)
    sent = [(1 + number % 2, bytes([number])) for number in range(10)]
    for qos, payload in sent:
        node.publish(sender, topic, payload, qos=qos)
    # CONNACK of 3.1 does not tell.
    assert node.connect(name, version, **kept)["sessionPresent"] is (version != "3.1")
    # MQTT.js hands over QoS 2 at PUBREL and QoS 1 at once, so order holds within each.
    received = [node.next("message", name) for _ in sent]
    assert sorted(each["qos"] for each in received) == [1] * 5 + [2] * 5
    received.sort(key=lambda each: int(each["qos"]))
    assert [(each["qos"], each["payload"]) for each in received] == sorted(sent, key=lambda each: each[0])
    for client in (name, sender):
        node.ask("end", client)


def test_a_request_is_answered_where_it_says(node: Node, name: str, topic: str) -> None:
    asking, answering = f"{name}a", f"{name}b"
    for client in (asking, answering):
        node.connect(client)
    node.subscribe(answering, f"{topic}/request", qos=1)
    node.subscribe(asking, f"{topic}/response", qos=1)
    told = {
        "responseTopic": f"{topic}/response",
        "correlationData": base64.b64encode(b"\x00\xff7").decode(),
        "contentType": "text/plain",
        "payloadFormatIndicator": True,
        "userProperties": {"b": ["1", "3"], "a": "2"},
    }
    node.publish(asking, f"{topic}/request", b"?", qos=1, properties=told)
    request = node.next("message", answering)
    assert request["properties"] == told
    answer = {"correlationData": request["properties"]["correlationData"]}
    node.publish(answering, request["properties"]["responseTopic"], b"!", qos=1, properties=answer)
    response = node.next("message", asking)
    assert (response["payload"], response["properties"]) == (b"!", answer)
    for client in (asking, answering):
        node.ask("end", client)


def test_topic_aliases_work_both_ways(node: Node, name: str, topic: str) -> None:
    limits = node.connect(name, autoAssignTopicAlias=True, properties={"topicAliasMaximum": 5})["properties"]
    assert limits["topicAliasMaximum"] > 0
    node.subscribe(name, f"{topic}/#", qos=1)
    topics = [f"{topic}/{number % 7}" for number in range(21)]
    for each in topics:
        node.publish(name, each, b"x")
    assert [node.next("message", name)["topic"] for _ in topics] == topics
    node.ask("end", name)


def test_members_of_a_shared_subscription_split_the_messages(node: Node, name: str, topic: str) -> None:
    members = [f"{name}{letter}" for letter in "xyz"]
    for member in members:
        node.connect(member)
        node.subscribe(member, f"$share/group/{topic}", qos=1)
        node.subscribe(member, f"{topic}/end", qos=1)
    for number in range(30):
        node.publish(members[0], topic, bytes([number]), qos=1)
    node.publish(members[0], f"{topic}/end", b"", qos=1)
    taken: list[bytes] = []
    for member in members:
        before = len(taken)
        while (message := node.next("message", member))["topic"] == topic:
            taken.append(message["payload"])
        assert len(taken) > before, "a member got nothing"
        node.ask("end", member)
    assert sorted(taken) == [bytes([number]) for number in range(30)]


def test_a_second_connection_with_the_same_client_id_takes_over(node: Node, name: str) -> None:
    node.connect(name)
    node.connect(name)
    assert node.next("disconnect", name)["reasonCode"] == 0x8E
    node.ask("end", name)
