"""A scenario in words, before it runs: who publishes how much, who should hear it, and what will go wrong when."""

from collections.abc import Iterator
from itertools import islice

from .faults import occasions
from .filters import matches
from .fleet import Fleet
from .profile import Profile, device_name, topic_names
from .scenario import ConsumerSpec, Scenario

_SHOWN = 5


def plan_lines(fleet: Fleet) -> Iterator[str]:
    """The plan of a fleet, a line for each part."""
    scenario = fleet.scenario
    yield (
        f"{scenario.name}: {fleet.client_count:,} clients for {fleet.duration_s:g} s, seed {scenario.seed}, "
        f"{fleet.address}"
    )
    for name, profile in scenario.devices.items():
        yield f"  {profile.count:,} {name}: {_rate(profile)} at QoS {profile.qos} to {_topics(scenario, name)[0]}"
    for name, recording in fleet.recordings.items():
        skipped = f", {recording.skipped} malformed rows skipped" if recording.skipped else ""
        yield f"  replay {name}: {len(recording.rows):,} rows of {len(recording.devices)} devices{skipped}"
    for name, consumer in scenario.consumers.items():
        yield f"  consumer {name}: {_consumer(consumer)}, hears {_heard(scenario, consumer)}"
    for command in scenario.commands:
        when = f"every {command.every:g} s" if command.every is not None else f"at {command.at:g} s"
        yield f"  command {command.send} to {command.to} {when}"
    for fault in scenario.faults:
        times = [f"{time_s:g}" for time_s in islice(occasions(fault, fleet.duration_s), _SHOWN + 1)]
        shown = ", ".join(times[:_SHOWN]) + (", …" if len(times) > _SHOWN else "")
        when = f"at {shown} s" if times else "never, the run is too short"
        yield f"  fault {fault.kind} of {fault.share:.0%} of {fault.who}: {when}"


def _rate(profile: Profile) -> str:
    messages = len(profile.measurements) if profile.payload == "each" else 1
    return f"{profile.count * messages / profile.every:,.1f} messages/s"


def _topics(scenario: Scenario, profile_name: str) -> list[str]:
    """What the first device of a profile publishes to."""
    profile = scenario.devices[profile_name]
    names = topic_names(profile_name, profile, scenario.seed, device_name(profile_name, 0))
    topics = [profile.topic.format_map({**names, "measurement": key}) for key in profile.measurements]
    topics += [alarm.topic.format_map({**names, "measurement": alarm.measurement}) for alarm in profile.alarms]
    return list(dict.fromkeys([*topics, *([profile.birth.format_map(names)] if profile.birth else [])]))


def _consumer(consumer: ConsumerSpec) -> str:
    text = ", ".join(f"{topic_filter} at QoS {qos}" for topic_filter, qos in consumer.wanted)
    if consumer.share is not None:
        text += f", {consumer.count} sharing as {consumer.share}"
    elif consumer.count > 1:
        text += f", {consumer.count:,} of them"
    if consumer.rate is not None:
        text += f", {consumer.rate:g} messages/s"
    for away in consumer.offline:
        text += f", away from {away.at:g} to {away.at + away.duration:g} s"
    return text


def _heard(scenario: Scenario, consumer: ConsumerSpec) -> str:
    """Whose topics its filters match, judged by the first device of each kind."""
    heard = [name for name in scenario.devices if any(_wants(consumer, topic) for topic in _topics(scenario, name))]
    heard += [
        name
        for name, replay in scenario.replays.items()
        if _wants(consumer, replay.topic.format_map({"replay": name, "device": "x"}))
    ]
    return ", ".join(heard) or "nobody: no device publishes to such topics"


def _wants(consumer: ConsumerSpec, topic: str) -> bool:
    return any(matches(topic_filter, topic) for topic_filter, _ in consumer.wanted)
