"""Who is let in: passwords, SCRAM, certificates, bans, and the price of guessing. In virtual time."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scramp import ScramClient, ScramException

from tidings.broker.access.gate import MAX_PROVEN
from tidings.broker.access.scram import Exchange, ScramError
from tidings.broker.access.users import new_user
from tidings.broker.codec.packets import Auth, Connack, Connect, Disconnect, Will
from tidings.broker.core.ports import Identity

from .world import METHOD, World, auth, data_of, reason, users


@pytest.fixture(autouse=True)
def _quick_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the password of somebody unknown is compared with takes as long as argon2 does, which is no use here."""
    nobody = new_user("nobody", "nothing", scram=True)
    monkeypatch.setattr("tidings.broker.access.gate.nobody", lambda: nobody)


@pytest.mark.parametrize(
    ("user", "password", "code"),
    [
        ("alice", "right", 0x00),
        ("alice", "wrong", 0x86),
        ("alice", "", 0x86),
        ("alice", None, 0x86),
        ("alice", b"\xff", 0x86),
        ("bob", "right", 0x86),
        ("", "right", 0x87),
        (None, None, 0x87),
        ("../alice", "right", 0x86),
        ("Alice", "right", 0x86),
    ],
)
@pytest.mark.parametrize("version", [3, 4, 5])
def test_a_password_decides(user: str | None, password: Any, code: int, version: int) -> None:
    world = World(users("alice"))
    peer = world.knock(user, password, version=version)
    world.settle()
    if version < 5:
        code = {0x86: 4, 0x87: 5}.get(code, 0)
    assert reason(peer) == code
    assert peer.closed is bool(code)
    assert len(world.wire.engine.sessions) == (not code)


def test_nobody_is_let_in_or_taken_over_before_the_password_was_checked() -> None:
    world = World(users("alice"))
    inside = world.enter("alice", "c")
    stranger = world.knock("alice", "wrong", "c", address="198.51.100.1")
    assert reason(stranger) is None
    world.settle()
    assert reason(stranger) == 0x86
    assert not inside.closed


def test_what_is_wrong_is_not_told() -> None:
    world = World(users("alice"))
    told = []
    for user, password in (("alice", "wrong"), ("nobody", "right")):
        peer = world.knock(user, password)
        assert world.settle() == 1  # a password is compared for both, or the time would tell
        told += peer.receive()
    assert told[0] == told[1]


def test_without_a_password_file_a_user_name_proves_nothing() -> None:
    world = World(rules="user alice\n allow all #\nanonymous\n allow subscribe public/#\n")
    peer = world.enter("alice")
    assert world.settle() == 0
    assert peer.subscribe("a") == 0x87
    assert peer.subscribe("public/#") == 0


def test_somebody_without_a_name_may_be_let_in_but_a_wrong_name_is_not() -> None:
    world = World(users("alice"), allow_anonymous=True)
    world.enter()
    peer = world.knock("bob")
    world.settle()
    assert reason(peer) == 0x86


class Certificate:
    """What the gate asks of a TLS connection."""

    def __init__(self, name: str) -> None:
        self._name = name

    def getpeercert(self) -> Any:
        return {"subject": ((("commonName", self._name),),)} if self._name else None


@pytest.fixture
def certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidings.broker.access.terms.ssl.SSLObject", Certificate)


@pytest.mark.usefixtures("certificates")
def test_a_certificate_names_its_user() -> None:
    rules = "user sensor-*\n connect as %u\n allow publish dev/%u/#\n"
    world = World(users("alice"), rules, user_from_certificate=True, banned_users=("sensor-9",))
    peer = world.enter("alice", "sensor-7", tls=Certificate("sensor-7"), password="whatever")
    [connection] = world.wire.engine.connections
    assert connection.user == "sensor-7"
    assert not peer.closed
    assert reason(world.knock(None, client_id="sensor-8", tls=Certificate("sensor-7"))) == 0x85
    assert reason(world.knock(None, client_id="sensor-9", tls=Certificate("sensor-9"))) == 0x8A
    assert reason(world.knock(None, tls=Certificate(""))) == 0x87


@pytest.mark.usefixtures("certificates")
def test_and_only_where_the_configuration_says_so() -> None:
    assert reason(World(users("alice")).knock(None, tls=Certificate("alice"))) == 0x87


