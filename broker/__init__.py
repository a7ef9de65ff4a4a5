"""An MQTT broker to embed or to serve: 3.1, 3.1.1 and 5.0, QoS 0, 1 and 2, retained messages, shared subscriptions."""

from .codec.properties import Properties
from .codec.reasons import ReasonCode
from .config import Config
from .core import engine as _engine
from .core.message import Message
from .core.snapshot import SessionNumbers, Snapshot, Stats
from .errors import BrokerError, ConfigError, MalformedPacket, ProtocolError, StoreError, TidingsError
from .listener import Certificate, Listener
from .server import Broker, Subscription
from .thread import BrokerThread

COMPILED = not str(_engine.__file__).endswith(".py")
"""Whether what every message passes through runs as machine code; setup.py lists the modules and how to get either."""

__all__ = [
    "COMPILED",
    "Broker",
    "BrokerError",
    "BrokerThread",
    "Certificate",
    "Config",
    "ConfigError",
    "Listener",
    "MalformedPacket",
    "Message",
    "Properties",
    "ProtocolError",
    "ReasonCode",
    "SessionNumbers",
    "Snapshot",
    "Stats",
    "StoreError",
    "Subscription",
    "TidingsError",
]
