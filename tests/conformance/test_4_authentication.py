"""Chapter 4.12: enhanced authentication, and what a client that was refused is told (3.1.4)."""

from typing import Any, cast

import pytest

from tidings.broker.codec.packets import Auth, Connack, Connect, Disconnect, Publish
from tidings.broker.codec.properties import Properties
from tidings.broker.codec.reasons import ReasonCode
from tidings.broker.core.ports import Accepted, Answer, Challenge, Refused

from ..core.gate import ListGate
from .wire import VERSIONS, Peer, Wire

CONTINUE, AGAIN = 0x18, 0x19


def gated(*answers: Answer | None) -> tuple[Wire, ListGate]:
    wire = Wire()
    gate = ListGate(list(answers))
    wire.engine.gate = gate
    return wire, gate


def asks(method: str = "M", data: bytes | None = b"hello") -> Connect:
    properties: dict[str, Any] = {"authentication_method": method}
    if data is not None:
        properties["authentication_data"] = data
    return Connect("c", properties=cast(Properties, properties))


def auth(reason: int, data: bytes, method: str = "M") -> Auth:
    return Auth(reason, {"authentication_method": method, "authentication_data": data})


def begin(wire: Wire) -> Peer:
    peer = wire.open()
    peer.send(asks())
    return peer


@pytest.mark.clause("5.0 MQTT-4.12.0-2", "5.0 MQTT-4.12.0-5", "5.0 MQTT-3.15.2-1")
def test_exchange_of_several_steps_ends_in_connack_with_the_last_data() -> None:
    wire, gate = gated(Challenge(b"1"), Challenge(b"2"), Accepted(b"done", user="who"))
    peer = begin(wire)
    assert peer.expect(Auth) == auth(CONTINUE, b"1")
    peer.send(auth(CONTINUE, b"one"))
    assert peer.expect(Auth) == auth(CONTINUE, b"2")
    assert wire.engine.sessions == {}
    peer.send(auth(CONTINUE, b"two"))
    connack = peer.expect(Connack)
    assert connack.reason == 0
    assert connack.properties["authentication_method"] == "M"
    assert connack.properties["authentication_data"] == b"done"
    assert gate.asked == [("authenticate", b"hello"), ("respond", b"one"), ("respond", b"two")]
    [connection] = wire.engine.connections
    assert connection.user == "who"
    peer.subscribe("t")


@pytest.mark.clause("5.0 MQTT-4.12.0-5")
def test_connack_without_data_has_the_method_alone() -> None:
    wire, _ = gated(Accepted())
    connack = begin(wire).expect(Connack)
    assert connack.properties["authentication_method"] == "M"
    assert "authentication_data" not in connack.properties


@pytest.mark.clause("5.0 MQTT-4.12.0-4")
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_refusal_at_any_step_is_a_connack_and_the_end(steps: int) -> None:
    wire, gate = gated(*[Challenge()] * steps, Refused(ReasonCode.NOT_AUTHORIZED, "no"))
    peer = begin(wire)
    for _ in range(steps):
        peer.expect(Auth)
        peer.send(auth(CONTINUE, b"x"))
    assert peer.expect(Connack) == Connack(False, 0x87, {"reason_string": "no"})
    assert peer.closed
    assert wire.engine.sessions == {}
    assert gate.gone == gate.identities


@pytest.mark.clause("5.0 MQTT-4.12.0-1")
def test_method_that_the_gate_does_not_have() -> None:
    wire, _ = gated(Refused(ReasonCode.BAD_AUTHENTICATION_METHOD))
    begin(wire).assert_refused(0x8C)


@pytest.mark.clause("5.0 MQTT-4.12.0-5", "5.0 MQTT-3.15.2-1")
@pytest.mark.parametrize(
    "packet",
    [auth(CONTINUE, b"x", "other"), auth(AGAIN, b"x"), auth(0, b"x"), Publish("t"), asks()],
    ids=["another method", "0x19", "0x00", "PUBLISH", "CONNECT"],
)
def test_what_does_not_belong_into_the_exchange_ends_it(packet: Any) -> None:
    wire, gate = gated(Challenge())
    peer = begin(wire)
    peer.expect(Auth)
    peer.send(packet)
    peer.assert_refused(0x82)
    assert gate.asked == [("authenticate", b"hello")]


