"""SUBSCRIBE and UNSUBSCRIBE."""

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..codec.packets import (
    MQTT_5_0,
    NO_PROPERTIES,
    Suback,
    Subscribe,
    SubscribeFilter,
    Unsuback,
    Unsubscribe,
)
from ..codec.reasons import ReasonCode
from ..errors import ProtocolError
from ..policy import choose, newest_only
from .ports import Action
from .topics import Grant, check_filter, grant_for, max_weight, weight

if TYPE_CHECKING:
    from .connection import Connection


def on_subscribe(connection: "Connection", packet: Subscribe, now: float) -> None:
    """SUBSCRIBE: each filter on its own merits, SUBACK, then the retained messages."""
    session, engine = connection.session, connection.engine
    assert session is not None
    denied: set[str] = set()
    if connection.rights is not None:
        may = connection.rights.subscribe(_legal(packet, engine.config.max_topic_levels), now)
        denied = {filter for filter in may if not may[filter]}
    since = len(engine.changes)
    identifiers = tuple(packet.properties.get("subscription_identifier", ()))
    reasons: list[int] = []
    why = NO_PROPERTIES
    asked = packet.properties.get("user_property", ())
    granted: list[tuple[SubscribeFilter, Grant, bool]] = []
    for wanted in packet.filters:
        new = wanted.filter not in session.subscriptions
        try:
            check_filter(wanted.filter, engine.config.max_topic_levels)
            if wanted.no_local and wanted.filter.startswith("$share/"):  # 5.0 [MQTT-3.8.3-4]
                raise ProtocolError("No Local on a shared subscription", ReasonCode.PROTOCOL_ERROR)
            if wanted.filter in denied:
                engine.stats.refuse(Action.SUBSCRIBE)
                raise ProtocolError("not authorized", ReasonCode.NOT_AUTHORIZED)
            if new and len(session.subscriptions) >= engine.config.max_subscriptions:
                raise ProtocolError("too many subscriptions in this session", ReasonCode.QUOTA_EXCEEDED)
            if new and session.weight + weight(wanted.filter) > max_weight(engine.config):
                raise ProtocolError("the filters of this session are too long", ReasonCode.QUOTA_EXCEEDED)
            durable = session.window.changes is not None
            policy = choose(asked, engine.config.policies, wanted.filter, session.client_id, connection.user, durable)
        except ProtocolError as error:
            if error.reason == ReasonCode.PROTOCOL_ERROR:
                raise
            engine.log.info("%.200r may not subscribe to %.200r: %s", session.client_id, wanted.filter, error)
            # 3.1.1 [MQTT-3.9.3-2] knows one code for every failure
            reasons.append(error.reason if connection.version == MQTT_5_0 else 0x80)
            why = connection.why(error)
            continue
        grant = grant_for(wanted.qos, wanted.no_local, wanted.retain_as_published, identifiers, policy)
        grant = engine.subscribe(session, wanted.filter, grant)
        if newest_only(grant.policy):
            connection.outbox.shorten()
        reasons.append(wanted.qos)
        granted.append((wanted, grant, new))
    if granted:
        engine.save(session)
    if engine.watcher is not None:
        for wanted, grant, _ in granted:
            engine.watcher.subscribed(session.client_id, wanted.filter, grant.qos)
    connection.answer(Suback(packet.packet_id, reasons, why), since)
    retained: dict[str, Grant] = {}  # a filter that stands there a thousand times is looked up once
    for wanted, grant, new in granted:
        if grant.share is None and (wanted.retain_handling == 0 or (wanted.retain_handling == 1 and new)):
            retained[wanted.filter] = grant
    if retained:
        for filter, grant in retained.items():
            engine.handout.add(session, filter, grant)
        engine.handout.begin(now)


def _legal(packet: Subscribe, max_levels: int) -> Iterator[str]:
    """The filters that are ones: the gate is not asked about the others."""
    for wanted in packet.filters:
        with suppress(ProtocolError):
            check_filter(wanted.filter, max_levels)
            yield wanted.filter


def on_unsubscribe(connection: "Connection", packet: Unsubscribe, now: float) -> None:
    """UNSUBSCRIBE."""
    session, engine = connection.session, connection.engine
    assert session is not None
    since = len(engine.changes)
    reasons: list[int] = []
    for filter in packet.filters:
        known = engine.unsubscribe(session, filter, now)
        if engine.watcher is not None:
            engine.watcher.unsubscribed(session.client_id, filter)
        reasons.append(ReasonCode.SUCCESS if known else ReasonCode.NO_SUBSCRIPTION_EXISTED)
    engine.save(session)
    connection.answer(Unsuback(packet.packet_id, reasons if connection.version == MQTT_5_0 else []), since)
