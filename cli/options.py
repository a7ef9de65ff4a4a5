"""The options that ``tidings pub`` and ``tidings sub`` share: how to reach a server and what to tell it on CONNECT.

``connection_options`` adds them to a command; ``ConnectionOptions.read`` turns what click parsed into checked values.
Nothing here opens a connection; files named by options (certificates, password) are read here.

Invariants:

1. Every refusal is a ``click.UsageError`` or ``Failure`` that names the option.
2. A value on the command line beats the URL of -L, the URL beats environment variables, and those beat defaults.
3. No option is needed that would put a secret on the command line.
"""

import os
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import click
from click.core import ParameterSource
from paho.mqtt.enums import MQTTProtocolVersion as Version
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from .exits import Failure
from .properties import PropertyOption, add, by_command, check_string, new

Command = TypeVar("Command", bound=Callable[..., Any])

VERSIONS = {
    **dict.fromkeys(("5", "5.0", "mqttv5"), Version.MQTTv5),
    **dict.fromkeys(("311", "3.1.1", "mqttv311"), Version.MQTTv311),
    **dict.fromkeys(("31", "3.1", "mqttv31"), Version.MQTTv31),
}
TLS_VERSIONS = {"tlsv1.2": ssl.TLSVersion.TLSv1_2, "tlsv1.3": ssl.TLSVersion.TLSv1_3}
NEVER_S = 0xFFFF_FFFF  # the session expiry interval that means never, 5.0 section 3.1.2.11.2
LARGEST_PAYLOAD_BYTES = 268_435_455  # the largest remaining length, 5.0 section 1.5.5


def text(value: str) -> str:
    """The click type of options that become MQTT strings."""
    try:
        return check_string(value, "it")
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from None


def seconds_or_never(value: str) -> int:
    """The click type of a session expiry interval: seconds, or -1 or ∞ for never."""
    if value in ("∞", "-1"):
        return NEVER_S
    if not value.isdecimal() or int(value) > NEVER_S:
        raise click.BadParameter(f"{value!r} is not 0 to {NEVER_S}, -1 or ∞.")
    return int(value)


QOS = click.IntRange(0, 2)
FILE = click.Path(exists=True, dir_okay=False, readable=True)


