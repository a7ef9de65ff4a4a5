"""Clients as amqtt's plugins know them: its ``Session``, filled from what a client said."""

from typing import Any, Protocol, cast

from amqtt.session import Session

from ..codec.packets import Will
from ..core.ports import Identity


class PeerCertificate:
    """What ``ssl.SSLObject`` tells about the other end, read beforehand: the object itself belongs to the broker's
    thread."""

    def __init__(self, tls: "_Tls") -> None:
        self._der = tls.getpeercert(True)
        self._read = tls.getpeercert(False)
        self._cipher = tls.cipher()
        self._version = tls.version()
        self._alpn = tls.selected_alpn_protocol()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """The client's certificate in DER form or as ``ssl`` decodes it; None if it showed none."""
        return self._der if binary_form else self._read

    def cipher(self) -> Any:
        """Name, protocol and bits of the cipher in use."""
        return self._cipher

    def version(self) -> Any:
        """The TLS version, such as ``TLSv1.3``."""
        return self._version

    def selected_alpn_protocol(self) -> Any:
        """What ALPN agreed on."""
        return self._alpn


class _Tls(Protocol):
    def getpeercert(self, binary_form: bool) -> Any: ...
    def cipher(self) -> Any: ...
    def version(self) -> Any: ...
    def selected_alpn_protocol(self) -> Any: ...


class Facts:
    """What CONNECT said, taken in the broker's thread; ``session`` makes a Session of it in the plugins'."""

    __slots__ = ("certificate", "clean", "client_id", "keep_alive_s", "password", "peer", "user", "will")

    def __init__(self, identity: Identity) -> None:
        self.client_id = identity.client_id
        # An empty name is a name, but no user's: amqtt's plugins take both for none.
        self.user = identity.user or None
        self.password = None if identity.password is None else identity.password.decode("utf-8", "replace")
        self.clean = identity.clean_start
        self.keep_alive_s = identity.keep_alive_s
        self.will: Will | None = identity.will
        self.peer = identity.peer
        self.certificate = None if identity.tls is None else PeerCertificate(cast(_Tls, identity.tls))

    def session(self) -> Session:
        """A Session of amqtt that was never connected."""
        session = Session()
        host, _, port = self.peer.rpartition(":")
        session.remote_address = host or None
        session.remote_port = int(port) if port.isdecimal() else None
        session.client_id = self.client_id
        session.clean_session = self.clean
        session.keep_alive = self.keep_alive_s
        session.username = self.user
        session.password = self.password
        session.ssl_object = self.certificate
        will = self.will
        if will is not None:
            session.will_flag = True
            session.will_topic = will.topic
            session.will_message = will.payload
            session.will_qos = will.qos
            session.will_retain = will.retain
        return session


def away(client_id: str) -> Session:
    """The Session of a client that is not connected and of which nothing else is known."""
    session = Session()
    session.client_id = client_id
    session.clean_session = False
    session.transitions.disconnect()
    return session
