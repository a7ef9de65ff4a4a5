"""The -F language: against mosquitto_sub where both have it, and by itself where they differ."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes

from tidings.cli.format import Format, plain, verbose
from tidings.cli.properties import add, new

HOST = "127.0.0.1"
NOW_NS = 1_795_485_675_191_301_999  # 2026-11-24T02:01:15 UTC


@pytest.fixture
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def message(payload: bytes = b"hello", topic: str = "a/b", qos: int = 0, **properties: Any) -> MQTTMessage:
    made = MQTTMessage(7, topic.encode())
    made.payload, made.qos, made.retain = payload, qos, False
    made.properties = new(PacketTypes.PUBLISH)
    for name, value in properties.items():
        add(made.properties, name.replace("_", "-"), value)
    return made


def render(template: str, made: MQTTMessage | None = None) -> str:
    said: list[str] = []
    rendered = Format(template).render(message() if made is None else made, NOW_NS, said.append).decode()
    return rendered + "".join(f"<{line}>" for line in said)


CONTRACT = [
    "%t %p",
    "%%|@@|\\\\",
    "%p|%10p|%-10p|%010p|%5p",
    "%x|%X|",
    "%l|%5l|%05l|%-5l|%-05l|",
    "%m|%4m|%04m|%q|%r",
    "%t|%12t|%-12t|%.2t|%12.2t|%-12.2t|",
    "%C|%20C|%-20C|%.4C|%20.4C|",
    "%P|%D|%R|%20R|",
    "%A|%5A|%05A|%S|%5S|%05S|%-5S|",
    "%F|%3F|%03F|",
    "%5%|%5q|%08r",
    "\\a\\e\\0\\n\\r\\t\\v",
    "é %p €",
    "%.10I|@Y-@m-@d",
    "a%tb%pc",
    "",
]


@pytest.fixture
def outputs(server: int, topic: str, tidings: Any, pub: Any) -> Any:
    """Publish a retained message; the function returned prints it with both programs."""
    if shutil.which("mosquitto_sub") is None:
        pytest.skip("needs mosquitto_sub (Debian: mosquitto-clients)")

    def both(template: str, payload: str = "hello", *options: str) -> tuple[bytes, bytes]:
        told = [
            "-D publish content-type text/plain",
            "-D publish user-property k v",
            "-D publish user-property k w",
            "-D publish correlation-data xyz",
            "-D publish response-topic r/t",
            "-D publish payload-format-indicator 1",
        ]
        properties = [word for each in told for word in each.split()]
        assert pub("-t", topic, "-m", payload, "-q", "1", "-r", *properties).code == 0
        common = ["-h", HOST, "-p", str(server), "-t", topic, "-q", "1", "-C", "1", "-W", "9", "-F", template, *options]
        common += ["-D", "subscribe", "subscription-identifier", "42"]
        theirs = subprocess.run(["mosquitto_sub", "-V", "mqttv5", *common], capture_output=True, check=True).stdout
        ours = tidings("sub", *common)
        assert ours.code == 0, ours.err
        return ours.out, theirs

    return both


@pytest.mark.parametrize("template", CONTRACT)
def test_prints_what_mosquitto_sub_prints(outputs: Any, template: str) -> None:
    ours, theirs = outputs(template)
    assert ours == theirs


def test_prints_what_mosquitto_sub_prints_without_a_line_break(outputs: Any) -> None:
    ours, theirs = outputs("%p", "hello", "-N")
    assert ours == theirs == b"hello"


@pytest.mark.parametrize("template", ["%j", "%J"])
@pytest.mark.parametrize("payload", ['{"a": [1, 2.5, "é\\n"]}', '"x"', "true"])
def test_json_has_the_members_of_mosquitto_sub(outputs: Any, template: str, payload: str) -> None:
    ours, theirs = (json.loads(each, object_pairs_hook=list) for each in outputs(template, payload))
    (name, ours_time), *ours_rest = ours
    (_, theirs_time), *theirs_rest = theirs
    assert name == "tst"
    assert re.sub(r"\d", "0", ours_time) == re.sub(r"\d", "0", theirs_time)
    # Our server's order of properties is not mosquitto_sub's concern: compare them as sets, user properties in order.
    assert [each for each in ours_rest if each[0] != "properties"] == [e for e in theirs_rest if e[0] != "properties"]
    assert sorted(dict(ours_rest)["properties"]) == sorted(dict(theirs_rest)["properties"])


def test_a_width_never_cuts_and_a_maximum_does() -> None:
    assert render("%3p|%3x|%.3p|%5.3p|%-5.3p|") == "hello|68656c6c6f|hel|  hel|hel  |"


def test_hex_digits_are_padded_to_the_width() -> None:
    assert render("%12x|%-12x|%012X|") == "  68656c6c6f|68656c6c6f  |0068656C6C6F|"


def test_texts_are_measured_in_characters() -> None:
    assert render("%5t|%.2t", message(topic="äöü")) == "  äöü|äö"


def test_hex_digits_are_grouped_by_the_precision() -> None:
    assert render("%.2:x %.2x %.4-X %16.2:x") == "68:65:6c:6c:6f 68 65 6c 6c 6f 6865-6C6C-6F   68:65:6c:6c:6f"


def test_floats_and_doubles_are_printed() -> None:
    single, double = bytes.fromhex("00002040"), bytes.fromhex("000000000000f8bf")  # little-endian 2.5 and -1.5
    assert render("%f|%8.2f|%-8.2f|%08.2f", message(single)) == "2.500000|    2.50|2.50    |00002.50"
    assert render("%d|%08.2d", message(double)) == "-1.500000|-0001.50"


def test_a_payload_of_another_size_is_no_float_and_the_rest_is_printed() -> None:
    assert render("%t %f.") == "a/b .<Error: the payload on a/b has 5 bytes, a float has 4>"


@pytest.mark.usefixtures("utc")
def test_times_are_those_of_the_arrival() -> None:
    assert render("%I|%U|@N|@H:@M") == "2026-11-24T02:01:15+0000|1795485675.191301999|191301999|02:01"
    assert json.loads(render("%j"))["tst"] == "2026-11-24T02:01:15.191301Z+0000"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("%", "-F ends within '%'"),
        ("a%5", "-F ends within '%5'"),
        ("%z", "'%z' is no sequence"),
        ("%--5l", "'%--5' is no sequence"),
        ("%.2:p", "'%.2:p' is no sequence"),
        ("@", "-F ends within '@'"),
        ("\\", "-F ends within"),
        ("\\q", "\\q is no escape"),
    ],
)
def test_a_wrong_format_is_refused_with_its_place(template: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        Format(template)


def test_payloads_that_are_no_utf8_survive_percent_j() -> None:
    line = json.loads(render("%j", message(b"\xff\x00", correlation_data=b"\xfe")))
    assert line["payload_base64"] == "/wA="
    assert line["properties"] == {"correlation-data_base64": "/g=="}
    assert "payload" not in line


@pytest.mark.parametrize("payload", [b"hello", b"\xff", b"NaN", b'{"a":1', b"[" * 100_000, b"1 2"])
def test_percent_capital_j_says_when_the_payload_is_no_json(payload: bytes) -> None:
    assert render("<%J>", message(payload)) == "<><Error: Message payload is not valid JSON on topic a/b.>"


def test_percent_capital_j_embeds_json_on_one_line_with_its_numbers_as_written() -> None:
    payload = b'{\n "a": 1.10,\r\n "b": 123456789012345678901234567890\n}\n'
    rendered = render("%J", message(payload))
    assert "\n" not in rendered
    assert '"a": 1.10,' in rendered
    assert json.loads(rendered)["payload"] == json.loads(payload)


def test_json_repeats_user_properties_in_order_and_shows_the_packet_id_only_above_qos_0() -> None:
    made = message(qos=1)
    assert made.properties is not None
    for pair in (("k", "v"), ("j", "x"), ("k", "w")):
        add(made.properties, "user-property", pair)
    line = json.loads(render("%j", made), object_pairs_hook=list)
    assert ["mid", 7] in [list(member) for member in line]
    assert dict(line)["properties"] == [("user-properties", [("k", "v"), ("j", "x"), ("k", "w")])]
    assert "mid" not in json.loads(render("%j"))


def test_an_empty_payload_is_null_in_json_and_nothing_without_a_format() -> None:
    assert json.loads(render("%j", message(b"")))["payload"] is None
    assert plain(message(b""), NOW_NS) is None
    assert verbose(message(b""), NOW_NS) == b"a/b (null)"


@given(st.text(alphabet="%@\\ .0-159:apxXtjJlAIUNq", max_size=12), st.binary(max_size=20))
def test_any_text_is_refused_as_a_value_error_or_renders(template: str, payload: bytes) -> None:
    try:
        compiled = Format(template)
    except ValueError:
        return
    assert isinstance(compiled.render(message(payload), NOW_NS, lambda line: None), bytes)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), st.text())
def test_percent_j_is_one_line_of_json_that_has_the_text(topic: str, payload: str) -> None:
    try:
        data = payload.encode()
    except UnicodeEncodeError:
        data = b"x"
    rendered = render("%j", message(data, topic=topic))
    assert "\n" not in rendered
    line = json.loads(rendered)
    assert (line["topic"], (line["payload"] or "").encode(), line["payloadlen"]) == (topic, data, len(data))
