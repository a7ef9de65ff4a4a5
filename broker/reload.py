"""What of a configuration may change while the broker runs, and what becomes of those who are connected.

Everything new is read and checked before anything old is let go, so that a reload happens as a whole or not at all.
"""

from typing import Final

from .access.gate import AccessGate
from .codec.reasons import ReasonCode
from .config import Config
from .core.engine import Engine
from .core.ports import Action
from .core.topics import split_share
from .errors import ConfigError, ProtocolError

RELOADABLE: Final = frozenset(
    (
        "access_file",
        "allow_anonymous",
        "allow_anonymous_remote",
        "banned_addresses",
        "banned_clients",
        "banned_users",
        "connect_timeout_s",
        "decision_lifetime_s",
        "listeners",
        "max_blocked_s",
        "max_bytes_per_s",
        "max_connect_size_bytes",
        "max_connections",
        "max_connections_per_address",
        "max_connects_per_s",
        "max_decisions",
        "max_handshakes",
        "max_inflight",
        "max_keep_alive_s",
        "max_messages_per_s",
        "max_session_expiry_s",
        "max_sessions",
        "max_subscriptions",
        "outbox_high_bytes",
        "outbox_max_bytes",
        "password_file",
        "policies",
        "soft_limit_bytes",
        "soft_limit_s",
        "stop_timeout_s",
        "user_from_certificate",
    )
)
"""Options that a running broker takes over. What clients were told, or what sessions and stores were made with, is not
among them. Limits of a connection or a session are for those that begin afterwards."""


def check_changes(old: Config, new: Config) -> None:
    """Raise ConfigError if ``new`` differs from ``old`` in what only a start can change."""
    fixed = [
        name for name in Config.model_fields if name not in RELOADABLE and getattr(old, name) != getattr(new, name)
    ]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: cannot change while the broker runs; restart it")


def review(engine: Engine, gate: AccessGate, now: float) -> int:
    """Hold those who are connected to the gate's new terms; how many were cut off."""
    engine.forget()
    cut_off = 0
    for connection in list(engine.connections):
        identity = connection.identity
        if identity is None or identity.accepted is None:
            continue
        why = gate.why_not(identity)
        if why:
            engine.log.warning("cutting off %r: %s", connection, why)
            engine.fail(connection, ProtocolError("not welcome any more", ReasonCode.NOT_AUTHORIZED), now)
            cut_off += 1
            continue
        session = connection.session
        if session is None:
            continue
        lost = [
            filter
            for filter in session.subscriptions
            if not gate.may(identity, Action.SUBSCRIBE, split_share(filter)[1], now)
        ]
        for filter in lost:
            engine.unsubscribe(session, filter, now)
        if lost:
            engine.save(session)
    return cut_off
