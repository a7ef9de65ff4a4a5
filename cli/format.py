"""The output formats of ``tidings sub``: payload only, ``-v``, and mosquitto_sub's ``-F`` language.

Bytes out, so that binary payloads stay what they are; nothing here prints. A ``-F`` text is checked and taken apart
once, before anything is received. Where mosquitto_sub 2.0 and 2.1 do the same, so does this, with these differences:

1. A width is a minimum, as the manual says: ``%3p`` and ``%3x`` do not cut the payload (there they do). ``%.3p`` cuts.
2. Widths and maxima of texts count characters, those of the payload bytes.
3. In ``%j`` a payload that is no UTF-8 is ``payload_base64``, and the same for correlation data.
4. ``%J`` keeps the numbers of the payload as they are written.
"""

import base64
import json
import re
import struct
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from paho.mqtt.client import MQTTMessage

from .properties import first, pairs

ESCAPES = {"\\": "\\", "0": "\0", "a": "\a", "e": "\x1b", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
SEPARATORS = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~ "
FIELD = re.compile(
    r"%(?P<left>-?+)(?P<zero>0?+)(?P<width>\d*+)(?:\.(?P<limit>\d*+))?+"
    rf"(?P<separator>[{re.escape(SEPARATORS)}]?+)(?P<letter>.)",
    re.DOTALL,
)
FLOATS = {"f": ("float", "=f"), "d": ("double", "=d")}


class NotPrintable(Exception):
    """The payload is not what the format asks for; the text is for the user."""


class Field(NamedTuple):
    """One ``%`` sequence: ``limit`` is what follows the dot, None without a dot."""

    letter: str
    left: bool
    zero: bool
    width: int
    limit: int | None
    separator: str


Segment = Callable[[MQTTMessage, int, Field], bytes]


class Format:
    """A compiled ``-F`` text. ValueError if it is not in the language, with the place."""

    def __init__(self, text: str) -> None:
        self._parts: list[bytes | tuple[Segment, Field]] = list(_compile(text))

    def render(self, message: MQTTMessage, now_ns: int, complain: Callable[[str], None]) -> bytes:
        """The message as text, without an end of line. ``now_ns``: Unix time of arrival in nanoseconds.

        A sequence that this payload has no value for renders as nothing and is told to ``complain``.
        """
        rendered = []
        for part in self._parts:
            if isinstance(part, bytes):
                rendered.append(part)
                continue
            segment, field = part
            try:
                rendered.append(segment(message, now_ns, field))
            except NotPrintable as error:
                complain(str(error))
        return b"".join(rendered)


def plain(message: MQTTMessage, now_ns: int) -> bytes | None:
    """The payload; None for an empty one, which mosquitto_sub does not print either, not even as an empty line."""
    return bytes(message.payload) or None


def verbose(message: MQTTMessage, now_ns: int) -> bytes:
    """``topic payload``, with ``(null)`` for an empty payload."""
    return message.topic.encode() + b" " + (bytes(message.payload) or b"(null)")


def _compile(text: str) -> Iterable[bytes | tuple[Segment, Field]]:
    position = 0
    while position < len(text):
        character, following = text[position], text[position + 1 : position + 2]
        if character not in "%@\\":
            end = min((i for i in (text.find(c, position) for c in "%@\\") if i >= 0), default=len(text))
            yield text[position:end].encode("utf-8", "surrogateescape")
            position = end
            continue
        if not following:
            raise ValueError(f"-F ends within {character!r}; write {character * 2!r} for the character itself")
        if character == "%":
            match = FIELD.match(text, position)
            if match is None:
                raise ValueError(f"-F ends within {text[position:]!r}")
            yield _sequence(match)
            position = match.end()
            continue
        if character == "@":
            yield (_clock, Field(following, False, False, 0, None, ""))
        elif following in ESCAPES:
            yield ESCAPES[following].encode()
        else:
            known = " ".join(f"\\{each}" for each in ESCAPES)
            raise ValueError(f"-F: {character + following} is no escape; they are {known}")
        position += 2


def _sequence(match: re.Match[str]) -> tuple[Segment, Field]:
    letter, separator, limit = match["letter"], match["separator"], match["limit"]
    segment = SEGMENTS.get(letter)
    if segment is None or (separator and letter not in "xX"):
        raise ValueError(f"-F: {match[0]!r} is no sequence; the letters are {' '.join(SEGMENTS)}")
    bound = None if limit is None else int(limit or 0)
    return segment, Field(letter, bool(match["left"]), bool(match["zero"]), int(match["width"] or 0), bound, separator)


def _clock(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    """``@X`` is strftime's ``%X`` in local time; ``@N`` the nanoseconds, ``@@`` an at sign."""
    if field.letter == "@":
        return b"@"
    if field.letter == "N":
        return b"%09d" % (now_ns % 1_000_000_000)
    return _strftime(f"%{field.letter}", now_ns).encode("utf-8", "surrogateescape")


def _strftime(template: str, now_ns: int) -> str:
    return time.strftime(template, time.localtime(now_ns // 1_000_000_000))


def _padded(text: str, field: Field, fill: str = " ") -> str:
    return text.ljust(field.width) if field.left else text.rjust(field.width, fill)


def _number(value: int | None, field: Field) -> bytes:
    return _padded("" if value is None else str(value), field, "0" if field.zero else " ").encode()


def _text(value: str | None, field: Field) -> bytes:
    return _padded((value or "")[: field.limit], field).encode()


def _payload(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    payload = bytes(message.payload)[: field.limit]
    return payload.ljust(field.width) if field.left else payload.rjust(field.width, b"0" if field.zero else b" ")


def _hexadecimal(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    """``%x`` and ``%X``; ``.N`` puts the separator (a space unless it is given) after every N digits."""
    digits = bytes(message.payload).hex()
    if field.letter == "X":
        digits = digits.upper()
    if field.limit:
        groups = (digits[start : start + field.limit] for start in range(0, len(digits), field.limit))
        digits = (field.separator or " ").join(groups)
    return _padded(digits, field, "0" if field.zero else " ").encode()


def _float(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    """``%f`` and ``%d``: the payload is a float or double of this machine; ``.N`` digits after the point."""
    name, layout = FLOATS[field.letter]
    payload = bytes(message.payload)
    if len(payload) != struct.calcsize(layout):
        size_bytes = struct.calcsize(layout)
        raise NotPrintable(f"Error: the payload on {message.topic} has {len(payload)} bytes, a {name} has {size_bytes}")
    text = f"{struct.unpack(layout, payload)[0]:.{6 if field.limit is None else field.limit}f}"
    return (text.zfill(field.width) if field.zero and not field.left else _padded(text, field)).encode()


def _user_properties(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    found = (value for name, value in pairs(message.properties) if name == "user-property")
    return " ".join(f"{name}:{value}" for name, value in found).encode()


def _iso_8601(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    return _text(_strftime("%Y-%m-%dT%H:%M:%S%z", now_ns), field)


def _unix_time(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    return b"%d.%09d" % divmod(now_ns, 1_000_000_000)


def compact(value: Any) -> str:
    """``value`` as JSON on one line, UTF-8 as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _object(members: Iterable[tuple[str, str]]) -> str:
    """A JSON object of (name, JSON text); a name may repeat, as mosquitto_sub writes user properties."""
    return "{" + ",".join(f"{compact(name)}:{text}" for name, text in members) + "}"


def text_or_base64(name: str, value: bytes) -> tuple[str, str]:
    """A JSON member for bytes: ``name`` and a string if they are UTF-8, otherwise ``name_base64``. Loses nothing."""
    try:
        return name, value.decode()
    except UnicodeDecodeError:
        return f"{name}_base64", base64.b64encode(value).decode()


def _json(message: MQTTMessage, now_ns: int, field: Field) -> bytes:
    """``%j``, the payload as a string, and ``%J``, the payload as the JSON that it is; mosquitto_sub's members."""
    payload = bytes(message.payload)
    time_text = _strftime(f"%Y-%m-%dT%H:%M:%S.{now_ns // 1000 % 1_000_000:06d}Z%z", now_ns)
    members = [
        ("tst", compact(time_text)),
        ("topic", compact(message.topic)),
        ("qos", str(message.qos)),
        ("retain", str(int(message.retain))),
        ("payloadlen", str(len(payload))),
    ]
    if message.qos:
        members.append(("mid", str(message.mid)))
    properties = pairs(message.properties)
    if properties:
        members.append(("properties", _object(_json_properties(properties))))
    if not payload:
        members.append(("payload", "null"))
    elif field.letter == "j":
        name, text = text_or_base64("payload", payload)
        members.append((name, compact(text)))
    else:
        members.append(("payload", _embedded(message.topic, payload)))
    return _object(members).encode()


def _json_properties(properties: list[tuple[str, Any]]) -> Iterable[tuple[str, str]]:
    user = _object((value[0], compact(value[1])) for name, value in properties if name == "user-property")
    for name, value in properties:
        if name == "user-property":
            if user:
                yield "user-properties", user
                user = ""
        elif isinstance(value, bytes):
            named, text = text_or_base64(name, value)
            yield named, compact(text)
        else:
            yield name, compact(value)


def _embedded(topic: str, payload: bytes) -> str:
    """The payload as part of a line of JSON, unchanged but for line breaks, which JSON has only between tokens."""
    try:
        text = payload.decode()
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise NotPrintable(f"Error: Message payload is not valid JSON on topic {topic}.") from None
    return text.strip().replace("\r", " ").replace("\n", " ")


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


SEGMENTS: dict[str, Segment] = {
    "%": lambda message, now_ns, field: b"%",
    "A": lambda message, now_ns, field: _number(first(message.properties, "topic-alias"), field),
    "C": lambda message, now_ns, field: _text(first(message.properties, "content-type"), field),
    "D": lambda message, now_ns, field: first(message.properties, "correlation-data") or b"",
    "d": _float,
    "E": lambda message, now_ns, field: _number(first(message.properties, "message-expiry-interval"), field),
    "F": lambda message, now_ns, field: _number(first(message.properties, "payload-format-indicator"), field),
    "f": _float,
    "I": _iso_8601,
    "j": _json,
    "J": _json,
    "l": lambda message, now_ns, field: _number(len(message.payload), field),
    "m": lambda message, now_ns, field: _number(message.mid, field),
    "P": _user_properties,
    "p": _payload,
    "q": lambda message, now_ns, field: b"%d" % message.qos,
    "R": lambda message, now_ns, field: _text(first(message.properties, "response-topic"), field),
    "r": lambda message, now_ns, field: b"%d" % message.retain,
    "S": lambda message, now_ns, field: _number(first(message.properties, "subscription-identifier"), field),
    "t": lambda message, now_ns, field: _text(message.topic, field),
    "U": _unix_time,
    "x": _hexadecimal,
    "X": _hexadecimal,
}
