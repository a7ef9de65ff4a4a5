"""SCRAM-SHA-256 (RFC 7677) as MQTT 5 carries it: client and broker prove to each other that they know a password.

Nothing that is sent helps whoever listens to log in: both sides add a random number, so nothing can be replayed.
Somebody who is no user is answered like one, with keys that nothing fits. Without channel binding: TLS is checked by
certificates here.
"""

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

from scramp import ScramException, ScramMechanism

from .users import DEFAULT_ROUNDS, SCRAM, User

MAX_MESSAGE_BYTES: Final = 4_096


class ScramError(ValueError):
    """The client's message is wrong; the text is for our log."""


class Exchange:
    """One exchange: ``first`` takes the client's first message, ``final`` its last; ``user`` is known in between.

    ``secret`` makes up the keys of those who are no users, the same ones each time.
    """

    __slots__ = ("_secret", "_server", "_users", "user")

    def __init__(self, users: Mapping[str, User], secret: bytes) -> None:
        self._users = users
        self._secret = secret
        self._server: Any = ScramMechanism(SCRAM).make_server(self._keys)
        self.user = ""

    def first(self, data: bytes) -> bytes:
        """The challenge. Raises ScramError."""
        try:
            self._server.set_client_first(_text(data))
            return str(self._server.get_server_first()).encode()
        except ScramException as error:
            raise ScramError(str(error)) from None

    def final(self, data: bytes) -> bytes:
        """The proof that the broker knows the user too. Raises ScramError if the client's is wrong."""
        try:
            self._server.set_client_final(_text(data))
            return str(self._server.get_server_final()).encode()
        except ScramException as error:
            raise ScramError(str(error)) from None

    def _keys(self, name: str) -> tuple[bytes, bytes, bytes, int]:
        self.user = name
        user = self._users.get(name)
        if user is None or user.scram is None:
            made_up = [
                hmac.digest(self._secret, f"{what}:{name}".encode(), sha256) for what in ("salt", "key", "proof")
            ]
            return made_up[0], made_up[1], made_up[2], DEFAULT_ROUNDS
        keys = user.scram
        return keys.salt, keys.stored_key, keys.server_key, keys.rounds


def _text(data: bytes) -> str:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ScramError(f"a message of {len(data)} bytes; {MAX_MESSAGE_BYTES} are possible")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ScramError("a message that is no UTF-8 text") from None
