"""A device on a virtual clock: what it says, when, and how it obeys."""

import json
from typing import Any

import pytest

from tidings.broker.codec import Connect, Disconnect, Puback, Publish, Subscribe
from tidings.devices.device import Device
from tidings.devices.profile import Profile
from tidings.devices.stamp import read_stamp

from .stage import EPOCH_US, Stage, body

BASE: dict[str, Any] = {
    "every": "2s",
    "qos": 1,
    "topic": "dev/{device}/{measurement}",
    "measurements": {
        "t": {"wave": "sine", "low": 0, "high": 10, "period": "20s", "phase": 0, "unit": "°C"},
        "n": {"wave": "counter", "rate": 1},
    },
}


class Single(Stage):
    """One device."""

    def __init__(self, name: str = "thermo-0001", seed: int = 1, **profile: Any) -> None:
        super().__init__(seed)
        self.profile = Profile.model_validate({**BASE, **profile})
        self.device = Device("thermo", self.profile, name, name, self.run, 0.0)
        self.name = name

    def begin(self) -> Connect:
        self.device.begin()
        return self.peers[self.name].accept()

    def raw(self, seconds: float) -> list[bytes]:
        """Payloads of telemetry within so many seconds, everything acknowledged as it comes."""
        payloads: list[bytes] = []
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)
            for packet in self.take(self.name):
                if isinstance(packet, Publish):
                    if packet.topic.startswith("dev/"):
                        payloads.append(packet.payload)
                    if packet.qos:
                        self.peers[self.name].say(Puback(packet.packet_id))
        return payloads

    def command(self, payload: object, **properties: Any) -> list[Any]:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        topic = self.profile.commands.format(device=self.name) if self.profile.commands else ""
        self.peers[self.name].say(Publish(topic, data, 1, packet_id=500, properties=properties))  # type: ignore[arg-type]
        return self.take(self.name)


def test_it_announces_itself_subscribes_to_commands_and_leaves_a_will() -> None:
    stage = Single()
    connect = stage.begin()
    assert connect.will is not None
    assert (connect.will.topic, connect.will.retain, connect.will.qos) == ("status/thermo-0001", True, 1)
    stamp = read_stamp(connect.will.payload)
    assert stamp is not None
    assert stamp.sequence == 0
    subscribe, birth = stage.take("thermo-0001")
    assert isinstance(subscribe, Subscribe)
    assert [one.filter for one in subscribe.filters] == ["cmd/thermo-0001"]
    assert (birth.topic, birth.retain) == ("status/thermo-0001", True)
    assert body(birth) == {
        "state": "online",
        "profile": "thermo",
        "boots": 1,
        "measures": {"t": "°C", "n": None},
        "time": "2026-01-01T00:00:00.000Z",
    }


def test_it_publishes_each_measurement_at_its_own_times() -> None:
    stage = Single()
    stage.begin()
    payloads = stage.raw(20)
    assert len(payloads) == 20
    stamps = [read_stamp(payload) for payload in payloads]
    times = sorted({stamp.at_us - EPOCH_US for stamp in stamps if stamp is not None})
    assert times == [times[0] + index * 2_000_000 for index in range(10)]
    first = json.loads(payloads[0])
    assert first["unit"] == "°C"
    assert first["time"].startswith("2026-01-01T00:00:0")


def test_together_means_one_message_with_all_measurements() -> None:
    stage = Single(payload="together", topic="dev/{device}")
    stage.begin()
    payloads = stage.raw(10)
    assert len(payloads) == 5
    assert {"t", "n", "time", "sent"} == json.loads(payloads[0]).keys()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    def run(seed: int, name: str = "thermo-0001") -> list[bytes]:
        stage = Single(name, seed, jitter=0.5, measurements={"w": {"wave": "walk", "low": 0, "high": 9, "step": 1}})
        stage.begin()
        return stage.raw(30)

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert [json.loads(one)["value"] for one in run(1)] != [json.loads(one)["value"] for one in run(1, "thermo-0002")]


def test_an_alarm_is_raised_once_and_cleared_behind_its_hysteresis() -> None:
    alarm = {"measurement": "t", "above": 8, "clear": 3, "qos": 2}
    stage = Single(every="1s", alarms=[alarm])
    stage.begin()
    alarms: list[dict[str, Any]] = []
    for _ in range(400):
        stage.clock.advance(0.1)
        for packet in stage.take(stage.name):
            if isinstance(packet, Publish) and packet.topic == "alarm/thermo-0001/t":
                assert packet.qos == 2
                alarms.append(body(packet))
            if isinstance(packet, Publish) and packet.qos == 1:
                stage.peers[stage.name].say(Puback(packet.packet_id))
    assert [one["alarm"] for one in alarms] == ["raised", "cleared", "raised", "cleared"]
    assert alarms[0]["value"] > 8
    assert alarms[1]["value"] <= 3


def test_an_alarm_below_a_limit() -> None:
    stage = Single(every="1s", alarms=[{"measurement": "t", "below": 2}])
    stage.begin()
    stage.raw(0)
    stage.clock.advance(40)
    states = [found["alarm"] for topic, found in stage.published(stage.name) if topic.startswith("alarm/")]
    assert states[:2] == ["raised", "cleared"]


