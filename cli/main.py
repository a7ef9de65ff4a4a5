"""The ``tidings`` command: names its subcommands, imports only the one that is called, and reports every failure.

Invariants:

1. No command module is imported for ``--help``, ``--version`` or another command.
2. Expected errors become one line on stderr and an exit code here and nowhere else; anything else is a bug and keeps
   its traceback.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from . import exits
from .environment import name_variables


class Row(NamedTuple):
    """Where a command is, and its line in ``tidings --help``, which must not import it."""

    module: str
    command: str
    help: str


COMMANDS = {
    "demo": Row("tidings.cli.demo", "demo", "Broker, device fleet and consumers in one, with a verdict."),
    "broker": Row("tidings.cli.broker", "broker", "Run the MQTT broker."),
    "pub": Row("tidings.cli.pub", "pub", "Publish messages."),
    "sub": Row("tidings.cli.sub", "sub", "Subscribe and print what arrives."),
    "crashtest": Row("tidings.cli.crashtest", "crashtest", "Kill a broker again and again; count what was lost."),
    "user": Row("tidings.cli.user", "user", "Add, list and remove the users who may connect."),
    "acl": Row("tidings.cli.acl", "acl", "Say who may publish and subscribe where, and why."),
    "cert": Row("tidings.cli.cert", "cert", "Make certificates for TLS: a CA, servers, devices."),
    "store": Row("tidings.cli.store", "store", "Look into a broker's data directory."),
    "bench": Row("tidings.cli.bench", "bench", "Measure a broker beside its peers."),
    "fleet": Row("tidings.cli.fleet", "fleet", "Run simulated devices and account for every message."),
}


class LazyGroup(click.Group):
    """A group whose commands are the rows of ``COMMANDS``, in that order, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        row = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(row.module), row.command)
        assert isinstance(command, click.Command), f"{row.module}:{row.command} is no click command"
        name_variables(command, f"TIDINGS_{cmd_name}")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        from tidings.broker import COMPILED

        click.echo(f"tidings {version('tidings')} ({'compiled' if COMPILED else 'plain Python'})")
        context.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "TIDINGS", "help_option_names": ["--help"], "max_content_width": 110},
    epilog="Every option is an environment variable too, for example TIDINGS_SUB_TOPIC for 'tidings sub --topic'.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and whether its hot modules are compiled.",
)
def tidings() -> None:
    """A push system for the internet of things: an MQTT broker, its clients, and proof of delivery."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default ``sys.argv``) and return its exit code; the console entry point.

    A command returns its exit code or None for 0, and raises for everything else; see ``tidings.cli.exits``.
    """
    try:
        code = tidings.main(args=args, prog_name="tidings", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "tidings"
        click.echo(f"Error: {error.format_message().rstrip('.')}; see '{path} --help'", err=True)
        return exits.USAGE
    except click.ClickException as error:
        if error.message:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted", err=True)
        return exits.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.ERROR
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        click.echo(f"Error: {error.strerror or error}{where}", err=True)
        return exits.ERROR
    except Exception as error:
        from tidings.broker.errors import TidingsError  # only here: it loads the broker

        if not isinstance(error, TidingsError):
            raise
        click.echo(f"Error: {error}", err=True)
        return exits.ERROR
    return int(code or 0)
