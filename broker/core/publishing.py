"""PUBLISH and PUBREL: what a client sends, from the packet to its acknowledgement."""

from typing import TYPE_CHECKING

from ..codec.packets import MQTT_5_0, Publish, PublishRun, Pubrel
from ..codec.properties import Properties
from ..codec.reasons import ReasonCode
from ..codec.wire import PACKET_ID
from ..errors import ProtocolError
from .message import OVERHEAD_BYTES, Message, WireRun, forwarded, messages_of
from .ports import Action, Completed, Received
from .state import State

if TYPE_CHECKING:
    from .connection import Connection


def on_publish(connection: "Connection", packet: Publish, now: float) -> None:
    """One PUBLISH that may have properties: what they ask for is done here, the rest of them travels on."""
    properties = packet.properties
    topic = _resolve_alias(connection, packet.topic, properties)
    expiry_s = properties.get("message_expiry_interval")
    message = Message(
        topic,
        packet.payload,
        packet.qos,
        packet.retain,
        packet.dup,
        packet.packet_id,
        forwarded(properties),
        connection.own_session.client_id,
        None if expiry_s is None else now + expiry_s,
    )
    _take(connection, [message], now)


def on_run(connection: "Connection", messages: list[Message], now: float) -> None:
    """PUBLISH packets of one topic and one QoS without properties."""
    session = connection.session
    if session is None or connection.state is not State.CONNECTED:
        raise ProtocolError(f"PUBLISH while {connection.state.value}")
    client_id = session.client_id
    overhead_bytes = len(messages[0].topic) + OVERHEAD_BYTES
    for message in messages:
        message.sender = client_id
        message.expires_at = None
        message.batch = message.stored = 0
        message.size = len(message.payload) + overhead_bytes
    _take(connection, messages, now)


def on_publish_run(connection: "Connection", packets: PublishRun, now: float) -> None:
    """PUBLISH packets in bulk. At QoS 0 there is nothing to acknowledge, and nothing to look at but the topic."""
    may = connection.rights is None or connection.rights.publish(packets.topic, now)
    engine = connection.engine
    engine.stats.packets_received += packets.count - 1
    sender = connection.own_session.client_id
    if packets.qos:
        _take(connection, messages_of(packets, sender), now, packets.stride - packets.head)
        return
    run = WireRun(packets, connection.version, sender, now)
    if engine.message_watcher is not None:
        engine.message_watcher.received(run.sender, run.messages, may)
    if may:
        engine.route(run)
    else:
        _not_authorized(connection, packets.topic, packets.count)


def _take(connection: "Connection", messages: list[Message], now: float, length: int = -1) -> None:
    """``length``: see ``Run``."""
    engine = connection.engine
    qos = messages[0].qos
    since = len(engine.changes)
    may = connection.rights is None or connection.rights.publish(messages[0].topic, now)
    used_bytes = engine.budget.used_bytes
    if qos == 2:
        messages = _new_only(connection, messages)
        if not messages:
            return
    if engine.message_watcher is not None:
        engine.message_watcher.received(messages[0].sender, messages, may)
    if not may:
        _not_authorized(connection, messages[0].topic, len(messages))
    if not qos:
        if may:
            engine.publish(messages, now)
        return
    reason: int
    if not may:
        # 3.1.1 [MQTT-3.3.5-2] acknowledge or close: a device with a wrong topic would come back for ever
        reason = ReasonCode.NOT_AUTHORIZED if connection.version == MQTT_5_0 else ReasonCode.SUCCESS
    elif engine.store_trouble and connection.version == MQTT_5_0:
        reason = ReasonCode.QUOTA_EXCEEDED  # nothing new can be kept; what was taken waits for the disk
    else:
        reason = engine.publish(messages, now, connection.session if qos == 2 else None, length)
    if engine.budget.pressed and engine.budget.used_bytes > used_bytes:
        connection.withhold()
    _acknowledge(connection, messages, qos, reason, since)


def _not_authorized(connection: "Connection", topic: str, count: int) -> None:
    connection.engine.stats.refuse(Action.PUBLISH, count)
    connection.engine.log.info("%.200r may not publish to %.200r", connection.client_id, topic)