def connection_options(command: Literal["pub", "sub"], reconnect_tries: int | None) -> Callable[[Command], Command]:
    """Add the shared options to a click command whose function takes them as keyword arguments.

    Each is read from ``TIDINGS_<COMMAND>_<NAME>``, then from ``TIDINGS_<NAME>``. ``reconnect_tries`` is the default of
    that option: attempts in a row, None for no end.
    """

    def option(*names: str, cls: type[click.Option] = click.Option, **attributes: Any) -> Callable[[Command], Command]:
        parameter = next((name for name in names if not name.startswith("-")), names[-1].lstrip("-"))
        suffix = parameter.upper().replace("-", "_")
        envvar = [f"TIDINGS_{command.upper()}_{suffix}", f"TIDINGS_{suffix}"]
        return click.option(*names, cls=cls, envvar=envvar, **attributes)

    tries = "without end" if reconnect_tries is None else str(reconnect_tries)
    added = [
        option("-h", "--host", default="localhost", show_default=True, help="Server to connect to."),
        option("-p", "--port", type=click.IntRange(1, 65535), help="Port.  [default: 1883; TLS 8883; ws 80, wss 443]"),
        option("-L", "--url", help="mqtt(s)://[user[:password]@]host[:port][/topic], also tcp, tls, ws(s), unix:///path."),
        option("--unix", type=click.Path(), help="Connect to this Unix domain socket."),
        option("--ws", is_flag=True, help="Speak MQTT over WebSocket."),
        option("--ws-path", default="/mqtt", show_default=True, help="Path of the WebSocket on the server."),
        option("-A", "--bind", "bind", default="", metavar="ADDRESS", help="Connect from this local address."),
        option("--nodelay", is_flag=True, help="Send small packets at once (TCP_NODELAY)."),
        option("-V", "--protocol-version", default="5", show_default=True, metavar="[5|311|31]",
               type=click.Choice(list(VERSIONS), case_sensitive=False), help="MQTT version, also as mqttv5, mqttv311."),
        option("-i", "--id", "id", type=text, help="Client id.  [default: generated]"),
        option("-I", "--id-prefix", type=text, help="Client id is this and the process id."),
        option("-k", "--keepalive", type=click.IntRange(0, 65535), default=60, show_default=True,
               help="Keep-alive in seconds, 0 for none."),
        option("-c", "--disable-clean-session", is_flag=True, help="Keep the session on the server; needs -i or -I."),
        option("-x", "--session-expiry", type=seconds_or_never, metavar="SECONDS",
               help="Seconds the server keeps the session (MQTT 5); -1 for ever.  [default: 0; with -c for ever]"),
        option("-u", "--username", type=text, help="User name."),
        option("-P", "--pw", "--password", "password", type=text,
               help="Password. Others on this machine can see it; prefer the next two, or TIDINGS_PASSWORD."),
        option("--pw-file", type=FILE, help="File that holds the password."),
        option("--ask-password", is_flag=True, help="Ask for the password on the terminal."),
        option("--cafile", type=FILE, help="Trusted CA certificates (PEM); turns TLS on."),
        option("--capath", type=click.Path(exists=True, file_okay=False), help="Directory of such; turns TLS on."),
        option("--cert", type=FILE, help="Client certificate (PEM); turns TLS on."),
        option("--key", type=FILE, help="Client private key (PEM)."),
        option("--ciphers", help="OpenSSL cipher list for TLS 1.2."),
        option("--insecure", is_flag=True, help="Don't check that the certificate is this host's."),
        option("--tls-version", type=click.Choice(list(TLS_VERSIONS)), help="Only this version of TLS."),
        option("--tls-alpn", metavar="PROTOCOL", help="Protocol to ask for with ALPN."),
        option("--tls-use-os-certs", is_flag=True, help="TLS with the system's CA certificates."),
        option("--no-tls", is_flag=True, help="No TLS, not even on port 8883."),
        option("--will-topic", type=text, help="Topic of the will."),
        option("--will-payload", default="", help="Payload of the will."),
        option("--will-qos", type=QOS, default=0, help="QoS of the will."),
        option("--will-retain", is_flag=True, help="The will is retained."),
        option("-D", "--property", "property", cls=PropertyOption,
               help="An MQTT 5 property of a packet; user-property takes a name and a value. May be repeated."),
        option("-M", "--max-inflight", type=click.IntRange(1, 65535), default=20, show_default=True,
               help="Unacknowledged QoS 1 and 2 messages at a time."),
        option("-W", "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
               help="Give up after so many seconds, with exit code 27."),
        option("--reconnect-tries", type=click.IntRange(0), default=reconnect_tries, metavar="N",
               help=f"Attempts in a row to get a lost connection back.  [default: {tries}]"),
        option("-d", "--debug", is_flag=True, help="Show each packet, on stderr."),
        option("--quiet", is_flag=True, help="No error messages, only exit codes."),
    ]  # fmt: skip

    def decorate(function: Command) -> Command:
        for add_option in reversed(added):
            function = add_option(function)
        return function

    return decorate


@dataclass(frozen=True, slots=True)
class Target:
    """What -L says: empty or None where it says nothing."""

    transport: Literal["tcp", "websockets", "unix"]
    tls: bool
    host: str
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    topic: str = ""


def parse_url(url: str) -> Target:
    """Take a -L URL apart; ValueError says what is wrong with it.

    A path is the topic, percent-decoded (``#`` needs no escape); for ws and wss it is the path of the WebSocket.
    """
    scheme, separator, rest = url.partition("://")
    scheme = {"tcp": "mqtt", "tls": "mqtts"}.get(scheme.lower(), scheme.lower())
    if not separator or scheme not in ("mqtt", "mqtts", "ws", "wss", "unix"):
        raise ValueError(f"{url!r} starts with none of mqtt:// mqtts:// tcp:// tls:// ws:// wss:// unix://")
    if scheme == "unix":
        if not rest.startswith("/"):
            raise ValueError(f"{url!r} has no absolute path: unix:///path")
        return Target("unix", False, unquote(rest))
    authority, _, path = rest.partition("/")
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r}: {error}") from None
    if port == 0:
        raise ValueError(f"{url!r}: port 0 is none")
    if not host or parts.query or parts.fragment:
        raise ValueError(f"{url!r} has no host")
    web = scheme.startswith("ws")
    return Target(
        transport="websockets" if web else "tcp",
        tls=scheme.endswith("s") and scheme != "ws",
        host=host,
        port=port,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        path=f"/{path}" if web and path else "",
        topic="" if web else unquote(path),
    )


