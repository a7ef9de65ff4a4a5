"""``tidings user``: the password file of ``tidings broker --password-file``. No password is ever an argument."""

import os
import sys
from pathlib import Path

import click

from tidings.broker.access.users import (
    DEFAULT_ROUNDS,
    MAX_ROUNDS,
    MIN_ROUNDS,
    check_name,
    new_user,
    put_user,
    read_users,
    remove_user,
)

from .exits import USAGE, Failure
from .group import Group

PASSWORD_VARIABLE = "TIDINGS_PASSWORD"
_FILE = click.option(
    "--file",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("passwords"),
    show_default=True,
    help="The password file.",
)


@click.group(cls=Group)
def user() -> None:
    """Add, list and remove the users who may connect, in a password file.

    \b
    tidings user add alice
    tidings broker --password-file passwords

    A running broker reads the file again on SIGHUP.
    """


@user.command()
@click.argument("name")
@_FILE
@click.option("--pw-file", metavar="FILE", help="Take the password from the first line of this file; - is stdin.")
@click.option(
    "--scram",
    is_flag=True,
    help="Keep what SCRAM-SHA-256 needs, with which a client proves that it knows the password and does not send it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(MIN_ROUNDS, MAX_ROUNDS),
    default=DEFAULT_ROUNDS,
    show_default=True,
    help="Of --scram: work for whoever guesses, and for the client each time.",
)
def add(name: str, path: Path, pw_file: str | None, scram: bool, rounds: int) -> None:
    """Add a user, or give one a new password.

    The password is asked for, unless --pw-file names a file or the environment variable TIDINGS_PASSWORD holds it. The
    file is made if it is not there, for its owner's eyes only.
    """
    try:
        check_name(name)
        made = new_user(name, _password(pw_file), scram=scram, rounds=rounds)
    except ValueError as error:
        raise Failure(str(error), USAGE) from None
    if any(character in name for character in "/+#") or name.startswith("$"):
        click.echo(
            f"note: %u in an access file stands for nothing for {name!r}, which has / + # or a leading $", err=True
        )
    new = put_user(path, made)
    click.echo(f"{path}: {name} {'added' if new else 'has a new password'} ({made.kind})", err=True)


@user.command("list")
@_FILE
def list_users(path: Path) -> None:
    """One line for each user: the name, and how a password is kept, argon2 or SCRAM-SHA-256."""
    for each in read_users(path).values():
        click.echo(f"{each.name}\t{each.kind}")


@user.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_FILE
def remove(names: tuple[str, ...], path: Path) -> None:
    """Remove users.

    Exit codes: 0 removed; 1 a user is not there, the others were removed, or the file cannot be used.
    """
    missing = [name for name in names if not remove_user(path, name)]
    if missing:
        raise Failure(f"{path}: no user {', '.join(map(repr, missing))}")


def _password(pw_file: str | None) -> str:
    if pw_file is not None:
        try:
            data = sys.stdin.buffer.readline() if pw_file == "-" else Path(pw_file).read_bytes().partition(b"\n")[0]
            return data.decode().removesuffix("\n").removesuffix("\r")
        except OSError as error:
            raise Failure(f"--pw-file {pw_file}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise Failure(f"--pw-file {pw_file}: the password is not UTF-8") from None
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    return str(click.prompt("Password", hide_input=True, confirmation_prompt="Once more", err=True))
