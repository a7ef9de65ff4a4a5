"""What a device measures: waveforms as functions of (device, time), described in YAML.

A measurement's value at a time depends on the scenario's seed, the names of device and measurement, and that time, and
on nothing else: not on how often it was asked before. Times are seconds since the start of the run; ``epoch`` is what
the scenario's clock showed then, in seconds since 1970 (only ``daily`` needs it).
"""

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tidings.broker.config_file import Seconds

from .streams import gauss, stream_key, uniform

Value = float | int | str | bool

_DAY_S: Final = 86400.0


class Strict(BaseModel):
    """Every model of a scenario: unknown keys are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class _Measurement(Strict):
    unit: str | None = Field(default=None, description="what the numbers count, such as °C")


class _Number(_Measurement):
    noise: float = Field(default=0.0, ge=0, description="standard deviation of normal noise added to the wave")
    min: float | None = Field(default=None, description="lower bound of what is reported")
    max: float | None = Field(default=None, description="upper bound of what is reported")
    precision: int = Field(default=2, ge=0, le=9, description="decimals; 0 gives whole numbers")

    @model_validator(mode="after")
    def _ordered(self) -> "_Number":
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min to be at most max")
        low, high = getattr(self, "low", None), getattr(self, "high", None)
        if low is not None and high is not None and low > high:
            raise ValueError("low to be at most high")
        return self


class _Range(_Number):
    low: float = Field(description="lowest value of the wave")
    high: float = Field(description="highest value of the wave")


class _Periodic(_Range):
    period: Seconds = Field(gt=0, description="one cycle")
    phase: float | None = Field(
        None, ge=0, lt=1, description="where the cycle starts, 0 to 1; each device its own if absent"
    )


class Constant(_Measurement):
    """Always the same."""

    wave: Literal["constant"]
    value: Value


class Sine(_Periodic):
    """Between low and high as a sine."""

    wave: Literal["sine"]


class Square(_Periodic):
    """high for the first part of the period, low for the rest."""

    wave: Literal["square"]
    duty: float = Field(default=0.5, gt=0, lt=1, description="the part of the period spent at high")


class Sawtooth(_Periodic):
    """From low to high, then down at once."""

    wave: Literal["sawtooth"]


class Triangle(_Periodic):
    """From low to high and back."""

    wave: Literal["triangle"]


class Daily(_Range):
    """One cycle a day with its highest value at ``peak_hour`` of the scenario's time, in UTC."""

    wave: Literal["daily"]
    peak_hour: float = Field(default=15.0, ge=0, lt=24)


class Noise(_Range):
    """Evenly distributed between low and high, each value on its own."""

    wave: Literal["noise"]


class Walk(_Range):
    """A random walk that is reflected at low and high."""

    wave: Literal["walk"]
    step: float = Field(gt=0, description="standard deviation of one step")
    step_every: Seconds = Field(default=1.0, ge=0.001, description="time between steps")


class Counter(_Measurement):
    """A meter: only ever goes up, in whole numbers."""

    wave: Literal["counter"]
    rate: float = Field(gt=0, description="how much it counts a second")
    start: int = Field(default=0, ge=0)


class Choice(_Measurement):
    """One of a list, drawn anew every ``hold``; with ``hold: 0``, for every message."""

    wave: Literal["choice"]
    values: list[Value] = Field(min_length=1)
    weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="how often, one for each value"
    )
    hold: Seconds = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _weighed(self) -> "Choice":
        if self.weights is not None and (len(self.weights) != len(self.values) or sum(self.weights) <= 0):
            raise ValueError("as many weights as values, not all 0")
        return self


Measurement = Annotated[
    Constant | Sine | Square | Sawtooth | Triangle | Daily | Noise | Walk | Counter | Choice,
    Field(discriminator="wave"),
]


class Source:
    """One measurement of one device. ``key`` is that of its random stream."""

    __slots__ = ("_epoch", "_key", "_step", "_value", "measurement", "name")

    def __init__(self, name: str, measurement: Measurement, seed: int, device: str, epoch: float) -> None:
        self.name = name
        self.measurement = measurement
        self._key = stream_key(seed, device, name)
        self._epoch = epoch
        self._step = -1
        """The last step of a walk that was computed, and its value: a cache, the result does not depend on it."""
        self._value = 0.0

    def at(self, time_s: float) -> Value:
        """The value at ``time_s`` since the start of the run."""
        kind = self.measurement
        if isinstance(kind, Constant):
            return kind.value
        if isinstance(kind, Choice):
            return self._choose(kind, time_s)
        if isinstance(kind, Counter):
            return kind.start + math.floor(kind.rate * time_s + 1e-9)
        value = self._wave(kind, time_s)
        if kind.noise:
            value += kind.noise * gauss(self._key ^ 0x5A5A5A5A, _microseconds(time_s))
        if kind.min is not None:
            value = max(value, kind.min)
        if kind.max is not None:
            value = min(value, kind.max)
        return round(value, kind.precision) if kind.precision else round(value)

    def _wave(self, kind: "Sine | Square | Sawtooth | Triangle | Daily | Noise | Walk", time_s: float) -> float:
        if isinstance(kind, Walk):
            return self._walk(kind, time_s)
        span = kind.high - kind.low
        if isinstance(kind, Noise):
            return kind.low + span * uniform(self._key, _microseconds(time_s))
        if isinstance(kind, Daily):
            hours = (self._epoch + time_s) % _DAY_S / 3600 - kind.peak_hour
            return kind.low + span * (0.5 + 0.5 * math.cos(2 * math.pi * hours / 24))
        phase = uniform(self._key, 0) if kind.phase is None else kind.phase
        turn = (time_s / kind.period + phase) % 1.0
        if isinstance(kind, Sine):
            part = 0.5 + 0.5 * math.sin(2 * math.pi * turn)
        elif isinstance(kind, Square):
            part = 1.0 if turn < kind.duty else 0.0
        elif isinstance(kind, Sawtooth):
            part = turn
        else:
            part = 2 * turn if turn < 0.5 else 2 - 2 * turn
        return kind.low + span * part

    def _walk(self, kind: Walk, time_s: float) -> float:
        step = math.floor(time_s / kind.step_every + 1e-9)
        span = kind.high - kind.low
        if self._step < 0 or step < self._step:
            self._step, self._value = 0, kind.low + span * uniform(self._key, 0)
        while self._step < step:
            self._step += 1
            self._value += kind.step * gauss(self._key, self._step)
            # Reflected at both ends, however far a step went: fold the line onto the range.
            if span > 0:
                folded = (self._value - kind.low) % (2 * span)
                self._value = kind.low + (folded if folded <= span else 2 * span - folded)
            else:
                self._value = kind.low
        return self._value

    def _choose(self, kind: Choice, time_s: float) -> Value:
        position = math.floor(time_s / kind.hold + 1e-9) if kind.hold else _microseconds(time_s)
        drawn = uniform(self._key, position)
        if kind.weights is None:
            return kind.values[int(drawn * len(kind.values))]
        mark = drawn * sum(kind.weights)
        for value, weight in zip(kind.values, kind.weights, strict=True):
            if mark < weight:
                return value
            mark -= weight
        return kind.values[-1]


def is_number(measurement: Measurement) -> bool:
    """Whether the values are numbers that a threshold can be compared with."""
    if isinstance(measurement, Constant):
        return isinstance(measurement.value, int | float) and not isinstance(measurement.value, bool)
    if isinstance(measurement, Choice):
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in measurement.values)
    return True


def _microseconds(time_s: float) -> int:
    return round(time_s * 1e6)
