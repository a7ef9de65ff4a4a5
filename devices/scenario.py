"""A scenario: which devices, replays, consumers, commands and faults make a run. Read from YAML, strictly.

It is a description only: nothing here connects or keeps time. Cross-checks between the parts are made when it is read,
so that a run never fails half-way because of a misspelt name.
"""

import re
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from tidings.broker.config_file import Seconds, load_yaml
from tidings.broker.policy import check_shared, newest_only, parse_policy

from .filters import filter_error, overlap
from .link import parse_address
from .profile import Connection, Name, Profile, Qos, Version, check_template
from .waves import Strict

_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*(s|m|h)\s*")
_PER: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _parse_rate(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (match := _RATE.fullmatch(value)):
        return float(match[1]) / _PER[match[2]]
    raise ValueError("a rate such as 20/s or 5/m")


Rate = Annotated[float, BeforeValidator(_parse_rate), Field(gt=0)]
"""Messages (or connections) a second."""


class Absence(Strict):
    """A consumer says goodbye at ``at`` and is back after ``for``."""

    at: Seconds = Field(ge=0)
    duration: Seconds = Field(gt=0, alias="for")


class Filter(Strict):
    """A topic filter with a QoS of its own."""

    filter: str
    qos: Qos


class ConsumerSpec(Connection):
    """Consumers of one kind: what they want, how fast they are, when they are away."""

    filters: list[str | Filter] = Field(min_length=1)
    qos: Qos = 1
    count: int = Field(default=1, ge=1, le=100_000)
    share: Name | None = Field(
        default=None, description="the group of a shared subscription; its members are `count` clients"
    )
    rate: Rate | None = Field(
        default=None, description="how fast messages are dealt with; as fast as they come if absent"
    )
    session: Seconds = Field(
        0.0, ge=0, description="how long the broker keeps the session; 0: ends with the connection"
    )
    offline: list[Absence] = Field(default_factory=list)
    policy: str | None = Field(
        default=None,
        description="the delivery policy it asks tidings for: all, latest, sample=RATE, with options; MQTT 3.1.1 "
        "cannot ask, there it says what the broker's configuration gives it",
    )
    receive_maximum: int = Field(
        default=100, ge=1, le=65535, description="how many unacknowledged messages it takes at once"
    )

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """(filter, QoS), without ``$share/…/``."""
        return [(one, self.qos) if isinstance(one, str) else (one.filter, one.qos) for one in self.filters]

    @property
    def newest_only(self) -> bool:
        """Whether the policy lets newer messages replace older ones of their topic."""
        return self.policy is not None and newest_only(parse_policy(self.policy))

    @model_validator(mode="after")
    def _consistent(self) -> "ConsumerSpec":
        if self.policy is not None:
            policy = parse_policy(self.policy)
            if self.share is not None:
                check_shared(f"$share/{self.share}/", policy)
        wanted = self.wanted
        for topic_filter, _ in wanted:
            if (wrong := filter_error(topic_filter)) is not None:
                raise ValueError(wrong)
            if topic_filter.startswith("$share/"):
                raise ValueError("share: NAME instead of a filter that begins with $share/")
        for index, (one, _) in enumerate(wanted):
            for other, _ in wanted[index + 1 :]:
                if overlap(one, other):
                    raise ValueError(
                        f"filters that do not overlap ({one} and {other} do), or a second copy looks like a duplicate"
                    )
        end = -1.0
        for away in sorted(self.offline, key=lambda absence: absence.at):
            if away.at < end:
                raise ValueError("offline times that do not overlap")
            end = away.at + away.duration
            if self.version == 5 and 0 < self.session <= away.duration:
                raise ValueError(f"a session longer than the {away.duration:g} s that the consumer is offline")
        if self.share is not None and len({qos for _, qos in wanted}) > 1:
            raise ValueError("one QoS for all filters of a shared subscription")
        return self


class Replay(Connection):
    """A recording: a CSV file with a column of times, published row by row with its spacing kept."""

    file: Path = Field(description="CSV with a header line; relative to the scenario's file")
    time: str = Field(description="name of the column of times")
    values: list[str] | None = Field(default=None, min_length=1, description="columns to publish; all others if absent")
    device: str | None = Field(default=None, description="column that names the device of a row; one device if absent")
    topic: str = "replay/{replay}/{device}"
    qos: Qos = 1
    retain: bool = False
    speed: float = Field(default=1.0, gt=0, description="2 plays twice as fast")
    time_unit: Literal["s", "ms", "us"] = Field(default="s", description="unit of times that are plain numbers")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="what a malformed row does: end the run, or be counted"
    )
    rows: int | None = Field(default=None, ge=1, description="how many rows to play; all if absent")

    @model_validator(mode="after")
    def _consistent(self) -> "Replay":
        check_template(self.topic, {"replay", "device"})
        return self


class CommandSpec(Strict):
    """Commands that an operator sends to the devices of a profile, one device after the other."""

    send: Literal["ping", "read", "set", "reboot"]
    to: str = Field(description="a profile")
    at: Seconds | None = Field(default=None, ge=0, description="once; the first time if `every` is given")
    every: Seconds | None = Field(default=None, ge=0.001)
    interval: Seconds | None = Field(
        default=None, ge=0.001, description="with `send: set`: the new time between publications"
    )
    qos: Qos = 1
    timeout: Seconds = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "CommandSpec":
        if self.at is None and self.every is None:
            raise ValueError("at, every or both")
        if (self.send == "set") != (self.interval is not None):
            raise ValueError("interval with send: set, and only there")
        return self


