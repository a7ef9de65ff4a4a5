"""TLS: who is let in, what is refused, names, and new certificates without a disconnection."""

import logging
import ssl
import warnings
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tidings.broker import Broker, BrokerThread, Config, ConfigError, Listener
from tidings.broker.transport.endpoint import Endpoint

from .certificates import Authority, Pair
from .conftest import HOST, Serve, Served
from .streams import Closed, Stream


@pytest.fixture
def foreign(tmp_path: Path) -> Authority:
    """An authority that nobody here trusts."""
    return Authority(tmp_path, "foreign")


def asking(authority: Authority, how: str = "required") -> dict[str, Any]:
    return {"cafile": authority.cafile, "client_certificates": how}


def connected(url: str, tls: ssl.SSLContext) -> Stream:
    stream = Stream(url, tls)
    try:
        stream.connect()
    except BaseException:
        stream.close()
        raise
    return stream


def serial(stream: Stream) -> object:
    """The certificate that the broker showed."""
    assert isinstance(stream.raw, ssl.SSLSocket)
    certificate = stream.raw.getpeercert()
    assert certificate is not None
    return certificate["serialNumber"]


@pytest.mark.parametrize(("kind", "protocol"), [("tls", "mqtt"), ("wss", "http/1.1")])
def test_modern_tls_and_the_application_protocol(serve: Serve, authority: Authority, kind: str, protocol: str) -> None:
    url = serve(kind).url
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        tls = authority.trusting()
        tls.maximum_version = version
        tls.set_alpn_protocols([protocol])
        with connected(url, tls) as stream:
            assert isinstance(stream.raw, ssl.SSLSocket)
            assert stream.raw.version() == version.name.replace("_", ".")
            assert stream.raw.selected_alpn_protocol() == protocol


