"""Where a connection is in its life."""

from enum import Enum


class State(Enum):
    """``HANDLERS`` has a row for each in which packets are taken."""

    CONNECTING = "connecting"
    AUTHENTICATING = "authenticating"  # CONNECT was answered with a challenge
    CONNECTED = "connected"
    CLOSED = "closed"
