"""One MQTT connection of a command, on paho-mqtt: connect, keep, lose, regain, leave.

A command gives ``Connection.run`` a ``Task``; both live in the calling thread, around one ``select``. Nothing here
knows what is published or subscribed, and nothing here writes to stdout.

Invariants:

1. The first connection is tried once; only a connection that was lost is tried again, and only if the server's reason
   does not forbid it (wrong credentials stay wrong).
2. Two attempts are never closer than the back-off says, even if the server accepts each and closes it at once.
3. Whatever ends the run, a connection that stands is left with DISCONNECT.
"""

import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

import click
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.enums import MQTTProtocolVersion as Version
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from .exits import ERROR, INTERRUPTED, TIMED_OUT, Failure
from .options import ConnectionOptions
from .properties import first, new, unpacked

CONNACK_WITHIN_S = 10.0
LEAVE_WITHIN_S = 2.0
READ_BYTES = 65_536
BACKOFF_FIRST_S = 0.5
BACKOFF_LONGEST_S = 30.0

# Reason codes after which the same CONNECT may succeed later: normal disconnection, unspecified and implementation
# specific error, server unavailable, busy, shutting down, keep alive timeout, message rate too high, quota exceeded,
# connection rate exceeded, maximum connect time; and 3.1.1's return code 3, server unavailable.
TEMPORARY = frozenset({0x00, 0x80, 0x83, 0x88, 0x89, 0x8B, 0x8D, 0x96, 0x97, 0x9F, 0xA0})
TEMPORARY_V3 = frozenset({3})
UNSUPPORTED_VERSION, UNSUPPORTED_VERSION_V3 = 0x84, 1


def backoff_s(attempt: int, chance: float) -> float:
    """Seconds to wait before attempt number ``attempt`` (from 0): doubling, bounded, and half of it left to ``chance``.

    ``chance`` is from 0 to 1; different clients draw different ones, so that they don't all come back at once.
    """
    ceiling_s = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 16))
    return ceiling_s * (0.5 + 0.5 * chance)


