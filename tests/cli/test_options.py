"""The shared options: URLs, precedence, secrets, TLS, sessions, properties; all without a connection."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from paho.mqtt.enums import MQTTProtocolVersion as Version

from tidings.cli.options import NEVER_S, ConnectionOptions, Target, check_filter, connection_options, parse_url
from tidings.cli.properties import pairs

Read = Callable[..., ConnectionOptions]
PACKETS = ("connect", "will", "publish", "subscribe", "disconnect")


@pytest.fixture
def read() -> Read:
    """What a command line and environment variables become; a refusal raises click.ClickException."""

    def run(*args: str, ask: str | None = None, **environment: str) -> ConnectionOptions:
        found: list[ConnectionOptions] = []

        @click.command(context_settings={"auto_envvar_prefix": "TIDINGS_PUB"})
        @connection_options("pub", reconnect_tries=3)
        @click.pass_context
        def pub(ctx: click.Context, /, **given: Any) -> None:
            found.append(ConnectionOptions.read(ctx, given, PACKETS))

        cleared = {name: None for name in os.environ if name.startswith("TIDINGS_")}
        result = CliRunner().invoke(
            pub, args, env={**cleared, **environment}, input=ask, standalone_mode=False, prog_name="pub"
        )
        if result.exception is not None:
            raise result.exception
        return found[0]

    return run


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://h", Target("tcp", False, "h")),
        ("MQTT://h:1/a/b", Target("tcp", False, "h", 1, topic="a/b")),
        ("tcp://h/a/+/#", Target("tcp", False, "h", topic="a/+/#")),
        ("mqtt://h/a?b=c", Target("tcp", False, "h", topic="a?b=c")),
        ("mqtt://h/%C3%A9%2F", Target("tcp", False, "h", topic="é/")),
        ("mqtt://h//a", Target("tcp", False, "h", topic="/a")),
        ("mqtts://u:p%40%3A@h/t", Target("tcp", True, "h", username="u", password="p@:", topic="t")),
        ("tls://[::1]:8884", Target("tcp", True, "::1", 8884)),
        ("ws://h/path", Target("websockets", False, "h", path="/path")),
        ("wss://h", Target("websockets", True, "h")),
        ("unix:///run/a%20b.sock", Target("unix", False, "/run/a b.sock")),
    ],
)
def test_a_url_says_where_to_connect(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    ["h", "http://h", "mqtt://", "mqtt:///t", "mqtt://h:x", "mqtt://h:0", "mqtt://h:99999", "unix://a", "mqtt://[::1"],
)
def test_a_url_that_names_no_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_url(url)


@pytest.mark.parametrize(
    ("args", "host", "port", "transport"),
    [
        ((), "localhost", 1883, "tcp"),
        (("-h", "a", "-p", "7"), "a", 7, "tcp"),
        (("--ws",), "localhost", 80, "websockets"),
        (("--tls-use-os-certs",), "localhost", 8883, "tcp"),
        (("--ws", "--tls-use-os-certs"), "localhost", 443, "websockets"),
        (("--unix", "/s"), "/s", 1, "unix"),
        (("-L", "mqtt://b:5"), "b", 5, "tcp"),
        (("-L", "mqtts://b"), "b", 8883, "tcp"),
        (("-L", "mqtt://b:5", "-h", "a"), "a", 5, "tcp"),
        (("-p", "7", "-L", "mqtt://b:5"), "b", 7, "tcp"),
    ],
)
def test_the_server_and_its_default_port(
    read: Read, args: tuple[str, ...], host: str, port: int, transport: str
) -> None:
    options = read(*args)
    assert (options.host, options.port, options.transport) == (host, port, transport)


def test_environment_variables_of_the_command_beat_those_of_all_commands(read: Read) -> None:
    assert read(TIDINGS_HOST="all").host == "all"
    assert read(TIDINGS_HOST="all", TIDINGS_PUB_HOST="pub").host == "pub"
    assert read("-h", "given", TIDINGS_PUB_HOST="pub").host == "given"


def test_a_url_given_beats_the_environment_and_a_flag_given_beats_a_url(read: Read) -> None:
    assert read("-L", "mqtt://url", TIDINGS_HOST="all").host == "url"
    assert read("-h", "given", TIDINGS_URL="mqtt://url:5").host == "given"
    assert read("--unix", "/s", TIDINGS_URL="mqtt://url:5").transport == "unix"
    with pytest.raises(click.UsageError, match="two servers"):
        read("--unix", "/s", "-L", "mqtt://url")


def test_every_option_has_an_environment_variable(read: Read) -> None:
    options = read(
        TIDINGS_PORT="7",
        TIDINGS_PROTOCOL_VERSION="mqttv311",
        TIDINGS_ID="me",
        TIDINGS_DISABLE_CLEAN_SESSION="1",
        TIDINGS_KEEPALIVE="5",
        TIDINGS_USERNAME="u",
        TIDINGS_PASSWORD="secret",
        TIDINGS_WILL_TOPIC="w",
        TIDINGS_TIMEOUT="2.5",
        TIDINGS_QUIET="true",
    )
    assert (options.port, options.version, options.client_id, options.clean) == (7, Version.MQTTv311, "me", False)
    assert (options.keepalive_s, options.username, options.password) == (5, "u", "secret")
    assert options.will is not None
    assert (options.will.topic, options.timeout_s, options.quiet) == ("w", 2.5, True)


def test_properties_come_from_the_environment_one_a_line(read: Read) -> None:
    options = read(TIDINGS_PROPERTY="publish user-property 'a b' c\npublish content-type text/plain\n")
    assert pairs(options.properties["publish"]) == [("user-property", ("a b", "c")), ("content-type", "text/plain")]
    with pytest.raises(click.BadParameter, match="not COMMAND NAME VALUE"):
        read(TIDINGS_PROPERTY="publish user-property a")


@pytest.mark.parametrize("spelling", ["5", "5.0", "mqttv5", "MQTTv5"])
def test_mqtt_5_is_the_default_and_has_several_spellings(read: Read, spelling: str) -> None:
    assert read().version == read("-V", spelling).version == Version.MQTTv5
    assert read("-V", "31").version == read("-V", "mqttv31").version == Version.MQTTv31


def test_the_password_comes_from_a_file_a_prompt_the_environment_or_the_url(read: Read, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"from file \n")
    user = ("-u", "u")
    assert read(*user, "--pw-file", str(secret)).password == "from file "
    assert read(*user, "--ask-password", ask="typed\n").password == "typed"
    assert read(*user, TIDINGS_PASSWORD="env").password == "env"
    assert read(*user, "--pw-file", str(secret), TIDINGS_PASSWORD="env").password == "from file "
    assert read("-L", "mqtt://u:url@h").password == "url"
    assert read("-L", "mqtt://u:url@h", "-P", "given").password == "given"
    assert "hidden" not in repr(read("-L", "mqtt://u:hidden@h"))


def test_a_password_is_given_once_and_with_a_user_name(read: Read, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff")
    with pytest.raises(click.UsageError, match="exclude each other"):
        read("-u", "u", "-P", "p", "--pw-file", str(secret))
    with pytest.raises(click.UsageError, match="needs a user name"):
        read("-P", "p")
    with pytest.raises(click.ClickException, match="not UTF-8"):
        read("-u", "u", "--pw-file", str(secret))


def test_the_client_id_is_given_prefixed_or_generated(read: Read) -> None:
    generated = read().client_id
    assert generated.startswith("tidings_pub_")
    assert len(generated) <= 23  # the limit of MQTT 3.1
    assert generated != read().client_id
    assert read("-i", "me").client_id == "me"
    assert read("-I", "me-").client_id == f"me-{os.getpid()}"
    with pytest.raises(click.UsageError, match="exclude each other"):
        read("-i", "a", "-I", "b")


def test_a_kept_session_needs_a_client_id_and_does_not_expire_by_default(read: Read) -> None:
    with pytest.raises(click.UsageError, match="-i or -I"):
        read("-c")
    assert not read("-c", "-i", "me").clean
    expiry = {
        args: read("-i", "me", *args).properties.get("connect")
        for args in ((), ("-c",), ("-c", "-x", "60"), ("-x", "∞"))
    }
    assert [pairs(each) for each in expiry.values()] == [
        [],
        [("session-expiry-interval", NEVER_S)],
        [("session-expiry-interval", 60)],
        [("session-expiry-interval", NEVER_S)],
    ]


@pytest.mark.parametrize("seconds", ["-2", "4294967296", "1.5", "x", ""])
def test_a_session_expiry_out_of_range_is_refused(read: Read, seconds: str) -> None:
    with pytest.raises(click.BadParameter, match="is not 0 to"):
        read("-x", seconds)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("-D", "connect", "foo", "1"), "no property 'foo'"),
        (("-D", "fly", "user-property", "a", "b"), "the commands are connect, will"),
        (("-D", "connect", "content-type", "x"), "content-type is not a property of Connect"),
        (("-D", "publish", "topic-alias", "0"), "range 1-65535"),
        (("-D", "publish", "topic-alias", "65536"), "0 to 65,535"),
        (("-D", "publish", "topic-alias", "x"), "whole number, not 'x'"),
        (("-D", "publish", "subscription-identifier", "1"), "only a server sends it"),
        (("-D", "publish", "content-type", "a", "-D", "publish", "content-type", "b"), "given twice"),
        (("-D", "publish", "user-property", "a"), "needs a name and a value"),
        (("-D", "will", "content-type", "a"), "-D will needs --will-topic"),
        (("-D", "connect", "user-property", "a", "b", "-V", "311"), "need MQTT 5"),
        (("-x", "1", "-V", "31"), "need MQTT 5"),
        (("-x", "1", "-D", "connect", "session-expiry-interval", "1"), "are the same"),
        (("--will-retain",), "need --will-topic"),
        (("--will-topic", "a/#"), "has a wildcard"),
        (("--will-topic", "w", "--will-payload", "x" * 65_536), "more than the 65,535"),
        (("-i", os.fsdecode(b"\xff")), "not UTF-8"),
        (("-u", "x" * 65_536), "more than the 65,535"),
        (("-h", ""), "host is empty"),
        (("-L", "mqtt://h/%00"), "null character"),
        (("--insecure",), "--insecure needs TLS"),
        (("--tls-version", "tlsv1.2"), "--tls-version needs TLS"),
        (("--no-tls", "-L", "mqtts://h"), "--no-tls contradicts"),
        (("--unix", "/s", "--tls-use-os-certs"), "Unix domain socket"),
    ],
)
def test_options_that_make_no_sense_are_refused(read: Read, args: tuple[str, ...], problem: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        read(*args)
    assert problem in caught.value.format_message()


def test_properties_of_all_types_are_read(read: Read) -> None:
    publish = ("-D", "publish")
    given: tuple[str, ...] = (*publish, "user-property", "a", "b", *publish, "correlation-data", os.fsdecode(b"\xff"))
    given += (*publish, "topic-alias", "3")
    assert pairs(read(*given, "-D", "publish", "user-property", "-D", "").properties["publish"]) == [
        ("user-property", ("a", "b")),
        ("user-property", ("-D", "")),
        ("correlation-data", b"\xff"),
        ("topic-alias", 3),
    ]


def test_the_will_keeps_its_bytes(read: Read) -> None:
    will = read("--will-topic", "w", "--will-payload", os.fsdecode(b"a\xff"), "--will-qos", "2", "--will-retain").will
    assert will is not None
    assert (will.topic, will.payload, will.qos, will.retain) == ("w", b"a\xff", 2, True)


def test_tls_is_set_up_as_asked(read: Read, certificate: tuple[str, str]) -> None:
    cert, key = certificate
    context = read("--cafile", cert, "--cert", cert, "--key", key, "--tls-version", "tlsv1.2", "--tls-alpn", "mqtt").tls
    assert context is not None
    assert (context.minimum_version, context.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    insecure = read("--cafile", cert, "--insecure")
    assert insecure.tls is not None
    assert (insecure.tls.check_hostname, insecure.tls.verify_mode) == (False, ssl.CERT_REQUIRED)


def test_port_8883_means_tls_unless_told_otherwise(read: Read) -> None:
    assert read("-p", "8883").tls is not None
    assert read("-p", "8883", "--no-tls").tls is None
    assert read("-p", "8884").tls is None


def test_certificates_that_are_none_are_refused_with_their_name(read: Read, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    with pytest.raises(click.ClickException, match=r"--cafile .*rubbish\.pem"):
        read("--cafile", str(rubbish))
    with pytest.raises(click.ClickException, match="--ciphers"):
        read("--tls-use-os-certs", "--ciphers", "NONSENSE")


@pytest.mark.parametrize("topic_filter", ["a", "#", "+", "a/+/b/#", "/", "$share/g/a/#", "$share/g//", "$SYS/#"])
def test_topic_filters_are_accepted(topic_filter: str) -> None:
    assert check_filter(topic_filter, "-t") == topic_filter


@pytest.mark.parametrize(
    "topic_filter", ["", "a/##", "a#", "a/#/b", "a+", "$share/g", "$share//a", "$share/g+/a", "$share/g/"]
)
def test_texts_that_are_no_topic_filter_are_refused(topic_filter: str) -> None:
    with pytest.raises(click.UsageError, match="-t: "):
        check_filter(topic_filter, "-t")
