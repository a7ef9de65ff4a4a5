"""What the configuration says about who may connect: read from its files, checked, and replaced as a whole."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from .rules import Rules, fits_pattern, read_rules
from .users import User, read_users

if TYPE_CHECKING:
    from ..config import Config

COMMON_NAME: Final = "commonName"


@dataclass(slots=True, frozen=True)
class Terms:
    """``users`` None: nobody is asked for a password. ``rules`` None: whoever is let in may do everything."""

    users: Mapping[str, User] | None = field(default=None, repr=False)
    rules: Rules | None = field(default=None, repr=False)
    allow_anonymous: bool = False
    user_from_certificate: bool = False
    banned_users: tuple[str, ...] = ()
    banned_clients: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: "Config") -> "Terms":
        """Raises ConfigError that names file and line."""
        return cls(
            None if config.password_file is None else read_users(config.password_file),
            None if config.access_file is None else read_rules(config.access_file),
            config.allow_anonymous,
            config.user_from_certificate,
            tuple(config.banned_users),
            tuple(config.banned_clients),
        )

    @property
    def decide(self) -> bool:
        """Whether there is anything to decide."""
        return self != Terms()

    @property
    def identify(self) -> bool:
        """Whether nobody is let in who has not proved to be somebody."""
        return self.users is not None and not self.allow_anonymous

    def why_banned(self, user: str, client_id: str) -> str:
        """Why a client is not wanted, "" if it is."""
        if user and any(fits_pattern(pattern, user) for pattern in self.banned_users):
            return f"user {user!r} is banned"
        if any(fits_pattern(pattern, client_id) for pattern in self.banned_clients):
            return f"client id {client_id!r} is banned"
        return ""


def certificate_name(tls: object) -> str:
    """The common name in the certificate that the client has shown, "" without one."""
    shown = tls.getpeercert() if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
    subject: Any = shown.get("subject", ()) if shown else ()
    names = [str(value) for part in subject for key, value in part if key == COMMON_NAME]
    return names[0] if len(names) == 1 else ""
