"""One message as one line of JSON: what ``tidings sub --json`` prints and ``tidings pub --json`` publishes.

    {"tst": "2026-11-24T02:01:15.191301+00:00", "topic": "a/b", "qos": 1, "retain": 0, "payloadlen": 5, "mid": 7,
     "properties": {"content-type": "text/plain", "user-properties": [["k", "v"], ["k", "w"]]}, "payload": "hello"}

``payload`` is a string, or ``payload_base64`` stands in its place where the bytes are no UTF-8; likewise
``correlation-data``. Nothing is lost: ``parse(dump(message))`` is the message, user properties in their order.

``tst``, ``payloadlen`` and ``mid``, and the properties ``topic-alias`` and ``subscription-identifier`` tell how a
message arrived; ``parse`` accepts and ignores them, since they mean nothing to the next connection.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from .format import compact, text_or_base64
from .properties import add, check_string, new, pairs

MEMBERS = frozenset({"topic", "qos", "retain", "properties", "payload", "payload_base64"})
OF_ARRIVAL = frozenset({"tst", "payloadlen", "mid"})
PROPERTIES_OF_ARRIVAL = frozenset({"topic-alias", "subscription-identifier"})


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


def dump(message: MQTTMessage, now_ns: int) -> bytes:
    """The line for a received message, without its end; ``now_ns``: Unix time of arrival in nanoseconds."""
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).astimezone()
    payload = bytes(message.payload)
    line: dict[str, Any] = {
        "tst": moment.replace(microsecond=now_ns // 1000 % 1_000_000).isoformat(timespec="microseconds"),
        "topic": message.topic,
        "qos": message.qos,
        "retain": int(message.retain),
        "payloadlen": len(payload),
    }
    if message.qos:
        line["mid"] = message.mid
    properties: dict[str, Any] = {}
    for name, value in pairs(message.properties):
        if name == "user-property":
            properties.setdefault("user-properties", []).append(value)
        elif name == "subscription-identifier":
            properties.setdefault(name, []).append(value)
        elif isinstance(value, bytes):
            named, text = text_or_base64(name, value)
            properties[named] = text
        else:
            properties[name] = value
    if properties:
        line["properties"] = properties
    name, text = text_or_base64("payload", payload)
    line[name] = text
    return compact(line).encode()


def parse(line: bytes, default: Publication) -> Publication:
    """The message of one line; ``default`` has what the line leaves out. ValueError says what is wrong."""
    try:
        members = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: too deep") from None
    if not isinstance(members, dict):
        raise ValueError("not a JSON object")
    unknown = members.keys() - MEMBERS - OF_ARRIVAL
    if unknown:
        raise ValueError(f"{min(unknown)!r} is no member of a message; they are {', '.join(sorted(MEMBERS))}")
    topic = members.get("topic", default.topic)
    if not isinstance(topic, str) or not topic:
        raise ValueError("no topic; give 'topic' or -t")
    if "+" in topic or "#" in topic:
        raise ValueError(f"topic {topic!r} has a wildcard")
    qos, retain = members.get("qos", default.qos), members.get("retain", default.retain)
    if isinstance(qos, bool) or qos not in (0, 1, 2):
        raise ValueError(f"qos is 0, 1 or 2, not {qos!r}")
    if retain not in (0, 1, False, True):
        raise ValueError(f"retain is 0 or 1, not {retain!r}")
    properties = default.properties
    if "properties" in members:
        properties = _properties(members["properties"])
    return Publication(check_string(topic, "topic"), _payload(members), int(qos), bool(retain), properties)


def _payload(members: dict[str, Any]) -> bytes:
    if "payload_base64" not in members:
        return _encoded("payload", members.get("payload", ""))
    if "payload" in members:
        raise ValueError("payload and payload_base64 exclude each other")
    return _decoded("payload_base64", members["payload_base64"])


def _encoded(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{name} is a string, not {value!r:.40}")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a surrogate, which is no character; {name}_base64 is for bytes") from None


def _decoded(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(value.encode() if isinstance(value, str) else b"?", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{name} is not base64") from None


def _properties(members: object) -> Properties | None:
    if not isinstance(members, dict):
        raise ValueError("properties is an object")
    properties = new(PacketTypes.PUBLISH)
    for name, value in members.items():
        if name == "user-properties":
            if not isinstance(value, list):
                raise ValueError("user-properties is a list of [name, value]")
            for pair in value:
                if isinstance(pair, str):
                    raise ValueError("user-properties is a list of [name, value]")
                add(properties, "user-property", pair)
        elif name == "correlation-data_base64":
            add(properties, "correlation-data", _decoded(name, value))
        elif name == "correlation-data":
            add(properties, name, _encoded(name, value))
        elif name not in PROPERTIES_OF_ARRIVAL:
            add(properties, name, value)
    return properties if pairs(properties) else None
