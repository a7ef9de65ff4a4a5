"""TLS of one listener: contexts made from files, the certificate by the name that the client asks for, and new files.

``Tls.context`` is what handshakes use; new files are another ``Tls``, which takes the place of this one. A connection
keeps what it began with.
"""

import logging
import os
import ssl
import stat
from pathlib import Path
from typing import Final

from ..errors import ConfigError
from ..listener import Certificate, Listener

log: Final = logging.getLogger("tidings.broker")

# TLS 1.2 with forward secrecy and authenticated encryption only; what TLS 1.3 has is all of that kind.
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
VERIFY: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Tls:
    """Raises ConfigError, with the listener's URL, for files that cannot be used."""

    def __init__(self, settings: Listener, alpn: str) -> None:
        self._settings = settings
        self._alpn = alpn
        self._where = f"listener {settings.url!r}"
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        """A context from the files as they are now."""
        settings = self._settings
        if settings.certfile is None:
            raise ConfigError(f"{self._where}: tls:// and wss:// need a certificate: certfile and keyfile")
        if settings.client_certificates != "none" and settings.cafile is None:
            raise ConfigError(f"{self._where}: client_certificates needs cafile, the CA that signs them")
        if settings.client_certificates == "none" and settings.cafile is not None:
            raise ConfigError(f"{self._where}: cafile is for client_certificates, which is none")
        context = self._context(settings)
        others = {name.lower(): self._context(named) for name, named in settings.server_names.items()}

        def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            name = (name or "").lower()
            other = others.get(name) or others.get("*." + name.partition(".")[2])
            if other is not None:
                connection.context = other

        if others:
            context.sni_callback = choose
        return context

    def _context(self, certificate: Certificate) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols([self._alpn])
        self._load_certificate(context, certificate)
        if self._settings.cafile is not None:
            self._load_authorities(context, self._settings.cafile)
        context.verify_mode = VERIFY[self._settings.client_certificates]
        return context

    def _load_certificate(self, context: ssl.SSLContext, certificate: Certificate) -> None:
        certfile, keyfile = certificate.certfile, certificate.keyfile or certificate.certfile
        if certfile is None or keyfile is None:
            raise ConfigError(f"{self._where}: server_names: each name needs certfile and keyfile")
        self._expect(certfile, "certfile", b"-----BEGIN CERTIFICATE-----", "certificate")
        self._expect(keyfile, "keyfile", b"PRIVATE KEY-----", "private key")
        if os.stat(keyfile).st_mode & stat.S_IROTH:
            log.warning("%s: keyfile %s can be read by everybody on this machine; chmod 600 it", self._where, keyfile)
        try:
            context.load_cert_chain(certfile, keyfile, password=lambda: self._refuse_encrypted(keyfile))
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(
                    f"{self._where}: the key in {keyfile} does not belong to the certificate in {certfile}"
                ) from None
            raise ConfigError(
                f"{self._where}: certificate {certfile} with key {keyfile} cannot be used: {_words(error)}"
            ) from None

    def _load_authorities(self, context: ssl.SSLContext, cafile: Path) -> None:
        self._expect(cafile, "cafile", b"-----BEGIN CERTIFICATE-----", "certificate")
        try:
            context.load_verify_locations(cafile)
        except ssl.SSLError as error:
            raise ConfigError(f"{self._where}: cafile {cafile} cannot be used: {_words(error)}") from None

    def _expect(self, path: Path, key: str, mark: bytes, what: str) -> None:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{self._where}: {key} {path} cannot be read: {error.strerror}") from None
        if mark not in data:
            raise ConfigError(f"{self._where}: {key} {path} holds no {what} in PEM form")

    def _refuse_encrypted(self, keyfile: Path) -> str:
        raise ConfigError(
            f"{self._where}: the key in {keyfile} is encrypted, and nobody is there to ask for its password; use one "
            "that is not, in a file that only this broker may read"
        )


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
