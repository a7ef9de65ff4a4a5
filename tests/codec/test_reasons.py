"""Reason codes: complete, named as the standard names them, and legal where it says."""

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode as Independent

from tidings.broker.codec.packets import PacketType
from tidings.broker.codec.reasons import CONNACK_RETURN_CODE, LEGAL, ReasonCode, name_of

INDEPENDENT = Independent(PacketTypes.CONNACK).names
OURS = {  # where paho's name is not the standard's
    "NO_SUBSCRIPTION_FOUND": "NO_SUBSCRIPTION_EXISTED",
    "SHARED_SUBSCRIPTION_NOT_SUPPORTED": "SHARED_SUBSCRIPTIONS_NOT_SUPPORTED",
    "SUBSCRIPTION_IDENTIFIER_NOT_SUPPORTED": "SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED",
    "WILDCARD_SUBSCRIPTION_NOT_SUPPORTED": "WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED",
}


def test_every_code_of_the_standard_has_its_name() -> None:
    assert {code.value for code in ReasonCode} == set(INDEPENDENT)
    for code, names in INDEPENDENT.items():
        upper = [name.upper().replace(" ", "_").replace("-", "_") for name in names]
        spelled = {OURS.get(name, name) for name in upper}
        ours = {name for name, member in ReasonCode.__members__.items() if member == code}
        assert ours == spelled


@pytest.mark.clause("5.0 MQTT-3.2.2-8", "5.0 MQTT-3.4.2-1", "5.0 MQTT-3.5.2-1", "5.0 MQTT-3.6.2-1", "5.0 MQTT-3.7.2-1")
@pytest.mark.clause("5.0 MQTT-3.9.3-2", "5.0 MQTT-3.11.3-2", "5.0 MQTT-3.14.2-1", "5.0 MQTT-3.15.2-1")
@pytest.mark.parametrize("place", PacketType)
def test_legal_codes_agree_with_an_independent_table(place: PacketType) -> None:
    expected = {code for code, names in INDEPENDENT.items() if any(place in places for places in names.values())}
    if place is PacketType.CONNACK:
        expected.add(0x99)  # table 3-1 of the standard has it, paho has not
    assert LEGAL.get(place, frozenset()) == expected


def test_every_connack_reason_has_a_return_code_that_older_versions_know() -> None:
    assert set(CONNACK_RETURN_CODE) == LEGAL[PacketType.CONNACK]
    assert {reason for reason, code in CONNACK_RETURN_CODE.items() if code == 0} == {ReasonCode.SUCCESS}
    assert set(CONNACK_RETURN_CODE.values()) == {0, 1, 2, 3, 4, 5}
    assert CONNACK_RETURN_CODE[ReasonCode.UNSUPPORTED_PROTOCOL_VERSION] == 1
    assert CONNACK_RETURN_CODE[ReasonCode.CLIENT_IDENTIFIER_NOT_VALID] == 2
    assert CONNACK_RETURN_CODE[ReasonCode.SERVER_UNAVAILABLE] == 3
    assert CONNACK_RETURN_CODE[ReasonCode.BAD_USER_NAME_OR_PASSWORD] == 4
    assert CONNACK_RETURN_CODE[ReasonCode.NOT_AUTHORIZED] == 5


def test_codes_read_well() -> None:
    assert name_of(0x87) == "Not authorized (0x87)"
    assert name_of(0x00) == "Success (0x00)"
    assert name_of(0x7F) == "Unknown (0x7F)"
