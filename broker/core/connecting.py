"""CONNECT and AUTH: from a network connection to a client with a session."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ..codec.packets import MQTT_5_0, Auth, Connack, Connect
from ..codec.properties import Properties
from ..codec.reasons import ReasonCode
from ..errors import ProtocolError
from ..policy import newest_only
from .ports import Accepted, Action, Answer, Challenge, Identity
from .rights import Rights, Undecided
from .state import State
from .topics import check_topic, reserved

if TYPE_CHECKING:
    from .connection import Connection

PRESSED_RECEIVE_MAXIMUM: Final = 100  # for clients that come while memory is short
NOT_SAID: Final = 1 << 62  # a batch that never comes


def on_connect(connection: "Connection", packet: Connect, now: float) -> None:
    """CONNECT: who is it, then the session, and CONNACK before anything else. Raises Undecided."""
    engine = connection.engine
    properties = packet.properties
    connection.version = packet.version
    connection.user = packet.username or ""
    connection.max_packet_size = properties.get("maximum_packet_size", 0)
    config = engine.config
    connection.problem_information = bool(properties.get("request_problem_information", 1))
    if engine.gate is None and "authentication_method" in properties:
        # 5.0 section 4.12: no method is configured, so none is acceptable
        raise ProtocolError("no such authentication method", ReasonCode.BAD_AUTHENTICATION_METHOD)
    will = packet.will
    if will is not None:
        check_topic(will.topic, config.max_topic_levels)
        if reserved(will.topic):
            raise ProtocolError(f"the will topic {will.topic!r} is the broker's own", ReasonCode.NOT_AUTHORIZED)
    identity = connection.identity
    client_id = packet.client_id if identity is None else identity.client_id
    if not client_id:
        if packet.version < MQTT_5_0 and (not packet.clean_start or packet.version == 3):
            # 3.1.1 [MQTT-3.1.3-8]; MQTT 3.1 has no empty client ids
            raise ProtocolError("empty client id", ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
        client_id = engine.new_client_id()
        while client_id in engine.sessions:
            client_id = engine.new_client_id()
    if engine.gate is not None:
        if identity is None:
            identity = _identity(connection, packet, client_id)
        if identity.accepted is None:
            accepted = _exchange(identity, engine.gate.authenticate, now)
            if accepted is None:
                connection.become(State.AUTHENTICATING)
                return
            _accept(identity, accepted)
    _enter(connection, packet, client_id, now)


def _enter(connection: "Connection", packet: Connect, client_id: str, now: float) -> None:
    """The client is who it says: it gets its session. Raises Undecided."""
    engine, properties, config = connection.engine, packet.properties, connection.engine.config
    identity, will = connection.identity, packet.will
    answer: Properties = {}
    lost: list[str] = []
    if connection.rights is not None:
        lost = _check_rights(connection, packet, client_id, now)
    if not packet.client_id:
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
    for filter in lost:
        engine.unsubscribe(session, filter, now)
    if lost:
        engine.save(session)
    if identity is not None and identity.method:
        # 5.0 [MQTT-4.12.0-5], section 3.2.2.3.17 and 18
        answer["authentication_method"] = identity.method
        if identity.accepted is not None and identity.accepted.data is not None:
            answer["authentication_data"] = identity.accepted.data
    if connection.version == MQTT_5_0:
        receive = config.receive_maximum
        if engine.budget.pressed:
            receive = min(receive, PRESSED_RECEIVE_MAXIMUM)
        if receive < 65_535:
            answer["receive_maximum"] = receive
        connection.receive_maximum = receive + len(session.incoming or ())  # 5.0 section 4.9: PUBREL costs no quota
        if config.topic_alias_maximum:
            answer["topic_alias_maximum"] = config.topic_alias_maximum
        answer["maximum_packet_size"] = config.max_packet_size_bytes
    if identity is not None:
        identity.connect = None
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
    session.window.rights = connection.rights
    if any(newest_only(grant.policy) for grant in session.subscriptions.values()):
        connection.outbox.shorten()
    engine.deadlines.set(connection, now + connection.keep_alive_s if keep_alive_s else None)
    if engine.watcher is not None:
        engine.watcher.connected(connection)
    session.window.resume(now)


def _check_rights(connection: "Connection", packet: Connect, client_id: str, now: float) -> list[str]:
    """Whether the client may have its will, and the subscriptions that it finds: those that it may not. Undecided.

    A session belongs to a client id, which is no secret; what it subscribed to may not be for whoever uses it now.
    """
    engine, rights = connection.engine, connection.rights
    assert rights is not None
    session = engine.sessions.get(client_id)
    found = list(session.subscriptions) if session is not None and not packet.clean_start else []
    try:
        may = rights.subscribe(found, now)
    except Undecided:
        if packet.will is not None:
            rights.publish(packet.will.topic, now)  # ask at the same time
        raise
    if packet.will is not None and not rights.publish(packet.will.topic, now):
        engine.stats.refuse(Action.PUBLISH)
        raise ProtocolError("not authorized to publish the will", ReasonCode.NOT_AUTHORIZED)
    return [filter for filter in found if not may[filter]]


def on_auth(connection: "Connection", packet: Auth, now: float) -> None:
    """AUTH: one step of the exchange that CONNECT began, or of a new one in the connection. Raises Undecided."""
    identity, gate = connection.identity, connection.engine.gate
    if identity is None or gate is None or not identity.method:
        # 5.0 [MQTT-4.12.1-1] re-authentication needs the method of the CONNECT
        raise ProtocolError("AUTH without an authentication method in CONNECT", ReasonCode.PROTOCOL_ERROR)
    if packet.properties.get("authentication_method") != identity.method:  # 5.0 [MQTT-4.12.0-5]
        raise ProtocolError("AUTH with another authentication method than CONNECT", ReasonCode.PROTOCOL_ERROR)
    first = connection.state is State.AUTHENTICATING
    if not identity.asked and not (first and identity.accepted is not None):
        expected = ReasonCode.CONTINUE_AUTHENTICATION if identity.challenged else ReasonCode.RE_AUTHENTICATE
        if packet.reason != expected:
            raise ProtocolError(f"AUTH with reason {packet.reason:#04x}, not {expected:#04x}")
        identity.data = packet.properties.get("authentication_data")
    if not (first and identity.accepted is not None):
        accepted = _exchange(identity, gate.respond if identity.challenged else gate.reauthenticate, now)
        if accepted is None:
            return
        _accept(identity, accepted)
        if not first:
            properties: Properties = {"authentication_method": identity.method}
            if accepted.data is not None:
                properties["authentication_data"] = accepted.data
            connection.answer(Auth(ReasonCode.SUCCESS, properties))
    if first:
        assert identity.connect is not None
        _enter(connection, identity.connect, identity.client_id, now)


def _identity(connection: "Connection", packet: Connect, client_id: str) -> Identity:
    identity = connection.identity = Identity(
        client_id,
        packet.username or "",
        packet.password,
        connection.peer,
        packet.version,
        packet.clean_start,
        packet.keep_alive,
        packet.will,
        packet.properties.get("authentication_method", ""),
        packet.properties.get("authentication_data"),
        connection.tls,
        connection,
        packet,
    )
    return identity


def _exchange(identity: Identity, ask: Callable[[Identity, float], Answer | None], now: float) -> Accepted | None:
    """One question to the gate; None if it led to a challenge. Raises Undecided, ProtocolError if it refuses."""
    connection = identity.connection
    if not identity.asked:
        identity.asked = True
        identity.answer = ask(identity, now)
    if identity.answer is None:
        raise Undecided
    answer, identity.answer = identity.answer, None
    identity.asked = False
    if isinstance(answer, Accepted):
        return answer
    if isinstance(answer, Challenge) and identity.method:
        identity.challenged = True
        properties: Properties = {"authentication_method": identity.method}
        if answer.data is not None:
            properties["authentication_data"] = answer.data
        connection.answer(Auth(ReasonCode.CONTINUE_AUTHENTICATION, properties))  # 5.0 [MQTT-4.12.0-2]
        return None
    identity.password = identity.data = None
    if isinstance(answer, Challenge):
        raise ProtocolError("", ReasonCode.NOT_AUTHORIZED)  # nobody could answer it
    if connection.state is State.CONNECTED:  # DISCONNECT knows no other reason for it
        raise ProtocolError(answer.text, ReasonCode.NOT_AUTHORIZED)
    raise ProtocolError(answer.text, answer.reason)


def _accept(identity: Identity, accepted: Accepted) -> None:
    connection = identity.connection
    engine = connection.engine
    identity.accepted = accepted
    identity.challenged = False
    identity.password = identity.data = None
    if accepted.user is not None:
        identity.user = accepted.user
    connection.user = identity.user
    if connection.rights is not None:
        connection.rights.forget()  # it may be somebody else now
    elif engine.gate is not None:
        connection.rights = Rights(engine.gate, identity, engine.config)