def reason_of_refusal(served: Served, tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> str:
    """What the broker logs of a handshake that it refuses."""
    with caplog.at_level(logging.INFO):
        with pytest.raises(ssl.SSLError):
            Stream(served.url, tls)
        served.broker.stop()
    (line,) = [each for each in caplog.messages if each.startswith(f"refusing {HOST}:")]
    return line


def test_tls_1_1_is_refused(serve: Serve, authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    tls = authority.trusting()
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        tls.minimum_version = ssl.TLSVersion.TLSv1
        tls.maximum_version = ssl.TLSVersion.TLSv1_1
    assert "UNSUPPORTED_PROTOCOL" in reason_of_refusal(serve("tls"), tls, caplog)


def test_old_ciphers_of_tls_1_2_are_refused(
    serve: Serve, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls = authority.trusting()
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA")
    assert "NO_SHARED_CIPHER" in reason_of_refusal(serve("tls"), tls, caplog)


def test_a_client_finds_out_a_wrong_broker(serve: Serve, authority: Authority, foreign: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        Stream(serve("tls").url, foreign.trusting())
    expired = authority.sign("expired", HOST, expired=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        Stream(serve("tls", expired._asdict()).url, authority.trusting())
    other = authority.sign("other", "other.example")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        Stream(serve("tls", other._asdict()).url, authority.trusting())


@pytest.mark.parametrize("kind", ["tls", "wss"])
def test_a_client_certificate_is_required(serve: Serve, authority: Authority, foreign: Authority, kind: str) -> None:
    url = serve(kind, asking(authority)).url
    connected(url, authority.trusting(authority.sign("device"))).close()
    wrong = [None, foreign.sign("stranger"), authority.sign("late", expired=True)]
    for pair in wrong:
        with pytest.raises((Closed, ssl.SSLError)):
            connected(url, authority.trusting(pair))


def test_an_optional_client_certificate_must_be_good_if_there_is_one(
    serve: Serve, authority: Authority, foreign: Authority
) -> None:
    url = serve("tls", asking(authority, "optional")).url
    connected(url, authority.trusting()).close()
    connected(url, authority.trusting(authority.sign("device"))).close()
    with pytest.raises((Closed, ssl.SSLError)):
        connected(url, authority.trusting(foreign.sign("stranger")))


def test_plain_bytes_on_a_tls_port_are_refused(serve: Serve, authority: Authority) -> None:
    served = serve("tls")
    with pytest.raises(Closed):
        connected(served.url.replace("tls:", "tcp:"), authority.trusting())
    served.client()


def test_a_client_gets_the_certificate_of_the_name_that_it_asks_for(serve: Serve, authority: Authority) -> None:
    names = {
        "One.example": authority.sign("one", "one.example")._asdict(),
        "*.two.example": authority.sign("two", "*.two.example")._asdict(),
    }
    served = serve("tls", {"server_names": names})
    shown = {}
    for name in ("one.example", "a.two.example", "localhost"):
        tls = authority.trusting()
        plain = Stream(served.url.replace("tls:", "tcp:"))
        with tls.wrap_socket(plain.raw, server_hostname=name) as connection:
            certificate = connection.getpeercert()
            assert certificate is not None
            shown[name] = certificate["subject"]
    assert shown == {
        name: ((("commonName", subject),),)
        for name, subject in {"one.example": "one", "a.two.example": "two", "localhost": "server"}.items()
    }


def test_new_certificates_are_for_new_connections_and_old_ones_stay(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.sign("server", HOST)
    listeners: list[str | Listener] = [Listener(url=f"{kind}://{HOST}:0", **pair._asdict()) for kind in ("tls", "wss")]
    with BrokerThread(Config(listeners=listeners)) as broker:
        before = [connected(url, authority.trusting()) for url in broker.urls]
        authority.sign("server", HOST)
        assert broker.reload() == "certificates of 2 listeners"
        after = [connected(url, authority.trusting()) for url in broker.urls]
        assert all(serial(old) != serial(new) for old, new in zip(before, after, strict=True))
        before[1].ping()
        for stream in (*before, *after):
            stream.close()


def test_another_authority_for_clients_is_in_force_at_once(tmp_path: Path) -> None:
    """A client whose authority is taken out of the file stays outside, even if it was inside before."""
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    trusted = tmp_path / "trusted.crt"
    trusted.write_bytes(old.cafile.read_bytes())
    pair = old.sign("server", HOST)
    listener = Listener(url=f"tls://{HOST}:0", cafile=trusted, client_certificates="required", **pair._asdict())
    with BrokerThread(Config(listeners=[listener])) as broker:
        tls = old.trusting(old.sign("device"))
        first = connected(broker.urls[0], tls)
        trusted.write_bytes(new.cafile.read_bytes())
        broker.reload()
        assert isinstance(first.raw, ssl.SSLSocket)
        with pytest.raises((Closed, ssl.SSLError)):
            connected(broker.urls[0], tls)
        connected(broker.urls[0], old.trusting(new.sign("newer"))).close()
        first.ping()
        first.close()


def test_certificates_are_taken_all_or_none(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = [authority.sign(name, HOST) for name in ("one", "two")]
    with BrokerThread(
        Config(listeners=[Listener(url=f"tls://{HOST}:0", **pair._asdict()) for pair in pairs])
    ) as broker:

        def shown() -> list[object]:
            streams = [connected(url, authority.trusting()) for url in broker.urls]
            serials = [serial(stream) for stream in streams]
            for stream in streams:
                stream.close()
            return serials

        before = shown()
        authority.sign("one", HOST)
        pairs[1].certfile.unlink()
        with pytest.raises(ConfigError, match=r"certfile .*two\.crt cannot be read: No such file"):
            broker.reload()
        assert shown() == before
        authority.sign("two", HOST)
        broker.reload()
        assert not set(shown()) & set(before)


def broken(settings: dict[str, Any], tmp_path: Path, how: str, foreign: Authority) -> dict[str, Any]:
    """Settings that are wrong in one way."""
    certfile, keyfile = settings["certfile"], settings["keyfile"]
    text = tmp_path / "text"
    text.write_text("nothing\n")
    bad = tmp_path / "bad.crt"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    encrypted = tmp_path / "encrypted.key"
    key = load_pem_private_key(keyfile.read_bytes(), None)
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    changes: dict[str, dict[str, Any]] = {
        "no certificate": {"certfile": None},
        "no file": {"keyfile": tmp_path / "none"},
        "a folder": {"certfile": tmp_path},
        "no PEM": {"certfile": text},
        "no key": {"keyfile": None},
        "swapped": {"certfile": keyfile, "keyfile": certfile},
        "another key": {"keyfile": foreign.sign("another").keyfile},
        "damaged": {"certfile": bad},
        "encrypted": {"keyfile": encrypted},
        "no cafile": {"client_certificates": "required"},
        "cafile for nothing": {"cafile": certfile},
        "damaged cafile": {"cafile": bad, "client_certificates": "optional"},
        "name without files": {"server_names": {"a.example": {}}},
        "name with a wrong key": {"server_names": {"a.example": {"certfile": certfile, "keyfile": text}}},
    }
    return {**settings, **changes[how]}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no certificate", "tls:// and wss:// need a certificate: certfile and keyfile"),
        ("no file", "none cannot be read: No such file or directory"),
        ("a folder", "cannot be read: Is a directory"),
        ("no PEM", "text holds no certificate in PEM form"),
        ("no key", "holds no private key in PEM form"),
        ("swapped", "holds no certificate in PEM form"),
        ("another key", "does not belong to the certificate in"),
        ("damaged", "cannot be used"),
        ("encrypted", "is encrypted, and nobody is there to ask for its password"),
        ("no cafile", "client_certificates needs cafile, the CA that signs them"),
        ("cafile for nothing", "cafile is for client_certificates, which is none"),
        ("damaged cafile", "cannot be used"),
        ("name without files", "each name needs certfile and keyfile"),
        ("name with a wrong key", "holds no private key in PEM form"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    server: Pair, tmp_path: Path, foreign: Authority, how: str, words: str
) -> None:
    settings = broken(server._asdict(), tmp_path, how, foreign)
    with pytest.raises(ConfigError) as caught:
        Broker(Config(listeners=[Listener(url="tls://127.0.0.1:0", **settings)]))
    assert str(caught.value).startswith("listener 'tls://127.0.0.1:0': ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("tcp://127.0.0.1:0", {"certfile": "a"}, "certfile is for tls:// and wss://"),
        ("ws://127.0.0.1:0", {"server_names": {"a": {}}}, "server_names is for tls:// and wss://"),
        ("tcp://127.0.0.1:0", {"client_certificates": "required"}, "client_certificates is for tls:// and wss://"),
        ("tcp://127.0.0.1:0", {"origins": ["*"]}, "origins is for ws:// and wss://"),
        ("unix:///tmp/a", {"proxy_protocol": True}, "proxy_protocol is for addresses with a port"),
    ],
)
def test_settings_that_a_listener_does_not_have_are_named(url: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Broker(Config(listeners=[Listener.model_validate({"url": url, **settings})]))
    assert str(caught.value) == f"listener {url!r}: {words}"


def test_a_key_that_everybody_can_read_is_warned_of(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Authority(tmp_path).sign("server", HOST)
    with caplog.at_level(logging.WARNING):
        Endpoint(Listener(url="tls://127.0.0.1:0", **pair._asdict()))
        assert caplog.messages == []
        pair.keyfile.chmod(0o644)
        Endpoint(Listener(url="tls://127.0.0.1:0", **pair._asdict()))
    assert [f"keyfile {pair.keyfile} can be read by everybody" in each for each in caplog.messages] == [True]


def test_a_listener_that_requires_client_certificates_may_be_reached_from_outside(
    authority: Authority, server: Pair
) -> None:
    settings: dict[str, Any] = server._asdict()
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        Broker(Config(listeners=[Listener(url="tls://0.0.0.0:0", **settings)]))
    Broker(Config(listeners=[Listener(url="tls://0.0.0.0:0", **settings, **asking(authority))]))
