"""``tidings sub``: subscribe and print what arrives; mosquitto_sub's flags, formats and habits.

Invariants:

1. stdout carries messages and nothing else, each flushed before its PUBACK or PUBCOMP: a QoS 1 message that could not
   be printed is delivered again to a session that outlives the connection.
2. After the last message that -C asks for, none is acknowledged. paho takes a QoS 2 message over with PUBREC before it
   hands it out, in memory: those it holds when the program ends are not delivered again.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import click
from paho.mqtt.client import Client, MQTTMessage, topic_matches_sub
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.enums import MQTTProtocolVersion as Version
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from .connection import Connection, Done, explain
from .exits import CLIENT_EXIT_CODES, Failure
from .format import Format, plain, verbose
from .jsonlines import dump
from .options import QOS, ConnectionOptions, check_filter, connection_options, text
from .properties import first, new

POLICY_PROPERTY = "tidings-policy"  # as tidings.broker.policy has it; a test holds the two together
RETAIN_HANDLING = {
    "always": SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE,
    "new": SubscribeOptions.RETAIN_SEND_IF_NEW_SUB,
    "never": SubscribeOptions.RETAIN_DO_NOT_SEND,
}


class Printer:
    """Writes messages to a binary stream in one format; None from ``show`` prints nothing."""

    def __init__(self, show: Callable[[MQTTMessage, int], bytes | None], end: bytes, stream: BinaryIO) -> None:
        self._show = show
        self._end = end
        self._stream = stream

    def print(self, message: MQTTMessage) -> None:
        """Write and flush. Raises Done if the reader of the stream is gone."""
        shown = self._show(message, time.time_ns())
        if shown is None:
            return
        try:
            self._stream.write(shown + self._end)
            self._stream.flush()
        except BrokenPipeError:
            # Python would try to flush the rest at exit, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise Done from None


class Subscriber:
    """The task of a connection that subscribes, and prints until it has enough."""

    def __init__(self, connection: Connection, printer: Printer, given: dict[str, Any]) -> None:
        self._connection = connection
        self._client = connection.client
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_unsubscribe = self._on_unsubscribe
        self._client.on_publish = self._on_publish
        self._printer = printer
        self._filters: list[str] = given["topic"]
        self._policy: str | None = given["policy"]
        self._leaving: list[str] = given["unsubscribe"]
        self._filtered_out: list[str] = given["filter_out"]
        self._qos: int = given["qos"]
        self._left: int | None = given["count"]
        self._exit_after_sub: bool = given["exit_after_sub"]
        self._no_retain: bool = given["no_retain"]
        self._retained_only: bool = given["retained_only"]
        self._remove_retained: bool = given["remove_retained"]
        self._retain_as_published: bool = given["retain_as_published"]
        self._retain_handling = RETAIN_HANDLING[given["retain_handling"] or "always"]
        self._awaited: set[str] = set()  # acknowledgements: "SUBACK", "UNSUBACK"
        self._removals: set[int] = set()  # packet ids of messages that clear retained ones
        self._aliases: dict[int, bytes] = {}
        self._subscribed = False
        self._enough = False
        self.refused = 0  # the first reason code

    def connected(self, *, session_present: bool, properties: Properties) -> None:
        self._aliases.clear()
        if session_present and self._subscribed:
            return  # regained; subscribing again would bring the retained messages again
        packets = self._connection.options.properties
        if self._filters:
            self._awaited.add("SUBACK")
            if self._policy is not None:
                asked = packets.setdefault("subscribe", new(PacketTypes.SUBSCRIBE))
                asked.UserProperty = (POLICY_PROPERTY, self._policy)
                self._policy = None  # paho appends, and this is called again after a reconnection
            self._client.subscribe(self._subscriptions(), properties=packets.get("subscribe"))
        if self._leaving:
            self._awaited.add("UNSUBACK")
            self._client.unsubscribe(self._leaving, packets.get("unsubscribe"))

    def _subscriptions(self) -> Any:
        if self._connection.options.version != Version.MQTTv5:
            return [(each, self._qos) for each in self._filters]
        options = SubscribeOptions(
            qos=self._qos, retainAsPublished=self._retain_as_published, retainHandling=self._retain_handling
        )
        return [(each, options) for each in self._filters]

    def advance(self) -> bool:
        return self._enough and not self._removals

    def source(self) -> int | None:
        return None

    def readable(self) -> None:
        raise AssertionError("nothing but the connection is read")

    def due_s(self) -> float | None:
        return None

    def _on_subscribe(
        self, client: Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        for topic_filter, reason in zip(self._filters, reasons, strict=False):
            if reason.is_failure:
                self._refuse(f"not subscribed to {topic_filter}", reason, properties)
        if all(reason.is_failure for reason in reasons):
            raise Failure("", self.refused)  # the lines above said why
        self._subscribed = True
        self._acknowledged("SUBACK")

    def _on_unsubscribe(
        self, client: Client, userdata: Any, mid: int, reasons: list[ReasonCode], properties: Properties | None
    ) -> None:
        for topic_filter, reason in zip(self._leaving, reasons, strict=False):
            if reason.is_failure:
                self._refuse(f"not unsubscribed from {topic_filter}", reason, properties)
        self._acknowledged("UNSUBACK")

    def _acknowledged(self, packet: str) -> None:
        self._awaited.discard(packet)
        if not self._awaited and (self._exit_after_sub or not self._filters):
            self._enough = True

    def _refuse(self, what: str, reason: ReasonCode, properties: Properties | None) -> None:
        self.refused = self.refused or reason.value
        self._connection.say(f"Error: {what}: {explain(reason, reason.value, properties)}")

    def _on_message(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        if self._enough:
            if self._removals:
                return
            raise Done
        self._resolve(message)
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._connection.say("Error: a message whose topic is not UTF-8 was passed over")
            return
        if self._retained_only and not message.retain:
            self._enough = True
            if self._removals:
                return
            raise Done
        if message.retain and self._no_retain:
            return
        if any(topic_matches_sub(each, topic) for each in self._filtered_out):
            return
        self._printer.print(message)
        if self._remove_retained and message.retain:
            self._remove(topic)
        if self._left is not None:
            self._left -= 1
            self._enough = self._left == 0

    def _resolve(self, message: MQTTMessage) -> None:
        """Give a message with a topic alias its topic, `5.0 [MQTT-3.3.2-10]`; paho leaves that to its user."""
        alias = first(message.properties, "topic-alias")
        if alias is not None:
            if message.topic:
                self._aliases[alias] = message.topic.encode()
            elif alias in self._aliases:
                message.topic = self._aliases[alias]

    def _remove(self, topic: str) -> None:
        info = self._client.publish(topic, b"", 1, True)
        if info.rc != MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self._removals.add(info.mid)

    def _on_publish(
        self, client: Client, userdata: Any, mid: int, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._removals.discard(mid)
        if reason.is_failure:
            self._refuse("a retained message was not removed", reason, properties)


@click.command(
    epilog=CLIENT_EXIT_CODES
    + """

