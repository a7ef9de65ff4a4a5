"""``tidings broker``: the broker as a server process.

Stdout gets one line per listener once it accepts connections, for people and for scripts that wait for it; the log
and the path of the data directory go to stderr. SIGINT and SIGTERM stop it gracefully with exit code 0; SIGHUP makes
it read its configuration, users, access rules and certificates again: all of it or, with the reason on stderr, nothing.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click

from tidings.broker import Broker, BrokerError, Config, ConfigError, Listener, StoreError
from tidings.broker.plugins.settings import read_config
from tidings.broker.thread import new_event_loop

from .exits import USAGE, Failure
from .open_files import raise_open_files_limit

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Run the MQTT broker.")
@click.option(
    "--listen",
    "listeners",
    metavar="URL",
    multiple=True,
    help="Where to listen: tcp://, tls://, ws:// or wss:// with HOST:PORT (port 0 = any free one, printed), or "
    "unix:///PATH. Repeatable. [default: tcp://127.0.0.1:1883]",
)
@click.option("--cert", type=FILE, help="The server's certificate (PEM) for the tls:// and wss:// URLs of --listen.")
@click.option("--key", type=FILE, help="Its private key (PEM). [default: it is in the file of --cert]")
@click.option("--cafile", type=FILE, help="Ask clients for certificates, and take those that these CAs signed (PEM).")
@click.option("--require-client-cert", is_flag=True, help="Refuse clients without a certificate.")
@click.option(
    "--password-file",
    type=FILE,
    help="The users who may connect, as 'tidings user add' writes them. [default: everybody may]",
)
@click.option(
    "--access-file",
    type=FILE,
    help="Who may publish and subscribe where; 'tidings acl explain' says why. [default: everybody everywhere]",
)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to keep sessions, their messages and retained messages. One broker per directory. "
    "[default: tidings in the user's state directory]",
)
@click.option("--memory", is_flag=True, help="Keep everything in memory, for the life of the process.")
@click.option(
    "--durability",
    type=click.Choice(["fsync", "os", "memory"]),
    help="What an acknowledged message survives: fsync = a power cut, os = the end of the process however it ends, "
    "memory = neither. [default: fsync]",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML file with any option of the broker, or amqtt's own configuration; the options here come on top of it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
    help="How much goes to stderr: info adds a line per connection.",
)
def broker(
    listeners: tuple[str, ...],
    cert: Path | None,
    key: Path | None,
    cafile: Path | None,
    require_client_cert: bool,
    password_file: Path | None,
    access_file: Path | None,
    data_dir: Path | None,
    memory: bool,
    durability: str | None,
    config_path: Path | None,
    log_level: str,
) -> int:
    """Run an MQTT broker (3.1, 3.1.1 and 5.0) until it is interrupted.

    \b
    Prints "listening on URL" for each listener once it accepts connections. SIGHUP makes it read its files again.
    Exit codes: 0 stopped by SIGINT or SIGTERM, with everything written; 1 cannot listen, cannot use the data directory,
    or stopped while something could not be written or read; 2 wrong option or configuration.
    """
    logging.basicConfig(
        level=log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

    def read() -> Config:
        config = Config()
        if config_path is not None:
            config, notes = read_config(config_path)
            for note in notes:
                click.echo(note, err=True)
        changes: dict[str, object] = {}
        if listeners:
            changes["listeners"] = [_listener(url, cert, key, cafile, require_client_cert) for url in listeners]
        if (cert or key or cafile or require_client_cert) and not any(map(_encrypted, listeners)):
            raise ConfigError("--cert, --key, --cafile and --require-client-cert are for --listen tls://… or wss://…")
        if memory and data_dir is not None:
            raise ConfigError("--memory and --data contradict each other; use one of them")
        if durability is not None:
            changes["durability"] = durability
        if password_file is not None:
            changes["password_file"] = password_file
        if access_file is not None:
            changes["access_file"] = access_file
        if memory:
            changes["data_dir"] = None
        elif data_dir is not None or config.data_dir is None:
            changes["data_dir"] = data_dir or default_data_dir()
        return config.model_copy(update=changes)

    try:
        server = Broker(read())
    except ConfigError as error:
        raise Failure(str(error), USAGE) from None
    raise_open_files_limit()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            runner.run(_serve(server, read))
        except ConfigError as error:
            raise Failure(str(error), USAGE) from None
        except (BrokerError, StoreError) as error:
            raise Failure(str(error)) from None
    return 0


def _encrypted(url: str) -> bool:
    return url.partition("://")[0].lower() in ("tls", "mqtts", "wss")


def _listener(
    url: str, cert: Path | None, key: Path | None, cafile: Path | None, require_client_cert: bool
) -> str | Listener:
    if not _encrypted(url):
        return url
    if cert is None:
        raise ConfigError(f"listener {url!r}: needs --cert, and --key if the key is in a file of its own")
    if require_client_cert and cafile is None:
        raise ConfigError("--require-client-cert needs --cafile, the CA that signs the certificates")
    ask: Literal["none", "optional", "required"] = (
        "required" if require_client_cert else "none" if cafile is None else "optional"
    )
    return Listener(url=url, certfile=cert, keyfile=key, cafile=cafile, client_certificates=ask)


def default_data_dir() -> Path:
    """``tidings`` in the user's state directory (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "tidings"


def _spare_the_collector() -> None:
    """Keep Python's cycle collector from walking everything that waits for somebody.

    By default it walks all objects whenever they have grown by a quarter: pauses of 58 to 141 ms were measured while a
    queue grew to 300,000 messages. With these thresholds it walks the youngest 5,000, or every other time 10,000, and
    the others never: 1 to 3 ms while 100,000 messages were retained, where the second threshold at 5 took 14 to 24.
    Closed connections leave no cycles behind, so counting references frees them; young garbage is still collected.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 0, 1_000_000)


async def _serve(server: Broker, read: Callable[[], Config]) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with server:
        _spare_the_collector()
        if server.config.data_dir is not None and server.config.durability != "memory":
            click.echo(f"data in {server.config.data_dir}", err=True)
        for url in server.urls:
            with contextlib.suppress(BrokenPipeError):
                click.echo(f"listening on {url}")
        loop.add_signal_handler(signal.SIGHUP, _reload, server, read)
        await stopping.wait()


def _reload(server: Broker, read: Callable[[], Config]) -> None:
    try:
        done = server.reload(read())
    except (ConfigError, BrokerError) as error:
        click.echo(f"nothing has changed: {error}", err=True)
    else:
        click.echo(f"read again: {done}", err=True)