def test_banned_users_and_clients_are_told_so_whatever_they_know() -> None:
    world = World(users("alice", "mallory"), banned_users=("mal*",), banned_clients=("bad-?",))
    assert reason(world.knock("mallory")) == 0x8A
    assert reason(world.knock("mallory", version=4)) == 5
    assert len(world.checks) == 0
    peer = world.knock("alice", client_id="bad-1")
    assert reason(peer) == 0x8A
    world.enter("alice", "bad-10")
    anonymous = World(None, banned_clients=("bad-?",))
    assert reason(anonymous.knock(client_id="bad-1")) == 0x8A


def test_passwords_are_nowhere_in_the_log_nor_in_what_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = World(users("alice", password="t0psecret"))
    for password in ("t0psecret", "t0psecret-wrong"):
        peer = world.knock("alice", password)
        shown = [repr(connection) + repr(connection.identity) for connection in world.wire.engine.connections]
        assert "t0psecret" not in "".join(shown)
        world.settle()
        assert "t0psecret" not in repr(peer.receive())
    assert "wrong password" in caplog.text
    assert "t0psecret" not in caplog.text
    assert "t0psecret" not in repr(world.terms)
    packet = Connect("c", username="alice", password=b"t0psecret", will=Will("t"))
    secret = Auth(0x18, {"authentication_method": METHOD, "authentication_data": b"t0psecret"})
    assert "t0psecret" not in repr(packet) + repr(secret)
    assert all(identity.password is None for identity in identities(world))


def identities(world: World) -> list[Identity]:
    return [each.identity for each in world.wire.engine.connections if each.identity is not None]


# guessing


def guess(world: World, count: int, address: str = "198.51.100.1", user: str = "alice") -> list[int | None]:
    """The answers to so many guesses, made one after another, each for as long as a client waits."""
    answers = []
    for number in range(count):
        peer = world.knock(user, f"guess {number}", f"g{number}", address)
        world.advance(9.0)
        answers.append(reason(peer))
    return answers


def test_guesses_wait_longer_and_longer_and_are_then_refused_unseen() -> None:
    world = World(users("alice"))
    answers = guess(world, 40)
    assert answers[:8] == [0x86] * 8
    assert answers.count(0x9F) > 20
    assert set(answers) == {0x86, 0x9F}


def test_a_crowd_of_guesses_at_once_gets_no_further() -> None:
    world = World(users("alice"))
    peers = [world.knock(f"u{number % 7}", "wrong", f"g{number}") for number in range(500)]
    checked = world.settle()
    world.advance(9.0)
    answers = [reason(peer) for peer in peers]
    assert checked <= 8
    assert answers.count(0x86) <= 24
    assert answers.count(0x9F) >= 476


def test_a_user_is_not_locked_out_where_he_was_let_in_before() -> None:
    world = World(users("alice", "bob"))
    world.enter("alice").drop()
    guess(world, 20)
    for number in range(20):
        guess(world, 3, f"203.0.113.{number}")
    world.enter("alice")


def test_a_right_password_waits_too_or_guesses_would_tell() -> None:
    world = World(users("alice"))
    world.enter("alice", "home", address="203.0.113.1")  # it is remembered
    for number in range(5):
        world.knock("alice", "wrong", f"g{number}", "198.51.100.1")
        world.advance(0.6)
    peer = world.knock("alice", "right", "z", address="198.51.100.1")
    world.advance(0.3)
    assert reason(peer) is None
    world.advance(0.3)
    assert reason(peer) == 0


def test_a_client_that_leaves_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    world = World(users("alice"))
    peers = [world.knock("alice", "wrong", f"g{number}") for number in range(50)]
    for peer in peers:
        peer.drop()
    assert world.settle() == 2  # those that had begun
    guess(world, 6)
    waiting = world.knock("alice", "right", "z", address="198.51.100.1")
    waiting.drop()
    world.advance(60.0)
    assert world.wire.engine.sessions == {}
    assert "Traceback" not in caplog.text


def test_addresses_take_turns() -> None:
    world = World(users("alice", "bob"))
    for number in range(100):
        world.knock("alice", "right", f"a{number}", "198.51.100.1")
    late = world.knock("bob", "right", "b", "203.0.113.1")
    world.settle(checks=5)
    assert reason(late) == 0


def test_no_more_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(users("alice"))
    monkeypatch.setattr(world.gate._checks, "_max_waiting", 10)
    peers = [world.knock("alice", "right", f"a{number}") for number in range(20)]
    assert [reason(peer) for peer in peers[-8:]] == [0x89] * 8
    world.settle()
    assert [reason(peer) for peer in peers[:12]] == [0] * 12


