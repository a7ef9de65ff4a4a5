"""Random numbers as a pure function of what they are for: (seed, names, position).

Every stream has its own 64-bit key, hashed from the scenario's seed and names such as a device's and a measurement's,
so that adding a device changes no other device, and a number can be had at any position without those before it. That
is what makes waveforms functions of time, and keeps a generator object (2.5 KB in the standard library) out of each
measurement.

The mixing function is SplitMix64's finaliser (Steele, Lea, Flood 2014). Not for secrets.
"""

import hashlib
import math
from typing import Final

_MASK: Final = (1 << 64) - 1
_GOLDEN: Final = 0x9E3779B97F4A7C15


def stream_key(seed: int, *names: str) -> int:
    """The 64-bit key of the stream for these names. Equal arguments give equal keys on every machine."""
    text = "\x00".join((str(seed), *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform(key: int, position: int) -> float:
    """The number at ``position`` of the stream: 0 <= x < 1."""
    x = (key + (position + 1) * _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def gauss(key: int, position: int) -> float:
    """The number at ``position``, normally distributed with mean 0 and deviation 1 (Box and Muller)."""
    radius = math.sqrt(-2.0 * math.log(1.0 - uniform(key, 2 * position)))
    return radius * math.cos(2.0 * math.pi * uniform(key, 2 * position + 1))
