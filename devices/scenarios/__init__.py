"""Scenarios that come with tidings, by name: ``tidings fleet run demo``."""

from pathlib import Path


def shipped_names() -> list[str]:
    """The names of the scenarios that come with tidings."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def shipped(name: str) -> Path | None:
    """The file of the scenario with this name; None if there is none."""
    return Path(__file__).parent / f"{name}.yaml" if name in shipped_names() else None
