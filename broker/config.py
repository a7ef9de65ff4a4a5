"""Every option of the broker. The command line, the YAML file and the documentation are made from these fields.

Units stand in the names (``_s`` seconds, ``_bytes`` bytes) and ranges in the fields. Nothing is unbounded by default.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .listener import AnyListener
from .network import parse_network
from .policy import check_shared, parse_policy

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0)]
Durability = Literal["fsync", "os", "memory"]


def _network(text: str) -> str:
    parse_network(text)
    return text


class PolicyRule(BaseModel):
    """A delivery policy for the subscriptions that it fits. In patterns ``*`` and ``?`` stand for any characters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: str = Field(default="#", description="Topic filter; the rule is for subscriptions to it or a part of it.")
    client_id: str = Field(default="*", description="Pattern of client ids.")
    user: str = Field(default="*", description="Pattern of user names.")
    policy: str = Field(description="all, latest or sample=RATE, with options; see docs/slow-clients.md.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        check_shared(self.filter, parse_policy(self.policy))
        return self


def _by_class(value: object) -> object:
    """amqtt's other form, a list of names and of mappings, as a mapping."""
    if not isinstance(value, list):
        return value
    plugins: dict[object, object] = {}
    for item in value:
        if isinstance(item, dict):
            plugins.update(item)
        elif isinstance(item, str):
            plugins[item] = {}
        else:
            raise ValueError("the names of classes, or mappings from them to their settings")
    return plugins


def _settings(value: object) -> object:
    return {} if value is None else value


Plugins = Annotated[
    dict[str, Annotated[dict[str, Any], BeforeValidator(_settings)]], BeforeValidator(_by_class), Field(repr=False)
]


class Config(BaseModel):
    """Options of one broker. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    listeners: list[AnyListener] = Field(
        default=["tcp://127.0.0.1:1883"],
        description="Where to listen: tcp://, tls://, ws:// or wss:// with HOST:PORT (port 0 = any free one), "
        "unix:///PATH, or a mapping with such a url and the listener's settings.",
    )
    allow_anonymous_remote: bool = Field(
        default=False,
        description="Accept clients without authentication on addresses other than loopback. Without it such a "
        "listener is refused at start.",
    )

    password_file: Path | None = Field(
        default=None,
        description="Users and what proves who they are, as 'tidings user add' writes them. Clients have to be one of "
        "them. [default: user names are not asked for, and prove nothing]",
    )
    allow_anonymous: bool = Field(
        default=False, description="Let clients without a user name in although there is a password_file."
    )
    user_from_certificate: bool = Field(
        default=False,
        description="A client that shows a certificate is the user whom its common name names, without a password.",
    )
    access_file: Path | None = Field(
        default=None,
        description="Who may publish and subscribe where; see docs/security.md. [default: whoever is let in may do "
        "everything]",
    )
    banned_addresses: list[Annotated[str, AfterValidator(_network)]] = Field(
        default=[], description="Addresses, and networks such as 192.0.2.0/24, from which nobody is let in."
    )
    banned_users: list[str] = Field(
        default=[], description="Patterns of user names that are not let in; * and ? stand for any characters."
    )
    banned_clients: list[str] = Field(default=[], description="The same of client ids.")

    plugins: Plugins = Field(
        default={},
        description="amqtt's plugins, or those written for it: for each class its settings, as in an amqtt "
        "configuration; see docs/plugins.md.",
    )
    plugin_sections: dict[str, Any] = Field(
        default={},
        description="The sections auth and topic_check, and sys_interval, of an amqtt configuration in its old style, "
        "which finds plugins by entry points.",
    )
    plugin_timeout_s: float = Field(
        default=5.0, gt=0, le=3600, description="Seconds after which a decision of plugins is a refusal."
    )
    max_plugin_calls: Count = Field(default=100, description="Calls of plugins under way at once; further ones wait.")
    max_plugin_events: Count = Field(
        default=10_000, description="Events that wait for plugins; further ones are dropped and counted."
    )
    decision_lifetime_s: Seconds = Field(
        default=30.0,
        description="Seconds for which a decision about one client and topic holds before it is made anew; 0 = each is "
        "made anew. Where nothing decides, everybody may do everything.",
    )
    max_decisions: Count = Field(
        default=1_000,
        description="Decisions that are remembered for one connection, for each of publish, subscribe, receive.",
    )

    max_connections: Count = Field(default=100_000, description="Connections at once; further ones are closed at once.")
    max_connections_per_address: Count = Field(
        default=10_000,
        description="Connections at once from one address, in IPv6 from one /64; those of this machine do not count.",
    )
    connect_timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="Seconds that a connection may take to send its CONNECT."
    )
    max_handshakes: Count = Field(
        default=1_000,
        description="TLS and WebSocket handshakes under way at once, each for as long as a CONNECT may take. Further "
        "connections wait; after a fifth of its time the oldest makes room for one.",
    )
    max_keep_alive_s: int = Field(
        default=65_535,
        ge=1,
        le=65_535,
        description="Longest keep-alive in seconds. Clients that ask for more, or below 65535 for none, are told this "
        "one (5.0) or held to it.",
    )
    max_packet_size_bytes: int = Field(
        default=1_048_576, ge=256, le=268_435_460, description="Largest packet taken from a client, in bytes."
    )
    max_connect_size_bytes: int = Field(
        default=131_072, ge=256, le=268_435_460, description="Largest CONNECT packet, in bytes."
    )
    receive_maximum: int = Field(
        default=10_000, ge=1, le=65_535, description="QoS 1 and 2 messages that a 5.0 client may have unacknowledged."
    )
    max_inflight: int = Field(
        default=1_000,
        ge=1,
        le=65_535,
        description="QoS 1 and 2 messages in flight to one client, unless its Receive Maximum is lower.",
    )
    max_inflight_bytes: Count = Field(
        default=16_777_216,
        description="Bytes of messages of QoS 1 and 2 in flight to one client (16 MiB). A message larger than that is "
        "in flight alone.",
    )
    topic_alias_maximum: int = Field(
        default=64, ge=0, le=65_535, description="Topic aliases per connection, each way. 0 = none."
    )

    max_sessions: Count = Field(default=1_000_000, description="Sessions, connected or not.")
    max_session_expiry_s: int = Field(
        default=2_592_000,
        ge=0,
        le=0xFFFFFFFF,
        description="Longest time in seconds that a session outlives its connection (30 days; 4294967295 = for ever).",
    )
    max_subscriptions: Count = Field(
        default=10_000,
        description="Subscriptions of one session. Their filters may have 512 each on average, counted as characters "
        "and 32 more for each level.",
    )
    max_topic_levels: int = Field(default=200, ge=1, le=65_536, description="Levels in a topic name or filter.")
    max_queued_messages: Count = Field(
        default=100_000, description="Messages that wait for one session beyond those in flight; then the oldest go."
    )
    max_queued_bytes: Count = Field(
        default=67_108_864, description="Bytes of messages that wait for one session (64 MiB); then the oldest go."
    )
    max_memory_messages: int = Field(
        default=1_000,
        ge=2,
        description="Of the messages that wait for one session, those held in memory where there is a data directory; "
        "the others are read from it when they are needed.",
    )
    max_memory_bytes: Count = Field(
        default=1_048_576, description="The same bound in bytes (1 MiB). A message larger than it is held alone."
    )
    queue_qos0_offline: bool = Field(default=False, description="Queue QoS 0 messages too while a client is away.")

    policies: list[PolicyRule] = Field(
        default=[],
        description="Delivery policies of subscriptions that name none themselves; the first rule that fits decides.",
    )
    memory_budget_bytes: int = Field(
        default=1_073_741_824,
        ge=65_536,
        description="Bytes of messages that wait in memory in the whole broker (1 GiB), counted for each session that "
        "they wait for, with what is in flight and under way. From 80 % on publishers that add to them get no "
        "acknowledgements, from 90 % on they are not read from, until 60 % is reached; at 100 % the sessions with most "
        "waiting lose messages.",
    )
    memory_pause_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="Longest time in seconds that publishers are not read from for the sake of the memory budget; then "
        "the sessions with most waiting are cut to 60 % of it.",
    )

    max_retained_messages: Count = Field(default=1_000_000, description="Topics with a retained message.")
    max_retained_bytes: Count = Field(default=268_435_456, description="Bytes of all retained messages (256 MiB).")

    data_dir: Path | None = Field(
        default=None,
        description="Directory for sessions, their messages and retained messages; made if it is not there. Without "
        "one everything is in memory, for the life of the process.",
    )
    durability: Durability = Field(
        default="fsync",
        description="What an acknowledged message survives, where there is a data directory: fsync = a power cut, os = "
        "the end of the process however it ends, memory = neither.",
    )
    durability_by_filter: dict[str, Durability] = Field(
        default={},
        description="Topic filters with a durability of their own, for the messages on topics that they match; the "
        "first filter that matches decides.",
    )
    max_unwritten_bytes: Count = Field(
        default=67_108_864,
        description="Bytes of messages that wait to be written to disk (64 MiB) above which their publishers are not "
        "read from until half of it is written.",
    )

    outbox_high_bytes: int = Field(
        default=262_144,
        ge=1024,
        description="Bytes under way to one client above which its messages wait in the queue instead.",
    )
    outbox_max_bytes: int = Field(
        default=4_194_304,
        ge=2048,
        description="Bytes of answers under way to one client above which nothing more is read from it.",
    )
    max_blocked_s: Seconds = Field(
        default=60.0,
        description="Seconds after which a client that does not take a byte of what is under way to it is cut off; 0 = "
        "never.",
    )
    soft_limit_s: Seconds = Field(
        default=0.0,
        description="Seconds on end for which more than soft_limit_bytes may wait for a client that reads too slowly; "
        "then it is cut off. 0 = for ever: it costs its bounds and nothing more.",
    )
    soft_limit_bytes: int = Field(
        default=8_388_608,
        ge=16_384,
        description="Bytes in memory for one client, in its queue, in flight and under way (8 MiB); what only the data "
        "directory has does not count. Means something with soft_limit_s.",
    )
    max_messages_per_s: Rate = Field(
        default=0.0, description="Messages a second that one client may publish; then it is not read from. 0 = any."
    )
    max_bytes_per_s: Rate = Field(
        default=0.0, description="Bytes a second that one client may send; then it is not read from. 0 = any."
    )
    max_connects_per_s: Rate = Field(
        default=0.0,
        description="Connections a second from one address; further ones are accepted and not read from until their "
        "turn. 0 = any.",
    )
    max_routes: Count = Field(default=32_768, description="Topics whose receivers are remembered.")
    sys_interval_s: Seconds = Field(default=10.0, description="Seconds between two updates of $SYS; 0 = no $SYS.")
    stop_timeout_s: Seconds = Field(
        default=5.0, description="Seconds that clients get to take what is under way at a stop."
    )
