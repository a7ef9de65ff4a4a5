"""One line of text for one packet on the wire.

    frame("32 * s'a/b' 0007 [23 0001] 'hi'")

Hexadecimal digits are bytes, ``'…'`` is plain text, ``s'…'`` is text after its two-byte length, ``[…]`` stands after
its own length (properties), and ``*`` is the length of everything behind it (the remaining length).
"""

import re
from collections.abc import Iterator

TOKEN = re.compile(r"\s*(?:(?P<hex>(?:[0-9a-fA-F]{2})+)|(?P<kind>s?)'(?P<text>[^']*)'|(?P<mark>[*\[\]]))")


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | 0x80 if value else low)
        if not value:
            return bytes(out)


def frame(line: str) -> bytes:
    tokens = _tokens(line)
    built = _build(tokens, "")
    assert next(tokens, None) is None, line
    return built


def _tokens(line: str) -> Iterator[re.Match[str]]:
    at = 0
    while line[at:].strip():
        match = TOKEN.match(line, at)
        assert match, f"cannot read {line[at:]!r} in {line!r}"
        yield match
        at = match.end()


def _build(tokens: Iterator[re.Match[str]], until: str) -> bytes:
    out = b""
    for token in tokens:
        if token["hex"]:
            out += bytes.fromhex(token["hex"])
        elif token["mark"] and token["mark"] == until:
            return out
        elif token["mark"] == "*":
            rest = _build(tokens, until)
            return out + varint(len(rest)) + rest
        elif token["mark"] == "[":
            inner = _build(tokens, "]")
            out += varint(len(inner)) + inner
        else:
            text = token["text"].encode()
            out += len(text).to_bytes(2, "big") + text if token["kind"] else text
    assert not until, "a bracket is not closed"
    return out