class _Timed(Strict):
    who: str
    at: Seconds | None = Field(default=None, ge=0, description="when; the first time if `every` is given")
    every: Seconds | None = Field(default=None, ge=0.001, description="again and again")
    share: float = Field(default=1.0, gt=0, le=1, description="which part of them, drawn anew each time")

    @model_validator(mode="after")
    def _when(self) -> "_Timed":
        if self.at is None and self.every is None:
            raise ValueError("at, every or both")
        return self


class Cut(_Timed):
    """TCP connections that end without a word; back after ``for``, or by the client's back-off if absent."""

    kind: Literal["cut"]
    duration: Seconds | None = Field(default=None, gt=0, alias="for")


class Freeze(_Timed):
    """Consumers that keep their connection open and do not read."""

    kind: Literal["freeze"]
    duration: Seconds = Field(gt=0, alias="for")


class Burst(_Timed):
    """Devices that publish ``messages`` times at once."""

    kind: Literal["burst"]
    messages: int = Field(ge=1, le=100_000)


Fault = Annotated[Cut | Freeze | Burst, Field(discriminator="kind")]


class Expectations(Strict):
    """What the verdict demands beyond the promises of MQTT."""

    qos0_loss_max: float = Field(default=1.0, ge=0, le=1, description="the part of a flow at QoS 0 that may be lost")


class Scenario(Strict):
    """The whole run."""

    name: Name
    seed: int = Field(default=0, ge=0)
    start: datetime | Literal["now"] = Field(
        default=datetime(2026, 1, 1, tzinfo=UTC),
        description="what the scenario's clock shows at the start; fixed, so that payloads are the same in every run",
    )
    url: str | None = None
    duration: Seconds | None = Field(
        default=None, gt=0, alias="for", description="how long; until all replays end if absent"
    )
    drain: Seconds = Field(default=10.0, ge=0, description="how long to wait at the end for what is owed")
    connect_rate: Rate = Field(default=500.0, description="devices that connect each second at the start")
    version: Version | None = Field(default=None, description="MQTT version of all clients that do not say otherwise")
    devices: dict[Name, Profile] = Field(default_factory=dict)
    replays: dict[Name, Replay] = Field(default_factory=dict)
    consumers: dict[Name, ConsumerSpec] = Field(default_factory=dict)
    commands: list[CommandSpec] = Field(default_factory=list)
    faults: list[Fault] = Field(default_factory=list)
    expect: Expectations = Expectations()
    _folder: Path = PrivateAttr(Path())

    @field_validator("start", mode="before")
    @classmethod
    def _with_zone(cls, value: object) -> object:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, str) and value != "now":
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError("a time such as 2026-01-01T00:00:00Z, or now") from None
        return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value

    @field_validator("url")
    @classmethod
    def _usable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_address(value)
            except Exception as error:
                raise ValueError(str(error).partition(": ")[2].removeprefix("expected ")) from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _version_for_all(cls, data: Any) -> Any:
        """``version`` at the top stands in for each client's own."""
        if not isinstance(data, dict) or "version" not in data:
            return data
        data = dict(data)
        for section in ("devices", "replays", "consumers"):
            parts = data.get(section)
            if isinstance(parts, dict):
                data[section] = {
                    name: {"version": data["version"], **part} if isinstance(part, dict) else part
                    for name, part in parts.items()
                }
        return data

    @model_validator(mode="after")
    def _consistent(self) -> "Scenario":
        if not self.devices and not self.replays:
            raise ValueError("devices, replays or both")
        if self.duration is None and self.devices:
            raise ValueError("for: how long devices publish")
        names = [*self.devices, *self.replays, *self.consumers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a name of its own for each profile, replay and consumer, not {twice[0]} twice")
        for command in self.commands:
            profile = self.devices.get(command.to)
            if profile is None or profile.commands is None:
                raise ValueError(f"commands to profiles that obey commands, not to {command.to}")
        for fault in self.faults:
            known = {"cut": names, "freeze": list(self.consumers), "burst": list(self.devices)}[fault.kind]
            if fault.who not in known:
                raise ValueError(
                    f"a {fault.kind} of {' or '.join(known) or 'nothing, there is none'}, not of {fault.who}"
                )
        return self

    @property
    def client_count(self) -> int:
        """How many connections the run needs at once, replayed devices not counted."""
        return (
            sum(profile.count for profile in self.devices.values())
            + sum(consumer.count for consumer in self.consumers.values())
            + bool(self.commands)
        )

    @property
    def folder(self) -> Path:
        """Where relative file names start."""
        return self._folder

    def changed(self, *, seed: int | None = None, duration: float | None = None, scale: float = 1.0) -> "Scenario":
        """A copy with another seed or duration, and ``scale`` times as many devices (at least one of each kind)."""
        update: dict[str, Any] = {}
        if seed is not None:
            update["seed"] = seed
        if duration is not None:
            update["duration"] = duration
        if scale != 1.0:
            update["devices"] = {
                name: profile.model_copy(update={"count": max(1, round(profile.count * scale))})
                for name, profile in self.devices.items()
            }
        return self.model_copy(update=update)

    def at(self, folder: Path) -> "Scenario":
        """This scenario with files looked for in ``folder``."""
        self._folder = folder
        return self


def load_scenario(path: Path) -> Scenario:
    """The scenario in the file at ``path``. Raises ConfigError: file, line, key, what was expected."""
    return load_yaml(path, Scenario).at(path.parent)
