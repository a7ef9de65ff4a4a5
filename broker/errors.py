"""Every exception that tidings raises on purpose.

    TidingsError
    ├── ConfigError            an option, file or URL that cannot be used; the text says what, where and what to do
    ├── StoreError             the store cannot be opened, read or written
    ├── BrokerError            the broker cannot do what the embedding program asked for
    └── ProtocolError          the peer broke MQTT; ``reason`` is the ReasonCode to answer with
        ├── MalformedPacket    0x81  bytes that are no MQTT packet
        ├── PacketTooLarge     0x95  more bytes than we said we take
        └── UnsupportedVersion 0x84  CONNECT with a protocol name or level that we do not speak

A ``ProtocolError`` is always the peer's doing: hostile bytes never surface as IndexError, struct.error or
UnicodeDecodeError. It becomes a CONNACK or DISCONNECT in one place, ``Engine.fail``.
"""

from typing import Final

MAX_MESSAGE: Final = 300


class TidingsError(Exception):
    """Root of the tree above."""


class ConfigError(TidingsError):
    """An option, a configuration file or a URL is wrong."""


class StoreError(TidingsError):
    """The store cannot be opened, read or written."""


class BrokerError(TidingsError):
    """The embedding program asked for something that the broker cannot do now."""


class ProtocolError(TidingsError):
    """The peer sent something that MQTT forbids; ``reason`` is the code to close the connection with.

    Default 0x82 Protocol Error, `5.0 [MQTT-4.13.1-1]`. The text goes to the log and to the peer and may quote what it
    sent, so it is cut to ``MAX_MESSAGE`` characters.
    """

    reason: int = 0x82

    def __init__(self, message: str, reason: int | None = None) -> None:
        super().__init__(message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…")
        if reason is not None:
            self.reason = reason


class MalformedPacket(ProtocolError):
    """The bytes cannot be parsed as the packet they claim to be (5.0 section 1.2)."""

    reason = 0x81


class PacketTooLarge(ProtocolError):
    """The packet is longer than the Maximum Packet Size that we announced, `5.0 [MQTT-3.2.2-15]`."""

    reason = 0x95


class UnsupportedVersion(ProtocolError):
    """CONNECT names a protocol that we do not speak.

    ``level`` is the byte that the peer sent, so that the refusal can be written in the form it understands.
    """

    reason = 0x84

    def __init__(self, message: str, level: int) -> None:
        super().__init__(message)
        self.level = level
