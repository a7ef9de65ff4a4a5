"""Packets are plain values with the defaults of the standard."""

from dataclasses import is_dataclass
from typing import Any, get_args

import pytest

from tidings.broker.codec.packets import (
    NO_PROPERTIES,
    AckRun,
    Connect,
    Packet,
    PacketType,
    Publish,
    PublishRun,
    Subscribe,
    SubscribeFilter,
)


def test_there_is_one_class_for_each_packet_type() -> None:
    kinds = set(get_args(Packet)) - {PublishRun, AckRun}  # they are several of one type
    assert {kind.__name__.upper() for kind in kinds} == {kind.name for kind in PacketType}
    assert [kind.value for kind in PacketType] == list(range(1, 16))


@pytest.mark.parametrize("kind", get_args(Packet))
def test_packets_are_dataclasses_and_take_no_other_attribute(kind: type) -> None:
    assert is_dataclass(kind)
    packet: Any = kind.__new__(kind)
    assert not hasattr(packet, "__dict__")
    with pytest.raises(AttributeError):
        packet.note = ""


def test_packets_without_properties_share_one_empty_mapping() -> None:
    assert Connect().properties is Publish("a").properties is NO_PROPERTIES
    assert NO_PROPERTIES == {}


def test_packets_compare_by_value() -> None:
    assert Subscribe(1, [SubscribeFilter("a", 1)]) == Subscribe(1, [SubscribeFilter("a", 1)])
    assert Publish("a", b"x") != Publish("a", b"y")


@pytest.mark.parametrize("payloads", [[b"one", b"two", b"six"], [b"", b""]])
def test_a_run_gives_every_payload_even_an_empty_one(payloads: list[bytes]) -> None:
    size = len(payloads[0])
    run = PublishRun("a", b"".join(bytes((0x30, 3 + size, 0, 1)) + b"a" + payload for payload in payloads), 5 + size, 5)
    assert run.count == len(payloads)
    assert run.payloads() == payloads