class PahoClient(paho.Client):
    """paho-mqtt's client, told to keep what it otherwise throws away: a refusal in PUBREC, the bare CONNACK code."""

    connack_code = 0

    def _handle_connack(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        self.connack_code = packet[1] if len(packet) > 1 else 0
        return super()._handle_connack()

    def _handle_pubrec(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        if self._protocol != Version.MQTTv5 or len(packet) < 3 or packet[2] < 0x80:
            return super()._handle_pubrec()
        # 5.0 [MQTT-4.3.3-4]: only a PUBREC below 0x80 is answered with PUBREL. paho answers every one.
        packet_id = int.from_bytes(packet[:2], "big")
        reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[2])
        data = bytes(packet[3:])
        properties = unpacked(PacketTypes.PUBREC, data) if data else new(PacketTypes.PUBREC)
        with self._out_message_mutex:
            if packet_id in self._out_messages:
                return self._do_on_publish(packet_id, reason, properties)
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def limit(self, inflight_count: int) -> None:
        """Change the number of unacknowledged messages for the connection that was just accepted."""
        self._max_inflight_messages = inflight_count

    def abort(self) -> None:
        """Close the socket, if any, without a word to the server."""
        self._sock_close()


class Done(Exception):
    """Raised by a callback of ``Connection.client`` to end the run well, before paho acknowledges what it delivers."""


class Task(Protocol):
    """What a command does with its connection. All methods are called in the thread of ``Connection.run``."""

    def connected(self, *, session_present: bool, properties: Properties) -> None:
        """The server accepted the connection, the first one or a regained one; ``properties`` are of its CONNACK."""

    def advance(self) -> bool:
        """Do all that can be done now without waiting; True if nothing is left to do. Only called while connected."""

    def source(self) -> int | None:
        """A file descriptor to wait for besides the connection, None for none now."""

    def readable(self) -> None:
        """``source()`` has something to read."""

    def due_s(self) -> float | None:
        """Monotonic time in seconds at which ``advance`` has something to do, None for never."""


class Connection:
    """A client and its life; ``client`` is for publishing, subscribing and its message callbacks.

    ``online``: between an accepting CONNACK and the end of that connection. ``interrupted``: SIGINT or SIGTERM came.
    ``window``: how many unacknowledged QoS 1 and 2 messages the client and this server allow.
    """

    def __init__(self, options: ConnectionOptions) -> None:
        self.options = options
        self.client = _client(options)
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.on_socket_open = self._on_socket_open
        if options.debug:
            self.client.on_log = lambda client, userdata, level, text: self.say(text)
        self.online = False
        self.interrupted = False
        self.window = options.max_inflight_count
        self._task: Task | None = None
        self._wake: socket.socket | None = None
        self._blocking = False
        self._was_online = False
        self._online_since_s = 0.0
        self._connack_until_s = 0.0
        self._attempt_at_s: float | None = 0.0
        self._attempts = 0
        self._end: tuple[int, str] = (0, "")

    def say(self, text: str) -> None:
        """One line on stderr, unless --quiet."""
        if not self.options.quiet:
            click.echo(text, err=True)

    def failure(self, text: str, exit_code: int = ERROR) -> Failure:
        """A Failure to raise; with --quiet one that shows nothing."""
        return Failure("" if self.options.quiet else text, exit_code)

    def run(self, task: Task) -> None:
        """Connect, let ``task`` work until it is done, the time is up or a signal comes, and disconnect.

        Raises Failure, also for a signal before the first connection stands; a later one ends the run with
        ``interrupted``, and a second one raises KeyboardInterrupt.
        """
        self._task = task
        with self._signals():
            try:
                self._work(task)
            except KeyboardInterrupt:
                if not self._was_online:
                    raise self.failure("interrupted", INTERRUPTED) from None
                self.interrupted = True
            except Done:
                pass
            finally:
                self._leave()

    def _work(self, task: Task) -> None:
        timeout_s = self.options.timeout_s
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            now_s = time.monotonic()
            if self.interrupted:
                if not self._was_online:
                    raise KeyboardInterrupt
                return
            if until_s is not None and now_s >= until_s:
                raise self.failure("timed out", TIMED_OUT)
            if self.client.socket() is None:
                if self._attempt_at_s is None:
                    self._attempt_at_s = now_s + self._delay_s(now_s)
                if now_s >= self._attempt_at_s:
                    self._attempt_at_s = None
                    self._open()
            elif not self.online and now_s >= self._connack_until_s:
                self._end = (0, f"no CONNACK within {CONNACK_WITHIN_S:g} s")
                self.client.abort()
            if self.online and task.advance():
                return
            self._wait(task, until_s)

    def _open(self) -> None:
        self._end = (0, "")
        self._connack_until_s = time.monotonic() + CONNACK_WITHIN_S
        self._blocking = True
        try:
            self.client.reconnect()
        except (OSError, UnicodeError) as error:
            self.client.abort()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = "no answer"
            self._end = (0, reason)
        finally:
            self._blocking = False

    def _delay_s(self, now_s: float) -> float:
        """Seconds to wait before the next attempt, after a connection ended or could not be made; or Failure."""
        code, reason = self._end
        temporary = TEMPORARY if self.options.version == Version.MQTTv5 else TEMPORARY_V3 | {0}
        if not self._was_online:
            raise self.failure(
                f"{self._server()}: {reason or 'closed without CONNACK'}{self._hint(code)}", code or ERROR
            )
        if code not in temporary:
            raise self.failure(f"{self._server()}: {reason}", code)
        if self._online_since_s and now_s - self._online_since_s >= BACKOFF_LONGEST_S:
            self._attempts = 0
        self._online_since_s = 0.0
        if self.options.reconnect_tries is not None and self._attempts >= self.options.reconnect_tries:
            raise self.failure(f"{self._server()}: {reason or 'connection lost'}; not regained", code or ERROR)
        delay_s = backoff_s(self._attempts, random.random())
        self._attempts += 1
        self.say(f"{self._server()}: {reason or 'connection lost'}; trying again in {delay_s:.1f} s")
        return delay_s

    def _server(self) -> str:
        options = self.options
        return options.host if options.transport == "unix" else f"{options.host}:{options.port}"

    def _hint(self, code: int) -> str:
        """For a server that answers MQTT 5 with a refusal of the version, or by hanging up."""
        silent = code == 0 and not self._end[1]
        if self.options.version == Version.MQTTv5 and (silent or code == UNSUPPORTED_VERSION):
            return "; if the server does not speak MQTT 5, try -V 311"
        return ""

    def _wait(self, task: Task, until_s: float | None) -> None:
        """Sleep until something can be done, and let paho read, write and keep the connection alive."""
        now_s = time.monotonic()
        sock: Any = self.client.socket()
        if sock is None and self._attempt_at_s is None:
            return  # lost this moment; ``_work`` decides what follows
        times = [until_s, self._attempt_at_s if sock is None else now_s + 1.0]
        if sock is not None and not self.online:
            times.append(self._connack_until_s)
        source = task.source() if self.online else None
        if self.online:
            times.append(task.due_s())
        timeout_s = max(0.0, min(when for when in times if when is not None) - now_s)
        # Bytes that TLS or WebSocket framing already took from the kernel make no socket readable.
        pending = sock is not None and hasattr(sock, "pending") and sock.pending() > 0
        waiting = [each for each in (sock, source, self._wake) if each is not None]
        writing = [sock] if sock is not None and self.client.want_write() else []
        readable, writable, _ = select.select(waiting, writing, [], 0.0 if pending else timeout_s)
        if self._wake in readable and self._wake is not None:
            self._wake.recv(64)
        if pending or (sock is not None and sock in readable):
            self.client.loop_read()
        if writable and self.client.socket() is not None:
            self.client.loop_write()
        if self.client.socket() is not None:
            self.client.loop_misc()
        if source is not None and source in readable:
            task.readable()

    def _leave(self) -> None:
        """Send DISCONNECT if connected and see the server close, within ``LEAVE_WITHIN_S`` seconds; then close."""
        sock: Any = self.client.socket()
        try:
            if self.online and sock is not None:
                # paho closes as soon as DISCONNECT is written. If the server's messages are still unread here, that
                # resets the connection, and acknowledgements and DISCONNECT may be lost with it: keep it open.
                with socket.socket(fileno=os.dup(sock.fileno())) as held:
                    self._disconnect(held, time.monotonic() + LEAVE_WITHIN_S)
        except OSError as error:
            self.say(f"{self._server()}: {error.strerror or error} while disconnecting")
        finally:
            self.client.abort()

    def _disconnect(self, held: socket.socket, until_s: float) -> None:
        reason = None
        if self.interrupted and self.options.will and self.options.version == Version.MQTTv5:
            # As mosquitto's clients do: the user took the program away, so the will is published.
            reason = ReasonCode(PacketTypes.DISCONNECT, identifier=4)
        self.client.disconnect(reason, self.options.properties.get("disconnect"))
        while (sock := self.client.socket()) is not None and time.monotonic() < until_s:
            wait_for: Any = sock
            select.select([], [wait_for], [], max(0.0, until_s - time.monotonic()))
            self.client.loop_write()
        held.settimeout(max(0.01, until_s - time.monotonic()))
        with suppress(OSError):  # the server closed first, or does not close
            held.shutdown(socket.SHUT_WR)
            while held.recv(READ_BYTES) and time.monotonic() < until_s:
                pass

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run; a second one, or one while a connection is being made, raises at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted or self._blocking:
                raise KeyboardInterrupt
            self.interrupted = True

        self._wake, write = socket.socketpair()
        write.setblocking(False)
        wakeup_before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_before)
            write.close()
            self._wake.close()
            self._wake = None

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            code = reason.value if self.options.version == Version.MQTTv5 else self.client.connack_code
            self._end = (code, f"refused: {explain(reason, code, properties)}")
            return
        self.online = self._was_online = True
        self._online_since_s = time.monotonic()
        told = properties or new(PacketTypes.CONNACK)
        # 5.0 [MQTT-3.3.4-7]; paho knows only its own limit.
        self.window = min(self.options.max_inflight_count, first(told, "receive-maximum") or 65_535)
        self.client.limit(self.window)
        assert self._task is not None
        self._task.connected(session_present=flags.session_present, properties=told)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode | None,
        properties: Properties | None,
    ) -> None:
        self.online = False
        if flags.is_disconnect_packet_from_server and reason is not None:
            self._end = (reason.value, f"disconnected by the server: {explain(reason, reason.value, properties)}")
        elif not self._was_online and not self._end[0] and self.client.connack_code:
            # paho keeps this one from on_connect: 3.1.1 return codes 1 and 2 that it could try to work around.
            self._end = (self.client.connack_code, f"refused: CONNACK return code {self.client.connack_code}")

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if self.options.nodelay and self.options.transport != "unix":
            # A duplicate of the descriptor, because with WebSocket paho hands out a wrapper and not the socket.
            with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
                duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def explain(reason: ReasonCode, code: int, properties: Properties | None) -> str:
    """A reason code for people: its name, the server's Reason String if it sent one, and the number."""
    told = getattr(properties, "ReasonString", "")
    return f"{reason}{': ' if told else ''}{told} ({code})"


def _client(options: ConnectionOptions) -> PahoClient:
    five = options.version == Version.MQTTv5
    client = PahoClient(
        CallbackAPIVersion.VERSION2,
        client_id=options.client_id,
        clean_session=None if five else options.clean,
        protocol=options.version,
        transport=options.transport,
        reconnect_on_failure=False,
    )
    client.max_inflight_messages = options.max_inflight_count
    if options.username is not None:
        client.username_pw_set(options.username, options.password)
    if options.tls is not None:
        client.tls_set_context(options.tls)
        client.tls_insecure_set(options.insecure)
    if options.transport == "websockets":
        client.ws_set_options(path=options.ws_path)
    if options.will is not None:
        will = options.will
        client.will_set(will.topic, will.payload, will.qos, will.retain, options.properties.get("will"))
    client.connect_async(
        options.host,
        options.port,
        options.keepalive_s,
        options.bind,
        clean_start=False if five and not options.clean else paho.MQTT_CLEAN_START_FIRST_ONLY,
        properties=options.properties.get("connect"),
    )
    return client