\b
Formats for -F
  %t topic   %p payload   %x %X payload in hex (%.2:x: a colon after every 2 digits)   %f %d payload as float, double
  %l length of the payload   %q QoS   %r retained   %m packet id   %I ISO 8601 time   %U Unix time
  %A topic alias   %C content type   %D correlation data   %E message expiry   %F payload format   %R response topic
  %S subscription identifier   %P user properties   %j JSON, payload as a string   %J JSON, payload as JSON   %% percent
  @X is strftime's %X, @N nanoseconds, @@ an at sign; \\\\ \\0 \\a \\e \\n \\r \\t \\v are characters.
  After %: - left-aligned, 0 filled with zeros, a minimum width, and a dot and a maximum width.

Different from mosquitto_sub: MQTT 5 unless -V says otherwise; refusals by the server make the exit code; -d talks on
stderr. Every option is an environment variable TIDINGS_SUB_NAME, those of the connection also TIDINGS_NAME.
"""
)
@click.option("-t", "--topic", type=text, multiple=True, metavar="FILTER", help="Topic filter; may be repeated.")
@click.option(
    "-T", "--filter-out", type=text, multiple=True, metavar="FILTER", help="Don't print these; may be repeated."
)
@click.option("-U", "--unsubscribe", type=text, multiple=True, metavar="FILTER", help="Unsubscribe; may be repeated.")
@click.option(
    "-q", "--qos", type=QOS, default=0, show_default=True, help="Highest quality of service to be served with."
)
@click.option("-C", "--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@click.option("-E", "--exit-after-sub", is_flag=True, help="End when the server has acknowledged the subscriptions.")
@click.option("-R", "--no-retain", is_flag=True, help="Don't print retained messages.")
@click.option("--retained-only", is_flag=True, help="Only retained messages; end at the first one that is not.")
@click.option("--remove-retained", is_flag=True, help="Clear the retained messages that are printed.")
@click.option("--retain-as-published", is_flag=True, help="Keep the retain flag as it was published (MQTT 5).")
@click.option("--retain-handling", type=click.Choice(list(RETAIN_HANDLING)),
              help="When to be sent retained messages (MQTT 5).  [default: always]")  # fmt: skip
@click.option("--policy", metavar="POLICY",
              help="What tidings does when this client lags (MQTT 5): all, latest or sample=RATE.")  # fmt: skip
@click.option("-F", "--format", "template", metavar="FORMAT", help="Print in this format; see below.")
@click.option("-v", "--verbose", is_flag=True, help="Print the topic before the payload.")
@click.option("--json", "json_lines", is_flag=True, help="Print JSON lines that 'tidings pub --json' can publish.")
@click.option("-N", "--no-newline", is_flag=True, help="No line break after a message.")
@connection_options("sub", reconnect_tries=None)
@click.pass_context
def sub(
    ctx: click.Context, /, template: str | None, verbose: bool, json_lines: bool, no_newline: bool, **given: Any
) -> int:
    """Subscribe and print what arrives.

    A lost connection is regained, with growing pauses; Ctrl-C ends.
    """
    options = ConnectionOptions.read(ctx, given, ("connect", "will", "subscribe", "unsubscribe", "disconnect"))
    given["topic"] = [*given["topic"], *([options.url_topic] if options.url_topic else [])]
    if not given["topic"] and not given["unsubscribe"]:
        raise click.UsageError("give a topic filter: -t, -U, or the path of -L.")
    for option, name in (("-t", "topic"), ("-U", "unsubscribe"), ("-T", "filter_out")):
        given[name] = [check_filter(each, option) for each in given[name]]
    if given["no_retain"] and given["retained_only"]:
        raise click.UsageError("-R and --retained-only leave nothing to print.")
    if template is not None and json_lines:
        raise click.UsageError("-F and --json exclude each other; give one of them.")
    if options.version != Version.MQTTv5 and (given["retain_as_published"] or given["retain_handling"]):
        raise click.UsageError("--retain-as-published and --retain-handling need MQTT 5: leave out -V, or give -V 5.")
    if given["policy"] is not None:
        if options.version != Version.MQTTv5:
            raise click.UsageError("--policy needs MQTT 5: leave out -V, or give -V 5.")
        from tidings.broker.policy import parse_policy  # only now: it brings the whole broker, which sub does without

        try:
            parse_policy(given["policy"])
        except ValueError as error:
            raise click.UsageError(f"--policy: {error}.") from None
    connection = Connection(options)
    if sys.stdout is None:
        raise Failure("stdout is closed")
    show = _show(template, verbose, json_lines, connection.say)
    subscriber = Subscriber(connection, Printer(show, b"" if no_newline else b"\n", sys.stdout.buffer), given)
    connection.run(subscriber)
    return subscriber.refused


def _show(
    template: str | None, with_topic: bool, json_lines: bool, complain: Callable[[str], None]
) -> Callable[[MQTTMessage, int], bytes | None]:
    if json_lines:
        return dump
    if template is not None:
        try:
            compiled = Format(template)
        except ValueError as error:
            raise click.UsageError(f"{error}.") from None
        return lambda message, now_ns: compiled.render(message, now_ns, complain)
    return verbose if with_topic else plain
