"""``tidings cert``: a certificate authority of one's own, and certificates that it signs, made with amqtt's tools.

What amqtt's certificate plugin expects of a device's certificate stands in those made here: its client id as a SPIFFE
URI. A private key is never written over, and only its owner may read it.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path

import click
from amqtt.contrib.cert import generate_device_csr, generate_root_creds, load_ca, sign_csr, write_key_and_crt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from .exits import USAGE, Failure
from .group import Group

COUNTRY = "ZZ"  # ISO 3166: none that exists; amqtt's tools want one
ORGANIZATION = "tidings"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # of a device: becomes a file name, a DNS label, a part of a URI
HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")

_DIRECTORY = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where ca.crt and ca.key are and the new files go; made if it is not there. [default: here]",
)
_DAYS = click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it is valid, from now."
)


@click.group(cls=Group)
def cert() -> None:
    """Make certificates for TLS: a CA, then servers and devices that it vouches for.

    \b
    tidings cert ca
    tidings cert server broker.example.org 192.0.2.7
    tidings cert device sensor-7
    tidings broker --listen tls://127.0.0.1 --cert server.crt --key server.key --cafile ca.crt --require-client-cert
    """


@cert.command()
@click.option("--name", default="tidings CA", show_default=True, help="Its name in the certificates that it signs.")
@_DIRECTORY
def ca(name: str, directory: Path) -> None:
    """Make a certificate authority: ca.crt, which clients and servers trust, and ca.key, which stays secret."""
    if not 1 <= len(name) <= 64:
        raise Failure("--name has 1 to 64 characters", USAGE)
    _write(directory, "ca", lambda: generate_root_creds(COUNTRY, "", "", ORGANIZATION, name))


@cert.command()
@click.argument("hosts", metavar="[HOST]...", nargs=-1)
@_DAYS
@_DIRECTORY
def server(hosts: tuple[str, ...], days: int, directory: Path) -> None:
    """Make server.crt and server.key for a broker that clients reach at every HOST, a name or an IP address.

    Without one: localhost, 127.0.0.1 and ::1.
    """
    names = [_host(each) for each in hosts or ("localhost", "127.0.0.1", "::1")]
    authority = _authority(directory)

    def make() -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
        key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        subject = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, str(names[0].value)[:64]),
        ]
        # amqtt's own request for a server knows one name, and no address but 127.0.0.1
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(x509.Name(subject))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )
        return key, sign_csr(request, *authority, validity_days=days)

    _write(directory, "server", make)


@cert.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@click.option("--domain", default="tidings", show_default=True, help="Of the URI spiffe://DOMAIN/device/ID.")
@_DAYS
@_DIRECTORY
def device(ids: tuple[str, ...], domain: str, days: int, directory: Path) -> None:
    """Make ID.crt and ID.key for each device, by which it proves to be the client ID.

    The certificate holds spiffe://DOMAIN/device/ID, which amqtt's certificate plugin compares with the client id.
    """
    for each in ids:
        if not NAME.fullmatch(each) or each in ("ca", "server"):
            raise Failure(
                f"{each!r}: a device has 1 to 63 of A-Z a-z 0-9 . _ -, not first . _ -, not 'ca', 'server'", USAGE
            )
    if not HOST.fullmatch(domain):
        raise Failure(f"--domain {domain!r} is no domain", USAGE)
    authority = _authority(directory)
    for each in ids:

        def make(name: str = each) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
            key, request = generate_device_csr(
                COUNTRY, ORGANIZATION, name, f"spiffe://{domain}/device/{name}", f"{name}.local"
            )
            return key, sign_csr(request, *authority, validity_days=days)

        _write(directory, each, make)


def _host(text: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if not HOST.fullmatch(text):
            raise Failure(f"{text!r} is neither a host name nor an IP address", USAGE) from None
        return x509.DNSName(text)


def _authority(directory: Path) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    key, certificate = directory / "ca.key", directory / "ca.crt"
    try:
        authority: tuple[rsa.RSAPrivateKey, x509.Certificate] = load_ca(str(key), str(certificate))
        return authority
    except FileNotFoundError as error:
        raise Failure(f"{error.filename} is not there; 'tidings cert ca' makes it") from None
    except (ValueError, TypeError) as error:
        raise Failure(f"{key} and {certificate} cannot be used: {error}") from None


def _write(directory: Path, name: str, make: Callable[[], tuple[rsa.RSAPrivateKey, x509.Certificate]]) -> None:
    """Make a pair and write it to ``name``.crt and ``name``.key, which must not be there."""
    directory.mkdir(parents=True, exist_ok=True)
    key_path, certificate_path = directory / f"{name}.key", directory / f"{name}.crt"
    for path in (key_path, certificate_path):
        if path.exists():
            raise Failure(f"{path} is there already; move it away first")
    key, certificate = make()
    # amqtt's writer would leave the key to everybody's eyes; to a file that is there it adds no rights.
    os.close(os.open(key_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    write_key_and_crt(key, certificate, name, directory)
    click.echo(f"{certificate_path} {key_path}")
