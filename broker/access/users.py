"""The password file: the users there are, and what proves that somebody is one of them.

One line for each user, ``NAME:HASH``, as amqtt's FileAuthPlugin reads it; empty lines and those that begin with ``#``
do not count. HASH is one of two kinds:

    $argon2id$v=19$m=…,t=…,p=…$SALT$HASH                 a password is compared with it
    SCRAM-SHA-256$ROUNDS:SALT$STORED_KEY:SERVER_KEY      the same, and SCRAM-SHA-256 without sending the password
                                                         (RFC 5803, in the form that PostgreSQL writes it)

Passwords are never kept, shown or logged. ``matches`` takes as long as it is meant to take: not in an event loop.
"""

import base64
import binascii
import contextlib
import hmac
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from argon2 import extract_parameters
from argon2.exceptions import InvalidHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from scramp import ScramException, ScramMechanism
from scramp.utils import saslprep

from ..errors import ConfigError

if os.name != "nt":
    import fcntl

ARGON2: Final = "argon2"
SCRAM: Final = "SCRAM-SHA-256"
MIN_ROUNDS: Final = 4_096  # RFC 7677
DEFAULT_ROUNDS: Final = 10_000
MAX_ROUNDS: Final = 1_000_000
MAX_NAME_BYTES: Final = 65_535
_SCRAM: Final = re.compile(r"SCRAM-SHA-256\$(\d{4,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")
_KEY_BYTES: Final = 32


@dataclass(slots=True, frozen=True)
class ScramKeys:
    """What RFC 5802 section 3 has a server keep instead of a password."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    rounds: int


@dataclass(slots=True, frozen=True)
class User:
    """``scram`` None: the hash is argon2's, and only a password that is sent can be compared with it."""

    name: str
    hash: str = field(repr=False)
    scram: ScramKeys | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        """``argon2`` or ``SCRAM-SHA-256``."""
        return ARGON2 if self.scram is None else SCRAM

    def matches(self, password: bytes) -> bool:
        """Whether ``password`` is this user's; tens of milliseconds of work."""
        try:
            text = password.decode()
        except UnicodeDecodeError:
            return False
        if self.scram is None:
            return bool(Argon2Hasher().verify(text, self.hash))
        keys = self.scram
        try:
            _, _, server_key, _ = ScramMechanism(SCRAM).make_auth_info(text, keys.rounds, keys.salt)
        except ScramException:  # characters that no password has
            return False
        return hmac.compare_digest(server_key, keys.server_key)


Users = Mapping[str, User]


