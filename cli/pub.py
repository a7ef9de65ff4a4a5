"""``tidings pub``: publish one message, one for each line of stdin, or JSON lines; mosquitto_pub's flags and habits.

Invariants:

1. Memory does not grow with stdin: nothing is read while a line waits for the server to have room for it.
2. Exit code 0 means: every message was sent, and each of QoS 1 and 2 acknowledged without a refusal.
3. Nothing is written to stdout.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import click
from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.enums import MQTTProtocolVersion as Version
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from .connection import Connection, explain
from .exits import CLIENT_EXIT_CODES, Failure
from .jsonlines import Publication, parse
from .options import FILE, LARGEST_PAYLOAD_BYTES, QOS, ConnectionOptions, check_topic, connection_options, text
from .properties import first, packed_bytes

READ_BYTES = 65_536
TURN_MESSAGES = 256  # published in a row before signals and the connection are looked at
TOPIC_ALIAS_INVALID, PACKET_TOO_LARGE, RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x94, 0x95, 0x9A, 0x9B
PACKET_ID_NOT_FOUND = 0x92


class Source(Protocol):
    """Where messages come from. ``finished``: there will be no more; ``error``: why not, empty for no reason."""

    finished: bool
    error: str

    def pending(self) -> bool:
        """Whether it was given something that ``take`` has not handed out."""

    def take(self) -> Publication | None:
        """The next message, None if there is none now."""

    def due_s(self) -> float | None:
        """Monotonic time in seconds at which ``take`` has one, None if only the file descriptor knows."""

    def source(self) -> int | None:
        """The file descriptor to read from next, None for none."""

    def readable(self) -> None:
        """Read once from it."""


class Repeated:
    """One message ``count`` times, ``delay_s`` seconds from start to start."""

    error = ""

    def __init__(self, publication: Publication, count: int, delay_s: float) -> None:
        self._publication = publication
        self._left = count
        self._delay_s = delay_s
        self._next_s = 0.0
        self.finished = False

    def take(self) -> Publication | None:
        now_s = time.monotonic()
        if self.finished or now_s < self._next_s:
            return None
        self._next_s = (
            max(self._next_s, now_s - self._delay_s) + self._delay_s if self._next_s else now_s + self._delay_s
        )
        self._left -= 1
        self.finished = self._left == 0
        return self._publication

    def pending(self) -> bool:
        return not self.finished

    def due_s(self) -> float | None:
        return None if self.finished else self._next_s

    def source(self) -> int | None:
        return None

    def readable(self) -> None:
        raise AssertionError("a repeated message is not read from anywhere")


class Lines:
    """A message for each line of a file descriptor; ``parse`` makes one from a line, or None for a line to pass over.

    A line ends with LF, the last one also with the end of the input. At most ``READ_BYTES`` and one line are held, and
    a line longer than ``LARGEST_PAYLOAD_BYTES`` is an error.
    """

    def __init__(self, descriptor: int, parse: Callable[[bytes], Publication | None]) -> None:
        self._descriptor = descriptor
        self._parse = parse
        self._held = bytearray()
        self._searched = 0  # bytes of ``_held`` known to have no LF
        self._number = 0
        self._ended = False
        self.finished = False
        self.error = ""

    def take(self) -> Publication | None:
        while not self.finished:
            end = self._held.find(b"\n", self._searched)
            if end < 0:
                self._searched = len(self._held)
                if self._searched > LARGEST_PAYLOAD_BYTES:
                    self.finished = True
                    self.error = f"line {self._number + 1}: longer than {LARGEST_PAYLOAD_BYTES:,} bytes"
                    return None
                if not self._ended:
                    return None
                if not self._held:
                    self.finished = True
                    return None
                end = len(self._held)
            line = bytes(self._held[:end])
            del self._held[: end + 1]
            self._searched = 0
            self._number += 1
            try:
                publication = self._parse(line)
            except ValueError as error:
                self.finished, self.error = True, f"line {self._number}: {error}"
                return None
            if publication is not None:
                return publication
        return None

    def pending(self) -> bool:
        return bool(self._held)

    def due_s(self) -> float | None:
        if self.finished:
            return None
        return 0.0 if self._ended or self._held.find(b"\n", self._searched) >= 0 else None

    def source(self) -> int | None:
        return None if self.finished or self.due_s() is not None else self._descriptor

    def readable(self) -> None:
        try:
            chunk = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:  # somebody else who shares this stdin was faster
            return
        self._held += chunk
        self._ended = not chunk


class Publisher:
    """The task of a connection that publishes what a source gives, within the server's limits."""

    def __init__(self, connection: Connection, source: Source) -> None:
        self._connection = connection
        self._client = connection.client
        self._client.on_publish = self._on_publish
        self._from = source
        self._next: Publication | None = None
        self._unacknowledged: dict[int, str] = {}  # topic by packet id
        self._limits: Properties | None = None
        self.refused = 0  # the first reason code

    @property
    def unfinished(self) -> int:
        """How many messages were taken from the source and not acknowledged."""
        return len(self._unacknowledged) + (self._next is not None)

    def connected(self, *, session_present: bool, properties: Properties) -> None:
        self._limits = properties

    def advance(self) -> bool:
        for _ in range(TURN_MESSAGES):
            if not self._room():
                break
            publication = self._next or self._from.take()
            if publication is None:
                break
            self._next = None
            objection = self._objection(publication)
            if objection:
                self._refuse(publication.topic, *objection)
            else:
                self._publish(publication)
        return self._from.finished and not self.unfinished and not self._client.want_write()

    def source(self) -> int | None:
        return self._from.source()

    def readable(self) -> None:
        self._from.readable()

    def due_s(self) -> float | None:
        if not self._room():
            return None
        return self._from.due_s() if self._next is None else 0.0

    def _room(self) -> bool:
        return (
            self._connection.online
            and len(self._unacknowledged) < self._connection.window
            and not self._client.want_write()
        )

    def _publish(self, publication: Publication) -> None:
        info = self._client.publish(
            publication.topic, publication.payload, publication.qos, publication.retain, publication.properties
        )
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE or (info.rc and publication.qos == 0):
            # The packet id is still in use, or the connection was lost under a message that paho does not keep.
            self._next = publication
        elif publication.qos:
            self._unacknowledged[info.mid] = publication.topic

    def _objection(self, publication: Publication) -> tuple[int, str] | None:
        """The reason code and why this message may not be sent to this server, None if it may."""
        properties, payload_bytes = publication.properties, len(publication.payload)
        if publication.qos > (2 if (most := first(self._limits, "maximum-qos")) is None else most):
            return QOS_NOT_SUPPORTED, f"the server takes QoS {most} at most"  # 5.0 [MQTT-3.2.2-11]
        if publication.retain and first(self._limits, "retain-available") == 0:
            return RETAIN_NOT_SUPPORTED, "the server keeps no retained messages"  # 5.0 [MQTT-3.2.2-14]
        if (first(properties, "topic-alias") or 0) > (first(self._limits, "topic-alias-maximum") or 0):
            return TOPIC_ALIAS_INVALID, "the server takes no such topic alias"  # 5.0 [MQTT-3.2.2-17]
        rest_bytes = 2 + len(publication.topic.encode()) + (2 if publication.qos else 0)
        if self._connection.options.version == Version.MQTTv5:
            rest_bytes += packed_bytes(properties)
        if rest_bytes + payload_bytes > LARGEST_PAYLOAD_BYTES:
            return PACKET_TOO_LARGE, f"{payload_bytes:,} bytes are more than an MQTT packet holds"
        size_bytes = 1 + _varint_bytes(rest_bytes + payload_bytes) + rest_bytes + payload_bytes
        largest_bytes = first(self._limits, "maximum-packet-size") or size_bytes
        if size_bytes > largest_bytes:  # 5.0 [MQTT-3.2.2-15]
            return PACKET_TOO_LARGE, f"its packet has {size_bytes:,} bytes and the server takes {largest_bytes:,}"
        return None

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        topic = self._unacknowledged.pop(mid, None)
        # A PUBCOMP 0x92 answers a PUBREL that was sent again after it had arrived: the message is there.
        if topic is not None and reason.is_failure and reason.value != PACKET_ID_NOT_FOUND:
            self._refuse(topic, reason.value, explain(reason, reason.value, properties))

    def _refuse(self, topic: str, code: int, why: str) -> None:
        self.refused = self.refused or code
        self._connection.say(f"Error: not published to {topic}: {why}")


