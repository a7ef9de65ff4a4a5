"""A lean MQTT client: the protocol as a state machine that is fed bytes and told the time. Thousands fit in one
process.

It opens no socket (a dialer does, see ``link.py``), has no task of its own and never waits: its owner is called back.
It speaks 3.1.1 and 5.0.

1. A QoS 1 or 2 message that ``publish`` took is sent until it is acknowledged, in the order taken: over a reconnect
   with the same packet id and DUP set, before anything new (``5.0 [MQTT-4.4.0-1]``, ``5.0 [MQTT-4.6.0-1]``). If the
   broker has forgotten the session, QoS 1 is published anew and QoS 2 is given up, because a repeat could arrive twice.
2. At most ``window_count`` of them, and no more than the server's Receive Maximum, are unacknowledged; ``queue_count``
   wait behind them; then ``publish`` says False. QoS 0 is sent now or refused.
3. What one read brings is answered by one write.
4. A lost connection is dialled again after exponential back-off with full jitter, unless the broker's answer says that
   it is of no use or the owner stopped the client.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from tidings.broker.codec import (
    MQTT_5_0,
    NO_PROPERTIES,
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscribeFilter,
    TopicTable,
    encode,
)

from .clock import Clock, Timer
from .ports import ClientOptions, Owner, Wire
from .streams import uniform

_NO_EXPIRY: Final = 0xFFFF_FFFF
_PASSING_5: Final = frozenset({0x80, 0x83, 0x88, 0x89, 0x8B, 0x97, 0x9F})
_PASSING_3: Final = frozenset({3})
_TAKEN_OVER: Final = 0x8E
_NOT_FOUND: Final = 0x92  # Packet Identifier not found
_CONNECT_TIMEOUT_S: Final = 20.0


class State(Enum):
    """Where a client stands. WAITING: for the back-off or a pause to end. GONE: refused for good."""

    IDLE = "idle"
    DIALLING = "dialling"
    GREETING = "greeting"
    ONLINE = "online"
    WAITING = "waiting"
    GONE = "gone"


class _Outgoing:
    """A message on its way out. ``released``: PUBREC came, PUBREL is what must arrive now; ``repeated``: it was sent on
    more than one connection."""

    __slots__ = ("packet", "released", "repeated", "token", "written")

    def __init__(self, packet: Publish, token: Any) -> None:
        self.packet = packet
        self.token = token
        self.released = False
        self.repeated = False
        self.written = False


class Client:
    """One MQTT connection and the session behind it. ``dial(client)`` must lead to ``link_up`` or ``link_failed``."""

    __slots__ = (
        "_attempt",
        "_decoder",
        "_dialled_count",
        "_greeting_timer",
        "_held",
        "_inflight",
        "_keep_alive_s",
        "_keep_alive_timer",
        "_last_id",
        "_last_read",
        "_last_write",
        "_link",
        "_out",
        "_queue",
        "_quota",
        "_reading",
        "_received",
        "_retry_timer",
        "_room",
        "_topics",
        "_writable",
        "clock",
        "connects",
        "dial",
        "jitter_key",
        "options",
        "owner",
        "state",
    )

    def __init__(
        self,
        options: ClientOptions,
        owner: Owner,
        clock: Clock,
        dial: Callable[["Client"], None],
        *,
        jitter_key: int = 0,
        topics: TopicTable | None = None,
    ) -> None:
        self.options = options
        self.owner = owner
        self.clock = clock
        self.dial = dial
        self.jitter_key = jitter_key
        self.state = State.IDLE
        self.connects = 0
        """How often the broker accepted us."""
        self._topics = topics
        self._decoder: Decoder | None = None
        self._link: Wire | None = None
        self._out: list[bytes] = []
        self._held = 0
        self._writable = True
        self._reading = True
        self._quota = 0
        self._last_id = 0
        self._inflight: dict[int, _Outgoing] = {}
        self._queue: deque[_Outgoing] = deque()
        self._received: set[int] = set()
        self._attempt = 0
        self._dialled_count = 0
        self._keep_alive_s = 0.0
        self._last_write = 0.0
        self._last_read = 0.0
        self._keep_alive_timer: Timer | None = None
        self._retry_timer: Timer | None = None
        self._greeting_timer: Timer | None = None
        self._room: asyncio.Future[None] | None = None

    # -- what the owner asks for

    def start(self) -> None:
        """Connect, and stay connected until ``stop``, ``pause`` or a final refusal."""
        if self.state in (State.IDLE, State.WAITING):
            _cancel(self._retry_timer)
            self.state = State.DIALLING
            self._dialled_count += 1
            self.dial(self)

    def stop(self, *, forget: bool = True) -> None:
        """Say goodbye and stay away. ``forget``: the broker may drop the session (only 5.0 can say so)."""
        _cancel(self._retry_timer)
        if self.state is State.ONLINE:
            properties: Properties = NO_PROPERTIES
            if forget and self.options.version == MQTT_5_0 and self.options.session_s:
                properties = {"session_expiry_interval": 0}
            self._send(encode(Disconnect(0, properties), self.options.version))
        self._hang_up("stopped", abort=False)
        self.state = State.IDLE

    def cut(self) -> None:
        """Drop the connection without a word, as a power cut does; back-off then decides when to return."""
        if self._link is not None:
            self._hang_up("cut", abort=True)
            self._retry()

    def pause(self, *, abrupt: bool) -> None:
        """Stay away until ``start``; the session is kept. ``abrupt``: without DISCONNECT."""
        _cancel(self._retry_timer)
        if self.state is State.ONLINE and not abrupt:
            self._send(encode(Disconnect(), self.options.version))
        self._hang_up("cut" if abrupt else "left", abort=abrupt)
        self.state = State.IDLE

    @property
    def online(self) -> bool:
        return self.state is State.ONLINE

    @property
    def unacknowledged(self) -> int:
        """Messages at QoS 1 and 2 that the broker has not answered, those not yet sent included."""
        return len(self._inflight) + len(self._queue)

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        *,
        retain: bool = False,
        token: Any = None,
        properties: Properties = NO_PROPERTIES,
    ) -> bool:
        """Send, or keep for sending; False if the queue is full, or at QoS 0 if it cannot be sent now."""
        message = _Outgoing(Publish(topic, payload, qos, retain, properties=properties), token)
        if qos == 0:
            if self.state is not State.ONLINE or not self._writable:
                return False
            self._send(encode(message.packet, self.options.version))
            self.owner.on_written(token, False)
            return True
        if self.state is State.ONLINE and self._writable and not self._queue and len(self._inflight) < self._quota:
            self._launch(message)
            return True
        if len(self._queue) >= self.options.queue_count:
            return False
        self._queue.append(message)
        return True

    def accepts(self, qos: int) -> bool:
        """Whether ``publish`` would take a message at this QoS now."""
        if qos == 0:
            return self.state is State.ONLINE and self._writable
        return len(self._queue) < self.options.queue_count

    async def ready(self) -> None:
        """Wait until ``publish`` would take another QoS 1 or 2 message."""
        while len(self._queue) >= self.options.queue_count:
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def subscribe(self, filters: Sequence[SubscribeFilter], properties: Properties = NO_PROPERTIES) -> None:
        """One SUBSCRIBE; the answer comes to ``on_subscribed``. Only while online. 3.1.1 has no ``properties``."""
        packet = Subscribe(self._next_id(), list(filters), properties)
        self._send(encode(packet, self.options.version))

    def acknowledge(self, message: Publish) -> None:
        """The owner has dealt with a message for which ``on_message`` returned False."""
        if message.qos == 1:
            self._send(encode(Puback(message.packet_id), self.options.version))
        elif message.qos == 2:
            self._received.add(message.packet_id)
            self._send(encode(Pubrec(message.packet_id), self.options.version))

    def pause_reading(self) -> None:
        """Take nothing more from the socket: the broker feels the back-pressure."""
        if self._reading:
            self._reading = False
            if self._link is not None:
                self._link.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self._last_read = self.clock.now()
            if self._link is not None:
                self._link.resume_reading()

    def hold(self) -> None:
        """Gather what is sent from now on, until ``release`` writes it at once."""
        self._held += 1

    def release(self) -> None:
        self._held = max(0, self._held - 1)
        if not self._held:
            self._flush()

    # -- what the link tells

    def link_up(self, link: Wire) -> None:
        """The connection stands: greet."""
        if self.state is not State.DIALLING:
            link.abort()
            return
        options = self.options
        self._link = link
        self._writable = True
        self._decoder = Decoder(
            version=options.version, side="client", max_packet_size=options.max_packet_bytes, topics=self._topics
        )
        self.state = State.GREETING
        self._reading = True
        clean = options.session_s == 0 or (options.clean_first and options.version == MQTT_5_0 and self.connects == 0)
        properties: Properties = NO_PROPERTIES
        if options.version == MQTT_5_0:
            properties = {"receive_maximum": options.receive_maximum, "maximum_packet_size": options.max_packet_bytes}
            if options.session_s:
                properties["session_expiry_interval"] = min(options.session_s, _NO_EXPIRY)
        connect = Connect(
            client_id=options.client_id,
            version=options.version,
            clean_start=clean,
            keep_alive=options.keep_alive_s,
            username=options.username,
            password=options.password,
            will=options.will,
            properties=properties,
        )
        self._send(encode(connect, options.version))
        self._greeting_timer = self.clock.call_at(self.clock.now() + _CONNECT_TIMEOUT_S, self._greeting_late)

    def link_failed(self, reason: str) -> None:
        """The connection could not be made."""
        if self.state is State.DIALLING:
            self.owner.on_offline(reason)
            self._retry()

    def link_down(self, reason: str) -> None:
        """The connection is gone; not called for one that the client itself ended."""
        self._hang_up(reason, abort=True)
        if self.state not in (State.IDLE, State.GONE):
            self._retry()

    def link_writable(self, writable: bool) -> None:
        """The socket's buffer is full, or has room again."""
        self._writable = writable
        if writable and self.state is State.ONLINE:
            self._drain()

    def feed(self, data: bytes) -> None:
        """Bytes from the broker. Everything they make us say leaves in one write."""
        decoder, link = self._decoder, self._link
        if decoder is None:
            return
        self._last_read = self.clock.now()
        self.hold()
        for packet in decoder.feed(data):
            handler = _HANDLERS.get(type(packet))
            if handler is None:
                self._fail(f"a client got {type(packet).__name__.upper()}", 0x82)
            else:
                handler(self, packet)
            if self._link is not link:
                return  # this connection ended while we were at it
        if decoder.error is not None:
            self._fail(str(decoder.error), decoder.error.reason)
            return
        if self._queue:
            self._drain()
        self.release()

    # -- packets

    def _on_connack(self, packet: Packet) -> None:
        assert isinstance(packet, Connack)
        if self.state is not State.GREETING:
            self._fail("the broker sent a second CONNACK", 0x82)
            return
        options = self.options
        if packet.reason:
            text = f"the broker refused the connection with reason 0x{packet.reason:02x}"
            if detail := packet.properties.get("reason_string"):
                text += f" ({detail})"
            passing = _PASSING_5 if options.version == MQTT_5_0 else _PASSING_3
            self._hang_up(text, abort=False)
            self._retry() if packet.reason in passing else self._give_up(text)
            return
        _cancel(self._greeting_timer)
        self.state = State.ONLINE
        self.connects += 1
        self._attempt = 0
        self._quota = min(options.window_count, packet.properties.get("receive_maximum", 65535))
        self._keep_alive_s = float(packet.properties.get("server_keep_alive", options.keep_alive_s))
        if self._keep_alive_s:
            self._keep_alive_timer = self.clock.call_at(self.clock.now() + self._keep_alive_s / 2, self._keep_alive)
        if packet.session_present:
            self._resume()
        else:
            self._start_over()
        self.owner.on_online(packet.session_present)
        self._drain()

    def _resume(self) -> None:
        """Repeat what was not acknowledged, in order, `5.0 [MQTT-4.4.0-1]`."""
        for packet_id, message in self._inflight.items():
            if message.released:
                message.repeated = True
                self._send(encode(Pubrel(packet_id), self.options.version))
            else:
                message.packet.dup = True
                self._send(encode(message.packet, self.options.version))
                self.owner.on_written(message.token, True)

    def _start_over(self) -> None:
        """The broker has no session: what it had not acknowledged is sent anew, except QoS 2 that it may have taken."""
        self._received.clear()
        old = [message for message in self._inflight.values() if message.packet.qos == 1]
        self._inflight.clear()
        for message in old:
            message.packet.dup = False
        self._queue.extendleft(reversed(old))

    def _on_publish(self, packet: Packet) -> None:
        assert isinstance(packet, Publish)
        if packet.qos == 2 and packet.packet_id in self._received:
            self._send(
                encode(Pubrec(packet.packet_id), self.options.version)
            )  # 5.0 [MQTT-4.3.3-10]: not delivered again
        elif self.owner.on_message(packet) and packet.qos:
            self.acknowledge(packet)

    def _on_puback(self, packet: Packet) -> None:
        assert isinstance(packet, Puback)
        self._settle(packet.packet_id, packet.reason)

    def _on_pubrec(self, packet: Packet) -> None:
        assert isinstance(packet, Pubrec)
        message = self._inflight.get(packet.packet_id)
        if packet.reason >= 0x80:
            self._settle(packet.packet_id, packet.reason)
            return
        if message is not None:
            message.released = True
        # An unknown id is answered too, so that the broker can end its side: 5.0 section 4.3.3, Packet Identifier not
        # found.
        reason = 0 if message is not None or self.options.version != MQTT_5_0 else _NOT_FOUND
        self._send(encode(Pubrel(packet.packet_id, reason), self.options.version))

    def _on_pubrel(self, packet: Packet) -> None:
        assert isinstance(packet, Pubrel)
        known = packet.packet_id in self._received
        self._received.discard(packet.packet_id)
        reason = 0 if known or self.options.version != MQTT_5_0 else _NOT_FOUND
        self._send(encode(Pubcomp(packet.packet_id, reason), self.options.version))

    def _on_pubcomp(self, packet: Packet) -> None:
        assert isinstance(packet, Pubcomp)
        message = self._inflight.get(packet.packet_id)
        # 0x92 to a PUBREL that was repeated after a reconnection: the broker had completed the exchange, and its first
        # PUBCOMP was lost with the connection.
        complete = message is not None and message.repeated and packet.reason == _NOT_FOUND
        self._settle(packet.packet_id, 0 if complete else packet.reason)

    def _on_suback(self, packet: Packet) -> None:
        assert isinstance(packet, Suback)
        self.owner.on_subscribed(packet.reasons)

    def _on_pingresp(self, packet: Packet) -> None:
        """That it came is all it says; ``feed`` has noted the time."""

    def _on_disconnect(self, packet: Packet) -> None:
        assert isinstance(packet, Disconnect)
        text = f"the broker disconnected with reason 0x{packet.reason:02x}"
        if detail := packet.properties.get("reason_string"):
            text += f" ({detail})"
        self._hang_up(text, abort=False)
        if packet.reason == _TAKEN_OVER:
            # Somebody else uses this client id: coming back would throw them out, and they us, for ever.
            self._give_up(text + ", another client uses this client id")
        else:
            self._retry()

    # -- sending

    def _send(self, data: bytes) -> None:
        self._out.append(data)
        if not self._held:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            if self._link is not None:
                self._last_write = self.clock.now()
                self._link.write(data)

    def _launch(self, message: _Outgoing) -> None:
        packet = message.packet
        packet.packet_id = self._next_id()
        self._inflight[packet.packet_id] = message
        self._send(encode(packet, self.options.version))
        again, message.written = message.written, True
        self.owner.on_written(message.token, again)

    def _drain(self) -> None:
        queue = self._queue
        if not queue:
            return
        self.hold()
        while queue and self._writable and len(self._inflight) < self._quota:
            self._launch(queue.popleft())
        self.release()
        if self._room is not None and not self._room.done() and len(queue) < self.options.queue_count:
            self._room.set_result(None)

    def _settle(self, packet_id: int, reason: int) -> None:
        message = self._inflight.pop(packet_id, None)
        if message is not None:
            self.owner.on_acknowledged(message.token, reason)

    def _next_id(self) -> int:
        packet_id = self._last_id
        while True:
            packet_id = packet_id % 65535 + 1
            if packet_id not in self._inflight:
                self._last_id = packet_id
                return packet_id

    # -- connection

    def _fail(self, text: str, reason: int) -> None:
        """The broker broke the protocol: say so in its own terms and start again."""
        if self.options.version == MQTT_5_0 and self.state is State.ONLINE:
            self._send(encode(Disconnect(reason), self.options.version))
        self._hang_up(f"the broker broke the protocol: {text}", abort=False)
        self._retry()

    def _hang_up(self, reason: str, *, abort: bool) -> None:
        link, self._link = self._link, None
        self._decoder = None
        _cancel(self._greeting_timer)
        _cancel(self._keep_alive_timer)
        if link is None:
            return
        was_online = self.state in (State.ONLINE, State.GREETING)
        self.state = State.WAITING
        if abort:
            link.abort()
        else:
            if self._out:
                link.write(b"".join(self._out))
            link.close()
        self._out.clear()
        self._held = 0
        if was_online:
            self.owner.on_offline(reason)

    def _retry(self) -> None:
        self.state = State.WAITING
        options = self.options
        longest = min(options.backoff_max_s, options.backoff_first_s * 2.0 ** min(self._attempt, 32))
        self._attempt += 1
        wait = longest * uniform(self.jitter_key, self._dialled_count)
        _cancel(self._retry_timer)
        self._retry_timer = self.clock.call_at(self.clock.now() + wait, self.start)

    def _give_up(self, reason: str) -> None:
        self.state = State.GONE
        self.owner.on_gone(reason)

    def _greeting_late(self) -> None:
        if self.state is State.GREETING:
            self.link_down(f"no CONNACK within {_CONNECT_TIMEOUT_S:g} s")

    def _keep_alive(self) -> None:
        """Ping when nothing was sent for half the interval; leave when nothing came for one and a half."""
        if self.state is not State.ONLINE:
            return
        now, half = self.clock.now(), self._keep_alive_s / 2
        if self._reading and now - self._last_read > 3 * half:
            self.link_down("the broker did not answer pings")
            return
        if now - self._last_write >= half - 0.001 or now - self._last_read >= half - 0.001:
            self._send(encode(Pingreq(), self.options.version))
        self._keep_alive_timer = self.clock.call_at(now + half, self._keep_alive)


_HANDLERS: Final[dict[type, Callable[[Client, Packet], None]]] = {
    Connack: Client._on_connack,
    Publish: Client._on_publish,
    Puback: Client._on_puback,
    Pubrec: Client._on_pubrec,
    Pubrel: Client._on_pubrel,
    Pubcomp: Client._on_pubcomp,
    Suback: Client._on_suback,
    Pingresp: Client._on_pingresp,
    Disconnect: Client._on_disconnect,
}


def _cancel(timer: Timer | None) -> None:
    if timer is not None:
        timer.cancel()
