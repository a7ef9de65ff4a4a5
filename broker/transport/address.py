"""Where a listener listens, as a URL says it."""

import ipaddress
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from ..errors import ConfigError

# Those of tcp and tls are registered with IANA for mqtt and secure-mqtt; those of ws and wss are what brokers commonly
# use and clients offer first.
DEFAULT_PORTS: Final = {"tcp": 1883, "tls": 8883, "ws": 8083, "wss": 8084}
ALIASES: Final = {"mqtt": "tcp", "mqtts": "tls"}
EXPECTED: Final = "expected tcp://, tls://, ws:// or wss:// with HOST:PORT, or unix:///PATH"


@dataclass(slots=True, frozen=True)
class Address:
    """``scheme`` is tcp, tls, ws, wss or unix; ``path`` that of the socket file (unix) or of the URL (ws and wss)."""

    scheme: str = "tcp"
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.scheme == "unix" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS comes first."""
        return self.scheme in ("tls", "wss")

    @property
    def is_websocket(self) -> bool:
        """Whether MQTT comes in WebSocket frames."""
        return self.scheme in ("ws", "wss")

    def with_port(self, port: int) -> "Address":
        """The same with the port that the system chose."""
        return replace(self, port=port)


def parse_address(url: str) -> Address:
    """The address that ``url`` names; raises ConfigError that says what is wrong.

    Without a port it is 1883 (tcp), 8883 (tls), 8083 (ws) or 8084 (wss); port 0 stands for any free one.
    """
    expected = f"listener {url!r}: {EXPECTED}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{expected} ({error})") from None
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(expected)
    scheme = ALIASES.get(parts.scheme, parts.scheme)
    if scheme == "unix":
        if parts.netloc or not parts.path.strip("/"):
            raise ConfigError(f"{expected}; a path needs three slashes, as in unix:///tmp/tidings.sock")
        return Address("unix", path=parts.path)
    if scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ConfigError(expected)
    address = Address(scheme, parts.hostname, DEFAULT_PORTS[scheme] if port is None else port)
    if parts.path.strip("/"):
        if not address.is_websocket:
            raise ConfigError(f"{expected}; only ws:// and wss:// have a path")
        return replace(address, path=parts.path)
    return address