@dataclass(frozen=True, slots=True)
class Will:
    """The will to leave with the server: ``payload`` as bytes."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Everything that a connection needs, checked. ``properties`` is keyed by the packet that carries them."""

    host: str
    port: int
    transport: Literal["tcp", "websockets", "unix"] = "tcp"
    ws_path: str = "/mqtt"
    bind: str = ""
    nodelay: bool = False
    version: Version = Version.MQTTv5
    client_id: str = ""
    clean: bool = True
    keepalive_s: int = 60
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    insecure: bool = False
    will: Will | None = None
    properties: dict[str, Properties] = field(default_factory=dict)
    max_inflight_count: int = 20
    timeout_s: float | None = None
    reconnect_tries: int | None = None
    debug: bool = False
    quiet: bool = False
    url_topic: str = ""

    @classmethod
    def read(cls, ctx: click.Context, given: dict[str, Any], packets: tuple[str, ...]) -> "ConnectionOptions":
        """Check and combine what ``connection_options`` parsed; ``packets`` are the -D commands that make sense here.

        Raises click.UsageError for options that contradict each other, Failure for files that can't be used.
        """
        target = _target(ctx, given)
        version = VERSIONS[given["protocol_version"].lower()]
        tls = _tls(given, target)
        port = target.port or {
            ("tcp", False): 1883, ("tcp", True): 8883, ("websockets", False): 80, ("websockets", True): 443,
        }.get((target.transport, tls is not None), 1)  # fmt: skip
        username, password = _credentials(ctx, given, target)
        return cls(
            host=target.host,
            port=port,
            transport=target.transport,
            ws_path=target.path,
            bind=given["bind"],
            nodelay=given["nodelay"],
            version=version,
            client_id=_client_id(ctx, given),
            clean=not given["disable_clean_session"],
            keepalive_s=given["keepalive"],
            username=username,
            password=password,
            tls=tls,
            insecure=given["insecure"],
            will=_will(given),
            properties=_properties(given, version, packets),
            max_inflight_count=given["max_inflight"],
            timeout_s=given["timeout"],
            reconnect_tries=given["reconnect_tries"],
            debug=given["debug"],
            quiet=given["quiet"],
            url_topic=target.topic,
        )


