"""The stamp in every payload."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.devices.publisher import to_json
from tidings.devices.stamp import Stamp, is_publisher_name, read_stamp, stamped

OBJECTS = st.dictionaries(st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20), st.none()), max_size=5)


@given(OBJECTS, st.from_regex(r"[A-Za-z0-9._~-]{1,40}", fullmatch=True), st.integers(0, 10**9), st.integers(0, 2**52))
def test_a_stamp_is_read_back_and_the_payload_stays_json(
    body: dict[str, Any], name: str, sequence: int, at_us: int
) -> None:
    body.pop("sent", None)
    payload = stamped(to_json(body), name, sequence, at_us)
    assert read_stamp(payload) == Stamp(name, sequence, at_us, True)
    found = json.loads(payload)
    sent = found.pop("sent")
    assert found == body
    assert (sent["by"], sent["seq"], sent["at_us"]) == (name, sequence, at_us)


@given(st.binary(max_size=200))
def test_what_carries_no_stamp_has_none(payload: bytes) -> None:
    assert read_stamp(payload) is None


def test_one_changed_byte_before_the_stamp_is_noticed() -> None:
    payload = bytearray(stamped(b'{"value":21.5}', "a", 1, 2))
    for position in range(len(b'{"value":21.5')):
        changed = bytearray(payload)
        changed[position] ^= 1
        stamp = read_stamp(bytes(changed))
        assert stamp is not None
        assert not stamp.intact


def test_a_stamp_inside_the_body_is_not_taken_for_the_last_one() -> None:
    inner = stamped(b"{}", "inner", 7, 7)
    assert read_stamp(stamped(to_json({"copy": inner.decode()}), "outer", 1, 2)) == Stamp("outer", 1, 2, True)
    assert read_stamp(inner + b"x") is None


@pytest.mark.parametrize(
    ("name", "good"), [("a-1.b_~", True), ("", False), ("a b", False), ('a"', False), ("x" * 201, False)]
)
def test_names_that_can_stand_in_a_stamp(name: str, good: bool) -> None:
    assert is_publisher_name(name) is good