def test_a_crowd_that_comes_back_is_let_in_at_once() -> None:
    names = [f"d{number}" for number in range(200)]
    world = World(users(*names))
    for again in (False, True):
        peers = [world.knock(name, "right", name) for name in names]
        assert world.settle() == (0 if again else 200)
        assert [reason(peer) for peer in peers] == [0] * 200
    assert len(world.gate._proven) == 200
    assert MAX_PROVEN >= 200
    wrong = world.knock("d0", "wrong", "d0")
    assert world.settle() == 1
    assert reason(wrong) == 0x86


# SCRAM


def test_scram_lets_in_whoever_knows_the_password_and_proves_that_the_broker_does() -> None:
    world = World(users("alice"))
    peer, client = world.scram("alice")
    client.set_server_first(data_of(peer.expect(Auth)))
    peer.send(auth(client.get_client_final()))
    connack = peer.expect(Connack)
    assert connack.reason == 0
    client.set_server_final(data_of(connack))  # raises if it is wrong
    [connection] = world.wire.engine.connections
    assert connection.user == "alice"
    assert world.checks == world.checks.__class__()


@pytest.mark.parametrize(("user", "password"), [("alice", "wrong"), ("bob", "right"), ("argon", "right")])
def test_scram_refuses_everybody_else_in_the_same_way(user: str, password: str) -> None:
    world = World(users("alice") | {"argon": new_user("argon", "right")})
    peer, client = world.scram(user, password)
    first = peer.expect(Auth)
    client.set_server_first(data_of(first))
    peer.send(auth(client.get_client_final()))
    assert peer.expect(Connack) == Connack(False, 0x86, {"reason_string": "wrong user name or password"})
    again, other = world.scram(user, password)
    challenge = data_of(again.expect(Auth))
    other.set_server_first(challenge)
    assert challenge.partition("s=")[2] == data_of(first).partition("s=")[2]  # as a user's would be


def test_a_recorded_exchange_is_worth_nothing() -> None:
    world = World(users("alice"))
    peer, client = world.scram("alice")
    first = client.client_first_bare
    client.set_server_first(data_of(peer.expect(Auth)))
    final = client.get_client_final()
    peer.send(auth(final))
    assert peer.expect(Connack).reason == 0
    thief = world.open()
    properties: Any = {"authentication_method": METHOD, "authentication_data": f"n,,{first}".encode()}
    thief.send(Connect("thief", properties=properties))
    thief.expect(Auth)
    thief.send(auth(final))
    assert thief.expect(Connack).reason == 0x86
    assert "thief" not in world.wire.engine.sessions


def test_the_client_may_begin_after_connect() -> None:
    world = World(users("alice"))
    peer = world.open()
    peer.send(Connect("c", properties={"authentication_method": METHOD}))
    assert "authentication_data" not in peer.expect(Auth).properties
    client = ScramClient([METHOD], "alice", "right")
    peer.send(auth(client.get_client_first()))
    client.set_server_first(data_of(peer.expect(Auth)))
    peer.send(auth(client.get_client_final()))
    assert peer.expect(Connack).reason == 0


def test_a_client_may_authenticate_again_but_only_as_itself() -> None:
    world = World(users("alice", "bob"))
    peer, client = world.scram("alice")
    client.set_server_first(data_of(peer.expect(Auth)))
    peer.send(auth(client.get_client_final()))
    assert peer.expect(Connack).reason == 0
    for user in ("alice", "bob"):
        client = ScramClient([METHOD], user, "right")
        peer.send(auth(client.get_client_first(), 0x19))
        packet = peer.receive()[0]
        if user == "bob":
            assert isinstance(packet, Disconnect)
            assert packet.reason == 0x87
            assert peer.closed
            return
        assert isinstance(packet, Auth)
        client.set_server_first(data_of(packet))
        peer.send(auth(client.get_client_final()))
        done = peer.expect(Auth)
        assert done.reason == 0
        client.set_server_final(data_of(done))


def test_the_user_name_of_connect_has_to_be_that_of_scram() -> None:
    world = World(users("alice", "bob"))
    peer, _ = world.scram("alice", username="bob")
    assert peer.expect(Connack).reason == 0x86
    peer, _ = world.scram("alice", username="alice")
    peer.expect(Auth)