def _acknowledge(connection: "Connection", packets: list[Message], qos: int, reason: int, since: int) -> None:
    engine = connection.engine
    session = connection.session
    assert session is not None
    if reason == ReasonCode.QUOTA_EXCEEDED and connection.version < MQTT_5_0:
        # Before 5.0 an acknowledgement cannot say no, and one that says yes would be a lie.
        raise ProtocolError(f"no room for the message to {packets[0].topic!r}", reason)
    if qos == 2 and reason < 0x80:
        incoming = session.incoming
        if incoming is None:
            incoming = session.incoming = set()
        for packet in packets:
            incoming.add(packet.packet_id)
            if session.window.changes is not None:
                engine.changes.append(Received(session.client_id, packet.packet_id))
    if connection.version < MQTT_5_0 or not reason:
        kind = b"\x40\x02" if qos == 1 else b"\x50\x02"
        data = kind + kind.join([PACKET_ID[packet.packet_id] for packet in packets])
    else:
        kind = b"\x40\x03" if qos == 1 else b"\x50\x03"
        code = bytes((reason,))
        data = kind + (code + kind).join([PACKET_ID[packet.packet_id] for packet in packets]) + code
    engine.stats.answers_sent += len(packets)
    # A QoS 2 message that was taken counts in ``incoming`` until PUBREL.
    held = len(packets) if qos == 1 or reason >= 0x80 else 0
    connection.acknowledge(data, engine.batch if len(engine.changes) > since else 0, held)
    held = connection.outbox.held + connection.withheld_publishes
    if held and connection.version == MQTT_5_0 and held + len(session.incoming or ()) > connection.receive_maximum:
        raise ProtocolError("more unacknowledged messages than Receive Maximum", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)


def _new_only(connection: "Connection", packets: list[Message]) -> list[Message]:
    """Of QoS 2 messages, those that are no repetition; the others are acknowledged again (5.0 [MQTT-4.3.3-10])."""
    incoming = connection.own_session.incoming or set()
    new: list[Message] = []
    seen: set[int] = set()
    for packet in packets:
        if packet.packet_id in incoming or packet.packet_id in seen:
            connection.acknowledge(b"\x50\x02" + PACKET_ID[packet.packet_id], 0, 0)
            connection.engine.stats.answers_sent += 1
        else:
            seen.add(packet.packet_id)
            new.append(packet)
    if connection.version == MQTT_5_0 and len(incoming) + len(new) > connection.receive_maximum:
        # 5.0 [MQTT-3.3.4-7]: more than we said we take
        raise ProtocolError("more QoS 2 messages under way than Receive Maximum", ReasonCode.RECEIVE_MAXIMUM_EXCEEDED)
    return new


def _resolve_alias(connection: "Connection", topic: str, properties: Properties) -> str:
    alias = properties.get("topic_alias")
    if alias is None:
        return topic
    if alias > connection.engine.config.topic_alias_maximum:  # 5.0 [MQTT-3.2.2-17], [MQTT-3.2.2-18]
        raise ProtocolError(f"topic alias {alias} is over our maximum", ReasonCode.TOPIC_ALIAS_INVALID)
    if connection.aliases is None:
        connection.aliases = {}
    if topic:
        connection.aliases[alias] = topic
        return topic
    known = connection.aliases.get(alias)
    if known is None:
        raise ProtocolError(f"topic alias {alias} was never set", ReasonCode.PROTOCOL_ERROR)
    return known


def on_pubrel(connection: "Connection", packet: Pubrel, now: float) -> None:
    """PUBREL."""
    on_pubrels(connection, [packet.packet_id])


def on_pubrels(connection: "Connection", packet_ids: list[int]) -> None:
    """PUBREL for each of these: their packet ids are free again, and PUBCOMP says so."""
    session = connection.own_session
    since = len(connection.engine.changes)
    incoming = session.incoming or set()
    unknown: set[int] = set()
    for packet_id in packet_ids:
        if packet_id not in incoming:
            unknown.add(packet_id)
            continue
        incoming.discard(packet_id)
        if session.window.changes is not None:
            connection.engine.changes.append(Completed(session.client_id, packet_id))
    session.incoming = incoming or None
    connection.answer_acks(b"\x70", packet_ids, unknown, since)  # 5.0 [MQTT-4.3.3-11]
