"""YAML files read into pydantic models, with errors that name file, line, key, what was expected and what was there.

Used for the broker's configuration and for the fleet's scenarios. It never fills anything in by itself: defaults belong
to the models. Two rules beyond YAML's own: a key may stand once in a mapping (YAML lets the last one win in silence),
and a model is expected to forbid unknown keys (``extra="forbid"``), for which the nearest known key is offered.

``Seconds`` is the type of a duration in a file or an option: ``250ms``, ``20s``, ``5m``, ``1.5h``, ``2d`` or a plain
number of seconds.
"""

import difflib
import re
import types
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from .errors import ConfigError

_Model = TypeVar("_Model", bound=BaseModel)
_Loc = tuple[int | str, ...]

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|)\s*")
_MAX_ERRORS: Final = 10


def parse_duration(value: object) -> float:
    """Seconds from ``20s``, ``250ms``, ``5m``, ``1h``, ``2d`` or a number. Raises ValueError in words."""
    if isinstance(value, bool):
        raise ValueError("a duration such as 20s, 250ms or 5m")
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("a duration such as 20s, 250ms or 5m")


Seconds = Annotated[float, BeforeValidator(parse_duration)]


def load_yaml(path: Path, model: type[_Model]) -> _Model:
    """The file at ``path`` as a ``model``. Raises ConfigError with one line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x}") from None
    return parse_yaml(text, model, str(path))


def parse_yaml(text: str, model: type[_Model], name: str) -> _Model:
    """``text`` as a ``model``; ``name`` stands for the file in errors. Raises ConfigError."""
    node, data = _read(text, name)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(name, node, model, dict(one)) for one in error.errors(include_url=False)]
        more = len(lines) - _MAX_ERRORS
        shown = [*lines[:_MAX_ERRORS], *([f"{name}: and {more} more"] if more > 0 else [])]
        raise ConfigError("\n".join(shown)) from None


def _read(text: str, name: str) -> tuple[yaml.MappingNode, Any]:
    """The document twice: as nodes, which know their lines, and as plain Python values."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ConfigError(f"{name}:1: expected a mapping of keys, got an empty file")
            if not isinstance(node, yaml.MappingNode):
                kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
                raise ConfigError(f"{name}:{_line(node)}: expected a mapping of keys, got a {kind}")
            for duplicate, first in _duplicates(node):
                key, line = duplicate.value, _line(duplicate)
                raise ConfigError(f"{name}:{line}: {key}: expected each key once, got it again (first in line {first})")
            return node, loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}:1: not valid YAML: {' '.join(str(error).split())}") from None


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _duplicates(node: yaml.Node) -> Iterator[tuple[yaml.ScalarNode, int]]:
    """Keys that stand a second time in their mapping, each with the line of its first time."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key, seen[key.value]
                seen.setdefault(key.value, _line(key))
            yield from _duplicates(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicates(value)


def _locate(root: yaml.Node, loc: _Loc) -> tuple[int, list[str]]:
    """Line and readable key of a pydantic location.

    A location also holds names that are no keys of the file (the branch of a union, a validator): what is not found
    in the file is left out, and the line is that of the nearest thing which is there.
    """
    node, line, keys = root, _line(root), []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(
                ((k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == str(part)), None
            )
            if found is not None:
                line, node = _line(found[0]), found[1]
                keys.append(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = _line(node)
            keys.append(f"[{part}]")
    return line, keys


def _explain(name: str, root: yaml.Node, model: type[BaseModel], error: Mapping[str, Any]) -> str:
    loc: _Loc = error["loc"]
    kind: str = error["type"]
    line, keys = _locate(root, loc)
    if kind == "missing":
        keys.append(str(loc[-1]))
        expected, got = "a value", "nothing (the key is required)"
    elif kind == "extra_forbidden":
        known = _known_keys(model, loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        expected, got = f"one of {', '.join(known)}" if known else "no such key", f"{loc[-1]}{hint}"
    elif kind in ("value_error", "assertion_error"):
        text = str(error["msg"]).partition(", ")[2]
        context = error.get("ctx", {}).get("error")
        text = str(context) if context is not None else text
        expected, got = text, "" if isinstance(error["input"], Mapping) else _show(error["input"])
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        context = error["ctx"]
        tag = str(context["discriminator"]).strip("'")
        keys.append(tag)
        expected = "one of " + str(context.get("expected_tags", "its kinds")).replace("'", "")
        got = repr(context["tag"]) if "tag" in context else "nothing (the key is required)"
    else:
        text = str(error["msg"])
        for start in ("Input should be ", "Value should be "):
            text = text.removeprefix(start)
        expected, got = text[:1].lower() + text[1:], _show(error["input"])
    key = ".".join(keys).replace(".[", "[") or "the file"
    # A rule between several keys says what it expects of them; what is there is the whole mapping.
    return f"{name}:{line}: {key}: expected {expected}" + (f", got {got}" if got else "")


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'no keys'}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(model: type[BaseModel], loc: _Loc) -> list[str]:
    """The keys that the model at this place of the tree takes; empty if it cannot be told."""
    here: list[Any] = [model]
    for part in loc:
        step: list[Any] = []
        for kind in here:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                for field_name, field in kind.model_fields.items():
                    if part in (field_name, field.alias):
                        step.extend(_models(field.annotation))
            elif isinstance(kind, _Elements):
                step.extend(_models(kind.annotation))
        # The name of a union's branch is no step of its own: stay, and keep the branch that it names.
        if not step:
            step = [kind for kind in here if _is_branch(kind, part)] or here
        here = step
    models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return sorted({field.alias or key for kind in models for key, field in kind.model_fields.items()})


def _is_branch(kind: object, part: Hashable) -> bool:
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    return kind.__name__ == part or any(part in get_args(field.annotation) for field in kind.model_fields.values())


def _models(annotation: Any) -> list[Any]:
    """The models, and containers of models, inside an annotation; one container level is opened."""
    if annotation is None:
        return []
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [found for arg in get_args(annotation) for found in _models(arg)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if origin in (list, tuple, dict):
        return [_Elements(get_args(annotation)[-1])]
    return []


class _Elements:
    """What a list or mapping holds, one step below it in a location."""

    def __init__(self, annotation: Any) -> None:
        self.annotation = annotation
