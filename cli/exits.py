"""Exit codes, and the one exception that ends a command with one of them.

A command raises ``Failure``; only ``main`` turns it into a line on stderr and an exit code. Codes 128 to 162 are MQTT
5.0 reason codes and 1 to 5 with ``-V 311`` or ``-V 31`` are CONNACK return codes, both as the server sent them, which
is what mosquitto_pub and mosquitto_sub do.
"""

import click

ERROR = 1
USAGE = 2
TIMED_OUT = 27  # mosquitto's number
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports of a program that Ctrl-C ended

CLIENT_EXIT_CODES = """\b
Exit codes
  0          all went well; for sub also after Ctrl-C, SIGTERM or a closed pipe
  1          no connection, an unusable file or input line, or interrupted before everything was acknowledged
  1 to 5     with -V 311 or 31: refused by the server, the return code of its CONNACK
  2          wrong usage
  27         -W: the time was up
  128 to 162 refused by the server (connection, subscription, publication, or a DISCONNECT from it): its reason code
"""


class Failure(click.ClickException):
    """An error that the user can act on: shown as ``Error: <message>`` without a traceback; no message, no line."""

    def __init__(self, message: str, exit_code: int = ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance's
