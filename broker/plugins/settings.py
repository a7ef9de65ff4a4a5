"""amqtt's configuration files: what they say, in the words of ours, and a line for what has no such words.

amqtt itself is not imported. A file that may be either is amqtt's if ``listeners`` is a mapping of names, or if it has
a key that only amqtt knows. Keys of ours may stand in an amqtt file too.
"""

import re
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..config import Config
from ..config_file import load_yaml
from ..errors import ConfigError

DEFAULT_PORTS: Final = {"tcp": 1883, "ws": 8883}
LISTENERS: Final = "listeners"
OLD: Final = ("auth", "topic_check", "sys_interval")  # sections of the old style, which plugins read
ONLY_AMQTT: Final = frozenset(
    ("auth", "topic-check", "topic_check", "sys_interval", "timeout-disconnect-delay", "timeout_disconnect_delay",
     "session_expiry_interval")
)  # fmt: skip
_BIND: Final = re.compile(r"(?:(?P<host>\[[^]]*\]|[^:]*):)?(?P<port>\d*)")


class AmqttListener(BaseModel):
    """One of amqtt's listeners. What it does not set is as in the one called ``default``."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["tcp", "ws", "external"] | None = None
    bind: str | int | None = None
    max_connections: int | None = None
    ssl: bool | None = None
    cafile: Path | None = None
    capath: Path | None = None
    cadata: str | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    reader: str | None = None
    writer: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _dashes(cls, data: Any) -> Any:
        return _underscores(data) if isinstance(data, dict) else data


class AmqttConfig(Config):
    """amqtt's keys beside ours; the listeners are amqtt's."""

    listeners: dict[str, AmqttListener] = Field(default={})  # type: ignore[assignment]  # that is the difference
    sys_interval: int | None = None
    timeout_disconnect_delay: int | None = None
    session_expiry_interval: int | None = None
    auth: dict[str, Any] | None = None
    topic_check: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _dashes(cls, data: Any) -> Any:
        return _underscores(data) if isinstance(data, dict) else data


def read_config(path: Path) -> tuple[Config, list[str]]:
    """The options in a file of ours or of amqtt's, and a line for each setting of amqtt's that cannot be honoured.

    Raises ConfigError with one line for each mistake.
    """
    if not _is_amqtt(path):
        return load_yaml(path, Config), []
    return translate(load_yaml(path, AmqttConfig), str(path))


def translate(theirs: AmqttConfig, name: str) -> tuple[Config, list[str]]:
    """amqtt's options as ours, and the lines of ``read_config``, which begin with ``name``."""
    notes: list[str] = []
    ours: dict[str, Any] = {
        key: getattr(theirs, key) for key in theirs.model_fields_set if key in Config.model_fields and key != LISTENERS
    }
    listeners = _listeners(theirs, name, notes)
    if listeners:
        ours[LISTENERS] = listeners
    if theirs.session_expiry_interval is not None:
        ours["max_session_expiry_s"] = theirs.session_expiry_interval
    if theirs.timeout_disconnect_delay:
        notes.append("timeout-disconnect-delay: not honoured; a silent client goes after 1.5 times its keep-alive")
    old = {key: value for key in OLD if (value := getattr(theirs, key)) is not None}
    if old and "plugins" not in theirs.model_fields_set:
        ours["plugin_sections"] = old
    elif old:
        notes.append(f"{', '.join(sorted(old))}: of amqtt's old style, and not read beside 'plugins'")
    elif "plugins" not in theirs.model_fields_set:
        notes.append("plugins: there is no such section; everybody is let in, as with amqtt's default plugins")
    return Config.model_validate(ours), [f"{name}: {note}" for note in notes]


def _is_amqtt(path: Path) -> bool:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False  # reading it properly says what is wrong
    return isinstance(data, dict) and (isinstance(data.get(LISTENERS), dict) or not ONLY_AMQTT.isdisjoint(data))


def _underscores(data: dict[Any, Any]) -> dict[Any, Any]:
    return {key.replace("-", "_") if isinstance(key, str) else key: value for key, value in data.items()}


def _listeners(config: AmqttConfig, path: str, notes: list[str]) -> list[dict[str, Any]]:
    default = config.listeners.get("default", AmqttListener())
    found: list[dict[str, Any]] = []
    limited = False
    for name, listener in config.listeners.items():
        where = f"listeners.{name}"
        fields = AmqttListener.model_fields
        merged = {key: getattr(listener, key) for key in fields}
        for key in fields:
            if merged[key] is None:
                merged[key] = getattr(default, key)
        if merged["type"] == "external":
            notes.append(f"{where}: not opened; listeners of type external belong to another program's server")
            continue
        if merged["bind"] is None and (name != "default" or len(config.listeners) > 1):
            notes.append(f"{where}: not opened; it has no 'bind'")
            continue
        limited = limited or (merged["max_connections"] or 0) > 0
        for key in ("capath", "cadata", "reader", "writer"):
            if merged[key] is not None:
                hint = "; use cafile" if key.startswith("ca") else ""
                notes.append(f"{where}.{key}: not honoured{hint}")
        found.append(_listener(where, merged, path))
    if limited:
        notes.append(
            "listeners: max_connections is not honoured; the option of that name beside 'listeners' counts all"
        )
    return found


def _listener(where: str, merged: dict[str, Any], path: str) -> dict[str, Any]:
    kind = merged["type"] or "tcp"
    scheme = {("tcp", True): "tls", ("ws", True): "wss"}.get((kind, bool(merged["ssl"])), kind)
    bind = "0.0.0.0:1883" if merged["bind"] is None else str(merged["bind"])
    match = _BIND.fullmatch(bind)
    if match is None:
        host, port = bind, str(DEFAULT_PORTS[kind])  # a host alone
    else:
        host, port = match["host"] or "0.0.0.0", match["port"] or str(DEFAULT_PORTS[kind])
    if not re.fullmatch(r"\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+", host) or int(port) > 65_535:
        raise ConfigError(f"{path}: {where}.bind: expected HOST:PORT, got {bind!r}")
    listener: dict[str, Any] = {"url": f"{scheme}://{host}:{port}"}
    if merged["ssl"]:
        if merged["certfile"] is None:
            raise ConfigError(f"{path}: {where}: ssl needs certfile and keyfile")
        listener |= {"certfile": merged["certfile"], "keyfile": merged["keyfile"]}
        if merged["cafile"] is not None:
            listener |= {"cafile": merged["cafile"], "client_certificates": "optional"}
    return listener
