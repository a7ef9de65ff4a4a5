"""A simulated device: a real MQTT client that does what its profile says.

It announces itself (a retained birth message, and a will for the day it vanishes), publishes what it measures on its
own grid of times, raises and clears alarms, obeys commands, and comes back after losing its connection.

Commands are JSON objects on the device's command topic: ``{"command": "ping"}``, ``read`` (publish now),
``set`` with ``"every": seconds``, ``reboot``. The answer goes to the response topic of the request with its correlation
data (5.0), else to the command topic plus ``/reply`` with the request's ``id`` (3.1.1 has neither).
"""

import json
from typing import Any

from tidings.broker.codec import MQTT_5_0, NO_PROPERTIES, Properties, Publish, SubscribeFilter, Will

from .client import State
from .clock import Timer
from .ports import ClientOptions
from .profile import Alarm, Profile, tick_time, topic_names
from .publisher import Publisher, Run, to_json
from .stamp import stamped
from .streams import stream_key, uniform
from .waves import Source, Value

_REBOOT_S = (1.0, 3.0)
_SHORTEST_S = 0.001


class Device(Publisher):
    """One device. ``begins_s``: when it is switched on, in seconds since the start of the run."""

    __slots__ = (
        "_alarms",
        "_base_s",
        "_birth",
        "_boots",
        "_commands",
        "_every_s",
        "_index",
        "_key",
        "_profile",
        "_reads",
        "_timer",
        "_topics",
        "profile_name",
    )

    def __init__(
        self, profile_name: str, profile: Profile, name: str, client_id: str, run: Run, begins_s: float
    ) -> None:
        self.profile_name = profile_name
        self._profile = profile
        names = topic_names(profile_name, profile, run.seed, name)
        self._birth = None if profile.birth is None else profile.birth.format_map(names)
        self._commands = None if profile.commands is None else profile.commands.format_map(names)
        epoch = run.epoch_us / 1e6
        self._reads = [Source(key, value, run.seed, name, epoch) for key, value in profile.measurements.items()]
        self._topics = {key: profile.topic.format_map({**names, "measurement": key}) for key in profile.measurements}
        self._alarms: list[tuple[Alarm, str, list[bool]]] = [
            (alarm, alarm.topic.format_map({**names, "measurement": alarm.measurement}), [False])
            for alarm in profile.alarms
        ]
        self._key = stream_key(run.seed, name, "ticks")
        self._every_s = float(profile.every)
        self._base_s = begins_s
        self._index = 0
        self._boots = 0
        self._timer: Timer | None = None
        super().__init__(name, run, self._options(client_id, profile, name, run))

    def _options(self, client_id: str, profile: Profile, name: str, run: Run) -> ClientOptions:
        will = None
        if self._birth is not None:
            will = Will(self._birth, stamped(to_json({"state": "lost"}), name, 0, run.epoch_us), 1, retain=True)
        return ClientOptions(
            client_id=client_id,
            version=profile.version,
            session_s=int(profile.session),
            keep_alive_s=int(profile.keep_alive),
            will=will,
            queue_count=profile.queue,
        )

    # -- life

    def begin(self) -> None:
        """Connect now, and publish from here on."""
        self.client.start()
        self._schedule()

    def finish(self) -> None:
        """Publish nothing more, except that it is going."""
        if self._timer is not None:
            self._timer.cancel()
        super().finish()
        if self.client.online:
            self._announce()

    def on_online(self, session_present: bool) -> None:
        super().on_online(session_present)
        self._boots += not session_present
        self.client.hold()
        if self._commands is not None and not session_present:
            self.client.subscribe([SubscribeFilter(self._commands, 1)])
        self._announce()
        self.client.release()

    def _announce(self) -> None:
        """What it is, or at the end that it goes: retained, for those who come later."""
        if self._birth is None:
            return
        time_s = self.run.elapsed()
        body: dict[str, Any] = {"state": "offline" if self.closing else "online"}
        if not self.closing:
            units = {key: value.unit for key, value in self._profile.measurements.items()}
            body |= {"profile": self.profile_name, "boots": self._boots, "measures": units}
        self.send(self._birth, to_json({**body, "time": self.run.iso_time(time_s)}), 1, time_s, retain=True)

    # -- publishing

    def _schedule(self) -> None:
        time_s = self._base_s + tick_time(self._key, self._index, self._every_s, self._profile.jitter)
        if self.run.end_s is None or time_s < self.run.end_s:
            self._timer = self.run.clock.call_at(self.run.zero + time_s, self._tick, time_s)

    def _tick(self, time_s: float) -> None:
        self._index += 1
        self.client.hold()
        self.publish_all(time_s)
        self.client.release()
        self._schedule()

    def publish_all(self, time_s: float) -> None:
        """Everything it measures at ``time_s``, and the alarms that follow."""
        profile, run = self._profile, self.run
        values = {source.name: source.at(time_s) for source in self._reads}
        time = run.iso_time(time_s)
        if profile.payload == "together":
            topic = next(iter(self._topics.values()))
            self.send(topic, to_json({**values, "time": time}), profile.qos, time_s, retain=profile.retain)
        else:
            for name, value in values.items():
                body: dict[str, Any] = {"value": value}
                if (unit := profile.measurements[name].unit) is not None:
                    body["unit"] = unit
                body["time"] = time
                self.send(self._topics[name], to_json(body), profile.qos, time_s, retain=profile.retain)
        if self._alarms:
            self._check_alarms(values, time_s, time)

    def _check_alarms(self, values: dict[str, Value], time_s: float, time: str) -> None:
        for alarm, topic, raised in self._alarms:
            value = float(values[alarm.measurement])
            after = alarm.next_state(raised[0], value)
            if after != raised[0]:
                body = {"alarm": "raised" if after else "cleared", "measurement": alarm.measurement, "value": value}
                if self.send(topic, to_json({**body, "time": time}), alarm.qos, time_s, retain=alarm.retain):
                    raised[0] = after

    def burst(self, messages: int, time_s: float) -> None:
        """Publish everything ``messages`` times at once; each a microsecond of scenario time after the other."""
        self.client.hold()
        for index in range(messages):
            self.publish_all(time_s + index * 1e-6)
        self.client.release()

    # -- commands

    def on_message(self, message: Publish) -> bool:
        if self.closing:
            return True
        self.client.hold()
        reply, then = self._obey(message)
        topic = message.properties.get("response_topic")
        properties: Properties = NO_PROPERTIES
        if topic is None:
            topic = f"{message.topic}/reply"
        elif (correlation := message.properties.get("correlation_data")) is not None:
            properties = {"correlation_data": correlation}
        if self.client.options.version != MQTT_5_0:
            properties = NO_PROPERTIES
        if message.qos:
            # The acknowledgement goes first, so that a reboot does not leave the command to be delivered again.
            self.client.acknowledge(message)
        self.send(topic, to_json({**reply, "device": self.name}), 1, self.run.elapsed(), properties=properties)
        self.client.release()
        if then == "read":
            self.publish_all(self.run.elapsed())
        elif then == "reboot":
            self._reboot()
        return False

    def _obey(self, message: Publish) -> tuple[dict[str, Any], str]:
        """The answer to a command, and its name if it was a good one."""
        try:
            request = json.loads(message.payload)
            command = request["command"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "error": 'expected a JSON object with "command"'}, ""
        reply: dict[str, Any] = {"ok": True, "command": command}
        if "id" in request:
            reply["id"] = request["id"]
        if command == "set":
            every = request.get("every")
            if isinstance(every, bool) or not isinstance(every, int | float) or not _SHORTEST_S <= every < 1e9:
                return {**reply, "ok": False, "error": f'expected "every" in seconds, at least {_SHORTEST_S}'}, ""
            self._set_every(float(every))
        elif command not in ("ping", "read", "reboot"):
            return {**reply, "ok": False, "error": "expected ping, read, set or reboot"}, ""
        return reply, command

    def _set_every(self, every_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._every_s, self._base_s, self._index = every_s, self.run.elapsed(), 0
        self._schedule()

    def _reboot(self) -> None:
        self.client.pause(abrupt=False)
        shortest, longest = _REBOOT_S
        away = shortest + (longest - shortest) * uniform(self._key, -1 - self._boots)
        self.run.clock.call_at(self.run.clock.now() + away, self._boot)

    def _boot(self) -> None:
        if not self.closing and self.client.state is State.IDLE:
            self.client.start()
