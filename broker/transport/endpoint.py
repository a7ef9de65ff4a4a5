"""One listener as its settings describe it, checked: address, TLS, PROXY protocol, and which web pages may come."""

import ssl
from typing import Final
from urllib.parse import urlsplit

from ..errors import ConfigError
from ..listener import Listener
from .address import Address, parse_address
from .tls import Tls

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


def load_certificates(endpoints: "list[Endpoint]") -> int:
    """Read all certificate files again and use them; how many listeners have some. Raises ConfigError and uses none."""
    loaded: list[tuple[Tls, ssl.SSLContext]] = [
        (endpoint.tls, endpoint.tls.load()) for endpoint in endpoints if endpoint.tls is not None
    ]
    for tls, context in loaded:
        tls.use(context)
    return len(loaded)
