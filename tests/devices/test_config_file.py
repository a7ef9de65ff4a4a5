"""YAML into models: every mistake is one line with file, line, key, what was expected and what was there."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tidings.broker.config_file import Seconds, load_yaml, parse_duration, parse_yaml
from tidings.broker.errors import ConfigError

KEYS = "count, name, parts, shape, tags, wait"
DURATION = "a duration such as 20s, 250ms or 5m"


class Round(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["round"]
    radius: float


class Square(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["square"]
    side: float


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    count: int = Field(default=1, ge=1)
    wait: Seconds = 1.0
    shape: Annotated[Round | Square, Field(discriminator="kind")] | None = None
    tags: list[str] = []
    parts: dict[str, "Thing"] = {}

    @field_validator("name")
    @classmethod
    def _lower(cls, value: str) -> str:
        if not value.islower():
            raise ValueError("a name in small letters")
        return value

    @model_validator(mode="after")
    def _few(self) -> "Thing":
        if self.count > 3 and self.parts:
            raise ValueError("at most 3 of a thing with parts")
        return self


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count: 2\n", ["f:1: name: expected a value, got nothing (the key is required)"]),
        (
            "name: a\ncount: many\n",
            ["f:2: count: expected a valid integer, unable to parse string as an integer, got 'many'"],
        ),
        ("name: a\n\ncount: 0\n", ["f:3: count: expected greater than or equal to 1, got 0"]),
        ("name: A\n", ["f:1: name: expected a name in small letters, got 'A'"]),
        ("name: a\nwait: soon\n", [f"f:2: wait: expected {DURATION}, got 'soon'"]),
        ("name: a\ncuont: 2\n", [f"f:2: cuont: expected one of {KEYS}, got cuont (did you mean count?)"]),
        ("name: a\ntags: [x, 1]\n", ["f:2: tags[1]: expected a valid string, got 1"]),
        ("name: a\nparts:\n  p:\n    name: b\n    zzz: 1\n", [f"f:5: parts.p.zzz: expected one of {KEYS}, got zzz"]),
        ("name: a\nshape: {kind: oval}\n", ["f:2: shape.kind: expected one of round, square, got 'oval'"]),
        (
            "name: a\nshape: {radius: 2}\n",
            ["f:2: shape.kind: expected one of its kinds, got nothing (the key is required)"],
        ),
        (
            "name: a\nshape:\n  kind: round\n  radios: 2\n  radius: 1\n",
            ["f:4: shape.radios: expected one of kind, radius, got radios (did you mean radius?)"],
        ),
        ("name: a\ncount: 4\nparts: {p: {name: b}}\n", ["f:1: the file: expected at most 3 of a thing with parts"]),
        ("name: a\nname: b\n", ["f:2: name: expected each key once, got it again (first in line 1)"]),
        ("- a\n", ["f:1: expected a mapping of keys, got a list"]),
        ("word\n", ["f:1: expected a mapping of keys, got a single value"]),
        ("", ["f:1: expected a mapping of keys, got an empty file"]),
        ("a: b: c\n", ["f:1: not valid YAML: mapping values are not allowed here"]),
        ("a: [\n", ["f:2: not valid YAML: expected the node content, but found '<stream end>'"]),
        (
            "name: a\ncount: 0\nwait: x\n",
            ["f:2: count: expected greater than or equal to 1, got 0", f"f:3: wait: expected {DURATION}, got 'x'"],
        ),
    ],
)
def test_a_mistake_is_explained_in_one_line(text: str, expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Thing, "f")
    assert str(caught.value).splitlines() == expected


def test_more_than_ten_mistakes_are_counted() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml("name: a\n" + "".join(f"k{index}: 1\n" for index in range(15)), Thing, "f")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "f: and 5 more"


def test_a_good_file_becomes_a_model(tmp_path: Path) -> None:
    path = tmp_path / "thing.yaml"
    path.write_text("name: a\nwait: 1.5m\nparts: {b: {name: b, shape: {kind: square, side: 2}}}\n")
    thing = load_yaml(path, Thing)
    assert (thing.wait, thing.parts["b"].shape) == (90.0, Square(kind="square", side=2))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: cannot be read: No such file or directory"):
        load_yaml(tmp_path / "nothing.yaml", Thing)
    (tmp_path / "latin").write_bytes(b"name: \xe9\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text, got byte 0xe9"):
        load_yaml(tmp_path / "latin", Thing)


@pytest.mark.parametrize(
    "text", ["name: &a [*a]\n", "name: !!python/object:os.system x\n", "? {a: b}\n: c\n", "name: \x00\n"]
)
def test_strange_yaml_is_refused_in_words(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_yaml(text, Thing, "f")


@given(st.text(alphabet="abn:{}[]- \n'\"&*!|>#?,kindshape123", max_size=60))
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    try:
        parse_yaml(text, Thing, "f")
    except ConfigError as error:
        line = str(error)
    else:
        line = "f:"
    assert line.startswith("f:")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20s", 20), ("250ms", 0.25), ("5m", 300), ("1.5h", 5400), ("2d", 172800), ("7", 7), (3, 3), (0.5, 0.5)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("wrong", ["", "s", "-1s", "1 week", True, None, [], "1e3s"])
def test_what_is_no_duration_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="a duration such as 20s"):
        parse_duration(wrong)
