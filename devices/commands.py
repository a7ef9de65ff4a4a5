"""The operator: sends commands to devices and waits for their answers, as a control room does.

Requests go to the devices of a profile one after the other. In 5.0 an answer is recognised by its correlation data, in
3.1.1 by the ``id`` in it. What it counts is reported and breaks no promise: a device may be away.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from tidings.broker.codec import MQTT_5_0, NO_PROPERTIES, Properties, Publish, SubscribeFilter

from .histogram import Histogram
from .ports import ClientOptions
from .profile import topic_names
from .publisher import Publisher, Run, to_json
from .scenario import CommandSpec, Scenario

OPERATOR = "operator"


@dataclass(slots=True)
class CommandCount:
    """What became of the requests of one kind. ``unanswered`` counts those whose time is up."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    unanswered: int = 0
    round_trip: Histogram = field(default_factory=Histogram)


class Operator(Publisher):
    """The client that sends a scenario's commands."""

    __slots__ = ("_next_id", "_open", "_reply_topic", "_scenario", "_targets", "counts")

    def __init__(self, scenario: Scenario, targets: dict[str, list[str]], client_id: str, run: Run) -> None:
        self._scenario = scenario
        self._reply_topic = f"reply/{client_id}"
        self._targets = {
            name: [
                str(scenario.devices[name].commands).format_map(
                    topic_names(name, scenario.devices[name], run.seed, device)
                )
                for device in devices
            ]
            for name, devices in targets.items()
        }
        self._next_id = 0
        self._open: dict[int, tuple[CommandCount, float]] = {}
        self.counts: dict[str, CommandCount] = {}
        super().__init__(OPERATOR, run, ClientOptions(client_id, scenario.version or MQTT_5_0, keep_alive_s=30))

    def begin(self) -> None:
        for spec in self._scenario.commands:
            first = spec.every if spec.at is None else spec.at
            assert first is not None
            self._schedule(spec, first, 0)

    def on_online(self, session_present: bool) -> None:
        super().on_online(session_present)
        if self.client.options.version == MQTT_5_0:
            filters = [self._reply_topic]
        else:
            filters = sorted({f"{topic}/reply" for topics in self._targets.values() for topic in topics})
        # Many filters go in several packets: some brokers limit their number.
        for start in range(0, len(filters), 100):
            self.client.subscribe([SubscribeFilter(one, 1) for one in filters[start : start + 100]])

    def _schedule(self, spec: CommandSpec, time_s: float, index: int) -> None:
        if not self.closing and (self.run.end_s is None or time_s < self.run.end_s):
            self.run.clock.call_at(self.run.zero + time_s, self._command, spec, time_s, index)

    def _command(self, spec: CommandSpec, time_s: float, index: int) -> None:
        if self.closing:
            return
        topics = self._targets[spec.to]
        self._next_id += 1
        request: dict[str, Any] = {"command": spec.send, "id": self._next_id}
        if spec.interval is not None:
            request["every"] = spec.interval
        properties: Properties = NO_PROPERTIES
        if self.client.options.version == MQTT_5_0:
            properties = {"response_topic": self._reply_topic, "correlation_data": str(self._next_id).encode()}
        count = self.counts.setdefault(f"{spec.send} to {spec.to}", CommandCount())
        if self.send(topics[index % len(topics)], to_json(request), spec.qos, time_s, properties=properties):
            count.sent += 1
            self._open[self._next_id] = (count, time_s)
            self.run.clock.call_at(self.run.zero + time_s + spec.timeout, self._give_up, self._next_id)
        if spec.every is not None:
            self._schedule(spec, time_s + spec.every, index + 1)

    def on_message(self, message: Publish) -> bool:
        try:
            answer = json.loads(message.payload)
            correlation = message.properties.get("correlation_data")
            request_id = int(correlation) if correlation is not None else int(answer["id"])
            accepted = answer["ok"] is True
        except (ValueError, TypeError, KeyError, RecursionError):
            return True
        count, time_s = self._open.pop(request_id, (None, 0.0))
        if count is not None:
            count.answered += 1
            count.refused += not accepted
            count.round_trip.record(round((self.run.elapsed() - time_s) * 1e6))
        return True

    def _give_up(self, request_id: int) -> None:
        count, _ = self._open.pop(request_id, (None, 0.0))
        if count is not None:
            count.unanswered += 1

    def settle(self) -> None:
        """The run is over: what is still open stays unanswered."""
        for request_id in list(self._open):
            self._give_up(request_id)
