"""Hostile bytes: whatever arrives, the decoder answers with packets and at most one ProtocolError."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidings.broker.codec import Decoder, Packet, encode
from tidings.broker.codec.packets import AckRun, PublishRun
from tidings.broker.errors import ProtocolError

from . import strategies
from .strategies import Side

MANY = settings(max_examples=4_000, deadline=None, suppress_health_check=list(HealthCheck))
LIMIT = 5_000


def one_by_one(packets: list[Packet]) -> list[Packet]:
    """The packets with every run taken apart."""
    return [
        one
        for packet in packets
        for one in (
            packet.packets()
            if isinstance(packet, PublishRun)
            else [packet.kind(packet_id) for packet_id in packet.packet_ids]
            if isinstance(packet, AckRun)
            else [packet]
        )
    ]


def survive(raw: bytes, version: int | None, side: Side, cuts: list[int]) -> None:
    """Feed ``raw`` whole, and in pieces and runs: nothing is raised, both give the same, memory stays bounded."""
    whole = Decoder(version=version, side=side, max_packet_size=LIMIT)
    packets = whole.feed(raw)
    assert whole.error is None or isinstance(whole.error, ProtocolError)
    assert whole.waiting < LIMIT

    split = Decoder(version=version, side=side, max_packet_size=LIMIT, runs=True)
    received: list[Packet] = []
    edges = sorted(min(cut, len(raw)) for cut in cuts)
    for start, stop in zip([0, *edges], [*edges, len(raw)], strict=True):
        received += split.feed(raw[start:stop])
        assert split.waiting < LIMIT
    assert one_by_one(received) == packets
    assert split.version == whole.version
    assert type(split.error) is type(whole.error)
    if whole.error is not None:
        assert split.error is not None
        assert split.error.reason == whole.error.reason
        assert whole.waiting == 0
        assert whole.feed(b"\xc0\x00") == []


def reencode(packets: list[Packet], version: int) -> None:
    """What the decoder let through is legal, so it can be written again and means the same."""
    for packet in packets:
        assert Decoder(version=version).feed(encode(packet, version)) == [packet]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[bytes, int | None, Side]:
    """Legal traffic with a few bytes changed, removed, doubled or inserted."""
    version, side, packets = draw(strategies.connections)
    raw = bytearray(b"".join(encode(packet, version) for packet in packets))
    raw *= draw(st.integers(1, 2))  # so that packets come in runs
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        kind = draw(st.sampled_from(["set", "bit", "cut", "insert", "remove", "double"]))
        if kind == "set" and at < len(raw):
            raw[at] = draw(st.integers(0, 255))
        elif kind == "bit" and at < len(raw):
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at:]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(max_size=4))
        elif kind == "remove":
            del raw[at : at + draw(st.integers(1, 4))]
        elif kind == "double":
            raw[at:at] = raw[at : at + draw(st.integers(1, 8))]
    known = version if side == "client" or draw(st.booleans()) else None
    return bytes(raw), known, side


@st.composite
def framed_noise(draw: st.DrawFn) -> tuple[bytes, int | None, Side]:
    """Frames whose headers are right and whose bodies are noise, so that every reader is reached."""
    version = draw(strategies.versions)
    side = draw(strategies.sides)
    raw = b""
    for _ in range(draw(st.integers(1, 3))):
        body = draw(
            st.binary(max_size=30) | st.lists(st.sampled_from(b"\0\1\2\4\x26\x1f\x15a"), max_size=20).map(bytes)
        )
        first = draw(st.sampled_from(b"\x10\x20\x30\x32\x34\x3d\x40\x50\x62\x70\x82\x90\xa2\xb0\xc0\xd0\xe0\xf0"))
        raw += (bytes((first, len(body))) + body) * draw(st.integers(1, 3))
    return raw, version, side


servers: st.SearchStrategy[Side] = st.just("server")
noise = st.tuples(st.binary(max_size=200), st.sampled_from([None, 3, 4, 5]), servers)
cut_places = st.lists(st.integers(0, 400), max_size=5)


@given(mutated(), cut_places)
def test_mutated_traffic_is_survived(traffic: tuple[bytes, int | None, Side], cuts: list[int]) -> None:
    survive(*traffic, cuts)


@given(framed_noise(), cut_places)
def test_noise_in_good_frames_is_survived(traffic: tuple[bytes, int | None, Side], cuts: list[int]) -> None:
    survive(*traffic, cuts)


@given(noise, cut_places)
def test_noise_is_survived(traffic: tuple[bytes, int | None, Side], cuts: list[int]) -> None:
    survive(*traffic, cuts)


@given(st.binary(min_size=1, max_size=40))
def test_what_is_let_through_is_legal(body: bytes) -> None:
    for first in (0x30, 0x32, 0x40, 0x82, 0xA2, 0xE0, 0xF0):
        for version in (4, 5):
            reencode(Decoder(version=version).feed(bytes((first, len(body))) + body), version)


@given(strategies.connections)
def test_every_truncation_of_legal_traffic_waits_for_the_rest(drawn: tuple[int, Side, list[Packet]]) -> None:
    version, side, packets = drawn
    raw = b"".join(encode(packet, version) for packet in packets)
    for cut in sorted({*range(0, min(len(raw), 60)), len(raw) // 2, max(len(raw) - 1, 0)}):
        decoder = Decoder(version=None if side == "server" else version, side=side)
        received = decoder.feed(raw[:cut])
        assert decoder.error is None
        assert received == packets[: len(received)]
        assert sum(len(encode(packet, version)) for packet in received) + decoder.waiting == cut


@pytest.mark.slow
@pytest.mark.timeout(600)
@MANY
@given(st.one_of(mutated(), framed_noise(), noise), cut_places)
def test_much_hostile_traffic_is_survived(traffic: tuple[bytes, int | None, Side], cuts: list[int]) -> None:
    survive(*traffic, cuts)


@pytest.mark.slow
@pytest.mark.timeout(600)
@MANY
@given(strategies.connections, cut_places)
def test_much_legal_traffic_comes_back(drawn: tuple[int, Side, list[Packet]], cuts: list[int]) -> None:
    version, side, packets = drawn
    raw = b"".join(encode(packet, version) for packet in packets)
    decoder = Decoder(version=None if side == "server" else version, side=side)
    received: list[Packet] = []
    edges = sorted(min(cut, len(raw)) for cut in cuts)
    for start, stop in zip([0, *edges], [*edges, len(raw)], strict=True):
        received += decoder.feed(raw[start:stop])
    assert (received, decoder.error) == (packets, None)