def test_client_may_say_goodbye_during_the_exchange() -> None:
    wire, gate = gated(Challenge())
    peer = begin(wire)
    peer.expect(Auth)
    peer.send(Disconnect())
    assert peer.closed
    assert peer.receive() == []
    assert gate.gone == gate.identities


def test_exchange_has_the_time_of_a_connect() -> None:
    wire, _ = gated(*[Challenge()] * 9)
    peer = begin(wire)
    for _ in range(3):
        wire.advance(3)
        peer.send(auth(CONTINUE, b"x"))
    assert not peer.closed
    wire.advance(2)
    assert peer.closed


@pytest.mark.clause("5.0 MQTT-4.12.0-6")
def test_challenge_to_a_client_without_a_method_is_never_sent() -> None:
    wire, _ = gated(Challenge(b"?"))
    peer = wire.open()
    peer.send(Connect("c"))
    peer.assert_refused(0x87)


@pytest.mark.clause("5.0 MQTT-4.12.1-1", "5.0 MQTT-4.12.0-2", "5.0 MQTT-4.12.0-5")
def test_client_authenticates_again_while_its_messages_flow() -> None:
    wire, gate = gated(Accepted(), Challenge(b"again?"), Accepted(b"well", user="other"))
    peer = begin(wire)
    peer.expect(Connack)
    peer.send(auth(AGAIN, b"me"))
    assert peer.expect(Auth) == auth(CONTINUE, b"again?")
    peer.subscribe("t", 1)
    peer.send(Publish("t", b"meanwhile"))
    assert peer.payloads() == [b"meanwhile"]
    peer.send(auth(CONTINUE, b"still me"))
    assert peer.expect(Auth) == auth(0, b"well")
    assert gate.asked[1:] == [("reauthenticate", b"me"), ("respond", b"still me")]
    [connection] = wire.engine.connections
    assert connection.user == "other"


@pytest.mark.clause("5.0 MQTT-4.12.1-2")
def test_failed_reauthentication_ends_the_connection() -> None:
    wire, _ = gated(Accepted(), Refused(ReasonCode.BAD_USER_NAME_OR_PASSWORD, "no"))
    peer = begin(wire)
    peer.expect(Connack)
    peer.send(auth(AGAIN, b"me"))
    assert peer.expect(Disconnect) == Disconnect(0x87, {"reason_string": "no"})
    assert peer.closed


@pytest.mark.parametrize("packet", [auth(CONTINUE, b"x"), auth(AGAIN, b"x", "other")], ids=["unasked", "other method"])
def test_reauthentication_out_of_order_is_an_error(packet: Auth) -> None:
    wire, _ = gated(Accepted())
    peer = begin(wire)
    peer.expect(Connack)
    peer.send(packet)
    peer.assert_dropped(0x82)


def test_reauthentication_that_takes_time_keeps_the_order() -> None:
    wire, gate = gated(Accepted(), None)
    peer = begin(wire)
    peer.expect(Connack)
    peer.subscribe("t")
    peer.send(auth(AGAIN, b"me"), Publish("t", b"after"))
    assert peer.receive() == []
    gate.decide(wire.engine, Accepted(b"ok"), wire.now)
    assert [type(packet) for packet in peer.receive()] == [Auth, Publish]


@VERSIONS
@pytest.mark.parametrize(
    ("reason", "return_code"),
    [(ReasonCode.BAD_USER_NAME_OR_PASSWORD, 4), (ReasonCode.NOT_AUTHORIZED, 5), (ReasonCode.BANNED, 5)],
)
def test_client_is_told_why_it_is_not_let_in(version: int, reason: ReasonCode, return_code: int) -> None:
    wire, _ = gated(Refused(reason))
    peer = wire.open(version)
    peer.send(Connect("c", version))
    assert peer.expect(Connack).reason == (reason if version == 5 else return_code)
    assert peer.closed
