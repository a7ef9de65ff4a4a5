"""``tidings store``: look into a broker's data directory. Nothing here changes it, so it may be in use."""

import json
import sys
from pathlib import Path

import click

from tidings.broker.store.inspect import StoreReader

from .exits import ERROR, Failure
from .group import Group

_DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group(cls=Group)
def store() -> None:
    """Look into a broker's data directory; it may be in use, and nothing is changed."""


@store.command()
@_DIRECTORY
def check(directory: Path) -> int:
    """Read all of it and say whether it is sound.

    Exit codes: 0 sound; 1 damaged, one line for each trouble, or no store there.
    """
    reader = StoreReader(directory)
    try:
        troubles = reader.check()
    finally:
        reader.close()
    for trouble in troubles:
        click.echo(trouble)
    if not troubles:
        click.echo("ok")
    return ERROR if troubles else 0


@store.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_DIRECTORY
def stats(directory: Path, as_json: bool) -> None:
    """How many sessions, messages and bytes there are."""
    reader = StoreReader(directory)
    try:
        numbers = reader.stats()
    finally:
        reader.close()
    if as_json:
        click.echo(json.dumps(numbers))
        return
    for name, number in numbers.items():
        click.echo(f"{name.replace('_', ' '):16}{number:>16,}")


@store.command()
@_DIRECTORY
def export(directory: Path) -> None:
    """Everything as JSON lines: sessions, what each is owed in order, retained messages.

    Every line has a "kind": session, owed or retained, or damaged for a message that cannot be read. Payloads are text,
    or base64 where they are none.

    Exit codes: 0 that is all; 1 something is damaged, or no store there.
    """
    reader = StoreReader(directory)
    damaged = 0
    try:
        for record in reader.export():
            damaged += record["kind"] == "damaged"
            sys.stdout.write(json.dumps(record, ensure_ascii=False) + "\n")
    finally:
        reader.close()
    if damaged:
        raise Failure(f"messages that cannot be read: {damaged}")
