"""The load generator's wire side: what it makes is MQTT, what it counts is what was there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.broker.codec.decode import Decoder
from tidings.broker.codec.encode import encode
from tidings.broker.codec.packets import Puback, Publish
from tidings.devices.load_wire import STAMP, Batch, Tally, acks_for, frame_bounds, run_length, varint

VERSIONS = (3, 4, 5)


def decoded(data: bytes, version: int) -> list[Publish]:
    decoder = Decoder(version=version, side="server")
    packets = decoder.feed(data)
    assert decoder.error is None
    assert not decoder.waiting
    return [packet for packet in packets if isinstance(packet, Publish)]


@given(
    qos=st.integers(0, 2),
    version=st.sampled_from(VERSIONS),
    size=st.integers(16, 300),
    first=st.integers(0, 2**32 - 2000) | st.sampled_from([65530, 65535, 131060, 65279]),
    amount=st.integers(1, 300),
    step=st.sampled_from([0, 1000]),
)
def test_a_batch_is_the_publish_packets_that_were_asked_for(
    qos: int, version: int, size: int, first: int, amount: int, step: int
) -> None:
    batch = Batch(7, "bench/000007", qos, version, size, 300)
    packets = decoded(bytes(batch.fill(first, amount, 10**18, step)), version)
    assert [packet.topic for packet in packets] == ["bench/000007"] * amount
    assert {packet.qos for packet in packets} == {qos}
    assert {len(packet.payload) for packet in packets} == {size}
    stamps = [STAMP.unpack_from(packet.payload) for packet in packets]
    assert stamps == [(7, first + i, 10**18 + i * step) for i in range(amount)]
    if qos:
        assert [packet.packet_id for packet in packets] == [(first + i) % 65535 + 1 for i in range(amount)]


def test_refilling_a_batch_leaves_nothing_of_the_last_time() -> None:
    batch = Batch(1, "bench/000001", 1, 4, 64, 100)
    batch.fill(999_999_999, 100, 2**60)
    packets = decoded(bytes(batch.fill(5, 20, 3)), 4)
    assert [STAMP.unpack_from(packet.payload) for packet in packets] == [(1, 5 + i, 3) for i in range(20)]


@given(st.lists(st.tuples(st.sampled_from([b"\x40\x02ab", b"\x62\x02ab", b"\x40\x03abc"]), st.integers(1, 200))))
def test_a_run_ends_where_another_frame_begins(pieces: list[tuple[bytes, int]]) -> None:
    data = bytearray(b"".join(frame * times for frame, times in pieces))
    expected = 0
    for frame, times in pieces:
        if frame != b"\x40\x02ab":
            break
        expected += times
    assert run_length(data, 0, len(data), b"\x40\x02", 4) == expected


def test_an_incomplete_frame_is_in_no_run() -> None:
    data = bytearray(b"\x40\x02\x00\x01\x40\x02\x00")
    assert run_length(data, 0, len(data), b"\x40\x02", 4) == 1
    assert run_length(data, 4, len(data), b"\x40\x02", 4) == 0


@given(st.lists(st.integers(1, 65535), min_size=1, max_size=50))
def test_acknowledgements_carry_the_ids_of_the_run(ids: list[int]) -> None:
    frames = bytearray(b"".join(encode(Publish("t", b"x" * 30, 1, packet_id=i), 4) for i in ids))
    stride = len(frames) // len(ids)
    data = bytes(acks_for(0x40, frames, 5, len(ids), stride))
    assert data == b"".join(encode(Puback(i), 4) for i in ids)


@pytest.mark.parametrize("size", [0, 127, 128, 16383, 16384, 2097152])
def test_the_bounds_of_a_frame_are_those_of_its_remaining_length(size: int) -> None:
    frame = encode(Publish("topic", bytes(size)), 4)
    body_at, whole = frame_bounds(bytearray(frame), 0, len(frame))
    assert whole == len(frame)
    assert frame[body_at : body_at + 7] == b"\x00\x05topic"
    assert frame_bounds(bytearray(frame), 0, 1) == (0, 0)


def test_a_varint_tells_where_it_ends() -> None:
    assert varint(b"\x00\x80\x01", 1) == (128, 3)


def received(*messages: tuple[int, int]) -> tuple[bytearray, int]:
    stride = 40
    data = bytearray(b"".join(STAMP.pack(publisher, seq, 77) + bytes(stride - 16) for publisher, seq in messages))
    return data, stride


def tally_of(publishers: int, *messages: tuple[int, int], first: int = 0, ordered: bool = True) -> Tally:
    tally = Tally(first, publishers, ordered)
    data, stride = received(*messages)
    assert tally.take_run(data, 0, len(messages), stride) == 77
    return tally


def test_messages_in_order_are_delivered_and_nothing_else() -> None:
    tally = tally_of(1, *((0, i) for i in range(700)))
    assert (tally.delivered, tally.duplicated, tally.reordered, tally.strange) == (700, 0, 0, 0)
    assert tally.lost([700]) == 0
    assert tally.lost([703]) == 3


def test_a_gap_is_lost_but_settled() -> None:
    tally = tally_of(1, (0, 0), (0, 1), (0, 5))
    assert (tally.delivered, tally.settled) == (3, 6)
    assert tally.lost([6]) == 3


def test_a_late_message_is_reordered_and_no_longer_lost() -> None:
    tally = tally_of(1, (0, 0), (0, 2), (0, 1))
    assert (tally.delivered, tally.reordered, tally.settled, tally.lost([3])) == (3, 1, 3, 0)


def test_a_second_copy_is_a_duplicate() -> None:
    tally = tally_of(1, (0, 0), (0, 1), (0, 1), (0, 0))
    assert (tally.delivered, tally.duplicated) == (2, 2)


@pytest.mark.parametrize("length", [6, 700])
def test_a_swap_that_leaves_first_and_last_in_place_is_seen(length: int) -> None:
    sequence = list(range(length))
    sequence[3], sequence[2] = sequence[2], sequence[3]
    tally = tally_of(1, *((0, i) for i in sequence))
    assert (tally.reordered, tally.delivered) == (1, length)


@pytest.mark.parametrize("length", [3, 700])
def test_another_publishers_message_in_the_middle_of_a_run_is_seen(length: int) -> None:
    messages = [(0, i) for i in range(length)]
    messages[1] = (1, 1)
    tally = tally_of(2, *messages)
    assert tally.expected == [length, 2]
    assert tally.lost([length, 2]) == 2


def test_publishers_in_long_stretches_are_told_apart() -> None:
    tally = tally_of(2, *((i // 100 % 2, i // 200 * 100 + i % 100) for i in range(1000)))
    assert (tally.delivered, tally.expected) == (1000, [500, 500])


def test_a_run_may_begin_with_strange_messages() -> None:
    tally = tally_of(1, *((9, i) for i in range(40)), *((0, i) for i in range(40)))
    assert (tally.strange, tally.delivered) == (40, 40)


def test_what_none_of_the_publishers_sent_is_strange() -> None:
    tally = tally_of(1, (9, 0), (9, 1), (7, 0), first=7)
    assert (tally.strange, tally.delivered) == (2, 1)


def test_the_members_of_a_shared_subscription_do_not_reorder() -> None:
    tally = tally_of(1, (0, 1), (0, 0), ordered=False)
    assert (tally.delivered, tally.reordered, tally.lost([2])) == (2, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=80), st.integers(1, 80))
def test_counting_by_runs_is_counting_one_by_one(messages: list[tuple[int, int]], size: int) -> None:
    single, by_runs = Tally(0, 3), Tally(0, 3)
    for publisher, seq in messages:
        single.take(publisher, seq)
    for i in range(0, len(messages), size):
        data, stride = received(*messages[i : i + size])
        by_runs.take_run(data, 0, len(messages[i : i + size]), stride)
    for name in ("delivered", "duplicated", "reordered", "settled", "expected"):
        assert getattr(by_runs, name) == getattr(single, name), name
