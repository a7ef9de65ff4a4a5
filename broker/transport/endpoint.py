"""One listener as its settings describe it, checked: address, TLS, PROXY protocol, and which web pages may come."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..listener import Listener
from .address import Address, parse_address
from .tls import Tls

if TYPE_CHECKING:
    from ..config import Config

log: Final = logging.getLogger("tidings.broker")

ALPN_MQTT: Final = "mqtt"  # registered with IANA
ALPN_HTTP: Final = "http/1.1"  # what a WebSocket handshake is


class Endpoint:
    """``address``, ``tls`` (None without), ``proxied``, and ``admits`` for WebSocket. Raises ConfigError."""

    def __init__(self, listener: Listener | str) -> None:
        settings = Listener(url=listener) if isinstance(listener, str) else listener
        self.address = address = parse_address(settings.url)
        self.proxied = settings.proxy_protocol
        self.identifies = settings.client_certificates == "required"
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.origins)
        where = f"listener {settings.url!r}"
        if not address.is_encrypted:
            for key in ("certfile", "keyfile", "cafile", "server_names"):
                if getattr(settings, key):
                    raise ConfigError(f"{where}: {key} is for tls:// and wss://")
            if settings.client_certificates != "none":
                raise ConfigError(f"{where}: client_certificates is for tls:// and wss://")
        if settings.origins and not address.is_websocket:
            raise ConfigError(f"{where}: origins is for ws:// and wss://")
        if self.proxied and address.scheme == "unix":
            raise ConfigError(f"{where}: proxy_protocol is for addresses with a port")
        self.tls = Tls(settings, ALPN_HTTP if address.is_websocket else ALPN_MQTT) if address.is_encrypted else None

    def become(self, other: "Endpoint") -> None:
        """From now on, connections are made as ``other``, of the same address, has it."""
        self.identifies = other.identifies
        self.tls = other.tls
        self._origins = other._origins

    def admits(self, origin: str | None, host: str) -> bool:
        """Whether a WebSocket handshake from a page of ``origin`` (None: not from a browser) to ``host`` is welcome.

        Without a list a page may only speak to the server that it came from; and to a listener on loopback only under
        a loopback name, or any page could point a name of its own at this machine.
        """
        if origin is None or "*" in self._origins:
            return True
        origin = origin.lower()
        if self._origins:
            return origin in self._origins
        try:
            theirs, ours = urlsplit(origin), urlsplit(f"//{host.lower()}")
            same = theirs.netloc == ours.netloc and bool(ours.hostname)
        except ValueError:
            return False
        return same and (not self.address.is_local or Address(host=ours.hostname or "").is_local)


def replacements(endpoints: "Sequence[Endpoint]", listeners: Sequence[Listener | str]) -> "list[Endpoint]":
    """What ``endpoints`` become with these settings, and their files as they are now. Raises ConfigError."""
    made = [Endpoint(listener) for listener in listeners]
    before, after = ([(each.address, each.proxied) for each in all_of] for all_of in (endpoints, made))
    if before != after:
        raise ConfigError("listeners: addresses and proxy_protocol cannot change while the broker runs; restart it")
    return made


def check_safe(endpoints: Sequence[Endpoint], config: "Config", everybody_proves: bool) -> None:
    """Raise ConfigError for a listener that lets in whoever can reach it, unless the configuration says so.

    ``everybody_proves``: nobody is let in who has not proved to be somebody.
    """
    for endpoint in endpoints:
        address = endpoint.address
        if not (address.is_local or endpoint.identifies or everybody_proves or config.allow_anonymous_remote):
            raise ConfigError(
                f"listener {address} can be reached from other machines, and this broker asks nobody for a password; "
                "listen on 127.0.0.1, set password_file ('tidings user add' makes one), require client certificates, "
                "configure a plugin that authenticates, or set allow_anonymous_remote if everybody on that network may "
                "come in without"
            )
        if everybody_proves and not address.is_local and not address.is_encrypted:
            log.warning("listener %s: passwords cross the network in the clear; tls:// and wss:// do not", address)
