"""Hypothesis strategies for every packet of every version. Drawn packets can be encoded and come back equal."""

from typing import Any, Literal, cast

from hypothesis import strategies as st

from tidings.broker.codec import (
    LEGAL,
    MQTT_3_1,
    MQTT_5_0,
    NO_PROPERTIES,
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    PacketType,
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
    Unsuback,
    Unsubscribe,
    Will,
)
from tidings.broker.codec.properties import BINARY, BYTE, PAIR, TABLE, TOPIC, U16, U32, UTF8, VARINT, WILL, Spec

Side = Literal["server", "client"]

versions = st.sampled_from([3, 4, 5])
qualities = st.integers(0, 2)
packet_ids = st.integers(1, 65535)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
topics = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=12)
filters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
payloads = st.one_of(st.binary(max_size=40), st.integers(100, 20_000).map(bytes))

_VALUES: dict[int, st.SearchStrategy[Any]] = {
    id(BYTE): st.integers(0, 1),
    id(U16): st.integers(1, 0xFFFF),
    id(U32): st.integers(1, 0xFFFF_FFFF),
    id(VARINT): st.integers(1, 268_435_455),
    id(UTF8): texts,
    id(TOPIC): topics,
    id(BINARY): st.binary(max_size=12),
    id(PAIR): st.tuples(texts, texts),
}


def _values(spec: Spec, place: int) -> st.SearchStrategy[Any]:
    one = _VALUES[id(spec.type)]
    return st.lists(one, min_size=1, max_size=3 if place in spec.repeats else 1) if spec.listed else one


def properties(place: int, *without: str) -> st.SearchStrategy[Properties]:
    """Any legal properties for a place; ``authentication_data`` never comes without its method."""

    def fill(found: dict[str, Any]) -> Properties:
        if "authentication_data" in found:
            found.setdefault("authentication_method", "M")
        return cast(Properties, found) if found else NO_PROPERTIES

    rows = [spec for spec in TABLE if place in spec.places and spec.name not in without]
    optional = {spec.name: _values(spec, place) for spec in rows}
    return st.one_of(st.just(NO_PROPERTIES), st.fixed_dictionaries({}, optional=optional).map(fill))


def _properties(version: int, place: int, *without: str) -> st.SearchStrategy[Properties]:
    return properties(place, *without) if version == MQTT_5_0 else st.just(NO_PROPERTIES)


def _reasons(version: int, place: PacketType) -> st.SearchStrategy[int]:
    return st.sampled_from(sorted(LEGAL[place])) if version == MQTT_5_0 else st.just(0)


@st.composite
def connects(draw: st.DrawFn, version: int) -> Connect:
    username = draw(st.none() | texts)
    may_have_password = version == MQTT_5_0 or username is not None
    wills = st.builds(Will, topics, st.binary(max_size=12), qualities, st.booleans(), _properties(version, WILL))
    return Connect(
        draw(texts),
        version,
        draw(st.booleans()),
        draw(st.integers(0, 65535)),
        username,
        draw(st.none() | st.binary(max_size=12)) if may_have_password else None,
        draw(st.none() | wills),
        draw(_properties(version, PacketType.CONNECT)),
    )


@st.composite
def connacks(draw: st.DrawFn, version: int) -> Connack:
    reason = draw(_reasons(version, PacketType.CONNACK) if version == MQTT_5_0 else st.integers(0, 5))
    present = not reason and version != MQTT_3_1 and draw(st.booleans())
    return Connack(present, reason, draw(_properties(version, PacketType.CONNACK)))


@st.composite
def publishes(draw: st.DrawFn, version: int, side: Side) -> Publish:
    qos = draw(qualities)
    without = ("subscription_identifier",) if side == "server" else ()
    found = draw(_properties(version, PacketType.PUBLISH, *without))
    topic = "" if "topic_alias" in found and draw(st.booleans()) else draw(topics)
    dup = bool(qos) and draw(st.booleans())
    return Publish(topic, draw(payloads), qos, draw(st.booleans()), dup, draw(packet_ids) if qos else 0, found)