def test_qos_0_is_skipped_without_a_connection_and_qos_1_is_kept() -> None:
    stage = Single(qos=0, birth=None)
    stage.device.begin()
    stage.clock.advance(4)
    assert stage.run.skipped == 4
    assert stage.run.ledger.streams == {}
    later = Single(qos=1, birth=None)
    later.device.begin()
    later.clock.advance(4)
    later.peers[later.name].accept()
    assert len([one for one in later.take(later.name) if isinstance(one, Publish)]) == 4
    assert later.run.skipped == 0


def test_a_full_queue_skips_and_the_ledger_does_not_count_it() -> None:
    stage = Single(queue=3, birth=None)
    stage.device.begin()
    stage.clock.advance(10)
    assert sum(stream.sent for stream in stage.run.ledger.streams.values()) == 3
    assert stage.run.skipped == 7


@pytest.mark.parametrize(
    ("request_body", "ok"),
    [
        ({"command": "ping", "id": 3}, True),
        ({"command": "read"}, True),
        ({"command": "set", "every": 0.5}, True),
        ({"command": "set", "every": "soon"}, False),
        ({"command": "set", "every": 0}, False),
        ({"command": "set", "every": True}, False),
        ({"command": "dance"}, False),
        ({"no": "command"}, False),
        ([], False),
        (b"\xff{", False),
        (b"[" * 100_000, False),
    ],
)
def test_every_command_is_answered(request_body: object, ok: bool) -> None:
    stage = Single()
    stage.begin()
    stage.take(stage.name)
    answers = stage.command(request_body, response_topic="reply/op", correlation_data=b"77")
    assert answers[0] == Puback(500)
    (reply,) = [one for one in answers if isinstance(one, Publish) and one.topic == "reply/op"]
    assert body(reply)["ok"] is ok
    assert body(reply)["device"] == "thermo-0001"
    assert ("error" in body(reply)) is not ok
    assert reply.properties["correlation_data"] == b"77"


def test_without_a_response_topic_the_answer_goes_beside_the_command_with_its_id() -> None:
    stage = Single(version="3.1.1")
    stage.begin()
    stage.take(stage.name)
    answers = stage.command({"command": "ping", "id": 12})
    (reply,) = [one for one in answers if isinstance(one, Publish)]
    assert reply.topic == "cmd/thermo-0001/reply"
    assert body(reply)["id"] == 12


def test_read_publishes_at_once() -> None:
    stage = Single()
    stage.begin()
    stage.take(stage.name)
    answers = stage.command({"command": "read"})
    assert [one.topic for one in answers if isinstance(one, Publish) and one.topic.startswith("dev/")] == [
        "dev/thermo-0001/t",
        "dev/thermo-0001/n",
    ]


def test_set_changes_how_often_it_publishes() -> None:
    stage = Single()
    stage.begin()
    stage.raw(4)
    stage.command({"command": "set", "every": 0.5})
    assert len(stage.raw(10)) == 40


def test_reboot_says_goodbye_and_is_back_with_its_session_within_three_seconds() -> None:
    stage = Single()
    stage.begin()
    stage.take(stage.name)
    answers = stage.command({"command": "reboot"})
    assert isinstance(answers[0], Puback)
    assert isinstance(answers[-1], Disconnect)
    assert stage.peers[stage.name].dials == 1
    stage.clock.advance(0.9)
    assert stage.peers[stage.name].dials == 1
    stage.clock.advance(2.2)
    assert stage.peers[stage.name].dials == 2
    assert not stage.peers[stage.name].accept(session_present=True).clean_start


def test_a_lost_session_counts_as_another_boot_and_subscribes_again() -> None:
    stage = Single()
    stage.begin()
    stage.take(stage.name)
    stage.peers[stage.name].drop()
    stage.clock.advance(61)
    stage.peers[stage.name].accept(session_present=False)
    packets = stage.take(stage.name)
    assert any(isinstance(one, Subscribe) for one in packets)
    births = [one for one in packets if isinstance(one, Publish) and one.topic.startswith("status/")]
    assert body(births[-1])["boots"] == 2
    assert births[-1].retain


def test_a_burst_publishes_so_many_times_at_once_in_one_write() -> None:
    stage = Single(qos=0)
    stage.begin()
    stage.take(stage.name)
    stage.device.burst(5, 1.0)
    assert len(stage.peers[stage.name].wire.writes) == 1
    assert len(stage.published(stage.name)) == 10


def test_at_the_end_it_publishes_that_it_goes_and_nothing_more() -> None:
    stage = Single()
    stage.begin()
    stage.take(stage.name)
    stage.device.finish()
    ((topic, found),) = stage.published(stage.name)
    assert (topic, found["state"]) == ("status/thermo-0001", "offline")
    stage.clock.advance(20)
    assert stage.published(stage.name) == []


def test_what_the_broker_answers_is_in_the_ledger() -> None:
    stage = Single(birth=None, commands=None, measurements={"t": BASE["measurements"]["t"]})
    stage.begin()
    stage.clock.advance(6)
    ids = [one.packet_id for one in stage.take(stage.name) if isinstance(one, Publish)]
    assert len(ids) == 3
    stage.peers[stage.name].say(Puback(ids[0]), Puback(ids[1], 0x97))
    (stream,) = stage.run.ledger.streams.values()
    assert (stream.sent, len(stream.acknowledged), stream.refused) == (3, 1, 1)
    stage.peers[stage.name].drop()
    stage.clock.advance(61)
    stage.peers[stage.name].accept(session_present=True)
    assert stream.resumed
