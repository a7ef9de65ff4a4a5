"""``tidings cert``: what the certificates vouch for, who may read the keys, and what is refused."""

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID


def names(path: Path) -> list[str]:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in found]


def assert_signed(path: Path, authority: Path) -> None:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.read_bytes()))


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that needs an authority leaves it to the others: a large key takes long to find."""
    return tmp_path_factory.mktemp("authority") / "kept"


@pytest.fixture
def folder(tidings: Any, tmp_path: Path, kept: Path) -> Path:
    """A folder with an authority."""
    made = tmp_path / "made" / "here"
    if kept.exists():
        shutil.copytree(kept, made)
    else:
        done = tidings("cert", "ca", "--dir", str(made), "--name", "our CA")
        assert done == (0, f"{made / 'ca.crt'} {made / 'ca.key'}\n".encode(), "")
        shutil.copytree(made, kept)
    return made


def test_the_authority_may_sign_and_bears_its_name(folder: Path) -> None:
    certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert [each.value for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["our CA"]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([], ["localhost", "127.0.0.1", "::1"]),
        (["broker.example.org", "*.b.example", "192.0.2.7"], ["broker.example.org", "*.b.example", "192.0.2.7"]),
    ],
)
def test_a_server_is_vouched_for_under_each_of_its_names(
    tidings: Any, folder: Path, hosts: list[str], expected: list[str]
) -> None:
    assert tidings("cert", "server", *hosts, "--dir", str(folder), "--days", "30").code == 0
    assert names(folder / "server.crt") == expected
    assert_signed(folder / "server.crt", folder / "ca.crt")
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 30


def test_a_device_is_vouched_for_by_its_id(tidings: Any, folder: Path) -> None:
    done = tidings("cert", "device", "a-1", "b_2", "--domain", "example.org", "--dir", str(folder))
    assert (done.code, done.out.count(b"\n")) == (0, 2)
    assert names(folder / "a-1.crt")[0] == "spiffe://example.org/device/a-1"
    assert names(folder / "b_2.crt")[0] == "spiffe://example.org/device/b_2"
    for name in ("a-1", "b_2"):
        assert_signed(folder / f"{name}.crt", folder / "ca.crt")


def test_only_the_owner_may_read_a_key(tidings: Any, folder: Path) -> None:
    tidings("cert", "server", "--dir", str(folder))
    tidings("cert", "device", "a", "--dir", str(folder))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "a.key": 0o600}


@pytest.mark.parametrize("args", [("ca",), ("server",), ("device", "a")])
@pytest.mark.parametrize("suffix", ["key", "crt"])
def test_nothing_is_written_over(tidings: Any, folder: Path, args: tuple[str, ...], suffix: str) -> None:
    path = folder / f"{args[-1]}.{suffix}"
    if args != ("ca",):
        path.write_text("mine")
    before = path.read_bytes()
    done = tidings("cert", *args, "--dir", str(folder))
    assert (done.code, done.out) == (1, b"")
    assert done.err.count("\n") == 1
    assert "is there already; move it away first" in done.err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("device", "../a"), "a device has 1 to 63 of"),
        (("device", "a/b"), "a device has 1 to 63 of"),
        (("device", "ca"), "not 'ca', 'server'"),
        (("device", ""), "a device has 1 to 63 of"),
        (("device", "a" * 64), "a device has 1 to 63 of"),
        (("device", "a", "--domain", "a/b"), "'a/b' is no domain"),
        (("device",), "Missing argument"),
        (("server", "http://a"), "'http://a' is neither a host name nor an IP address"),
        (("server", "-a"), "No such option"),
        (("server", "a", "--days", "0"), "Invalid value for '--days'"),
        (("ca", "--name", ""), "--name has 1 to 64 characters"),
    ],
)
def test_wrong_names_are_one_line_and_exit_2(tidings: Any, tmp_path: Path, args: tuple[str, ...], words: str) -> None:
    done = tidings("cert", *args, "--dir", str(tmp_path))
    assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
    assert words in done.err
    assert list(tmp_path.glob("*.*")) == []


def test_without_an_authority_it_says_how_to_make_one(tidings: Any, tmp_path: Path) -> None:
    done = tidings("cert", "server", "--dir", str(tmp_path))
    assert done == (1, b"", f"Error: {tmp_path / 'ca.key'} is not there; 'tidings cert ca' makes it\n")


def test_a_damaged_authority_is_one_line(tidings: Any, folder: Path) -> None:
    (folder / "ca.key").write_text("nothing")
    done = tidings("cert", "server", "--dir", str(folder))
    assert (done.code, done.out, done.err.count("\n")) == (1, b"", 1)
    assert "cannot be used" in done.err
