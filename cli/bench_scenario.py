"""The scenarios of ``tidings bench`` as one table: what each does, its defaults, its options, what decides.

Names are those of the open benchmark suites; their own spelling, such as ``fanout-1-1K-1-1K``, is read by ``preset``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tidings.devices import load_scenes, load_slow, load_storm
from tidings.devices.load import run
from tidings.devices.load_plan import Load, Measured, Target

_MESSAGES: Final = (
    "publishers",
    "subscribers",
    "rate",
    "window",
    "size_bytes",
    "qos",
    "version",
    "warmup_s",
    "transport",
)


@dataclass(frozen=True)
class Scenario:
    """``headline``: the metric that decides. ``options``: what of ``load`` the command line may set.

    ``bounded``: brokers keep a bound on what waits for a client; else nothing that is owed may be dropped.
    ``any_version``: a broker that does not speak the version asked for is measured with the newest that it does.
    """

    name: str
    summary: str
    play: Callable[[Load, Target], Measured]
    load: Load
    headline: str = "messages_per_s"
    options: tuple[str, ...] = _MESSAGES
    bounded: bool = False
    any_version: bool = False


SCENARIOS: Final = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "one-to-one",
            "Pairs of a publisher and a subscriber, each with a topic of its own.",
            run,
            Load("pairs", 10, 10),
            options=("pairs", *_MESSAGES[2:]),
        ),
        Scenario("fan-in", "Many publishers, one subscriber who hears all of them.", run, Load("all", 10, 1)),
        Scenario("fan-out", "One publisher, many subscribers who all hear it.", run, Load("all", 1, 50)),
        Scenario("shared-sub", "Subscribers that share one subscription.", run, Load("shared", 5, 5, qos=1, version=5)),
        Scenario(
            "latency",
            "Pairs at a fixed rate, whatever the broker does; latency from the intended send time.",
            run,
            Load("pairs", 10, 10, rate=10_000.0, warmup_s=1.0, seconds=5.0),
            "p99_ms",
            ("pairs", "rate", "size_bytes", "qos", "version", "warmup_s", "transport"),
        ),
        Scenario(
            "conn",
            "Idle connections with one subscription each: how fast they are accepted, what one occupies.",
            load_scenes.connect,
            Load("all", 0, 1000),
            "connections_per_s",
            ("clients", "at_once", "version"),
        ),
        Scenario(
            "retained",
            "Wildcard look-ups of 1,000 among many retained messages, and what bystanders notice.",
            load_scenes.retained,
            Load("all", 1, 1, amount=100_000, warmup_s=1.0),
            "p50_ms",
            ("messages", "size_bytes", "version"),
        ),
        Scenario(
            "offline-queue",
            "Messages wait for sessions that are away; then all come back.",
            load_scenes.offline_queue,
            Load("all", 1, 10, qos=1, amount=10_000),
            options=("subscribers", "messages", "window", "size_bytes", "qos_queued", "version"),
        ),
        Scenario(
            "slow-consumer",
            "Fast subscribers with and without two others: one that does not read, one that reads 1 % of the messages.",
            load_slow.slow_consumer,
            Load("all", 5, 100, 1, 5, 1024, policy="latest", warmup_s=1.0, seconds=6.0),
            "healthy_ratio",
            ("publishers", "subscribers", "half_rate", "policy", "size_bytes", "qos", "version", "warmup_s"),
            bounded=True,
            any_version=True,
        ),
        Scenario(
            "reconnect-storm",
            "Clients vanish, messages wait for them, and all come back at once; until each has everything.",
            load_storm.reconnect_storm,
            Load("all", 0, 1000, qos=1, amount=10, warmup_s=1.0),
            "all_served_s",
            ("clients", "waiting", "size_bytes", "version"),
        ),
    )
}

SUITE: Final[tuple[tuple[str, dict[str, int]], ...]] = (
    ("fan-in", {"qos": 0}),
    ("fan-in", {"qos": 1}),
    ("fan-in", {"qos": 2}),
    ("fan-in", {"qos": 1, "version": 5}),
    ("fan-out", {"qos": 0}),
    ("fan-out", {"qos": 1}),
    ("one-to-one", {"qos": 1}),
    ("one-to-one", {"qos": 1, "publishers": 500, "window": 1}),
    ("fan-in", {"qos": 1, "publishers": 1000, "window": 1}),
    ("shared-sub", {}),
    ("latency", {"qos": 0}),
    ("latency", {"qos": 1}),
    ("conn", {"subscribers": 10_000}),
    ("retained", {}),
    ("offline-queue", {}),
    ("slow-consumer", {}),
    ("reconnect-storm", {"subscribers": 10_000}),
)
"""What ``tidings bench suite`` measures: scenarios with the settings in which they differ from their defaults."""

_SUITE_NAMES: Final = {
    "conn": "conn",
    "fanout": "fan-out",
    "fanin": "fan-in",
    "p2p": "one-to-one",
    "sharedsub": "shared-sub",
}
_NUMBER: Final = r"(\d+)(K|M)?"
_CONN: Final = re.compile(rf"(?:singlenode-)?conn-(?:tcp-)?{_NUMBER}-{_NUMBER}")
_STREAM: Final = re.compile(rf"(?:singlenode-)?(fanout|fanin|p2p|sharedsub)-{_NUMBER}-{_NUMBER}-{_NUMBER}-{_NUMBER}")


def preset(name: str) -> Scenario | None:
    """A scenario spelled ``[singlenode-]SCENARIO-PUBLISHERS-SUBSCRIBERS-PUBRATE-SUBRATE`` or ``conn-tcp-CLIENTS-RATE``.

    Settings are those of that suite: QoS 1, 16 bytes, 3.1.1, and 5.0 for shared subscriptions. None: not such a name.
    """
    if found := _CONN.fullmatch(name):
        base = SCENARIOS["conn"]
        load = Load("all", 0, _number(found[1], found[2]))
        return Scenario(name, base.summary, base.play, load, base.headline, ("at_once",))
    found = _STREAM.fullmatch(name)
    if found is None:
        return None
    base = SCENARIOS[_SUITE_NAMES[found[1]]]
    publishers, subscribers, rate, _ = (_number(found[i], found[i + 1]) for i in (2, 4, 6, 8))
    version = 5 if found[1] == "sharedsub" else 4
    load = Load(base.load.shape, publishers, subscribers, 1, version, 16, rate=float(rate), seconds=10.0)
    return Scenario(name, base.summary, run, load, "p99_ms", ("warmup_s",))


def _number(digits: str, unit: str | None) -> int:
    return int(digits) * {None: 1, "K": 1000, "M": 1_000_000}[unit]
