"""The operator on a virtual clock."""

import json
from typing import Any

from tidings.broker.codec import Publish, Subscribe
from tidings.devices.commands import Operator
from tidings.devices.profile import device_name

from .stage import Stage, body, scenario


class Control(Stage):
    """An operator of three devices, connected."""

    def __init__(self, commands: list[dict[str, Any]], version: str = "5.0") -> None:
        super().__init__()
        wave = {"wave": "noise", "low": 0, "high": 1}
        plan = scenario(
            version=version, devices={"d": {"count": 3, "every": "1s", "measurements": {"m": wave}}}, commands=commands
        )
        self.operator = Operator(plan, {"d": [device_name("d", index) for index in range(3)]}, "op", self.run)
        self.operator.client.start()
        self.peers["op"].accept()
        self.subscribed = [one.filter for packet in self.take("op") for one in packet.filters]
        self.operator.begin()

    def sent(self) -> list[Publish]:
        return [one for one in self.take("op") if isinstance(one, Publish)]

    def answer(self, payload: dict[str, Any], **properties: Any) -> None:
        data = json.dumps(payload).encode()
        self.peers["op"].say(Publish("reply/op", data, properties=properties))  # type: ignore[arg-type]


def test_commands_go_to_one_device_after_the_other_and_answers_are_timed() -> None:
    stage = Control([{"send": "ping", "to": "d", "at": "1s", "every": "2s"}])
    assert stage.subscribed == ["reply/op"]
    stage.clock.advance(8)
    requests = stage.sent()
    assert [one.topic for one in requests] == ["cmd/d-0001", "cmd/d-0002", "cmd/d-0003", "cmd/d-0001"]
    assert body(requests[0]) == {"command": "ping", "id": 1}
    assert requests[0].properties == {"response_topic": "reply/op", "correlation_data": b"1"}
    stage.answer({"ok": True}, correlation_data=b"4")
    stage.answer({"ok": False}, correlation_data=b"3")
    stage.answer({"ok": True}, correlation_data=b"4")
    count = stage.operator.counts["ping to d"]
    assert (count.sent, count.answered, count.refused) == (4, 2, 1)
    assert count.round_trip.minimum == 1_000_000


def test_a_request_without_an_answer_is_given_up() -> None:
    stage = Control([{"send": "set", "to": "d", "at": "1s", "interval": "3s", "timeout": "5s"}])
    stage.clock.advance(5.9)
    (request,) = stage.sent()
    assert body(request) == {"command": "set", "id": 1, "every": 3.0}
    count = stage.operator.counts["set to d"]
    assert count.unanswered == 0
    stage.clock.advance(0.2)
    assert count.unanswered == 1
    stage.answer({"ok": True}, correlation_data=b"1")
    assert count.answered == 0


def test_the_end_of_the_run_settles_what_is_open() -> None:
    stage = Control([{"send": "ping", "to": "d", "at": "1s"}])
    stage.clock.advance(2)
    stage.operator.settle()
    assert stage.operator.counts["ping to d"].unanswered == 1
    stage.operator.finish()
    stage.clock.advance(100)
    assert len(stage.sent()) == 1


def test_in_3_1_1_answers_are_recognised_by_their_id_on_the_reply_topics() -> None:
    stage = Control([{"send": "ping", "to": "d", "at": "1s"}], version="3.1.1")
    assert stage.subscribed == ["cmd/d-0001/reply", "cmd/d-0002/reply", "cmd/d-0003/reply"]
    stage.clock.advance(1)
    assert stage.sent()[0].properties == {}
    stage.answer({"ok": True, "id": 1})
    assert stage.operator.counts["ping to d"].answered == 1


def test_nonsense_on_the_reply_topic_is_ignored() -> None:
    stage = Control([{"send": "ping", "to": "d", "at": "1s"}])
    stage.clock.advance(1)
    for payload in (b"", b"[]", b"{}", b'{"ok":true}', b'{"ok":true,"id":"x"}', b"[" * 99999):
        stage.peers["op"].say(Publish("reply/op", payload))
    assert stage.operator.counts["ping to d"].answered == 0


def test_more_than_a_hundred_reply_topics_go_in_several_packets() -> None:
    stage = Stage()
    plan = scenario(
        version="3.1.1",
        devices={"d": {"count": 250, "every": "1s", "measurements": {"m": {"wave": "constant", "value": 1}}}},
        commands=[{"send": "ping", "to": "d", "at": "1s"}],
    )
    operator = Operator(plan, {"d": [device_name("d", index) for index in range(250)]}, "op", stage.run)
    operator.client.start()
    stage.peers["op"].accept()
    sizes = [len(packet.filters) for packet in stage.take("op") if isinstance(packet, Subscribe)]
    assert sizes == [100, 100, 50]