@click.command(
    epilog=CLIENT_EXIT_CODES
    + """
Different from mosquitto_pub: MQTT 5 unless -V says otherwise; a lost connection is regained; refusals by the server
make the exit code; -d talks on stderr. Every option is an environment variable TIDINGS_PUB_NAME, those of the
connection also TIDINGS_NAME.
"""
)
@click.option("-t", "--topic", type=text, help="Topic to publish to.")
@click.option("-m", "--message", help="Publish this text.")
@click.option("-f", "--file", type=FILE, help="Publish the content of this file.")
@click.option("-l", "--stdin-line", is_flag=True, help="Publish each line of stdin, empty ones too.")
@click.option("-s", "--stdin-file", is_flag=True, help="Publish all of stdin as one message.")
@click.option("-n", "--null-message", is_flag=True, help="Publish an empty message; with -r it clears a retained one.")
@click.option(
    "--json", "json_lines", is_flag=True, help="Publish JSON lines from stdin, as 'tidings sub --json' prints them."
)
@click.option("-q", "--qos", type=QOS, default=0, show_default=True, help="Quality of service.")
@click.option("-r", "--retain", is_flag=True, help="The server keeps the message for later subscribers.")
@click.option("--repeat", type=click.IntRange(1), default=1, metavar="N", help="Publish the message N times.")
@click.option(
    "--repeat-delay", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Time between two of them."
)
@connection_options("pub", reconnect_tries=10)
@click.pass_context
def pub(
    ctx: click.Context,
    /,
    topic: str | None,
    message: str | None,
    file: str | None,
    stdin_line: bool,
    stdin_file: bool,
    null_message: bool,
    json_lines: bool,
    qos: int,
    retain: bool,
    repeat: int,
    repeat_delay: float,
    **given: Any,
) -> int:
    """Publish messages.

    One of -m, -f, -l, -s, -n and --json says what to publish. Ends when the server has acknowledged all of it.
    """
    modes = (message is not None, file is not None, stdin_line, stdin_file, null_message, json_lines)
    if sum(modes) != 1:
        raise click.UsageError("give one of -m, -f, -l, -s, -n and --json.")
    if (stdin_line or json_lines) and (repeat > 1 or repeat_delay):
        raise click.UsageError("--repeat and --repeat-delay are for one message: -m, -f, -s or -n.")
    options = ConnectionOptions.read(ctx, given, ("connect", "will", "publish", "disconnect"))
    topic = topic if topic is not None else options.url_topic or None
    if topic is None and not json_lines:
        raise click.UsageError("give a topic: -t, or the path of -L.")
    default = Publication(
        "" if topic is None else check_topic(topic, "-t"), b"", qos, retain, options.properties.get("publish")
    )
    source: Source
    if json_lines:
        source = Lines(_stdin(), lambda line: _parse_json(line, default, options.version))
    elif stdin_line:
        source = Lines(_stdin(), lambda line: _with_payload(default, line))
    else:
        source = Repeated(_with_payload(default, _payload(message, file, stdin_file)), repeat, repeat_delay)
    connection = Connection(options)
    publisher = Publisher(connection, source)
    connection.run(publisher)
    if source.error:
        raise connection.failure(source.error)
    if connection.interrupted and (publisher.unfinished or source.pending()):
        more = ", and not all was sent" if source.pending() else ""
        raise connection.failure(f"interrupted; not acknowledged: {publisher.unfinished}{more}")
    return publisher.refused