def _on_command_line(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _target(ctx: click.Context, given: dict[str, Any]) -> Target:
    """Where to connect: command line, then URL, then environment, then defaults."""
    if given["url"] is None or (_on_command_line(ctx, "unix") and not _on_command_line(ctx, "url")):
        if given["unix"] is not None:
            return Target("unix", False, given["unix"])
        transport: Literal["tcp", "websockets"] = "websockets" if given["ws"] else "tcp"
        if not given["host"]:
            raise click.UsageError("-h: the host is empty.")
        return Target(transport, False, given["host"], given["port"], path=given["ws_path"])
    if _on_command_line(ctx, "unix"):
        raise click.UsageError("-L and --unix name two servers; give one of them.")
    try:
        url = parse_url(given["url"])
        check_string(url.topic, "the topic")
    except ValueError as error:
        raise click.UsageError(f"-L: {error}.") from None
    web = url.transport == "websockets" or (given["ws"] and url.transport == "tcp")
    return Target(
        transport="websockets" if web else url.transport,
        tls=url.tls,
        host=given["host"] if _on_command_line(ctx, "host") else url.host,
        port=given["port"] if _on_command_line(ctx, "port") else url.port,
        username=url.username,
        password=url.password,
        path=given["ws_path"] if _on_command_line(ctx, "ws_path") or not url.path else url.path,
        topic=url.topic,
    )


def _credentials(ctx: click.Context, given: dict[str, Any], target: Target) -> tuple[str | None, str | None]:
    username, password = given["username"], given["password"]
    if target.username is not None and not _on_command_line(ctx, "username"):
        username = target.username
    if target.password is not None and not _on_command_line(ctx, "password"):
        password = target.password
    explicit = [name for name in ("password", "pw_file", "ask_password") if _on_command_line(ctx, name)]
    if len(explicit) > 1:
        raise click.UsageError("-P, --pw-file and --ask-password exclude each other; give one of them.")
    if explicit != ["password"]:
        if given["ask_password"]:
            password = click.prompt("Password", hide_input=True, err=True)
        elif given["pw_file"]:
            password = _read_password(given["pw_file"])
    if password is not None and username is None:
        raise click.UsageError("a password needs a user name: -u.")
    return username, password


def _read_password(path: str) -> str:
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise Failure(f"--pw-file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(f"--pw-file {path}: the password is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def _client_id(ctx: click.Context, given: dict[str, Any]) -> str:
    client_id, prefix = given["id"], given["id_prefix"]
    if client_id is not None and prefix is not None:
        raise click.UsageError("-i and -I exclude each other; give one of them.")
    if given["disable_clean_session"] and not client_id and prefix is None:
        raise click.UsageError("-c keeps a session that only the same client id finds again: give -i or -I.")
    if prefix is not None:
        return f"{prefix}{os.getpid()}"
    if client_id is not None:
        return str(client_id)
    # At most 23 characters, the limit of MQTT 3.1.
    return f"tidings_{ctx.info_name}_{secrets.token_hex(4)}"


def _tls(given: dict[str, Any], target: Target) -> ssl.SSLContext | None:
    named = [name for name in ("cafile", "capath", "cert", "tls_use_os_certs") if given[name]]
    wanted = bool(named) or target.tls or (target.transport == "tcp" and target.port == 8883)
    if given["no_tls"]:
        if named or target.tls:
            raise click.UsageError("--no-tls contradicts the options or the URL that ask for TLS.")
        return None
    if not wanted:
        for name in ("key", "ciphers", "insecure", "tls_version", "tls_alpn"):
            if given[name]:
                option = name.replace("_", "-")
                raise click.UsageError(f"--{option} needs TLS: --cafile, --tls-use-os-certs or an mqtts URL.")
        return None
    if target.transport == "unix":
        raise click.UsageError("TLS over a Unix domain socket is not supported.")
    try:
        context = ssl.create_default_context(cafile=given["cafile"], capath=given["capath"])
        if given["tls_use_os_certs"]:
            context.load_default_certs()
        if given["cert"]:
            context.load_cert_chain(given["cert"], given["key"])
        if given["ciphers"]:
            context.set_ciphers(given["ciphers"])
    except (ssl.SSLError, OSError) as error:
        files = ", ".join(f"--{name} {given[name]}" for name in ("cafile", "capath", "cert", "key") if given[name])
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise Failure(f"TLS cannot be set up with {files or '--ciphers'}: {reason}") from None
    if given["tls_version"]:
        context.minimum_version = context.maximum_version = TLS_VERSIONS[given["tls_version"]]
    if given["tls_alpn"]:
        context.set_alpn_protocols([given["tls_alpn"]])
    if given["insecure"]:
        context.check_hostname = False
    return context


def _will(given: dict[str, Any]) -> Will | None:
    if not given["will_topic"]:
        if given["will_payload"] or given["will_qos"] or given["will_retain"]:
            raise click.UsageError("--will-payload, --will-qos and --will-retain need --will-topic.")
        return None
    payload = os.fsencode(given["will_payload"])
    if len(payload) > 0xFFFF:
        raise click.UsageError(f"--will-payload has {len(payload):,} bytes, more than the 65,535 of a will.")
    return Will(check_topic(given["will_topic"], "--will-topic"), payload, given["will_qos"], given["will_retain"])


def _properties(given: dict[str, Any], version: Version, packets: tuple[str, ...]) -> dict[str, Properties]:
    properties = by_command(given["property"], packets)
    expiry_s = given["session_expiry"]
    if version != Version.MQTTv5:
        if properties or expiry_s is not None:
            raise click.UsageError("-D and -x need MQTT 5: leave out -V, or give -V 5.")
        return properties
    if "will" in properties and not given["will_topic"]:
        raise click.UsageError("-D will needs --will-topic.")
    if expiry_s is None and given["disable_clean_session"]:
        expiry_s = NEVER_S
    if expiry_s is not None:
        connect = properties.setdefault("connect", new(PacketTypes.CONNECT))
        if hasattr(connect, "SessionExpiryInterval") and given["session_expiry"] is not None:
            raise click.UsageError("-x and -D connect session-expiry-interval are the same; give one of them.")
        if not hasattr(connect, "SessionExpiryInterval"):
            add(connect, "session-expiry-interval", expiry_s)
    return properties


def check_topic(topic: str, option: str) -> str:
    """``topic`` if a message can be published to it, else click.UsageError: not empty, no wildcards.

    `5.0 [MQTT-3.3.2-2]`, `5.0 [MQTT-4.7.3-1]`.
    """
    if not topic:
        raise click.UsageError(f"{option}: the topic is empty.")
    if "+" in topic or "#" in topic:
        raise click.UsageError(f"{option}: {topic!r} has a wildcard, + or #; messages are published to one topic.")
    return topic


def check_filter(topic_filter: str, option: str) -> str:
    """``topic_filter`` if it is a topic filter, else click.UsageError.

    `5.0 [MQTT-4.7.1-1]`, `5.0 [MQTT-4.7.1-2]`; for shared subscriptions `5.0 [MQTT-4.8.2-1]`, `5.0 [MQTT-4.8.2-2]`.
    """
    levels = topic_filter.split("/")
    if not topic_filter or any(("#" in level or "+" in level) and len(level) > 1 for level in levels):
        raise click.UsageError(f"{option}: {topic_filter!r} is no topic filter; + and # each stand for a whole level.")
    if "#" in levels[:-1]:
        raise click.UsageError(f"{option}: {topic_filter!r} is no topic filter; # is the last level.")
    if levels[0] == "$share" and (len(levels) < 3 or levels[1] in ("", "+", "#") or levels[2:] == [""]):
        raise click.UsageError(f"{option}: {topic_filter!r} is not $share/NAME/FILTER.")
    return topic_filter
