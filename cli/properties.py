"""MQTT 5.0 properties as text: the ``-D COMMAND NAME VALUE`` option and the property objects of JSON lines.

paho-mqtt knows the 27 properties, their types and the packets that may carry them; the names used here are the ones of
the specification in lower case with hyphens, as mosquitto spells them. Nothing here sends anything.

Invariant: what ``add`` accepted, paho can put on the wire.
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from paho.mqtt import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Kind(NamedTuple):
    """One property: paho's attribute name, paho's name of its type, and the packet types that may carry it."""

    attribute: str
    type: str
    packets: list[int]


def new(packet_type: int) -> Properties:
    """No properties yet, for a packet of this type (``PacketTypes``)."""
    return Properties(packet_type)  # type: ignore[no-untyped-call]


def unpacked(packet_type: int, data: bytes) -> Properties:
    """The properties that ``data`` starts with, length first. Raises what paho raises for malformed ones."""
    properties = new(packet_type)
    properties.unpack(data)  # type: ignore[no-untyped-call]
    return properties


def packed_bytes(properties: Properties | None) -> int:
    """How many bytes the properties take in a packet, their length field included."""
    return 1 if properties is None else len(properties.pack())  # type: ignore[no-untyped-call]


def _kinds() -> dict[str, Kind]:
    paho = new(PacketTypes.PUBLISH)
    kinds = {}
    for name, identifier in paho.names.items():
        type_index, packets = paho.properties[identifier]
        kinds[name.lower().replace(" ", "-")] = Kind(name.replace(" ", ""), paho.types[type_index], packets)
    return kinds


KINDS = _kinds()
REPEATABLE = frozenset({"user-property", "subscription-identifier"})
HYPHENATED = {kind.attribute: name for name, kind in KINDS.items()}
LARGEST = {
    "Byte": 0xFF,
    "Two Byte Integer": 0xFFFF,
    "Four Byte Integer": 0xFFFF_FFFF,
    "Variable Byte Integer": 268_435_455,
}
COMMANDS = {
    "connect": PacketTypes.CONNECT,
    "will": PacketTypes.WILLMESSAGE,
    "publish": PacketTypes.PUBLISH,
    "subscribe": PacketTypes.SUBSCRIBE,
    "unsubscribe": PacketTypes.UNSUBSCRIBE,
    "disconnect": PacketTypes.DISCONNECT,
}


def check_string(text: str, what: str) -> str:
    """``text`` if it can be an MQTT string, else ValueError: well-formed, no U+0000, at most 65,535 bytes.

    `5.0 [MQTT-1.5.4-1]`, `5.0 [MQTT-1.5.4-2]`; the length field has two bytes (5.0 section 1.5.4).
    """
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{what} has a null character")
    if size_bytes > 0xFFFF:
        raise ValueError(f"{what} has {size_bytes:,} bytes, more than the 65,535 of an MQTT string")
    return text


def add(properties: Properties, name: str, value: object) -> None:
    """Set one property by its hyphenated name, or append to one that may repeat.

    ``value``: int, str, bytes (correlation-data, authentication-data) or a (name, value) pair of str (user-property).
    ValueError says what is wrong: an unknown name, another packet's property, a wrong type or range, a repetition.
    """
    kind = KINDS.get(name)
    if kind is None:
        known = sorted(name for name, kind in KINDS.items() if properties.packetType in kind.packets)
        raise ValueError(f"there is no property {name!r}; this packet has {', '.join(known)}")
    if properties.packetType not in kind.packets:
        raise ValueError(f"{name} is not a property of {PacketTypes.Names[properties.packetType]}")
    if hasattr(properties, kind.attribute) and name not in REPEATABLE:
        raise ValueError(f"{name} is given twice")
    try:
        setattr(properties, kind.attribute, _checked(name, kind.type, value))
    except MQTTException as error:
        raise ValueError(str(error)) from None


def _checked(name: str, type_name: str, value: object) -> object:
    if type_name in LARGEST:
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST[type_name]:
            return value
        raise ValueError(f"{name} is a whole number from 0 to {LARGEST[type_name]:,}, not {value!r}")
    if type_name == "Binary Data":
        if isinstance(value, bytes) and len(value) <= 0xFFFF:
            return value
        raise ValueError(f"{name} is at most 65,535 bytes")
    if type_name == "UTF-8 String Pair":
        if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(part, str) for part in value):
            return tuple(check_string(part, f"a part of {name}") for part in value)
        raise ValueError(f"{name} is a pair of strings, not {value!r}")
    if isinstance(value, str):
        return check_string(value, name)
    raise ValueError(f"{name} is a string, not {value!r}")


def add_text(properties: Properties, name: str, text: str) -> None:
    """``add`` a value as it stands on a command line; a user property as ``name NUL value``. Raises ValueError."""
    type_name = KINDS[name].type if name in KINDS else ""
    if type_name in LARGEST:
        try:
            add(properties, name, int(text, 10))
        except ValueError as error:
            if text.strip("+-0123456789"):
                raise ValueError(f"{name} is a whole number, not {text!r}") from None
            raise error from None
    elif type_name == "Binary Data":
        add(properties, name, os.fsencode(text))
    elif type_name == "UTF-8 String Pair":
        add(properties, name, text.split("\0"))
    else:
        add(properties, name, text)


def pairs(properties: Properties | None) -> list[tuple[str, Any]]:
    """(hyphenated name, value) for each property, in wire order; one that repeats comes once for each value."""
    found: list[tuple[str, Any]] = []
    for attribute, value in vars(properties).items() if properties is not None else ():
        name = HYPHENATED.get(attribute)
        if name is not None:
            found += [(name, each) for each in value] if isinstance(value, list) else [(name, value)]
    return found


def first(properties: Properties | None, name: str) -> Any:
    """The (first) value of a property by its hyphenated name, or None."""
    value = getattr(properties, KINDS[name].attribute, None)
    return value[0] if isinstance(value, list) else value


class PropertyOption(click.Option):
    """``-D COMMAND NAME VALUE``, or ``-D COMMAND user-property NAME VALUE``, any number of times.

    click options take a fixed number of values; this one takes a fourth if the second is ``user-property`` and joins
    the last two with NUL, which no command line can contain. In an environment variable: one property a line, quoted
    as in a shell.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "nargs": 3, "multiple": True, "metavar": "COMMAND NAME VALUE"})

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        option = parser._short_opt["-D"]
        store = option.process

        def process(value: Any, state: Any) -> None:
            if isinstance(value, tuple) and value[1] == "user-property":
                if not state.rargs:
                    raise click.BadOptionUsage("-D", "Option '-D' needs a name and a value for user-property.", ctx)
                value = (value[0], value[1], f"{value[2]}\0{state.rargs.pop(0)}")
            store(value, state)

        option.process = process

    def value_from_envvar(self, ctx: click.Context) -> Any:
        text = self.resolve_envvar_value(ctx)
        if text is None:
            return None
        found = []
        for line in filter(str.strip, text.splitlines()):
            words = shlex.split(line)
            if len(words) != (4 if words[1:2] == ["user-property"] else 3):
                raise click.BadParameter(f"not COMMAND NAME VALUE: {line!r}", ctx, self)
            found.append((words[0], words[1], "\0".join(words[2:])))
        return found


def by_command(given: Sequence[tuple[str, str, str]], allowed: Sequence[str]) -> dict[str, Properties]:
    """The values of ``PropertyOption`` as one Properties for each command named; raises click.UsageError."""
    found: dict[str, Properties] = {}
    for command, name, value in given:
        if command not in allowed:
            raise click.UsageError(f"-D {command}: the commands are {', '.join(allowed)}.")
        if (command, name) == ("publish", "subscription-identifier"):
            # 5.0 [MQTT-3.3.4-6]
            raise click.UsageError("-D publish subscription-identifier: only a server sends it; use -D subscribe.")
        properties = found.setdefault(command, new(COMMANDS[command]))
        try:
            add_text(properties, name, value)
        except ValueError as error:
            raise click.UsageError(f"-D {command} {name}: {error}.") from None
    return found
