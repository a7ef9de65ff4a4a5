"""The PROXY protocol, versions 1 and 2: the line or block that a load balancer sends first, with the client's address.

``parse`` reads bytes and nothing else. It is strict: a connection that does not begin with a header that the
specification (haproxy.org, proxy-protocol.txt, section 2) allows for a stream is refused, since whoever can leave it
out could also claim any address.
"""

import ipaddress
import re
from typing import Final, NamedTuple

MAX_BYTES: Final = 4096  # of a version 2 block; its addresses take 36 bytes, the rest is optional
V1_MAX_BYTES: Final = 107
V1: Final = b"PROXY "
V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEAD_BYTES: Final = 16

_PORT: Final = re.compile(rb"0|[1-9]\d{0,4}")
# Version 2, family and transport, and what its addresses take
_UNSPECIFIED, _TCP_4, _TCP_6, _UNIX = 0x00, 0x11, 0x21, 0x31
_LENGTHS: Final = {_UNSPECIFIED: 0, _TCP_4: 12, _TCP_6: 36, _UNIX: 216}


class ProxyError(ValueError):
    """What was received is no header of the PROXY protocol; the text says why."""


class Proxied(NamedTuple):
    """A complete header: its length, and the client as ``ADDRESS:PORT``, empty if the proxy speaks for itself."""

    length: int
    peer: str


def parse(data: bytes) -> Proxied | None:
    """The header at the start of ``data``, None if it is not complete yet. Raises ProxyError."""
    if data.startswith(V2):
        return _parse_v2(data)
    if data.startswith(V1):
        return _parse_v1(data)
    if V2.startswith(data) or V1.startswith(data):
        return None
    raise ProxyError("no PROXY protocol header")


def _parse_v1(data: bytes) -> Proxied | None:
    end = data.find(b"\r\n", 0, V1_MAX_BYTES)
    if end < 0:
        if len(data) >= V1_MAX_BYTES:
            raise ProxyError(f"a PROXY line of more than {V1_MAX_BYTES} bytes")
        return None
    length = end + 2
    words = data[len(V1) : end].split(b" ")
    if words[0] == b"UNKNOWN":
        return Proxied(length, "")
    if len(words) != 5 or words[0] not in (b"TCP4", b"TCP6"):
        raise ProxyError("a PROXY line that is neither TCP4, TCP6 nor UNKNOWN")
    version = 4 if words[0] == b"TCP4" else 6
    source, _ = (_address(word, version) for word in words[1:3])
    port, _ = (_port(word) for word in words[3:5])
    return Proxied(length, f"{source}:{port}")


def _address(word: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(word.decode("ascii"))
    except ValueError:
        raise ProxyError("a PROXY line with a wrong address") from None
    if address.version != version or getattr(address, "scope_id", None):
        raise ProxyError("a PROXY line with a wrong address")
    return str(address)


def _port(word: bytes) -> int:
    if not _PORT.fullmatch(word) or int(word) > 65_535:
        raise ProxyError("a PROXY line with a wrong port")
    return int(word)


def _parse_v2(data: bytes) -> Proxied | None:
    if len(data) < V2_HEAD_BYTES:
        return None
    version_command, kind = data[12], data[13]
    length = V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    if version_command not in (0x20, 0x21):
        raise ProxyError(f"a PROXY header of unknown version or command 0x{version_command:02x}")
    if length > MAX_BYTES:
        raise ProxyError(f"a PROXY header of {length} bytes; {MAX_BYTES} are allowed")
    local = version_command == 0x20
    if not local and kind not in _LENGTHS:
        raise ProxyError(f"a PROXY header of unknown address family 0x{kind:02x}")
    if not local and length < V2_HEAD_BYTES + _LENGTHS[kind]:
        raise ProxyError("a PROXY header that is too short for its addresses")
    if len(data) < length:
        return None
    if local or kind in (_UNSPECIFIED, _UNIX):
        return Proxied(length, "")
    size = 4 if kind == _TCP_4 else 16
    source = ipaddress.ip_address(data[16 : 16 + size])
    port = int.from_bytes(data[16 + 2 * size : 18 + 2 * size], "big")
    return Proxied(length, f"{source}:{port}")
