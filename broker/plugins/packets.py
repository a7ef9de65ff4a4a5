"""Packets as amqtt's plugins know them: made by amqtt's own decoder, from the same packet in its MQTT 3.1.1 form.

What only 5.0 has, properties and AUTH, is left out: amqtt has no place for it.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from amqtt.adapters import BufferReader
from amqtt.mqtt import packet_class
from amqtt.mqtt.packet import MQTTFixedHeader

from ..codec.decode import Decoder
from ..codec.encode import encode
from ..codec.packets import Auth, Connack, Connect, Packet, Publish, PublishRun
from ..codec.reasons import CONNACK_RETURN_CODE
from ..core.message import Message

MQTT_3_1_1: Final = 4


def sent_packets(data: bytes, version: int) -> list[Packet]:
    """Whole packets on their way to a client that speaks ``version``."""
    return Decoder(side="client", version=version).feed(data)


def single(packets: list[Packet]) -> Iterator[Packet]:
    """Runs of PUBLISH packets taken apart."""
    for packet in packets:
        if isinstance(packet, PublishRun):
            yield from packet.packets()
        else:
            yield packet


async def amqtt_packet(packet: Packet) -> Any:
    """``packet`` as amqtt's; None if it has no such thing."""
    if isinstance(packet, Auth):
        return None
    if isinstance(packet, Connect):
        # Packets are looked at to be logged, and a password must not be.
        hidden = None if packet.password is None else b"***"
        packet = replace(packet, version=MQTT_3_1_1, password=hidden)
    elif isinstance(packet, Connack):
        packet = replace(packet, reason=CONNACK_RETURN_CODE.get(packet.reason, packet.reason))
    elif isinstance(packet, Message):
        packet = Publish(packet.topic, packet.payload, packet.qos, packet.retain, packet.dup, packet.packet_id)
    reader = BufferReader(encode(packet, MQTT_3_1_1))
    header = await MQTTFixedHeader.from_stream(reader)
    return await packet_class(header).from_stream(reader, fixed_header=header)
