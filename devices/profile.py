"""A kind of device, as YAML describes it, and what follows from it for each single one: names, topics and times.

Everything here is a function of the profile, the seed and the device's name. ``tick_time`` puts publishing times on a
fixed grid, each moved by its own jitter, so that lateness never adds up and any tick can be had without those before
it.
"""

from string import Formatter
from typing import Annotated, Final, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tidings.broker.config_file import Seconds

from .filters import topic_error
from .stamp import is_publisher_name
from .streams import stream_key, uniform
from .waves import Measurement, Strict, is_number

_VERSIONS: Final = {"3.1.1": 4, "5": 5, "5.0": 5}


def _parse_version(value: object) -> int:
    version = _VERSIONS.get(str(value))
    if version is None:
        raise ValueError("an MQTT version: 3.1.1 or 5.0")
    return version


def _require_name(name: str) -> str:
    if not is_publisher_name(name) or len(name) > 100:
        raise ValueError("a name of at most 100 letters, digits and -_.~")
    return name


Version = Annotated[int, BeforeValidator(_parse_version)]
"""3.1.1 or 5.0 in a file, 4 or 5 (the protocol level) in the program."""
Name = Annotated[str, AfterValidator(_require_name)]
Qos = Annotated[int, Field(ge=0, le=2)]


def check_template(template: str, names: set[str]) -> None:
    """Raises ValueError if ``template`` does not give topics when ``names`` are filled in."""
    allowed = ", ".join(f"{{{name}}}" for name in sorted(names))
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"a topic template: {error}") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field not in names or spec or conversion):
            raise ValueError(f"only {allowed} in braces, not {{{field}}}")
    error_text = topic_error(template.format_map(dict.fromkeys(names, "x")))
    if error_text is not None:
        raise ValueError(error_text)


class Alarm(Strict):
    """A message when a measurement crosses a limit, and another when it is back."""

    measurement: str
    above: float | None = None
    below: float | None = None
    clear: float | None = Field(default=None, description="where it counts as back; the limit itself if absent")
    topic: str = "alarm/{device}/{measurement}"
    qos: Qos = 1
    retain: bool = False

    @model_validator(mode="after")
    def _one_limit(self) -> "Alarm":
        if (self.above is None) == (self.below is None):
            raise ValueError("one of above and below")
        if self.clear is not None and (
            (self.above is not None and self.clear > self.above) or (self.below is not None and self.clear < self.below)
        ):
            raise ValueError("clear on the good side of the limit")
        return self

    def next_state(self, raised: bool, value: float) -> bool:
        """Whether the alarm is raised after ``value``, given that it was or was not before."""
        if self.above is not None:
            back = self.above if self.clear is None else self.clear
            return value > self.above if not raised else value > back
        below = cast(float, self.below)
        back = below if self.clear is None else self.clear
        return value < below if not raised else value < back


class Connection(Strict):
    """How clients of one kind connect; part of profiles, replays and consumers."""

    version: Version = Field(default=5, description="MQTT version: 5.0 or 3.1.1")
    keep_alive: Seconds = Field(default=30.0, ge=1, le=65535)


class Profile(Connection):
    """One kind of device."""

    count: int = Field(default=1, ge=1, le=100_000)
    every: Seconds = Field(ge=0.001, description="time between two publications of a device")
    jitter: float = Field(default=0.0, ge=0, le=1, description="how far each one may be moved, as a part of `every`")
    measurements: dict[Name, Measurement] = Field(min_length=1)
    payload: Literal["each", "together"] = Field(
        default="each", description="a message for each measurement, or one for all"
    )
    topic: str = "dev/{device}/{measurement}"
    qos: Qos = 0
    retain: bool = False
    labels: dict[Name, str | list[str]] = Field(
        default_factory=dict, description="more names for topics; of a list each device gets one"
    )
    alarms: list[Alarm] = Field(default_factory=list)
    birth: str | None = Field(
        "status/{device}", description="retained online/offline topic, also of the will; null: none"
    )
    commands: str | None = Field(default="cmd/{device}", description="topic that the device obeys; null: none")
    session: Seconds = Field(
        default=60.0, ge=0, description="how long the broker keeps the session of a lost connection"
    )
    queue: int = Field(
        default=1000, ge=1, description="messages at QoS 1 and 2 that a device keeps while it cannot send"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Profile":
        common = {"profile", "device", *self.labels}
        if taken := {"profile", "device", "measurement"} & self.labels.keys():
            raise ValueError(f"labels with names of their own, not {', '.join(sorted(taken))}")
        check_template(self.topic, common | ({"measurement"} if self.payload == "each" else set()))
        if self.payload == "each" and len(self.measurements) > 1 and "{measurement}" not in self.topic:
            raise ValueError("{measurement} in topic, because there is a message for each measurement")
        for template in (self.birth, self.commands):
            if template is not None:
                check_template(template, common)
        for label, choices in self.labels.items():
            for choice in [choices] if isinstance(choices, str) else choices:
                if topic_error(choice) is not None:
                    raise ValueError(f"values of the label {label} that can stand in a topic")
            if not choices:
                raise ValueError(f"at least one value of the label {label}")
        for alarm in self.alarms:
            measured = self.measurements.get(alarm.measurement)
            if measured is None or not is_number(measured):
                raise ValueError(f"alarms on measurements that are numbers, not on {alarm.measurement}")
            check_template(alarm.topic, common | {"measurement"})
        return self


def device_name(profile_name: str, index: int) -> str:
    """The name of device ``index`` (from 0): it does not depend on how many there are."""
    return f"{profile_name}-{index + 1:04d}"


def topic_names(profile_name: str, profile: Profile, seed: int, device: str) -> dict[str, str]:
    """What stands for the names in braces in this device's topics, except ``{measurement}``."""
    names = {"profile": profile_name, "device": device}
    for label, choices in profile.labels.items():
        if isinstance(choices, str):
            names[label] = choices
        else:
            names[label] = choices[int(uniform(stream_key(seed, device, "label", label), 0) * len(choices))]
    return names


def tick_time(key: int, index: int, every_s: float, jitter: float) -> float:
    """When a device publishes for the ``index``-th time (from 0), in seconds since it began.

    The first lies anywhere in the first interval, so that devices which start together do not publish together.
    """
    phase = uniform(key, 0)
    moved = jitter * (uniform(key, index + 1) - 0.5)
    return every_s * max(0.0, phase + index + moved)
