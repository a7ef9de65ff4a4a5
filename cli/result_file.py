"""Files that a command writes once it has measured: whether they can be written is found out before that.

``-`` stands for stdout, which then has nothing else: ``takes_stdout`` says that the rest must go to stderr.
"""

import os
from pathlib import Path
from typing import Any, Final

import click

from .exits import Failure

_STDOUT: Final = "-"


class _ResultFile(click.Path):
    """A file that may be new, in a folder that is there, or ``-``."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = str(super().convert(value, param, ctx))
        folder = Path(path).parent
        if path != _STDOUT and not Path(path).exists() and not os.access(folder, os.W_OK | os.X_OK):
            self.fail(f"'{path}' cannot be written: {folder} is not a folder that one may write to.", param, ctx)
        return path


RESULT_FILE: Final = _ResultFile()


def takes_stdout(*paths: str | None) -> bool:
    """Whether one of them is stdout. Raises click.UsageError if several are."""
    count = paths.count(_STDOUT)
    if count > 1:
        raise click.UsageError("only one file can be '-', stdout.")
    return bool(count)


def write_result(path: str, text: str) -> None:
    """Write ``text`` to the file ``path``, or to stdout. Raises Failure if that is not possible."""
    if path == _STDOUT:
        click.echo(text, nl=False)
        return
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
