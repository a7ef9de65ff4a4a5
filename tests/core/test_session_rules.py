"""The rules of sessions against a simple model: whatever clients do, and whenever they come and go, a session is owed
exactly what the model says, in order, under its packet ids, and nothing else (5.0 chapters 3.1.2, 4.1, 4.3, 4.4, 4.6).
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tidings.broker.codec.packets import Disconnect, Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Will
from tidings.broker.core.topics import matches

from ..conformance.wire import Peer, Wire

IN_FLIGHT = 2
QUEUED = 4
LONGEST_EXPIRY_S = 200
CLIENTS = st.sampled_from(("c0", "c1", "c2"))
FILTERS = st.sampled_from(("a/b", "a/+", "#", "c"))
TOPICS = st.sampled_from(("a/b", "a/c", "c"))
RETAINED_TOPIC = "a/b"
QOS = st.sampled_from((1, 2, 1, 2, 0))
RARELY = st.sampled_from((False, False, False, True))


@dataclass
class Owed:
    """One delivery. ``state``: waiting, sent, again (sent on an earlier connection) or released (PUBREC has come)."""

    payload: bytes
    qos: int
    retain: bool = False
    state: str = "waiting"
    packet_id: int = 0
    released_as: int = 0  # how many PUBRECs had come when its own did
    session_keeps: "Owed | None" = None  # in what a client is expected to receive: the same in its session


@dataclass
class ModelSession:
    """What the broker has to know of one client id. Times are seconds; ``left_at`` is when its client went."""

    expiry_s: int
    subscriptions: dict[str, int] = field(default_factory=dict)
    owed: list[Owed] = field(default_factory=list)
    will: "tuple[str, bytes, int] | None" = None
    left_at: float | None = None
    expected: "list[Owed | Pubrel]" = field(default_factory=list)

    def owe(self, owed: Owed) -> None:
        if self.left_at is not None and owed.qos == 0:
            return
        self.owed.append(owed)

    def _trim(self) -> None:
        waiting = [owed for owed in self.owed if owed.state == "waiting"]
        for owed in waiting[: max(0, len(waiting) - QUEUED)]:
            self.owed.remove(owed)

    def leave(self, now: float) -> None:
        self.left_at = now
        self.expected = []
        self.owed = [owed for owed in self.owed if owed.qos]
        for owed in self.owed:
            if owed.state == "sent":
                owed.state = "again"

    def send(self) -> None:
        """Expect what goes out now that there may be room; what does not fit into the queue is dropped."""
        self._send()
        self._trim()
        self._send()  # a QoS 0 message does not wait for the window, and may have become the first

    def _send(self) -> None:
        if self.left_at is not None:
            return
        for owed in list(self.owed):
            if owed.state not in ("waiting", "again"):
                continue
            if owed.qos == 0:
                self.owed.remove(owed)
            elif sum(other.state in ("sent", "released") for other in self.owed) >= IN_FLIGHT:
                break
            self.expected.append(replace(owed, session_keeps=owed))
            owed.state = "sent"

    def ends_at(self) -> float:
        assert self.left_at is not None
        return self.left_at + self.expiry_s

    def due_at(self) -> float:
        """When its will or its end is due."""
        assert self.left_at is not None
        return self.ends_at() if self.will is None else min(self.ends_at(), self.left_at + self.will[2])


class SessionRules(RuleBasedStateMachine):
    """``Wire`` is the broker; everything it sends is compared at once with what the model expects."""

    @initialize(keeps=st.booleans(), begin=st.dictionaries(CLIENTS, st.tuples(FILTERS, QOS)))
    def start(self, keeps: bool, begin: dict[str, tuple[str, int]]) -> None:
        self.wire = Wire(
            keeps=keeps,
            max_inflight=IN_FLIGHT,
            max_queued_messages=QUEUED,
            max_session_expiry_s=LONGEST_EXPIRY_S,
            max_memory_messages=1_000,
        )
        self.publisher = self.wire.connect("publisher", keep_alive=0)
        self.peers: dict[str, Peer] = {}
        self.sessions: dict[str, ModelSession] = {}
        self.retained: tuple[bytes, int] | None = None
        self.pubrecs = 0
        self.number = 0
        for client, (filter, qos) in begin.items():
            self.connect(client, False, 5, 10_000, None)
            self.subscribe(client, filter, qos)

    # what happens

    @rule(
        client=CLIENTS,
        clean=RARELY,
        version=st.sampled_from((4, 5)),
        expiry_s=st.sampled_from((10_000, 10_000, 11, 0)),
        will=st.none() | st.tuples(TOPICS, st.sampled_from((0, 5, 23))),
    )
    def connect(self, client: str, clean: bool, version: int, expiry_s: int, will: "tuple[str, int] | None") -> None:
        """5.0 [MQTT-3.1.2-4] to [MQTT-3.1.2-6], [MQTT-3.1.4-3], [MQTT-3.2.2-2], [MQTT-3.2.2-3]."""
        if client in self.peers:
            self._gone(client)
        session = self.sessions.get(client)
        if session is not None and clean:
            self._end(client)
            session = None
        present = session is not None
        if version == 4:
            expiry_s = 0 if clean else LONGEST_EXPIRY_S
        expiry_s = min(expiry_s, LONGEST_EXPIRY_S)
        if session is None:
            session = self.sessions[client] = ModelSession(expiry_s)
        session.expiry_s = expiry_s
        session.left_at = None
        session.will = None
        properties: dict[str, Any] = {"session_expiry_interval": expiry_s} if version == 5 else {}
        wire_will = None
        if will is not None:
            topic, delay_s = will
            delay_s = delay_s if version == 5 else 0
            payload = self._payload()
            session.will = (topic, payload, delay_s)
            wire_will = Will(topic, payload, 1, properties={"will_delay_interval": delay_s} if version == 5 else {})
        peer = self.wire.connect(client, version, clean_start=clean, keep_alive=0, will=wire_will, **properties)
        self.peers[client] = peer
        assert peer.connack.session_present == present
        released = [owed for owed in session.owed if owed.state == "released"]
        # 5.0 [MQTT-4.6.0-4]: in the order of the PUBRECs, not of the messages
        session.expected += [Pubrel(owed.packet_id) for owed in sorted(released, key=lambda owed: owed.released_as)]
        session.send()

    @rule(client=CLIENTS)
    def say_goodbye(self, client: str) -> None:
        if client not in self.peers:
            return
        self.sessions[client].will = None
        self.peers[client].send(Disconnect())
        self._gone(client)

    @rule(client=CLIENTS)
    def lose_connection(self, client: str) -> None:
        if client not in self.peers:
            return
        self.peers[client].drop()
        self._gone(client)

    @rule(client=CLIENTS, filter=FILTERS, qos=QOS)
    def subscribe(self, client: str, filter: str, qos: int) -> None:
        if client not in self.peers:
            return
        session = self.sessions[client]
        session.subscriptions[filter] = qos
        assert self.peers[client].subscribe(filter, qos) == qos
        if self.retained is not None and matches(filter, RETAINED_TOPIC):
            payload, retained_qos = self.retained
            session.owe(Owed(payload, min(qos, retained_qos), True))
            session.send()

    @rule(client=CLIENTS, filter=FILTERS)
    def unsubscribe(self, client: str, filter: str) -> None:
        if client not in self.peers:
            return
        self.sessions[client].subscriptions.pop(filter, None)
        self.peers[client].unsubscribe(filter)

    @rule(topic=TOPICS, qos=QOS, retain=RARELY, empty=RARELY, again=st.booleans())
    def publish(self, topic: str, qos: int, retain: bool, empty: bool, again: bool) -> None:
        """At QoS 2 the publisher may repeat itself before PUBREL, which must change nothing, 5.0 [MQTT-4.3.3-10]."""
        retain = retain and topic == RETAINED_TOPIC
        payload = b"" if retain and empty else self._payload()
        packet_id = self.publisher.publish(topic, payload, qos, retain)
        if qos == 2:
            if again:
                self.publisher.publish(topic, payload, qos, retain, dup=True, packet_id=packet_id)
            self.publisher.send(Pubrel(packet_id))
        answers = self.publisher.receive()
        assert len(answers) == (0, 1, 3 if again else 2)[qos]
        if retain:
            self.retained = (payload, qos) if payload else None
        self._route(topic, payload, qos)

    @rule(client=CLIENTS, index=st.integers(0, IN_FLIGHT - 1))
    def acknowledge(self, client: str, index: int) -> None:
        """One step for one message in flight, whichever: PUBACK, PUBREC, or PUBCOMP after PUBREL."""
        in_flight = [owed for owed in self._owed(client) if owed.state in ("sent", "released")]
        if client not in self.peers or index >= len(in_flight):
            return
        owed = in_flight[index]
        peer, session = self.peers[client], self.sessions[client]
        if owed.state == "sent" and owed.qos == 2:
            owed.state = "released"
            self.pubrecs += 1
            owed.released_as = self.pubrecs
            peer.send(Pubrec(owed.packet_id))
            session.expected.append(Pubrel(owed.packet_id))
            return
        peer.send(Puback(owed.packet_id) if owed.state == "sent" else Pubcomp(owed.packet_id))
        session.owed.remove(owed)
        session.send()

    @rule(seconds=st.sampled_from((7.3711, 7.3711, 53.1937)))  # never two things due at one moment
    def let_time_pass(self, seconds: float) -> None:
        end = self.wire.now + seconds
        self.wire.advance(seconds)
        while due := [(session.due_at(), client) for client, session in self.sessions.items() if session.left_at]:
            at, client = min(due)
            if at > end:
                break
            session = self.sessions[client]
            self._publish_will(session)
            if at == session.ends_at():
                self._end(client)

    @invariant()
    def clients_receive_what_the_model_expects(self) -> None:
        for client, peer in getattr(self, "peers", {}).items():
            session = self.sessions[client]
            expected, session.expected = session.expected, []
            packets = peer.receive()
            assert [_seen(packet) for packet in packets] == [_seen(packet) for packet in expected]
            for packet, sent in zip(packets, expected, strict=True):
                if not isinstance(packet, Publish) or not isinstance(sent, Owed) or not packet.qos:
                    continue
                if sent.state == "again":
                    assert packet.packet_id == sent.packet_id  # 5.0 [MQTT-4.4.0-1]
                assert sent.session_keeps is not None
                sent.session_keeps.packet_id = packet.packet_id
            assert not peer.closed

    @invariant()
    def broker_counts_what_the_model_counts(self) -> None:
        if not hasattr(self, "wire"):
            return
        engine = self.wire.engine
        assert set(engine.sessions) == {*self.sessions, "publisher"}
        for client, session in self.sessions.items():
            window = engine.sessions[client].window
            assert window.queued == sum(owed.state == "waiting" for owed in session.owed)
            assert window.waiting == len(session.owed)
            assert len(window.inflight) + len(window.released) <= IN_FLIGHT
            assert window.queued <= QUEUED
        assert engine.topics.count == sum(len(session.subscriptions) for session in self.sessions.values())

    # the model

    def _payload(self) -> bytes:
        self.number += 1
        return b"%d" % self.number

    def _owed(self, client: str) -> list[Owed]:
        return self.sessions[client].owed if client in self.sessions else []

    def _route(self, topic: str, payload: bytes, qos: int) -> None:
        for session in self.sessions.values():
            granted = [most for filter, most in session.subscriptions.items() if matches(filter, topic)]
            if granted:
                session.owe(Owed(payload, min(qos, max(granted))))
                session.send()

    def _gone(self, client: str) -> None:
        """Its connection is over: what was queued at QoS 0 goes, the will is due now or later, the session too."""
        del self.peers[client]
        session = self.sessions[client]
        session.leave(self.wire.now)
        if session.will is not None and min(session.will[2], session.expiry_s) == 0:
            self._publish_will(session)
        if session.expiry_s == 0:
            self._end(client)

    def _end(self, client: str) -> None:
        session = self.sessions.pop(client)
        self._publish_will(session)

    def _publish_will(self, session: ModelSession) -> None:
        will, session.will = session.will, None
        if will is not None:
            self._route(will[0], will[1], 1)


def _seen(packet: "Packet | Owed") -> object:
    """What both sides of a comparison can say about a packet."""
    if isinstance(packet, Publish):
        return packet.payload, packet.qos, packet.retain, packet.dup
    if isinstance(packet, Owed):
        return packet.payload, packet.qos, packet.retain, packet.state == "again"
    return packet


SessionRules.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestSessionRules = SessionRules.TestCase
