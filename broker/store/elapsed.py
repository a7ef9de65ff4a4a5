"""Engine time across restarts: how much of it passes while the broker is not running.

Within one boot of the machine the kernel's own clock says so, and a wall clock that was set meanwhile changes nothing.
Across a reboot only the wall clock can; if it went backwards, no time has passed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot() -> tuple[str, float]:
    """Which boot of the machine this is ("" = cannot be told), and seconds since it, time asleep included."""
    clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    try:
        name = _BOOT_ID.read_text().strip()
    except OSError:
        return "", 0.0
    return (name, time.clock_gettime(clock)) if clock is not None else ("", 0.0)


def resume(kept: tuple[float, str, float] | None, wall: float, boot: Callable[[], tuple[str, float]] = boot) -> float:
    """Engine time now. ``kept`` is what the last run left: engine time, boot, and seconds since that boot."""
    if kept is None:
        return wall
    now, name, since = kept
    this, at = boot()
    if name and name == this and at >= since:
        return now + (at - since)
    return max(now, wall)