def test_guessed_proofs_cost_time_like_passwords() -> None:
    world = World(users("alice"))
    answers = []
    for number in range(30):
        peer, client = world.scram("alice", f"guess {number}", client_id=f"g{number}")
        client.set_server_first(data_of(peer.expect(Auth)))
        peer.send(auth(client.get_client_final()))
        world.advance(9.0)
        answers.append(peer.expect(Connack).reason)
    assert answers[:8] == [0x86] * 8
    assert answers.count(0x9F) > 10
    world = World(users("alice"))
    begun = [world.scram("alice", "wrong", client_id=f"g{number}") for number in range(100)]
    for peer, client in begun:  # all proofs at once
        client.set_server_first(data_of(peer.expect(Auth)))
        peer.send(auth(client.get_client_final()))
    world.advance(9.0)
    assert [peer.expect(Connack).reason for peer, _ in begun].count(0x86) <= 24


def test_an_exchange_that_does_not_go_on_is_cut_off_in_time() -> None:
    world = World(users("alice"))
    peer, _ = world.scram("alice")
    peer.expect(Auth)
    world.advance(world.wire.config.connect_timeout_s - 0.1)
    assert not peer.closed
    world.advance(0.2)
    assert peer.closed
    assert world.wire.engine.sessions == {}


@pytest.mark.parametrize("method", ["SCRAM-SHA-1", "PLAIN", "SCRAM-SHA-256-PLUS", "scram-sha-256"])
def test_another_method_is_not_known(method: str) -> None:
    for world in (World(users("alice")), World(rules="everybody\n allow all #\n")):
        peer = world.open()
        peer.send(Connect("c", properties={"authentication_method": method}))
        assert peer.expect(Connack).reason == 0x8C


def test_a_banned_user_is_refused_after_the_exchange_too() -> None:
    world = World(users("alice"), banned_users=("alice",))
    peer, client = world.scram("alice")
    client.set_server_first(data_of(peer.expect(Auth)))
    peer.send(auth(client.get_client_final()))
    assert peer.expect(Connack).reason == 0x8A


MESSAGES = ["n,,n=alice,r=abc", "y,,n=alice,r=abc", "p=tls-unique,,n=alice,r=abc", "n,a=x,n=alice,r=abc", "n,,n=,r="]


@given(
    st.one_of(st.sampled_from([each.encode() for each in MESSAGES]), st.binary(max_size=60)),
    st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode), st.just(b"c=biws,r=x,p=AAAA")),
)
def test_any_bytes_are_a_message_or_an_error_of_the_client(first: bytes, final: bytes) -> None:
    exchange = Exchange(users("alice"), b"secret")
    try:
        exchange.first(first)
        exchange.final(final)
    except ScramError:
        return
    raise AssertionError("let in")


def test_messages_are_short() -> None:
    with pytest.raises(ScramError, match="5000 bytes"):
        Exchange({}, b"").first(b"n" * 5_000)
    assert issubclass(ScramException, Exception)


# access


def test_the_access_file_decides_what_the_client_may() -> None:
    rules = "user alice\n allow publish subscribe a/#\n deny receive a/secret\n"
    world = World(users("alice"), rules)
    peer = world.enter("alice")
    assert [peer.subscribe(filter) for filter in ("a/#", "b", "#", "$share/g/a/1", "$share/g/#")] == [
        0,
        0x87,
        0x87,
        0,
        0x87,
    ]
    peer.publish("a/1", b"yes", 1)
    peer.publish("b", b"no", 1)
    peer.publish("a/secret", b"hidden", 1)
    reasons = [packet.reason for packet in peer.receive() if hasattr(packet, "reason")]
    assert reasons == [0, 0x87, 0]


def test_a_will_has_to_be_allowed() -> None:
    world = World(users("alice"), "user alice\n allow publish a\n")
    peer = world.knock("alice", will=Will("b", b"x"))
    world.settle()
    assert reason(peer) == 0x87
    world.enter("alice", will=Will("a", b"x"))


@pytest.mark.clause("5.0 MQTT-3.1.3-8")
def test_a_client_id_has_to_be_allowed() -> None:
    world = World(users("alice", "bob"), "user alice\n connect as alice-*\n")
    for client_id, code in (("alice-1", 0), ("bob-1", 0x85)):
        peer = world.knock("alice", client_id=client_id)
        world.settle()
        assert reason(peer) == code
        assert peer.closed == bool(code)