def acknowledgements(version: int) -> st.SearchStrategy[Packet]:
    kinds: list[tuple[Any, PacketType]] = [
        (Puback, PacketType.PUBACK),
        (Pubrec, PacketType.PUBREC),
        (Pubrel, PacketType.PUBREL),
        (Pubcomp, PacketType.PUBCOMP),
    ]
    return st.one_of(
        [st.builds(kind, packet_ids, _reasons(version, place), _properties(version, place)) for kind, place in kinds]
    )


@st.composite
def subscribes(draw: st.DrawFn, version: int) -> Subscribe:
    entries: list[SubscribeFilter] = []
    for name in draw(st.lists(filters, min_size=1, max_size=4)):
        entry = SubscribeFilter(name, draw(qualities))
        if version == MQTT_5_0:
            entry.no_local = not name.startswith("$share/") and draw(st.booleans())
            entry.retain_as_published = draw(st.booleans())
            entry.retain_handling = draw(st.integers(0, 2))
        entries.append(entry)
    return Subscribe(draw(packet_ids), entries, draw(_properties(version, PacketType.SUBSCRIBE)))


def subacks(version: int) -> st.SearchStrategy[Suback]:
    codes = sorted(LEGAL[PacketType.SUBACK]) if version == MQTT_5_0 else [0, 1, 2, 0x80]
    reasons = st.lists(st.sampled_from(codes), min_size=1, max_size=4)
    return st.builds(Suback, packet_ids, reasons, _properties(version, PacketType.SUBACK))


def unsubscribes(version: int) -> st.SearchStrategy[Unsubscribe]:
    names = st.lists(filters, min_size=1, max_size=4)
    return st.builds(Unsubscribe, packet_ids, names, _properties(version, PacketType.UNSUBSCRIBE))


def unsubacks(version: int) -> st.SearchStrategy[Unsuback]:
    codes = st.sampled_from(sorted(LEGAL[PacketType.UNSUBACK]))
    reasons = st.lists(codes, min_size=1, max_size=4) if version == MQTT_5_0 else st.just([])
    return st.builds(Unsuback, packet_ids, reasons, _properties(version, PacketType.UNSUBACK))


def disconnects(version: int, side: Side) -> st.SearchStrategy[Disconnect]:
    without = ("session_expiry_interval",) if side == "client" else ()
    found = _properties(version, PacketType.DISCONNECT, *without)
    return st.builds(Disconnect, _reasons(version, PacketType.DISCONNECT), found)


@st.composite
def auths(draw: st.DrawFn) -> Auth:
    reason = draw(_reasons(MQTT_5_0, PacketType.AUTH))
    found = draw(properties(PacketType.AUTH))
    if reason or found:
        found = {**found, "authentication_method": draw(texts)}
    return Auth(reason, found)


def packets(version: int, side: Side) -> st.SearchStrategy[Packet]:
    """Any packet that ``side`` may receive, except CONNECT, which only opens a connection."""
    kinds: list[st.SearchStrategy[Any]] = [publishes(version, side), acknowledgements(version)]
    if side == "server":
        kinds += subscribes(version), unsubscribes(version), st.builds(Pingreq), disconnects(version, side)
    else:
        kinds += connacks(version), subacks(version), unsubacks(version), st.builds(Pingresp)
        if version == MQTT_5_0:
            kinds.append(disconnects(version, side))
    if version == MQTT_5_0:
        kinds.append(auths())
    return st.one_of(kinds)


def streams(version: int, side: Side) -> st.SearchStrategy[list[Packet]]:
    """What may arrive on one connection, in order; at a server it begins with CONNECT."""
    rest = st.lists(packets(version, side), max_size=6)
    if side == "client":
        return rest
    return st.tuples(connects(version), rest).map(lambda drawn: [drawn[0], *drawn[1]])


sides: st.SearchStrategy[Side] = st.sampled_from(["server", "client"])
connections = st.tuples(versions, sides).flatmap(
    lambda drawn: st.tuples(st.just(drawn[0]), st.just(drawn[1]), streams(drawn[0], drawn[1]))
)
"""(version, side, packets) of any connection."""
