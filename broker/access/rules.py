"""The access file: who may publish and subscribe where, in lines that a person can read.

    user sensor-*                              whom the lines below are for: user PATTERN, client PATTERN (of client
        connect as    %u                       ids), anonymous or everybody; several in a row mean any of them
        allow publish    dev/%u/#
        allow subscribe  dev/%u/command        allow or deny; publish, subscribe, receive or all; a topic filter
    everybody
        allow subscribe  dev/+/temp

1. Of the lines that are for a client, the first that fits decides. What no line decides is refused. A client receives
   what it may subscribe to, unless the first line about receiving that fits denies it.
2. ``allow subscribe`` fits a subscription that asks for nothing outside its filter, ``deny subscribe`` one that asks
   for anything inside: a wildcard cannot reach around a line.
3. ``%u`` and ``%c`` stand for the user name and the client id, ``%%`` for a percent sign. A name that is empty, begins
   with ``$`` or has ``/``, ``+`` or ``#`` in it stands for nothing: no such line allows anything to its owner, and one
   that denies denies all that the name could have meant.
4. If there are ``connect as`` lines for a client, its client id has to fit one of them.
"""

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ..core.ports import Action as Action
from ..core.topics import check_filter, matches, split_share
from ..errors import ConfigError, ProtocolError
from ..policy import covers

MAX_LEVELS: Final = 65_536
_PLACEHOLDER: Final = re.compile(r"%(.?)", re.DOTALL)
_WHO: Final = "user PATTERN, client PATTERN, anonymous or everybody"
_WHAT: Final = "publish, subscribe, receive or all"


@dataclass(slots=True, frozen=True)
class Who:
    """Whom lines are for. ``kind`` as it is written; in ``pattern`` ``*`` and ``?`` stand for any characters."""

    kind: str
    pattern: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern}".rstrip()

    def fits(self, user: str, client_id: str) -> bool:
        """Whether a client is meant; ``user`` is empty if it has none."""
        if self.kind == "everybody":
            return True
        if self.kind == "anonymous":
            return not user
        if self.kind == "user":
            return bool(user) and fits_pattern(self.pattern, user)
        return fits_pattern(self.pattern, client_id)


@dataclass(slots=True, frozen=True)
class Ids:
    """One line that says which client ids there are for somebody, as a pattern with its placeholders."""

    line: int
    who: tuple[Who, ...]
    pattern: str

    def fits(self, user: str, client_id: str) -> bool:
        """Whether the client id is one of them."""
        values = {"u": user, "%": "%"}
        return fits_pattern(self.pattern, client_id, lambda letter: values[letter])


@dataclass(slots=True, frozen=True)
class Rule:
    """One line that allows or denies."""

    line: int
    who: tuple[Who, ...]
    allow: bool
    actions: frozenset[Action]
    filter: str  # with its placeholders
    text: str  # as it is written, blanks squeezed

    def for_client(self, user: str, client_id: str) -> str | None:
        """The filter that the line means for a client; None if it means nothing."""
        if "%" not in self.filter:
            return self.filter
        values = {"u": user, "c": client_id, "%": "%"}
        levels = self.filter.split("/")
        for index, level in enumerate(levels):
            if any(_unsafe(values[letter]) for letter in _PLACEHOLDER.findall(level)):
                return None if self.allow else "/".join([*levels[:index], "#"])
            levels[index] = _PLACEHOLDER.sub(lambda found: values[found[1]], level)
        return "/".join(levels)


class Decision(NamedTuple):
    """``rule`` None: no line fits. ``filter`` is what the line means for this client."""

    allowed: bool
    rule: Rule | None = None
    filter: str = ""


@dataclass(slots=True, frozen=True)
class Rules:
    """All lines of an access file."""

    rules: tuple[Rule, ...] = ()
    ids: tuple[Ids, ...] = ()

    def __len__(self) -> int:
        return len(self.rules) + len(self.ids)

    def may_be(self, user: str, client_id: str) -> bool:
        """Whether a user may have that client id."""
        lines = [line for line in self.ids if any(who.fits(user, client_id) for who in line.who)]
        return not lines or any(line.fits(user, client_id) for line in lines)


class ClientRules:
    """The lines of an access file that concern one client; ``user`` is empty if it has none."""

    __slots__ = ("_rules",)

    def __init__(self, rules: Rules, user: str, client_id: str) -> None:
        self._rules: dict[Action, list[tuple[str, Rule]]] = {action: [] for action in Action}
        for rule in rules.rules:
            if any(who.fits(user, client_id) for who in rule.who):
                meant = rule.for_client(user, client_id)
                if meant is not None:
                    for action in rule.actions:
                        self._rules[action].append((meant, rule))

    def decide(self, action: Action, topic: str) -> Decision:
        """Whether ``action`` on ``topic``, a filter when subscribing, is allowed, and by which line."""
        if action is Action.SUBSCRIBE:
            return self._subscribe(split_share(topic)[1])
        for filter, rule in self._rules[action]:
            if matches(filter, topic):
                if action is Action.RECEIVE and rule.allow:
                    break
                return Decision(rule.allow, rule, filter)
        return self._subscribe(topic) if action is Action.RECEIVE else Decision(False)

    def _subscribe(self, wanted: str) -> Decision:
        for filter, rule in self._rules[Action.SUBSCRIBE]:
            if covers(filter, wanted) if rule.allow else overlap(filter, wanted):
                return Decision(rule.allow, rule, filter)
        return Decision(False)