def read_users(path: Path) -> dict[str, User]:
    """The users in the file at ``path``. Raises ConfigError with file and line, or if others may read the file."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise ConfigError(f"password file {path}: cannot be read: {error.strerror}") from None
    if os.name != "nt" and mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise ConfigError(f"password file {path}: others may read or change it; chmod 600 {path}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{number}: expected UTF-8 text, got byte 0x{data[error.start]:02x}") from None
    users: dict[str, User] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            user = parse_user(line)
            if user.name in users:
                raise ValueError(f"user {user.name!r} is there already")
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}") from None
        users[user.name] = user
    return users


def parse_user(line: str) -> User:
    """``NAME:HASH``. Raises ValueError that says what is wrong, without the hash."""
    name, colon, hash = line.partition(":")
    if not colon:
        raise ValueError("expected NAME:HASH; 'tidings user add' writes such lines")
    check_name(name)
    if hash.startswith("$argon2"):
        try:
            extract_parameters(hash)
        except InvalidHashError:
            raise ValueError(f"the argon2 hash of {name!r} is damaged") from None
        return User(name, hash)
    if hash.startswith(f"{SCRAM}$"):
        return User(name, hash, _parse_scram(name, hash))
    raise ValueError(f"the hash of {name!r} is neither argon2 nor {SCRAM}; 'tidings user add' makes one")


def _parse_scram(name: str, hash: str) -> ScramKeys:
    found = _SCRAM.fullmatch(hash)
    try:
        if found is None:
            raise ValueError
        rounds = int(found[1])
        salt, stored_key, server_key = (base64.b64decode(word, validate=True) for word in found.groups()[1:])
        if not MIN_ROUNDS <= rounds <= MAX_ROUNDS or len(salt) < 12:
            raise ValueError
        if len(stored_key) != _KEY_BYTES or len(server_key) != _KEY_BYTES:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ValueError(f"the {SCRAM} keys of {name!r} are damaged") from None
    return ScramKeys(salt, stored_key, server_key, rounds)


def check_name(name: str) -> None:
    """Raise ValueError unless a password file can hold ``name``."""
    if not name:
        raise ValueError("the user name is empty")
    if len(name.encode(errors="surrogatepass")) > MAX_NAME_BYTES:
        raise ValueError(f"a user name has at most {MAX_NAME_BYTES} bytes")
    if ":" in name or name.startswith("#") or name != name.strip() or not name.isprintable():
        raise ValueError(
            f"user name {name[:80]!r}: no colon, control characters, '#' in front or blanks around it are possible"
        )


def new_user(name: str, password: str, *, scram: bool = False, rounds: int = DEFAULT_ROUNDS) -> User:
    """A user with that password. Raises ValueError for a name or password that cannot be used."""
    check_name(name)
    if not password:
        raise ValueError("the password is empty")
    if len(password.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"a password has at most {MAX_NAME_BYTES} bytes")
    if not scram:
        return User(name, Argon2Hasher().hash(password))
    if not MIN_ROUNDS <= rounds <= MAX_ROUNDS:
        raise ValueError(f"rounds are from {MIN_ROUNDS} to {MAX_ROUNDS}")
    try:
        if saslprep(name) != name:
            raise ValueError(f"SCRAM clients would send the user name {name!r} as {saslprep(name)!r}; use that one")
        salt, stored_key, server_key, _ = ScramMechanism(SCRAM).make_auth_info(password, rounds)
    except ScramException:
        raise ValueError("the user name or the password has characters that SCRAM does not allow (RFC 4013)") from None
    words = [base64.b64encode(each).decode() for each in (salt, stored_key, server_key)]
    hash = f"{SCRAM}${rounds}:{words[0]}${words[1]}:{words[2]}"
    return User(name, hash, ScramKeys(salt, stored_key, server_key, rounds))


@cache
def nobody() -> User:
    """What a password is compared with if there is no such user, so that the time taken does not tell."""
    return new_user("nobody", base64.b64encode(os.urandom(24)).decode())


# changing the file


def put_user(path: Path, user: User) -> bool:
    """Write ``user`` to the file, made for its owner's eyes only if it is not there; whether the user is new.

    The file is replaced as a whole, so that nobody reads half of it; other lines stay as they are.
    """
    with _changing(path) as lines:
        line = f"{user.name}:{user.hash}"
        at = _index(lines, user.name)
        if at is None:
            lines.append(line)
        else:
            lines[at] = line
    return at is None


def remove_user(path: Path, name: str) -> bool:
    """Take a user out of the file; False if there was none."""
    with _changing(path, create=False) as lines:
        at = _index(lines, name)
        if at is not None:
            del lines[at]
    return at is not None


def _index(lines: list[str], name: str) -> int | None:
    start = f"{name}:"
    return next((index for index, line in enumerate(lines) if line.strip().startswith(start)), None)


@contextlib.contextmanager
def _changing(path: Path, *, create: bool = True) -> Iterator[list[str]]:
    """The lines of the file, to be changed; written when the block ends, if it ends well and changed anything."""
    with _locked(path, create) as file:
        if os.fstat(file).st_size:
            read_users(path)  # a file with mistakes, or open to others, is not made worse
        lines = path.read_text(encoding="utf-8").splitlines()
        before = list(lines)
        yield lines
        if lines == before:
            return
        info = os.fstat(file)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as new:
                new.writelines(f"{line}\n" for line in lines)
                new.flush()
                if os.name != "nt":
                    os.fchmod(handle, stat.S_IMODE(info.st_mode))
                    with contextlib.suppress(PermissionError):
                        os.fchown(handle, info.st_uid, info.st_gid)
                os.fsync(handle)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def _locked(path: Path, create: bool) -> Iterator[int]:
    """The file, open, and for us alone among those who change it."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        except OSError as error:
            raise ConfigError(f"password file {path}: cannot be changed: {error.strerror}") from None
        try:
            if os.name != "nt":
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file), os.stat(path))
            except FileNotFoundError:
                same = False
            if same:  # else somebody has put another file in its place meanwhile
                yield file
                return
        finally:
            os.close(file)