def _varint_bytes(value: int) -> int:
    """The size of a variable byte integer, 5.0 section 1.5.5."""
    return max(1, -(-value.bit_length() // 7))


def _with_payload(default: Publication, payload: bytes) -> Publication:
    return Publication(default.topic, payload, default.qos, default.retain, default.properties)


def _parse_json(line: bytes, default: Publication, version: Version) -> Publication | None:
    if not line.strip():
        return None
    publication = parse(line, default)
    if publication.properties is not None and version != Version.MQTTv5:
        raise ValueError("properties need MQTT 5; leave out -V")
    return publication


def _stdin() -> int:
    if sys.stdin is None:
        raise Failure("stdin is closed")
    return sys.stdin.fileno()


def _payload(message: str | None, file: str | None, stdin_file: bool) -> bytes:
    """The bytes of -m, -f or -s, empty for -n; Failure if there are more than MQTT can carry."""
    if message is not None:
        payload = os.fsencode(message)
    elif file is not None:
        payload = Path(file).read_bytes()
    elif stdin_file:
        with open(_stdin(), "rb", closefd=False) as stdin:
            payload = stdin.read(LARGEST_PAYLOAD_BYTES + 1)
    else:
        payload = b""
    if len(payload) > LARGEST_PAYLOAD_BYTES:
        raise Failure(f"{file or 'the message'} has more than the {LARGEST_PAYLOAD_BYTES:,} bytes that MQTT can carry")
    return payload
