"""Counter-based random numbers: every thing in a scene draws from a stream named by integers.

A street has no end, so nothing may depend on how much of it was generated before: segment 700 must
look the same whether the clip started there or drove the 14 km up to it.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator that depends on its arguments alone.

    ``purpose`` names the use ("zone", "parked", ...); ``counters`` are any integers (segment,
    side, cell). At most two counters; negative ones are allowed.
    """
    if len(counters) > 2:
        raise ValueError(f"stream takes at most 2 counters, got {len(counters)}")
    words = [zlib.crc32(purpose.encode())] + [c & 0xFFFFFFFF for c in counters]
    words += [0] * (4 - len(words))
    counter = np.array([0, words[0], words[1], words[2]], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=seed & 0xFFFFFFFFFFFFFFFF, counter=counter))
