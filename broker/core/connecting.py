"""CONNECT and AUTH: from a network connection to a client with a session."""

from typing import TYPE_CHECKING, Final

from ..codec.packets import MQTT_5_0, Auth, Connack, Connect
from ..codec.properties import Properties
from ..codec.reasons import ReasonCode
from ..errors import ProtocolError
from ..policy import newest_only
from .state import State
from .topics import check_topic, reserved

if TYPE_CHECKING:
    from .connection import Connection

NOT_SAID: Final = 1 << 62  # a batch that never comes


def on_connect(connection: "Connection", packet: Connect, now: float) -> None:
    """CONNECT: the session, and CONNACK before anything else."""
    engine = connection.engine
    properties = packet.properties
    connection.version = packet.version
    connection.user = packet.username or ""
    connection.max_packet_size = properties.get("maximum_packet_size", 0)
    config = engine.config
    connection.problem_information = bool(properties.get("request_problem_information", 1))
    if "authentication_method" in properties:
        # 5.0 section 4.12: no method is configured, so none is acceptable
        raise ProtocolError("no such authentication method", ReasonCode.BAD_AUTHENTICATION_METHOD)
    will = packet.will
    if will is not None:
        check_topic(will.topic, config.max_topic_levels)
        if reserved(will.topic):
            raise ProtocolError(f"the will topic {will.topic!r} is the broker's own", ReasonCode.NOT_AUTHORIZED)
    client_id = packet.client_id
    answer: Properties = {}
    if not client_id:
        if packet.version < MQTT_5_0 and (not packet.clean_start or packet.version == 3):
            # 3.1.1 [MQTT-3.1.3-8]; MQTT 3.1 has no empty client ids
            raise ProtocolError("empty client id", ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        client_id = engine.new_client_id()
        while client_id in engine.sessions:
            client_id = engine.new_client_id()
        answer["assigned_client_identifier"] = client_id  # 5.0 [MQTT-3.2.2-16]
    if packet.version == MQTT_5_0:
        wanted = properties.get("session_expiry_interval", 0)
        expiry_s = min(wanted, config.max_session_expiry_s)
        if expiry_s != wanted:
            answer["session_expiry_interval"] = expiry_s
        receive_maximum = min(properties.get("receive_maximum", 65_535), config.max_inflight)
    else:
        expiry_s = 0 if packet.clean_start else config.max_session_expiry_s
        receive_maximum = config.max_inflight
    keep_alive_s = packet.keep_alive
    if config.max_keep_alive_s < 65_535 and not 0 < keep_alive_s <= config.max_keep_alive_s:
        keep_alive_s = answer["server_keep_alive"] = config.max_keep_alive_s
    # 5.0 [MQTT-3.1.2-22], 3.1.1 [MQTT-3.1.2-24]
    connection.keep_alive_s = keep_alive_s * 1.5
    connection.session_expiry_s = expiry_s
    since = len(engine.changes)
    session, present = engine.open_session(connection, client_id, packet.clean_start, expiry_s, will, now)
    connection.session = session
    connection.become(State.CONNECTED)
    if connection.version == MQTT_5_0:
        if config.receive_maximum < 65_535:
            answer["receive_maximum"] = config.receive_maximum
        if config.topic_alias_maximum:
            answer["topic_alias_maximum"] = config.topic_alias_maximum
        answer["maximum_packet_size"] = config.max_packet_size_bytes
    engine.log.info("connected: %r", connection)
    batch = engine.batch if len(engine.changes) > since else 0
    connection.welcome = NOT_SAID  # if the client cannot take CONNACK it is told nothing else either
    connection.answer(Connack(present, 0, answer), since)
    connection.welcome = batch
    if batch:
        connection.outbox.hold(batch)  # 5.0 [MQTT-3.2.0-1] nothing leaves before CONNACK
    session.window.attach(
        connection.outbox,
        packet.version,
        receive_maximum,
        connection.max_packet_size,
        min(properties.get("topic_alias_maximum", 0), config.topic_alias_maximum),
    )
    if any(newest_only(grant.policy) for grant in session.subscriptions.values()):
        connection.outbox.shorten()
    engine.deadlines.set(connection, now + connection.keep_alive_s if keep_alive_s else None)
    session.window.resume(now)


def on_auth(connection: "Connection", packet: Auth, now: float) -> None:
    """AUTH after CONNACK."""
    # 5.0 [MQTT-4.12.1-1] re-authentication needs the method of the CONNECT, and none had one
    raise ProtocolError("AUTH without an authentication method in CONNECT", ReasonCode.PROTOCOL_ERROR)
