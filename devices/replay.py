"""Recordings played back: a CSV file whose rows are published as devices, with the spacing of the original.

The whole file is read and checked before anything connects (files sorted by device and not by time are common, and an
error in the last row should not come after an hour), so a recording must fit in memory: about 200 bytes a row.

Times are ISO 8601 or plain numbers (since 1970 or since any other moment: only differences count). The earliest row is
played at the start of the run; ``speed`` divides all distances. Cells that read as numbers are published as numbers,
empty cells as null.
"""

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TextIO

from tidings.broker.errors import ConfigError

from .filters import topic_error
from .ports import ClientOptions
from .publisher import Publisher, Run, to_json
from .scenario import Replay

_UNIT_S: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_UNNAMEABLE: Final = re.compile(r"[^A-Za-z0-9._~-]+")
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER: Final = re.compile(r"[+-]?\d{1,15}")
_AMERICAN: Final = re.compile(r"\d{1,2}/\d{1,2}/\d{4}")

_FORMATS: Final = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%b %d %Y", "%d %b %Y")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``at_s`` since the start of the run, and the JSON object to publish."""

    at_s: float
    device: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that was read: rows by time, and how many were skipped as malformed, with the first reason."""

    rows: list[Row]
    devices: list[str]
    skipped: int
    first_error: str | None

    @property
    def length_s(self) -> float:
        return self.rows[-1].at_s if self.rows else 0.0


def read_recording(spec: Replay, folder: Path, name: str) -> Recording:
    """The recording that ``spec`` describes. Raises ConfigError that names file and line."""
    path = folder / spec.file
    try:
        # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(spec, path, file, name)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8 text") from None


def _read(spec: Replay, path: Path, file: TextIO, name: str) -> Recording:
    lines = _lines(path, file)
    header = next(lines, (1, []))[1]
    columns = {title: index for index, title in enumerate(header)}
    wanted = spec.values if spec.values is not None else [c for c in header if c not in (spec.time, spec.device)]
    for column in [spec.time, *([spec.device] if spec.device else []), *wanted]:
        if column not in columns:
            raise ConfigError(f"{path}:1: expected a column {column}, got {', '.join(header) or 'an empty file'}")
    if not wanted:
        raise ConfigError(f"{path}:1: expected a column of values besides {spec.time}")
    value_columns = [(column, columns[column]) for column in wanted]
    found: list[tuple[float, str, bytes]] = []
    skipped, first_error = 0, None
    for line, cells in lines:
        if not cells:
            continue
        try:
            if len(cells) != len(header):
                raise ValueError(f"expected {len(header)} columns, got {len(cells)}")
            original = cells[columns[spec.time]]
            seconds = parse_time(original, spec.time_unit)
            device = _device(cells[columns[spec.device]], spec.device) if spec.device else name
            body = {"time": original, **{column: _cell(cells[index]) for column, index in value_columns}}
        except ValueError as error:
            problem = f"{path}:{line}: {error}"
            if spec.on_error == "stop":
                raise ConfigError(f"{problem} (on_error: skip counts such rows instead)") from None
            skipped += 1
            first_error = first_error or problem
            continue
        found.append((seconds, device, to_json(body)))
        if spec.rows is not None and len(found) >= spec.rows:
            break
    if not found:
        raise ConfigError(f"{path}: expected at least one row, got none" + (f" ({first_error})" if first_error else ""))
    found.sort(key=lambda row: row[0])
    first = found[0][0]
    rows = [Row((seconds - first) / spec.speed, device, body) for seconds, device, body in found]
    return Recording(rows, sorted({row.device for row in rows}), skipped, first_error)


def _lines(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its last line."""
    reader = csv.reader(file, strict=True)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None
        yield reader.line_num, cells


def parse_time(text: str, unit: str) -> float:
    """Seconds from a number in ``unit`` or a date and time. Raises ValueError in words."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text) * _UNIT_S[unit]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = _other_format(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _other_format(text: str) -> datetime:
    if _AMERICAN.fullmatch(text):
        raise ValueError(f"expected a time that can be read one way only, such as 2026-01-31, got {text}")
    for form in _FORMATS:
        try:
            return datetime.strptime(text, form)
        except ValueError:
            continue
    raise ValueError(f"expected a time such as 2026-01-31T12:00:00Z or a number, got {text!r}")


def _device(cell: str, column: str) -> str:
    """A device's name from a cell: what cannot stand in a topic becomes a dash."""
    device = _UNNAMEABLE.sub("-", cell.strip())[:80]
    if not device.strip("-") or topic_error(device) is not None:
        raise ValueError(f"expected a device's name in column {column}, got {cell!r}")
    return device


def _cell(text: str) -> float | int | str | None:
    text = text.strip()
    if not text:
        return None
    if _INTEGER.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        number = float(text)
        return number if math.isfinite(number) else text
    return text


class ReplayDevice(Publisher):
    """One device of a recording: it connects, and publishes the rows it is given."""

    __slots__ = ("_spec", "_topic")

    def __init__(self, replay: str, spec: Replay, device: str, client_id: str, run: Run) -> None:
        self._spec = spec
        self._topic = spec.topic.format_map({"replay": replay, "device": device})
        options = ClientOptions(
            client_id, spec.version, session_s=60, keep_alive_s=int(spec.keep_alive), queue_count=10_000
        )
        super().__init__(publisher_name(replay, device), run, options)

    def play(self, row: Row) -> None:
        self.send(self._topic, row.body, self._spec.qos, row.at_s, retain=self._spec.retain)


def publisher_name(replay: str, device: str) -> str:
    """Under which name a device of a recording publishes."""
    return device if device == replay else f"{replay}-{device}"


class Player:
    """Plays one recording: a single timer that walks through the rows."""

    def __init__(self, replay: str, spec: Replay, recording: Recording, client_ids: str, run: Run) -> None:
        self.recording = recording
        self.devices = {
            device: ReplayDevice(replay, spec, device, f"{client_ids}{publisher_name(replay, device)}", run)
            for device in recording.devices
        }
        self._run = run
        self._next = 0

    def begin(self) -> None:
        self._schedule()

    def _schedule(self) -> None:
        rows = self.recording.rows
        if self._next < len(rows) and (self._run.end_s is None or rows[self._next].at_s < self._run.end_s):
            self._run.clock.call_at(self._run.zero + rows[self._next].at_s, self._play)

    def _play(self) -> None:
        """All rows of this moment: recordings often have one from every device."""
        rows = self.recording.rows
        at_s = rows[self._next].at_s
        while self._next < len(rows) and rows[self._next].at_s == at_s:
            row = rows[self._next]
            self.devices[row.device].play(row)
            self._next += 1
        self._schedule()