def read_rules(path: Path) -> Rules:
    """The lines of the access file at ``path``. Raises ConfigError with file and line for each mistake."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise ConfigError(f"access file {path}: cannot be read: {error.strerror}") from None
    if os.name != "nt" and mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"access file {path}: others may change it; chmod go-w {path}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, got byte 0x{data[error.start]:02x}") from None
    return parse_rules(text, str(path))


def parse_rules(text: str, name: str) -> Rules:
    """The lines of ``text``. Raises ConfigError with ``name``, the file's, and a line for each mistake."""
    rules: list[Rule] = []
    ids: list[Ids] = []
    mistakes: list[str] = []
    who: list[Who] = []
    fresh = False  # the heading is not complete: another line may add to it
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split(None, 1)
        if not words or words[0].startswith("#"):
            continue
        word, rest = words[0].lower(), words[1].strip() if len(words) > 1 else ""
        try:
            if word in ("allow", "deny", "connect"):
                if not who:
                    raise ValueError(f"expected whom it is for in a line before it: {_WHO}")
                fresh = False
                if word == "connect":
                    ids.append(_parse_ids(number, tuple(who), rest))
                else:
                    rules.append(_parse_rule(number, tuple(who), word == "allow", rest))
            else:
                if not fresh:
                    who = []
                fresh = True
                who.append(_parse_who(word, rest))
        except ValueError as error:
            mistakes.append(f"{name}:{number}: {error}")
    if mistakes:
        raise ConfigError("\n".join(mistakes[:10]))
    return Rules(tuple(rules), tuple(ids))


def _parse_who(word: str, rest: str) -> Who:
    if word in ("user", "client"):
        if not rest:
            raise ValueError(f"expected {word} PATTERN, where * and ? stand for any characters")
        return Who(word, rest)
    if word in ("anonymous", "everybody"):
        if rest:
            raise ValueError(f"expected nothing after {word}, got {rest[:80]!r}")
        return Who(word)
    raise ValueError(f"expected allow, deny, connect as, {_WHO}, got {word[:80]!r}")


def _parse_ids(number: int, who: tuple[Who, ...], rest: str) -> Ids:
    word, _, pattern = rest.partition(" ")
    pattern = pattern.strip()
    if word.lower() != "as" or not pattern:
        raise ValueError("expected connect as PATTERN, the client ids that are possible")
    for letter in _PLACEHOLDER.findall(pattern):
        if letter not in ("u", "%"):
            raise ValueError(f"%{letter} stands for nothing: expected %u, or %% for a percent sign")
    return Ids(number, who, pattern)


def _parse_rule(number: int, who: tuple[Who, ...], allow: bool, rest: str) -> Rule:
    actions: set[Action] = set()
    filter = rest
    while True:
        word, _, more = filter.partition(" ")
        word, _, tail = word.partition("\t")
        more = f"{tail}\t{more}" if tail else more
        names = [action.value for action in Action]
        if word.lower().rstrip(",") not in (*names, "all"):
            break
        word = word.lower().rstrip(",")
        actions |= set(Action) if word == "all" else {Action(word)}
        filter = more.strip()
    if not actions:
        raise ValueError(f"expected {_WHAT}, got {filter.split()[0][:80]!r}" if filter else f"expected {_WHAT}")
    if not filter:
        raise ValueError("expected a topic filter at the end of the line")
    _check_filter(filter)
    text = f"{'allow' if allow else 'deny'} {' '.join(action.value for action in Action if action in actions)} {filter}"
    return Rule(number, who, allow, frozenset(actions), filter, text)


def _check_filter(filter: str) -> None:
    for letter in _PLACEHOLDER.findall(filter):
        if letter not in ("u", "c", "%"):
            raise ValueError(f"%{letter} stands for nothing: expected %u, %c, or %% for a percent sign")
    if filter.startswith("$share"):
        raise ValueError("expected the filter inside of $share/NAME/…: the lines hold for shared subscriptions too")
    try:
        check_filter(_PLACEHOLDER.sub("x", filter), MAX_LEVELS)
    except ProtocolError as error:
        raise ValueError(str(error)) from None


def fits_pattern(pattern: str, value: str, stands_for: Callable[[str], str] | None = None) -> bool:
    """Whether ``value`` is what ``pattern`` says: ``*`` stands for any characters, ``?`` for one, the rest for itself.

    ``stands_for`` gives what a letter after a percent sign stands for, in which every character is itself.
    """
    words = re.split(r"(%.|[*?])" if stands_for is not None else r"([*?])", pattern)
    parts = []
    for word in words:
        if word in ("*", "?"):
            parts.append(".*" if word == "*" else ".")
        elif stands_for is not None and word.startswith("%"):
            parts.append(re.escape(stands_for(word[1:])))
        else:
            parts.append(re.escape(word))
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that both filters match."""
    if (one[:1] == "$" and other[:1] in ("+", "#")) or (other[:1] == "$" and one[:1] in ("+", "#")):
        return False
    first, second = one.split("/"), other.split("/")
    for index in range(max(len(first), len(second)) + 1):
        mine = first[index] if index < len(first) else None
        theirs = second[index] if index < len(second) else None
        if mine == "#" or theirs == "#":
            return True
        if mine is None or theirs is None:
            return mine is theirs
        if mine != theirs and "+" not in (mine, theirs):
            return False
    return True


def _unsafe(value: str) -> bool:
    return not value or value.startswith("$") or any(character in value for character in "/+#")
